//! Synod on a real Kubernetes: what a user does with a log, and what goes wrong on the way.

use synod_e2e::Test;
use synod_e2e::synod::{condition, log_manifest};

/// `manifests/install.yaml` alone gives a working operator, and one PaxosCluster a working log.
#[test]
fn install_manifest_alone_gives_a_log_that_grows_and_shrinks() {
    let test = Test::new("log");
    test.install_operator();
    test.apply_log("log", 3, "");
    test.wait_log("log", 3);
    assert_eq!(test.append("log-0", &["one", "", "three"]), [1, 2, 3]);
    for pod in ["log-1", "log-2"] {
        assert_eq!(test.log(pod), "1\tone\n2\t\n3\tthree\n");
    }

    test.kubectl(&["scale", "paxos/log", "--replicas=4"]);
    test.wait_log("log", 4);
    assert_eq!(test.append("log-3", &["four"]), [4]);
    assert!(test.get("pvc", "data-log-3")["status"]["phase"] == "Bound");

    test.kubectl(&["scale", "paxos/log", "--replicas=3"]);
    test.wait_log("log", 3);
    test.wait("the claim of the removed member gone", 60, || {
        test.try_kubectl(&["get", "pvc", "data-log-3"]).is_err().then_some(())
    });
    assert!(test.try_kubectl(&["get", "pod", "log-3"]).is_err());
    assert_eq!(test.log("log-2"), "1\tone\n2\t\n3\tthree\n4\tfour\n");

    // The log itself tells of each change: add, promote, remove.
    let history = test.exec("log-0", "synod", &["synod-sidecar", "history", "-o", "json"]);
    let history: serde_json::Value = serde_json::from_str(&history).unwrap();
    assert_eq!(history["configurations"].as_array().map(Vec::len), Some(4), "{history}");

    let listed = test.kubectl(&["get", "paxos"]);
    assert!(listed.contains("REPLICAS") && listed.contains("log"), "{listed}");
    let status = test.plugin(&["status", "log"]);
    assert!(status.contains("log-0") && status.contains("log-2"), "{status}");
}

