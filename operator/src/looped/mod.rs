//! The whole loop (reads, plan, writes, status) against a Kubernetes in memory: what an API server refuses, and
//! what other people do to objects of ours.

mod api;
mod cluster;

use serde_json::{Value, json};

use api::Refuse;
use cluster::{AUTHORITY, BUDGET, CLAIMS, CLUSTER, Cluster, PAIRS, PODS, SET};

use crate::build::Kind;

fn refuse(method: &'static str, path: &str, code: u16, words: &'static str) -> Refuse {
    Refuse { method, path: path.into(), code, words }
}

#[tokio::test]
async fn a_cluster_is_formed_and_at_rest_nothing_is_written() {
    let cluster = Cluster::formed(json!({})).await;
    assert_eq!(cluster.voters().len(), 3);
    for _ in 0..50 {
        cluster.look().await.unwrap();
        cluster.with(|s| s.tick());
    }
    assert_eq!(cluster.with(|s| s.server.writes.clone()), [""; 0]);
}

/// O1: `kubectl patch` to Retain, then `kubectl delete`: the claims stay, in whatever state the cluster is.
#[tokio::test]
async fn o1_claims_are_let_go_while_hibernated_paused_or_without_a_quorum() {
    for state in ["hibernated", "paused", "no quorum", "bad template"] {
        let cluster = Cluster::formed(json!({ "storage": { "whenDeleted": "Delete" } })).await;
        let owners = || {
            let claims = cluster.with(|s| {
                let paths = s.server.under(CLAIMS);
                paths.iter().map(|p| s.server.get(p).unwrap().clone()).collect::<Vec<Value>>()
            });
            claims
                .iter()
                .filter(|c| c["metadata"]["ownerReferences"].as_array().is_some_and(|o| !o.is_empty()))
                .count()
        };
        assert_eq!(owners(), 3);
        match state {
            "hibernated" => cluster.edit(json!({ "replicas": 0 })),
            "paused" => cluster.edit(json!({ "paused": true })),
            "no quorum" => {
                let down = ["demo-0", "demo-1", "demo-2"].map(str::to_owned);
                cluster.with(|s| s.down.extend(down));
            }
            _ => cluster.edit(json!({ "template": { "spec": { "hostNetwork": true } } })),
        }
        cluster.settle().await;
        cluster.edit(json!({ "storage": { "whenDeleted": "Retain" } }));
        cluster.look().await.unwrap();
        assert_eq!(owners(), 0, "{state}");
    }
}

/// O7: a Service that the server refuses is told in its words, and a lost disk is replaced meanwhile.
#[tokio::test]
async fn o7_one_refused_object_stops_nothing_else() {
    let cluster = Cluster::formed(json!({})).await;
    let words = "spec.ports[0].name: Required value";
    cluster.with(|s| s.server.refuse.push(refuse("PATCH", "services/demo", 422, words)));
    cluster.edit(json!({ "service": { "ports": [{ "port": 80 }, { "port": 81 }] } }));
    let before = cluster.voters();
    cluster.lose_disk(2);
    cluster.settle().await;
    assert_eq!(cluster.condition("Stalled"), ("True".into(), "Refused".into()));
    assert!(cluster.told("Stalled").contains(words), "{}", cluster.told("Stalled"));
    assert_eq!(cluster.condition("Ready").0, "False");
    assert_eq!(cluster.condition("Available").0, "True");
    let after = cluster.voters();
    assert_eq!(after.len(), 3);
    assert_ne!(before, after, "the lost member was replaced: {}", cluster.status());
    // Mended, it is Ready by itself.
    cluster.with(|s| s.server.refuse.clear());
    cluster.with(|s| s.server.writes.clear());
    for _ in 0..40 {
        cluster.settle().await;
    }
    assert_eq!(cluster.condition("Ready"), ("True".into(), "AsDesired".into()), "{}", cluster.told("Ready"));
}

