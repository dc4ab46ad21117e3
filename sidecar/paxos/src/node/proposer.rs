//! What a candidate and a leader does: collect promises, recover, LeaderStart, then one round trip a batch
//! (docs: protocol.md, "Leader" rules 2 to 6).

use super::Node;
use super::heartbeat::PeerProgress;
use super::phase_one::PartialPromise;
use super::pipeline::Pipeline;
use super::reads::LeaderReads;
use crate::io::Refusal;
use crate::limits;
use crate::message::Message;
use crate::row::{self, Row};
use crate::settings::Settings;
use crate::storage::{Gated, Write};
use crate::types::{Ballot, Instant, MemberId, Slot, Time};
use crate::value::{Call, Fields, Origin, Value};
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use bytes::Bytes;
use core::time::Duration;

/// Where a proposer stands with its first new entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// Phase 1 is not complete.
    Preparing,
    /// Phase 1 is complete; slots are recovered.
    Recovering,
    /// LeaderStart is proposed in that slot.
    Proposed(Slot),
    /// LeaderStart is applied: the slot is the fencing epoch.
    Serving(Slot),
}

/// A slot that is proposed under this ballot and not yet known chosen.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) votes: BTreeSet<MemberId>,
    /// Of the value.
    pub(super) bytes: usize,
}

/// A call that waits for a slot.
#[derive(Debug)]
pub(super) struct QueuedCall {
    pub(super) call: Call,
    /// It came from a follower.
    pub(super) forwarded: bool,
}

/// A candidate's or leader's state under one ballot. It ends with the ballot.
#[derive(Debug)]
pub(super) struct Proposer {
    pub(super) ballot: Ballot,
    pub(super) from: Slot,
    /// The ballot whose leader asked for this candidacy.
    pub(super) hand_over: Option<Ballot>,
    pub(super) since: Instant,
    pub(super) start: Start,
    pub(super) partial: BTreeMap<MemberId, PartialPromise>,
    /// Complete promises, with the trim point of each.
    pub(super) promised: BTreeMap<MemberId, Slot>,
    /// Of complete promises: the row with the highest ballot for each slot.
    pub(super) reports: BTreeMap<Slot, Row>,
    /// Members that reported a value that cannot be read here, for each slot.
    pub(super) unreadable: BTreeMap<Slot, BTreeSet<MemberId>>,
    /// The highest chosen prefix that a complete promise reported: no no-op at or below it.
    pub(super) reported_chosen: Slot,
    /// The slot that was last said to be withheld, and since when a heartbeat has seen it hold recovery up.
    pub(super) withheld: Slot,
    pub(super) withheld_since: Option<Instant>,
    /// The next slot to propose in. Invariant: `chosen_through < next_slot` once recovery began.
    pub(super) next_slot: Slot,
    pub(super) in_flight: BTreeMap<Slot, InFlight>,
    /// Bytes of the values in flight.
    pub(super) in_flight_bytes: usize,
    pub(super) pipelines: BTreeMap<MemberId, Pipeline>,
    pub(super) queue: VecDeque<QueuedCall>,
    pub(super) queue_bytes: usize,
    /// For each peer's life: the forwarded calls taken.
    pub(super) taken: BTreeMap<(MemberId, crate::types::Incarnation), super::appends::Taken>,
    pub(super) progress: BTreeMap<MemberId, PeerProgress>,
    pub(super) sequence: u64,
    pub(super) reads: LeaderReads,
    /// A configuration entry that is proposed or waits to be.
    pub(super) pending_change: Option<super::membership::PendingChange>,
    /// A mark or a trim that waits to be proposed.
    pub(super) housekeeping: Option<Value>,
    /// The slot of the last mark or trim: until it is applied, what is due next cannot be told.
    pub(super) housekept: Slot,
    /// When the previous batch was formed: log time advances by what passed since.
    pub(super) stamped: Option<Instant>,
    /// The time of the newest entries that were proposed under this ballot.
    pub(super) entry_time: Time,
    /// Since when members' chains differ.
    pub(super) diverged_since: Option<Instant>,
}

