//! Who may lead: hearing a leader, canvass, prepare, stepping down (docs: protocol.md, "Leader" rules 1, 2
//! and 7, "Election under partial connectivity").

use super::Node;
use super::proposer::Proposer;
use crate::io::{Notice, Output};
use crate::message::Message;
use crate::storage::Gated;
use crate::types::{Ballot, Incarnation, Instant, MemberId};
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::time::Duration;

/// What this member knows of leaders, and its own canvass.
#[derive(Debug)]
pub(super) struct Election {
    /// The leader it follows: the ballot of the last Accept or heartbeat at a ballot >= promised.
    pub(super) leader: Option<Ballot>,
    /// When a leader with a quorum was last heard; a start counts as hearing one.
    heard: Instant,
    /// The ballot of a candidate that takes this member's promise in chunks, and until when it may be busy with the last.
    taken: Option<(Ballot, Instant)>,
    /// When it campaigns if it hears nothing.
    pub(super) deadline: Instant,
    /// The highest round seen anywhere.
    round: u64,
    canvass: Option<Canvass>,
    last_canvass: u64,
    /// The pod is going: no campaign until then.
    barred: Option<Barred>,
    /// When the leader that it follows last said anything.
    spoken: Instant,
}

/// A stop that was announced.
#[derive(Clone, Copy, Debug)]
struct Barred {
    since: Instant,
    until: Instant,
}

/// How long a member whose stop was announced does not campaign: longer than a pod's grace, after which it is gone.
const STOP_PATIENCE: Duration = Duration::from_secs(120);
/// Election timeouts without a leader after which an announced stop bars no campaign any more: whoever else could
/// lead would have.
const STOP_TIMEOUTS: u32 = 4;
/// Heartbeats without a word from the leader after which calls are held and not sent to it.
const SILENT_HEARTBEATS: u32 = 3;

#[derive(Debug)]
struct Canvass {
    id: u64,
    willing: BTreeSet<MemberId>,
}

impl Election {
    pub(super) fn new(now: Instant, incarnation: Incarnation) -> Election {
        Election {
            leader: None,
            heard: now,
            taken: None,
            deadline: now,
            round: 0,
            canvass: None,
            last_canvass: incarnation.0 << 40,
            barred: None,
            spoken: now,
        }
    }

    pub(super) fn note_round(&mut self, round: u64) {
        self.round = self.round.max(round);
    }
}

impl Node {
    pub(super) fn reset_election_timer(&mut self, now: Instant) {
        let timeout = self.settings().timeout;
        self.election.deadline = now.after(timeout + self.random.up_to(timeout));
    }

    /// Notes a leader's Accept or heartbeat at `ballot` >= promised. Only a leader that has a quorum counts as
    /// heard: one that cannot reach a quorum never holds up those that can.
    pub(super) fn hear(&mut self, now: Instant, ballot: Ballot, has_quorum: bool) {
        self.election.note_round(ballot.round);
        self.election.spoken = now;
        if self.proposer.as_ref().is_some_and(|p| p.ballot < ballot) {
            self.step_down("another member leads under a higher ballot");
        }
        if self.election.leader.is_none_or(|leader| leader < ballot) {
            self.election.leader = Some(ballot);
            self.outputs.push_back(Output::LeaderChanged { leader: Some(ballot) });
            self.catch_up.reset();
            self.note_transfer_done(ballot.member);
        }
        if has_quorum {
            self.election.heard = now;
            self.election.canvass = None;
            self.reset_election_timer(now);
        }
    }

    pub(super) fn forget_leader(&mut self) {
        if self.election.leader.take().is_some() {
            self.outputs.push_back(Output::LeaderChanged { leader: None });
        }
    }

    /// Notes that a candidate takes this member's promise, which comes in chunks. As long as it does, this member neither
    /// campaigns nor is willing to promise more: else a backlog that takes longer than an election timeout would
    /// never be read by anybody, or two candidates would take turns for ever. `bytes` of it are on their way.
    pub(super) fn note_taken(&mut self, now: Instant, ballot: Ballot, bytes: usize) {
        if ballot == self.promised {
            let until = now.after(self.settings().timeout + self.bounds.transit(bytes));
            self.election.taken = Some((ballot, until));
            if !planted!(LongPromiseOvertaken) {
                self.wait_for_promise(now, bytes);
            }
        }
    }

