//! From what is wanted to the objects that say so. Pure: no client, data in, data out.
//!
//! Objects are raw JSON, as server-side apply wants them: a field that is not named is not owned, and a
//! pod template keeps what this operator's types do not know. Each spec struct is taken apart without
//! `..`, so that a new field cannot be forgotten here.

mod pod;
mod services;
mod workload;

#[cfg(test)]
mod tests;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::names::{ANNOTATION_APPLIED, ClusterName, LABEL_CLUSTER, MANAGED_BY};
use crate::validate::Desired;

pub use workload::{disruption_budget, stateful_set};

/// Kinds of object the operator makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The headless and the client Service.
    Service,
    /// The peers' addresses.
    ConfigMap,
    /// The application's network rules.
    NetworkPolicy,
    /// The pods.
    StatefulSet,
    /// What drains may take.
    PodDisruptionBudget,
    /// Certificates.
    Secret,
}

/// An object to be applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Its kind.
    pub kind: Kind,
    /// Its name; the namespace is the cluster's.
    pub name: String,
    /// The whole of it, with the hash of the rest in an annotation.
    pub value: Value,
}

impl Object {
    /// Seals an object: the hash of its content goes into an annotation, so that a later reconcile can
    /// tell without a write that nothing changed.
    pub(crate) fn seal(kind: Kind, name: String, mut value: Value) -> Object {
        let hash = content_hash(&value);
        value["metadata"]["annotations"][ANNOTATION_APPLIED] = Value::String(hash);
        Object { kind, name, value }
    }

    /// The hash in the annotation.
    pub fn hash(&self) -> &str {
        self.value["metadata"]["annotations"][ANNOTATION_APPLIED].as_str().unwrap_or_default()
    }
}

/// SHA-256 of the JSON text, 16 hexadecimal digits of it. Maps are ordered by key, so equal content has
/// equal text.
pub fn content_hash(value: &Value) -> String {
    let digest: [u8; 32] = Sha256::digest(value.to_string().as_bytes()).into();
    digest[..8].iter().map(|b| format!("{b:02x}")).collect()
}

/// The objects around the StatefulSet, in the order they are applied: what pods need comes first.
pub fn surroundings(desired: &Desired, size: u32) -> Vec<Object> {
    let mut objects = vec![services::config_map(desired, size), services::peer_service(desired)];
    objects.extend(services::client_service(desired));
    objects.extend(services::network_policy(desired));
    objects
}

/// Kinds and names of objects that this spec does not ask for and an earlier one may have made.
pub fn unwanted(desired: &Desired) -> Vec<(Kind, String)> {
    let mut gone = Vec::new();
    if services::client_service(desired).is_none() {
        gone.push((Kind::Service, desired.name.client_service()));
    }
    if services::network_policy(desired).is_none() {
        gone.push((Kind::NetworkPolicy, desired.name.name.clone()));
    }
    gone
}

/// Ordinals whose pods may exist before the next look at them: their addresses are listed and their
/// certificates made beforehand. docs: operator-rules.md, "TLS": a pair exists before its pod.
pub fn prepared_ordinals(desired: &Desired, size: u32) -> u32 {
    desired.replicas.max(desired.max_voters).max(size.saturating_add(1)).min(crate::names::MAX_MEMBERS)
}

/// Metadata that every object of a cluster carries.
pub(crate) fn metadata(name: &ClusterName, object: &str, component: &str) -> Value {
    json!({
        "name": object,
        "namespace": name.namespace,
        "labels": labels(name, component),
        "annotations": {},
        "ownerReferences": [owner(name)],
    })
}

/// The reference that makes an object go with its PaxosCluster.
pub(crate) fn owner(name: &ClusterName) -> Value {
    json!({
        "apiVersion": "synod.dev/v1alpha1",
        "kind": "PaxosCluster",
        "name": name.name,
        "uid": name.uid,
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

/// Labels of everything that belongs to a cluster.
pub(crate) fn labels(name: &ClusterName, component: &str) -> Map<String, Value> {
    let mut labels = selector(name);
    labels.insert("app.kubernetes.io/name".into(), "synod".into());
    labels.insert("app.kubernetes.io/instance".into(), name.name.clone().into());
    labels.insert("app.kubernetes.io/component".into(), component.into());
    labels.insert("app.kubernetes.io/managed-by".into(), MANAGED_BY.into());
    labels
}

/// The one label that pods are selected by: the rest are the user's to change.
pub(crate) fn selector(name: &ClusterName) -> Map<String, Value> {
    Map::from_iter([(LABEL_CLUSTER.to_owned(), Value::String(name.name.clone()))])
}
