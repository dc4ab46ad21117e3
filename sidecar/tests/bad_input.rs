//! Bad input: each gets a clear error that says what to do, and changes nothing.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{Cluster, Member, PATIENCE, binary, command, id, stderr, until};
use futures::TryStreamExt;
use prost::Message;
use std::time::Duration;
use synod_client::wire::channel;
use synod_client::{
    AppendError, AppendOptions, CallError, Consistency, IdempotencyKey, Outcome, Reason, Repeats,
};
use synod_proto::v1::append_stream_response::Outcome as Answer;
use synod_proto::v1::log_client::LogClient;
use synod_proto::v1::subscribe_request::Start;
use synod_proto::v1::{
    AppendRequest, AppendStreamRequest, AppendStreamResponse, Failure, NewEntry, SubscribeRequest,
    TailRequest,
};
use tonic::Code;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic_prost::ProstDecoder;

async fn refused(cluster: &Cluster, entries: Vec<Bytes>) -> CallError {
    // What may pass is tried again until the deadline.
    let options = AppendOptions { timeout: Duration::from_secs(1), ..AppendOptions::default() };
    match cluster.members[0].client().append_with(entries, options).await {
        Err(AppendError::Refused(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_beyond_their_bounds() {
    let cluster = Cluster::of(1).await;
    let large = Bytes::from(vec![b'x'; (1 << 20) + 1]);
    let error = refused(&cluster, vec![large]).await;
    assert_eq!(error.reason, Reason::EntryTooLarge);
    let error = refused(&cluster, vec![Bytes::from(vec![b'x'; 600 << 10]); 2]).await;
    assert_eq!(error.reason, Reason::CallTooLarge);
    let error = refused(&cluster, vec![Bytes::new(); 4_097]).await;
    assert_eq!(error.reason, Reason::CallTooLarge);
    let error = refused(&cluster, vec![Bytes::from(vec![b'x'; 5 << 20])]).await;
    assert_eq!(error.reason, Reason::CallTooLarge);
    let error = refused(&cluster, Vec::new()).await;
    assert_eq!(error.reason, Reason::EmptyCall);
    assert_eq!(error.outcome, Outcome::NotAppended);
    // Far beyond: not even decoded.
    let mut log = LogClient::new(channel(&cluster.members[0].socket).unwrap());
    let huge = || AppendRequest { entries: vec![Bytes::from(vec![b'x'; 5 << 20])], ..Default::default() };
    let error = synod_client::wire::error(&log.append(huge()).await.unwrap_err());
    assert_eq!(error.reason, Reason::CallTooLarge, "{error}");
    assert_eq!(error.outcome, Outcome::NotAppended);
    let request = AppendStreamRequest { tag: 1, append: Some(huge()), timeout_ms: 0 };
    let mut answers = log.append_stream(futures::stream::iter([request])).await.unwrap().into_inner();
    let error = synod_client::wire::error(&answers.message().await.unwrap_err());
    assert_eq!(error.reason, Reason::CallTooLarge, "{error}");
    let status =
        log.subscribe(SubscribeRequest { start: Some(Start::From(0)), end: None }).await.unwrap_err();
    assert!(status.message().contains("indexes begin at 1"), "{status}");
    let client = cluster.members[0].client();
    assert_eq!(client.tail(Consistency::Linearizable).await.unwrap(), 0, "nothing reached the log");
    // What is just within the bounds is taken, an empty entry too.
    let exact = client.append_many(vec![Bytes::from(vec![b'x'; 1 << 20])]).await.unwrap();
    assert_eq!(exact.first_index, 1);
    client.append_many(vec![Bytes::new(); 4_096]).await.unwrap();
    let count = client.read(1, Default::default()).try_collect::<Vec<_>>().await.unwrap().len();
    assert_eq!(count, 4_097);
}

/// Every bound of headers, on both ways in; what is just within is taken.
#[tokio::test(flavor = "multi_thread")]
async fn headers_out_of_their_bounds() {
    let cluster = Cluster::of(1).await;
    let mut log = LogClient::new(channel(&cluster.members[0].socket).unwrap());
    let entry = |payload: usize, headers: &[(&str, usize)]| {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), "v".repeat(*value))).collect();
        NewEntry { payload: vec![b'x'; payload].into(), headers }
    };
    let many = |count: usize| {
        let headers = (0..count).map(|n| (format!("h{n}"), String::new())).collect();
        NewEntry { payload: Bytes::new(), headers }
    };
    let (longest, longer) = ("n".repeat(64), "n".repeat(65));
    let mib = 1 << 20;
    let both = AppendRequest {
        entries: vec!["x".into()],
        new_entries: vec![entry(1, &[])],
        ..AppendRequest::default()
    };
    let new = |new_entries| AppendRequest { new_entries, ..AppendRequest::default() };
    for (request, reason) in [
        (new(vec![entry(1, &[("", 1)])]), Reason::Invalid),
        (new(vec![entry(1, &[(&longer, 1)])]), Reason::Invalid),
        (new(vec![entry(1, &[("Content-Type", 1)])]), Reason::Invalid),
        (new(vec![entry(1, &[("content_type", 1)])]), Reason::Invalid),
        (new(vec![entry(1, &[("a", 1_025)])]), Reason::Invalid),
        (new(vec![many(33)]), Reason::Invalid),
        (new(vec![many(32); 257]), Reason::CallTooLarge),
        (new(vec![many(2); 4_097]), Reason::CallTooLarge),
        (new(vec![entry(mib, &[("a", 1)])]), Reason::EntryTooLarge),
        (new(vec![entry(mib / 2, &[("a", 1)]); 2]), Reason::CallTooLarge),
        (both, Reason::Invalid),
    ] {
        let status = log.append(request.clone()).await.unwrap_err();
        let failure = Failure::from_status(&status).unwrap();
        let told = (failure.reason(), failure.outcome());
        assert_eq!(told, (reason, Outcome::NotAppended), "{status}");
        let request = AppendStreamRequest { tag: 1, append: Some(request), timeout_ms: 0 };
        let mut answers = log.append_stream(futures::stream::iter([request])).await.unwrap().into_inner();
        let told = match answers.message().await {
            Ok(Some(AppendStreamResponse { outcome: Some(Answer::Failure(failure)), .. })) => {
                failure.reason()
            }
            Err(status) => Failure::from_status(&status).unwrap().reason(),
            other => panic!("{other:?}"),
        };
        assert_eq!(told, reason);
    }
    let client = cluster.members[0].client();
    assert_eq!(client.tail(Consistency::Linearizable).await.unwrap(), 0, "nothing reached the log");
    let within =
        [entry(0, &[(&longest, 1_024), ("a", 0)]), many(32), entry(mib - 10_000, &[("az-09", 1_000)])];
    let answer = log.append(new(within.to_vec())).await.unwrap().into_inner();
    assert_eq!(answer.last_index, 3);
    let read: Vec<_> = client.read(1, Default::default()).try_collect().await.unwrap();
    let began = std::time::SystemTime::now() - PATIENCE;
    for (entry, sent) in read.iter().zip(&within) {
        assert_eq!((&entry.payload, &entry.headers), (&sent.payload, &sent.headers));
        assert!(entry.time.is_some_and(|time| time > began), "{entry:?}");
    }
}

/// Sends bytes as they are.
#[derive(Clone, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = AppendStreamResponse;
    type Encoder = Raw;
    type Decoder = ProstDecoder<AppendStreamResponse>;
    fn encoder(&mut self) -> Raw {
        Raw
    }
    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::default()
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = tonic::Status;
    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), tonic::Status> {
        bytes::BufMut::put(buffer, item);
        Ok(())
    }
    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

