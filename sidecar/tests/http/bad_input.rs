//! Requests that are not as they have to be: each has its reason, and changes nothing.

use super::*;

/// Path, further arguments of curl, status, reason.
type Row<'a> = (&'a str, &'a [&'a str], u16, &'a str);

const ROWS: &[Row<'static>] = &[
    ("/", &[], 404, "INVALID"),
    ("/v1/entry", &[], 404, "INVALID"),
    ("/v1/entries/", &[], 404, "INVALID"),
    ("/synod.v1.Log/Append", &["-d", "x"], 404, "INVALID"),
    ("/v1/entries", &["-X", "DELETE"], 405, "INVALID"),
    ("/v1/tail", &["-d", "x"], 405, "INVALID"),
    // What to read.
    ("/v1/entries?from=0", &[], 400, "INDEX"),
    ("/v1/entries?from=", &[], 400, "INVALID"),
    ("/v1/entries?from=-1", &[], 400, "INVALID"),
    ("/v1/entries?from=18446744073709551616", &[], 400, "INVALID"),
    ("/v1/entries?from=one", &[], 400, "INVALID"),
    ("/v1/entries?from=1&from=2", &[], 400, "INVALID"),
    ("/v1/entries?form=1", &[], 400, "INVALID"),
    ("/v1/entries?from=%ff", &[], 400, "INVALID"),
    ("/v1/entries?limit=0", &[], 400, "INVALID"),
    ("/v1/entries?limit=4097", &[], 400, "INVALID"),
    ("/v1/entries?max_bytes=0", &[], 400, "INVALID"),
    ("/v1/entries?max_bytes=1048577", &[], 400, "INVALID"),
    ("/v1/entries?consistency=strong", &[], 400, "CONSISTENCY"),
    ("/v1/entries?at_least=1", &[], 400, "INVALID"),
    ("/v1/entries?consistency=stale-bounded", &[], 400, "INVALID"),
    ("/v1/tail?max_staleness_ms=1", &[], 400, "INVALID"),
    ("/v1/tail?timeout_ms=0", &[], 400, "INVALID"),
    ("/v1/tail?timeout_ms=600001", &[], 400, "INVALID"),
    ("/v1/tail?from=1", &[], 400, "INVALID"),
    ("/v1/entries/stream?from=0", &[], 400, "INDEX"),
    ("/v1/entries/stream?time=yesterday", &[], 400, "INVALID"),
    ("/v1/entries/stream?time=1764590147", &[], 400, "INVALID"),
    ("/v1/entries/stream?time=2026-12-01T09:30:00Z&from=1", &[], 400, "INVALID"),
    ("/v1/entries/stream", &["-H", "Last-Event-ID: x"], 400, "INVALID"),
    ("/v1/entries/stream", &["-H", "Last-Event-ID: 18446744073709551615"], 400, "INVALID"),
    // What to append.
    ("/v1/entries", &["-X", "POST"], 400, "EMPTY_CALL"),
    ("/v1/entries", &["-d", ""], 400, "EMPTY_CALL"),
    ("/v1/entries?expected_index=x", &["-d", "x"], 400, "INVALID"),
    ("/v1/entries?minted_at=1", &["-d", "x"], 400, "INVALID"),
    ("/v1/entries?index=1", &["-d", "x"], 400, "INVALID"),
    ("/v1/entries", &["-d", "x", "-H", "Idempotency-Key;"], 400, "INVALID"),
    ("/v1/entries", &["-d", "x", "-H", "Idempotency-Key: \"\""], 400, "INVALID"),
    ("/v1/entries", &["-d", "x", "-H", "Idempotency-Key: a", "-H", "Idempotency-Key: a"], 400, "INVALID"),
    ("/v1/entries", &[JSON[0], JSON[1], "-X", "POST"], 400, "MALFORMED"),
    ("/v1/entries", &[JSON[0], JSON[1], "-d", ""], 400, "MALFORMED"),
    ("/v1/entries", &[JSON[0], JSON[1], "-d", "{}"], 400, "MALFORMED"),
    ("/v1/entries", &[JSON[0], JSON[1], "-d", "[]"], 400, "MALFORMED"),
    ("/v1/entries", &[JSON[0], JSON[1], "-d", "7"], 400, "MALFORMED"),
    ("/v1/entries", &[JSON[0], JSON[1], "-d", r#"{"entries": []}"#], 400, "EMPTY_CALL"),
    ("/v1/entries", &[JSON[0], JSON[1], "-d", r#"{"entries": ["x"]}"#], 400, "MALFORMED"),
    ("/v1/entries", &[JSON[0], JSON[1], "-d", r#"{"entries": [{}]}"#], 400, "MALFORMED"),
    ("/v1/entries", &[JSON[0], JSON[1], "-d", r#"{"entries": [{"text": 7}]}"#], 400, "MALFORMED"),
    ("/v1/entries", &[JSON[0], JSON[1], "-d", r#"{"entries": [{"headers": {}}]}"#], 400, "MALFORMED"),
    (
        "/v1/entries",
        &[JSON[0], JSON[1], "-d", r#"{"entries": [{"text": "", "headers": []}]}"#],
        400,
        "MALFORMED",
    ),
    (
        "/v1/entries",
        &[JSON[0], JSON[1], "-d", r#"{"entries": [{"text": "", "headers": {"a": 1}}]}"#],
        400,
        "MALFORMED",
    ),
    (
        "/v1/entries",
        &[JSON[0], JSON[1], "-d", r#"{"entries": [{"text": "", "headers": {"a": "", "a": ""}}]}"#],
        400,
        "MALFORMED",
    ),
    (
        "/v1/entries",
        &[JSON[0], JSON[1], "-d", r#"{"entries": [{"text": "", "headers": {"": ""}}]}"#],
        400,
        "INVALID",
    ),
    (
        "/v1/entries",
        &[JSON[0], JSON[1], "-d", r#"{"entries": [{"text": "", "headers": {"A": ""}}]}"#],
        400,
        "INVALID",
    ),
    (
        "/v1/entries",
        &[JSON[0], JSON[1], "-d", r#"{"entries": [{"text": ""}]}"#, "-H", "synod-header-a: b"],
        400,
        "INVALID",
    ),
    ("/v1/entries", &["-d", "x", "-H", "synod-header-a_b: c"], 400, "INVALID"),
    ("/v1/entries", &["-d", "x", "-H", "synod-header-: c"], 400, "INVALID"),
    ("/v1/entries", &["-d", "x", "-H", "synod-header-a: b", "-H", "synod-header-a: b"], 400, "INVALID"),
    ("/v1/entries", &[JSON[0], JSON[1], "-d", r#"{"entries": [{"text": null}]}"#], 400, "MALFORMED"),
    (
        "/v1/entries",
        &[JSON[0], JSON[1], "-d", r#"{"entries": [{"text": "a", "base64": "YQ=="}]}"#],
        400,
        "MALFORMED",
    ),
    ("/v1/entries", &[JSON[0], JSON[1], "-d", r#"{"entries": [{"bytes": "a"}]}"#], 400, "MALFORMED"),
    ("/v1/entries", &[JSON[0], JSON[1], "-d", r#"{"entries": [{"base64": "a"}]}"#], 400, "MALFORMED"),
    ("/v1/entries", &[JSON[0], JSON[1], "-d", r#"{"entries": [{"base64": "YQ"}]}"#], 400, "MALFORMED"),
    ("/v1/entries", &[JSON[0], JSON[1], "-d", r#"{"entries": [{"base64": "Y Q="}]}"#], 400, "MALFORMED"),
    ("/v1/entries", &[JSON[0], JSON[1], "-d", r#"{"entries": [{"text": "\ud800"}]}"#], 400, "MALFORMED"),
    ("/v1/entries", &[JSON[0], JSON[1], "-d", r#"{"entries": [{"text": "a"}]} {}"#], 400, "MALFORMED"),
    ("/v1/entries", &[JSON[0], JSON[1], "-d", r#"{"entries": [{"text": "a"}]"#], 400, "MALFORMED"),
    (
        "/v1/entries",
        &[JSON[0], JSON[1], "-d", r#"{"entries": [{"text": "a"}], "entries": []}"#],
        400,
        "MALFORMED",
    ),
    (
        "/v1/entries",
        &[JSON[0], JSON[1], "-d", r#"{"entries": [{"text": "a"}], "expected_index": 0}"#],
        400,
        "MALFORMED",
    ),
];

/// A file to send, as curl takes it.
fn file(dir: &Path, name: &str, content: &[u8]) -> String {
    std::fs::write(dir.join(name), content).unwrap();
    format!("@{}", dir.join(name).display())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_has_its_reason_and_changes_nothing() {
    let cluster = Cluster::of(1).await;
    let (socket, dir) = (&cluster.members[0].socket, cluster.dir.path());
    let large = file(dir, "large", &vec![b'x'; (1 << 20) + 1]);
    let huge = file(dir, "huge", &vec![b'x'; (4 << 20) + 1]);
    let one = r#"{"text": ""}"#;
    let long = file(dir, "long", format!("{{\"entries\": [{}]}}", [one; 4_097].join(",")).as_bytes());
    let no_text = file(dir, "no_text", b"{\"entries\": [{\"text\": \"\xff\"}]}");
    let key = format!("Idempotency-Key: {}", "k".repeat(65));
    let name = format!("synod-header-{}: v", "n".repeat(65));
    let value = format!("synod-header-n: {}", "v".repeat(1_025));
    let most = |entries: usize, headers: usize| {
        let headers: serde_json::Map<_, _> = (0..headers).map(|n| (format!("h{n}"), json!(""))).collect();
        json!({"entries": vec![json!({"text": "", "headers": headers}); entries]}).to_string()
    };
    let headers = file(dir, "headers", most(1, 33).as_bytes());
    let all_headers = file(dir, "all_headers", most(300, 32).as_bytes());
    let chunked = ["-H", "transfer-encoding: chunked"];
    let sent: &[Row<'_>] = &[
        ("/v1/entries", &["--data-binary", &large], 413, "ENTRY_TOO_LARGE"),
        ("/v1/entries", &["--data-binary", &huge], 413, "CALL_TOO_LARGE"),
        ("/v1/entries", &[JSON[0], JSON[1], "--data-binary", &long], 413, "CALL_TOO_LARGE"),
        ("/v1/entries", &[JSON[0], JSON[1], "--data-binary", &no_text], 400, "MALFORMED"),
        ("/v1/entries", &["-d", "x", "-H", &key], 400, "INVALID"),
        ("/v1/entries", &["-d", "x", "-H", &name], 400, "INVALID"),
        ("/v1/entries", &["-d", "x", "-H", &value], 400, "INVALID"),
        ("/v1/entries", &[JSON[0], JSON[1], "--data-binary", &headers], 400, "MALFORMED"),
        ("/v1/entries", &[JSON[0], JSON[1], "--data-binary", &all_headers], 413, "CALL_TOO_LARGE"),
    ];
    for spoken in SPOKEN {
        for (path, arguments, status, reason) in ROWS.iter().chain(sent) {
            let told = curl(socket, path, &[&[spoken][..], arguments].concat()).await;
            assert_eq!(told.reason(), (*status, *reason), "{spoken} {path} {arguments:?}: {told:?}");
            let is_append =
                arguments.contains(&"POST") || arguments.iter().any(|told| told.starts_with("-d"));
            if is_append && path.starts_with("/v1/entries") {
                assert_eq!(told.body["outcome"], "NOT_APPENDED", "{path} {arguments:?}: {told:?}");
            }
        }
    }
    let huge =
        curl(socket, "/v1/entries", &[&chunked[..], &["--http1.1", "--data-binary", &huge]].concat()).await;
    assert_eq!(huge.reason(), (413, "CALL_TOO_LARGE"));
    assert_eq!(done(socket, "/v1/tail", &[]).await["last_index"], 0, "nothing reached the log");
    let taken = [&chunked[..], &["--http1.1", "-d", "in chunks"]].concat();
    assert_eq!(done(socket, "/v1/entries", &taken).await["last_index"], 1);
}

/// What comes on one connection until the member closes it.
async fn raw(socket: &Path, request: &[u8], closes: bool) -> String {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(request).await.unwrap();
    if closes {
        stream.shutdown().await.unwrap();
    }
    let mut told = Vec::new();
    // A member that closes while there is more to read resets the connection.
    drop(tokio::time::timeout(PATIENCE, stream.read_to_end(&mut told)).await.expect("it is closed"));
    String::from_utf8(told).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_requests_end_their_connection_only() {
    let cluster = Cluster::of(1).await;
    let socket = &cluster.members[0].socket;
    for (request, status) in [
        ("nonsense\r\n\r\n", "400 Bad Request"),
        ("GET /v1/tail HTTP/1.1\r\nbad header\r\n\r\n", "400 Bad Request"),
        ("POST /v1/entries HTTP/1.1\r\ncontent-length: x\r\n\r\n", "400 Bad Request"),
        (
            "POST /v1/entries HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            "400 Bad Request",
        ),
    ] {
        let told = raw(socket, request.as_bytes(), false).await;
        assert!(told.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {told}");
    }
    let many = format!("GET /v1/tail HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(65));
    let long = format!("GET /v1/tail HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(17 << 10));
    for request in [many, long] {
        let told = raw(socket, request.as_bytes(), false).await;
        assert!(told.starts_with("HTTP/1.1 431"), "{told}");
    }
    // Half of a body, and no more: it is no entry.
    let half = b"POST /v1/entries HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf";
    let told = raw(socket, half, true).await;
    assert!(told.is_empty() || told.contains("MALFORMED"), "{told}");
    // What takes too long is told so.
    let told = raw(socket, half, false).await;
    assert!(told.starts_with("HTTP/1.1 408") && told.contains("STALLED"), "{told}");
    assert_eq!(done(socket, "/v1/tail", &[]).await["last_index"], 0, "nothing reached the log");
}
