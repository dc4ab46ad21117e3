//! Single calls, closed loop: each client has one under way.

use super::http::Http;
use super::{Figures, Options, cluster, micros, report};
use anyhow::bail;
use bytes::Bytes;
use futures::future::BoxFuture;
use std::path::{Path, PathBuf};
use std::time::Duration;
use synod_proto::v1::log_client::LogClient;
use synod_proto::v1::subscribe_request::{End, Start};
use synod_proto::v1::{AppendRequest, ReadRequest, SubscribeRequest};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::transport::Channel;

/// Bytes of an entry.
const SIZE: usize = 100;
/// gRPC clients share a connection with so many others.
const SHARED: usize = 8;

#[derive(Clone, Copy, Debug)]
enum What {
    Append,
    Read,
    Subscribe,
}

/// One client.
enum Client {
    Grpc(What, LogClient<Channel>),
    Http(What, Http, PathBuf),
}

impl Client {
    fn once(&mut self) -> BoxFuture<'_, anyhow::Result<()>> {
        Box::pin(async move {
            match self {
                Client::Grpc(What::Append, log) => {
                    let entries = vec![Bytes::from_static(&[b'x'; SIZE])];
                    log.append(AppendRequest { entries, ..AppendRequest::default() }).await?;
                }
                Client::Grpc(What::Read, log) => {
                    let request = ReadRequest { from: 1, limit: 1, ..ReadRequest::default() };
                    if log.read(request).await?.into_inner().entries.len() != 1 {
                        bail!("not one entry came");
                    }
                }
                Client::Grpc(What::Subscribe, log) => {
                    let (start, end) = (Some(Start::From(1)), Some(End::Until(1)));
                    let mut messages = log.subscribe(SubscribeRequest { start, end }).await?.into_inner();
                    while messages.message().await?.is_some_and(|message| message.entries.is_empty()) {}
                }
                Client::Http(What::Append, http, _) => {
                    http.call("POST", "/v1/entries", &[b'x'; SIZE]).await?;
                }
                Client::Http(What::Read, http, _) => {
                    http.call("GET", "/v1/entries?from=1&limit=1", b"").await?;
                }
                Client::Http(What::Subscribe, _, socket) => {
                    Http::connect(socket).await?.first_event("/v1/entries/stream?from=1").await?;
                }
            }
            Ok(())
        })
    }
}

async fn client(mut client: Client, (begin, end): (Instant, Instant)) -> (Vec<u32>, u64) {
    let (mut latencies, mut failed) = (Vec::new(), 0);
    loop {
        let sent = Instant::now();
        if sent >= end {
            return (latencies, failed);
        }
        match client.once().await {
            Ok(()) if sent >= begin => latencies.push(micros(sent)),
            Ok(()) => {}
            Err(error) => {
                failed += 1;
                if failed == 1 {
                    eprintln!("a call failed: {error}");
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

async fn measured(all: Vec<Client>, span: Duration) -> Figures {
    let begin = Instant::now() + Duration::from_millis(500);
    let window = (begin, begin + span);
    let mut clients: JoinSet<_> = all.into_iter().map(|one| client(one, window)).collect();
    let (mut latencies, mut failed) = (Vec::new(), 0);
    while let Some(done) = clients.join_next().await {
        let (more, failures) = done.unwrap_or_default();
        latencies.extend(more);
        failed += failures;
    }
    Figures::of(latencies, failed, span)
}

fn grpc(what: What, socket: &Path, count: usize) -> anyhow::Result<Vec<Client>> {
    let channels: Result<Vec<_>, _> =
        (0..count.div_ceil(SHARED)).map(|_| synod_client::wire::channel(socket)).collect();
    let channels = channels?;
    Ok((0..count).map(|n| Client::Grpc(what, LogClient::new(channels[n / SHARED].clone()))).collect())
}

async fn http(what: What, socket: &Path, count: usize) -> anyhow::Result<Vec<Client>> {
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(Client::Http(what, Http::connect(socket).await?, socket.to_owned()));
    }
    Ok(clients)
}

/// The p99 of appends by a few clients, in milliseconds.
pub(super) async fn appends(socket: &Path, span: Duration) -> anyhow::Result<Figures> {
    Ok(measured(grpc(What::Append, socket, SHARED)?, span).await)
}

pub(super) async fn run(options: &Options) -> anyhow::Result<()> {
    let cluster = cluster(options).await?;
    let socket = &cluster.members[cluster.leader().await?].socket;
    synod_client::Client::connect(socket)?.append("the first entry").await?;
    for what in [What::Append, What::Read, What::Subscribe] {
        for count in &options.clients {
            let name = |way: &str| format!("{what:?}, {way}, {count} clients").to_lowercase();
            report(&name("gRPC"), &measured(grpc(what, socket, *count)?, options.span()).await)?;
            report(&name("HTTP"), &measured(http(what, socket, *count).await?, options.span()).await)?;
        }
    }
    Ok(())
}
