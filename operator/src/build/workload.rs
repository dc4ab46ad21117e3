//! The StatefulSet and its disruption budget.

use serde_json::{Value, json};

use crate::crd::{
    Disruption, Election, PaxosClusterSpec, Reads, ReplaceLost, Retention, Storage, WhenDeleted, WhenScaled,
};
use crate::names::{ANNOTATION_SIZE, CLAIM, LABEL_COUNTED};
use crate::validate::Desired;

use super::{Kind, Object, metadata, pod, selector};

/// The StatefulSet at a size that the plan chose. `claim_size` is the size in the claim template of a set
/// that stands: the template is never changed, claims are patched one by one (docs: operator-rules.md, rule 11).
pub fn stateful_set(desired: &Desired, size: u32, claim_size: Option<&str>) -> Object {
    // Every field is named: a new one has to be placed here, in the pod, or in the list of what goes
    // elsewhere.
    let PaxosClusterSpec {
        replicas: _,
        max_voters: _,
        image: _,
        storage,
        template,
        socket,
        election: Election { heartbeat: _, timeout: _ }, // goes into the genesis
        reads: Reads { leases: _, max_clock_drift: _ },  // goes through the log
        retention: _retention,                           // goes through the log
        resources,
        service: _,
        network_policy: _,
        disruption: Disruption { budget: _ },
        pod_security,
        tls,
        progress_deadline_seconds: _,
        paused: _,
    } = &desired.spec;
    let _: &Option<Retention> = _retention;
    let parts = pod::Parts {
        template: template.as_ref(),
        socket,
        resources: resources.as_ref(),
        pod_security: *pod_security,
        tls,
    };
    let name = desired.name.name.clone();
    let value = json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata(&desired.name, &name, "members"),
        "spec": {
            "replicas": size,
            "serviceName": desired.name.peer_service(),
            "podManagementPolicy": "Parallel",
            "updateStrategy": { "type": "OnDelete" },
            "revisionHistoryLimit": 4,
            "persistentVolumeClaimRetentionPolicy": { "whenDeleted": "Retain", "whenScaled": "Retain" },
            "selector": { "matchLabels": selector(&desired.name) },
            "template": pod::template(desired, &parts),
            "volumeClaimTemplates": [claim_template(storage, claim_size)],
        },
    });
    let mut value = value;
    value["metadata"]["annotations"][ANNOTATION_SIZE] = Value::String(size.to_string());
    Object::seal(Kind::StatefulSet, name, value)
}

fn claim_template(storage: &Storage, claim_size: Option<&str>) -> Value {
    let Storage { size, storage_class_name, when_scaled, when_deleted, replace_lost } = storage;
    // Decided by the plan, claim by claim; the set itself always keeps every claim.
    let _: (&WhenScaled, &WhenDeleted, &ReplaceLost) = (when_scaled, when_deleted, replace_lost);
    let mut spec = json!({
        "accessModes": ["ReadWriteOnce"],
        "resources": { "requests": { "storage": claim_size.unwrap_or(size) } },
    });
    if let Some(class) = storage_class_name {
        spec["storageClassName"] = Value::String(class.clone());
    }
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": { "name": CLAIM },
        "spec": spec,
    })
}

/// What drains and other evictions must leave standing: `min_available` pods that vote.
/// docs: operator-rules.md, "Budget".
pub fn disruption_budget(desired: &Desired, min_available: u32) -> Object {
    let name = desired.name.name.clone();
    let mut labels = selector(&desired.name);
    labels.insert(LABEL_COUNTED.into(), "true".into());
    let value = json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(&desired.name, &name, "budget"),
        "spec": {
            "minAvailable": min_available,
            "selector": { "matchLabels": labels },
            "unhealthyPodEvictionPolicy": "IfHealthyBudget",
        },
    });
    Object::seal(Kind::PodDisruptionBudget, name, value)
}
