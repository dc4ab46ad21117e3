//! HTTP and JSON on the socket, by real curl over HTTP/1.1 and HTTP/2.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

use common::{Cluster, PATIENCE, until};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Stdio;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::Command;

mod bad_input;
mod described;
mod positions;
mod property;
mod states;

/// How curl speaks.
const SPOKEN: [&str; 2] = ["--http1.1", "--http2-prior-knowledge"];
const JSON: [&str; 2] = ["-H", "content-type: application/json"];

/// What curl was answered: status, media type, and the body as JSON.
#[derive(Debug, PartialEq)]
struct Told {
    status: u16,
    kind: String,
    body: Value,
}

impl Told {
    fn reason(&self) -> (u16, &str) {
        assert_eq!(self.kind, "application/problem+json", "{self:?}");
        assert_eq!(self.body["status"], self.status, "{self:?}");
        (self.status, self.body["reason"].as_str().unwrap())
    }
}

fn curl_command(socket: &Path, path: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("curl");
    command.args(["-sS", "-N", "--unix-socket"]).arg(socket).args(arguments);
    command.arg(format!("http://localhost{path}")).stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn curl(socket: &Path, path: &str, arguments: &[&str]) -> Told {
    let mut command = curl_command(socket, path, arguments);
    command.args(["-w", "\n%{http_code} %{content_type}"]);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("curl ends").unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{path} {arguments:?}: {said}");
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, told) = text.rsplit_once('\n').unwrap();
    let (status, kind) = told.split_once(' ').unwrap();
    let body = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {text}"));
    Told { status: status.parse().unwrap(), kind: kind.to_owned(), body }
}

/// The body of an answer that is no failure.
async fn done(socket: &Path, path: &str, arguments: &[&str]) -> Value {
    let told = curl(socket, path, arguments).await;
    assert_eq!((told.status, told.kind.as_str()), (200, "application/json"), "{told:?}");
    told.body
}