impl Proposer {
    pub(super) fn new(ballot: Ballot, from: Slot, hand_over: Option<Ballot>, now: Instant) -> Proposer {
        Proposer {
            ballot,
            from,
            hand_over,
            since: now,
            start: Start::Preparing,
            partial: BTreeMap::new(),
            promised: BTreeMap::new(),
            reports: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            withheld: Slot(0),
            withheld_since: None,
            reported_chosen: Slot(0),
            next_slot: from,
            in_flight: BTreeMap::new(),
            in_flight_bytes: 0,
            pipelines: BTreeMap::new(),
            queue: VecDeque::new(),
            queue_bytes: 0,
            taken: BTreeMap::new(),
            progress: BTreeMap::new(),
            sequence: 0,
            reads: LeaderReads::default(),
            pending_change: None,
            housekeeping: None,
            housekept: Slot(0),
            stamped: None,
            entry_time: Time(0),
            diverged_since: None,
        }
    }

    /// Phase 1 is complete for the next slot.
    pub(super) fn is_leading(&self) -> bool {
        self.start != Start::Preparing
    }

    pub(super) fn is_serving(&self) -> bool {
        matches!(self.start, Start::Serving(_))
    }

    /// A promise counts once all its chunks have come, and not while the candidate's own chosen prefix is
    /// below that member's trim point.
    pub(super) fn promisers(&self, chosen_through: Slot) -> BTreeSet<MemberId> {
        self.promised.iter().filter(|(_, trim)| **trim <= chosen_through).map(|(m, _)| *m).collect()
    }

    /// A slot is proposed.
    fn depart(&mut self, slot: Slot, bytes: usize) {
        self.in_flight_bytes += bytes;
        self.in_flight.insert(slot, InFlight { votes: BTreeSet::new(), bytes });
    }

    /// A slot is known chosen.
    pub(super) fn land(&mut self, slot: Slot) {
        if let Some(flight) = self.in_flight.remove(&slot) {
            self.in_flight_bytes -= flight.bytes;
        }
    }

    pub(super) fn has_promise_of(&self, member: MemberId) -> bool {
        self.promised.contains_key(&member)
    }

    pub(super) fn report(&mut self, rows: impl IntoIterator<Item = Row>) {
        for row in rows {
            let better = self.reports.get(&row.slot).is_none_or(|held| {
                !held.chosen && (row.chosen || row.ballot > held.ballot || planted!(LowestBallotAdopted))
            });
            if better {
                self.reports.insert(row.slot, row);
            }
        }
    }
}

impl Node {
    /// Does what a proposer can do now. Called before every flush, so that whatever came in together shares
    /// slots and writes.
    pub(super) fn drive(&mut self, now: Instant) {
        self.become_leader(now);
        self.dispatch_queued(now);
        self.drive_hand_over(now);
        while self.drive_next_slot(now) {}
        self.drive_reads(now);
    }

    fn become_leader(&mut self, now: Instant) {
        let next = self.chosen_through.next();
        let Some(proposer) = self.proposer.as_mut().filter(|p| !p.is_leading()) else { return };
        let Some(system) = &self.system else { return };
        let promisers = proposer.promisers(self.chosen_through);
        if !system.configurations.at(next).has_quorum(&promisers) {
            return;
        }
        proposer.start = Start::Recovering;
        proposer.since = now;
        let ballot = proposer.ballot;
        self.election.leader = Some(ballot);
        self.outputs.push_back(crate::Output::LeaderChanged { leader: Some(ballot) });
        self.send_heartbeats(now);
    }

