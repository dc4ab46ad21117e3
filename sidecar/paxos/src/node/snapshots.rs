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

/// Beats after which a snapshot that nobody asked for leaves memory.
const IDLE_BEATS: u32 = 20;
/// So often each peer is asked for a damaged one.
const ROUNDS: usize = 3;

/// The snapshots of this disk, and the one that is being fetched. They are on the disk; one is in memory while it is
/// served, however many there are (docs: reliability.md, "Bounds").
#[derive(Debug, Default, Clone)]
pub(super) struct Snapshots {
    /// Those on the disk or on their way there, with their digests where they are known.
    held: BTreeMap<Slot, Option<u128>>,
    /// The newest that is on disk.
    durable: Slot,
    loaded: Option<Loaded>,
    /// The one that is being read from the disk, and who waits for which part of it.
    reading: Option<(Slot, BTreeMap<MemberId, u64>)>,
    healing: Option<Healing>,
    fetch: Option<Fetch>,
}

/// The snapshot in memory.
#[derive(Debug, Clone)]
struct Loaded {
    slot: Slot,
    digest: u128,
    state: Bytes,
    idle: u32,
}

/// A damaged snapshot that comes from a peer: everyone has the same bytes at the same slot.
#[derive(Debug, Clone)]
struct Healing {
    slot: Slot,
    bytes: Vec<u8>,
    asked: Instant,
    /// Asked since a part last came.
    tries: usize,
    /// Came whole, and were not the bytes that stood here.
    wrong: usize,
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
        // Of those that are only listed nothing was read.
        let digest = |state: Bytes| (!state.is_empty()).then(|| xxh3_128(&state));
        let held = held.into_iter().map(|(slot, state)| (slot, digest(state))).collect();
        Snapshots { held, durable, fetch, ..Snapshots::default() }
    }

    /// Bytes of snapshots in memory, those that are fetched apart.
    pub(super) fn bytes(&self) -> usize {
        let loaded = self.loaded.as_ref().map_or(0, |loaded| loaded.state.len());
        loaded + self.healing.as_ref().map_or(0, |healing| healing.bytes.len())
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
        let digest = Some(xxh3_128(&state));
        if self.snapshots.held.get(&slot) == Some(&digest) {
            // Applied again after a start; it is on disk.
            return;
        }
        self.snapshots.held.insert(slot, digest);
        self.write(Write::Snapshot { slot, state });
        self.gate(Gated::Snapshot(slot));
    }

    /// Its driver has found a snapshot damaged on the disk: the bytes in memory were checked when they were read, and
    /// a peer has the same.
    pub(super) fn handle_damaged_snapshot(&mut self, now: Instant, slot: Slot) {
        let Some(digest) = self.snapshots.held.get(&slot).copied().filter(|_| slot >= self.trim_through)
        else {
            return;
        };
        let loaded = self.snapshots.loaded.as_ref();
        let whole = loaded.filter(|l| l.slot == slot && digest.is_none_or(|digest| digest == l.digest));
        if let Some(state) = whole.map(|loaded| loaded.state.clone()) {
            self.notice(Notice::DamagedSnapshot { slot, healed: true });
            return self.write(Write::Snapshot { slot, state });
        }
        if self.snapshots.healing.is_none() {
            self.snapshots.healing =
                Some(Healing { slot, bytes: Vec::new(), asked: now, tries: 0, wrong: 0 });
            self.ask_to_heal(now);
        }
    }

    /// Asks one peer after the other for what is missing of a damaged snapshot.
    fn ask_to_heal(&mut self, now: Instant) {
        let Some(healing) = &mut self.snapshots.healing else { return };
        let (slot, offset, turn) = (healing.slot, healing.bytes.len() as u64, healing.tries + healing.wrong);
        let peers = self.connected.len();
        let in_vain = healing.tries >= peers * ROUNDS || healing.wrong >= peers * ROUNDS;
        (healing.asked, healing.tries) = (now, healing.tries + 1);
        if in_vain || slot < self.trim_through {
            self.snapshots.healing = None;
            return self.notice(Notice::DamagedSnapshot { slot, healed: false });
        }
        if let Some(to) = self.connected.iter().nth(turn % peers).copied() {
            self.send(to, Message::SnapshotRequest { slot, offset });
        }
    }

    /// A part of the snapshot that is damaged here.
    fn handle_healing_part(&mut self, now: Instant, from: MemberId, total: u64, offset: u64, bytes: &Bytes) {
        let Some(healing) = &mut self.snapshots.healing else { return };
        let slot = healing.slot;
        if offset != healing.bytes.len() as u64 || total > limits::SNAPSHOT_BYTES || bytes.is_empty() {
            return;
        }
        healing.bytes.extend_from_slice(bytes);
        (healing.asked, healing.tries) = (now, 0);
        let end = healing.bytes.len() as u64;
        if end < total {
            return self.send(from, Message::SnapshotRequest { slot, offset: end });
        }
        let state: Bytes = core::mem::take(&mut healing.bytes).into();
        let digest = xxh3_128(&state);
        let known = self.snapshots.held.get(&slot).copied().flatten();
        let right = known.is_none_or(|known| known == digest)
            && SystemState::decode(state.clone()).is_ok_and(|system| system.applied == slot);
        if !right {
            healing.wrong += 1;
            return self.ask_to_heal(now);
        }
        self.snapshots.healing = None;
        self.snapshots.held.insert(slot, Some(digest));
        self.notice(Notice::DamagedSnapshot { slot, healed: true });
        self.write(Write::Snapshot { slot, state });
    }

    /// What nobody asks for leaves memory; whoever does not answer is asked no more.
    pub(super) fn beat_snapshots(&mut self, now: Instant) {
        let snapshots = &mut self.snapshots;
        snapshots.loaded.iter_mut().for_each(|loaded| loaded.idle += 1);
        snapshots.loaded = snapshots.loaded.take().filter(|loaded| loaded.idle < IDLE_BEATS);
        let patience = self.settings().heartbeat * 3;
        if self.snapshots.healing.as_ref().is_some_and(|healing| now.since(healing.asked) >= patience) {
            self.ask_to_heal(now);
        }
    }

    /// A snapshot was read from the disk: those who wait for it get their parts.
    pub(super) fn handle_snapshot_read(&mut self, now: Instant, slot: Slot, state: Option<Bytes>) {
        if self.snapshots.reading.as_ref().is_none_or(|(asked, _)| *asked != slot) {
            return;
        }
        let Some((_, waiting)) = self.snapshots.reading.take() else { return };
        let Some(state) = state else { return };
        let Some(held) = self.snapshots.held.get_mut(&slot) else { return };
        let digest = xxh3_128(&state);
        if *held.get_or_insert(digest) != digest {
            return self.handle_damaged_snapshot(now, slot);
        }
        self.snapshots.loaded = Some(Loaded { slot, digest, state, idle: 0 });
        for (member, offset) in waiting {
            self.send_snapshot_part(now, member, slot, offset);
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
        let wish = Wish::Snapshot { slot, offset };
        // Another is asked for only by whoever has it damaged.
        let asked = slot > self.trim_through && self.snapshots.held.contains_key(&slot);
        let serves = if asked { slot } else { self.trim_through };
        let offset = if slot == serves { offset } else { 0 };
        if !self.snapshots.held.contains_key(&serves) {
            return;
        }
        let loaded = self.snapshots.loaded.as_mut().filter(|loaded| loaded.slot == serves);
        let Some(Loaded { digest, state, idle, .. }) = loaded else {
            return self.read_snapshot(serves, to, offset);
        };
        *idle = 0;
        let (digest, state) = (*digest, state.clone());
        let begin = usize::try_from(offset).unwrap_or(usize::MAX).min(state.len());
        let end = begin.saturating_add(self.part_bytes()).min(state.len());
        let message = Message::SnapshotChunk {
            slot: serves,
            total: state.len() as u64,
            digest,
            offset: begin as u64,
            bytes: state.slice(begin..end),
        };
        self.send(to, message);
        self.note_served(now, to, wish, end - begin);
        self.pay(now, end - begin, 0);
    }

    /// One is read at a time; who waits for another asks again.
    fn read_snapshot(&mut self, slot: Slot, to: MemberId, offset: u64) {
        let begins = self.snapshots.reading.is_none();
        let (of, waiting) = self.snapshots.reading.get_or_insert((slot, BTreeMap::new()));
        if *of != slot {
            return;
        }
        waiting.insert(to, offset);
        if begins {
            // Before the next one is in memory, the last one leaves it.
            self.snapshots.loaded = None;
            self.outputs.push_back(Output::ReadSnapshot { slot });
        }
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
        if self.snapshots.healing.as_ref().is_some_and(|healing| healing.slot == slot) {
            return self.handle_healing_part(now, from, total, offset, bytes);
        }
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
        // Its log time is that of now: what passed here since the last batch was seen is in it.
        self.log_time_seen = Some(self.clock);
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
        self.snapshots.held = BTreeMap::from([(slot, Some(xxh3_128(&state)))]);
        self.snapshots.loaded = None;
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