/// Takes the times out of entries: each is one, and none is before the one in front of it.
fn timeless(entries: &mut Value) {
    let mut last = String::new();
    for entry in entries.as_array_mut().unwrap() {
        let time = entry.as_object_mut().unwrap().remove("time").expect("it has a time");
        let time = time.as_str().unwrap().to_owned();
        OffsetDateTime::parse(&time, &Rfc3339).unwrap();
        // The fraction is as short as it can be.
        let padded = format!("{:0<26}", time.trim_end_matches('Z'));
        assert!(padded >= last, "{padded} behind {last}");
        last = padded;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_go_in_and_come_out() {
    let cluster = Cluster::of(1).await;
    let socket = &cluster.members[0].socket;
    for (round, spoken) in (0..).zip(SPOKEN) {
        let base = round * 4;
        let appended = |first, last| json!({"first_index": first, "last_index": last, "repeated": false});
        let raw = done(socket, "/v1/entries", &[spoken, "--data-binary", "{\"a\": 1}"]).await;
        assert_eq!(raw, appended(base + 1, base + 1));
        let many = r#"{"entries": [{"text": "gr\u00fcn"}, {"base64": "/wA="}, {"text": ""}]}"#;
        let many = done(socket, "/v1/entries", &[spoken, JSON[0], JSON[1], "-d", many]).await;
        assert_eq!(many, appended(base + 2, base + 4));
        let mut page = done(socket, &format!("/v1/entries?from={}", base + 1), &[spoken]).await;
        timeless(&mut page["entries"]);
        let entries = json!([
            {"index": base + 1, "text": "{\"a\": 1}"},
            {"index": base + 2, "text": "gr\u{fc}n"},
            {"index": base + 3, "base64": "/wA="},
            {"index": base + 4, "text": ""},
        ]);
        let expected =
            json!({"entries": entries, "next": base + 5, "first_index": 1, "last_index": base + 4});
        assert_eq!(page, expected);
        let tail = done(socket, "/v1/tail?consistency=sequential&at_least=1", &[spoken]).await;
        assert_eq!(tail, json!({"first_index": 1, "last_index": base + 4}));
    }
    let page = done(socket, "/v1/entries?limit=2", &[]).await;
    assert_eq!((page["entries"].as_array().unwrap().len(), &page["next"]), (2, &json!(3)));
    // One entry at least, however large.
    let page = done(socket, "/v1/entries?from=1&max_bytes=1", &[]).await;
    assert_eq!((page["entries"].as_array().unwrap().len(), &page["next"]), (1, &json!(2)));
    let ahead = done(socket, "/v1/entries?from=100", &[]).await;
    assert_eq!(ahead, json!({"entries": [], "next": 100, "first_index": 1, "last_index": 8}));
    let status = done(socket, "/v1/status", &[]).await;
    assert_eq!((&status["state"], &status["last_index"]), (&json!("active"), &json!(8)));
    let info = done(socket, "/v1/info", &[]).await;
    assert_eq!((&info["call_entries"], &info["entry_bytes"]), (&json!(4096), &json!(1 << 20)));
}

/// docs: socket.md, "An entry": what is said beside an entry goes in with it and comes out with it.
#[tokio::test(flavor = "multi_thread")]
async fn headers_go_in_and_come_out() {
    let cluster = Cluster::of(1).await;
    let socket = &cluster.members[0].socket;
    let named = ["-H", "Synod-Header-Content-Type: text/csv", "-H", "synod-header-x: gr\u{fc}n"];
    for (round, spoken) in (0..).zip(SPOKEN) {
        let raw = [&[spoken, "--data-binary", "1;2"][..], &named].concat();
        done(socket, "/v1/entries", &raw).await;
        let many =
            r#"{"entries": [{"text": "a", "headers": {"k": "", "b": "\u0000\n"}}, {"base64": "/w=="}]}"#;
        done(socket, "/v1/entries", &[spoken, JSON[0], JSON[1], "-d", many]).await;
        let from = round * 3 + 1;
        let mut page = done(socket, &format!("/v1/entries?from={from}"), &[spoken]).await;
        timeless(&mut page["entries"]);
        let expected = json!([
            {"index": from, "text": "1;2", "headers": {"content-type": "text/csv", "x": "gr\u{fc}n"}},
            {"index": from + 1, "text": "a", "headers": {"k": "", "b": "\0\n"}},
            {"index": from + 2, "base64": "/w=="},
        ]);
        assert_eq!(page["entries"], expected);
    }
    // The same key with other headers is another append.
    let keyed = |header: &'static str| ["-H", "Idempotency-Key: k", "-d", "x", "-H", header];
    done(socket, "/v1/entries", &keyed("synod-header-n: 1")).await;
    assert_eq!(done(socket, "/v1/entries", &keyed("synod-header-n: 1")).await["repeated"], true);
    assert_eq!(curl(socket, "/v1/entries", &keyed("synod-header-n: 2")).await.reason(), (409, "KEY_REUSED"));
}

/// docs: socket.md, "Which log": every answer names it, a refusal too, and a call that wants another is refused.
#[tokio::test(flavor = "multi_thread")]
async fn another_log_is_refused() {
    let cluster = Cluster::of(1).await;
    let socket = &cluster.members[0].socket;
    let named = async |path: &str| {
        let show = ["-o", "/dev/null", "-w", "%header{synod-log}"];
        let output = curl_command(socket, path, &show).output().await.unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let log = named("/v1/tail").await;
    assert!(log.ends_with(".0") && log.len() == 34, "{log:?}");
    assert_eq!(named("/v1/nothing").await, log);
    for spoken in SPOKEN {
        let wants = |log: &str| format!("synod-log: {log}");
        let other = curl(socket, "/v1/entries", &[spoken, "-H", &wants("00.0"), "-d", "x"]).await;
        assert_eq!(other.reason().1, "OTHER_LOG", "{other:?}");
        assert_eq!(other.body["outcome"], "NOT_APPENDED", "{other:?}");
        let other = curl(socket, "/v1/tail", &[spoken, "-H", &wants("00.0")]).await;
        assert_eq!(other.reason().1, "OTHER_LOG", "{other:?}");
        let tail = done(socket, "/v1/tail", &[spoken, "-H", &wants(&log)]).await;
        assert_eq!(tail["last_index"], 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_makes_many_tries_one_append() {
    let cluster = Cluster::of(1).await;
    let socket = &cluster.members[0].socket;
    for (spoken, key, repeated) in
        [(SPOKEN[0], "a", false), (SPOKEN[1], "a", true), (SPOKEN[0], "\"a\"", true)]
    {
        let header = format!("Idempotency-Key: {key}");
        let appended = done(socket, "/v1/entries", &[spoken, "-H", &header, "-d", "once"]).await;
        assert_eq!(appended, json!({"first_index": 1, "last_index": 1, "repeated": repeated}));
    }
    let other = curl(socket, "/v1/entries", &["-H", "Idempotency-Key: a", "-d", "other"]).await;
    assert_eq!(other.reason(), (409, "KEY_REUSED"));
    for spoken in SPOKEN {
        let refused = curl(socket, "/v1/entries?expected_index=7", &[spoken, "-d", "x"]).await;
        assert_eq!(refused.reason(), (412, "EXPECTED_INDEX"));
        assert_eq!((&refused.body["outcome"], &refused.body["tail"]), (&json!("NOT_APPENDED"), &json!(1)));
    }
    let taken = done(socket, "/v1/entries?expected_index=1", &["-d", "x"]).await;
    assert_eq!(taken["first_index"], 2);
}

/// Without a quorum nothing is answered but what is known, at the deadline that was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_is_told() {
    let mut cluster = Cluster::of(3).await;
    cluster.members[1].kill();
    cluster.members[2].kill();
    let socket = &cluster.members[0].socket;
    let appended = curl(socket, "/v1/entries?timeout_ms=500", &["-d", "x"]).await;
    let (status, reason) = appended.reason();
    assert!(status == 503 && ["NO_LEADER", "OUTCOME_UNKNOWN"].contains(&reason), "{appended:?}");
    assert!(appended.body["outcome"].is_string(), "{appended:?}");
    let tail = curl(socket, "/v1/tail?timeout_ms=500", &[]).await;
    assert!([(503, "NO_LEADER"), (504, "DEADLINE")].contains(&tail.reason()), "{tail:?}");
    let local = done(socket, "/v1/tail?consistency=sequential", &[]).await;
    assert_eq!(local, json!({"first_index": 1, "last_index": 0}));
    let ahead = curl(socket, "/v1/tail?consistency=sequential&at_least=9&timeout_ms=100", &[]).await;
    assert_eq!(ahead.reason(), (503, "BEHIND"));
}

/// The events of a stream, one after the other.
struct Events {
    _curl: tokio::process::Child,
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
}

impl Events {
    fn open(socket: &Path, path: &str, arguments: &[&str]) -> Events {
        let mut curl = curl_command(socket, path, arguments).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(curl.stdout.take().unwrap()).lines();
        Events { _curl: curl, lines }
    }

    /// The next event's id, or its name where it is no entry, and its data; `None`: the stream has ended.
    async fn next(&mut self) -> Option<(String, Value)> {
        let mut id = None;
        loop {
            let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await.expect("something comes");
            let line = line.unwrap()?;
            if let Some(data) = line.strip_prefix("data: ") {
                // Said whenever everything that was there has been given.
                match id.take().unwrap() {
                    id if id == "caught-up" => continue,
                    id => return Some((id, serde_json::from_str(data).unwrap())),
                }
            }
            let named = line.strip_prefix("id: ").or(line.strip_prefix("event: "));
            id = id.or(named.map(str::to_owned));
        }
    }
}

/// docs: socket.md, "Leading": an application hears over HTTP when its member leads, with an epoch that only grows.
#[tokio::test(flavor = "multi_thread")]
async fn roles_come_as_events() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let watch = |n: usize| Events::open(&cluster.members[n].socket, "/v1/role", &[SPOKEN[n % 2]]);
    let (mut old, mut first, mut second) = (watch(leader), watch((leader + 1) % 3), watch((leader + 2) % 3));
    let leading = async |events: &mut Events| {
        let mut last = 0;
        loop {
            let (name, role) = events.next().await.expect("the member stands");
            assert_eq!(name, "role");
            let epoch = role["fencing_epoch"].as_u64().unwrap();
            assert!(epoch >= last, "{role}");
            last = epoch;
            if role["leads"] == true {
                assert_eq!(role["role"], "leader");
                return (epoch, role["leader"].clone());
            }
        }
    };
    let (epoch, id) = leading(&mut old).await;
    let (name, role) = first.next().await.unwrap();
    let follows = json!({"role": "follower", "leads": false, "fencing_epoch": epoch, "leader": id});
    assert_eq!((name.as_str(), role), ("role", follows));
    cluster.members[leader].kill();
    let (later, other) = tokio::select! {
        led = leading(&mut first) => led,
        led = leading(&mut second) => led,
    };
    assert!(later > epoch && other != id, "{later} {other}");
}

/// A stream goes on while a leader is killed, never skips and never repeats; behind a cut it is resumed by the last id.
#[tokio::test(flavor = "multi_thread")]
async fn events_go_on_across_a_killed_leader() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let socket = cluster.members[(leader + 1) % 3].socket.clone();
    let mut streams: Vec<_> =
        SPOKEN.iter().map(|spoken| Events::open(&socket, "/v1/entries/stream?from=1", &[spoken])).collect();
    for number in 1..=20 {
        if number == 10 {
            cluster.members[leader].kill();
            let resumed = Events::open(&socket, "/v1/entries/stream?from=1", &["-H", "Last-Event-ID: 9"]);
            streams.push(resumed);
        }
        let (header, entry) = (format!("Idempotency-Key: {number}"), format!("entry {number}"));
        let arguments = ["-H", &header, "--data-binary", &entry];
        let appended = until("curl appends", || async {
            let told = curl(&socket, "/v1/entries?timeout_ms=2000", &arguments).await;
            if told.status == 200 { Ok(told.body) } else { Err(told) }
        })
        .await;
        assert_eq!(appended["first_index"], number);
        for events in &mut streams {
            let (id, data) = events.next().await.unwrap();
            let mut one = json!([data]);
            timeless(&mut one);
            assert_eq!((id, one), (number.to_string(), json!([{"index": number, "text": entry}])));
        }
    }
    // A member that goes down says so, and ends.
    cluster.members[(leader + 1) % 3].terminate();
    for events in &mut streams {
        let (name, problem) = events.next().await.unwrap();
        assert_eq!((name.as_str(), &problem["reason"]), ("failure", &json!("STOPPING")));
        assert_eq!(events.next().await, None);
    }
}
