//! A load generator for a member's socket, and figures of the storage under it.
//!
//! Closed loop: each client has one call under way. A run has a warm-up that is not counted; latencies are those
//! of single calls, from the call to its answer.
#![forbid(unsafe_code)]

mod socket;
mod storage;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use synod_client::{Client, IdempotencyKey, Repeats};
use synod_proto::v1::consistency::Kind;
use synod_proto::v1::log_client::LogClient;
use synod_proto::v1::{self, AppendRequest, ReadRequest};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::transport::Channel;

/// Measure what a cluster does. To start one: `synod-sidecar dev`.
#[derive(Debug, Parser)]
#[command(name = "synod-bench", version, max_term_width = 80)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Append for a while, with a number of clients at a time.
    Append(AppendOptions),
    /// Read single entries for a while, with a number of clients at a time.
    Read(ReadOptions),
    /// Start sidecars and measure what their sockets do.
    #[command(subcommand)]
    Socket(socket::Command),
    /// Start sidecars and measure their storage.
    #[command(subcommand)]
    Storage(storage::Command),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// A gRPC call an append.
    Unary,
    /// The SDK's stream, which all clients share.
    Stream,
}

/// By what the log tells a repeat of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Identity {
    /// A session that all clients of a socket share: exactly once, the SDK's default.
    Session,
    /// A key for each append.
    Key,
    /// Nothing.
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Freshness {
    /// By the leader's lease, or a round of its own.
    Linearizable,
    /// What the member has applied.
    Sequential,
    /// At most a second old.
    StaleBounded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// What every run needs.
#[derive(Clone, Debug, Args)]
struct Load {
    /// The sockets; clients are spread over them.
    #[arg(long, env = "SYNOD_SOCKET", required = true, value_delimiter = ',', value_name = "PATH")]
    socket: Vec<PathBuf>,
    /// Calls under way at a time.
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// Connections to each socket; not for streams.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    connections: u32,
    /// How long to measure, in seconds.
    #[arg(long, default_value_t = 10, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// How long to warm up before, in seconds.
    #[arg(long, default_value_t = 2, value_name = "SECONDS")]
    warm_up: u64,
    /// text for people, json for programs.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Debug, Args)]
struct AppendOptions {
    #[command(flatten)]
    load: Load,
    /// How to append.
    #[arg(long, value_enum, default_value_t = Mode::Stream)]
    mode: Mode,
    /// How a repeat would be told; stream only.
    #[arg(long, value_enum, default_value_t = Identity::Session)]
    identity: Identity,
    /// Bytes of an entry.
    #[arg(long, default_value_t = 100, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    size: u32,
    /// Entries of one call.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4_096))]
    batch: u32,
}

#[derive(Clone, Debug, Args)]
struct ReadOptions {
    #[command(flatten)]
    load: Load,
    /// How fresh.
    #[arg(long, value_enum, default_value_t = Freshness::Linearizable)]
    consistency: Freshness,
}

#[derive(Debug, Serialize)]
struct Outcome {
    what: String,
    clients: u32,
    entry_bytes: u32,
    batch: u32,
    seconds: f64,
    calls: u64,
    failed: u64,
    entries_per_second: f64,
    p50_ms: f64,
    p90_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

/// What one client does again and again.
#[derive(Clone)]
enum Work {
    Unary(LogClient<Channel>, Vec<Bytes>),
    Stream(Client, Vec<Bytes>, Identity, Arc<AtomicU64>),
    Read(LogClient<Channel>, ReadRequest),
}

impl Work {
    async fn once(&mut self) -> Result<(), String> {
        match self {
            Work::Unary(log, entries) => {
                let request = AppendRequest { entries: entries.clone(), ..AppendRequest::default() };
                log.append(request).await.map(drop).map_err(|status| status.message().to_owned())
            }
            Work::Stream(client, entries, identity, next_key) => {
                let repeats = match identity {
                    Identity::Session => Repeats::Session,
                    Identity::None => Repeats::Untold,
                    Identity::Key => {
                        let number = next_key.fetch_add(1, Ordering::Relaxed);
                        let key =
                            [std::process::id().to_be_bytes().as_slice(), &number.to_be_bytes()].concat();
                        Repeats::Key(IdempotencyKey::new(key))
                    }
                };
                let how = synod_client::AppendOptions { repeats, ..Default::default() };
                let outcome = client.append_with(entries.clone(), how).await;
                outcome.map(drop).map_err(|error| error.to_string())
            }
            Work::Read(log, request) => {
                let said = |status: tonic::Status| status.message().to_owned();
                let entries = log.read(*request).await.map_err(said)?.into_inner().entries.len();
                if entries == 1 { Ok(()) } else { Err(format!("{entries} entries came, not one")) }
            }
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Append(options) => append(options).await,
        Command::Read(options) => read(options).await,
        Command::Socket(command) => socket::run(command).await,
        Command::Storage(command) => storage::run(command).await,
    }
}

/// Connections to the sockets, as many as the load says for each.
fn connections(load: &Load) -> anyhow::Result<Vec<LogClient<Channel>>> {
    let mut all = Vec::new();
    for _ in 0..load.connections.min(load.clients) {
        for socket in &load.socket {
            all.push(LogClient::new(synod_client::wire::channel(socket)?));
        }
    }
    Ok(all)
}

async fn append(options: AppendOptions) -> anyhow::Result<()> {
    let AppendOptions { load, mode, identity, size, batch } = options;
    let entry = Bytes::from(vec![b'x'; size as usize]);
    let entries = vec![entry; batch as usize];
    let (what, all) = match mode {
        Mode::Unary => {
            let works = connections(&load)?.into_iter().map(|log| Work::Unary(log, entries.clone()));
            ("append, unary".to_owned(), works.collect())
        }
        Mode::Stream => {
            let keys = Arc::new(AtomicU64::new(0));
            let mut all = Vec::new();
            for socket in &load.socket {
                let client = Client::connect(socket)?;
                all.push(Work::Stream(client, entries.clone(), identity, keys.clone()));
            }
            (format!("append, stream, {identity:?}").to_lowercase(), all)
        }
    };
    run(&load, all, &Shape { what, entry_bytes: size, batch }).await
}

async fn read(options: ReadOptions) -> anyhow::Result<()> {
    let ReadOptions { load, consistency } = options;
    let first = load.socket.first().context("no socket")?;
    let from = Client::connect(first)?.append("read me").await?.first_index;
    let kind = match consistency {
        Freshness::Linearizable => Kind::Linearizable(v1::Linearizable {}),
        Freshness::Sequential => Kind::Sequential(v1::Sequential { at_least: from }),
        Freshness::StaleBounded => {
            let max = Some(synod_proto::duration(Duration::from_secs(1)));
            Kind::StaleBounded(v1::StaleBounded { max })
        }
    };
    let consistency_wanted = Some(v1::Consistency { kind: Some(kind) });
    let request = ReadRequest { from, limit: 1, consistency: consistency_wanted, ..ReadRequest::default() };
    let all = connections(&load)?.into_iter().map(|log| Work::Read(log, request)).collect();
    let what = format!("read, {consistency:?}").to_lowercase();
    run(&load, all, &Shape { what, entry_bytes: 7, batch: 1 }).await
}

/// What is measured, for the report.
struct Shape {
    what: String,
    entry_bytes: u32,
    batch: u32,
}

async fn run(load: &Load, all: Vec<Work>, shape: &Shape) -> anyhow::Result<()> {
    let mut first = all.first().context("no socket")?.clone();
    first.once().await.map_err(anyhow::Error::msg)?;
    drop(first);
    let failed = Arc::new(AtomicU64::new(0));
    let begin = Instant::now() + Duration::from_secs(load.warm_up);
    let end = begin + Duration::from_secs(load.seconds);
    let mut clients = JoinSet::new();
    for number in 0..load.clients as usize {
        let (work, failed) = (all[number % all.len()].clone(), failed.clone());
        clients.spawn(async move { client(work, (begin, end), &failed).await });
    }
    drop(all);
    let mut latencies: Vec<u32> = clients.join_all().await.into_iter().flatten().collect();
    if latencies.is_empty() {
        bail!("no call was answered; {} failed", failed.load(Ordering::Relaxed));
    }
    latencies.sort_unstable();
    report(load, shape, &latencies, failed.load(Ordering::Relaxed))
}

/// Latencies in microseconds.
async fn client(mut work: Work, (begin, end): (Instant, Instant), failed: &AtomicU64) -> Vec<u32> {
    let mut latencies = Vec::new();
    loop {
        let sent = Instant::now();
        if sent >= end {
            return latencies;
        }
        let outcome = work.once().await;
        let counts = sent >= begin;
        match outcome {
            Ok(()) if counts => latencies.push(u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX)),
            Ok(()) => {}
            Err(error) => {
                if failed.fetch_add(1, Ordering::Relaxed) == 0 {
                    eprintln!("a call failed: {error}");
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

fn report(load: &Load, shape: &Shape, latencies: &[u32], failed: u64) -> anyhow::Result<()> {
    let at = |permille: usize| {
        let position = (latencies.len() * permille / 1_000).min(latencies.len() - 1);
        f64::from(latencies[position]) / 1_000.0
    };
    let seconds = load.seconds as f64;
    let outcome = Outcome {
        what: shape.what.clone(),
        clients: load.clients,
        entry_bytes: shape.entry_bytes,
        batch: shape.batch,
        seconds,
        calls: latencies.len() as u64,
        failed,
        entries_per_second: latencies.len() as f64 * f64::from(shape.batch) / seconds,
        p50_ms: at(500),
        p90_ms: at(900),
        p99_ms: at(990),
        max_ms: at(1_000),
    };
    if load.output == Format::Json {
        println!("{}", serde_json::to_string(&outcome)?);
        return Ok(());
    }
    println!(
        "{}, {} clients: {:.0} entries/s, p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, {} failed",
        outcome.what,
        outcome.clients,
        outcome.entries_per_second,
        outcome.p50_ms,
        outcome.p90_ms,
        outcome.p99_ms,
        outcome.failed
    );
    Ok(())
}
