//! A load generator for a member's socket.
//!
//! Closed loop: each client has one append under way. A run has a warm-up that is not counted; latencies are
//! those of single appends, from the call to its acknowledgement.
#![forbid(unsafe_code)]

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use synod_client::Client;
use synod_proto::v1::AppendRequest;
use synod_proto::v1::log_client::LogClient;
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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// A gRPC call an append.
    Unary,
    /// The SDK's stream, which all clients share.
    Stream,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(Clone, Debug, Args)]
struct AppendOptions {
    /// The sockets; clients are spread over them.
    #[arg(long, env = "SYNOD_SOCKET", required = true, value_delimiter = ',', value_name = "PATH")]
    socket: Vec<PathBuf>,
    /// Appends under way at a time.
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// Connections to each socket; unary mode only.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    connections: u32,
    /// How to append.
    #[arg(long, value_enum, default_value_t = Mode::Stream)]
    mode: Mode,
    /// Bytes of an entry.
    #[arg(long, default_value_t = 100, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    size: u32,
    /// Entries of one call.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4_096))]
    batch: u32,
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

#[derive(Debug, Serialize)]
struct Outcome {
    mode: &'static str,
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

#[derive(Clone)]
enum Appender {
    Unary(LogClient<Channel>),
    Stream(Client),
}

impl Appender {
    async fn append(&mut self, entries: Vec<Bytes>) -> Result<(), String> {
        match self {
            Appender::Unary(log) => {
                let request = AppendRequest { entries, ..AppendRequest::default() };
                log.append(request).await.map(drop).map_err(|status| status.message().to_owned())
            }
            Appender::Stream(client) => {
                client.append_many(entries).await.map(drop).map_err(|error| error.to_string())
            }
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Append(options) => append(options).await,
    }
}

fn appenders(options: &AppendOptions) -> anyhow::Result<Vec<Appender>> {
    let mut all = Vec::new();
    for socket in &options.socket {
        match options.mode {
            Mode::Stream => all.push(Appender::Stream(Client::connect(socket)?)),
            Mode::Unary => {
                for _ in 0..options.connections.min(options.clients) {
                    all.push(Appender::Unary(LogClient::new(synod_client::channel(socket)?)));
                }
            }
        }
    }
    Ok(all)
}

async fn append(options: AppendOptions) -> anyhow::Result<()> {
    let mut appenders = appenders(&options)?;
    let mut first = appenders.first().context("no socket")?.clone();
    first.append(vec![Bytes::from_static(b"bench")]).await.map_err(anyhow::Error::msg)?;
    let count = appenders.len();
    let failed = Arc::new(AtomicU64::new(0));
    let begin = Instant::now() + Duration::from_secs(options.warm_up);
    let end = begin + Duration::from_secs(options.seconds);
    let mut clients = JoinSet::new();
    for number in 0..options.clients as usize {
        let appender = appenders[number % count].clone();
        let failed = failed.clone();
        let options = options.clone();
        clients.spawn(async move { client(appender, number, &options, (begin, end), &failed).await });
    }
    appenders.clear();
    let mut latencies: Vec<u32> = clients.join_all().await.into_iter().flatten().collect();
    if latencies.is_empty() {
        bail!("no append was acknowledged; {} failed", failed.load(Ordering::Relaxed));
    }
    latencies.sort_unstable();
    report(&options, &latencies, failed.load(Ordering::Relaxed))
}

/// Latencies in microseconds.
async fn client(
    mut appender: Appender,
    number: usize,
    options: &AppendOptions,
    (begin, end): (Instant, Instant),
    failed: &AtomicU64,
) -> Vec<u32> {
    let mut latencies = Vec::new();
    let byte = b'a' + u8::try_from(number % 26).unwrap_or(0);
    let entry = Bytes::from(vec![byte; options.size as usize]);
    loop {
        let sent = Instant::now();
        if sent >= end {
            return latencies;
        }
        let entries = (0..options.batch).map(|_| entry.clone()).collect();
        let outcome = appender.append(entries).await;
        let counts = sent >= begin;
        match outcome {
            Ok(()) if counts => latencies.push(u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX)),
            Ok(()) => {}
            Err(error) => {
                if failed.fetch_add(1, Ordering::Relaxed) == 0 {
                    eprintln!("an append failed: {error}");
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

fn report(options: &AppendOptions, latencies: &[u32], failed: u64) -> anyhow::Result<()> {
    let at = |permille: usize| {
        let position = (latencies.len() * permille / 1_000).min(latencies.len() - 1);
        f64::from(latencies[position]) / 1_000.0
    };
    let seconds = options.seconds as f64;
    let outcome = Outcome {
        mode: if options.mode == Mode::Unary { "unary" } else { "stream" },
        clients: options.clients,
        entry_bytes: options.size,
        batch: options.batch,
        seconds,
        calls: latencies.len() as u64,
        failed,
        entries_per_second: latencies.len() as f64 * f64::from(options.batch) / seconds,
        p50_ms: at(500),
        p90_ms: at(900),
        p99_ms: at(990),
        max_ms: at(1_000),
    };
    if options.output == Format::Json {
        println!("{}", serde_json::to_string(&outcome)?);
        return Ok(());
    }
    println!(
        "{} {:>4} clients: {:>8.0} entries/s, p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, {} failed",
        outcome.mode,
        outcome.clients,
        outcome.entries_per_second,
        outcome.p50_ms,
        outcome.p90_ms,
        outcome.p99_ms,
        outcome.failed
    );
    Ok(())
}
