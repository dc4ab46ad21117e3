//! Hostile and broken processes beside an application: they cost bounded memory, and nobody else's calls.

use super::{PREFACE, closed, common, many_descriptors, patient, stops_at_once, telling};
use bytes::{BufMut, Bytes, BytesMut};
use common::{Cluster, Member, until};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use prost::Message;
use std::path::Path;
use synod_client::{Client, ReadOptions};
use synod_proto::v1::log_client::LogClient;
use synod_proto::v1::subscribe_request::Start;
use synod_proto::v1::{AppendRequest, ReadRequest, SubscribeRequest};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::codegen::http::Request;
use tonic::codegen::tokio_stream::StreamExt;

/// What whoever hurts a member may cost it.
const MOST_MEMORY: u64 = 64 << 20;
/// Streams of a connection.
const STREAMS: usize = 1_024;

/// A connection below gRPC: what is not taken by the test is not taken at all.
pub(super) struct Raw {
    calls: SendRequest<Bytes>,
    serving: JoinHandle<()>,
}

impl Raw {
    pub(super) async fn connect(path: &Path) -> Raw {
        let stream = UnixStream::connect(path).await.unwrap();
        let (calls, connection) = h2::client::handshake(stream).await.unwrap();
        Raw::new(calls, connection)
    }

    pub(super) fn new<S>(calls: SendRequest<Bytes>, connection: h2::client::Connection<S>) -> Raw
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // It ends with the test, or with the member.
        let serving = tokio::spawn(async move { drop(connection.await) });
        Raw { calls, serving }
    }

    /// Begins a call. `None`: the connection takes no more.
    pub(super) async fn call(
        &mut self,
        method: &str,
        ends: bool,
    ) -> Option<(ResponseFuture, SendStream<Bytes>)> {
        let request = Request::post(format!("http://localhost/synod.v1.Log/{method}"));
        let request = request.header("content-type", "application/grpc").header("te", "trailers");
        self.calls = self.calls.clone().ready().await.ok()?;
        self.calls.send_request(request.body(()).unwrap(), ends).ok()
    }
}

/// A message as gRPC frames it.
pub(super) fn framed(message: &impl Message) -> Bytes {
    let mut bytes = prefix(message.encoded_len());
    message.encode(&mut bytes).unwrap();
    bytes.freeze()
}

pub(super) fn prefix(length: usize) -> BytesMut {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap());
    bytes
}

/// The code that a call ended with, and what was said.
async fn outcome(response: ResponseFuture) -> Result<(Code, String), h2::Error> {
    let mut response = response.await?;
    let mut headers = response.headers().clone();
    if !headers.contains_key("grpc-status") {
        let body: &mut RecvStream = response.body_mut();
        while let Some(bytes) = body.data().await {
            body.flow_control().release_capacity(bytes?.len())?;
        }
        headers = body.trailers().await?.unwrap_or_default();
    }
    let status = tonic::Status::from_header_map(&headers).unwrap();
    Ok((status.code(), status.message().to_owned()))
}

/// Runs `hurt` beside a client that appends and reads, and looks at the member's memory.
async fn beside<F: Future>(member: &Member, hurt: F) -> F::Output {
    beside_within(MOST_MEMORY, member, hurt).await
}

/// The same, where it may cost `most`.
pub(super) async fn beside_within<F: Future>(most: u64, member: &Member, hurt: F) -> F::Output {
    let client = member.client();
    let large = || vec![Bytes::from(vec![7; 1 << 20])];
    // What the member needs for itself is there before.
    for _ in 0..8 {
        client.append_with(large(), patient()).await.unwrap();
    }
    let before = member.peak_memory();
    let outcome = hurt.await;
    for _ in 0..4 {
        let appended = client.append_with(large(), patient()).await.unwrap();
        let read = client.read(appended.first_index, ReadOptions::default());
        let read: Vec<_> = read.collect().await;
        assert!(read.iter().all(Result::is_ok) && !read.is_empty(), "{:?}", read.last());
    }
    let more = member.peak_memory() - before;
    assert!(more <= most, "{} MiB more", more >> 20);
    outcome
}

/// Calls whose messages begin and do not go on.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_stop() {
    let cluster = Cluster::of(1).await;
    let member = &cluster.members[0];
    let hurt = async {
        let mut held = Vec::new();
        for _ in 0..4 {
            let mut raw = Raw::connect(&member.socket).await;
            for _ in 0..STREAMS {
                let Some((response, mut body)) = raw.call("Append", false).await else { break };
                let mut bytes = prefix(4 << 20);
                bytes.resize(16 << 10, 7);
                // The member may have refused it already.
                drop(body.send_data(bytes.freeze(), false));
                held.push((tokio::spawn(outcome(response)), body));
            }
            held.shrink_to_fit();
            drop(raw.calls);
        }
        held
    };
    let held = beside(member, hurt).await;
    assert!(held.len() > STREAMS, "{}", held.len());
    let (mut late, mut busy) = (0, 0);
    for (outcome, _body) in held {
        match outcome.await.unwrap() {
            Ok((Code::DeadlineExceeded, _)) => late += 1,
            Ok((Code::ResourceExhausted, said)) if said.contains("BACKPRESSURE") => busy += 1,
            // It was ended before anything could be said.
            Err(error) => assert!(error.is_remote() || error.is_io() || error.is_reset(), "{error}"),
            other => panic!("{other:?}"),
        }
    }
    assert!(late > 0 && busy > 0, "{late} {busy}");
    for name in ["messages_ended", "messages_refused"] {
        assert!(member.metric(&format!("synod_socket_{name}_total")) > 0, "{name}");
    }
}

