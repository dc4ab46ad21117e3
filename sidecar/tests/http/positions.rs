//! Consumers, trimming, members that are not active, and answers that nobody takes.

use super::*;
use common::{Member, stderr};

#[tokio::test(flavor = "multi_thread")]
async fn consumers_hold_the_log_back_and_what_is_trimmed_is_told() {
    let cluster = Cluster::of(1).await;
    let socket = &cluster.members[0].socket;
    let many = json!({"entries": vec![json!({"text": "x"}); 50]}).to_string();
    for _ in 0..2 {
        done(socket, "/v1/entries", &[JSON[0], JSON[1], "-d", &many]).await;
    }
    let name = "/v1/consumers/a%2Fb%20c";
    for spoken in SPOKEN {
        let told = curl(socket, "/v1/consumers/nobody?index=1", &[spoken, "-X", "POST"]).await;
        assert_eq!(told.reason(), (404, "UNKNOWN_CONSUMER"));
        let told = curl(socket, "/v1/consumers/nobody", &[spoken]).await;
        assert_eq!(told.reason(), (404, "UNKNOWN_CONSUMER"));
    }
    let registered = |created| json!({"index": 0, "created": created});
    assert_eq!(done(socket, name, &["-X", "PUT"]).await, registered(true));
    assert_eq!(done(socket, name, &["-X", "PUT"]).await, registered(false));
    assert_eq!(done(socket, &format!("{name}?index=60"), &["-X", "POST"]).await, json!({"index": 60}));
    // It never goes back.
    assert_eq!(done(socket, &format!("{name}?index=7"), &["-X", "POST"]).await, json!({"index": 60}));
    // It goes back where it is put.
    assert_eq!(done(socket, &format!("{name}?index=7"), &["-X", "PATCH"]).await, json!({"index": 7}));
    assert_eq!(done(socket, &format!("{name}?index=60"), &["-X", "PATCH"]).await, json!({"index": 60}));
    let put = done(socket, &format!("{name}?expiry_ms=60000"), &["-X", "PUT"]).await;
    assert_eq!(put, json!({"index": 60, "created": false}));
    assert_eq!(done(socket, name, &[]).await["expiry_ms"], 60_000);
    done(socket, &format!("{name}?expiry_ms=0"), &["-X", "PUT"]).await;
    let consumer = json!({"name": "a/b c", "index": 60, "lag": 40});
    assert_eq!(done(socket, name, &[]).await, consumer);
    let all = done(socket, "/v1/consumers", &[]).await;
    assert_eq!(all, json!({"consumers": [consumer], "first_index": 1, "last_index": 100}));
    for (path, arguments, status, reason) in [
        ("?index=101", &["-X", "POST"][..], 409, "BEYOND_TAIL"),
        ("?index=101", &["-X", "PUT"], 409, "BEYOND_TAIL"),
        ("?index=x", &["-X", "PUT"], 400, "INVALID"),
        ("?expiry_ms=9999", &["-X", "PUT"], 400, "INVALID"),
        ("?index=101", &["-X", "PATCH"], 409, "BEYOND_TAIL"),
        ("", &["-X", "PATCH"], 400, "INVALID"),
        ("x?index=1", &["-X", "PATCH"], 404, "UNKNOWN_CONSUMER"),
        ("", &["-X", "POST"], 400, "INVALID"),
        ("/x", &["-X", "PUT"], 404, "INVALID"),
        ("%ff", &["-X", "PUT"], 400, "INVALID"),
        ("%0a", &["-X", "PUT"], 400, "INVALID"),
    ] {
        let told = curl(socket, &format!("{name}{path}"), arguments).await;
        assert_eq!(told.reason(), (status, reason), "{path} {arguments:?}");
    }
    let output = cluster.members[0].admin(&["settings", "--retain-entries", "1"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let first = until("the log is trimmed", || async {
        let appended = done(socket, "/v1/entries", &[JSON[0], JSON[1], "-d", &many]).await;
        done(socket, &format!("{name}?index={}", appended["first_index"]), &["-X", "POST"]).await;
        let first = done(socket, "/v1/tail", &[]).await["first_index"].as_u64().unwrap();
        if first > 1 { Ok(first) } else { Err(first) }
    })
    .await;
    let position = done(socket, name, &[]).await["index"].as_u64().unwrap();
    assert!(first <= position, "{first} {position}");
    for path in ["/v1/entries?from=1", "/v1/entries/stream?from=1"] {
        let told = curl(socket, path, &[]).await;
        assert_eq!(told.reason(), (410, "COMPACTED"), "{path}");
        assert!(told.body["first_index"].as_u64().unwrap() >= first, "{told:?}");
    }
    let page = done(socket, "/v1/entries?limit=1", &[]).await;
    // The trim goes on.
    let index = page["entries"][0]["index"].as_u64().unwrap();
    assert!((first..=page["first_index"].as_u64().unwrap()).contains(&index), "{page}");
    assert_eq!(done(socket, name, &["-X", "DELETE"]).await, json!({}));
    assert_eq!(done(socket, name, &["-X", "DELETE"]).await, json!({}));
    assert_eq!(curl(socket, name, &[]).await.reason(), (404, "UNKNOWN_CONSUMER"));
    assert_eq!(done(socket, "/v1/checkpoints", &[]).await, json!({"checkpoints": []}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_no_cluster_says_so() {
    let cluster = Cluster::empty(1).await;
    let socket = &cluster.members[0].socket;
    assert_eq!(done(socket, "/v1/status", &[]).await["state"], "uninitialized");
    assert_eq!(done(socket, "/v1/info", &[]).await["entry_bytes"], Value::Null);
    let told = curl(socket, "/v1/entries?timeout_ms=500", &["-d", "x"]).await;
    assert_eq!((told.reason(), &told.body["outcome"]), ((503, "NOT_ACTIVE"), &json!("NOT_APPENDED")));
}

/// Only users that may use the socket: the rest hear so in the same words.
#[tokio::test(flavor = "multi_thread")]
async fn other_users_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("peers"), "").unwrap();
    let mut member = Member::new(dir.path(), "n0");
    member.extra = vec!["--allowed-uids".to_owned(), "4242".to_owned()];
    member.start();
    until("the socket is there", || async { UnixStream::connect(&member.socket).await }).await;
    for spoken in SPOKEN {
        let told = curl(&member.socket, "/v1/info", &[spoken]).await;
        assert_eq!(told.reason(), (403, "UID"));
    }
}

fn descriptors(member: &Member) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", member.process())).unwrap().count()
}

/// Followers that go away leave nothing behind, whichever way they spoke.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_its_client_goes() {
    let cluster = Cluster::of(1).await;
    let member = &cluster.members[0];
    done(&member.socket, "/v1/entries", &["-d", "x"]).await;
    let mut streams = Vec::new();
    for number in 0..20 {
        let mut events = Events::open(&member.socket, "/v1/entries/stream?from=1", &[SPOKEN[number % 2]]);
        assert_eq!(events.next().await.unwrap().0, "1");
        streams.push(events);
    }
    // Beside them a few others, of files and of calls that just ended, come and go.
    let held = descriptors(member);
    drop(streams);
    until("their connections end", || async {
        let now = descriptors(member);
        if now + 15 <= held { Ok(()) } else { Err((now, held)) }
    })
    .await;
}

/// Answers over HTTP/1.1 that nobody takes make room for those of others: the call ends, and its connection with it.
#[tokio::test(flavor = "multi_thread")]
async fn untaken_answers_make_room() {
    let cluster = Cluster::of(1).await;
    let member = &cluster.members[0];
    let dir = cluster.dir.path();
    for size in [1_000, 800] {
        let entry = dir.join("entry");
        std::fs::write(&entry, vec![b'x'; size << 10]).unwrap();
        done(&member.socket, "/v1/entries", &["--data-binary", &format!("@{}", entry.display())]).await;
    }
    let before = descriptors(member);
    let ended = || member.metric("synod_socket_answers_ended_total");
    let refused = || member.metric("synod_socket_answers_refused_total");
    let mut held = Vec::new();
    while refused() == 0 {
        assert!(held.len() < 100, "more than 20 MiB are held");
        let mut stream = UnixStream::connect(&member.socket).await.unwrap();
        stream.write_all(b"GET /v1/entries?from=1&limit=1 HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        // Its answer is under way, or was refused.
        tokio::time::timeout(PATIENCE, stream.readable()).await.expect("something comes").unwrap();
        held.push(stream);
    }
    // A smaller one goes before them.
    assert_eq!(ended(), 0);
    let page = done(&member.socket, "/v1/entries?from=2", &[]).await;
    assert_eq!(page["entries"][0]["text"].as_str().map(str::len), Some(800 << 10));
    assert_eq!(ended(), 1);
    until("one that was refused and one that was ended are closed", || async {
        let now = descriptors(member);
        if now <= before + held.len() - 2 { Ok(()) } else { Err((now, before, held.len())) }
    })
    .await;
}
