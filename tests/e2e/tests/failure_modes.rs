//! More failure modes on a real Kubernetes, under load: nodes and operators that go, specs that are wrong for a while (docs:
//! operator-rules.md, "Failure modes"). Each test has the name of its failure mode, and its writers' history is checked.
#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use synod_cluster::{Cluster, run};
use synod_e2e::Test;
use synod_e2e::load::Load;
use synod_e2e::synod::{SYSTEM, condition, volume};

const PODS: [&str; 3] = ["log-0", "log-1", "log-2"];

/// A log of three whose application is the journal, and its writers in two pods.
fn under_load(test: &Test, storage: &str) -> Load {
    test.install_operator();
    test.apply_journal("log", 3, storage, "");
    test.wait_log("log", 3);
    Load::start(test, &PODS[..2])
}

/// Changes a field of the first application container.
fn patch_application(test: &Test, field: &str, value: serde_json::Value) {
    let mut template = test.get("paxos", "log")["spec"]["template"].clone();
    template["spec"]["containers"][0][field] = value;
    let patch = json!({ "spec": { "template": template } }).to_string();
    test.kubectl(&["patch", "paxos", "log", "--type=merge", "-p", &patch]);
}

/// F4: the only member restarts while the log grows to three and its last pod has not started.
#[test]
fn f4_the_first_member_restarts_while_the_third_has_not_started() {
    let test = Test::new("first");
    test.install_operator();
    test.apply_journal("log", 1, "", "");
    test.wait_log("log", 1);
    let load = Load::start(&test, &PODS[..1]);
    let before = test.pod_uids(&PODS[..1]);
    test.kubectl(&["scale", "paxos/log", "--replicas=3"]);
    test.wait("a second pod", 120, || test.try_kubectl(&["get", "pod", "log-1"]).ok());
    test.kubectl(&["delete", "pod", "log-0", "--wait=false"]);
    test.wait_replaced(&PODS[..1], &before);
    test.wait_log("log", 3);
    load.goes_on(&test);
    load.judge(&test, &PODS).no_call_failed();
}

/// F11: an image that does not exist stops the roll at its first pod; once it is mended the roll ends by itself.
#[test]
fn f11_a_bad_image_that_is_mended_rolls_on_by_itself() {
    let test = Test::new("mended");
    let load = under_load(&test, "");
    let image = test.image("journal");
    let before = test.pod_uids(&PODS);
    patch_application(&test, "image", "localhost/not-there:1".into());
    test.wait("a condition that names the image", 120, || {
        let log = test.get("paxos", "log");
        log["status"]["conditions"].to_string().contains("not-there").then_some(())
    });
    let kept = test.pod_uids(&PODS).into_iter().filter(|uid| before.contains(uid)).count();
    assert!(kept >= 2, "{kept} pods of three were left alone");
    load.goes_on(&test);
    patch_application(&test, "image", image.into());
    test.wait_log("log", 3);
    load.goes_on(&test);
    load.judge(&test, &PODS).no_call_failed();
}

/// F14: no pod is Ready, since the application says that it is not; a member whose disk is emptied is replaced all the same.
#[test]
fn f14_pods_that_are_not_ready_do_not_hold_up_a_repair() {
    let test = Test::new("unready");
    test.install_operator();
    let image = test.image("journal");
    test.apply(&format!(
        "{{apiVersion: synod.dev/v1alpha1, kind: PaxosCluster, metadata: {{name: log}}, spec: {{replicas: 3, \
         storage: {{size: 64Mi}}, template: {{spec: {{containers: [{{name: journal, image: \"{image}\", \
         imagePullPolicy: IfNotPresent, args: [run], readinessProbe: {{exec: {{command: [journal, no-such-command]}}, \
         periodSeconds: 1}}}}]}}}}}}}}"
    ));
    let voters = || test.get("paxos", "log")["status"]["voters"] == 3;
    test.wait("three voters", 180, || voters().then_some(()));
    let ready =
        || test.kubectl(&["get", "pods", "-o", r"jsonpath={.items[*].status.containerStatuses[*].ready}"]);
    assert!(!ready().contains("true"), "an application that never says so is ready");
    let load = Load::start(&test, &PODS[..2]);
    let (old, folder) = (test.members("log"), volume(&test, "data-log-2"));
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
    test.cluster.container_kill(&test.namespace, "log-2", "synod").unwrap();
    test.wait("another voter in its place", 240, || {
        let now = test.members("log");
        let other = now.get("log-2").is_some_and(|id| !id.is_empty() && *id != old["log-2"]);
        (other && voters()).then_some(())
    });
    assert!(!ready().contains("true"), "the repair made an application ready");
    load.goes_on(&test);
    load.judge(&test, &PODS).no_call_failed();
}

