//! Calls on their way to a leader: sent in order, bounded in bytes, taken once.

use super::{Node, QUEUE_BYTES, Stage, UnderWay};
use crate::io::Refusal;
use crate::message::{ForwardOutcome, Message};
use crate::node::proposer::QueuedCall;
use crate::system::Reply;
use crate::types::{Ballot, Incarnation, Instant, MemberId, RequestId};
use crate::value::{Call, Origin};
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use core::time::Duration;

/// Forwarded calls of one peer that are kept until those before them come, and the bytes that one may have for that.
const EARLY: usize = 64;
const EARLY_BYTES: usize = 64 << 10;

/// A peer's forwarded calls at the leader: taken in order, each once.
#[derive(Debug, Default)]
pub(in crate::node) struct Taken {
    through: u64,
    /// Came before one that is sent earlier. Few and small: others are sent again.
    early: BTreeMap<u64, (RequestId, Bytes)>,
}

impl Node {
    pub(super) fn forward(&mut self, now: Instant, request: RequestId, leader: Ballot) {
        if self.appends.forwarded.is_none_or(|(ballot, _)| ballot != leader) {
            // What was forwarded under another ballot is that one's to settle.
            (self.appends.abandoned, self.appends.abandoned_bytes) = (BTreeMap::new(), 0);
            (self.appends.under_way, self.appends.under_way_bytes) = (VecDeque::new(), 0);
        }
        if self.appends.abandoned_bytes > QUEUE_BYTES {
            self.appends.calls.remove(&request);
            return self.answer_call(request, Err(Refusal::Backpressure));
        }
        let Some(own) = self.appends.calls.get_mut(&request) else { return };
        let sequence = match self.appends.forwarded {
            Some((ballot, sequence)) if ballot == leader => sequence + 1,
            _ => 1,
        };
        self.appends.forwarded = Some((leader, sequence));
        own.stage = Stage::Forwarded { ballot: leader, sequence };
        let call = own.call.encode();
        self.appends.under_way.push_back(UnderWay { sequence, bytes: call.len(), sent: now });
        self.appends.under_way_bytes += call.len();
        self.send(leader.member, Message::Forward { request, ballot: leader, sequence, call });
    }

    /// The timer's half of resending: calls that the slowest link would have carried by now.
    pub(in crate::node) fn resend_forwarded(&mut self, now: Instant) {
        let patience = self.settings().heartbeat * 4 + self.bounds.transit(self.appends.under_way_bytes);
        self.resend_forwarded_before(now, patience);
    }

    /// A new connection to the leader: nothing is under way on it.
    pub(in crate::node) fn resend_all_forwarded(&mut self, now: Instant) {
        self.resend_forwarded_before(now, Duration::ZERO);
    }

    /// Sends the forwarded calls of the leader's ballot again that it is not known to have taken and that were sent at
    /// least `patience` ago, in order: the leader takes each once, by its sequence.
    fn resend_forwarded_before(&mut self, now: Instant, patience: Duration) {
        let Some(leader) = self.election.leader.filter(|b| b.member != self.me) else { return };
        if self.appends.forwarded.is_none_or(|(ballot, _)| ballot != leader) {
            return;
        }
        let mut late = BTreeSet::new();
        for call in self.appends.under_way.iter_mut().filter(|call| now.since(call.sent) >= patience) {
            call.sent = now;
            late.insert(call.sequence);
        }
        let mut again: Vec<(u64, RequestId, Bytes)> = Vec::new();
        let abandoned = self.appends.abandoned.iter().filter(|(sequence, _)| late.contains(sequence));
        again.extend(abandoned.map(|(sequence, (request, call))| (*sequence, *request, call.clone())));
        for (request, own) in &self.appends.calls {
            if let Stage::Forwarded { ballot, sequence } = own.stage
                && ballot == leader
                && late.contains(&sequence)
            {
                again.push((sequence, *request, own.call.encode()));
            }
        }
        again.sort_unstable_by_key(|(sequence, _, _)| *sequence);
        for (sequence, request, call) in again {
            self.send(leader.member, Message::Forward { request, ballot: leader, sequence, call });
        }
    }

    /// How many of a peer's forwarded calls this leader has taken, for the peer's boot that it knows.
    pub(in crate::node) fn forwards_taken(&self, peer: MemberId) -> Option<(Incarnation, u64)> {
        let incarnation = self.peers.get(&peer)?.incarnation;
        let taken = self.proposer.as_ref()?.taken.get(&(peer, incarnation))?;
        Some((incarnation, taken.through))
    }

