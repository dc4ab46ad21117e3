//! From Kubernetes objects to observed facts. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ContainerStatus, PersistentVolumeClaim, Pod};
use k8s_openapi::jiff::Timestamp;

use crate::names::{
    ANNOTATION_CLUSTER, ANNOTATION_GENERATION, ANNOTATION_MEMBER, ANNOTATION_SIZE, ANNOTATION_TEMPLATE,
    ClusterName, LABEL_COUNTED, LABEL_RETIRED, LABEL_ROLE,
};
use crate::observed::{ClaimFacts, PodFacts, SetFacts, Trouble, TroubleKind};
use crate::validate::parse_quantity;

/// A file system that has not grown after this long grows when its pod restarts.
const GROWS_WHILE_MOUNTED_SECONDS: i64 = 180;

/// What the plan needs of a StatefulSet.
pub(super) fn set(set: &StatefulSet) -> SetFacts {
    let spec = set.spec.as_ref();
    let status = set.status.as_ref();
    let claims = spec.and_then(|s| s.volume_claim_templates.as_ref());
    let requests = claims
        .and_then(|c| c.first())
        .and_then(|c| c.spec.as_ref())
        .and_then(|s| s.resources.as_ref())
        .and_then(|r| r.requests.as_ref());
    let applied_size = set.metadata.annotations.as_ref().and_then(|a| a.get(ANNOTATION_SIZE));
    let annotation = |key: &str| set.metadata.annotations.as_ref().and_then(|a| a.get(key));
    let made_from = annotation(ANNOTATION_GENERATION);
    SetFacts {
        template: annotation(ANNOTATION_TEMPLATE).cloned(),
        made_from: made_from.and_then(|generation| generation.parse().ok()),
        applied_size: applied_size.and_then(|size| size.parse().ok()),
        uid: set.metadata.uid.clone().unwrap_or_default(),
        resource_version: set.metadata.resource_version.clone().unwrap_or_default(),
        replicas: spec.and_then(|s| s.replicas).and_then(|r| u32::try_from(r).ok()).unwrap_or(0),
        generation: set.metadata.generation.unwrap_or(0),
        observed_generation: status.and_then(|s| s.observed_generation).unwrap_or(0),
        update_revision: status.and_then(|s| s.update_revision.clone()).unwrap_or_default(),
        deleting: set.metadata.deletion_timestamp.is_some(),
        claim_size: requests.and_then(|r| r.get("storage")).map(|q| q.0.clone()),
    }
}

/// What the plan needs of the pods, by ordinal. Pods of other names under our label are nobody's members.
pub(super) fn pods(name: &ClusterName, pods: &[Pod]) -> BTreeMap<u32, PodFacts> {
    let ordinal = |p: &Pod| name.ordinal_of_pod(p.metadata.name.as_deref()?);
    pods.iter().filter_map(|p| Some((ordinal(p)?, pod(p)))).collect()
}

fn pod(pod: &Pod) -> PodFacts {
    let status = pod.status.as_ref();
    let labels = pod.metadata.labels.as_ref();
    let label = |key: &str| labels.and_then(|l| l.get(key)).cloned();
    let conditions = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().find(|c| c.type_ == "Ready" && c.status == "True");
    PodFacts {
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        ip: status.and_then(|s| s.pod_ip.clone()).filter(|ip| !ip.is_empty()),
        node: pod.spec.as_ref().and_then(|s| s.node_name.clone()).filter(|n| !n.is_empty()),
        ready: ready.is_some(),
        ready_since: ready.and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0),
        deleting: pod.metadata.deletion_timestamp.is_some(),
        revision: label("controller-revision-hash").unwrap_or_default(),
        role: label(LABEL_ROLE),
        counted: label(LABEL_COUNTED).as_deref() == Some("true"),
        trouble: trouble(pod),
    }
}