/// O8: healing and scaling go on by the last good template, whether the operator or the server finds the fault.
#[tokio::test]
async fn o8_a_bad_template_stops_no_healing_and_no_scaling() {
    let bad = json!({ "spec": { "containers": [{ "name": "a", "image": "a" }], "hostNetwork": true } });
    let unknown =
        json!({ "spec": { "containers": [{ "name": "a", "image": "a" }], "volumes": [{ "nam": "v" }] } });
    for (template, code) in [(bad, 0), (unknown.clone(), 422), (unknown, 403)] {
        let cluster = Cluster::formed(json!({})).await;
        if code > 0 {
            // Only the new template is refused: the size alone goes by another kind of patch.
            cluster
                .with(|s| s.server.refuse.push(refuse("PATCH", "statefulsets/demo", code, "no such field")));
        }
        cluster.edit(json!({ "template": template }));
        cluster.look().await.unwrap();
        cluster.with(|s| s.server.refuse.clear());
        cluster.lose_disk(1);
        if code == 0 {
            cluster.edit(json!({ "replicas": 4 }));
            cluster.settle().await;
            assert_eq!(cluster.voters().len(), 4);
            assert_eq!(cluster.with(|s| s.server.get(SET).unwrap()["spec"]["replicas"].clone()), 4);
        } else {
            for _ in 0..20 {
                cluster.look().await.unwrap();
                cluster.with(|s| s.tick());
            }
            assert_eq!(cluster.voters().len(), 3);
        }
        let reason = if code == 403 { "Refused" } else { "InvalidTemplate" };
        assert_eq!(
            cluster.condition("Stalled"),
            ("True".into(), reason.into()),
            "{}",
            cluster.told("Stalled")
        );
        let template = cluster.with(|s| s.server.get(SET).unwrap()["spec"]["template"].to_string());
        assert!(!template.contains("hostNetwork") && !template.contains("nam\":\"v"), "{template}");
    }
}

/// O11: a class that cannot grow says so in a condition, and the rest goes on.
#[tokio::test]
async fn o11_a_refused_resize_is_told() {
    let cluster = Cluster::formed(json!({})).await;
    let words = "only dynamically provisioned pvc can be resized";
    cluster.with(|s| s.server.refuse.push(refuse("PATCH", "persistentvolumeclaims", 403, words)));
    cluster.edit(json!({ "storage": { "size": "20Gi" } }));
    cluster.settle().await;
    assert!(cluster.told("Stalled").contains(words), "{}", cluster.told("Stalled"));
    assert_eq!(cluster.condition("Ready").0, "False");
}

/// O12: somebody's budget under our name: told where we want one, and no loop in either case.
#[tokio::test]
async fn o12_a_budget_of_somebody_else_is_no_hot_loop() {
    for (budget, told) in [("None", false), ("Quorum", true)] {
        let cluster = Cluster::new(
            json!({ "replicas": 3, "tls": { "mode": "Disabled" }, "disruption": { "budget": budget } }),
        );
        let foreign =
            json!({ "metadata": { "name": "demo", "namespace": "ns" }, "spec": { "minAvailable": 1 } });
        cluster.with(|s| s.server.make(BUDGET, foreign));
        cluster.settle().await;
        cluster.edit(json!({ "replicas": 4 }));
        cluster.settle().await;
        assert_eq!(cluster.voters().len(), 4, "scaling goes on: {budget}: {}", cluster.status());
        let reason = if told { "NameConflict" } else { "AsDesired" };
        assert_eq!(cluster.condition("Ready").1, reason, "{}", cluster.told("Ready"));
        assert_eq!(cluster.with(|s| s.server.get(BUDGET).unwrap()["spec"]["minAvailable"].clone()), 1);
    }
}

/// O9: whatever pod is counted anew or no more, the budget is written: Kubernetes does not look at a budget when a pod
/// stops being selected (seen on a real one), and would allow a disruption too many.
#[tokio::test]
async fn o9_the_budget_is_written_whenever_other_pods_are_counted() {
    let cluster = Cluster::formed(json!({})).await;
    let counted = || {
        let budget = cluster.with(|s| s.server.get(BUDGET).unwrap().clone());
        budget["metadata"]["annotations"]["synod.dev/counted"].as_str().unwrap_or("none").to_owned()
    };
    assert_eq!(counted(), "demo-0,demo-1,demo-2");
    cluster.edit(json!({ "replicas": 2 }));
    cluster.settle().await;
    assert_eq!(counted(), "demo-0,demo-1");
}

