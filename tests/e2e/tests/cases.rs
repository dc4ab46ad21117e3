//! What the operator was once seen to do wrong on a real Kubernetes, case by case: refused objects and templates, hands on the
//! objects, placement, claims that are deleted. Those that would cost data are in `losses.rs`.

use serde_json::{Value, json};
use synod_e2e::Test;
use synod_e2e::load::Load;
use synod_e2e::synod::condition;

const PODS: [&str; 3] = ["log-0", "log-1", "log-2"];

/// A log of three.
fn log(name: &str) -> Test {
    let test = Test::new(name);
    test.install_operator();
    test.apply_log("log", 3, "");
    test.wait_log("log", 3);
    test
}

fn patch(test: &Test, kind: &str, name: &str, change: &Value) {
    test.kubectl(&["patch", kind, name, "--type=merge", "-p", &change.to_string()]);
}

/// Waits until a condition of the log has a reason, and its sentence holds a text.
fn wait_told(test: &Test, kind: &str, reason: &str, text: &str) {
    test.wait(&format!("{kind} {reason} that tells of {text:?}"), 120, || {
        let log = test.get("paxos", "log");
        let told = condition(&log, kind)?;
        (told["reason"] == reason && told["message"].as_str()?.contains(text)).then_some(())
    });
}

fn wait_event(test: &Test, text: &str) {
    test.wait(&format!("an Event that tells of {text:?}"), 60, || {
        test.kubectl(&["get", "events", "-o", "json"]).contains(text).then_some(())
    });
}

/// Deletes the claim and the pod of a member, and waits until another stands in its place.
fn lose_the_disk_of(test: &Test, pod: &str) {
    let old = test.members("log")[pod].clone();
    test.kubectl(&["delete", "pvc", &format!("data-{pod}"), "--wait=false"]);
    test.kubectl(&["delete", "pod", pod, "--wait=false"]);
    test.wait(&format!("another member at {pod}"), 240, || {
        let now = test.members("log");
        now.get(pod).filter(|id| !id.is_empty() && **id != old).map(|_| ())
    });
}

/// When each pod was made, and how often its containers were started.
fn starts(test: &Test, pods: &[&str]) -> Vec<Value> {
    let told = |pod: &&str| {
        let pod = test.get("pod", pod);
        let count = |list: &str| -> Vec<Value> {
            let containers = pod["status"][list].as_array().cloned().unwrap_or_default();
            containers.iter().map(|container| container["restartCount"].clone()).collect()
        };
        let counts = [count("initContainerStatuses"), count("containerStatuses")].concat();
        json!([pod["metadata"]["uid"], counts])
    };
    pods.iter().map(told).collect()
}

/// O7: an object that the API server refuses is told in its own words; everything else goes on. Two ports of the application's
/// Service are one, which only the server looks at.
#[test]
fn o7_a_refused_object_is_told_and_holds_up_nothing() {
    let test = log("refusal");
    let twice = json!([{"name": "one", "port": 80}, {"name": "two", "port": 80}]);
    patch(&test, "paxos", "log", &json!({"spec": {"service": {"ports": twice}}}));
    wait_told(&test, "Ready", "Refused", "duplicate entries");
    wait_event(&test, "duplicate entries");
    lose_the_disk_of(&test, "log-2");
    test.kubectl(&["scale", "paxos/log", "--replicas=4"]);
    test.wait("four voters", 240, || (test.get("paxos", "log")["status"]["voters"] == 4).then_some(()));
    patch(&test, "paxos", "log", &json!({"spec": {"service": {"ports": [{"port": 80}]}}}));
    test.wait_log("log", 4);
}

/// O7: a volume that cannot grow is told in the API server's words.
#[test]
fn o7_a_size_that_the_class_refuses_is_told() {
    let test = log("size");
    patch(&test, "paxos", "log", &json!({"spec": {"storage": {"size": "128Mi"}}}));
    wait_told(&test, "Ready", "Refused", "resize");
    assert_eq!(test.append("log-0", &["meanwhile"]), [1]);
}

