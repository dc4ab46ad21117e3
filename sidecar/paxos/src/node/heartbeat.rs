//! A leader's life signs, and what their answers tell it (docs: protocol.md, "Election under partial
//! connectivity", "Leases and reads").

use super::Node;
use super::lease;
use crate::message::{ChainPoint, Message};
use crate::types::{Ballot, Incarnation, Instant, MemberId, Slot};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

/// What a leader knows of one peer.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerProgress {
    /// The send time of the newest heartbeat it answered, or when it last answered anything else.
    last_answer: Option<Instant>,
    /// The highest heartbeat it answered.
    pub(super) sequence: u64,
    pub(super) chosen_through: Slot,
    pub(super) durable_through: Slot,
    /// The catch-up round under way: when it began, and the prefix it is to reach.
    round: Option<(Instant, Slot)>,
    /// Its last catch-up round took less than an election timeout.
    pub(super) caught_up: bool,
    /// Until when, by this member's clock, its lease lives.
    pub(super) lease_until: Instant,
    /// The newest mark whose snapshot is on its disk.
    pub(super) snapshot_through: Slot,
    /// The chain that it last answered with.
    pub(super) chain: Option<ChainPoint>,
    /// The newest format level that it reads; 0 until it has answered.
    pub(super) format_level: u32,
    /// How busy it is, as it says.
    pub(super) load: u64,
}

/// What a heartbeat says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beat {
    pub(super) sequence: u64,
    pub(super) chosen_through: Slot,
    pub(super) has_quorum: bool,
    pub(super) lease: Duration,
    pub(super) chain: Option<ChainPoint>,
    pub(super) source: Option<MemberId>,
    pub(super) taken: Option<(Incarnation, u64)>,
}

/// What the answer to one says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) sequence: u64,
    pub(super) chosen_through: Slot,
    pub(super) durable_through: Slot,
    pub(super) granted: bool,
    pub(super) snapshot_through: Slot,
    pub(super) chain: Option<ChainPoint>,
    pub(super) format_level: u32,
    pub(super) load: u64,
}

impl PeerProgress {
    pub(super) fn answered(&mut self, at: Instant) {
        self.last_answer = self.last_answer.max(Some(at));
    }

    pub(super) fn silent_for(&self, now: Instant) -> Option<core::time::Duration> {
        self.last_answer.map(|at| now.since(at))
    }

    fn answered_within(&self, now: Instant, span: core::time::Duration) -> bool {
        self.silent_for(now).is_some_and(|silent| silent < span)
    }

    /// Rounds as in docs: protocol.md, "Configurations", learners: a round reaches, in less than an election
    /// timeout, what was chosen when it began.
    fn note_durable(&mut self, now: Instant, durable: Slot, chosen: Slot, timeout: core::time::Duration) {
        self.durable_through = self.durable_through.max(durable);
        match self.round {
            Some((began, target)) if self.durable_through >= target => {
                self.caught_up = now.since(began) < timeout;
                self.round = Some((now, chosen));
            }
            Some((began, _)) => {
                if now.since(began) >= timeout {
                    self.caught_up = false;
                }
            }
            None => self.round = Some((now, chosen)),
        }
    }
}

/// Heartbeats under way: when each was sent, and the lease that it asked for.
pub(super) type SentHeartbeats = BTreeMap<u64, (Instant, Duration)>;

impl Node {
    pub(super) fn beat_proposer(&mut self, now: Instant) {
        if self.proposer.is_none() {
            return;
        }
        if self.proposer.as_ref().is_some_and(|p| p.is_leading()) {
            let timeout = self.settings().timeout;
            let withholds = self.withholds_in_vain(now);
            let why = if !self.quorum_answered_within(now, timeout) {
                Some("no answers from a quorum")
            } else if self.disk.is_stalled(now, timeout) {
                Some("its disk does not answer")
            } else if withholds {
                Some("it cannot read what others accepted")
            } else {
                self.wants_in_vain(now).then_some("a row of its own is damaged, and nobody could give it")
            };
            if let Some(why) = why {
                self.step_down(why);
                self.reset_election_timer(now);
                if withholds || !self.wanted.slots.is_empty() {
                    // Another is to lead.
                    self.election.deadline = self.election.deadline.after(timeout * 2);
                }
                return;
            }
            self.send_heartbeats(now);
            self.send_retirements();
        }
        self.resend_unanswered(now);
    }

    /// Everyone who follows: the newest configuration, the one in force, and members removed but connected.
    fn heartbeat_targets(&self) -> Vec<MemberId> {
        let configurations = &self.state().configurations;
        let mut all: BTreeSet<MemberId> = configurations.latest().members.keys().copied().collect();
        all.extend(configurations.at(self.chosen_through.next()).members.keys());
        all.extend(configurations.removed().keys().filter(|m| self.connected.contains(m)));
        all.remove(&self.me);
        all.into_iter().collect()
    }

