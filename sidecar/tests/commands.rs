//! The commands for people and scripts: what they print, and `dev`.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Cluster, binary, command, stderr};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Stdio};

fn at(socket: &Path, arguments: &[&str]) -> String {
    let output = binary().args(arguments).arg("--socket").arg(socket).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_commands_print() {
    let cluster = Cluster::of(3).await;
    let socket = cluster.members[0].socket.as_path();
    for what in ["ready", "leader", "socket"] {
        at(socket, &["wait", "--for", what]);
    }
    at(socket, &["probe", "--ready"]);
    assert_eq!(at(socket, &["append", "one", ""]), "1\n2\n");
    assert_eq!(json(&at(socket, &["append", "-o", "json", "three"]))["last_index"], 3);
    let mut lines = binary();
    lines.args(["append", "--socket"]).arg(socket).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut lines = lines.spawn().unwrap();
    lines.stdin.take().unwrap().write_all(b"four\n\nsix").unwrap();
    assert_eq!(lines.wait_with_output().unwrap().stdout, b"4\n5\n6\n");
    let refused = ["append", "--expected-index", "5", "late"];
    let output = binary().args(refused).arg("--socket").arg(socket).output().unwrap();
    assert!(stderr(&output).contains("the last index is 6"), "{}", stderr(&output));
    assert_eq!(at(socket, &["tail", "-n", "3"]), "4\tfour\n5\t\n6\tsix\n");
    let first = at(socket, &["tail", "--from", "1", "-o", "json"]);
    assert_eq!(json(first.lines().next().unwrap())["text"], "one");

    let status = json(&at(socket, &["status", "-o", "json"]));
    assert_eq!(status["cluster_id"], cluster.cluster_id.to_string());
    assert_eq!((&status["ready"], &status["last_index"]), (&Value::from(true), &Value::from(6)));
    let members = json(&at(socket, &["members", "-o", "json"]));
    assert_eq!(members.as_array().unwrap().len(), 3);
    let history = json(&at(socket, &["history", "-o", "json"]));
    assert_eq!(history["configurations"][0]["voters"].as_array().unwrap().len(), 3);
    for command in ["status", "members", "history"] {
        let text = at(socket, &[command]);
        assert!(text.contains("n0") && text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
    let help = command(&["--help"]);
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.contains("synod-sidecar dev") && help.lines().all(|line| line.len() <= 80), "{help}");
}

fn start_dev(dir: &Path, replicas: &str) -> (Child, Vec<String>) {
    let mut dev = binary();
    dev.args(["dev", "--replicas", replicas, "--dir"]).arg(dir).stdout(Stdio::piped());
    let mut dev = dev.spawn().unwrap();
    let mut sockets = Vec::new();
    for line in BufReader::new(dev.stdout.take().unwrap()).lines().map(Result::unwrap) {
        if line.trim_start().starts_with('/') {
            sockets.push(line.trim().to_owned());
        }
        if line.starts_with("Ctrl-C") {
            break;
        }
    }
    (dev, sockets)
}

fn interrupt(mut dev: Child) {
    let pid = rustix::process::Pid::from_child(&dev);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert!(dev.wait().unwrap().success());
}

/// A whole cluster on a laptop, one socket a replica (docs: socket-api.md).
#[test]
fn dev_runs_a_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let (dev, sockets) = start_dev(dir.path(), "3");
    assert_eq!(sockets.len(), 3);
    for (number, socket) in (1..).zip(&sockets) {
        assert_eq!(at(Path::new(socket), &["append", socket]), format!("{number}\n"));
    }
    interrupt(dev);
    // The data was kept.
    let (dev, sockets) = start_dev(dir.path(), "3");
    for socket in &sockets {
        let log = at(Path::new(socket), &["tail"]);
        assert_eq!(log.lines().count(), 3, "{log}");
    }
    interrupt(dev);
    let wrong = binary().args(["dev", "--replicas", "4", "--dir"]).arg(dir.path()).output().unwrap();
    assert!(stderr(&wrong).contains("3 replicas"), "{}", stderr(&wrong));
}