    /// Puts the next campaign off: `bytes` of a promise are on their way, over a link that may be slow.
    pub(super) fn wait_for_promise(&mut self, now: Instant, bytes: usize) {
        self.reset_election_timer(now);
        self.election.deadline = self.election.deadline.after(self.bounds.transit(bytes));
    }

    /// Whether the candidate that this member has promised takes chunks, or this member itself is that candidate and takes
    /// others'.
    fn is_taken_from(&self, now: Instant) -> bool {
        let takes = |(ballot, until): (Ballot, Instant)| ballot == self.promised && now < until;
        self.election.taken.is_some_and(takes) || self.takes_promises(now)
    }

    fn has_heard(&self, now: Instant) -> bool {
        now.since(self.election.heard) < self.settings().timeout
    }

    /// Notes that this member's pod is going: it leaves leading to others, for as long as that may take.
    pub(super) fn announce_stop(&mut self, now: Instant) {
        self.election.barred = Some(Barred { since: now, until: now.after(STOP_PATIENCE) });
    }

    /// Whether an announced stop bars a campaign. It does not for ever: the stop may have been called off, and where
    /// no leader was heard for several election timeouts, nobody else can lead.
    fn is_barred(&self, now: Instant) -> bool {
        let Some(Barred { since, until }) = self.election.barred else { return false };
        let heard = self.election.heard.max(since);
        let is_over = now >= until || now.since(heard) >= self.settings().timeout * STOP_TIMEOUTS;
        !is_over || planted!(StopBarsForEver)
    }

    /// Whether the leader is there to take calls, as far as this member can tell. What is sent to one that is gone is
    /// settled by the next leader's start only; what is held goes to the next leader.
    pub(super) fn reaches(&self, now: Instant, leader: Ballot) -> bool {
        let silence = self.settings().heartbeat * SILENT_HEARTBEATS;
        let is_silent = now.since(self.election.spoken) >= silence;
        (self.connected.contains(&leader.member) && !is_silent) || planted!(ForwardedToTheDead)
    }

    /// Whether this member may campaign: no lease that it granted to another lives, and it is a voter of conf(chosen_through + 1), everything chosen applied.
    fn may_campaign(&self, now: Instant, hand_over: Option<Ballot>) -> bool {
        self.is_active()
            && !self.is_barred(now)
            && self.damaged.is_empty()
            && self.lease_wait(now, self.me, hand_over).is_none()
            && self.system.as_ref().is_some_and(|s| {
                s.applied == self.chosen_through
                    && s.configurations.at(self.chosen_through.next()).is_voter(self.me)
            })
    }

    pub(super) fn handle_election_timeout(&mut self, now: Instant) {
        self.reset_election_timer(now);
        match &self.proposer {
            Some(proposer) if proposer.is_leading() => return,
            Some(_) => self.step_down("phase 1 took too long"),
            None => {}
        }
        if now.since(self.election.spoken) >= self.settings().timeout {
            // Whoever may not campaign does not wait for it for ever either.
            self.forget_leader();
        }
        if !self.may_campaign(now, None) {
            return;
        }
        self.forget_leader();
        self.election.last_canvass += 1;
        let id = self.election.last_canvass;
        self.election.canvass = Some(Canvass { id, willing: BTreeSet::from([self.me]) });
        let ballot = self.next_ballot();
        let from = self.chosen_through.next();
        for voter in self.phase_one_voters() {
            self.send(voter, Message::Canvass { id, ballot, from, hand_over: None });
        }
        self.count_canvass(now);
    }

    /// A round above this member's own durable promise and all rounds seen.
    fn next_ballot(&self) -> Ballot {
        let promised = if planted!(BallotReused) { 0 } else { self.promised.round };
        Ballot { round: self.election.round.max(promised) + 1, member: self.me }
    }

    /// Everyone whose promise may be needed: voters of every configuration in force or pending.
    pub(super) fn phase_one_voters(&self) -> Vec<MemberId> {
        let next = self.chosen_through.next();
        let configurations = self.state().configurations.from(next);
        let voters: BTreeSet<_> = configurations.flat_map(|c| c.voters()).collect();
        voters.into_iter().filter(|voter| *voter != self.me).collect()
    }