/// O14, O30: whoever changes the set by hand restarts nobody, and it is put back at the next look.
#[tokio::test]
async fn o14_a_set_changed_by_hand_is_put_back_and_nobody_is_restarted() {
    for (what, patch) in [
        ("replicas", json!({ "spec": { "replicas": 1 } })),
        ("to none", json!({ "spec": { "replicas": 0 } })),
        ("template", json!({ "spec": { "template": { "spec": { "terminationGracePeriodSeconds": 1 } } } })),
        ("strategy", json!({ "spec": { "updateStrategy": { "type": "RollingUpdate" } } })),
    ] {
        let cluster = Cluster::formed(json!({})).await;
        let (spec, pods) = (cluster.with(|s| s.server.get(SET).unwrap()["spec"].clone()), cluster.pods());
        cluster.with(|s| s.server.edit(SET, &patch));
        // The controller has seen the change when the operator looks, and has not come to the pods yet.
        cluster.with(|s| {
            let mut set = s.server.get(SET).unwrap().clone();
            let revision = crate::build::content_hash(&set["spec"]["template"]);
            set["status"] = json!({
                "observedGeneration": set["metadata"]["generation"], "updateRevision": revision,
            });
            s.server.store(SET, set);
        });
        cluster.look().await.unwrap();
        assert_eq!(cluster.with(|s| s.server.get(SET).unwrap()["spec"].clone()), spec, "{what}");
        cluster.settle().await;
        assert_eq!(cluster.pods(), pods, "{what}: no pod was restarted");
    }
}

/// `kubectl rollout restart` is an annotation in the template that nobody else owns: it stays, and rolls.
#[tokio::test]
async fn rollout_restart_still_rolls() {
    let cluster = Cluster::formed(json!({})).await;
    let before = cluster.pods();
    let at = json!({ "kubectl.kubernetes.io/restartedAt": "now" });
    cluster.with(|s| {
        s.server.edit(SET, &json!({ "spec": { "template": { "metadata": { "annotations": at } } } }))
    });
    cluster.with(|s| s.tick());
    cluster.settle().await;
    let after = cluster.pods();
    assert!(before.iter().all(|pod| !after.contains(pod)), "{after:?}");
    assert_eq!(cluster.condition("Ready").0, "True");
}

/// An edit whose pods are not made yet is not Ready, whatever the pods before it were.
#[tokio::test]
async fn o38_ready_waits_for_what_an_edit_makes() {
    let cluster = Cluster::formed(json!({})).await;
    cluster.edit(json!({ "image": "sidecar:2" }));
    cluster.look().await.unwrap();
    assert_eq!(cluster.condition("Ready").0, "False", "{}", cluster.status());
    cluster.settle().await;
    assert_eq!(cluster.condition("Ready").0, "True");
}

/// Rule 5: founders of different settings would never agree, so all are told what was recorded with their list.
#[tokio::test]
async fn rule_5_founders_are_told_the_settings_that_were_recorded() {
    let cluster = Cluster::new(json!({ "replicas": 3, "tls": { "mode": "Disabled" } }));
    while !cluster.status().contains("\"bootstrap\"") {
        cluster.pass().await;
    }
    cluster.edit(json!({ "reads": { "leases": true } }));
    cluster.settle().await;
    let settings = cluster.settings().unwrap();
    assert_eq!(
        (settings.version, settings.values.leases),
        (2, true),
        "by an entry of the log, not by the founding"
    );
}

/// O15: what is deleted is back at the next look once the watch has told.
#[tokio::test]
async fn o15_a_deleted_object_is_back_at_once() {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::runtime::watcher::Event;
    let path = "/api/v1/namespaces/ns/configmaps/demo-config";
    let cluster = Cluster::formed(json!({})).await;
    let tell = || {
        let live = cluster.with(|s| s.server.get(path).cloned());
        let live: Option<ConfigMap> = live.map(|l| serde_json::from_value(l).unwrap());
        let note = |event: &Event<ConfigMap>| cluster.ctx.watched.note(Kind::ConfigMap, "", event);
        note(&Event::Init);
        live.into_iter().for_each(|l| note(&Event::InitApply(l)));
        note(&Event::InitDone);
    };
    tell();
    cluster.look().await.unwrap();
    assert_eq!(cluster.with(|s| s.server.writes.clone()), [""; 0], "what stands is not written again");
    cluster.with(|s| s.server.remove(path));
    tell();
    cluster.look().await.unwrap();
    assert!(cluster.with(|s| s.server.get(path).is_some()));
    cluster.with(|s| s.server.edit(path, &json!({ "data": { "peers": "nonsense" } })));
    tell();
    cluster.look().await.unwrap();
    let peers = cluster.with(|s| s.server.get(path).unwrap()["data"]["peers"].clone());
    assert!(peers.as_str().unwrap().contains("demo-0"), "{peers}");
}

