//! Clients' calls: queued here, forwarded to the leader, or proposed; answered when they are applied.
//!
//! ```text
//!   Queued --a leader is known--> Forwarded{ballot}  --applied--> answered
//!     |  ^                            |  (or refused by the leader: back to Queued, it was never proposed)
//!     |  +----------------------------+
//!     +--this member leads--> in its queue --> Proposed{ballot, slot} --applied--> answered
//! ```
//!
//! A call is forwarded under one ballot only, and the leader takes each of a peer's forwarded calls once; so
//! that a LeaderStart of a higher ballot tells for certain that a call that is not applied never will be
//! (docs: decisions/0002). It takes them in order: one that its client gave up is sent on until it is taken, or those
//! behind it would wait for ever.

use super::Node;
use super::proposer::QueuedCall;
use crate::io::{Output, Refusal};
use crate::message::{ForwardOutcome, Message};
use crate::settings::SettingsError;
use crate::status::MemberState;
use crate::system::{CallOutcome, CallRefused, Reply};
use crate::types::{Ballot, Instant, MemberId, RequestId};
use crate::value::{Call, Operation, Origin};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;

/// Payload bytes that may wait in a leader's queue.
const QUEUE_BYTES: usize = 64 << 20;

/// Forwarded calls of one peer that are kept until those before them come, and the bytes that one may have for that.
const EARLY: usize = 64;
const EARLY_BYTES: usize = 64 << 10;

/// A peer's forwarded calls at the leader: taken in order, each once.
#[derive(Debug, Default)]
pub(super) struct Taken {
    through: u64,
    /// Came before one that is sent earlier. Few and small: others are sent again.
    early: BTreeMap<u64, (RequestId, Bytes)>,
}

/// Where one of this member's calls stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Waits for a leader.
    Queued,
    /// In this member's own leader's queue, not proposed.
    Waiting(Ballot),
    /// Sent to the leader under that ballot, as the n-th under it.
    Forwarded { ballot: Ballot, sequence: u64 },
    /// Proposed by this member.
    Proposed(Ballot),
}

#[derive(Debug)]
struct OwnCall {
    call: Call,
    stage: Stage,
}

/// All calls of this member's clients that are not answered.
#[derive(Debug, Default)]
pub(super) struct Appends {
    calls: BTreeMap<RequestId, OwnCall>,
    /// Requests in stage Queued, oldest first.
    queued: VecDeque<RequestId>,
    /// Calls forwarded so far under a ballot.
    forwarded: Option<(Ballot, u64)>,
    /// Calls forwarded under that ballot that nobody waits for any more, by their place there. They are sent again
    /// until it is known that the leader has taken them: it takes none behind a gap.
    abandoned: BTreeMap<u64, (RequestId, Bytes)>,
    abandoned_bytes: usize,
    /// When unanswered forwarded calls were last sent again.
    resent: Instant,
}

impl Appends {
    pub(super) fn len(&self) -> usize {
        self.calls.len()
    }

    pub(super) fn note_proposed(&mut self, request: RequestId, ballot: Ballot) {
        if let Some(own) = self.calls.get_mut(&request) {
            own.stage = Stage::Proposed(ballot);
        }
    }

    /// Nobody waits for a call any more; where the leader may not have it yet, those behind it do.
    fn abandon(&mut self, request: RequestId, own: &OwnCall) {
        if let Stage::Forwarded { ballot, sequence } = own.stage
            && self.forwarded.is_some_and(|(under, _)| under == ballot)
            && !planted!(GivenUpBlocks)
        {
            let call = own.call.encode();
            self.abandoned_bytes += call.len();
            self.abandoned.insert(sequence, (request, call));
        }
    }

    /// The leader has taken the call at `sequence`, and so all before it.
    fn note_taken(&mut self, sequence: u64) {
        self.abandoned = self.abandoned.split_off(&(sequence + 1));
        self.abandoned_bytes = self.abandoned.values().map(|(_, call)| call.len()).sum();
    }

