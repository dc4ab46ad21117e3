//! Linearizable reads: one heartbeat round shared by all that wait for it (ReadIndex; docs: protocol.md,
//! "Leases and reads").
//!
//! A read never joins a round that began before it arrived: at the leader it waits for a heartbeat with a
//! higher number than any sent so far; at a follower it waits for a request that is sent after it came.

use super::Node;
use super::heartbeat::SentHeartbeats;
use super::proposer::Proposer;
use crate::io::{Consistency, Output, Refusal};
use crate::message::Message;
use crate::types::{Ballot, Incarnation, Instant, MemberId, RequestId, Slot};
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

/// Who waits for a read point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    /// This member's own reads.
    Own,
    /// A follower's request.
    Peer(MemberId, RequestId),
}

/// Reads that wait at a leader.
#[derive(Debug, Default)]
pub(super) struct LeaderReads {
    /// When recent heartbeats were sent.
    pub(super) sent: SentHeartbeats,
    /// The first heartbeat that may confirm it, and the point it reads at.
    waiting: VecDeque<(u64, Slot, Reader)>,
}

/// This member's own reads.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// Wait for the next request to the leader.
    fresh: Vec<RequestId>,
    /// Wait for the answer to the request under way: its name, when it was sent, under which ballot.
    asked: Option<(RequestId, Instant, Ballot)>,
    asking: Vec<RequestId>,
    /// Wait until a slot is applied.
    ready_at: BTreeMap<Slot, Vec<RequestId>>,
    last_request: u64,
    /// Read points answered under a lease, without a round.
    pub(super) under_lease: u64,
    /// The newest read point, and when it was asked for: what a read of bounded staleness may use.
    known: Option<(Slot, Instant)>,
}

impl Reads {
    /// Request names of one boot never meet those of another: a late answer to an earlier life is no answer.
    pub(super) fn new(incarnation: Incarnation) -> Reads {
        Reads {
            last_request: if planted!(NamesReused) { 0 } else { incarnation.0 << 40 },
            ..Reads::default()
        }
    }
}

impl Node {
    pub(super) fn handle_read(&mut self, now: Instant, request: RequestId, consistency: Consistency) {
        if !self.is_active() {
            let why = Refusal::NotActive("this member takes no part in a cluster now".into());
            return self.outputs.push_back(Output::ReadReady { request, outcome: Err(why) });
        }
        if let (Consistency::StaleBounded(bound), Some((point, asked))) = (consistency, self.reads.known)
            && now.since(asked) <= bound
            && point <= self.chosen_through
        {
            // The point was read at the leader after it was asked for, and this member's clock alone tells how
            // long ago that was.
            self.reads.ready_at.entry(point).or_default().push(request);
            return self.answer_ready_reads();
        }
        self.reads.fresh.push(request);
    }

    /// Sends fresh reads on their way: all that arrived before this share one request or round.
    pub(super) fn drive_reads(&mut self, now: Instant) {
        if self.reads.asked.is_none() && !self.reads.fresh.is_empty() {
            self.ask_read_point(now);
        }
        self.confirm_reads(now);
    }

    fn ask_read_point(&mut self, now: Instant) {
        let Some(leader) = self.election.leader else { return };
        if leader.member == self.me
            && !self.proposer.as_ref().is_some_and(|p| p.is_serving() || planted!(ReadBeforeStart))
        {
            return;
        }
        self.reads.last_request += 1;
        let request = RequestId(self.reads.last_request);
        self.reads.asking.append(&mut self.reads.fresh);
        self.reads.asked = Some((request, now, leader));
        if leader.member == self.me && self.has_lease(now) {
            // Checked after the reads arrived: nobody else can have got anything chosen by now.
            self.reads.under_lease += 1;
            self.read_point_known(self.chosen_through);
        } else if leader.member == self.me {
            self.queue_leader_read(Reader::Own);
        } else {
            self.send(leader.member, Message::ReadPointRequest { request, ballot: leader });
        }
    }

    /// No read point before this leader's LeaderStart is applied: until then what is chosen is not known here.
    pub(super) fn handle_read_point_request(
        &mut self,
        now: Instant,
        from: MemberId,
        request: RequestId,
        ballot: Ballot,
    ) {
        let ready = |p: &Proposer| p.is_serving() || planted!(ReadBeforeStart);
        let leads = self.proposer.as_ref().is_some_and(|p| p.ballot == ballot && ready(p));
        if leads && self.has_lease(now) {
            self.reads.under_lease += 1;
            let slot = Some(self.chosen_through);
            self.send(from, Message::ReadPoint { request, slot });
        } else if leads {
            self.queue_leader_read(Reader::Peer(from, request));
            self.confirm_reads(now);
        } else {
            self.send(from, Message::ReadPoint { request, slot: None });
        }
    }

    fn queue_leader_read(&mut self, reader: Reader) {
        let point = self.chosen_through;
        if let Some(proposer) = self.proposer.as_mut() {
            proposer.reads.waiting.push_back((
                proposer.sequence + u64::from(!planted!(ReadJoinsOlderRound)),
                point,
                reader,
            ));
        }
    }