    /// Proposes in the next slot, if it may; false: nothing more can be done now.
    fn drive_next_slot(&mut self, now: Instant) -> bool {
        let chosen_through = self.chosen_through;
        let Some(proposer) = self.proposer.as_mut().filter(|p| p.is_leading()) else { return false };
        if proposer.next_slot <= chosen_through {
            proposer.next_slot = chosen_through.next();
        }
        let slot = proposer.next_slot;
        let reports_below = proposer.reports.split_off(&slot);
        proposer.reports = reports_below;
        let Some(system) = &self.system else { return false };
        // The window: no slot j before every slot up to j - alpha is chosen.
        let unchecked = planted!(AlphaUnchecked) && proposer.start == Start::Recovering;
        if slot.0 > chosen_through.0 + system.configurations.alpha() && !unchecked {
            return false;
        }
        if !system.configurations.at(slot).is_voter(self.me) {
            // A removed leader finishes what it may propose, then hands over. It does not wait for promises here: those
            // who know of its removal give it none.
            self.hand_over_when_removed(now);
            return false;
        }
        // Phase 1 for a slot needs a quorum of the slot's own configuration.
        let promisers = proposer.promisers(chosen_through);
        if !system.configurations.at(slot).has_quorum(&promisers) {
            return false;
        }
        if self.rows.get(&slot).is_some_and(|row| row.chosen) {
            proposer.next_slot = slot.next();
            return true;
        }
        if let Some(report) = proposer.reports.get(&slot).cloned() {
            if report.chosen {
                self.learn(report);
                return true;
            }
            let Some(value) = self.adopted(slot, report.value) else { return false };
            self.propose(now, value);
            return true;
        }
        if slot <= proposer.reported_chosen && !planted!(NoOpBelowChosen) {
            // Known chosen by others: learnt, never given a no-op.
            return false;
        }
        if proposer.reports.last_key_value().is_some_and(|(top, _)| slot < *top) {
            self.propose(now, Value::NoOp.encode());
            return true;
        }
        self.drive_new_slot(now, slot)
    }

    /// A slot that recovery need not decide.
    fn drive_new_slot(&mut self, now: Instant, slot: Slot) -> bool {
        let Some(proposer) = self.proposer.as_mut() else { return false };
        let Some(system) = &self.system else { return false };
        match proposer.start {
            Start::Preparing | Start::Proposed(_) => false,
            Start::Recovering => {
                // LeaderStart decides what became of every earlier ballot's calls: all that recovery proposed
                // is applied first, and every configuration known then has promised.
                let promisers = proposer.promisers(self.chosen_through);
                let covered = system.configurations.from(slot).all(|c| c.has_quorum(&promisers));
                if slot != self.chosen_through.next() || !covered {
                    return false;
                }
                proposer.start = Start::Proposed(slot);
                proposer.reports.clear();
                proposer.unreadable.clear();
                let ballot = proposer.ballot;
                self.propose(now, Value::LeaderStart { ballot }.encode());
                true
            }
            Start::Serving(_) => self.drive_serving_slot(now, slot),
        }
    }

    fn drive_serving_slot(&mut self, now: Instant, slot: Slot) -> bool {
        let handing_over = self.is_handing_over();
        let Some(system) = &self.system else { return false };
        let filling = system.configurations.latest().effective_from > slot;
        let Some(proposer) = self.proposer.as_mut() else { return false };
        if handing_over && !filling {
            return false;
        }
        if let Some(change) = proposer.pending_change.as_mut().filter(|c| c.slot.is_none()) {
            let value = Value::Configuration(change.entry.clone());
            let within = value.level() <= system.settings.format_level;
            let value = value.encode_checked().filter(|_| within);
            if value.is_some() {
                change.slot = Some(slot);
            }
            match value {
                Some(value) => self.propose(now, value),
                None => self.refuse_unreadable_change(slot),
            }
            return true;
        }
        if !handing_over && let Some(value) = proposer.housekeeping.take() {
            if self.is_still_due(&value) {
                if let Some(proposer) = self.proposer.as_mut() {
                    proposer.housekept = slot;
                }
                self.propose(now, value.encode());
            }
            return true;
        }
        let room = proposer.in_flight_bytes < self.bounds.proposed;
        if !proposer.queue.is_empty() && self.disk.is_idle() && room && !handing_over {
            if let Some(value) = self.form_batch(now, slot) {
                self.propose(now, value);
            }
            // One batch for each write of this member's own disk: the next forms while this one is written.
            return false;
        }
        if filling && (proposer.queue.is_empty() || handing_over) {
            self.propose(now, Value::NoOp.encode());
            return true;
        }
        false
    }

