//! The commands of README.md, against a real member.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;
use synod_paxos::{AdminCommand, ClusterId, Genesis};
use synod_sidecar::member::{Config, Member};
use synod_sidecar::transport::PeerSource;
use tokio::time::Instant;

async fn member(dir: &std::path::Path) -> (Member, PathBuf) {
    let socket = dir.join("synod.sock");
    let config = Config {
        data_dir: dir.join("data"),
        socket: socket.clone(),
        socket_mode: 0o600,
        allowed_uids: Vec::new(),
        peer_listen: "127.0.0.1:0".parse().unwrap(),
        admin_listen: None,
        health_listen: None,
        name: "only".to_owned(),
        advertise: String::new(),
        peers: PeerSource::default(),
        tls_dir: None,
        insecure: false,
        cluster: None,
        disk_reserve: 0,
        election: None,
        dial_from: None,
        scrub: synod_sidecar::scrub::Options::default(),
    };
    let member = Member::start(config).await.unwrap();
    let handle = member.shared().handle();
    let id = handle.status().await.unwrap().status.member;
    let genesis = Genesis::new(ClusterId([1; 16]), BTreeMap::from([(id, "only".to_owned())]));
    let patience = Instant::now() + Duration::from_secs(30);
    handle.admin(AdminCommand::Initialize(genesis), patience).await.unwrap();
    (member, socket)
}

/// Runs the program to its end, beside the runtime that the member lives in.
async fn journal(socket: &std::path::Path, arguments: &[&str], input: &str) -> (String, bool) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_journal"));
    command.arg("--socket").arg(socket).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
    let input = input.to_owned();
    let running = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    });
    let output = running.await.unwrap();
    (String::from_utf8(output.stdout).unwrap(), output.status.success())
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn hex(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_go_in_and_come_out() {
    let dir = tempfile::tempdir().unwrap();
    let (member, socket) = member(dir.path()).await;
    let text: String =
        (0..1_000).map(|n| if n % 7 == 0 { "\n".to_owned() } else { format!("line {n}\n") }).collect();
    let (output, ok) = journal(&socket, &["append"], &text).await;
    assert!(ok);
    let acknowledged = lines(&output);
    assert_eq!(acknowledged.len(), 1_000);
    for ((n, line), source) in (1..).zip(&acknowledged).zip(text.lines()) {
        assert_eq!((line["line"].as_u64(), line["index"].as_u64()), (Some(n), Some(n)));
        assert_eq!(line["sha256"], hex(source));
    }
    for consistency in ["linearizable", "sequential"] {
        let (output, ok) = journal(&socket, &["cat", "--consistency", consistency], "").await;
        assert!(ok);
        assert_eq!(output, text);
    }
    let (output, _) = journal(&socket, &["cat", "--from", "999", "-o", "json"], "").await;
    assert_eq!(lines(&output)[1]["sha256"], hex("line 999"));
    let (output, _) = journal(&socket, &["digest"], "").await;
    assert_eq!(output.trim(), hex(text.trim_end_matches('\n')));
    let (output, _) = journal(&socket, &["digest", "--from", "2", "--to", "3", "-o", "json"], "").await;
    assert_eq!(lines(&output)[0]["sha256"], hex("line 1\nline 2"));
    let (_, ok) = journal(&socket, &["digest", "--to", "1001"], "").await;
    assert!(!ok, "the log is shorter");
    let (output, _) = journal(&socket, &["tail", "-n", "1"], "").await;
    assert_eq!(output, "1000\tline 999\n");
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_leaves_a_record() {
    let dir = tempfile::tempdir().unwrap();
    let (member, socket) = member(dir.path()).await;
    let (output, ok) =
        journal(&socket, &["write", "--id", "w0", "--count", "50", "--in-flight", "8"], "").await;
    assert!(ok);
    let outcomes = lines(&output);
    assert_eq!(outcomes.len(), 50);
    let (output, _) = journal(&socket, &["cat", "-o", "json"], "").await;
    let log: BTreeMap<u64, String> = lines(&output)
        .iter()
        .map(|line| (line["index"].as_u64().unwrap(), line["sha256"].as_str().unwrap().to_owned()))
        .collect();
    for outcome in &outcomes {
        assert_eq!((outcome["outcome"].as_str(), outcome["writer"].as_str()), (Some("ok"), Some("w0")));
        assert_eq!(log[&outcome["index"].as_u64().unwrap()], outcome["sha256"].as_str().unwrap());
    }
    member.stop().await;
}

/// A writer that is started again with the same name and run appends nothing twice: its keys tell.
#[tokio::test(flavor = "multi_thread")]
async fn a_keyed_writer_goes_on_where_it_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let (member, socket) = member(dir.path()).await;
    let keyed = ["write", "--id", "w0", "--run", "r", "--keyed", "--in-flight", "8"];
    let (output, _) = journal(&socket, &[&keyed[..], &["--count", "20"]].concat(), "").await;
    let place = |line: &Value| (line["seq"].as_u64(), line["index"].as_u64());
    let first: BTreeMap<_, _> = lines(&output).iter().map(place).collect();
    assert_eq!(first.len(), 20);
    // As far as it knows, the last ten were never told of.
    let (output, ok) =
        journal(&socket, &[&keyed[..], &["--first", "11", "--count", "20"]].concat(), "").await;
    assert!(ok);
    for line in &lines(&output) {
        let (seq, index) = place(line);
        let known = seq <= Some(20);
        assert_eq!(line["repeated"], known, "{line}");
        assert_eq!(first.get(&seq).copied().unwrap_or(index), index, "{line}");
    }
    let (output, _) = journal(&socket, &["cat", "-o", "json"], "").await;
    assert_eq!(lines(&output).len(), 30, "each stands once");
    member.stop().await;
}

/// As a container's main process: it stays, keeps its state, and ends at SIGTERM.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_follows_and_stops() {
    let dir = tempfile::tempdir().unwrap();
    let (member, socket) = member(dir.path()).await;
    let state = dir.path().join("state.json");
    for round in 1..=2_u64 {
        journal(&socket, &["append"], "one\ntwo\n").await;
        let mut command = Command::new(env!("CARGO_BIN_EXE_journal"));
        command.arg("--socket").arg(&socket).args(["run", "--every", "1", "--state"]).arg(&state);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let told = BufReader::new(child.stderr.take().unwrap());
        let reading = tokio::task::spawn_blocking(move || {
            let mut told = told.lines().map(Result::unwrap);
            told.find(|line| line.contains(&format!("index {}, ", round * 2))).unwrap();
            rustix::process::kill_process(
                rustix::process::Pid::from_child(&child),
                rustix::process::Signal::TERM,
            )
            .unwrap();
            assert!(told.any(|line| line.contains("stopped at index")));
            child.wait().unwrap()
        });
        assert!(reading.await.unwrap().success());
        let kept: Value = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
        assert_eq!(kept["entries"].as_u64(), Some(round * 2));
    }
    member.stop().await;
}
