//! Structured logs and metrics.

use crate::connections::{Calls, Tally};
use crate::driver::CallOutcome;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use synod_paxos::system::Reply;
use synod_paxos::{Notice, Refusal};
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// A line for people.
    Text,
    /// A JSON object a line.
    Json,
}

/// Starts logging to standard error. `filter` is a level or a list of targets and levels.
///
/// # Errors
/// If the filter cannot be read, or logging was started before.
pub fn start_logging(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter)?;
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    let started = match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}

/// What is counted while the member runs; positions are read from the core when they are asked for.
#[derive(Debug)]
pub struct Metrics {
    /// What the sockets refused and ended.
    pub sockets: Tally,
    /// The calls of the sockets.
    pub calls: Calls,
    /// Append calls taken from clients.
    pub append_calls: Counter,
    /// Their entries.
    pub append_entries: Counter,
    /// Append calls answered with indexes.
    pub appended: Counter,
    /// Those of them that an earlier try had appended.
    pub append_repeats: Counter,
    /// Append calls of which it is certain that nothing was appended.
    pub append_refused: Counter,
    /// Append calls whose outcome is unknown.
    pub append_unknown: Counter,
    /// Write batches of the core.
    pub commit_batches: Counter,
    /// How long a transaction took, its sync included.
    pub commit_seconds: Histogram,
    /// Turns of the driver's loop.
    pub turns: Counter,
    /// Rows of this disk that failed their checksum or were missing.
    pub rows_damaged: Counter,
    /// Those of them that were written again, from memory or from a peer's.
    pub rows_healed: Counter,
    /// Proposals that got no vote here because this version cannot read them.
    pub proposals_unreadable: Counter,
    /// Snapshots on this disk that were damaged, and written again from memory.
    pub snapshots_healed: Counter,
    /// Passes of the scrubber through the whole log.
    pub scrub_passes: Counter,
    /// Rows that it read.
    pub scrub_rows: Counter,
    /// Bytes that it read.
    pub scrub_bytes: Counter,
    /// What it found that peers cannot heal: files and marks.
    pub scrub_broken: Counter,
    /// The slot that it has come to.
    pub scrub_slot: Gauge,
    /// Checkpoints that were saved through this member.
    pub checkpoints_saved: Counter,
    /// Bytes of checkpoints that peers got from this member.
    pub checkpoint_bytes_given: Counter,
    /// Bytes of checkpoints that this member got from its peers.
    pub checkpoint_bytes_taken: Counter,
    /// Checkpoints that failed a checksum on this disk.
    pub checkpoints_damaged: Counter,
    /// Checkpoints that the log names and this disk lacks.
    pub checkpoints_missing: Gauge,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            sockets: Tally::default(),
            calls: Calls::default(),
            append_calls: Counter::default(),
            append_entries: Counter::default(),
            appended: Counter::default(),
            append_repeats: Counter::default(),
            append_refused: Counter::default(),
            append_unknown: Counter::default(),
            commit_batches: Counter::default(),
            commit_seconds: Histogram::new(exponential_buckets(0.000_1, 2.0, 16)),
            turns: Counter::default(),
            rows_damaged: Counter::default(),
            rows_healed: Counter::default(),
            proposals_unreadable: Counter::default(),
            snapshots_healed: Counter::default(),
            scrub_passes: Counter::default(),
            scrub_rows: Counter::default(),
            scrub_bytes: Counter::default(),
            scrub_broken: Counter::default(),
            scrub_slot: Gauge::default(),
            checkpoints_saved: Counter::default(),
            checkpoint_bytes_given: Counter::default(),
            checkpoint_bytes_taken: Counter::default(),
            checkpoints_damaged: Counter::default(),
            checkpoints_missing: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Counts what the core says of rows and snapshots.
    pub(crate) fn count_notice(&self, notice: &Notice) {
        match notice {
            Notice::Damaged { from: None, .. } => drop(self.rows_damaged.inc()),
            Notice::Unreadable { .. } => drop(self.proposals_unreadable.inc()),
            Notice::Healed { .. } => drop(self.rows_healed.inc()),
            Notice::DamagedSnapshot { healed: true, .. } => drop(self.snapshots_healed.inc()),
            _ => {}
        }
    }

    /// Counts the answer to an append.
    pub(crate) fn count_append(&self, outcome: &CallOutcome) {
        if matches!(outcome, Ok(Reply::Appended { repeat: true, .. })) {
            self.append_repeats.inc();
        }
        match outcome {
            Ok(_) => self.appended.inc(),
            Err(Refusal::OutcomeUnknown) => self.append_unknown.inc(),
            Err(_) => self.append_refused.inc(),
        };
    }
}