/// O36: a namespace that is being deleted refuses with 403, which is no fault of the template.
#[tokio::test]
async fn o36_only_422_is_an_invalid_template() {
    let words = "forbidden: unable to create new content in namespace ns because it is being terminated";
    let cluster = Cluster::new(json!({ "replicas": 3, "tls": { "mode": "Disabled" } }));
    cluster.with(|s| s.server.refuse.push(refuse("PATCH", "/namespaces/ns/", 403, words)));
    cluster.settle().await;
    assert_eq!(
        cluster.condition("Stalled"),
        ("True".into(), "Refused".into()),
        "{}",
        cluster.told("Stalled")
    );
    assert!(cluster.told("Stalled").contains("being terminated"));
    assert_eq!(cluster.with(|s| s.server.under(PODS)), [""; 0]);
}

/// O5: certificates are renewed while the cluster is paused, and a lost authority is noticed.
#[tokio::test]
async fn o5_certificates_are_kept_while_paused() {
    let cluster = Cluster::new(json!({ "replicas": 3, "paused": true }));
    cluster.settle().await;
    assert!(cluster.with(|s| s.server.get(AUTHORITY).is_some()));
    assert!(cluster.with(|s| s.server.get(PAIRS).is_some()));
    assert!(cluster.with(|s| s.server.get(SET).is_none()), "and nothing else");
    let reason = cluster.condition("Reconciling").1;
    assert_eq!(reason, "Paused", "{}", cluster.with(|s| s.server.get(CLUSTER).unwrap().to_string()));
}

/// O13: pods that another version of the operator makes otherwise are rolled by turns; a change of the spec is not
/// held up.
#[tokio::test]
async fn o13_an_upgrade_of_the_operator_waits_for_its_turn() {
    let cluster = Cluster::formed(json!({})).await;
    let before = cluster.pods();
    // The version before made them otherwise.
    cluster.with(|s| {
        s.server.edit(
            SET,
            &json!({ "metadata": { "annotations": {
        "synod.dev/template": "other", "synod.dev/applied": "other",
    } } }),
        )
    });
    cluster.with(|s| {
        s.server.edit(
            SET,
            &json!({ "spec": { "template": { "spec": { "terminationGracePeriodSeconds": 61 } } } }),
        );
        s.settle_pods();
    });
    let before_upgrade = cluster.pods();
    assert_eq!(before, before_upgrade);
    assert!(cluster.ctx.may_roll("another cluster"));
    cluster.settle().await;
    assert_eq!(cluster.pods(), before, "another cluster has the turn");
    assert_eq!(cluster.condition("Reconciling"), ("True".into(), "UpgradeWaits".into()));
    assert_eq!(cluster.condition("Ready").0, "True", "{}", cluster.told("Ready"));
    // A change of the number of members goes on.
    cluster.ctx.rolled("another cluster");
    cluster.settle().await;
    let after = cluster.pods();
    assert!(before.iter().all(|pod| !after.contains(pod)), "its turn: {after:?}");
    assert_eq!(cluster.condition("Reconciling"), ("False".into(), "Idle".into()));
    assert!(cluster.ctx.may_roll("another cluster"), "the turn ends with the roll");
}

/// O16: at rest nothing is read again until a watch tells of a change, and nothing is done by what was read before.
#[tokio::test]
async fn o16_a_cluster_at_rest_costs_no_request() {
    let cluster = Cluster::formed(json!({})).await;
    cluster.watch();
    cluster.look().await.unwrap();
    let reads = cluster.with(|s| s.server.reads);
    for _ in 0..20 {
        cluster.look().await.unwrap();
    }
    assert_eq!(cluster.with(|s| s.server.reads), reads);
    cluster.lose_disk(2);
    cluster.look().await.unwrap();
    assert_eq!(cluster.with(|s| s.server.writes.clone()), [""; 0], "not by reads of before");
    cluster.tell();
    cluster.settle().await;
    assert_eq!(cluster.voters().len(), 3);
    assert_eq!(cluster.condition("Ready").0, "True", "{}", cluster.told("Ready"));
}