    /// Takes whatever waits, up to one slot's bounds. None: nothing is left of it that may be proposed.
    fn form_batch(&mut self, now: Instant, slot: Slot) -> Option<Bytes> {
        let (ballot, advance, mut calls) = self.take_calls(now)?;
        let fields = Fields::timed(self.next_entry_time());
        // What was let in may have waited: a member may have been added since, or the level may be another.
        for (origin, refusal) in self.above_the_level(now, &mut calls) {
            self.refuse_queued(origin, refusal);
        }
        let mut batch = Value::Batch { ballot, advance, fields, calls };
        let mut encoded = batch.encode_checked();
        if encoded.is_none()
            && let Value::Batch { calls, .. } = &mut batch
        {
            // What takes calls in should have refused one of them: only that one is lost.
            let (good, bad) = core::mem::take(calls).into_iter().partition(Call::is_readable);
            *calls = good;
            self.refuse_unreadable(slot, bad);
            encoded = batch.encode_checked();
        }
        let Value::Batch { calls, .. } = &batch else { return None };
        if calls.is_empty() {
            return None;
        }
        if encoded.is_none() {
            let calls = calls.clone();
            self.refuse_unreadable(slot, calls);
            return None;
        }
        for call in calls.iter().filter(|call| call.origin.member == self.me) {
            self.appends.note_proposed(call.origin.request, ballot);
            if planted!(AcknowledgedEarly) {
                let tail = self.system.as_ref().map(|s| s.last_index).unwrap_or_default();
                let (first, last) = (tail.next(), tail.plus(call.entry_count() as u64));
                let outcome = Ok(crate::Reply::Appended { first, last, repeat: false });
                self.outputs.push_back(crate::Output::CallReply { request: call.origin.request, outcome });
            }
        }
        encoded
    }

    /// Takes those out of `calls` that may not be proposed at the level of the log.
    fn above_the_level(&self, now: Instant, calls: &mut Vec<Call>) -> Vec<(Origin, Refusal)> {
        let mut refused = Vec::new();
        calls.retain(|call| match self.check_format_level(now, &call.operation) {
            Some(refusal) => {
                refused.push((call.origin, refusal));
                false
            }
            None => true,
        });
        refused
    }

    /// The wall clock's time, but not before that of the newest entry: a clock may be behind another, or be set back.
    fn next_entry_time(&mut self) -> Option<Time> {
        let system = self.system.as_ref()?;
        if system.settings.format_level < Settings::TIMES {
            return None;
        }
        let proposer = self.proposer.as_mut()?;
        let mut time = self.wall.min(Time::LATEST);
        if !planted!(EntryTimeGoesBack) {
            time = time.max(system.entry_time).max(proposer.entry_time);
        }
        proposer.entry_time = time;
        Some(time)
    }

    fn take_calls(&mut self, now: Instant) -> Option<(Ballot, Duration, Vec<Call>)> {
        let proposer = self.proposer.as_mut()?;
        let (mut calls, mut bytes, mut entries) = (Vec::new(), 0, 0);
        while let Some(queued) = proposer.queue.front() {
            bytes += queued.call.payload_bytes();
            entries += queued.call.entry_count().max(1);
            if !calls.is_empty() && (bytes > limits::BATCH_BYTES || entries > limits::BATCH_ENTRIES) {
                break;
            }
            let Some(queued) = proposer.queue.pop_front() else { break };
            proposer.queue_bytes -= queued.call.payload_bytes();
            calls.push(queued.call);
        }
        // A leader that saw no batch of an earlier one applied adds nothing: no clock has seen the time before it.
        let advance = proposer.stamped.map_or(Duration::ZERO, |stamped| now.since(stamped));
        proposer.stamped = Some(now);
        Some((proposer.ballot, advance, calls))
    }