    /// The leader under `ballot` says how many of this member's forwarded calls it has taken.
    pub(in crate::node) fn note_forwards_taken(&mut self, ballot: Ballot, taken: Option<(Incarnation, u64)>) {
        let own = taken.filter(|(incarnation, _)| *incarnation == self.incarnation);
        if let Some((_, through)) = own
            && self.appends.forwarded.is_some_and(|(under, _)| under == ballot)
        {
            self.appends.note_taken(through);
        }
    }

    /// A peer's call. Each is taken once, under the one ballot it was meant for: a repeat, or one behind a lost
    /// one, or one that comes when that leadership is over, is not taken, and not answered either, because an
    /// earlier copy of it may have been proposed.
    pub(in crate::node) fn handle_forward(
        &mut self,
        from: MemberId,
        request: RequestId,
        ballot: Ballot,
        sequence: u64,
        call: Bytes,
    ) {
        let incarnation = self.peers.get(&from).copied().unwrap_or_default().incarnation;
        let leads = self.proposer.as_ref().is_some_and(|p| p.ballot == ballot && p.is_leading());
        let Some(proposer) = self.proposer.as_mut().filter(|_| leads) else { return };
        let taken = proposer.taken.entry((from, incarnation)).or_default();
        if sequence > taken.through + 1 && taken.early.len() < EARLY && call.len() <= EARLY_BYTES {
            taken.early.insert(sequence, (request, call.clone()));
        }
        if sequence != taken.through + 1 && !planted!(ForwardTakenTwice) {
            return;
        }
        taken.through = sequence;
        let mut calls = Vec::from([(request, call)]);
        while let Some(next) = taken.early.remove(&(taken.through + 1)) {
            taken.through += 1;
            calls.push(next);
        }
        for (request, call) in calls {
            self.take_forwarded(Origin { member: from, incarnation, request }, ballot, call);
        }
    }

    fn take_forwarded(&mut self, origin: Origin, ballot: Ballot, call: Bytes) {
        let decoded = Call::decode(call).ok().filter(|call| call.origin == origin);
        if !decoded.is_some_and(|call| self.enqueue(QueuedCall { call, forwarded: true })) {
            self.refuse_forward(origin, ballot, "the leader's queue is full");
        }
    }

    /// Only for calls that were taken and not proposed: then nothing was appended, for certain.
    pub(super) fn refuse_forward(&mut self, origin: Origin, ballot: Ballot, why: &str) {
        let Origin { member, incarnation, request } = origin;
        let outcome = ForwardOutcome::Refused(String::from(why));
        self.send(member, Message::ForwardReply { request, incarnation, ballot, outcome });
    }

    pub(in crate::node) fn handle_forward_reply(
        &mut self,
        request: RequestId,
        incarnation: Incarnation,
        under: Ballot,
        outcome: ForwardOutcome,
    ) {
        if incarnation != self.incarnation {
            return;
        }
        if self.appends.forwarded.is_some_and(|(ballot, _)| ballot == under) {
            self.appends.note_request_taken(request);
        }
        let Some(own) = self.appends.calls.get_mut(&request) else { return };
        let Stage::Forwarded { ballot, .. } = own.stage else { return };
        match outcome {
            ForwardOutcome::Refused(_) if ballot != under => {}
            ForwardOutcome::Appended { first, last, repeat } => {
                self.appends.calls.remove(&request);
                self.answer_call(request, Ok(Reply::Appended { first, last, repeat }));
            }
            ForwardOutcome::SessionOpened(session) => {
                self.appends.calls.remove(&request);
                self.answer_call(request, Ok(Reply::SessionOpened(session)));
            }
            ForwardOutcome::UnexpectedIndex { tail } => {
                self.appends.calls.remove(&request);
                self.answer_call(request, Err(Refusal::UnexpectedIndex { tail }));
            }
            ForwardOutcome::Refused(_) if self.election.leader == Some(ballot) => {
                // The leader's queue is full: never proposed.
                self.appends.calls.remove(&request);
                self.answer_call(request, Err(Refusal::Backpressure));
            }
            ForwardOutcome::Refused(_) => {
                // Never proposed: it waits for the next leader.
                own.stage = Stage::Queued;
                self.appends.queued.push_back(request);
            }
        }
    }
}
