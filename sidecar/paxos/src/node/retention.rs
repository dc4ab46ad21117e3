//! What a leader may trim, and when it says so in the log (docs: protocol.md, "Snapshots, checkpoints, trim").

use super::Node;
use crate::settings::Retention;
use crate::system::{Mark, SystemState};
use crate::types::{Instant, MemberId, Slot};
use crate::value::{Fields, Value};
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::time::Duration;

/// A mark stands about every so many parts of what is retained.
const PARTS: u64 = 8;
/// Without a retention, or within one that is larger than the disk, a mark stands about every so many parts of the whole
/// log: who lowers the retention to make room finds marks to trim to.
const PARTS_OF_ALL: u64 = 3;
/// No closer together than this for that reason, in bytes as [`weight`] counts them.
const LEAST_APART: u64 = 64 << 20;
/// What an entry adds to a log beside its payload, about, in bytes.
const ENTRY_BYTES: u64 = 32;
/// Of an age that is retained, between two marks and between two stamps of a log that nobody writes to. So an entry goes
/// when it is three such parts older than was asked for, at the latest.
const AGE_PARTS: u32 = 8;
/// No more stamps than that.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
/// A member that catches up holds back the trim until this many times what retention keeps is held.
const PATIENCE: u64 = 2;

/// What was appended behind a mark, in bytes.
fn weight(system: &SystemState, mark: &Mark) -> u64 {
    let entries = system.last_index.0 - mark.index.0;
    system.payload_bytes - mark.payload_bytes + entries * ENTRY_BYTES
}

impl Node {
    /// Marks and trims are decided once a beat, one at a time, and proposed with the next slots: under a load that never
    /// leaves the window empty, too.
    pub(super) fn beat_retention(&mut self, now: Instant) {
        let Some(proposer) = self.proposer.as_ref().filter(|p| p.is_serving()) else { return };
        if proposer.housekeeping.is_some() || self.chosen_through < proposer.housekept {
            return;
        }
        let due = self.due_trim().map(|mark| Value::Trim { through: mark.slot });
        let due = due.or_else(|| self.is_mark_due().then_some(Value::Mark));
        let due = due.or_else(|| self.due_stamp(now));
        if let Some(proposer) = self.proposer.as_mut() {
            proposer.housekeeping = due;
        }
    }

    /// Log time passes with batches. Where entries go by their age, a log that nobody writes to gets an empty batch now
    /// and then, as long as there is an entry that may go; and where a cursor expires.
    fn due_stamp(&mut self, now: Instant) -> Option<Value> {
        let system = self.state();
        let age = system.settings.retention.age.filter(|_| system.last_index != system.trim.index);
        let expiry = system.cursor_expiry.values().map(|(expiry, _)| *expiry).min();
        let span = age.into_iter().chain(expiry).min()?;
        let pause = (span / AGE_PARTS).max(LEAST_PAUSE);
        let proposer = self.proposer.as_mut()?;
        if !proposer.queue.is_empty() || proposer.stamped.is_some_and(|stamped| now.since(stamped) < pause) {
            return None;
        }
        let advance = proposer.stamped.map_or(Duration::ZERO, |stamped| now.since(stamped));
        proposer.stamped = Some(now);
        let fields = Fields::NONE;
        Some(Value::Batch { ballot: proposer.ballot, advance, fields, calls: Vec::new() })
    }

    fn is_mark_due(&self) -> bool {
        let system = self.state();
        if system.marks.len() >= crate::limits::MARKS / 2 {
            return false;
        }
        let last = system.marks.last().copied().unwrap_or(system.trim);
        if system.last_index == last.index {
            return false;
        }
        let Retention { entries, bytes, age } = system.settings.retention;
        entries.is_some_and(|n| system.last_index.0 - last.index.0 >= (n / PARTS).max(1))
            || bytes.is_some_and(|n| system.payload_bytes - last.payload_bytes >= (n / PARTS).max(1))
            || age.is_some_and(|n| system.log_time.saturating_sub(last.log_time) >= n / AGE_PARTS)
            || weight(system, &last) >= LEAST_APART.max(weight(system, &system.trim) / PARTS_OF_ALL)
    }

    /// The furthest mark that retention, the slowest cursor, durable snapshots on a quorum, and members that
    /// are catching up all allow.
    fn due_trim(&self) -> Option<Mark> {
        let system = self.state();
        let beyond = |mark: &&Mark| self.is_beyond(mark, 1);
        let uncursored = |mark: &&Mark| system.trim_limit() >= mark.index || planted!(TrimPastCursor);
        let mut marks = system.marks.iter().filter(beyond).filter(uncursored);
        marks.rfind(|mark| self.is_held_by_a_quorum(mark.slot) && !self.is_pinned(mark)).copied()
    }

    /// It was decided at a beat, and may have waited since: a member that is behind may have said so in the meantime.
    pub(super) fn is_still_due(&self, value: &Value) -> bool {
        match value {
            Value::Trim { through } => self.due_trim().is_some_and(|mark| mark.slot >= *through),
            _ => true,
        }
    }

    /// More than `times` what retention keeps lies behind `mark`.
    fn is_beyond(&self, mark: &Mark, times: u64) -> bool {
        let system = self.state();
        let Retention { entries, bytes, age } = system.settings.retention;
        let times_age = u32::try_from(times).unwrap_or(u32::MAX);
        entries.is_some_and(|n| system.last_index.0 - mark.index.0 >= n.saturating_mul(times))
            || bytes.is_some_and(|n| system.payload_bytes - mark.payload_bytes >= n.saturating_mul(times))
            || age.is_some_and(|n: Duration| {
                system.log_time.saturating_sub(mark.log_time) >= n.saturating_mul(times_age)
            })
    }

    /// A quorum of the newest configuration has its snapshot at or behind `slot` on disk.
    fn is_held_by_a_quorum(&self, slot: Slot) -> bool {
        let Some(proposer) = &self.proposer else { return false };
        let mut holding: BTreeSet<MemberId> =
            proposer.progress.iter().filter(|(_, p)| p.snapshot_through >= slot).map(|(m, _)| *m).collect();
        if self.snapshots.durable_through() >= slot {
            holding.insert(self.me);
        }
        self.state().configurations.latest().has_quorum(&holding)
    }

    /// A connected member is catching up through the slots that would go: it is waited for, within bounds.
    fn is_pinned(&self, mark: &Mark) -> bool {
        let Some(proposer) = &self.proposer else { return false };
        if planted!(TrimDuringTransfer) || self.is_beyond(mark, PATIENCE) {
            return false;
        }
        let members = self.state().configurations.latest().members.keys();
        members.filter(|m| **m != self.me && self.connected.contains(m)).any(|member| {
            let progress = proposer.progress.get(member);
            progress.is_some_and(|p| p.chosen_through < mark.slot)
        })
    }
}
