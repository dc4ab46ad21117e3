//! Each field of the schema has an effect: in an object, or in what the plan does next.

use std::collections::BTreeSet;

use kube::CustomResourceExt;
use serde_json::{Value, json};

use super::super::{stateful_set, surroundings};
use crate::crd::{
    AppNetworkPolicy, Budget, ClientService, PaxosCluster, PaxosClusterSpec, PodSecurity, Retention, TlsMode,
    WhenDeleted,
};
use crate::plan::tests::world::{World, desired};

type Change = fn(&mut PaxosClusterSpec);

/// Fields whose effect shows in time or after other steps, and the tests that show it.
const ELSEWHERE: [(&str, &str); 4] = [
    ("storage.whenScaled", "f3_seven_three_five_with_kept_disks_mints_new_ids"),
    ("storage.replaceLost.policy", "o4_manual_and_what_the_leader_hears_are_never_lost"),
    (
        "storage.replaceLost.after",
        "o4_a_volume_bound_to_a_vanished_node_is_given_up_after_the_time_that_was_set",
    ),
    ("progressDeadlineSeconds", "a_lost_quorum_stalls_after_the_deadline"),
];

fn fields() -> Vec<(&'static str, Change)> {
    vec![
        ("replicas", |s| s.replicas = 5),
        ("maxVoters", |s| s.max_voters = 9),
        ("image", |s| s.image = Some("other:1".into())),
        ("storage.size", |s| s.storage.size = "20Gi".into()),
        ("storage.storageClassName", |s| s.storage.storage_class_name = Some("fast".into())),
        ("storage.whenDeleted", |s| s.storage.when_deleted = WhenDeleted::Delete),
        ("template", |s| {
            s.template = json!({ "spec": { "nodeSelector": { "a": "b" } } }).as_object().cloned()
        }),
        ("socket.mode", |s| s.socket.mode = "0666".into()),
        ("socket.allowedUids", |s| s.socket.allowed_uids = vec![1000]),
        ("election.heartbeat", |s| s.election.heartbeat = "50ms".into()),
        ("election.timeout", |s| s.election.timeout = "2s".into()),
        ("reads.leases", |s| s.reads.leases = true),
        ("reads.maxClockDrift", |s| s.reads.max_clock_drift = "7%".into()),
        ("retention.maxEntries", |s| {
            s.retention = Some(Retention { max_entries: Some(1), ..Retention::default() });
        }),
        ("retention.maxBytes", |s| {
            s.retention = Some(Retention { max_bytes: Some("1Gi".into()), ..Retention::default() });
        }),
        ("retention.maxAge", |s| {
            s.retention = Some(Retention { max_age: Some("1h".into()), ..Retention::default() });
        }),
        ("resources", |s| s.resources = json!({ "limits": { "memory": "1Gi" } }).as_object().cloned()),
        ("service.ports", |s| {
            let port = json!({ "port": 80 }).as_object().cloned().unwrap_or_default();
            s.service = Some(ClientService { ports: vec![port] });
        }),
        ("networkPolicy.appIngress", |s| {
            s.network_policy = Some(AppNetworkPolicy { app_ingress: Vec::new() });
        }),
        ("disruption.budget", |s| s.disruption.budget = Budget::None),
        ("podSecurity", |s| s.pod_security = PodSecurity::Platform),
        ("tls.mode", |s| s.tls.mode = TlsMode::Disabled),
        ("tls.secretName", |s| (s.tls.mode, s.tls.secret_name) = (TlsMode::Provided, Some("own".into()))),
        ("paused", |s| s.paused = true),
    ]
}

/// All that the pure stages make of a spec, for a cluster of three at rest.
fn effect(change: impl FnOnce(&mut PaxosClusterSpec)) -> String {
    let mut world = World::formed(3);
    world.desired = desired(3, change);
    let set = stateful_set(&world.desired, 3, None).value;
    let around: Vec<Value> = surroundings(&world.desired, 3).into_iter().map(|o| o.value).collect();
    format!("{set} {around:?} {:?}", world.plan())
}

#[test]
fn o25_each_field_has_an_effect() {
    let nothing = effect(|_| {});
    assert_eq!(nothing, effect(|_| {}), "equal specs have equal effects");
    let mut seen = BTreeSet::new();
    for (field, change) in fields() {
        let effect = effect(change);
        assert_ne!(effect, nothing, "spec.{field} changes nothing");
        assert!(seen.insert(effect), "spec.{field} does what another field does");
    }
}

/// The list above and the one of tests elsewhere name every leaf of the schema.
#[test]
fn o25_no_field_of_the_schema_is_without_a_test() {
    let crd = serde_json::to_value(PaxosCluster::crd()).unwrap();
    let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let mut leaves = BTreeSet::new();
    collect(spec, "", &mut leaves);
    let tested = fields().into_iter().map(|(f, _)| f.to_owned());
    let tested: BTreeSet<String> = tested.chain(ELSEWHERE.iter().map(|(f, _)| (*f).to_owned())).collect();
    assert_eq!(leaves, tested);
    let tests = [
        include_str!("../../plan/tests/courses.rs"),
        include_str!("../../plan/tests/losses.rs"),
        include_str!("../../status/tests/mod.rs"),
    ];
    for (field, test) in ELSEWHERE {
        assert!(
            tests.iter().any(|t| t.contains(&format!("fn {test}("))),
            "{field}: no test is called {test}"
        );
    }
}

/// Paths of the schema's leaves; what users write as they like (templates, ports, resources) is one leaf.
fn collect(schema: &Value, path: &str, leaves: &mut BTreeSet<String>) {
    let open = ["template", "resources"].contains(&path);
    match schema["properties"].as_object().filter(|p| !p.is_empty() && !open) {
        Some(properties) => {
            for (name, part) in properties {
                let dot = if path.is_empty() { "" } else { "." };
                collect(part, &format!("{path}{dot}{name}"), leaves);
            }
        }
        None => {
            leaves.insert(path.to_owned());
        }
    }
}