/// Why a pod cannot run: the scheduler's word, then the first container that cannot.
fn trouble(pod: &Pod) -> Option<Trouble> {
    let status = pod.status.as_ref()?;
    if status.phase.as_deref() == Some("Failed") {
        let message = status.message.clone().or_else(|| status.reason.clone()).unwrap_or_default();
        return Some(Trouble {
            kind: TroubleKind::Failed,
            message: format!("the pod has failed: {message}"),
        });
    }
    let unscheduled = status.conditions.iter().flatten().find(|c| {
        c.type_ == "PodScheduled" && c.status == "False" && c.reason.as_deref() == Some("Unschedulable")
    });
    if let Some(condition) = unscheduled {
        let message = condition.message.clone().unwrap_or_default();
        return Some(Trouble {
            kind: TroubleKind::Unschedulable,
            message: format!("no node takes the pod: {message}"),
        });
    }
    let all =
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    all.filter_map(container_trouble).next()
}

fn container_trouble(container: &ContainerStatus) -> Option<Trouble> {
    let state = container.state.as_ref()?;
    if let Some(ended) = state.terminated.as_ref().filter(|t| t.exit_code != 0) {
        let message = format!("container {} ended with exit code {}", container.name, ended.exit_code);
        return Some(Trouble { kind: TroubleKind::Crash, message });
    }
    let waiting = state.waiting.as_ref()?;
    let reason = waiting.reason.as_deref()?;
    let kind = match reason {
        "ImagePullBackOff"
        | "ErrImagePull"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "RegistryUnavailable"
        | "ImageInspectError" => TroubleKind::Image,
        "CrashLoopBackOff"
        | "CreateContainerConfigError"
        | "CreateContainerError"
        | "RunContainerError"
        | "PostStartHookError" => TroubleKind::Crash,
        _ => return None,
    };
    let detail = brief(waiting.message.as_deref().unwrap_or_default());
    let message = match kind {
        // The kubelet alternates between two reasons while it retries: neither is news.
        TroubleKind::Image => {
            format!("container {} cannot get image {}{detail}", container.name, container.image)
        }
        _ => format!("container {} does not run: {reason}{detail}", container.name),
    };
    Some(Trouble { kind, message })
}

/// The end of the kubelet's words, which is the cause, in at most 160 characters.
fn brief(message: &str) -> String {
    let cause = message.rsplit_once("ErrImagePull: ").map_or(message, |(_, cause)| cause);
    let skipped = cause.chars().count().saturating_sub(160);
    let tail: String = cause.chars().skip(skipped).collect();
    match (cause.is_empty(), skipped, tail.split_once(' ')) {
        (true, _, _) => String::new(),
        (false, 1.., Some((_, words))) => format!(": ... {words}"),
        (false, _, _) => format!(": {tail}"),
    }
}

/// What the plan needs of the claims, by ordinal.
pub(super) fn claims(
    name: &ClusterName,
    claims: &[PersistentVolumeClaim],
    now: Timestamp,
) -> BTreeMap<u32, ClaimFacts> {
    let ordinal = |c: &PersistentVolumeClaim| name.ordinal_of_claim(c.metadata.name.as_deref()?);
    claims.iter().filter_map(|c| Some((ordinal(c)?, claim(name, c, now)))).collect()
}