    /// Phase 2a in the next slot: the sends run beside this member's own write.
    fn propose(&mut self, now: Instant, value: Bytes) {
        let (Some(cluster), Some(proposer)) = (self.cluster(), self.proposer.as_mut()) else { return };
        let (ballot, slot) = (proposer.ballot, proposer.next_slot);
        proposer.next_slot = slot.next();
        assert!(ballot == self.promised, "proposing under {ballot:?} but promised {:?}", self.promised);
        let checksum = row::checksum(cluster, slot, ballot, &value);
        proposer.depart(slot, value.len());
        self.accept(Row { slot, ballot, chosen: false, value, checksum });
        for to in self.followers_of(slot) {
            self.feed(now, to);
        }
        if planted!(SelfVoteBeforeSync) {
            return self.handle_accepted(now, self.me, ballot, &[slot]);
        }
        self.gate(Gated::OwnVote(ballot, slot));
    }

    pub(super) fn send_accept(&mut self, now: Instant, to: MemberId, row: &Row) {
        let (chosen_through, has_quorum) = (self.chosen_through, self.leads_with_quorum(now));
        let Row { slot, ballot, value, checksum, .. } = row.clone();
        self.send(to, Message::Accept { ballot, slot, value, checksum, chosen_through, has_quorum });
    }

    /// Voters of the slot's configuration and everyone in the newest one.
    pub(super) fn followers_of(&self, slot: Slot) -> Vec<MemberId> {
        let configurations = &self.state().configurations;
        let mut all: BTreeSet<MemberId> = configurations.at(slot).voters().collect();
        all.extend(configurations.latest().members.keys());
        all.remove(&self.me);
        all.into_iter().collect()
    }

    /// Whether `member` is one of [`Node::followers_of`] the slot.
    pub(super) fn is_follower(&self, slot: Slot, member: MemberId) -> bool {
        let configurations = &self.state().configurations;
        let follows =
            configurations.at(slot).is_voter(member) || configurations.latest().members.contains_key(&member);
        follows && member != self.me
    }

    /// Phase 2b. Only votes of voters of conf(slot), under this very ballot, count.
    pub(super) fn handle_accepted(&mut self, now: Instant, from: MemberId, ballot: Ballot, slots: &[Slot]) {
        let me = self.me;
        let counts = |p: &&mut Proposer| p.ballot == ballot || planted!(OlderBallotVotes);
        let Some(proposer) = self.proposer.as_mut().filter(counts) else { return };
        let Some(system) = &self.system else { return };
        if from != me {
            proposer.progress.entry(from).or_default().answered(now);
        }
        for slot in slots {
            let Some(flight) = proposer.in_flight.get_mut(slot) else { continue };
            flight.votes.insert(from);
            if system.configurations.at(*slot).has_quorum(&flight.votes) {
                proposer.land(*slot);
                if let Some(row) = self.rows.get_mut(slot) {
                    assert!(
                        row.ballot == ballot || row.chosen,
                        "{slot:?} chosen under {ballot:?}, held {row:?}"
                    );
                    row.chosen = true;
                }
            }
        }
        self.advance();
        if from != me {
            self.note_accepts_answered(now, from, slots);
        }
    }

    /// A chosen row reached a leader from elsewhere. Under its ballot it passes a slot it proposed only if
    /// exactly its batch was chosen there; else it steps down first.
    pub(super) fn check_learnt_against_proposal(&mut self, row: &Row) {
        let Some(proposer) = self.proposer.as_mut() else { return };
        if !proposer.in_flight.contains_key(&row.slot) {
            return;
        }
        let own = self.rows.get(&row.slot);
        if own.is_some_and(|own| own.value == row.value) || planted!(LeaderAdopts) {
            proposer.land(row.slot);
        } else {
            self.step_down("another batch was chosen in a slot of ours");
        }
    }

    /// A learnt row: chosen, so it replaces whatever stood there.
    pub(super) fn learn(&mut self, mut row: Row) {
        if row.slot <= self.chosen_through {
            return;
        }
        self.check_learnt_against_proposal(&row);
        if let Some(held) = self.rows.get(&row.slot).filter(|held| held.chosen) {
            assert!(held.value == row.value, "{:?} was chosen twice: {held:?} and {row:?}", row.slot);
            return;
        }
        row.chosen = true;
        self.note_healed(row.slot);
        self.write(Write::Row(row.clone()));
        self.rows.insert(row.slot, row);
        self.advance();
    }
}
