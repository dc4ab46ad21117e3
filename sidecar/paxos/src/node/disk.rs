//! The persist-before-send gate from the core's side: what is written, what waits for it, what rides along.

use super::Node;
use crate::io::Output;
use crate::message::Counters;
use crate::storage::{Completed, DurableState, Gated, Write, WriteBatch};
use crate::types::{Instant, MemberId, Slot, WriteCounter};
use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

/// The system state rides with a write at most every so many applied slots: what lies between is applied
/// again from its rows at the next start.
const SYSTEM_EVERY: u64 = 256;
/// However large it is, it is written every so many slots.
const SYSTEM_AT_LEAST_EVERY: u64 = 8_192;

/// What was issued to the disk and what is known to be on it.
#[derive(Debug)]
pub(super) struct Disk {
    writes: Vec<Write>,
    gated: Vec<Gated>,
    /// Slots to acknowledge to one leader with the next write: one message for all.
    accepted: Vec<(MemberId, crate::types::Ballot, Slot)>,
    dirty_peers: BTreeSet<MemberId>,
    next_sequence: u64,
    completed_sequence: u64,
    written: WriteCounter,
    durable_written: WriteCounter,
    /// Watermarks: issued, and durable.
    chosen_issued: Slot,
    chosen_durable: Slot,
    issued_watermarks: Vec<(u64, Slot)>,
    system_issued: Slot,
    /// The system state holds something (a configuration, a leadership) worth writing with the next write.
    system_changed: bool,
    /// How large the system state was, and how many bytes of values were written since.
    system_bytes: usize,
    value_bytes: usize,
    /// Bytes of values that are not durable: in all, those not issued yet, and those of each write under way.
    backlog: usize,
    gathered: usize,
    under_way: VecDeque<(u64, usize)>,
    /// Since when a write is under way without any completing.
    waiting_since: Option<Instant>,
    /// Beats since the watermark was last issued while it lagged.
    idle_beats: u32,
}

impl Disk {
    pub(super) fn new(state: &DurableState) -> Disk {
        Disk {
            writes: Vec::new(),
            gated: Vec::new(),
            accepted: Vec::new(),
            dirty_peers: BTreeSet::new(),
            next_sequence: 1,
            completed_sequence: 0,
            written: state.written,
            durable_written: state.written,
            chosen_issued: state.chosen_through,
            chosen_durable: state.chosen_through,
            issued_watermarks: Vec::new(),
            system_issued: state.applied,
            system_changed: false,
            backlog: 0,
            gathered: 0,
            under_way: VecDeque::new(),
            waiting_since: None,
            system_bytes: state.system.len(),
            value_bytes: 0,
            idle_beats: 0,
        }
    }

    /// The write counter, as far as it is on disk: what envelopes show.
    pub(super) fn durable_written(&self) -> WriteCounter {
        self.durable_written
    }

    /// The prefix that is on disk, and known there to be chosen.
    pub(super) fn chosen_durable(&self) -> Slot {
        self.chosen_durable
    }

    /// No write is under way: the self-clock of batches (docs: performance.md, "How", 1).
    pub(super) fn is_idle(&self) -> bool {
        self.completed_sequence + 1 == self.next_sequence
    }

    /// Bytes of values that wait for the disk.
    pub(super) fn backlog(&self) -> usize {
        self.backlog
    }

    /// A write has been under way for `span` and none completed: the disk hangs.
    pub(super) fn is_stalled(&self, now: Instant, span: Duration) -> bool {
        self.waiting_since.is_some_and(|since| now.since(since) >= span)
    }

    /// What was loaded reaches less far than the stored watermark says, because a row is damaged: no more than
    /// that is held here, until the row heals.
    pub(super) fn note_loaded(&mut self, chosen: Slot) {
        self.chosen_durable = self.chosen_durable.min(chosen);
        self.chosen_issued = self.chosen_issued.min(chosen);
    }

    /// A snapshot took the place of the log up to `slot`.
    pub(super) fn note_installed(&mut self, slot: Slot) {
        (self.chosen_issued, self.system_issued) = (slot, slot);
    }

    pub(super) fn note_beat(&mut self) {
        self.idle_beats += 1;
    }

    pub(super) fn note_system_changed(&mut self) {
        self.system_changed = true;
    }

    pub(super) fn note_peer(&mut self, member: MemberId) {
        self.dirty_peers.insert(member);
    }
}

impl Node {
    pub(super) fn write(&mut self, write: Write) {
        if let Write::Row(row) = &write {
            self.disk.value_bytes += row.value.len();
            self.disk.backlog += row.value.len();
            self.disk.gathered += row.value.len();
        }
        self.disk.writes.push(write);
    }

    pub(super) fn gate(&mut self, gated: Gated) {
        self.disk.gated.push(gated);
    }

    /// An Accepted that leaves with the next write, together with others for the same leader.
    pub(super) fn gate_accepted(&mut self, leader: MemberId, ballot: crate::types::Ballot, slot: Slot) {
        self.disk.accepted.push((leader, ballot, slot));
    }

