//! Readers under load: what they are shown is never older than promised, without holes or repeats, and stands.

use crate::common::{Member, PATIENCE};
use futures::{StreamExt, TryStreamExt};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use synod_client::{CallError, Client, Consistency, Entry, ReadOptions, Reason};
use tokio::task::JoinHandle;

/// Between two calls of a reader.
const PAUSE: Duration = Duration::from_millis(20);

/// What all writers and readers of a run know of the log.
#[derive(Default)]
pub(crate) struct Known {
    /// The highest index that was acknowledged, or shown to a reader.
    through: AtomicU64,
    /// What was shown at each index, from 1.
    shown: Mutex<Vec<Option<u64>>>,
    /// Reads that lacked what they had to show.
    stale: AtomicU64,
    /// Entries that came at another index than was due.
    holes: AtomicU64,
    /// Entries that differ from what was shown at their index before.
    differing: AtomicU64,
    reads: AtomicU64,
}

/// What became of the readers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Seen {
    /// Reads that came to their end, without those that a fault cut.
    pub(crate) reads: u64,
    pub(crate) stale: u64,
    pub(crate) holes: u64,
    pub(crate) differing: u64,
}

impl Known {
    pub(crate) fn through(&self) -> u64 {
        self.through.load(Ordering::SeqCst)
    }

    pub(crate) fn cover(&self, index: u64) {
        self.through.fetch_max(index, Ordering::SeqCst);
    }

    /// An entry was shown; the first at its index says what the others must be.
    pub(crate) fn show(&self, index: u64, payload: &[u8]) {
        let mut digest = DefaultHasher::new();
        payload.hash(&mut digest);
        let mut shown = self.shown.lock().unwrap();
        let place = usize::try_from(index).unwrap();
        if shown.len() <= place {
            shown.resize(place + 1, None);
        }
        let first = *shown[place].get_or_insert(digest.finish());
        if first != digest.finish() {
            self.differing.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn seen(&self) -> Seen {
        let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
        Seen {
            reads: count(&self.reads),
            stale: count(&self.stale),
            holes: count(&self.holes),
            differing: count(&self.differing),
        }
    }
}

/// How a reader reads.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Linearizable,
    Sequential,
    Subscribed,
}

/// One reader, from the first entry on.
struct Reader {
    client: Client,
    known: Arc<Known>,
    /// The last index that it was shown.
    last: u64,
    calls: u64,
}

impl Reader {
    fn take(&mut self, entry: &Entry) {
        if entry.index != self.last + 1 {
            self.known.holes.fetch_add(1, Ordering::Relaxed);
        }
        self.last = entry.index;
        self.known.show(entry.index, &entry.payload);
        self.known.cover(entry.index);
    }

    /// Reads what is new, and compares with what had to be shown: all that was known before the call, or, of a
    /// sequential read, all that this client was shown or has named.
    async fn read(&mut self, consistency: Consistency) -> Result<(), CallError> {
        self.calls += 1;
        let floor = match consistency {
            Consistency::Linearizable => self.known.through(),
            // Now and then it has heard of an index elsewhere.
            _ if self.calls.is_multiple_of(8) => {
                let heard = self.known.through();
                self.client.not_before(heard);
                heard
            }
            _ => self.last,
        };
        let options = ReadOptions { consistency, ..ReadOptions::default() };
        let mut entries = self.client.read(self.last + 1, options);
        while let Some(entry) = entries.try_next().await? {
            self.take(&entry);
        }
        let tail = self.client.tail(consistency).await?;
        if self.last < floor || tail < self.last {
            self.known.stale.fetch_add(1, Ordering::Relaxed);
        }
        self.known.reads.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Follows the log until `stop` and the end.
    async fn follow(&mut self, stop: &AtomicBool) -> Result<(), CallError> {
        let mut entries = self.client.subscribe(self.last + 1);
        while !self.is_over(stop) {
            // It may wait for an entry that never comes, with `stop`.
            match tokio::time::timeout(PAUSE, entries.next()).await {
                Ok(Some(entry)) => self.take(&entry?),
                Ok(None) => break,
                Err(_) => {}
            }
        }
        self.known.reads.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn is_over(&self, stop: &AtomicBool) -> bool {
        stop.load(Ordering::SeqCst) && self.last >= self.known.through()
    }

    async fn run(mut self, kind: Kind, stop: Arc<AtomicBool>) {
        while !self.is_over(&stop) {
            let result = match kind {
                Kind::Linearizable => self.read(Consistency::Linearizable).await,
                Kind::Sequential => self.read(Consistency::Sequential).await,
                Kind::Subscribed => self.follow(&stop).await,
            };
            if result.is_err_and(|error| error.reason == Reason::OutOfOrder) {
                self.known.holes.fetch_add(1, Ordering::Relaxed);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// A reader of each kind at each member.
pub(crate) struct Readers {
    tasks: Vec<(String, JoinHandle<()>)>,
    stop: Arc<AtomicBool>,
}

impl Readers {
    pub(crate) fn start(members: &[Member], known: &Arc<Known>) -> Readers {
        let (mut tasks, stop) = (Vec::new(), Arc::new(AtomicBool::new(false)));
        for member in members {
            for kind in [Kind::Linearizable, Kind::Sequential, Kind::Subscribed] {
                let reader = Reader { client: member.client(), known: known.clone(), last: 0, calls: 0 };
                let task = tokio::spawn(reader.run(kind, stop.clone()));
                tasks.push((format!("{kind:?} at {}", member.name), task));
            }
        }
        Readers { tasks, stop }
    }

    /// Waits until each was shown all that was acknowledged. The writers have ended.
    pub(crate) async fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        for (name, task) in self.tasks {
            let ended = tokio::time::timeout(PATIENCE, task).await;
            ended.unwrap_or_else(|_| panic!("{name}: never shown what was acknowledged")).unwrap();
        }
    }
}
