//! Day two on a real Kubernetes: what happens to a log that is written to all along (docs: operator-rules.md). Each test has the
//! name of its failure mode, and its writers' history is checked.

use std::fs;

use synod_e2e::Test;
use synod_e2e::load::Load;
use synod_e2e::synod::{condition, volume};

const PODS: [&str; 3] = ["log-0", "log-1", "log-2"];

/// A log of three whose application is the journal, and its writers in two pods.
fn under_load(test: &Test, storage: &str) -> Load {
    test.install_operator();
    test.apply_journal("log", 3, storage, "");
    test.wait_log("log", 3);
    Load::start(test, &PODS[..2])
}

/// F1: most of the pods are deleted at once; their disks are whole.
#[test]
fn f1_most_pods_are_deleted_at_once() {
    let test = Test::new("most");
    let load = under_load(&test, "");
    let before = test.pod_uids(&PODS[1..]);
    test.kubectl(&["delete", "pod", "log-1", "log-2", "--wait=false"]);
    test.wait_replaced(&PODS[1..], &before);
    test.wait_log("log", 3);
    load.goes_on(&test);
    load.judge(&test, &PODS).no_call_failed();
}

/// F2: a member comes back with an empty disk. It is replaced by another, of another id; the log goes on meanwhile.
#[test]
fn f2_a_member_with_an_empty_disk_is_replaced() {
    let test = Test::new("empty");
    let load = under_load(&test, "");
    let (old, folder) = (test.members("log"), volume(&test, "data-log-2"));
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
    test.cluster.container_kill(&test.namespace, "log-2", "synod").unwrap();
    test.wait("another member in its place", 240, || {
        let now = test.members("log");
        now.get("log-2").filter(|id| !id.is_empty() && **id != old["log-2"]).map(|_| ())
    });
    test.wait_log("log", 3);
    load.goes_on(&test);
    load.judge(&test, &PODS).no_call_failed();
}

/// F3: from seven to three and to five. No old disk gets a vote again, and no id is used again.
fn seven_three_five(name: &str, when_scaled: &str) {
    let test = Test::new(name);
    let load = under_load(&test, &format!(", whenScaled: {when_scaled}"));
    test.kubectl(&["scale", "paxos/log", "--replicas=7"]);
    test.wait_log("log", 7);
    let seven = test.members("log");
    test.kubectl(&["scale", "paxos/log", "--replicas=3"]);
    test.wait_log("log", 3);
    let claim = |ordinal: u32| test.try_kubectl(&["get", "pvc", &format!("data-log-{ordinal}")]);
    match when_scaled {
        "Retain" => assert!((3..7).all(|ordinal| claim(ordinal).is_ok()), "disks that are kept"),
        _ => test.wait("the claims to go", 120, || (3..7).all(|n| claim(n).is_err()).then_some(())),
    }
    test.kubectl(&["scale", "paxos/log", "--replicas=5"]);
    test.wait_log("log", 5);
    let five = test.members("log");
    for pod in ["log-3", "log-4"] {
        assert!(!seven.values().any(|id| *id == five[pod]), "{pod} has the id of a member that was removed");
    }
    assert!(PODS.iter().all(|pod| seven[*pod] == five[*pod]), "{seven:?} {five:?}");
    load.goes_on(&test);
    load.judge(&test, &["log-0", "log-1", "log-2", "log-3", "log-4"]).no_call_failed();
}

/// F3, where disks go with their members.
#[test]
fn f3_seven_three_five_where_disks_are_deleted() {
    seven_three_five("delete", "Delete");
}

/// F3, where disks are kept.
#[test]
fn f3_seven_three_five_where_disks_are_kept() {
    seven_three_five("retain", "Retain");
}

/// F8: all pods are deleted at once, and come back with other addresses.
#[test]
fn f8_all_pods_get_new_addresses_at_once() {
    let test = Test::new("addresses");
    let load = under_load(&test, "");
    let before = test.pod_uids(&PODS);
    test.kubectl(&["delete", "pod", "log-0", "log-1", "log-2", "--wait=false"]);
    test.wait_replaced(&PODS, &before);
    test.wait_log("log", 3);
    load.goes_on(&test);
    load.judge(&test, &PODS).no_call_failed();
}