/// docs: reliability.md, fault 53: malformed protobuf ends its call, not the member.
#[tokio::test(flavor = "multi_thread")]
async fn malformed_messages() {
    let cluster = Cluster::of(1).await;
    for garbage in [&b"\xff\xff\xff\xff"[..], b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x05ab"] {
        let mut client = tonic::client::Grpc::new(channel(&cluster.members[0].socket).unwrap());
        client.ready().await.unwrap();
        let path = "/synod.v1.Log/Append".parse().unwrap();
        let request = tonic::Request::new(Bytes::from_static(garbage));
        let status = client.unary(request, path, Raw).await.unwrap_err();
        let failure = Failure::from_status(&status).unwrap();
        assert_eq!((status.code(), failure.reason()), (Code::InvalidArgument, Reason::Malformed), "{status}");
        assert_eq!(failure.outcome(), Outcome::NotAppended);
    }
    assert_eq!(cluster.members[0].client().append("fine").await.unwrap().first_index, 1);
}

/// Fault S13: one that could not be read ended the stream, and all other calls on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_append_ends_that_call_only() {
    let cluster = Cluster::of(1).await;
    let good = |tag| {
        let append = AppendRequest { entries: vec!["fine".into()], ..AppendRequest::default() };
        Bytes::from(AppendStreamRequest { tag, append: Some(append), timeout_ms: 0 }.encode_to_vec())
    };
    // Tag 2, and three bytes that are no append.
    let bad = Bytes::from_static(b"\x08\x02\x12\x03\x0a\xff\xff");
    let mut client = tonic::client::Grpc::new(channel(&cluster.members[0].socket).unwrap());
    client.ready().await.unwrap();
    let path = "/synod.v1.Log/AppendStream".parse().unwrap();
    let requests = tonic::Request::new(futures::stream::iter([good(1), bad, good(3)]));
    let answers = client.streaming(requests, path, Raw).await.unwrap().into_inner();
    let mut answers: Vec<AppendStreamResponse> = answers.try_collect().await.unwrap();
    answers.sort_by_key(|answer| answer.tag);
    assert_eq!(answers.iter().map(|answer| answer.tag).collect::<Vec<_>>(), [1, 2, 3]);
    for n in [0, 2] {
        assert!(matches!(answers[n].outcome, Some(Answer::Appended(_))), "{answers:?}");
    }
    let Some(Answer::Failure(failure)) = &answers[1].outcome else { panic!("{answers:?}") };
    assert_eq!((failure.reason(), failure.outcome()), (Reason::Malformed, Outcome::NotAppended));
}