    /// Issues what has gathered. The chosen watermark rides along; alone it goes only when nothing else has
    /// been written for a whole beat, so that an idle cluster's disks know what is chosen.
    pub(super) fn flush_disk(&mut self, now: Instant) {
        let lagging = self.chosen_through > self.disk.chosen_issued || self.disk.system_changed;
        let idle = lagging && self.disk.idle_beats >= 2 && self.disk.is_idle();
        let waiting =
            !self.disk.writes.is_empty() || !self.disk.gated.is_empty() || !self.disk.accepted.is_empty();
        if !waiting && !idle {
            return;
        }
        self.gather_accepted();
        let real = !self.disk.writes.is_empty() || idle;
        if real {
            self.ride_along();
            if self.is_active() || planted!(RecoveryCounts) {
                // A member that does not take part yet shows what its disk held when it started: what it writes
                // in the meantime must not hide that a copy was restored.
                self.disk.written = self.disk.written.next();
            }
            self.disk.idle_beats = 0;
        }
        self.disk.waiting_since.get_or_insert(now);
        let sequence = self.disk.next_sequence;
        self.disk.next_sequence += 1;
        self.disk.under_way.push_back((sequence, core::mem::take(&mut self.disk.gathered)));
        if real {
            self.disk.issued_watermarks.push((sequence, self.disk.chosen_issued));
        }
        let batch = WriteBatch {
            sequence,
            written: self.disk.written,
            writes: core::mem::take(&mut self.disk.writes),
            gated: core::mem::take(&mut self.disk.gated),
        };
        self.outputs.push_back(Output::Persist(batch));
    }

    fn gather_accepted(&mut self) {
        let mut accepted = core::mem::take(&mut self.disk.accepted);
        accepted.sort_unstable();
        accepted.dedup();
        for run in accepted.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            let (leader, ballot, _) = run[0];
            let slots = run.iter().map(|(_, _, slot)| *slot).collect();
            self.disk.gated.push(Gated::Send(leader, crate::Message::Accepted { ballot, slots }));
        }
        accepted.clear();
        self.disk.accepted = accepted;
    }

    fn ride_along(&mut self) {
        if self.chosen_through > self.disk.chosen_issued {
            self.disk.chosen_issued = self.chosen_through;
            self.disk.writes.push(Write::ChosenThrough(self.chosen_through));
        }
        // A large state is written less often, so that it stays a part of what values cost; a start then applies
        // more slots again, up to a bound.
        let behind = self.chosen_through.0.saturating_sub(self.disk.system_issued.0);
        let worth = self.disk.value_bytes >= 2 * self.disk.system_bytes;
        let due = behind >= SYSTEM_EVERY && (worth || behind >= SYSTEM_AT_LEAST_EVERY);
        if (due || self.disk.system_changed)
            && let Some(system) = &self.system
        {
            let state = system.encode();
            (self.disk.system_bytes, self.disk.value_bytes) = (state.len(), 0);
            let write = Write::System { applied: system.applied, state };
            self.disk.system_issued = system.applied;
            self.disk.system_changed = false;
            self.disk.writes.push(write);
        }
        for member in core::mem::take(&mut self.disk.dirty_peers) {
            let counters = self.peers.get(&member).copied().unwrap_or(Counters::default());
            self.disk.writes.push(Write::Peer { member, counters });
        }
    }

    /// Writes became durable: what waited for them is released, in order.
    pub(super) fn handle_persisted(&mut self, now: Instant, completed: Completed) {
        let Completed { through, written, gated } = completed;
        assert!(
            through > self.disk.completed_sequence && through < self.disk.next_sequence,
            "completion {through} outside {}..{}",
            self.disk.completed_sequence,
            self.disk.next_sequence
        );
        self.disk.completed_sequence = through;
        while let Some((_, bytes)) = self.disk.under_way.pop_front_if(|(sequence, _)| *sequence <= through) {
            self.disk.backlog -= bytes;
        }
        self.disk.durable_written = written;
        self.disk.waiting_since = (!self.disk.is_idle()).then_some(now);
        let done = self.disk.issued_watermarks.partition_point(|(sequence, _)| *sequence <= through);
        let newest = self.disk.issued_watermarks.drain(..done).next_back();
        if let Some((_, slot)) = newest {
            self.disk.chosen_durable = slot;
            self.note_own_durable(slot);
        }
        for gated in gated {
            self.release(now, gated);
        }
        self.learn_more(now);
    }

    fn release(&mut self, now: Instant, gated: Gated) {
        match gated {
            Gated::Send(to, message) => self.emit(to, message),
            Gated::Promise { to, ballot, from, chosen } => self.open_promise(now, to, ballot, from, chosen),
            Gated::OwnPromise(ballot) => self.handle_own_promise(now, ballot),
            Gated::OwnVote(ballot, slot) => self.handle_accepted(now, self.me, ballot, &[slot]),
            Gated::Snapshot(slot) => self.note_snapshot_durable(slot),
            Gated::Lease(span) => self.note_lease_durable(span),
            Gated::Admin(request, outcome) => {
                self.outputs.push_back(Output::AdminReply { request, outcome: Ok(outcome) });
            }
        }
    }
}
