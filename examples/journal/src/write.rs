//! `journal write`: a writer for tests of the log itself, whose every outcome is on record.

use crate::output::{json_line, now_ms, sha256, stop_signal};
use bytes::Bytes;
use clap::Args;
use futures::stream::{FuturesUnordered, StreamExt};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::time::Duration;
use synod_client::{AppendError, AppendOptions, Client, IdempotencyKey, Repeats};
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
    /// How long to try each append, in seconds; each stands once, however often it has to be tried.
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    timeout: u64,
    /// The name of this run, part of every entry [default: the time and the process].
    #[arg(long, value_name = "NAME")]
    run: Option<String>,
    /// Give each entry a key of its own, so that a writer that was killed can be started again with the same --id
    /// and --run: what it had appended before stands once still.
    #[arg(long, requires = "run")]
    keyed: bool,
    /// The first entry's number: with --keyed, the first whose outcome is not known from an earlier start.
    #[arg(long, default_value_t = 1, value_name = "SEQ", value_parser = clap::value_parser!(u64).range(1..))]
    first: u64,
    /// An index that was in the log before the run was started for the first time.
    #[arg(long, default_value_t = 0, value_name = "INDEX", requires = "keyed")]
    minted_at: u64,
}

impl Options {
    /// How to append the entry `seq`; `last` is the last index that is known of.
    fn how(&self, seq: u64, payload: &[u8], last: u64) -> AppendOptions {
        let repeats = if self.keyed {
            // An earlier start may have tried as many as it had under way; the others are new now.
            let again = seq < self.first + u64::from(self.in_flight);
            let index = if again { self.minted_at } else { last.max(self.minted_at) };
            Repeats::Key(IdempotencyKey::new(Sha256::digest(payload).to_vec()).minted_at(index))
        } else {
            Repeats::Session
        };
        AppendOptions { timeout: Duration::from_secs(self.timeout), repeats, ..Default::default() }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    writer: &'a str,
    seq: u64,
    index: Option<u64>,
    sha256: String,
    outcome: &'static str,
    at_ms: u64,
    /// An earlier try, or an earlier start, had appended it.
    repeated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

pub(crate) async fn run(client: Client, options: Options) -> anyhow::Result<()> {
    let run = options.run.clone().unwrap_or_else(|| format!("{}-{}", now_ms(), std::process::id()));
    let most = options.count.map_or(u64::MAX, |count| count.saturating_add(options.first - 1));
    let mut pace = options.rate.map(|rate| {
        let mut pace = interval(Duration::from_secs(1) / rate);
        // A writer that was held up does not make up for it in a burst.
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        pace
    });
    let mut stop = std::pin::pin!(stop_signal());
    let mut stopping = false;
    let mut seq = options.first - 1;
    let mut last = 0;
    let mut tally = [0_u64; 3];
    let mut under_way = FuturesUnordered::new();
    let began = Instant::now();
    while !under_way.is_empty() || (seq < most && !stopping) {
        let room = under_way.len() < usize::from(options.in_flight) && seq < most && !stopping;
        tokio::select! {
            _ = &mut stop, if !stopping => stopping = true,
            Some((seq, sha256, outcome)) = under_way.next(), if !under_way.is_empty() => {
                last = last.max(report(&options.id, seq, sha256, outcome, &mut tally)?);
            }
            () = tick(&mut pace), if room => {
                seq += 1;
                let payload = Bytes::from(format!("writer={} seq={seq} run={run}", options.id));
                let how = options.how(seq, &payload, last);
                let client = &client;
                under_way.push(async move {
                    let digest = sha256(&payload);
                    (seq, digest, client.append_with(vec![payload], how).await)
                });
            }
        }
    }
    drop(under_way);
    client.close().await;
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

/// The last index that the outcome tells of; 0: none.
fn report(
    writer: &str,
    seq: u64,
    sha256: String,
    outcome: Result<synod_client::Appended, AppendError>,
    tally: &mut [u64; 3],
) -> anyhow::Result<u64> {
    let (last, repeated) = outcome.as_ref().map_or((0, false), |a| (a.last_index, a.repeated));
    let (index, outcome, slot, reason) = match outcome {
        Ok(appended) => (Some(appended.first_index), "ok", 0, None),
        Err(AppendError::Unknown(error)) => (None, "unknown", 1, Some(error.reason.word())),
        Err(AppendError::Refused(error)) => (None, "refused", 2, Some(error.reason.word())),
        Err(AppendError::UnexpectedIndex { .. }) => (None, "refused", 2, Some("EXPECTED_INDEX")),
    };
    tally[slot] += 1;
    json_line(&Line { writer, seq, index, sha256, outcome, at_ms: now_ms(), repeated, reason })?;
    Ok(last)
}