/// Answers that nobody takes, of more calls than one connection may have.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_not_taken() {
    let cluster = Cluster::of(1).await;
    let member = &cluster.members[0];
    let hurt = async {
        let mut held = Vec::new();
        for _ in 0..2 {
            for (method, message) in [
                ("Read", framed(&ReadRequest { from: 1, ..ReadRequest::default() })),
                ("Subscribe", framed(&SubscribeRequest { start: Some(Start::From(1)), end: None })),
            ] {
                let mut raw = Raw::connect(&member.socket).await;
                for _ in 0..STREAMS {
                    let Some((response, mut body)) = raw.call(method, false).await else { break };
                    drop(body.send_data(message.clone(), true));
                    held.push(response);
                }
                drop(raw.calls);
            }
        }
        assert!(held.len() > STREAMS, "{}", held.len());
        // Each was answered, and is not taken; or it was refused.
        let mut answers = Vec::new();
        for response in held {
            answers.extend(response.await);
        }
        answers
    };
    let answers = beside(member, hurt).await;
    assert!(answers.len() > 8, "{}", answers.len());
    assert!(member.metric("synod_socket_answers_refused_total") > 0);
}

/// Entries that are nothing on the wire and much in memory.
#[tokio::test(flavor = "multi_thread")]
async fn empty_entries_are_counted_before_they_are_decoded() {
    let cluster = Cluster::of(1).await;
    let member = &cluster.members[0];
    let message =
        framed(&AppendRequest { entries: vec![Bytes::new(); 2_000_000], ..AppendRequest::default() });
    let hurt = async {
        let mut raw = Raw::connect(&member.socket).await;
        let mut outcomes = Vec::new();
        for _ in 0..32 {
            let (response, mut body) = raw.call("Append", false).await.unwrap();
            drop(body.send_data(message.clone(), true));
            outcomes.push(outcome(response).await.unwrap());
        }
        outcomes
    };
    for (code, said) in beside(member, hurt).await {
        assert_eq!((code, said.contains("CALL_TOO_LARGE")), (Code::ResourceExhausted, true), "{said}");
    }
    let (client, connection) = (member.client(), tonic_channel(&member.socket).await);
    let mut log = LogClient::new(connection);
    let entries = vec![Bytes::new(); 4_096];
    log.append(AppendRequest { entries, ..AppendRequest::default() }).await.unwrap();
    client.append("goes on").await.unwrap();
}

async fn tonic_channel(path: &Path) -> tonic::transport::Channel {
    synod_client::wire::channel(path).unwrap()
}

/// A thousand connections that never speak, and ones that have and do not answer any more, delay no stop.
#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_delay_no_stop() {
    many_descriptors();
    let (mut cluster, said) = telling().await;
    let member = &mut cluster.members[0];
    let mut held = tokio::task::JoinSet::new();
    let silent = async {
        for number in 0..1_000 {
            let mut stream = UnixStream::connect(&member.socket).await.unwrap();
            if number % 2 == 0 {
                drop(stream.write_all(PREFACE).await);
            }
            held.spawn(closed(stream));
        }
    };
    beside(member, silent).await;
    let mut raw = Raw::connect(&member.socket).await;
    let (response, mut body) = raw.call("Tail", false).await.unwrap();
    body.send_data(prefix(0).freeze(), true).unwrap();
    assert_eq!(outcome(response).await.unwrap().0, Code::Ok);
    // Nobody answers its pings from here on, and nobody closes it.
    raw.serving.abort();
    stops_at_once(member, &said);
    held.join_all().await;
}

/// Connections that do nothing make room for others; where each does something, the next one is told at once.
#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_make_room() {
    many_descriptors();
    let cluster = Cluster::of(1).await;
    let member = &cluster.members[0];
    let mut idle = Vec::new();
    for _ in 0..1_100 {
        let client = Client::connect(&member.socket).unwrap();
        client.status().await.unwrap();
        idle.push(client);
    }
    let mut busy = Vec::new();
    let refused = loop {
        let mut log = LogClient::new(tonic_channel(&member.socket).await);
        match log.subscribe(SubscribeRequest { start: Some(Start::From(1)), end: None }).await {
            Ok(pages) => busy.push((log, pages)),
            Err(status) => break status,
        }
        assert!(busy.len() < 1_000);
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("connections"), "{refused}");
    assert!(member.metric("synod_socket_connections_displaced_total") > 0);
    assert!(member.metric("synod_socket_connections_refused_total") > 0);
    drop(busy.pop());
    until("there is room again", || async { member.client().status().await }).await;
}

/// Users that are not among the allowed ones are told so, and their connections do not stay.
#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut member = Member::new(dir.path(), "n0");
    let stranger = rustix::process::getuid().as_raw() + 1;
    std::fs::write(dir.path().join("peers"), "").unwrap();
    member.extra = vec![format!("--allowed-uids={stranger}")];
    member.start();
    let status = until("the stranger is refused", || async {
        let mut log = LogClient::new(tonic_channel(&member.socket).await);
        match log.append(AppendRequest { entries: vec![Bytes::new()], ..AppendRequest::default() }).await {
            Err(status) if status.code() == Code::PermissionDenied => Ok(status),
            other => Err(other),
        }
    })
    .await;
    assert!(status.message().contains("add it to the allowed ones"), "{status}");
    let mut raw = Raw::connect(&member.socket).await;
    let (response, _body) = raw.call("Append", false).await.unwrap();
    assert_eq!(outcome(response).await.unwrap().0, Code::PermissionDenied);
    // The connection ends, though nobody closes it on this side.
    raw.serving.await.unwrap();
    assert!(raw.calls.ready().await.is_err());
    assert!(member.metric("synod_socket_connections_refused_total") > 0);
}
