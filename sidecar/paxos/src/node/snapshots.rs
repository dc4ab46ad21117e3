//! Snapshots: taken at marks, fetched by a member that is behind the trim, installed as one step (docs:
//! protocol.md, "Snapshots, checkpoints, trim").
//!
//! Every member takes its snapshot at the same slots, so the bytes are the same everywhere and a fetch may go
//! on with another member where it broke off. What a member serves is the snapshot that its log begins with:
//! the receiver then learns every slot that is not trimmed.

use super::Node;
use super::pace::Wish;
use crate::io::{Notice, Output, Refusal};
use crate::limits;
use crate::message::Message;
use crate::storage::{Gated, SnapshotPart, Write};
use crate::system::{Mark, SystemState};
use crate::types::{Instant, MemberId, Slot};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use bytes::Bytes;
use core::time::Duration;
use xxhash_rust::xxh3::xxh3_128;

/// The snapshots of this disk, and the one that is being fetched.
#[derive(Debug, Default, Clone)]
pub(super) struct Snapshots {
    held: BTreeMap<Slot, Bytes>,
    /// The newest that is on disk.
    durable: Slot,
    /// Of the one that was served last: each of its many parts names it.
    digest: Option<(Slot, u128)>,
    fetch: Option<Fetch>,
}

/// Of one snapshot, from its first byte on; all but the last part is on disk or on its way there.
#[derive(Debug, Clone)]
struct Fetch {
    parts: Vec<SnapshotPart>,
    /// When the next one was asked for, and since when none has come, in this life.
    asked: Option<Instant>,
    since: Option<Instant>,
}

impl Fetch {
    fn slot(&self) -> Slot {
        self.parts.last().map_or(Slot(0), |part| part.slot)
    }

    /// Whether a part is of the same snapshot.
    fn is_of(&self, part: &SnapshotPart) -> bool {
        self.parts.last().is_some_and(|last| part.is_of_one_with(last))
    }

    /// Where the next part begins.
    fn end(&self) -> u64 {
        self.parts.last().map_or(0, SnapshotPart::end)
    }

    fn bytes(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(usize::try_from(self.end()).unwrap_or(0));
        self.parts.iter().for_each(|part| bytes.extend_from_slice(&part.bytes));
        bytes.into()
    }
}

impl Snapshots {
    /// What a disk holds: snapshots, and parts of one that was being fetched.
    pub(super) fn new(held: BTreeMap<Slot, Bytes>, parts: Vec<SnapshotPart>) -> Snapshots {
        let durable = held.last_key_value().map_or(Slot(0), |(slot, _)| *slot);
        let fetch = (!parts.is_empty()).then_some(Fetch { parts, asked: None, since: None });
        Snapshots { held, durable, digest: None, fetch }
    }

    pub(super) fn durable_through(&self) -> Slot {
        self.durable
    }
}

impl Node {
    /// A mark was applied: the state here is worth keeping.
    pub(super) fn take_snapshot(&mut self, slot: Slot) {
        let Some(system) = &self.system else { return };
        let state = system.encode();
        if self.snapshots.held.get(&slot) == Some(&state) {
            // Applied again after a start; it is on disk.
            return;
        }
        self.snapshots.held.insert(slot, state.clone());
        self.write(Write::Snapshot { slot, state });
        self.gate(Gated::Snapshot(slot));
    }

    /// Its driver has found a snapshot damaged on the disk: the bytes in memory were checked when they were read.
    pub(super) fn handle_damaged_snapshot(&mut self, slot: Slot) {
        if slot < self.trim_through {
            return;
        }
        let held = self.snapshots.held.get(&slot).cloned();
        self.notice(Notice::DamagedSnapshot { slot, healed: held.is_some() });
        if let Some(state) = held {
            self.write(Write::Snapshot { slot, state });
        }
    }

    pub(super) fn note_snapshot_durable(&mut self, slot: Slot) {
        self.snapshots.durable = self.snapshots.durable.max(slot);
    }

    /// The log was trimmed to `mark`: this member deletes what its own snapshot covers, and nothing else.
    pub(super) fn apply_trim(&mut self, mark: Mark) {
        if mark.slot <= self.trim_through || !self.snapshots.held.contains_key(&mark.slot) {
            return;
        }
        self.trim_through = mark.slot;
        self.snapshots.held.retain(|slot, _| *slot >= mark.slot);
        self.write(Write::Trim { through: mark.slot });
        self.disk.note_system_changed();
        self.outputs.push_back(Output::Trimmed { slot: mark.slot, index: mark.index });
    }

    /// `from` cannot serve the log from where this member stands: asks for a snapshot, one at a time. What was begun
    /// and is not gone on with for two election timeouts is given up: nobody who has the rest of it may be left.
    pub(super) fn request_snapshot(&mut self, now: Instant, from: MemberId) {
        let limit = self.settings().timeout * 2;
        let bounds = self.bounds;
        let transit = |fetch: &Fetch| bounds.transit(fetch.parts.last().map_or(0, |part| part.bytes.len()));
        let stands =
            |fetch: &Fetch| fetch.since.is_none_or(|since| now.since(since) < limit + transit(fetch));
        self.snapshots.fetch = self.snapshots.fetch.take().filter(stands);
        let patience =
            self.settings().heartbeat * 3 + self.snapshots.fetch.as_ref().map_or(Duration::ZERO, transit);
        let (slot, offset) = match &mut self.snapshots.fetch {
            Some(Fetch { asked: Some(asked), .. }) if now.since(*asked) < patience => return,
            Some(fetch) => {
                fetch.asked = Some(now);
                fetch.since.get_or_insert(now);
                (fetch.slot(), fetch.end())
            }
            None => (Slot(0), 0),
        };
        self.send(from, Message::SnapshotRequest { slot, offset });
    }

