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
    at(socket, &["append", "--header", "content-type=text/plain", "--header", "x==", "a", "b"]);
    let headed = at(socket, &["tail", "-n", "2", "-o", "json"]);
    let second = json(headed.lines().nth(1).unwrap());
    // Both are of one batch, and so of one time.
    let since = at(socket, &["tail", "--since", second["time"].as_str().unwrap(), "-o", "json"]);
    assert_eq!(since, headed);
    for line in headed.lines().map(json) {
        assert_eq!(line["headers"], serde_json::json!({"content-type": "text/plain", "x": "="}));
        assert!(line["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
    }

    let status = json(&at(socket, &["status", "-o", "json"]));
    assert_eq!(status["cluster_id"], cluster.cluster_id.to_string());
    assert_eq!((&status["ready"], &status["last_index"]), (&Value::from(true), &Value::from(8)));
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
        let line = line.trim();
        if line.starts_with('/') && line.ends_with(".sock") {
            sockets.push(line.to_owned());
        }
        // What is hinted at can be typed: it is not on PATH here (fault S23).
        if let Some(program) = line.strip_suffix(" append hello") {
            assert!(Path::new(program).is_file(), "{line}");
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

/// A whole cluster on a laptop, one socket a replica (docs: dev.md).
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

/// Runs a command whose faults are those of the cluster in `dir`.
fn hurt(dir: &Path, arguments: &[&str]) -> std::process::Output {
    binary().arg("dev").args(arguments).arg("--dir").arg(dir).output().unwrap()
}

fn hurts(dir: &Path, arguments: &[&str]) -> String {
    let output = hurt(dir, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Each fault of a dev cluster, and what an application sees of it: the log goes on as long as two of three can.
#[test]
fn dev_members_are_hurt_on_command() {
    let dir = tempfile::tempdir().unwrap();
    let (dev, sockets) = start_dev(dir.path(), "3");
    let sockets: Vec<&Path> = sockets.iter().map(Path::new).collect();
    let mut number = 0;
    let mut goes_on = |at_member: usize| {
        number += 1;
        let appended = at(sockets[at_member], &["append", "--timeout", "60", "x"]);
        assert_eq!(appended, format!("{number}\n"));
    };
    goes_on(0);
    hurts(dir.path(), &["kill", "0"]);
    goes_on(1);
    assert_eq!(hurt(dir.path(), &["kill", "0"]).status.code(), Some(1));
    hurts(dir.path(), &["start", "0"]);
    assert!(at(sockets[0], &["wait", "--for", "ready"]).is_empty());
    goes_on(0);
    hurts(dir.path(), &["pause", "1"]);
    goes_on(2);
    hurts(dir.path(), &["resume", "1"]);
    goes_on(1);
    hurts(dir.path(), &["cut", "2"]);
    goes_on(0);
    let unknown =
        binary().args(["append", "--timeout", "1", "late", "--socket"]).arg(sockets[2]).output().unwrap();
    assert!(!unknown.status.success());
    hurts(dir.path(), &["heal", "2"]);
    hurts(dir.path(), &["slow", "0", "--by", "20"]);
    let shown = json(&hurts(dir.path(), &["show"]));
    assert_eq!(
        (&shown[0]["slow_ms"], &shown[2]["is_cut"], &shown[1]["state"]),
        (&20.into(), &false.into(), &"running".into())
    );
    at(sockets[0], &["append", "--timeout", "60", "slow"]);
    let missing = hurt(dir.path(), &["kill", "3"]);
    assert!(stderr(&missing).contains("the members are 0 to 2"), "{}", stderr(&missing));
    interrupt(dev);
    let gone = hurt(dir.path(), &["kill", "0"]);
    assert!(stderr(&gone).contains("no dev cluster runs"), "{}", stderr(&gone));
}

/// `make try`.
#[test]
fn a_killed_leader_loses_nothing() {
    let folder = Path::new(env!("CARGO_BIN_EXE_synod")).parent().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/try/run");
    let output = std::process::Command::new(script).arg(folder).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said} {}", String::from_utf8_lossy(&output.stderr));
    assert!(said.ends_with("once each and in order.\n"), "{said}");
}

/// Lines go fast, in order, and none is lost to a reader of the indexes that goes away.
#[tokio::test(flavor = "multi_thread")]
async fn lines_are_appended_together() {
    let cluster = Cluster::of(1).await;
    let socket = cluster.members[0].socket.to_str().unwrap();
    let program = env!("CARGO_BIN_EXE_synod");
    let script = format!("seq 50000 | {program} append --socket {socket} | head -1");
    let output = std::process::Command::new("bash").args(["-o", "pipefail", "-c", &script]).output().unwrap();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"1\n"[..]));
    let log = at(&cluster.members[0].socket, &["tail", "--raw", "--from", "1"]);
    assert!(log.lines().map(str::to_owned).eq((1..=50_000).map(|number: u32| number.to_string())));
}

/// 1: refused, 3: perhaps done, 4: nobody answers; with `-o json` it is told in JSON.
#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_tell_how_it_ended() {
    let cluster = Cluster::of(1).await;
    let (socket, nobody) = (cluster.members[0].socket.clone(), cluster.dir.path().join("nobody.sock"));
    let run = |socket: &Path, arguments: &[&str]| {
        let output =
            binary().args(arguments).arg("--socket").arg(socket).stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(run(&socket, &["append", "a"]).0, Some(0));
    let (code, said) = run(&socket, &["append", "-o", "json", "--expected-index", "7", "b"]);
    assert_eq!((code, &json(&said)["error"]["outcome"]), (Some(1), &"refused".into()));
    assert_eq!(run(&socket, &["append", "--no-such-option"]).0, Some(2));
    assert_eq!(run(&socket, &["wait", "--timeout", "18446744073709551615"]).0, Some(2));
    for arguments in [&["append", "c"][..], &["append"], &["tail"], &["status"]] {
        assert_eq!(run(&nobody, arguments).0, Some(4), "{arguments:?}");
    }
    let unwritable =
        format!("{} append d --socket {} > /dev/full", env!("CARGO_BIN_EXE_synod"), socket.display());
    let output = std::process::Command::new("bash").args(["-c", &unwritable]).output().unwrap();
    assert!(stderr(&output).contains("the entries stand at 2 to 2"), "{}", stderr(&output));
}

/// An entry is one line, whatever is in it.
#[tokio::test(flavor = "multi_thread")]
async fn entries_are_escaped() {
    let cluster = Cluster::of(1).await;
    let socket = &cluster.members[0].socket;
    at(socket, &["append", "a\n2\tb\u{1b}[31m"]);
    assert_eq!(at(socket, &["tail"]), "1\ta\\n2\\tb\\u{1b}[31m\n");
    assert_eq!(at(socket, &["tail", "--raw"]), "a\n2\tb\u{1b}[31m\n");
    // Bytes of a file are one entry, and a consumer gets each entry once.
    let file = cluster.dir.path().join("file");
    std::fs::write(&file, b"two\nlines\xff").unwrap();
    assert_eq!(at(socket, &["append", "--file", file.to_str().unwrap()]), "2\n");
    let reads = |expected: &[&str]| {
        let mut reader = binary();
        reader.args(["subscribe", "--consumer", "c", "--socket"]).arg(socket).stdout(Stdio::piped());
        let mut reader = reader.spawn().unwrap();
        let lines = BufReader::new(reader.stdout.take().unwrap()).lines().take(expected.len());
        let lines: Vec<String> = lines.map(Result::unwrap).collect();
        assert_eq!(lines, expected);
        let last: u64 = expected.last().unwrap().split_once('\t').unwrap().0.parse().unwrap();
        while json(&at(socket, &["consumers", "list", "-o", "json"]))["consumers"][0]["index"] != last {}
        reader.kill().unwrap();
        reader.wait().unwrap();
    };
    reads(&["1\ta\\n2\\tb\\u{1b}[31m", "2\ttwo\\nlines\\xff"]);
    at(socket, &["append", "three"]);
    reads(&["3\tthree"]);
    assert!(at_nobody(&["completion", "bash"]).contains("consumers"));
}

fn at_nobody(arguments: &[&str]) -> String {
    let output = binary().args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}
