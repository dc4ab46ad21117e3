//! What the socket does for applications, on a cluster of three real sidecars on loopback.

mod calls;
mod fan_out;
mod hostile;
mod http;
mod lines;
mod order;
mod repeats;

use crate::storage::cluster::{Cluster, Place};
use clap::{Args, Subcommand};
use serde::Serialize;
use std::time::Duration;
use tokio::time::Instant;

/// Figures of the socket.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// All of the below, one after the other.
    All(Options),
    /// Append, read and subscribe through gRPC and HTTP/JSON, with 1, 64 and 256 clients.
    Calls(Options),
    /// Lines through the `append` command.
    Lines(Options),
    /// One writer at full rate, to 10 and 100 subscribers.
    FanOut(Options),
    /// Appends that overtake each other, with 10,000 under way.
    Order(Options),
    /// Appends that stand twice, after many retries across changes of the leader.
    Repeats(Options),
    /// What a client notices of 1,000 hostile connections beside it, and what they cost.
    Hostile(Options),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    place: Place,
    /// How long each figure is measured, in seconds.
    #[arg(long, default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Clients at a time.
    #[arg(long, value_delimiter = ',', default_value = "1,64,256", value_name = "N")]
    clients: Vec<usize>,
    /// Lines for the command.
    #[arg(long, default_value_t = 200_000, value_name = "N")]
    lines: u64,
    /// Retries in all.
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    retries: u64,
}

impl Options {
    fn span(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::All(options) => {
            calls::run(&options).await?;
            lines::run(&options).await?;
            fan_out::run(&options).await?;
            order::run(&options).await?;
            repeats::run(&options).await?;
            hostile::run(&options).await
        }
        Command::Calls(options) => calls::run(&options).await,
        Command::Lines(options) => lines::run(&options).await,
        Command::FanOut(options) => fan_out::run(&options).await,
        Command::Order(options) => order::run(&options).await,
        Command::Repeats(options) => repeats::run(&options).await,
        Command::Hostile(options) => hostile::run(&options).await,
    }
}

async fn cluster(options: &Options) -> anyhow::Result<Cluster> {
    Cluster::start(&options.place).await
}

/// What some clients did for a while.
#[derive(Debug, Serialize)]
struct Figures {
    calls: usize,
    failed: u64,
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

impl Figures {
    fn of(mut latencies: Vec<u32>, failed: u64, span: Duration) -> Figures {
        latencies.sort_unstable();
        let at = |permille: usize| {
            let place = (latencies.len() * permille / 1_000).min(latencies.len().saturating_sub(1));
            latencies.get(place).map_or(0.0, |micros| f64::from(*micros) / 1_000.0)
        };
        Figures {
            calls: latencies.len(),
            failed,
            per_second: latencies.len() as f64 / span.as_secs_f64(),
            p50_ms: at(500),
            p99_ms: at(990),
        }
    }
}

/// One line of JSON a figure, so that scripts and people can read it.
fn report(what: &str, figures: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::json!({ "what": what, "figures": serde_json::to_value(figures)? }));
    Ok(())
}

fn micros(began: Instant) -> u32 {
    u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX)
}
