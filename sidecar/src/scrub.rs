//! The scrubber: reads the whole log in the background, again and again, and has damaged rows healed from peers
//! (docs: storage.md, "The scrubber"; protocol.md, "Integrity").

use crate::pace::Pace;
use crate::shared::Shared;
use crate::storage::{Place, StorageError};
use crate::telemetry::Metrics;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use synod_paxos::Slot;
use tokio::time::{Instant, sleep};

/// Bytes that are read at a time.
const PIECE: u64 = 1 << 20;
/// How long a damaged row may wait for a peer that has it before it is named.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at what waits to be healed.
const LOOK: Duration = Duration::from_secs(10);

/// How a log is scrubbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// From the beginning of one pass to that of the next.
    pub every: Duration,
    /// Bytes a second that it may read.
    pub rate: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { every: Duration::from_secs(6 * 3_600), rate: 16 << 20 }
    }
}

/// Reads the log of whoever this process is now.
pub(crate) struct Scrubber {
    pub(crate) shared: Arc<Shared>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) data_dir: PathBuf,
    pub(crate) options: Options,
}

impl Scrubber {
    /// Runs until the process goes down.
    pub(crate) async fn run(self) {
        tokio::select! {
            () = self.shared.stopped() => {}
            () = self.scrub() => {}
            () = self.watch() => {}
        }
    }

    async fn scrub(&self) {
        let pace = Pace::new(self.options.rate);
        loop {
            let began = Instant::now();
            match self.pass(&pace).await {
                Ok(()) => drop(self.metrics.scrub_passes.inc()),
                // What cannot be read ends the member where it needs it; the scrubber only tells.
                Err(error) => tracing::error!(%error, "the log cannot be scrubbed; {}", self.advice()),
            }
            sleep(self.options.every.saturating_sub(began.elapsed()).max(Duration::from_secs(1))).await;
        }
    }

    /// Reads everything once.
    async fn pass(&self, pace: &Pace) -> Result<(), StorageError> {
        let mut next = Some(Place::default());
        while let Some(place) = next {
            let handle = self.shared.handle();
            let found = handle.scrub(place, PIECE).await?;
            self.metrics.scrub_rows.inc_by(found.rows);
            self.metrics.scrub_bytes.inc_by(found.bytes);
            if let Some(Place::Row(slot)) = found.next {
                self.metrics.scrub_slot.set(i64::try_from(slot.0).unwrap_or(i64::MAX));
            }
            found.damaged.into_iter().for_each(|slot| handle.damaged(slot));
            found.snapshots.into_iter().for_each(|slot| handle.damaged_snapshot(slot));
            for what in found.broken {
                self.metrics.scrub_broken.inc();
                tracing::error!(what, "damaged, and not to be healed from peers; {}", self.advice());
            }
            pace.pass(usize::try_from(found.bytes).unwrap_or(usize::MAX)).await;
            next = found.next;
        }
        Ok(())
    }

    /// Names rows that nobody could give.
    async fn watch(&self) {
        let mut known: BTreeSet<Slot> = BTreeSet::new();
        let mut since = Instant::now();
        loop {
            sleep(LOOK).await;
            let Ok(report) = self.shared.handle().status().await else { continue };
            let now: BTreeSet<Slot> = report.status.damaged.iter().copied().collect();
            if now.is_empty() || known.is_disjoint(&now) {
                since = Instant::now();
            }
            known = now;
            if !known.is_empty() && since.elapsed() >= PATIENCE {
                let slots: Vec<String> = known.iter().take(8).map(Slot::to_string).collect();
                tracing::error!(
                    count = known.len(),
                    slots = slots.join(" "),
                    "damaged rows, and no peer has given them for {} s: connect the others, or if they have lost \
                     them too, {}",
                    PATIENCE.as_secs(),
                    self.advice()
                );
                since = Instant::now();
            }
        }
    }

    /// What a person does next.
    fn advice(&self) -> String {
        let dir = self.data_dir.display();
        format!(
            "stop this member and run `synod-sidecar verify {dir}` to see all of it; then remove it from its cluster \
             with `synod-sidecar admin remove` and give it an empty volume"
        )
    }
}