    /// The leader has taken this member's call `request`.
    fn note_request_taken(&mut self, request: RequestId) {
        if self.abandoned.is_empty() {
            return;
        }
        let place = self.abandoned.iter().find(|(_, (abandoned, _))| *abandoned == request).map(|(s, _)| *s);
        let own = self.calls.get(&request).and_then(|own| match own.stage {
            Stage::Forwarded { ballot, sequence } => Some((ballot, sequence)),
            _ => None,
        });
        let under = self.forwarded.map(|(ballot, _)| ballot);
        let own = own.filter(|(ballot, _)| Some(*ballot) == under).map(|(_, sequence)| sequence);
        if let Some(sequence) = place.or(own) {
            self.note_taken(sequence);
        }
    }
}

impl Node {
    pub(super) fn handle_call(&mut self, request: RequestId, operation: Operation) {
        let origin = Origin { member: self.me, incarnation: self.incarnation, request };
        let call = Call { origin, operation };
        let within = call.validate().and_then(|()| match &self.system {
            Some(system) => system.check_limits(&call),
            None => Ok(()),
        });
        if let Err(error) = within {
            return self.answer_call(request, Err(Refusal::Call(error)));
        }
        let why = match &self.life {
            MemberState::Fenced(why) | MemberState::Halted(why) => Some(why.clone()),
            MemberState::Removed => Some("this member was removed from its cluster".into()),
            MemberState::Uninitialized => {
                Some("this member belongs to no cluster yet: initialize it, or add it to one".into())
            }
            MemberState::Joining | MemberState::Recovering | MemberState::Active => None,
        };
        if let Some(why) = why {
            return self.answer_call(request, Err(Refusal::NotActive(why)));
        }
        if let Some(refusal) = self.check_format_level(&call.operation) {
            return self.answer_call(request, Err(refusal));
        }
        self.appends.calls.insert(request, OwnCall { call, stage: Stage::Queued });
        self.appends.queued.push_back(request);
    }

    /// The format level rises when every member has said that it can read the next one; only the leader knows.
    fn check_format_level(&self, operation: &Operation) -> Option<Refusal> {
        let Operation::ChangeSettings { settings, .. } = operation else { return None };
        let actual = self.system.as_ref()?.settings.format_level;
        if settings.format_level == actual {
            return None;
        }
        let Some(proposer) = self.proposer.as_ref().filter(|p| p.is_serving()) else {
            let leader = self.election.leader.map(|b| b.member);
            return Some(leader.map_or(Refusal::NoLeader, |leader| Refusal::NotLeader { leader }));
        };
        let reads = |member: &MemberId| {
            *member == self.me
                || proposer.progress.get(member).is_some_and(|p| p.format_level >= settings.format_level)
        };
        let all = self.state().configurations.latest().members.keys().all(reads);
        (!all).then_some(Refusal::Settings(SettingsError::FormatLevel { actual }))
    }

    fn answer_call(&mut self, request: RequestId, outcome: Result<Reply, Refusal>) {
        self.outputs.push_back(Output::CallReply { request, outcome });
    }

    /// Hands queued calls to the leader, wherever it is.
    pub(super) fn dispatch_queued(&mut self) {
        let Some(leader) = self.election.leader else { return };
        if planted!(Reforwarded) {
            self.requeue_forwarded(leader);
        }
        while let Some(request) = self.appends.queued.pop_front() {
            if leader.member != self.me {
                self.forward(request, leader);
                continue;
            }
            let Some(own) = self.appends.calls.get_mut(&request) else { continue };
            own.stage = Stage::Waiting(leader);
            let call = own.call.clone();
            if !self.enqueue(QueuedCall { call, forwarded: false }) {
                self.appends.calls.remove(&request);
                self.answer_call(request, Err(Refusal::Backpressure));
            }
        }
    }

    /// The bug that the mutation tests plant: a call that may have been proposed is sent to another leader.
    #[cfg_attr(not(synod_planted), allow(dead_code))]
    fn requeue_forwarded(&mut self, leader: Ballot) {
        for (request, own) in &mut self.appends.calls {
            if matches!(own.stage, Stage::Forwarded { ballot, .. } if ballot != leader) {
                own.stage = Stage::Queued;
                self.appends.queued.push_back(*request);
            }
        }
    }

