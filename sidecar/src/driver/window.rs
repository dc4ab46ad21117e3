//! What was applied lately, in memory: for subscribers at the tail, and for slots that are chosen and applied
//! here before their rows are durable here.
//!
//! Invariant: the window ends at the last applied index, and every slot before its first one is durable and
//! known chosen on disk. So each index is in the window or can be read from the disk.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use synod_paxos::value::{Entry, Logged};
use synod_paxos::{Applied, Index, Slot, Time};
use tokio::sync::watch;

/// Payload bytes above which the oldest slots leave, as far as they are durable.
const BYTES: usize = 8 << 20;
/// Entries above which the oldest slots leave, as far as they are durable.
const ENTRIES: usize = 65_536;

/// How far this member has applied the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Every slot up to it is applied.
    pub slot: Slot,
    /// The last index.
    pub index: Index,
}

#[derive(Debug)]
struct Batch {
    slot: Slot,
    first: Index,
    time: Option<Time>,
    entries: Vec<Entry>,
}

#[derive(Debug, Default)]
struct Kept {
    batches: VecDeque<Batch>,
    bytes: usize,
    entries: usize,
}

/// Shared between the driver, which writes, and the readers.
#[derive(Debug)]
pub struct Window {
    kept: Mutex<Kept>,
    position: watch::Sender<Position>,
    /// The last index that is not in this member's log any more.
    trimmed: AtomicU64,
}

impl Window {
    /// An empty window behind what a disk had applied; its log begins at `first`.
    pub fn new(position: Position, first: Index) -> Window {
        Window {
            kept: Mutex::default(),
            position: watch::Sender::new(position),
            trimmed: AtomicU64::new(first.previous().0),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // A panic under this lock leaves the queue whole: its steps are single pushes and pops.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The position now, and its changes from now on.
    pub fn watch(&self) -> watch::Receiver<Position> {
        self.position.subscribe()
    }

    /// The position now.
    pub fn position(&self) -> Position {
        *self.position.borrow()
    }

    /// Adds applied slots, then moves the position: whoever sees an index can read it.
    /// A snapshot took the place of the log up to `position`: what was kept lies below it.
    pub(super) fn install(&self, position: Position) {
        *self.kept() = Kept::default();
        self.trimmed.store(position.index.0, Ordering::Release);
        self.position.send_replace(position);
    }

    /// The log begins behind `index` now.
    pub(super) fn trim(&self, index: Index) {
        self.trimmed.fetch_max(index.0, Ordering::Release);
    }

    /// The first index that can be read here.
    pub fn first_index(&self) -> Index {
        Index(self.trimmed.load(Ordering::Acquire)).next()
    }

    pub(super) fn extend(&self, applied: &mut Vec<Applied>) {
        let Some(last) = applied.last() else { return };
        let slot = last.slot;
        let mut index = self.position().index;
        {
            let mut kept = self.kept();
            for Applied { slot, first, time, entries, .. } in
                applied.drain(..).filter(|a| !a.entries.is_empty())
            {
                assert!(first == index.next(), "applied {first:?} behind {index:?}");
                index = index.plus(entries.len() as u64);
                kept.entries += entries.len();
                kept.bytes += entries.iter().map(Entry::size).sum::<usize>();
                kept.batches.push_back(Batch { slot, first, time, entries });
            }
        }
        self.position.send_replace(Position { slot, index });
    }

    /// Whether something should leave.
    pub(super) fn is_over(&self) -> bool {
        let kept = self.kept();
        kept.bytes > BYTES || kept.entries > ENTRIES
    }

    /// Lets the oldest slots go down to three quarters of the bounds, but none above `durable`.
    pub(super) fn evict(&self, durable: Slot) {
        let mut kept = self.kept();
        while kept.bytes > BYTES / 4 * 3 || kept.entries > ENTRIES / 4 * 3 {
            match kept.batches.front() {
                Some(batch) if batch.slot <= durable => {}
                _ => break,
            }
            if let Some(batch) = kept.batches.pop_front() {
                kept.entries -= batch.entries.len();
                kept.bytes -= batch.entries.iter().map(Entry::size).sum::<usize>();
            }
        }
    }

    /// Entries `from ..= through`, at most `entries` of them and about `bytes`, one at least; or, where
    /// `from` has left the window or never was in it, the last index that must be read from the disk.
    pub fn entries(
        &self,
        (from, through): (Index, Index),
        entries: usize,
        bytes: usize,
    ) -> Result<Vec<Logged>, Index> {
        let kept = self.kept();
        let first = match kept.batches.front() {
            Some(batch) => batch.first,
            None => return Err(through),
        };
        if from < first {
            return Err(first.previous().min(through));
        }
        let at = kept.batches.partition_point(|batch| batch.first <= from).saturating_sub(1);
        let mut found = Vec::new();
        let mut taken = 0;
        for batch in kept.batches.iter().skip(at) {
            let skip = usize::try_from(from.0.saturating_sub(batch.first.0)).unwrap_or(usize::MAX);
            for entry in batch.entries.iter().skip(skip) {
                if found.len() as u64 > through.0.saturating_sub(from.0)
                    || found.len() >= entries
                    || taken >= bytes
                {
                    return Ok(found);
                }
                taken += entry.size();
                found.push(Logged { time: batch.time, entry: entry.clone() });
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn applied(slot: u64, first: u64, count: usize, size: usize) -> Applied {
        let entries = (0..count).map(|_| Bytes::from(vec![7; size]).into()).collect();
        let (slot, first, time) = (Slot(slot), Index(first), Some(Time(1)));
        Applied { slot, first, time, entries, skipped: Vec::new() }
    }

    fn span(from: u64, through: u64) -> (Index, Index) {
        (Index(from), Index(through))
    }

    #[test]
    fn an_index_is_in_the_window_or_on_the_disk() {
        let window = Window::new(Position { slot: Slot(3), index: Index(10) }, Index(1));
        assert_eq!(window.entries(span(4, 10), 9, 99), Err(Index(10)));
        window.extend(&mut vec![applied(4, 11, 2, 1), applied(5, 13, 0, 0), applied(6, 13, 3, 1)]);
        assert_eq!(window.position(), Position { slot: Slot(6), index: Index(15) });
        assert_eq!(window.entries(span(4, 15), 9, 99), Err(Index(10)));
        assert_eq!(window.entries(span(11, 15), 9, 99).unwrap().len(), 5);
        assert_eq!(window.entries(span(12, 13), 9, 99).unwrap().len(), 2);
        assert_eq!(window.entries(span(12, 15), 3, 99).unwrap().len(), 3);
        assert_eq!(window.entries(span(12, 15), 9, 2).unwrap().len(), 2);
    }

    #[test]
    fn what_is_not_durable_stays() {
        let window = Window::new(Position::default(), Index(1));
        let mut all = (0..6).map(|i| applied(i + 1, 4 * i + 1, 4, 1 << 20)).collect();
        window.extend(&mut all);
        assert!(window.is_over());
        window.evict(Slot(2));
        assert!(window.is_over());
        assert_eq!(window.entries(span(1, 24), 1, 1), Err(Index(8)));
        window.evict(Slot(6));
        assert!(!window.is_over());
        assert_eq!(window.position().index, Index(24));
    }
}