    /// Answers reads whose round a quorum has confirmed, and begins the next round if one is wanted.
    fn confirm_reads(&mut self, now: Instant) {
        let next = self.chosen_through.next();
        let Some(proposer) = self.proposer.as_mut().filter(|p| !p.reads.waiting.is_empty()) else { return };
        let Some(system) = &self.system else { return };
        let configuration = system.configurations.at(next);
        // The newest heartbeat that a quorum has answered under this ballot; this member answers its own.
        let mut answered: Vec<u64> = configuration
            .voters()
            .map(|voter| match proposer.progress.get(&voter) {
                _ if voter == self.me => proposer.sequence,
                progress => progress.map_or(0, |p| p.sequence),
            })
            .collect();
        answered.sort_unstable_by(|a, b| b.cmp(a));
        let mut confirmed = answered.get(configuration.quorum() - 1).copied().unwrap_or(0);
        if configuration.quorum() == 1 && configuration.is_voter(self.me) {
            // A single voter confirms itself: every round it could begin.
            confirmed = u64::MAX;
        }
        let mut ready = Vec::new();
        while let Some((_, point, reader)) =
            proposer.reads.waiting.pop_front_if(|(first, _, _)| *first <= confirmed)
        {
            ready.push((point, reader));
        }
        let wants_round =
            proposer.reads.waiting.front().is_some_and(|(first, _, _)| *first > proposer.sequence);
        let under_way = confirmed < proposer.sequence
            && proposer.reads.waiting.iter().any(|(f, _, _)| *f <= proposer.sequence);
        if wants_round && !under_way {
            self.send_heartbeats(now);
        }
        for (point, reader) in ready {
            match reader {
                Reader::Own => self.read_point_known(point),
                Reader::Peer(to, request) => self.send(to, Message::ReadPoint { request, slot: Some(point) }),
            }
        }
    }

    pub(super) fn handle_read_point(&mut self, request: RequestId, slot: Option<Slot>) {
        if self.reads.asked.is_none_or(|(asked, _, _)| asked != request) {
            return;
        }
        match slot {
            Some(slot) => self.read_point_known(slot),
            None => self.ask_again(),
        }
    }

    /// The reads behind the answered request wait for that slot now.
    fn read_point_known(&mut self, point: Slot) {
        if let Some((_, asked, _)) = self.reads.asked.take() {
            self.reads.known = Some((point, asked));
        }
        let reads = core::mem::take(&mut self.reads.asking);
        self.reads.ready_at.entry(point).or_default().extend(reads);
        self.answer_ready_reads();
    }

    /// The request was refused or lost: its reads go into the next one.
    fn ask_again(&mut self) {
        self.reads.asked = None;
        self.reads.last_request += 1;
        let mut reads = core::mem::take(&mut self.reads.asking);
        reads.append(&mut self.reads.fresh);
        self.reads.fresh = reads;
    }

    pub(super) fn answer_ready_reads(&mut self) {
        let index = self.system.as_ref().map(|s| s.last_index).unwrap_or_default();
        while let Some(entry) = self.reads.ready_at.first_entry() {
            if *entry.key() > self.chosen_through {
                break;
            }
            for request in entry.remove() {
                self.outputs.push_back(Output::ReadReady { request, outcome: Ok(index) });
            }
        }
    }

    /// A request under a leader that is gone, or one unanswered for too long, is asked anew.
    pub(super) fn beat_reads(&mut self, now: Instant) {
        let Some((_, sent, ballot)) = self.reads.asked else { return };
        let moved = self.election.leader != Some(ballot);
        if moved || (ballot.member != self.me && now.since(sent) >= self.settings().heartbeat * 3) {
            self.ask_again();
        }
    }

    /// A leadership ended: its own reads ask the next leader, followers are told to.
    pub(super) fn refuse_leader_reads(&mut self, reads: LeaderReads) {
        let peers: BTreeSet<(MemberId, RequestId)> = reads
            .waiting
            .into_iter()
            .filter_map(|(_, _, reader)| match reader {
                Reader::Peer(to, request) => Some((to, request)),
                Reader::Own => None,
            })
            .collect();
        for (to, request) in peers {
            self.send(to, Message::ReadPoint { request, slot: None });
        }
        if self.reads.asked.is_some_and(|(_, _, ballot)| ballot.member == self.me) {
            self.ask_again();
        }
    }

    pub(super) fn cancel_read(&mut self, request: RequestId) {
        let reads = &mut self.reads;
        let mut found = false;
        let mut drop_from = |list: &mut Vec<RequestId>| {
            let before = list.len();
            list.retain(|r| *r != request);
            found |= list.len() < before;
        };
        drop_from(&mut reads.fresh);
        drop_from(&mut reads.asking);
        reads.ready_at.values_mut().for_each(&mut drop_from);
        if found {
            let is_led = self.election.leader.is_some();
            let refusal = if is_led { Refusal::NotConfirmed } else { Refusal::NoLeader };
            self.outputs.push_back(Output::ReadReady { request, outcome: Err(refusal) });
        }
    }

    pub(super) fn refuse_all_reads(&mut self, why: &str) {
        let mut all = core::mem::take(&mut self.reads.fresh);
        all.append(&mut self.reads.asking);
        all.extend(core::mem::take(&mut self.reads.ready_at).into_values().flatten());
        self.reads.asked = None;
        for request in all {
            let outcome = Err(Refusal::NotActive(String::from(why)));
            self.outputs.push_back(Output::ReadReady { request, outcome });
        }
    }
}