/// O8: a template with a wrong name is told; lost disks are replaced and the log grows by the last good one.
#[test]
fn o8_a_bad_template_does_not_stop_healing() {
    let test = Test::new("template");
    test.install_operator();
    test.apply_journal("log", 3, "", "");
    test.wait_log("log", 3);
    let mut template = test.get("paxos", "log")["spec"]["template"].clone();
    let good = template.clone();
    template["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "no-such-volume", "mountPath": "/x"}]);
    patch(&test, "paxos", "log", &json!({"spec": {"template": template}}));
    wait_told(&test, "Stalled", "InvalidTemplate", "no-such-volume");
    lose_the_disk_of(&test, "log-2");
    test.kubectl(&["scale", "paxos/log", "--replicas=4"]);
    test.wait("four voters", 240, || (test.get("paxos", "log")["status"]["voters"] == 4).then_some(()));
    // A merge would keep the mounts.
    let change = json!([{"op": "replace", "path": "/spec/template", "value": good}]).to_string();
    test.kubectl(&["patch", "paxos", "log", "--type=json", "-p", &change]);
    test.wait_log("log", 4);
}

/// O14: hands on the StatefulSet's template are put back at once, and no pod is restarted for them.
#[test]
fn o14_a_template_changed_by_hand_restarts_nothing() {
    let test = log("hand");
    let before = starts(&test, &PODS);
    let template = || test.get("statefulset", "log")["spec"]["template"].clone();
    let own = template();
    let grace = json!({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 7}}}});
    patch(&test, "statefulset", "log", &grace);
    test.wait("the template to be put back", 30, || (template() == own).then_some(()));
    test.wait_log("log", 3);
    assert_eq!(starts(&test, &PODS), before, "pods were restarted");
}

/// O15: what is deleted is back within seconds.
#[test]
fn o15_deleted_objects_come_back() {
    let test = log("deleted");
    let before = starts(&test, &PODS);
    for (kind, name) in [("service", "log-peers"), ("poddisruptionbudget", "log"), ("secret", "log-tls")] {
        let uid = test.get(kind, name)["metadata"]["uid"].clone();
        test.kubectl(&["delete", kind, name, "--wait=false"]);
        test.wait(&format!("another {kind} {name}"), 90, || {
            let found = test.try_kubectl(&["get", kind, name, "-o", "json"]).ok()?;
            let found: Value = serde_json::from_str(&found).ok()?;
            (found["metadata"]["uid"] != uid).then_some(())
        });
    }
    test.wait_log("log", 3);
    assert_eq!(starts(&test, &PODS), before, "pods were restarted");
}

/// O20: the application may not mount the members' keys or the log, under any name.
#[test]
fn o20_the_application_may_not_mount_what_is_the_members() {
    let test = Test::new("mounts");
    test.install_operator();
    let image = test.image("journal");
    let log = |name: &str, mounts: &str, volumes: &str| {
        format!(
            "{{apiVersion: synod.dev/v1alpha1, kind: PaxosCluster, metadata: {{name: {name}}}, spec: {{replicas: 3, \
             storage: {{size: 64Mi}}, template: {{spec: {{volumes: [{volumes}], containers: [{{name: app, \
             image: \"{image}\", volumeMounts: [{mounts}]}}]}}}}}}}}"
        )
    };
    for (name, mounts, volumes, told) in [
        ("keys", "{name: synod-tls, mountPath: /keys}", "", "synod-"),
        ("log", "{name: data, mountPath: /log}", "", "data"),
        (
            "secret",
            "{name: own, mountPath: /own}",
            "{name: own, secret: {secretName: secret-tls}}",
            "secret-tls",
        ),
        (
            "authority",
            "{name: own, mountPath: /own}",
            "{name: own, secret: {secretName: authority-ca}}",
            "authority-ca",
        ),
    ] {
        match test.try_apply(&log(name, mounts, volumes)) {
            Err(error) => assert!(error.to_string().contains(told), "{name}: {error}"),
            // What the schema cannot see, the operator says in the status.
            Ok(_) => test.wait(&format!("a word about {told}"), 60, || {
                let found = test.get("paxos", name);
                let stalled = condition(&found, "Stalled")?;
                (stalled["status"] == "True" && stalled["message"].as_str()?.contains(told)).then_some(())
            }),
        }
        assert!(test.try_kubectl(&["get", "statefulset", name]).is_err(), "{name}: a set was made of it");
    }
}

