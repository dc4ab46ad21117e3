//! Clients that ask for much, with windows for all of it, and take nothing off their sockets.

use super::common::{Member, until};
use super::local::{Raw, beside_within, framed, prefix};
use super::{patient, stops_at_once, telling};
use bytes::Bytes;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use synod_client::ReadOptions;
use synod_proto::v1::subscribe_request::Start;
use synod_proto::v1::{ReadRequest, SubscribeRequest};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use tonic::codegen::tokio_stream::StreamExt;

/// What any stream and any connection may carry before its reader says that it has taken something.
const WIDE: u32 = 1 << 30;
/// What 4,096 calls may cost a member, most of them refused and unheard: their answers, and what each call takes itself, which
/// is not counted yet (docs: reliability.md, "Bounds").
const MOST_MEMORY: u64 = 160 << 20;
/// Calls of a connection.
const CALLS: usize = 256;
/// Connections of each kind.
const CONNECTIONS: usize = 8;

/// A stream that is written to, and never read.
struct Deaf(UnixStream);

impl AsyncRead for Deaf {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Deaf {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// A connection with wide windows, of which nothing is ever read.
async fn deaf(path: &Path) -> Raw {
    let stream = Deaf(UnixStream::connect(path).await.unwrap());
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(WIDE)
        .initial_connection_window_size(WIDE)
        .max_frame_size((1 << 24) - 1)
        .initial_max_send_streams(CALLS);
    let (calls, connection) = builder.handshake(stream).await.unwrap();
    Raw::new(calls, connection)
}

/// Entries of which many pages and parts of pages are smaller than what a transport sets aside for a stream.
async fn fill(member: &Member) {
    let client = member.client();
    for number in 0..32_u8 {
        let entries = (0..4).map(|_| Bytes::from(vec![number; 250 << 10])).collect();
        client.append_with(entries, patient()).await.unwrap();
    }
}

fn reads() -> Bytes {
    framed(&ReadRequest { from: 1, max_bytes: 300 << 10, ..ReadRequest::default() })
}

fn subscriptions() -> Bytes {
    framed(&SubscribeRequest { start: Some(Start::From(1)), end: None })
}

/// Opens calls on deaf connections, and waits until the member has answered each or closed its connection.
async fn ask(member: &Member, held: &mut Vec<Box<dyn std::any::Any + Send>>) {
    let mut sent = 0;
    for _ in 0..CONNECTIONS {
        for (method, message) in [("Read", reads()), ("Subscribe", subscriptions())] {
            let mut raw = deaf(&member.socket).await;
            for _ in 0..CALLS {
                let Some((response, mut body)) = raw.call(method, false).await else { break };
                drop(body.send_data(message.clone(), true));
                held.push(Box::new((response, body)));
            }
            sent += CALLS;
            held.push(Box::new(raw));
        }
    }
    until("each call is answered, or its connection closed", || async {
        let begun: u64 = ["Log.Read", "Log.Subscribe"].iter().map(|call| answered(member, call)).sum();
        let closed = number(member, "synod_socket_connections_stalled_total ");
        let seen = begun + closed * CALLS as u64;
        if seen >= sent as u64 { Ok(()) } else { Err((begun, closed, sent)) }
    })
    .await;
}

fn answered(member: &Member, call: &str) -> u64 {
    number(member, &format!("synod_call_seconds_count{{call=\"{call}\"}} "))
}

/// 0 where it is not told yet.
fn number(member: &Member, name: &str) -> u64 {
    let text = member.metrics();
    text.lines().find_map(|line| line.strip_prefix(name)?.parse().ok()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_to_deaf_clients_stay_bounded() {
    let (mut cluster, said) = telling().await;
    let member = &mut cluster.members[0];
    fill(member).await;
    let mut held = Vec::new();
    beside_within(MOST_MEMORY, member, ask(member, &mut held)).await;
    stops_at_once(member, &said);
}

/// Few calls, so that there is memory for all: their clients take nothing, or take all and give no window, or do not end
/// what they began to say.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_are_waited_for_delay_no_stop() {
    let (mut cluster, said) = telling().await;
    let member = &mut cluster.members[0];
    fill(member).await;
    let mut held: Vec<Box<dyn std::any::Any + Send>> = Vec::new();
    for mut raw in [deaf(&member.socket).await, Raw::connect(&member.socket).await] {
        for (method, message) in [("Read", reads()), ("Subscribe", subscriptions())] {
            let (response, mut body) = raw.call(method, false).await.unwrap();
            body.send_data(message, true).unwrap();
            held.push(Box::new((response, body)));
        }
        let (response, mut body) = raw.call("Append", false).await.unwrap();
        body.send_data(prefix(1 << 10).freeze(), false).unwrap();
        held.push(Box::new((response, body)));
        held.push(Box::new(raw));
    }
    for request in [
        "GET /v1/entries/stream HTTP/1.1\r\nhost: s\r\n\r\n",
        "GET /v1/entries?from=1 HTTP/1.1\r\nhost: s\r\n\r\n",
        "POST /v1/entries HTTP/1.1\r\nhost: s\r\ncontent-length: 10\r\n\r\nhalf",
    ] {
        let mut stream = UnixStream::connect(&member.socket).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        held.push(Box::new(stream));
    }
    until("all calls are open", || async {
        let open = member.metric("synod_calls_open");
        if open >= 9 { Ok(()) } else { Err(open) }
    })
    .await;
    // Others are served meanwhile.
    let client = member.client();
    let appended = client.append_with(vec![Bytes::from_static(b"on")], patient()).await.unwrap();
    let read: Vec<_> = client.read(appended.first_index, ReadOptions::default()).collect().await;
    assert!(read.iter().all(Result::is_ok) && !read.is_empty(), "{:?}", read.last());
    drop(client);
    stops_at_once(member, &said);
}