    /// Serves a part of the snapshot that this member's log begins with. One that was asked for and is gone is
    /// answered with the beginning of the present one.
    pub(super) fn send_snapshot_part(&mut self, now: Instant, to: MemberId, slot: Slot, offset: u64) {
        let Some(state) = self.snapshots.held.get(&self.trim_through).cloned() else { return };
        let digest = match self.snapshots.digest {
            Some((of, digest)) if of == self.trim_through => digest,
            _ => xxh3_128(&state),
        };
        self.snapshots.digest = Some((self.trim_through, digest));
        let asked = Wish::Snapshot { slot, offset };
        let offset = if slot == self.trim_through { offset } else { 0 };
        let begin = usize::try_from(offset).unwrap_or(usize::MAX).min(state.len());
        let end = begin.saturating_add(self.part_bytes()).min(state.len());
        let message = Message::SnapshotChunk {
            slot: self.trim_through,
            total: state.len() as u64,
            digest,
            offset: begin as u64,
            bytes: state.slice(begin..end),
        };
        self.send(to, message);
        self.note_served(now, to, asked, end - begin);
        self.pay(now, end - begin, 0);
    }

    /// A part came: self-clocked, the next is asked for when it is in.
    pub(super) fn handle_snapshot_chunk(
        &mut self,
        now: Instant,
        from: MemberId,
        slot: Slot,
        (total, digest): (u64, u128),
        offset: u64,
        bytes: &Bytes,
    ) {
        if slot <= self.chosen_through || total > limits::SNAPSHOT_BYTES {
            self.snapshots.fetch = self.snapshots.fetch.take().filter(|fetch| fetch.slot() != slot);
            return;
        }
        if bytes.is_empty() {
            return;
        }
        let part = SnapshotPart { slot, total, digest, offset, bytes: bytes.clone() };
        let begins = offset == 0;
        let next = match &mut self.snapshots.fetch {
            Some(fetch) if fetch.parts.last().is_some_and(|last| part.follows(last)) => fetch,
            // A newer one replaces what was begun; an older one is late, and so is a part that came before.
            Some(fetch) if !begins || fetch.slot() > slot || fetch.is_of(&part) => return,
            None if !begins => return,
            other => other.insert(Fetch { parts: Vec::new(), asked: None, since: None }),
        };
        if part.end() > total {
            return;
        }
        let end = part.end();
        next.parts.push(part.clone());
        (next.asked, next.since) = (Some(now), Some(now));
        if end < total {
            self.write(Write::SnapshotPart(part));
            return self.send(from, Message::SnapshotRequest { slot, offset: end });
        }
        let Some(fetch) = self.snapshots.fetch.take() else { return };
        let state = fetch.bytes();
        if xxh3_128(&state) != digest {
            // Fetched again from another member; nothing of it is used.
            return self.notice(Notice::Damaged { slot, from: Some(from) });
        }
        match SystemState::decode(state.clone()) {
            Ok(system) if system.applied == slot => self.install(from, system, state),
            _ => self.notice(Notice::Damaged { slot, from: Some(from) }),
        }
    }

    /// The snapshot becomes the state. `promised`, rows above it, identity and incarnation stay as they are.
    fn install(&mut self, from: MemberId, mut system: SystemState, state: Bytes) {
        let slot = system.applied;
        // A leader that is offered a snapshot past what it knows to be chosen does not lead.
        self.step_down("a snapshot shows that the log went on without this leader");
        if planted!(SnapshotWithoutSessions) {
            system.sessions = crate::sessions::Sessions::default();
        }
        if planted!(SnapshotWithoutConfiguration) {
            system.configurations.forget_pending(slot);
        }
        if planted!(SessionRowLost) {
            system.sessions.lose_one();
        }
        let index = system.last_index;
        (self.chosen_through, self.trim_through) = (slot, slot);
        self.system = Some(system);
        if !planted!(InstallKeepsBelow) {
            self.rows.retain(|row, _| *row > slot);
        }
        if planted!(InstallClearsAbove) {
            self.rows.clear();
        }
        if planted!(InstallLowersPromised) {
            self.promised = crate::types::Ballot::ZERO;
            self.write(Write::Promised(self.promised));
        }
        self.damaged.retain(|row| *row > slot);
        self.snapshots.held = BTreeMap::from([(slot, state.clone())]);
        self.write(Write::Install { slot, state });
        self.gate(Gated::Snapshot(slot));
        self.disk.note_installed(slot);
        self.catch_up.note_progress();
        self.catch_up.note_installed();
        self.notice(Notice::Installed { slot, from });
        self.outputs.push_back(Output::Installed { slot, index });
        // What became of calls in the slots that were skipped cannot be seen here.
        self.refuse_calls_under_way(&Refusal::OutcomeUnknown);
        self.answer_ready_reads();
        self.advance();
    }
}