/// O29: on nodes without zones the voters of a log are spread over the nodes.
#[test]
fn o29_voters_are_spread_over_nodes_without_zones() {
    let test = log("spread");
    for name in ["second", "third"] {
        test.apply_log(name, 3, "");
        test.wait_log(name, 3);
    }
    for name in ["log", "second", "third"] {
        let mut nodes: Vec<String> = (0..3).map(|n| test.node_of(&format!("{name}-{n}"))).collect();
        nodes.sort();
        nodes.dedup();
        assert_eq!(nodes.len(), 3, "{name} runs on {nodes:?}");
    }
    let degraded = test.get("paxos", "log");
    assert_eq!(condition(&degraded, "Degraded").map(|c| c["status"].clone()), Some("False".into()));
}

/// O30: `kubectl scale` on the StatefulSet takes no quorum and no call; the number is put back.
#[test]
fn o30_scaling_the_statefulset_by_hand_takes_no_quorum() {
    let test = Test::new("set");
    test.install_operator();
    test.apply_journal("log", 3, "", "");
    test.wait_log("log", 3);
    let load = Load::start(&test, &PODS[..1]);
    test.kubectl(&["scale", "statefulset/log", "--replicas=1"]);
    test.wait("three replicas", 60, || {
        (test.get("statefulset", "log")["spec"]["replicas"] == 3).then_some(())
    });
    test.wait_log("log", 3);
    load.goes_on(&test);
    load.judge(&test, &PODS).no_call_failed();
}

/// O31: a revision of the application that ends at once stops at its first pod, and that is told.
#[test]
fn o31_a_bad_revision_stops_at_its_first_pod() {
    let test = Test::new("revision");
    test.install_operator();
    test.apply_journal("log", 3, "", "");
    test.wait_log("log", 3);
    let before = test.pod_uids(&PODS);
    let mut template = test.get("paxos", "log")["spec"]["template"].clone();
    template["spec"]["containers"][0]["args"] = json!(["no-such-command"]);
    patch(&test, "paxos", "log", &json!({"spec": {"template": template}}));
    test.wait("a condition that tells of a crashing container", 180, || {
        let log = test.get("paxos", "log");
        log["status"]["conditions"].to_string().contains("journal").then_some(())
    });
    // For as long as its kubelet starts it again and again.
    test.wait("its third start", 180, || {
        let pods = test.kubectl(&[
            "get",
            "pods",
            "-o",
            r"jsonpath={.items[*].status.containerStatuses[*].restartCount}",
        ]);
        pods.split_whitespace().any(|count| count.parse::<u32>().is_ok_and(|count| count >= 2)).then_some(())
    });
    let kept = test.pod_uids(&PODS).into_iter().filter(|uid| before.contains(uid)).count();
    assert_eq!(kept, 2, "of three pods");
}

/// O33: claims that somebody deletes are told, and their members replaced one after the other: the log goes on.
#[test]
fn o33_claims_that_are_being_deleted_are_told_and_replaced_in_order() {
    let test = Test::new("claims");
    test.install_operator();
    test.apply_journal("log", 3, "", "");
    test.wait_log("log", 3);
    let load = Load::start(&test, &PODS[..2]);
    let old = test.members("log");
    test.kubectl(&["delete", "pvc", "data-log-0", "data-log-1", "data-log-2", "--wait=false"]);
    wait_told(&test, "Degraded", "ClaimTerminating", "data-log-");
    test.wait("another member at each pod", 240, || {
        let now = test.members("log");
        PODS.iter()
            .all(|pod| now.get(*pod).is_some_and(|id| !id.is_empty() && *id != old[*pod]))
            .then_some(())
    });
    test.wait_log("log", 3);
    load.goes_on(&test);
    load.judge(&test, &PODS).no_call_failed();
}