/// Fault S13: at its deadline a unary append said UNAVAILABLE, a streamed one DEADLINE_EXCEEDED.
#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_has_one_code_on_every_call() {
    let mut cluster = Cluster::of(3).await;
    let stays = cluster.leader().await;
    for n in (0..3).filter(|n| *n != stays) {
        cluster.members[n].kill();
    }
    let member = &cluster.members[stays];
    until("the member knows of no leader", || async {
        let leader = member.answers().await.leader;
        if leader.is_none() { Ok(()) } else { Err(leader) }
    })
    .await;
    let append = || AppendRequest { entries: vec!["x".into()], ..AppendRequest::default() };
    let mut log = LogClient::new(channel(&member.socket).unwrap());
    let timely = |timeout| Duration::from_millis(timeout);
    let mut request = tonic::Request::new(append());
    request.set_timeout(timely(2_000));
    let unary = log.append(request).await.unwrap_err();
    let request = AppendStreamRequest { tag: 1, append: Some(append()), timeout_ms: 2_000 };
    let mut answers = log.append_stream(futures::stream::iter([request])).await.unwrap().into_inner();
    let Some(Answer::Failure(streamed)) = answers.message().await.unwrap().unwrap().outcome else {
        panic!("it was appended without a quorum");
    };
    let mut request = tonic::Request::new(TailRequest::default());
    request.set_timeout(timely(2_000));
    let tail = log.tail(request).await.unwrap_err();
    let unary_failure = Failure::from_status(&unary).unwrap();
    assert_eq!(unary_failure, streamed);
    assert_eq!((unary_failure.reason(), unary_failure.outcome()), (Reason::NoLeader, Outcome::NotAppended));
    let tail_failure = Failure::from_status(&tail).unwrap();
    assert_eq!((tail_failure.reason(), tail_failure.outcome()), (Reason::NoLeader, Outcome::Unspecified));
    assert_eq!((unary.code(), tail.code()), (Code::Unavailable, Code::Unavailable));
}