    /// Takes a call into the leader's queue; false: it is full or this member does not lead.
    fn enqueue(&mut self, queued: QueuedCall) -> bool {
        let Some(proposer) = self.proposer.as_mut().filter(|p| p.is_leading()) else { return false };
        let bytes = queued.call.payload_bytes();
        if proposer.queue_bytes + bytes > QUEUE_BYTES {
            return false;
        }
        proposer.queue_bytes += bytes;
        proposer.queue.push_back(queued);
        true
    }

    fn forward(&mut self, request: RequestId, leader: Ballot) {
        if self.appends.forwarded.is_none_or(|(ballot, _)| ballot != leader) {
            // What was forwarded under another ballot is that one's to settle.
            (self.appends.abandoned, self.appends.abandoned_bytes) = (BTreeMap::new(), 0);
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
        self.send(leader.member, Message::Forward { request, ballot: leader, sequence, call });
    }

    /// The timer's half of resending: only calls that the last round of sends left unanswered.
    pub(super) fn resend_forwarded(&mut self, now: Instant) {
        if now.since(self.appends.resent) >= self.settings().heartbeat * 4 {
            self.resend_all_forwarded(now);
        }
    }

    /// Sends every unanswered forwarded call of the leader's ballot again, in order: the leader takes each
    /// once, by its sequence.
    pub(super) fn resend_all_forwarded(&mut self, now: Instant) {
        self.appends.resent = now;
        let Some(leader) = self.election.leader.filter(|b| b.member != self.me) else { return };
        let mut again: Vec<(u64, RequestId, Bytes)> = Vec::new();
        if self.appends.forwarded.is_some_and(|(ballot, _)| ballot == leader) {
            let abandoned = self.appends.abandoned.iter();
            again.extend(abandoned.map(|(sequence, (request, call))| (*sequence, *request, call.clone())));
        }
        for (request, own) in &self.appends.calls {
            if let Stage::Forwarded { ballot, sequence } = own.stage
                && ballot == leader
            {
                again.push((sequence, *request, own.call.encode()));
            }
        }
        again.sort_unstable_by_key(|(sequence, _, _)| *sequence);
        for (sequence, request, call) in again {
            self.send(leader.member, Message::Forward { request, ballot: leader, sequence, call });
        }
    }

    /// A peer's call. Each is taken once, under the one ballot it was meant for: a repeat, or one behind a lost
    /// one, or one that comes when that leadership is over, is not taken, and not answered either, because an
    /// earlier copy of it may have been proposed.
    pub(super) fn handle_forward(
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
    fn refuse_forward(&mut self, origin: Origin, ballot: Ballot, why: &str) {
        let Origin { member, incarnation, request } = origin;
        let outcome = ForwardOutcome::Refused(String::from(why));
        self.send(member, Message::ForwardReply { request, incarnation, ballot, outcome });
    }

    pub(super) fn handle_forward_reply(
        &mut self,
        request: RequestId,
        incarnation: crate::types::Incarnation,
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

    /// A call was applied: whoever took it from its client answers; the leader tells it to a follower at
    /// once, before that one applies the slot itself.
    pub(super) fn conclude_call(&mut self, outcome: CallOutcome) {
        let CallOutcome { origin, result } = outcome;
        if origin.member != self.me {
            let Some(ballot) = self.proposer.as_ref().filter(|p| p.is_leading()).map(|p| p.ballot) else {
                return;
            };
            let outcome = match result {
                Ok(Reply::Appended { first, last, repeat }) => {
                    ForwardOutcome::Appended { first, last, repeat }
                }
                Ok(Reply::SessionOpened(session)) => ForwardOutcome::SessionOpened(session),
                Err(CallRefused::UnexpectedIndex { tail }) => ForwardOutcome::UnexpectedIndex { tail },
                // The origin answers when it applies the slot itself.
                Ok(_) | Err(_) => return,
            };
            let Origin { member, incarnation, request } = origin;
            return self.send(member, Message::ForwardReply { request, incarnation, ballot, outcome });
        }
        if origin.incarnation == self.incarnation {
            self.appends.note_request_taken(origin.request);
        }
        if origin.incarnation == self.incarnation && self.appends.calls.remove(&origin.request).is_some() {
            self.answer_call(origin.request, result.map_err(Refusal::from));
        }
    }

    /// A snapshot took the place of slots that may hold calls of this member: what is forwarded or proposed is
    /// answered with `refusal`.
    pub(super) fn refuse_calls_under_way(&mut self, refusal: &Refusal) {
        let under_way = |own: &OwnCall| matches!(own.stage, Stage::Forwarded { .. } | Stage::Proposed(_));
        let requests: Vec<RequestId> =
            self.appends.calls.iter().filter(|(_, own)| under_way(own)).map(|(r, _)| *r).collect();
        for request in requests {
            if let Some(own) = self.appends.calls.remove(&request) {
                self.appends.abandon(request, &own);
            }
            self.answer_call(request, Err(refusal.clone()));
        }
    }

    /// `ballot`'s LeaderStart is applied: calls proposed or forwarded under a lower ballot and not applied by
    /// now never will be. They are answered as not appended; keyless, they are not sent again by us.
    pub(super) fn settle_calls_before(&mut self, ballot: Ballot) {
        let settled = |own: &OwnCall| match own.stage {
            Stage::Queued | Stage::Waiting(_) => false,
            Stage::Forwarded { ballot: under, .. } | Stage::Proposed(under) => under < ballot,
        };
        let requests: Vec<RequestId> =
            self.appends.calls.iter().filter(|(_, own)| settled(own)).map(|(request, _)| *request).collect();
        for request in requests {
            self.appends.calls.remove(&request);
            self.answer_call(request, Err(Refusal::NoLeader));
        }
    }

    /// A leadership ended: its queue was never proposed, so it is handed on.
    pub(super) fn hand_on_queue(&mut self, ballot: Ballot, queue: VecDeque<QueuedCall>) {
        for QueuedCall { call, forwarded } in queue {
            if forwarded {
                self.refuse_forward(call.origin, ballot, "leadership moved");
            } else if let Some(own) = self.appends.calls.get_mut(&call.origin.request) {
                own.stage = Stage::Queued;
                self.appends.queued.push_back(call.origin.request);
            }
        }
    }

    /// The client gave up. What was not proposed is taken back for certain; of the rest nothing is known.
    pub(super) fn handle_cancel(&mut self, request: RequestId) {
        self.cancel_read(request);
        let Some(own) = self.appends.calls.remove(&request) else { return };
        let outcome = match own.stage {
            Stage::Queued => {
                self.appends.queued.retain(|queued| *queued != request);
                Refusal::NoLeader
            }
            Stage::Waiting(_) => {
                if let Some(proposer) = self.proposer.as_mut() {
                    proposer.queue.retain(|q| q.forwarded || q.call.origin.request != request);
                    proposer.queue_bytes -= own.call.payload_bytes();
                }
                Refusal::NoLeader
            }
            Stage::Forwarded { .. } | Stage::Proposed(_) => {
                self.appends.abandon(request, &own);
                Refusal::OutcomeUnknown
            }
        };
        self.answer_call(request, Err(outcome));
    }

    /// This member takes no part any more: everything that waits is answered.
    pub(super) fn refuse_all_waiting(&mut self, why: &str) {
        self.appends.queued.clear();
        for (request, own) in core::mem::take(&mut self.appends.calls) {
            let refusal = match own.stage {
                Stage::Queued | Stage::Waiting(_) => Refusal::NotActive(String::from(why)),
                Stage::Forwarded { .. } | Stage::Proposed(_) => Refusal::OutcomeUnknown,
            };
            self.answer_call(request, Err(refusal));
        }
        self.refuse_all_reads(why);
    }
}
