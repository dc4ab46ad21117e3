//! `journal write`: a writer for tests of the log itself, whose every outcome is on record.

use crate::output::{json_line, now_ms, sha256, stop_signal};
use bytes::Bytes;
use clap::Args;
use futures::stream::{FuturesUnordered, StreamExt};
use serde::Serialize;
use std::time::Duration;
use synod_client::{AppendError, AppendOptions, Client};
use tokio::time::{Instant, MissedTickBehavior, interval};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The writer's name, part of every entry; keep it free of spaces.
    #[arg(long, value_name = "W")]
    id: String,
    /// Stop after this many entries.
    #[arg(long, value_name = "N", required_unless_present = "until_signal")]
    count: Option<u64>,
    /// Go on until SIGTERM or SIGINT, or until --count entries.
    #[arg(long)]
    until_signal: bool,
    /// Entries a second at most; without it as fast as they are acknowledged.
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// Unanswered appends at a time.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    in_flight: u16,
    /// How long to try each append, in seconds. Only what was certainly not appended is tried again.
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    timeout: u64,
}

#[derive(Serialize)]
struct Line<'a> {
    writer: &'a str,
    seq: u64,
    index: Option<u64>,
    sha256: String,
    outcome: &'static str,
    at_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

pub(crate) async fn run(client: Client, options: Options) -> anyhow::Result<()> {
    let run = format!("{}-{}", now_ms(), std::process::id());
    let most = options.count.unwrap_or(u64::MAX);
    let append = AppendOptions { timeout: Duration::from_secs(options.timeout), ..Default::default() };
    let mut pace = options.rate.map(|rate| {
        let mut pace = interval(Duration::from_secs(1) / rate);
        // A writer that was held up does not make up for it in a burst.
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        pace
    });
    let mut stop = std::pin::pin!(stop_signal());
    let mut stopping = false;
    let mut seq = 0;
    let mut tally = [0_u64; 3];
    let mut under_way = FuturesUnordered::new();
    let began = Instant::now();
    while !under_way.is_empty() || (seq < most && !stopping) {
        let room = under_way.len() < usize::from(options.in_flight) && seq < most && !stopping;
        tokio::select! {
            _ = &mut stop, if !stopping => stopping = true,
            Some((seq, sha256, outcome)) = under_way.next(), if !under_way.is_empty() => {
                report(&options.id, seq, sha256, outcome, &mut tally)?;
            }
            () = tick(&mut pace), if room => {
                seq += 1;
                let payload = Bytes::from(format!("writer={} seq={seq} run={run}", options.id));
                let client = &client;
                under_way.push(async move {
                    let digest = sha256(&payload);
                    (seq, digest, client.append_with(vec![payload], append).await)
                });
            }
        }
    }
    let [ok, unknown, refused] = tally;
    let seconds = began.elapsed().as_secs_f64();
    eprintln!("{ok} acknowledged, {unknown} unknown, {refused} refused in {seconds:.1} s");
    Ok(())
}

async fn tick(pace: &mut Option<tokio::time::Interval>) {
    if let Some(pace) = pace {
        pace.tick().await;
    }
}

fn report(
    writer: &str,
    seq: u64,
    sha256: String,
    outcome: Result<synod_client::Appended, AppendError>,
    tally: &mut [u64; 3],
) -> anyhow::Result<()> {
    let (index, outcome, slot, reason) = match outcome {
        Ok(appended) => (Some(appended.first_index), "ok", 0, None),
        Err(AppendError::Unknown(error)) => (None, "unknown", 1, Some(error.reason)),
        Err(AppendError::Refused(error)) => (None, "refused", 2, Some(error.reason)),
        Err(AppendError::UnexpectedIndex { .. }) => (None, "refused", 2, Some("expected-index".to_owned())),
    };
    tally[slot] += 1;
    json_line(&Line { writer, seq, index, sha256, outcome, at_ms: now_ms(), reason })
}
