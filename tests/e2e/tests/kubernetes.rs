//! The local Kubernetes itself: that what Synod relies on is really there, and that faults are what
//! they say.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use synod_cluster::BUSYBOX_IMAGE;
use synod_e2e::Test;

/// Three pods as Synod's will be: a native sidecar with a volume, a container beside it, one headless
/// Service.
fn members(test: &Test) {
    let restricted = "{readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, \
                      capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}";
    test.apply(&format!(
        r#"
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{clusterIP: None, publishNotReadyAddresses: true, selector: {{app: web}}, ports: [{{port: 8080}}]}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: web}}
spec:
  serviceName: web
  replicas: 3
  podManagementPolicy: Parallel
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      securityContext: {{runAsUser: 65532, runAsGroup: 65532, fsGroup: 65532, runAsNonRoot: true}}
      topologySpreadConstraints:
      - {{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule,
         labelSelector: {{matchLabels: {{app: web}}}}}}
      initContainers:
      - name: sidecar
        image: {BUSYBOX_IMAGE}
        restartPolicy: Always
        command: [/bin/sh, -c, "echo here > /data/index.html; exec httpd -f -p 8080 -h /data"]
        securityContext: {restricted}
        volumeMounts: [{{name: data, mountPath: /data}}]
        startupProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
      containers:
      - name: app
        image: {BUSYBOX_IMAGE}
        command: [/bin/sh, -c, "trap exit TERM; while true; do date; sleep 1; done"]
        securityContext: {restricted}
  volumeClaimTemplates:
  - metadata: {{name: data}}
    spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Mi}}}}}}
"#
    ));
    test.wait("three ready pods", 120, || {
        (test.get("statefulset", "web")["status"]["readyReplicas"] == 3).then_some(())
    });
}

/// Whether `pod` reaches the sidecar of `other` by name.
fn reaches(test: &Test, pod: &str, other: &str) -> bool {
    let url = format!("http://{other}.web:8080/");
    test.try_kubectl(&["exec", pod, "-c", "app", "--", "timeout", "2", "wget", "-q", "-O", "-", &url]).is_ok()
}

#[test]
fn volumes_belong_to_the_group_and_names_resolve() {
    let test = Test::new("members");
    members(&test);
    let owner = test.exec("web-0", "sidecar", &["stat", "-c", "%g", "/data"]);
    assert_eq!(owner.trim(), "65532");
    for (pod, other) in [("web-0", "web-1"), ("web-1", "web-2"), ("web-2", "web-0")] {
        test.wait("names", 10, || reaches(&test, pod, other).then_some(()));
    }
    let log = test.kubectl(&["logs", "web-0", "-c", "app"]);
    assert!(!log.is_empty());
}

#[test]
fn a_pod_that_is_not_restricted_is_refused() {
    let test = Test::new("restricted");
    let refused = test
        .try_apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: a}}, \
             spec: {{containers: [{{name: a, image: \"{BUSYBOX_IMAGE}\"}}]}}}}"
        ))
        .unwrap_err()
        .to_string();
    assert!(refused.contains("violates PodSecurity"), "{refused}");
}

#[test]
fn an_isolated_pod_is_alone_and_comes_back() {
    let test = Test::new("isolate");
    members(&test);
    test.wait("names", 10, || reaches(&test, "web-0", "web-1").then_some(()));
    let cluster = &test.cluster;
    for _ in 0..2 {
        cluster.pod_isolate(&test.namespace, "web-0").unwrap();
    }
    let address = test.get("pod", "web-1")["status"]["podIP"].as_str().unwrap().to_owned();
    let url = format!("http://{address}:8080/");
    let ask = ["timeout", "2", "wget", "-q", "-O", "-", &url];
    let exec = [&["exec", "web-0", "-c", "app", "--"][..], &ask].concat();
    assert!(test.try_kubectl(&exec).is_err(), "an isolated pod reaches a peer");
    // It can still be looked into, and its own node still probes it.
    assert_eq!(test.exec("web-0", "app", &["echo", "here"]).trim(), "here");
    for _ in 0..2 {
        cluster.pod_rejoin(&test.namespace, "web-0").unwrap();
    }
    assert_eq!(test.kubectl(&exec).trim(), "here");
}

#[test]
fn a_killed_container_comes_back_as_another_process() {
    let test = Test::new("kill");
    members(&test);
    let killed = test.cluster.container_kill(&test.namespace, "web-1", "sidecar").unwrap();
    let again = test.wait("another process", 60, || {
        test.cluster.container(&test.namespace, "web-1", "sidecar").ok().filter(|found| found.id != killed.id)
    });
    assert_eq!(again.node, killed.node);
    test.wait("a second log", 10, || {
        let logs = test.cluster.container_logs(&test.namespace, "web-1", "sidecar").unwrap();
        (logs.len() >= 2).then_some(())
    });
}

#[test]
fn node_fault_a_cut_node_goes_on_inside_and_can_be_watched() {
    let test = Test::new("cut");
    members(&test);
    let node = test.node_of("web-0");
    let cluster = &test.cluster;
    let script = "i=0; while [ $i -lt 600 ]; do i=$((i+1)); echo $i; sleep 0.1; done";
    let mut inside = cluster
        .exec_on_node(&test.namespace, "web-0", "app", &["sh", "-c", script])
        .unwrap()
        .command
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(inside.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "1");
    cluster.node_cut(&node).unwrap();
    let cut = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let other = if node == "node1" { "node2" } else { "node1" };
        cluster.wait_node(&node, false, Duration::from_secs(60)).unwrap();
        assert!(cluster.ready_nodes().contains(&other.to_owned()));
        // What was written while the node was cut off arrives here as it is written.
        let seen: u32 = lines.next().unwrap().unwrap().parse().unwrap();
        let later = lines.nth(20).unwrap().unwrap().parse::<u32>().unwrap();
        assert_eq!(later, seen + 21);
        // The container is found, and another program started in it, without the network.
        let mut echo =
            cluster.exec_on_node(&test.namespace, "web-0", "app", &["echo", "in"]).unwrap().command;
        assert_eq!(String::from_utf8(echo.output().unwrap().stdout).unwrap().trim(), "in");
    }));
    cluster.node_heal(&node).unwrap();
    let _ = inside.kill();
    let _ = inside.wait();
    cluster.wait_node(&node, true, Duration::from_secs(60)).unwrap();
    if let Err(panic) = cut {
        std::panic::resume_unwind(panic);
    }
    test.wait("the pods to reach each other", 60, || reaches(&test, "web-0", "web-1").then_some(()));
}

#[test]
fn node_fault_a_stopped_node_comes_back_with_its_volumes() {
    let test = Test::new("stop");
    members(&test);
    let node = test.node_of("web-2");
    test.exec("web-2", "sidecar", &["sh", "-c", "echo kept > /data/kept"]);
    test.cluster.node_stop(&node).unwrap();
    test.cluster.wait_node(&node, false, Duration::from_secs(60)).unwrap();
    test.cluster.node_start(&node).unwrap();
    test.cluster.wait_node(&node, true, Duration::from_secs(60)).unwrap();
    test.wait("the pod to run again", 120, || {
        let told = test.try_kubectl(&["exec", "web-2", "-c", "sidecar", "--", "cat", "/data/kept"]).ok()?;
        (told.trim() == "kept").then_some(())
    });
}
