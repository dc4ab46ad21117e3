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

mod forwarding;

pub(super) use forwarding::Taken;

use super::Node;
use super::proposer::QueuedCall;
use crate::io::{Notice, Output, Refusal};
use crate::message::{ForwardOutcome, Message};
use crate::settings::SettingsError;
use crate::status::MemberState;
use crate::system::{CallOutcome, CallRefused, Reply};
use crate::types::{Ballot, Instant, MemberId, RequestId, Slot};
use crate::value::{Call, Operation, Origin};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bytes::Bytes;
use core::time::Duration;

/// Payload bytes that may wait in a leader's queue.
const QUEUE_BYTES: usize = 64 << 20;

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

/// A forwarded call that may still be on its link.
#[derive(Clone, Copy, Debug)]
struct UnderWay {
    sequence: u64,
    bytes: usize,
    sent: Instant,
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
    /// Calls forwarded under that ballot that the leader is not known to have taken, oldest first.
    under_way: VecDeque<UnderWay>,
    under_way_bytes: usize,
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
        while let Some(taken) = self.under_way.pop_front_if(|call| call.sequence <= sequence) {
            self.under_way_bytes -= taken.bytes;
        }
        if !self.abandoned.is_empty() {
            self.abandoned = self.abandoned.split_off(&(sequence + 1));
            self.abandoned_bytes = self.abandoned.values().map(|(_, call)| call.len()).sum();
        }
    }

    /// The leader has taken this member's call `request`.
    fn note_request_taken(&mut self, request: RequestId) {
        if self.under_way.is_empty() && self.abandoned.is_empty() {
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

    /// Whether the link to the leader takes another call now, rather than when some have arrived.
    fn has_room(&self, request: RequestId, leader: Ballot, most: usize) -> bool {
        if self.forwarded.is_none_or(|(ballot, _)| ballot != leader) {
            return true;
        }
        let bytes = self.calls.get(&request).map_or(0, |own| own.call.payload_bytes());
        self.under_way.is_empty() || self.under_way_bytes + bytes <= most
    }
}

impl Node {
    pub(super) fn handle_call(&mut self, now: Instant, request: RequestId, operation: Operation) {
        let origin = Origin { member: self.me, incarnation: self.incarnation, request };
        let call = Call { origin, operation };
        let within = match &self.system {
            Some(system) => system.check_call(&call),
            None => call.validate(),
        };
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
        if let Some(refusal) = self.check_format_level(now, &call.operation) {
            return self.answer_call(request, Err(refusal));
        }
        self.appends.calls.insert(request, OwnCall { call, stage: Stage::Queued });
        self.appends.queued.push_back(request);
    }

    /// Nothing is proposed above the level that the log is at. The level itself rises when every member has said lately
    /// that it can read the next one; only the leader knows.
    pub(super) fn check_format_level(&self, now: Instant, operation: &Operation) -> Option<Refusal> {
        let actual = self.system.as_ref()?.settings.format_level;
        let needed = operation.level();
        if planted!(LevelIgnored) {
            return None;
        }
        if needed > actual {
            return Some(Refusal::FormatLevel { needed, actual });
        }
        let Operation::ChangeSettings { settings, .. } = operation else { return None };
        if settings.format_level == actual {
            return None;
        }
        if settings.format_level != actual + 1 {
            return Some(Refusal::Settings(SettingsError::FormatLevel { actual }));
        }
        let Some(proposer) = self.proposer.as_ref().filter(|p| p.is_serving()) else {
            let leader = self.election.leader.map(|b| b.member);
            return Some(leader.map_or(Refusal::NoLeader, |leader| Refusal::NotLeader { leader }));
        };
        // One that is being added has said nothing yet.
        let adding = proposer.pending_change.as_ref().map(|pending| pending.entry.change.member());
        let members = self.state().configurations.latest().members.keys().copied().chain(adding);
        let level = settings.format_level;
        let mut behind = members.filter(|member| !self.reads_level(now, *member, level));
        behind.next().map(|member| Refusal::NotEveryMember { member, level })
    }

    /// Whether this leader heard lately that `member` reads `level`.
    pub(super) fn reads_level(&self, now: Instant, member: MemberId, level: u32) -> bool {
        if member == self.me {
            return self.readable_level >= level;
        }
        let progress = self.proposer.as_ref().and_then(|proposer| proposer.progress.get(&member));
        let lately = |span: Duration| span < self.settings().timeout;
        progress.is_some_and(|p| p.format_level >= level && p.silent_for(now).is_some_and(lately))
    }

    fn answer_call(&mut self, request: RequestId, outcome: Result<Reply, Refusal>) {
        self.outputs.push_back(Output::CallReply { request, outcome });
    }

    /// Hands queued calls to the leader, wherever it is. While there is none, or none that can be reached, they are
    /// held: a call that was sent once is never sent to another leader.
    pub(super) fn dispatch_queued(&mut self, now: Instant) {
        let Some(leader) = self.election.leader else { return };
        if leader.member != self.me && !self.reaches(now, leader) {
            return;
        }
        if planted!(Reforwarded) {
            self.requeue_forwarded(leader);
        }
        let most = self.bounds.pipeline;
        let me = self.me;
        while let Some(request) = self
            .appends
            .queued
            .front()
            .copied()
            .filter(|r| leader.member == me || self.appends.has_room(*r, leader, most))
        {
            self.appends.queued.pop_front();
            if leader.member != me {
                self.forward(now, request, leader);
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

    /// Calls that would not be read back from a batch as they are: none of them reaches the log.
    pub(super) fn refuse_unreadable(&mut self, slot: Slot, calls: Vec<Call>) {
        for Call { origin, .. } in calls {
            self.notice(Notice::NotProposed { slot });
            self.refuse_queued(origin, Refusal::Unreadable);
        }
    }

    /// A call that was queued may not be proposed after all.
    pub(super) fn refuse_queued(&mut self, origin: Origin, refusal: Refusal) {
        if origin.member != self.me {
            let ballot = self.proposer.as_ref().map_or(Ballot::ZERO, |proposer| proposer.ballot);
            self.refuse_forward(origin, ballot, &refusal.to_string());
        } else if self.appends.calls.remove(&origin.request).is_some() {
            self.answer_call(origin.request, Err(refusal));
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