/// F9: the leader's pod is evicted: it hands over first.
#[test]
fn f9_the_leaders_pod_is_evicted() {
    let test = Test::new("leader");
    let load = under_load(&test, "");
    let leader = test.leader("log");
    let before = test.pod_uids(&[&leader]);
    test.wait("a budget that allows it", 60, || test.evict(&leader).ok());
    test.wait_replaced(&[&leader], &before);
    test.wait_log("log", 3);
    load.goes_on(&test);
    load.judge(&test, &PODS).no_call_failed();
}

/// F12: scaled to nothing, the StatefulSet deleted and the operator ended; scaled to five it is the same log.
#[test]
fn f12_scaled_to_nothing_it_is_found_again_as_five() {
    let test = Test::new("nothing");
    test.install_operator();
    test.apply_log("log", 3, "");
    test.wait_log("log", 3);
    assert_eq!(test.append("log-1", &["one", "two"]), [1, 2]);
    let cluster = test.get("paxos", "log")["status"]["clusterId"].clone();
    assert!(cluster.is_string());
    test.kubectl(&["scale", "paxos/log", "--replicas=0"]);
    test.wait("hibernation", 120, || {
        let log = test.get("paxos", "log");
        condition(&log, "Ready").filter(|c| c["reason"] == "Hibernated").map(|_| ())
    });
    test.kubectl(&["delete", "statefulset", "log", "--wait=true"]);
    test.kubectl(&["-n", "synod-system", "delete", "pod", "--all", "--wait=false"]);
    test.kubectl(&["scale", "paxos/log", "--replicas=5"]);
    test.wait_log("log", 5);
    assert_eq!(test.get("paxos", "log")["status"]["clusterId"], cluster);
    assert_eq!(test.log("log-4"), "1\tone\n2\ttwo\n");
    assert_eq!(test.append("log-3", &["three"]), [3]);
}

/// F20: scaled up, and down again before that is done.
#[test]
fn f20_the_spec_is_edited_in_the_middle_of_growing() {
    let test = Test::new("edited");
    let load = under_load(&test, "");
    test.kubectl(&["scale", "paxos/log", "--replicas=5"]);
    test.wait("a fourth pod", 120, || test.try_kubectl(&["get", "pod", "log-3"]).ok());
    test.kubectl(&["scale", "paxos/log", "--replicas=3"]);
    test.wait_log("log", 3);
    test.wait("the fourth pod to go", 120, || {
        test.try_kubectl(&["get", "pod", "log-3"]).is_err().then_some(())
    });
    load.goes_on(&test);
    load.judge(&test, &PODS).no_call_failed();
}

/// F22: the application ends at once in every pod. The log serves, and no drain takes its quorum.
#[test]
fn f22_an_application_that_crashes_everywhere_leaves_the_log_alone() {
    let test = Test::new("crash");
    test.install_operator();
    test.apply_journal("log", 3, "", "");
    test.wait_log("log", 3);
    let log = test.get("paxos", "log");
    let mut template = log["spec"]["template"].clone();
    template["spec"]["containers"][0]["args"] = serde_json::json!(["no-such-command"]);
    let patch = serde_json::json!({ "spec": { "template": template } }).to_string();
    test.kubectl(&["patch", "paxos", "log", "--type=merge", "-p", &patch]);
    // One such pod is enough to stop the roll: no other voter is taken.
    test.wait("an application that crashes", 180, || {
        let pods = test.kubectl(&["get", "pods", "-o", "json"]);
        pods.contains("CrashLoopBackOff").then_some(())
    });
    let voters = || test.get("paxos", "log")["status"]["voters"].clone();
    assert_eq!(voters(), 3);
    let appended = test.append("log-1", &["meanwhile"]);
    assert_eq!(test.log("log-0"), format!("{}\tmeanwhile\n", appended[0]));
    // The budget counts voters, not applications; of three voters one may go, never two.
    let evicted = PODS.iter().filter(|pod| test.evict(pod).is_ok()).count();
    assert!(evicted <= 1, "{evicted} of three voters were evicted");
    let again = test.wait("an append beside it", 60, || {
        let append = ["exec", "log-1", "-c", "synod", "--", "synod-sidecar", "append", "again"];
        let other = ["exec", "log-0", "-c", "synod", "--", "synod-sidecar", "append", "again"];
        test.try_kubectl(&append).or_else(|_| test.try_kubectl(&other)).ok()
    });
    assert!(!again.trim().is_empty());
}