/// F16: the resource is deleted, its claims are kept, and it is made again: the disks are taken on as they are.
#[test]
fn f16_a_resource_that_is_made_again_takes_on_its_disks() {
    let test = Test::new("again");
    let load = under_load(&test, "");
    let before = test.get("paxos", "log");
    let members = test.members("log");
    // The writers go on trying while there is no log.
    test.kubectl(&["delete", "paxos", "log", "--wait=true"]);
    test.wait("the pods to go", 120, || test.pod_uids(&PODS).is_empty().then_some(()));
    test.apply_journal("log", 3, "", "");
    test.wait_log("log", 3);
    let after = test.get("paxos", "log");
    assert_ne!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(after["status"]["clusterId"], before["status"]["clusterId"]);
    assert_eq!(test.members("log"), members);
    let formed = condition(&after, "Bootstrapped").map(|c| c["reason"].clone());
    assert_eq!(formed, Some("Adopted".into()));
    load.goes_on(&test);
    load.judge(&test, &PODS).no_call_failed();
}

/// The node of `log-2`, which no writer uses.
fn third_node(test: &Test) -> String {
    let nodes: Vec<String> = PODS.iter().map(|pod| test.node_of(pod)).collect();
    assert!(!nodes[..2].contains(&nodes[2]), "the pods share nodes: {nodes:?}");
    nodes[2].clone()
}

/// Brings a node back however the test ends: other tests need it.
struct Gone<'a> {
    test: &'a Test,
    node: String,
    start: fn(&Cluster, &str) -> synod_cluster::Result<()>,
}

impl Gone<'_> {
    fn comes_back(self) {
        // By its end.
        drop(self);
    }
}

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        let cluster = &self.test.cluster;
        let back = (self.start)(cluster, &self.node)
            .and_then(|()| cluster.wait_node(&self.node, true, Duration::from_secs(120)));
        match back {
            Err(error) if std::thread::panicking() => eprintln!("{} does not come back: {error}", self.node),
            back => back.unwrap(),
        }
    }
}

/// Waits until another member stands at `log-2`, and the log is Ready.
fn wait_for_another(test: &Test, old: &str) {
    test.wait("another member in its place", 300, || {
        let now = test.members("log");
        now.get("log-2").filter(|id| !id.is_empty() && *id != old).map(|_| ())
    });
    test.wait_log("log", 3);
}

/// F15: a node's kubelet is gone and its Node object deleted, yet the pod on it runs on and is deleted by force. Its member takes
/// part as ever, so that nothing is lost; a person replaces it, and the old process gets no vote beside the new member.
#[test]
fn node_fault_f15_a_pod_that_runs_on_elsewhere_has_no_vote() {
    let test = Test::new("elsewhere");
    let load = under_load(&test, "");
    let node = third_node(&test);
    let old = test.members("log")["log-2"].clone();
    let process = test.cluster.container(&test.namespace, "log-2", "synod").unwrap();
    let runs = || Path::new(&format!("/proc/{}", process.pid)).exists();
    let gone = Gone { test: &test, node: node.clone(), start: Cluster::kubelet_start };
    test.cluster.kubelet_stop(&node).unwrap();
    test.kubectl(&["delete", "node", &node]);
    test.kubectl(&["delete", "pod", "log-2", "--force", "--grace-period=0"]);
    test.wait("a pod that finds no node", 120, || {
        let log = test.get("paxos", "log");
        let told = condition(&log, "Ready")?["reason"] == "Unschedulable";
        (told && log["status"]["voters"] == 3).then_some(())
    });
    test.kubectl(&["annotate", "paxos", "log", &format!("synod.dev/replace={old}")]);
    wait_for_another(&test, &old);
    assert!(runs(), "the old process has ended: nothing was shown");
    let history = test.exec("log-0", "synod", &["synod-sidecar", "history", "-o", "json"]);
    let history: serde_json::Value = serde_json::from_str(&history).unwrap();
    let newest = history["configurations"].as_array().and_then(|all| all.last()).cloned().unwrap_or_default();
    assert!(!newest.to_string().contains(&old), "the old member is in {newest}");
    load.goes_on(&test);
    assert!(runs(), "the old process has ended: nothing was shown");
    gone.comes_back();
    test.wait_log("log", 3);
    load.judge(&test, &PODS).no_call_failed();
}