    pub(super) fn send_heartbeats(&mut self, now: Instant) {
        let has_quorum = self.leads_with_quorum(now);
        let targets = self.heartbeat_targets();
        let chosen_through = self.chosen_through;
        let timeout = self.settings().timeout;
        let (lease, chain) = (self.lease_wanted(), self.newest_chain_point());
        let Some(proposer) = self.proposer.as_mut() else { return };
        proposer.sequence += 1;
        let (ballot, sequence) = (proposer.ballot, proposer.sequence);
        proposer.reads.sent.insert(sequence, (now, lease));
        proposer.reads.sent.retain(|_, (sent, _)| now.since(*sent) <= timeout);
        for to in targets {
            let source = self.source_for(now, to);
            let taken = self.forwards_taken(to);
            let beat = Message::Heartbeat {
                ballot,
                sequence,
                chosen_through,
                has_quorum,
                lease,
                chain,
                source,
                taken,
            };
            self.send(to, beat);
        }
    }

    pub(super) fn handle_heartbeat(&mut self, now: Instant, from: MemberId, ballot: Ballot, beat: Beat) {
        if ballot.member != from {
            return;
        }
        if !self.is_active() {
            self.catch_up.note_source(beat.source);
            return self.note_chosen_elsewhere(from, beat.chosen_through);
        }
        if ballot < self.promised {
            return self.send(from, Message::Nack { ballot, promised: self.promised });
        }
        self.catch_up.note_source(beat.source);
        self.hear(now, ballot, beat.has_quorum);
        self.note_forwards_taken(ballot, beat.taken);
        self.note_chosen_by_leader(ballot, beat.chosen_through);
        let granted = self.grant_lease(now, ballot, beat.lease);
        let answer = Message::HeartbeatReply {
            ballot,
            sequence: beat.sequence,
            chosen_through: self.chosen_through,
            durable_through: self.disk.chosen_durable(),
            granted,
            snapshot_through: self.snapshots.durable_through(),
            chain: self.chain_point_for(beat.chain),
            format_level: self.readable_level,
            load: self.pace.load(),
        };
        self.send(from, answer);
    }

    pub(super) fn handle_heartbeat_reply(
        &mut self,
        now: Instant,
        from: MemberId,
        ballot: Ballot,
        answer: Answer,
    ) {
        let (timeout, chosen) = (self.settings().timeout, self.chosen_through);
        let drift = self.state().settings.clock_drift_percent;
        let Some(proposer) = self.proposer.as_mut().filter(|p| p.ballot == ballot) else { return };
        // Contact counts from when the heartbeat was sent: a late answer proves no more than that. So does a
        // lease.
        let sent = proposer.reads.sent.get(&answer.sequence).copied();
        let progress = proposer.progress.entry(from).or_default();
        if let Some((sent, lease)) = sent {
            progress.answered(sent);
            if answer.granted {
                let from = if planted!(LeaseFromReceipt) { now } else { sent };
                progress.lease_until = progress.lease_until.max(from.after(lease::counted(lease, drift)));
            }
        }
        progress.sequence = progress.sequence.max(answer.sequence);
        progress.chosen_through = progress.chosen_through.max(answer.chosen_through);
        progress.snapshot_through = progress.snapshot_through.max(answer.snapshot_through);
        progress.format_level = answer.format_level;
        progress.load = answer.load;
        progress.chain = answer.chain;
        progress.note_durable(now, answer.durable_through, chosen, timeout);
        self.note_held(now, from, answer.chosen_through);
        self.note_chosen_elsewhere(from, answer.chosen_through);
        if let Some(point) = answer.chain {
            self.compare_chains(now, point);
        }
    }

    fn quorum_answered_within(&self, now: Instant, span: core::time::Duration) -> bool {
        let Some(proposer) = &self.proposer else { return false };
        let mut answered: BTreeSet<MemberId> =
            proposer.progress.iter().filter(|(_, p)| p.answered_within(now, span)).map(|(m, _)| *m).collect();
        answered.insert(self.me);
        self.state().configurations.at(self.chosen_through.next()).has_quorum(&answered)
    }

    /// What a leader says of itself in heartbeats and Accepts: false well before it steps down.
    pub(super) fn leads_with_quorum(&self, now: Instant) -> bool {
        let leading = self.proposer.as_ref().is_some_and(|p| p.is_leading());
        leading && self.quorum_answered_within(now, self.settings().timeout / 2)
    }

    /// This member's own watermark became durable: at the leader it counts among the others'.
    pub(super) fn note_own_durable(&mut self, slot: Slot) {
        let me = self.me;
        if let Some(proposer) = self.proposer.as_mut() {
            let own = proposer.progress.entry(me).or_default();
            own.durable_through = own.durable_through.max(slot);
            own.caught_up = true;
        }
    }
}