/// The authorities that a log's members trust, and how long that text is: twice as long while there are two.
fn bundle(test: &Test) -> (usize, String) {
    let get = ["get", "secret", "log-tls", "-o", r"jsonpath={.data.ca\.crt}"];
    let text = test.try_kubectl(&get).unwrap_or_default();
    (text.len(), text)
}

/// F23: a restricted namespace, an application with a user of its own, a new authority and a rolling restart at the same
/// time: no call fails.
#[test]
fn f23_a_new_authority_and_a_rolling_restart_at_once() {
    let test = Test::new("authority");
    test.install_operator();
    test.apply_journal("log", 3, "", "");
    let user = r#"{"spec":{"template":{"spec":{"securityContext":{"runAsUser":1000,"runAsNonRoot":true}}}}}"#;
    test.kubectl(&["patch", "paxos", "log", "--type=merge", "-p", user]);
    test.wait_log("log", 3);
    assert_eq!(test.get("pod", "log-0")["spec"]["securityContext"]["runAsUser"], 1000);
    let load = Load::start(&test, &PODS[..2]);
    let (length, before) = bundle(&test);
    let pods = test.pod_uids(&PODS);
    test.kubectl(&["annotate", "paxos", "log", "synod.dev/rotate-ca=now"]);
    test.kubectl(&["rollout", "restart", "statefulset/log"]);
    test.wait_replaced(&PODS, &pods);
    // The bundle first, then the pairs, then the old one out.
    test.wait("a bundle of the new authority alone", 300, || {
        let (now, text) = bundle(&test);
        (text != before && now > 0 && now < length * 3 / 2).then_some(())
    });
    test.wait_log("log", 3);
    load.goes_on(&test);
    load.judge(&test, &PODS).no_call_failed();
}

/// The pods' certificates that somebody deletes are put back under the same authority, an authority that is deleted gives way
/// to a new one; no call fails, and a member that starts then gets in.
#[test]
fn tls_deleted_secrets_are_made_anew() {
    let test = Test::new("secret");
    let load = under_load(&test, "");
    let (length, before) = bundle(&test);
    test.kubectl(&["delete", "secret", "log-tls"]);
    test.wait("the same bundle", 120, || (bundle(&test).1 == before).then_some(()));
    test.kubectl(&["delete", "secret", "log-ca"]);
    // Both authorities for a while, then the new one alone.
    test.wait("a bundle of the new authority alone", 300, || {
        let (now, text) = bundle(&test);
        (text != before && now > 0 && now < length * 3 / 2).then_some(())
    });
    test.wait_log("log", 3);
    let uids = test.pod_uids(&PODS[2..]);
    test.kubectl(&["delete", "pod", "log-2", "--wait=false"]);
    test.wait_replaced(&PODS[2..], &uids);
    test.wait_log("log", 3);
    load.goes_on(&test);
    load.judge(&test, &PODS).no_call_failed();
}

/// F17: two nodes are drained while the pods are rolled: the second drain waits, and no call fails.
#[test]
fn node_fault_f17_two_drains_and_a_roll() {
    let test = Test::new("drains");
    let load = under_load(&test, "");
    let drain = |node: &str, seconds: &str| {
        let timeout = format!("--timeout={seconds}s");
        let selector = "--pod-selector=synod.dev/cluster=log";
        let args = ["drain", node, "--ignore-daemonsets", "--delete-emptydir-data", &timeout, selector];
        test.try_kubectl(&args)
    };
    let nodes: Vec<String> = PODS.iter().map(|pod| test.node_of(pod)).collect();
    test.kubectl(&["rollout", "restart", "statefulset/log"]);
    let first = drain(&nodes[0], "120");
    let second = (nodes[1] != nodes[0]).then(|| drain(&nodes[1], "20"));
    for node in &nodes {
        test.kubectl(&["uncordon", node]);
    }
    assert!(first.is_ok(), "{first:?}");
    // Its pod cannot run anywhere else, so the budget allows no other.
    assert!(second.is_none_or(|second| second.is_err()), "two voters were drained");
    test.wait_log("log", 3);
    load.goes_on(&test);
    load.judge(&test, &PODS).no_call_failed();
}