/// F21: a node and its local volume are gone for good: another member takes the place, on another node.
#[test]
fn node_fault_f21_a_node_with_its_local_volume_is_gone() {
    let test = Test::new("gone");
    let load = under_load(&test, ", replaceLost: {after: 20s}");
    let node = third_node(&test);
    let old = test.members("log")["log-2"].clone();
    let gone = Gone { test: &test, node: node.clone(), start: Cluster::node_start };
    test.cluster.node_stop(&node).unwrap();
    test.kubectl(&["delete", "node", &node]);
    wait_for_another(&test, &old);
    assert_ne!(test.node_of("log-2"), node);
    load.goes_on(&test);
    gone.comes_back();
    test.wait_log("log", 3);
    load.judge(&test, &PODS).no_call_failed();
}

/// The pods of the operator.
fn operators(test: &Test) -> Vec<String> {
    let get = ["-n", SYSTEM, "get", "pods", "-l", "app.kubernetes.io/name=synod-operator", "-o", "name"];
    test.kubectl(&get).lines().map(|line| line.trim_start_matches("pod/").to_owned()).collect()
}

/// F18: the operator is killed again and again, at whatever call it is, while the log grows to five and shrinks to three.
/// `tests/opsim` does it at each call.
#[test]
fn node_fault_f18_the_operator_is_killed_again_and_again() {
    let test = Test::new("killed");
    let load = under_load(&test, "");
    // Another pod each time: a container that is killed so often would be made to wait longer and longer.
    let kill = || {
        for pod in operators(&test) {
            let _ = test.try_kubectl(&["-n", SYSTEM, "delete", "pod", &pod, "--force", "--grace-period=0"]);
        }
    };
    for replicas in [5_u64, 3] {
        test.kubectl(&["scale", "paxos/log", &format!("--replicas={replicas}")]);
        let kills = Cell::new(0_u64);
        test.wait(&format!("{replicas} voters"), 600, || {
            kill();
            kills.set(kills.get() + 1);
            // Each operator gets another span of time, up to 12 s, so that each stops at another step.
            std::thread::sleep(Duration::from_millis(4_000 + kills.get() * 1_700 % 8_000));
            (test.get("paxos", "log")["status"]["voters"] == replicas).then_some(())
        });
        test.wait_log("log", replicas);
        println!("killed {} times on the way to {replicas}", kills.get());
    }
    load.goes_on(&test);
    load.judge(&test, &PODS).no_call_failed();
}

/// Puts a process to sleep, and wakes it however the test ends.
struct Asleep(u32);

impl Asleep {
    fn put(pid: u32) -> Asleep {
        run::output(Command::new("sh").args(["-c", &format!("kill -STOP {pid}")])).unwrap();
        Asleep(pid)
    }
}

impl Drop for Asleep {
    fn drop(&mut self) {
        let _ = run::output(Command::new("sh").args(["-c", &format!("kill -CONT {}", self.0)]));
    }
}

/// F19: of two operators the one that leads sleeps through its lease and wakes while the other changes the log.
#[test]
fn node_fault_f19_two_operators_of_which_one_wakes_late() {
    let test = Test::new("two");
    let load = under_load(&test, "");
    let scale = |n: u32| {
        let replicas = format!("--replicas={n}");
        test.kubectl(&["-n", SYSTEM, "scale", "deployment/synod-operator", &replicas]);
        test.kubectl(&["-n", SYSTEM, "rollout", "status", "deployment/synod-operator", "--timeout=180s"]);
    };
    let holder = || {
        let get = ["-n", SYSTEM, "get", "lease", "-o", r"jsonpath={.items[0].spec.holderIdentity}"];
        test.try_kubectl(&get).unwrap_or_default()
    };
    scale(2);
    let first = test.wait("an operator that leads", 60, || {
        let holder = holder();
        operators(&test).into_iter().find(|pod| holder.contains(pod))
    });
    let process = test.cluster.container(SYSTEM, &first, "operator").unwrap();
    test.kubectl(&["scale", "paxos/log", "--replicas=5"]);
    let asleep = Asleep::put(process.pid);
    // Before its kubelet misses it.
    test.wait("the other operator to lead", 60, || (!holder().contains(&first)).then_some(()));
    test.kubectl(&["scale", "paxos/log", "--replicas=3"]);
    drop(asleep);
    test.wait_log("log", 3);
    scale(1);
    load.goes_on(&test);
    load.judge(&test, &PODS).no_call_failed();
}