/// A cluster that an older version stored is run on: `replaceLost` was a word then, and a default.
#[tokio::test]
async fn a_cluster_of_the_first_schema_is_run_on() {
    let cluster = Cluster::formed(json!({})).await;
    cluster.edit(json!({ "storage": { "replaceLost": "NodeGone" }, "replicas": 4 }));
    cluster.settle().await;
    assert_eq!(cluster.voters().len(), 4, "{}", cluster.status());
    assert_eq!(cluster.condition("Ready"), ("True".into(), "AsDesired".into()), "{}", cluster.told("Ready"));
}

/// A pod comes up on a node that is younger than the list of nodes that was read: the node is no lost one.
#[tokio::test]
async fn a_node_younger_than_the_list_is_not_gone() {
    let cluster = Cluster::formed(json!({})).await;
    cluster.with(|s| s.down.insert("demo-2".into()));
    // The nodes are read: a member is silent.
    cluster.look().await.unwrap();
    let pods = cluster.pods();
    cluster.with(|s| {
        s.server.make("/api/v1/nodes/young", json!({ "metadata": { "name": "young" } }));
        s.server.edit(&format!("{PODS}/demo-2"), &json!({ "spec": { "nodeName": "young" } }));
    });
    for _ in 0..5 {
        cluster.look().await.unwrap();
    }
    assert_eq!(cluster.pods(), pods, "{}", cluster.status());
    cluster.with(|s| s.server.remove("/api/v1/nodes/young"));
    for _ in 0..20 {
        cluster.pass().await;
    }
    assert_ne!(cluster.pods(), pods, "one that is gone is: {}", cluster.status());
}

/// O26: a resource of a form that is not known is told in its own status.
#[tokio::test]
async fn o26_a_resource_that_does_not_parse_says_so() {
    let cluster = Cluster::formed(json!({})).await;
    cluster.edit(json!({ "storage": { "replaceLost": "Sometimes" } }));
    cluster.look().await.unwrap();
    assert_eq!(cluster.condition("Stalled"), ("True".into(), "InvalidSpec".into()));
    assert!(cluster.told("Stalled").contains("cannot be read"), "{}", cluster.told("Stalled"));
    assert_eq!(cluster.condition("Available").0, "True", "what was known stays");
    let before = cluster.with(|s| s.server.writes.len());
    cluster.look().await.unwrap();
    assert_eq!(cluster.with(|s| s.server.writes.len()), before, "once");
}

/// O5: an authority that is deleted, or asked to change, is replaced while kubelets bring the files to one pod after
/// the other: at no time does a member refuse another, no pod restarts, and in the end the old one is gone. The
/// operator may be started again in the middle.
#[tokio::test]
async fn o5_an_authority_changes_and_no_member_refuses_another() {
    for (what, restarts) in [("deleted", false), ("deleted", true), ("asked", false), ("asked", true)] {
        let mut cluster = Cluster::formed(json!({ "tls": { "mode": "Managed" } })).await;
        let (pods, old) = (cluster.pods(), cluster.with(|s| s.server.get(AUTHORITY).cloned().unwrap()));
        match what {
            "deleted" => cluster.with(|s| s.server.remove(AUTHORITY)),
            _ => cluster.with(|s| {
                let annotations = json!({ "synod.dev/rotate-ca": "1" });
                s.server.edit(CLUSTER, &json!({ "metadata": { "annotations": annotations } }));
            }),
        }
        let mut known = vec![cluster.with(|s| s.trust()).unwrap()];
        for round in 0..240 {
            if restarts && round % 50 == 7 {
                cluster.restart_operator();
            }
            cluster.pass().await;
            if round % 8 == 0 {
                cluster.with(|s| s.reload(&format!("demo-{}", round / 8 % 3)));
            }
            let trust = cluster.with(|s| s.trust()).unwrap_or_else(|why| panic!("{what}, {round}: {why}"));
            if known.last() != Some(&trust) {
                known.push(trust);
            }
        }
        let new = cluster.with(|s| s.server.get(AUTHORITY).cloned().unwrap());
        assert_ne!(old["data"]["ca.crt"], new["data"]["ca.crt"], "{what}");
        assert_eq!(known.first(), Some(&[1].into()), "{known:?}");
        assert!(known.contains(&[2].into()), "all of them knew both: {known:?}");
        assert_eq!(known.last(), Some(&[1].into()), "{what}, {restarts}: the old one is gone: {known:?}");
        assert_eq!(cluster.condition("Ready").0, "True", "{}", cluster.told("Ready"));
        assert_eq!(cluster.pods(), pods, "no pod was restarted");
    }
}