#[tokio::test(flavor = "multi_thread")]
async fn socket_paths() {
    let dir = tempfile::tempdir().unwrap();
    let mut member = Member::new(dir.path(), "m");
    std::fs::write(&member.peers_file, "").unwrap();
    member.socket = dir.path().join("x".repeat(108));
    let output = member.run_to_end();
    assert!(!output.status.success() && stderr(&output).contains("at most 107 bytes"), "{}", stderr(&output));
    // Something that is no socket is left alone.
    member.socket = dir.path().join("file");
    std::fs::write(&member.socket, "mine").unwrap();
    let output = member.run_to_end();
    assert!(stderr(&output).contains("is no socket"), "{}", stderr(&output));
    assert_eq!(std::fs::read(&member.socket).unwrap(), b"mine");
    // A file that a dead process left is replaced.
    member.socket = dir.path().join("m.sock");
    member.start();
    member.answers().await;
    member.kill();
    assert!(member.socket.exists());
    member.start();
    member.answers().await;
    // One that a living process listens on is not.
    let mut other = Member::new(dir.path(), "other");
    other.socket = member.socket.clone();
    let output = other.run_to_end();
    assert!(stderr(&output).contains("in use by a running process"), "{}", stderr(&output));
    member.answers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn data_directories() {
    let cluster = Cluster::of(1).await;
    let owner = &cluster.members[0];
    let mut second = Member::new(cluster.dir.path(), "second");
    second.data_dir = owner.data_dir.clone();
    let output = second.run_to_end();
    assert!(
        !output.status.success() && stderr(&output).contains("in use by another process"),
        "{}",
        stderr(&output)
    );
    owner.answers().await;

    let mut cluster = cluster;
    cluster.members[0].kill();
    second.extra = vec![format!("--cluster-id={}", uuid::Uuid::new_v4())];
    let output = second.run_to_end();
    assert!(stderr(&output).contains("belongs to cluster"), "{}", stderr(&output));
    second.extra = vec![format!("--cluster-id={}", cluster.cluster_id)];
    second.start();
    second.ready().await;

    let mut unwritable = Member::new(cluster.dir.path(), "unwritable");
    unwritable.data_dir = "/proc/synod".into();
    let output = unwritable.run_to_end();
    assert!(stderr(&output).contains("cannot be used"), "{}", stderr(&output));
}

/// docs: reliability.md, fault 11: a full disk refuses appends with a clear error and goes on reading.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_room() {
    let mut cluster = Cluster::of(1).await;
    let key = || {
        let repeats = Repeats::Key(IdempotencyKey::new("once").minted_at(0));
        AppendOptions { repeats, ..AppendOptions::default() }
    };
    let first = cluster.members[0].client().append_with(vec!["before".into()], key()).await.unwrap();
    assert_eq!(cluster.members[0].terminate(), Some(0));
    cluster.members[0].extra = vec!["--disk-reserve".to_owned(), u64::MAX.to_string()];
    cluster.members[0].start();
    cluster.members[0].ready().await;
    let error = refused(&cluster, vec!["after".into()]).await;
    assert_eq!(error.reason, Reason::DiskFull);
    // Fault S15: what is in the log takes no space.
    let again = cluster.members[0].client().append_with(vec!["before".into()], key()).await.unwrap();
    assert_eq!((again.first_index, again.repeated), (first.first_index, true));
    assert_eq!(cluster.members[0].client().tail(Consistency::Linearizable).await.unwrap(), 1);
}

/// docs: reliability.md, fault 8: when a write fails, the process ends, and says what to do. The disk is a small
/// one in a mount namespace of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let mut member = Member::new(dir.path(), "small");
    std::fs::create_dir(&member.data_dir).unwrap();
    std::fs::write(&member.peers_file, "").unwrap();
    let mount = format!("mount -t tmpfs -o size=3m tmpfs {} && exec \"$@\"", member.data_dir.display());
    member.wrapper = vec![
        "unshare".to_owned(),
        "-rm".to_owned(),
        "sh".to_owned(),
        "-c".to_owned(),
        mount,
        "sh".to_owned(),
    ];
    member.start();
    // The admin socket is on the small disk, in the other namespace: initialised from there.
    let own = id(member.answers().await.member);
    let admin = binary()
        .args(["admin", "initialize", "--cluster-id", &uuid::Uuid::new_v4().to_string()])
        .arg(format!("--member={own}=small"))
        .arg("--data-dir")
        .arg(format!("/proc/{}/root{}", member.process(), member.data_dir.display()))
        .output()
        .unwrap();
    assert!(admin.status.success(), "{}", stderr(&admin));
    member.ready().await;
    let client = member.client();
    let options = AppendOptions { timeout: Duration::from_secs(5), ..AppendOptions::default() };
    let mut appended = 0;
    while client.append_with(vec![Bytes::from(vec![b'x'; 300 << 10])], options.clone()).await.is_ok() {
        appended += 1;
        assert!(appended < 100, "the disk never filled up");
    }
    let (code, said) = member.end();
    assert_eq!(code, Some(1));
    assert!(said.contains("is full: make the volume larger"), "{said}");
}

