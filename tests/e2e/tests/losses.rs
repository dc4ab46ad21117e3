//! What would cost data, on a real Kubernetes: the cases O1, O2 and O9 of the operator.

use std::fs;
use std::path::Path;

use serde_json::Value;
use synod_cluster::run;
use synod_e2e::Test;
use synod_e2e::synod::{condition, log_manifest};

/// O1: whoever keeps the disks says so before deleting, also of a log that is hibernated. The log that is made
/// again under its name holds what was appended.
#[test]
fn o1_disks_that_are_kept_while_hibernated_outlive_the_resource() {
    let test = Test::new("keep");
    test.install_operator();
    let owned = log_manifest("log", 3, "").replace("size: 64Mi", "size: 64Mi, whenDeleted: Delete");
    test.apply(&owned);
    test.wait_log("log", 3);
    assert_eq!(test.append("log-0", &["kept"]), [1]);
    let owners = || -> Vec<Value> {
        let claims = ["data-log-0", "data-log-1", "data-log-2"].map(|claim| test.get("pvc", claim));
        claims.into_iter().map(|claim| claim["metadata"]["ownerReferences"].clone()).collect()
    };
    test.wait("the claims to go with the resource", 30, || {
        owners().iter().all(|o| o[0]["kind"] == "PaxosCluster").then_some(())
    });
    test.kubectl(&["scale", "paxos/log", "--replicas=0"]);
    test.wait("hibernation", 120, || {
        let log = test.get("paxos", "log");
        condition(&log, "Ready").filter(|c| c["reason"] == "Hibernated").map(|_| ())
    });
    let keep = r#"{"spec":{"storage":{"whenDeleted":"Retain"}}}"#;
    test.kubectl(&["patch", "paxos", "log", "--type=merge", "-p", keep]);
    test.wait("the claims to outlive the resource", 30, || {
        owners().iter().all(|o| o.is_null() || *o == Value::Array(Vec::new())).then_some(())
    });
    test.kubectl(&["delete", "paxos", "log", "--wait=true"]);
    test.apply_log("log", 3, "");
    test.wait_log("log", 3);
    assert_eq!(test.log("log-1"), "1\tkept\n");
}

/// O2: a member whose disk is damaged beyond reading is replaced when a person asks for it: a new member with a
/// vote and the whole log, though nobody may replace members by itself.
#[test]
fn o2_a_member_with_a_damaged_disk_is_replaced_by_hand() {
    let test = Test::new("replace");
    test.install_operator();
    let manual =
        log_manifest("log", 3, "").replace("size: 64Mi", "size: 64Mi, replaceLost: {policy: Manual}");
    test.apply(&manual);
    test.wait_log("log", 3);
    assert_eq!(test.append("log-0", &["one", "two"]), [1, 2]);
    let member = |pod: &str| -> String {
        let log = test.get("paxos", "log");
        let members = log["status"]["members"].as_array().cloned().unwrap_or_default();
        let found = members.iter().find(|m| m["pod"] == pod).and_then(|m| m["memberId"].as_str());
        found.unwrap_or_default().to_owned()
    };
    let (old, claim) = (member("log-2"), test.get("pvc", "data-log-2"));
    let volume = claim["spec"]["volumeName"].as_str().unwrap();
    let volume = test.get("pv", volume);
    let folder = volume["spec"]["local"]["path"].as_str().expect("the tests' volumes are local");
    let damaged = damage(Path::new(folder));
    assert!(damaged > 0, "no file in {folder}");
    test.cluster.container_kill(&test.namespace, "log-2", "synod").unwrap();
    test.wait("the member to be down", 120, || {
        let log = test.get("paxos", "log");
        condition(&log, "Degraded").filter(|c| c["status"] == "True").map(|_| ())
    });
    test.kubectl(&["annotate", "paxos", "log", &format!("synod.dev/replace={old}")]);
    test.wait("a new member in its place", 180, || {
        let new = member("log-2");
        (!new.is_empty() && new != old).then_some(())
    });
    test.wait_log("log", 3);
    assert_ne!(test.get("pvc", "data-log-2")["metadata"]["uid"], claim["metadata"]["uid"]);
    assert_eq!(test.log("log-2"), "1\tone\n2\ttwo\n");
    assert_eq!(test.append("log-2", &["three"]), [3]);
}

/// O9: while a voter is cut off from its peers, no drain may take another: the eviction is refused, appends go on.
#[test]
fn o9_a_drain_beside_a_voter_that_is_cut_off_is_refused() {
    let test = Test::new("drain");
    test.install_operator();
    test.apply_log("log", 3, "");
    test.wait_log("log", 3);
    assert_eq!(test.append("log-0", &["before"]), [1]);
    test.wait("a budget that allows one disruption", 60, || {
        (test.get("pdb", "log")["status"]["disruptionsAllowed"] == 1).then_some(())
    });
    test.cluster.pod_isolate(&test.namespace, "log-2").unwrap();
    test.wait("a budget that allows none", 60, || {
        (test.get("pdb", "log")["status"]["disruptionsAllowed"] == 0).then_some(())
    });
    let path = format!("/api/v1/namespaces/{}/pods/log-1/eviction", test.namespace);
    let eviction = r#"{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"log-1"}}"#;
    let mut command = test.cluster.kubectl();
    command.args(["create", "--raw", &path, "-f", "-"]);
    let refused = run::output_with_input(&mut command, eviction.as_bytes()).unwrap_err().to_string();
    assert!(refused.contains("disruption budget"), "{refused}");
    let appended = test.wait("an append", 30, || {
        let append = ["exec", "log-0", "-c", "synod", "--", "synod-sidecar", "append", "meanwhile"];
        test.try_kubectl(&append).ok()
    });
    assert!(!appended.trim().is_empty());
    test.cluster.pod_rejoin(&test.namespace, "log-2").unwrap();
    test.wait("a budget that allows one again", 60, || {
        (test.get("pdb", "log")["status"]["disruptionsAllowed"] == 1).then_some(())
    });
    test.wait_log("log", 3);
    assert!(test.log("log-2").contains("meanwhile"));
}

/// Overwrites every file below a folder; how many there were.
fn damage(folder: &Path) -> usize {
    let mut damaged = 0;
    for entry in fs::read_dir(folder).expect("the volume is a folder of this machine") {
        let path = entry.expect("the folder can be read").path();
        let meta = fs::symlink_metadata(&path).expect("the file is there");
        if meta.is_dir() {
            damaged += damage(&path);
        } else if meta.is_file() {
            fs::write(&path, [0xa5; 4096]).expect("the tests may write to their nodes' volumes");
            damaged += 1;
        }
    }
    damaged
}