fn claim(name: &ClusterName, claim: &PersistentVolumeClaim, now: Timestamp) -> ClaimFacts {
    let meta = &claim.metadata;
    let annotation = |key: &str| meta.annotations.as_ref().and_then(|a| a.get(key));
    let requests = claim.spec.as_ref().and_then(|s| s.resources.as_ref()).and_then(|r| r.requests.as_ref());
    let status = claim.status.as_ref();
    let capacity = status.and_then(|s| s.capacity.as_ref()).and_then(|c| c.get("storage"));
    // Kubelets grow most file systems while the pod runs; those that they do not are told by time.
    let waits_for_restart = status.and_then(|s| s.conditions.as_ref()).into_iter().flatten().any(|c| {
        let since = c.last_transition_time.as_ref().map_or(0, |t| now.duration_since(t.0).as_secs());
        c.type_ == "FileSystemResizePending" && c.status == "True" && since >= GROWS_WHILE_MOUNTED_SECONDS
    });
    ClaimFacts {
        capacity: capacity.and_then(|q| parse_quantity(&q.0)).unwrap_or(0),
        waits_for_restart,
        uid: meta.uid.clone().unwrap_or_default(),
        deleting: meta.deletion_timestamp.is_some(),
        retired: meta.labels.as_ref().and_then(|l| l.get(LABEL_RETIRED)).cloned(),
        member: annotation(ANNOTATION_MEMBER).and_then(|m| m.parse().ok()),
        cluster: annotation(ANNOTATION_CLUSTER).and_then(|c| c.parse().ok()),
        requested: requests.and_then(|r| r.get("storage")).and_then(|q| parse_quantity(&q.0)).unwrap_or(0),
        owned: super::owned(meta, &name.uid),
        volume: claim.spec.as_ref().and_then(|s| s.volume_name.clone()).filter(|v| !v.is_empty()),
        stranded: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn name() -> ClusterName {
        ClusterName { namespace: "ns".into(), name: "demo".into(), uid: "u".into(), domain: "d".into() }
    }

    #[test]
    fn a_claim_waits_for_a_restart_once_its_kubelet_had_time_to_grow_it() {
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({
            "metadata": { "name": "data-demo-0" },
            "spec": { "resources": { "requests": { "storage": "2Gi" } } },
            "status": {
                "capacity": { "storage": "1Gi" },
                "conditions": [{
                    "type": "FileSystemResizePending", "status": "True",
                    "lastTransitionTime": "1970-01-01T00:00:00Z",
                }],
            },
        }))
        .unwrap();
        let at = |seconds| {
            let now = Timestamp::from_second(seconds).unwrap();
            claims(&name(), std::slice::from_ref(&claim), now).remove(&0).unwrap()
        };
        assert_eq!((at(10).requested, at(10).capacity), (2 << 30, 1 << 30));
        assert!(!at(10).waits_for_restart);
        assert!(at(200).waits_for_restart);
    }

    fn pod_of(value: serde_json::Value) -> PodFacts {
        let pod: Pod = serde_json::from_value(value).unwrap();
        pods(&name(), &[pod]).remove(&0).unwrap()
    }

    #[test]
    fn a_pod_that_cannot_get_its_image_says_which_one() {
        let facts = pod_of(json!({
            "metadata": { "name": "demo-0", "uid": "p0", "labels": { "controller-revision-hash": "r1" } },
            "spec": { "nodeName": "n1", "containers": [] },
            "status": { "initContainerStatuses": [{
                "name": "synod", "image": "nope:1", "imageID": "", "ready": false, "restartCount": 0,
                "state": { "waiting": { "reason": "ImagePullBackOff", "message": "not found" } },
            }]},
        }));
        let trouble = facts.trouble.unwrap();
        assert_eq!(trouble.kind, TroubleKind::Image);
        assert!(
            trouble.message.contains("synod") && trouble.message.contains("nope:1"),
            "{}",
            trouble.message
        );
        assert_eq!((facts.revision.as_str(), facts.node.as_deref()), ("r1", Some("n1")));
    }

    #[test]
    fn a_starting_pod_is_in_no_trouble() {
        let facts = pod_of(json!({
            "metadata": { "name": "demo-0" },
            "status": { "phase": "Pending", "containerStatuses": [{
                "name": "app", "image": "a", "imageID": "", "ready": false, "restartCount": 0,
                "state": { "waiting": { "reason": "PodInitializing" } },
            }]},
        }));
        assert_eq!(facts.trouble, None);
    }

    #[test]
    fn pods_of_other_names_are_left_out() {
        let pod: Pod = serde_json::from_value(json!({ "metadata": { "name": "demo-x-0" } })).unwrap();
        assert!(pods(&name(), &[pod]).is_empty());
    }

    #[test]
    fn a_claim_says_whose_it_is() {
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({
            "metadata": {
                "name": "data-demo-2", "uid": "c2",
                "labels": { "synod.dev/retired": "000000000000000a" },
                "annotations": { "synod.dev/member-id": "000000000000000a" },
                "ownerReferences": [{ "apiVersion": "v", "kind": "k", "name": "demo", "uid": "u" }],
            },
            "spec": { "resources": { "requests": { "storage": "1Gi" } } },
        }))
        .unwrap();
        let facts = claims(&name(), &[claim], Timestamp::UNIX_EPOCH).remove(&2).unwrap();
        assert_eq!(facts.member, Some(crate::names::MemberId(10)));
        assert_eq!((facts.requested, facts.owned), (1 << 30, true));
    }
}