    /// Whether this member would promise `ballot` now. It raises nothing.
    pub(super) fn handle_canvass(
        &mut self,
        now: Instant,
        from: MemberId,
        id: u64,
        ballot: Ballot,
        first: crate::types::Slot,
        hand_over: Option<Ballot>,
    ) {
        if !self.is_active() {
            return;
        }
        let handed_over = hand_over.is_some() && hand_over == self.election.leader;
        let heard = !handed_over && (self.has_heard(now) || self.leads_with_quorum(now));
        let leased = self.lease_wait(now, from, hand_over).is_some();
        let taken = self.is_taken_from(now) && !planted!(LongPromiseInterrupted);
        let whole = self.damaged.is_empty() && !self.has_lost(first);
        let willing = !heard && !leased && !taken && ballot > self.promised && whole;
        // What this member has lost it cannot show: nobody is to wait for it before it campaigns.
        let shown = self.wanted.slots.first().map_or(self.chosen_through, |lost| lost.previous());
        let (promised, chosen_through) = (self.promised, shown);
        self.send(from, Message::CanvassReply { id, willing, promised, chosen_through });
    }

    pub(super) fn handle_canvass_reply(
        &mut self,
        now: Instant,
        from: MemberId,
        id: u64,
        willing: bool,
        promised: Ballot,
        chosen_through: crate::types::Slot,
    ) {
        self.election.note_round(promised.round);
        self.note_chosen_elsewhere(from, chosen_through);
        let behind = chosen_through > self.chosen_through;
        let Some(canvass) = self.election.canvass.as_mut().filter(|c| c.id == id) else { return };
        if behind {
            // What is chosen is learnt first; then this member canvasses again.
            self.election.canvass = None;
            self.request_missing(now, Some(from));
            let pause = self.settings().heartbeat;
            self.election.deadline = now.after(pause + self.random.up_to(pause));
        } else if willing {
            canvass.willing.insert(from);
            self.count_canvass(now);
        }
    }

    fn count_canvass(&mut self, now: Instant) {
        let Some(canvass) = &self.election.canvass else { return };
        let next = self.chosen_through.next();
        if self.state().configurations.from(next).all(|c| c.has_quorum(&canvass.willing)) {
            self.campaign(now, None);
        }
    }

    /// Raises a ballot. `Prepare` leaves only after the promise to itself is durable.
    pub(super) fn campaign(&mut self, now: Instant, hand_over: Option<Ballot>) {
        self.election.canvass = None;
        if !self.may_campaign(now, hand_over) {
            return;
        }
        let ballot = self.next_ballot();
        self.election.note_round(ballot.round);
        self.promise(now, ballot);
        self.notice(Notice::Campaigning(ballot));
        let from = self.chosen_through.next();
        self.proposer = Some(Proposer::new(ballot, from, hand_over, now));
        self.gate(Gated::OwnPromise(ballot));
        for voter in self.phase_one_voters() {
            if planted!(PrepareBeforeSync) {
                self.emit(voter, Message::Prepare { ballot, from, hand_over });
            }
            self.gate(Gated::Send(voter, Message::Prepare { ballot, from, hand_over }));
        }
    }

    /// Another member has promised more than this member leads under.
    pub(super) fn handle_nack(&mut self, now: Instant, promised: Ballot) {
        self.election.note_round(promised.round);
        if self.proposer.as_ref().is_some_and(|p| promised > p.ballot) {
            self.step_down("a peer has promised a higher ballot");
            self.reset_election_timer(now);
        }
    }

    /// Ends a candidacy or a leadership; its ballot is never resumed. What was never sent is handed on, what
    /// may be chosen is left to the log to tell.
    pub(super) fn step_down(&mut self, why: &'static str) {
        let Some(proposer) = self.proposer.take() else { return };
        if proposer.is_leading() {
            self.notice(Notice::SteppedDown { ballot: proposer.ballot, why });
        }
        if self.election.leader == Some(proposer.ballot) {
            self.forget_leader();
        }
        self.hand_on_queue(proposer.ballot, proposer.queue);
        self.refuse_leader_reads(proposer.reads);
        self.fail_pending_change(proposer.pending_change);
    }
}