/// docs: operator-rules.md, rule 10: leases are switched by an entry in the log of the running cluster; no pod restarts,
/// the membership stays, and the leader reads without a round from then on.
#[test]
fn leases_are_switched_on_a_running_log() {
    let test = Test::new("leases");
    test.install_operator();
    test.apply_log("log", 3, ", retention: {maxEntries: 1000}");
    test.wait_log("log", 3);
    let status = |pod: &str| -> serde_json::Value {
        let said = test.exec(pod, "synod", &["synod-sidecar", "status", "-o", "json"]);
        serde_json::from_str(&said).unwrap()
    };
    let started = || {
        ["log-0", "log-1", "log-2"].map(|pod| {
            let pod = test.get("pod", pod);
            (pod["metadata"]["uid"].clone(), pod["status"]["initContainerStatuses"].clone())
        })
    };
    let before = started();
    assert_eq!(test.append("log-0", &["one"]), [1]);
    let settings = &status("log-0")["settings"];
    assert_eq!((&settings["version"], &settings["leases"]), (&1.into(), &false.into()), "{settings}");
    assert_eq!(settings["retain_entries"], 1000, "the genesis carries the spec's settings");
    for (leases, version) in [(true, 2), (false, 3)] {
        let patch = format!(r#"{{"spec":{{"reads":{{"leases":{leases}}}}}}}"#);
        test.kubectl(&["patch", "paxos", "log", "--type=merge", "-p", &patch]);
        for pod in ["log-0", "log-1", "log-2"] {
            test.wait(&format!("{pod} to know that leases are {leases}"), 60, || {
                let settings = &status(pod)["settings"];
                (settings["version"] == version && settings["leases"] == leases).then_some(())
            });
        }
        test.wait_log("log", 3);
        let leader = test.get("paxos", "log")["status"]["leader"].as_str().unwrap().to_owned();
        let reads = || status(&leader)["reads_under_lease"].as_u64().unwrap();
        if leases {
            test.wait("a read under a lease", 30, || {
                assert_eq!(test.log(&leader), "1\tone\n");
                (reads() > 0).then_some(())
            });
        }
    }
    assert_eq!(started(), before, "no pod was restarted");
    let history = test.exec("log-0", "synod", &["synod-sidecar", "history", "-o", "json"]);
    let history: serde_json::Value = serde_json::from_str(&history).unwrap();
    assert_eq!(history["configurations"].as_array().map(Vec::len), Some(1), "{history}");
}

/// Bad specs are refused by the API server, say what to do, and change nothing.
#[test]
fn bad_specs_are_refused_with_advice() {
    let test = Test::new("refused");
    test.install_operator();
    let template =
        |body: &str| format!(", template: {{spec: {{{body}, containers: [{{name: app, image: x}}]}}}}");
    let reserved = ", template: {spec: {containers: [{name: synod, image: x}]}}";
    let with_replicas =
        |n: &str| log_manifest("bad", 7, "").replace("replicas: 7", &format!("replicas: {n}"));
    for (manifest, advice) in [
        (with_replicas("-1"), "replicas"),
        (with_replicas("16"), "replicas"),
        (log_manifest("bad", 3, &template("hostNetwork: true")), "hostNetwork"),
        (log_manifest("bad", 3, reserved), "synod"),
    ] {
        match test.try_apply(&manifest) {
            Err(error) => assert!(error.to_string().contains(advice), "{manifest}\n{error}"),
            // What the schema cannot see, the operator says in the status.
            Ok(_) => test.wait(&format!("a word about {advice}"), 30, || {
                let bad = test.get("paxos", "bad");
                let stalled = condition(&bad, "Stalled")?;
                let said = stalled["message"].as_str()?.contains(advice) && stalled["status"] == "True";
                said.then_some(())
            }),
        }
        assert!(test.try_kubectl(&["get", "statefulset", "bad"]).is_err(), "nothing is made of it");
    }
}

/// Storage grows only.
#[test]
fn storage_does_not_shrink() {
    let test = Test::new("storage");
    test.install_operator();
    test.apply_log("log", 1, "");
    test.wait_log("log", 1);
    let patch = r#"{"spec":{"storage":{"size":"1Mi"}}}"#;
    let refused = test.try_kubectl(&["patch", "paxos", "log", "--type=merge", "-p", patch]).unwrap_err();
    assert!(refused.to_string().contains("storage"), "{refused}");
    assert_eq!(test.append("log-0", &["still here"]), [1]);
}

/// An image that does not exist is reported, the quorum stays, and it recovers by itself when it is mended.
#[test]
fn a_missing_image_is_reported_and_keeps_the_quorum() {
    let test = Test::new("image");
    test.install_operator();
    test.apply_log("log", 3, "");
    test.wait_log("log", 3);
    let patch = |image: &str| {
        let patch = format!(r#"{{"spec":{{"image":"{image}"}}}}"#);
        test.kubectl(&["patch", "paxos", "log", "--type=merge", "-p", &patch]);
    };
    patch("localhost/not-there:1");
    test.wait("a condition that names the image", 120, || {
        let log = test.get("paxos", "log");
        let conditions = log["status"]["conditions"].to_string();
        conditions.contains("not-there").then_some(())
    });
    // At most one member is down, so the log goes on.
    let ready = test.get("paxos", "log")["status"]["readyReplicas"].as_u64();
    assert!(ready >= Some(2), "{ready:?}");
    let pod = ["log-0", "log-1", "log-2"].into_iter().find(|pod| {
        test.try_kubectl(&["exec", pod, "-c", "synod", "--", "synod-sidecar", "append", "while broken"])
            .is_ok()
    });
    assert!(pod.is_some(), "no member takes an append");
    patch(&test.image("synod-sidecar"));
    test.wait_log("log", 3);
    assert!(test.log("log-0").contains("while broken"));
}

/// The operator's rights are what its role says, and nothing else.
#[test]
fn the_operator_may_do_what_it_needs_and_no_more() {
    let test = Test::new("rights");
    test.install_operator();
    let operator = "--as=system:serviceaccount:synod-system:synod-operator";
    let may = |verb: &str, what: &str| {
        let (kind, part) = what.split_once('/').unwrap_or((what, ""));
        let part = format!("--subresource={part}");
        let asked = test.try_kubectl(&["auth", "can-i", verb, kind, &part, operator]);
        asked.is_ok_and(|answer| answer.trim() == "yes")
    };
    for (verb, what) in [
        ("list", "paxosclusters.synod.dev"),
        ("patch", "paxosclusters.synod.dev/status"),
        ("create", "pods/eviction"),
        ("patch", "statefulsets.apps"),
        ("delete", "persistentvolumeclaims"),
        ("create", "secrets"),
    ] {
        assert!(may(verb, what), "{verb} {what}");
    }
    for (verb, what) in [
        ("list", "secrets"),
        ("create", "pods"),
        ("create", "pods/exec"),
        ("update", "paxosclusters.synod.dev"),
        ("delete", "paxosclusters.synod.dev"),
        ("delete", "nodes"),
        ("create", "persistentvolumeclaims"),
        ("create", "clusterroles.rbac.authorization.k8s.io"),
        ("impersonate", "users"),
        ("get", "configmaps.nothing"),
    ] {
        assert!(!may(verb, what), "{verb} {what}");
    }
    let rules = test.kubectl(&["auth", "can-i", "--list", operator, "--no-headers"]);
    for line in rules.lines() {
        assert!(!line.starts_with('*') && !line.contains("[*]"), "a wildcard: {line}");
    }
}