#[test]
fn command_lines() {
    let output = command(&["run", "--no-such-flag"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--no-such-flag"), "{}", stderr(&output));
    let output = command(&["status", "--socket", "/nowhere/synod.sock"]);
    assert_eq!(output.status.code(), Some(4));
    assert!(stderr(&output).contains("there is no socket at /nowhere/synod.sock"), "{}", stderr(&output));
    let output = command(&["admin", "promote", "--member", "xyz"]);
    assert!(stderr(&output).contains("16 hexadecimal digits"), "{}", stderr(&output));
    // An admin port that everybody could reach.
    let dir = tempfile::tempdir().unwrap();
    let mut member = Member::new(dir.path(), "open");
    std::fs::write(&member.peers_file, "").unwrap();
    member.extra = vec!["--admin-listen".to_owned(), "0.0.0.0:0".to_owned()];
    let output = member.run_to_end();
    assert!(stderr(&output).contains("open to everybody"), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_calls() {
    let cluster = Cluster::of(1).await;
    let member = &cluster.members[0];
    let own = id(member.answers().await.member);
    // Another genesis: another cluster id, then another list.
    let elsewhere = format!("--cluster-id={}", uuid::Uuid::new_v4());
    let listed = format!("--member={own}=n0");
    let output = member.admin(&["initialize", &elsewhere, &listed]);
    assert!(stderr(&output).contains("another genesis"), "{}", stderr(&output));
    let here = format!("--cluster-id={}", cluster.cluster_id);
    let output = member.admin(&["initialize", &here, "--member=00000000000000aa=x", &listed]);
    assert!(stderr(&output).contains("another genesis"), "{}", stderr(&output));
    // The same one again is no fault.
    let output = member.admin(&["initialize", &here, &listed]);
    assert!(output.status.success(), "{}", stderr(&output));
    let output = member.admin(&["remove", "--member", "00000000000000aa"]);
    assert!(stderr(&output).contains("is not a member of this cluster"), "{}", stderr(&output));
    let output = member.admin(&["remove", "--member", &own]);
    assert!(stderr(&output).contains("last voter"), "{}", stderr(&output));
    let output = member.admin(&["renew", "--member", &own]);
    assert!(stderr(&output).contains("remove it first"), "{}", stderr(&output));
    let status = member.ready().await;
    assert_eq!(status.configuration.map(|configuration| configuration.version), Some(1));
}

/// A name that no member could read back is refused, and costs nothing: the log goes on, after a restart too.
#[tokio::test(flavor = "multi_thread")]
async fn names_are_refused_before_the_log() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let long = "x".repeat(254);
    for (name, why) in [
        (long.as_str(), "254 bytes is too long"),
        ("", "must not be empty"),
        ("two\nlines", "control character"),
    ] {
        let member = &cluster.members[leader];
        let add = ["add-learner", "--member", "00000000000000aa", "--name", name, "--timeout", "10"];
        let output = member.admin(&add);
        assert!(!output.status.success() && stderr(&output).contains(why), "{}", stderr(&output));
        let refused = member.client().consumers().register_at(name, 0).await.unwrap_err();
        assert!(refused.to_string().contains(why), "{refused}");
    }
    cluster.members[leader].client().append("after").await.unwrap();
    for member in &mut cluster.members {
        assert_eq!(member.terminate(), Some(0));
        member.start();
    }
    for member in &cluster.members {
        member.ready().await;
        assert_eq!(member.client().tail(Consistency::Linearizable).await.unwrap(), 1);
    }
}

/// A member answers before it belongs to a cluster, and says what to do.
#[tokio::test(flavor = "multi_thread")]
async fn an_uninitialized_member_says_so() {
    let cluster = Cluster::empty(1).await;
    let error = refused(&cluster, vec!["early".into()]).await;
    assert_eq!(error.reason, Reason::NotActive);
    assert!(error.message.contains("initialize it"), "{error}");
    let health = |path: &'static str| {
        let address = cluster.members[0].health;
        async move { http(address, path).await }
    };
    assert!(health("/startupz").await.starts_with("HTTP/1.1 200"));
    assert!(health("/livez").await.starts_with("HTTP/1.1 200"));
    assert!(health("/readyz").await.starts_with("HTTP/1.1 503"));
    // It waits without turning: each scrape is a turn, and little else is.
    let turns = |text: String| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix("synod_turns_total ")).unwrap();
        line.parse().unwrap()
    };
    let before = turns(health("/metrics").await);
    for _ in 0..20 {
        health("/metrics").await;
    }
    let turned = turns(health("/metrics").await) - before;
    assert!((21..100).contains(&turned), "an idle member's loop turned {turned} times");
    cluster.initialize().await;
    until("ready on the health port", || async {
        let answer = health("/readyz").await;
        if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(answer) }
    })
    .await;
    assert!(health("/metrics").await.contains("synod_last_index 0"));
}

async fn http(address: std::net::SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let asking = async {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: synod\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    tokio::time::timeout(Duration::from_secs(10), asking).await.unwrap().unwrap()
}
