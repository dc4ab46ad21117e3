//! The session's calls: numbered, kept until the log has decided them, tried again in their order.
//!
//! ```text
//!  waiting --number, send--> in flight --decided--> settled --all before it too--> forgotten
//!                  ^            |  (refused for now, or nobody knows)
//!                  +--- kept <--+
//! ```
//!
//! The rules, which no part of this may break (docs: decisions/0007; protocol.md, "Sessions"):
//! - A number, once it may have left with some content, is never given to another call: only a call that never
//!   left, or whose every try was certainly not appended, gives its number back, and only the last one can.
//! - After a failure nothing new leaves before every try under way is answered: then all are sent again, in
//!   order.
//! - The caller whose deadline passes is answered; a number that lies below others must be used up all the same.
//!   It is used up by a *filler*: a call that the log refuses whatever happens (its expected index is none that
//!   can be). Where the call itself was appended after all, the filler is answered as a repeat or as other
//!   content, and has done its work, too.
//! - When the session has expired, a call that may have been appended under it ends as unknown. It never goes
//!   into a new session; the others do, in their order.
//!
//! No I/O and no clock: [`super::pump`] does what this says.

use super::{
    Appended, Attempt, Condition, Content, GRACE, IN_FLIGHT, IN_FLIGHT_BYTES, Job, Judged, ended, judge,
    no_answer, too_slow, transport,
};
use crate::error::{AppendError, CallError};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use synod_proto::v1::append_request::Identity;
use synod_proto::v1::{AppendRequest, Reason, SessionCall};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Duration, Instant};

#[cfg(test)]
mod tests;

/// No log is that long: a call that expects it is refused when it is applied.
const NEVER: u64 = u64::MAX;
/// How long a member may keep a filler.
const FILLER_TIMEOUT: Duration = Duration::from_secs(5);

/// Where a numbered call stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// To be sent.
    Kept,
    InFlight,
    /// The log has decided.
    Settled,
}

/// A numbered call.
#[derive(Debug)]
struct Call {
    content: Content,
    condition: Condition,
    /// None: a filler.
    caller: Option<Caller>,
    stage: Stage,
    /// Some try of this number may have been appended, or may be yet.
    maybe: bool,
}

#[derive(Debug)]
struct Caller {
    deadline: Instant,
    answer: oneshot::Sender<Result<Appended, AppendError>>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Caller {
    /// Whoever gave up meanwhile does not listen any more.
    fn tell(self, outcome: Result<Appended, AppendError>) {
        drop(self.answer.send(outcome));
    }
}

impl Call {
    /// The caller has its answer; the number has to be used up still.
    fn fill(&mut self) {
        self.content = vec![Bytes::new()].into();
        self.condition = Condition { expected_index: Some(NEVER), fence: None };
    }

    fn end(&mut self, outcome: Result<Appended, AppendError>) {
        if let Some(caller) = self.caller.take() {
            caller.tell(outcome);
        }
    }
}

/// Whether anything new may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Open,
    /// Something failed: the answers to all tries under way are awaited.
    Draining,
}

/// What came of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing to do but to send what there is.
    GoOn,
    /// Wait a little before what failed is tried again: at least as long as the member said.
    Pause(Option<Duration>),
}

/// All calls of the session.
#[derive(Debug)]
pub(super) struct Ordered {
    session: Option<u64>,
    /// The number of the first call in `calls`.
    first: u64,
    calls: VecDeque<Call>,
    /// No call below this number is to be sent.
    send_from: u64,
    waiting: VecDeque<Job>,
    /// What may be under way.
    bytes: Arc<Semaphore>,
    in_flight: usize,
    flow: Flow,
    /// The session is gone, as far as its calls under way will tell.
    expired: bool,
    /// Why the last try failed.
    last_error: Option<CallError>,
    /// No deadline lies before it.
    look_at: Option<Instant>,
}

impl Ordered {
    pub(super) fn new() -> Ordered {
        Ordered {
            session: None,
            first: 1,
            calls: VecDeque::new(),
            send_from: 1,
            waiting: VecDeque::new(),
            bytes: Arc::new(Semaphore::new(IN_FLIGHT_BYTES as usize)),
            in_flight: 0,
            flow: Flow::Open,
            expired: false,
            last_error: None,
            look_at: None,
        }
    }

    /// Nothing is unanswered.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.calls.iter().all(|call| call.caller.is_none())
    }

    /// Whether a stream is needed.
    pub(super) fn has_work(&self) -> bool {
        !self.waiting.is_empty() || !self.calls.is_empty()
    }

    /// Whether a session has to be opened before anything can leave.
    pub(super) fn needs_session(&self) -> bool {
        self.session.is_none() && !self.waiting.is_empty()
    }

    /// The session, where one is open.
    pub(super) fn session(&self) -> Option<u64> {
        self.session
    }

    pub(super) fn push(&mut self, job: Job) {
        self.look_at = Some(self.look_at.map_or(job.deadline, |at| at.min(job.deadline)));
        self.waiting.push_back(job);
    }

    pub(super) fn opened(&mut self, session: u64) {
        self.session = Some(session);
        self.first = 1;
        self.send_from = 1;
    }

    /// No session could be opened. Returns whether trying again may help.
    pub(super) fn not_opened(&mut self, error: CallError) -> bool {
        let may_pass = match judge(&error) {
            Judged::MayPass | Judged::Maybe => true,
            Judged::Refused | Judged::Reused | Judged::Forgotten | Judged::UnexpectedIndex { .. } => false,
        };
        if !may_pass {
            for job in self.waiting.drain(..) {
                drop(job.answer.send(Err(AppendError::Refused(error.clone()))));
            }
        }
        self.last_error = Some(error);
        may_pass
    }

    /// What can leave now, oldest first; each is then under way until [`Ordered::answered`] or [`Ordered::cut`].
    /// With its number comes the request, and when the member should give it up.
    pub(super) fn take(&mut self, now: Instant) -> Option<(u64, AppendRequest, Instant)> {
        let session = self.session?;
        if self.flow != Flow::Open {
            return None;
        }
        let at = match self.next_kept() {
            Some(at) => at,
            None if self.calls.len() >= IN_FLIGHT => return None,
            None => {
                let Job { content, condition, deadline, answer, permit } = self.next_waiting()?;
                let caller = Some(Caller { deadline, answer, permit });
                let call = Call { content, condition, caller, stage: Stage::Kept, maybe: false };
                self.calls.push_back(call);
                self.calls.len() - 1
            }
        };
        let sequence = self.first + at as u64;
        let call = self.calls.get_mut(at)?;
        call.stage = Stage::InFlight;
        self.send_from = sequence + 1;
        self.in_flight += 1;
        let identity = SessionCall { session, sequence, acknowledged: self.first - 1 };
        let request = call.condition.request(call.content.clone(), Some(Identity::Session(identity)));
        let deadline = call.caller.as_ref().map_or(now + FILLER_TIMEOUT, |caller| caller.deadline);
        Some((sequence, request, deadline))
    }

    /// The first numbered call that is to be sent again. One whose caller went away is not: only its number is
    /// used up, if it has to be.
    fn next_kept(&mut self) -> Option<usize> {
        let mut at = usize::try_from(self.send_from.saturating_sub(self.first)).ok()?;
        loop {
            let call = self.calls.get_mut(at)?;
            if call.stage != Stage::Kept {
                at += 1;
                continue;
            }
            if call.caller.take_if(|caller| caller.answer.is_closed()).is_some() {
                call.fill();
                self.give_back();
                continue;
            }
            return Some(at);
        }
    }

    /// The next call to be numbered; those whose callers went away before are not sent at all.
    fn next_waiting(&mut self) -> Option<Job> {
        loop {
            let job = self.waiting.front()?;
            if job.answer.is_closed() {
                self.waiting.pop_front();
                continue;
            }
            if job.permit.is_some() {
                return self.waiting.pop_front();
            }
            let size = u32::try_from(job.content.bytes()).unwrap_or(u32::MAX).min(IN_FLIGHT_BYTES);
            // Where there is none, an answer to what is under way makes room.
            let permit = self.bytes.clone().try_acquire_many_owned(size).ok()?;
            return self.waiting.pop_front().map(|job| Job { permit: Some(permit), ..job });
        }
    }

    /// The answer to a try.
    pub(super) fn answered(&mut self, sequence: u64, attempt: Attempt, now: Instant) -> Next {
        let at = sequence.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        let Some(call) = at.and_then(|at| self.calls.get_mut(at)) else { return Next::GoOn };
        if call.stage != Stage::InFlight {
            return Next::GoOn;
        }
        self.in_flight -= 1;
        call.stage = Stage::Kept;
        let error = match attempt {
            Attempt::Appended(appended) => return self.settle(sequence, Ok(appended)),
            Attempt::NotSent(error) => error,
            Attempt::Lost(error) => {
                call.maybe = true;
                error
            }
            Attempt::Failed(error) => match judge(&error) {
                Judged::UnexpectedIndex { tail } => {
                    return self.settle(sequence, Err(AppendError::UnexpectedIndex { tail }));
                }
                // A filler whose number the call itself has used; or a session that another client uses, too.
                Judged::Reused => return self.settle(sequence, Err(AppendError::Refused(error))),
                Judged::Forgotten if error.reason == Reason::SessionExpired => {
                    self.expired = true;
                    error
                }
                Judged::Forgotten => return self.settle(sequence, Err(AppendError::Unknown(error))),
                Judged::Refused => {
                    let maybe = call.maybe;
                    call.end(Err(ended(error.clone(), maybe)));
                    error
                }
                Judged::Maybe => {
                    call.maybe = true;
                    error
                }
                Judged::MayPass => error,
            },
        };
        let hint = error.retry_after;
        // An answer to the deadline is the end for the caller; a hint to try again comes too late.
        if call.caller.as_ref().is_some_and(|caller| caller.deadline <= now) {
            let maybe = call.maybe;
            call.end(Err(ended(error.clone(), maybe)));
        }
        if call.caller.is_none() {
            call.fill();
        }
        self.last_error = Some(error);
        self.flow = Flow::Draining;
        self.give_back();
        self.drained(hint)
    }

    /// The log has decided the call; with the calls before it, it is forgotten here, and soon there.
    fn settle(&mut self, sequence: u64, outcome: Result<Appended, AppendError>) -> Next {
        let at = sequence.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        if let Some(call) = at.and_then(|at| self.calls.get_mut(at)) {
            call.stage = Stage::Settled;
            call.end(outcome);
        }
        while self.calls.front().is_some_and(|call| call.stage == Stage::Settled) {
            self.calls.pop_front();
            self.first += 1;
        }
        self.drained(None)
    }

    /// The stream broke: of what is under way nobody knows.
    pub(super) fn cut(&mut self, error: &CallError) {
        for call in self.calls.iter_mut().filter(|call| call.stage == Stage::InFlight) {
            call.stage = Stage::Kept;
            call.maybe = true;
            if call.caller.is_none() {
                call.fill();
            }
        }
        self.in_flight = 0;
        self.flow = Flow::Draining;
        self.last_error = Some(error.clone());
        // The pump waits before it opens the next stream.
        let _ = self.drained(None);
    }

    /// When [`Ordered::expire`] has something to do.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.look_at
    }

    /// Answers callers whose deadline has passed.
    pub(super) fn expire(&mut self, now: Instant) {
        let last = self.last_error.clone();
        let mut look_at: Option<Instant> = None;
        let mut later = |at: Instant| look_at = Some(look_at.map_or(at, |least| least.min(at)));
        for call in &mut self.calls {
            let Some(caller) = &call.caller else { continue };
            // The member answers at the deadline: what it says then is worth a moment.
            let at = if call.stage == Stage::InFlight { caller.deadline + GRACE } else { caller.deadline };
            if at > now {
                later(at);
                continue;
            }
            let error = match &last {
                Some(error) if call.stage != Stage::InFlight => error.clone(),
                _ => no_answer(),
            };
            let unknown = call.maybe || call.stage == Stage::InFlight;
            call.end(Err(ended(error, unknown)));
            if call.stage == Stage::Kept {
                call.fill();
            }
        }
        let mut kept = VecDeque::with_capacity(self.waiting.len());
        for job in self.waiting.drain(..) {
            if job.deadline > now {
                later(job.deadline);
                kept.push_back(job);
            } else {
                let error = last.clone().unwrap_or_else(too_slow);
                drop(job.answer.send(Err(AppendError::Refused(error))));
            }
        }
        self.waiting = kept;
        self.look_at = look_at;
        self.give_back();
    }

    /// The last word to everybody: the client has stopped.
    pub(super) fn abandon(&mut self) {
        for mut call in self.calls.drain(..) {
            call.end(Err(AppendError::Unknown(transport("the client has stopped"))));
        }
        self.waiting.clear();
    }

    /// Fillers at the end of which no try can have been appended give their numbers back.
    fn give_back(&mut self) {
        let unused = |call: &Call| call.caller.is_none() && call.stage == Stage::Kept && !call.maybe;
        while self.calls.back().is_some_and(unused) {
            self.calls.pop_back();
        }
    }

    /// Where the answers to all tries under way have come after a failure, a new start can be made.
    fn drained(&mut self, hint: Option<Duration>) -> Next {
        if self.in_flight > 0 || self.flow == Flow::Open {
            return Next::GoOn;
        }
        self.flow = Flow::Open;
        self.send_from = self.first;
        if !self.expired {
            return if self.calls.is_empty() { Next::GoOn } else { Next::Pause(hint) };
        }
        self.expired = false;
        self.session = None;
        let error = self.last_error.clone().unwrap_or_else(|| transport("the session has expired"));
        let mut again = VecDeque::new();
        for mut call in std::mem::take(&mut self.calls) {
            if call.maybe {
                call.end(Err(AppendError::Unknown(error.clone())));
            }
            if let Some(Caller { deadline, answer, permit }) = call.caller.take() {
                let Call { content, condition, .. } = call;
                again.push_back(Job { content, condition, deadline, answer, permit });
            }
        }
        again.append(&mut self.waiting);
        self.waiting = again;
        Next::GoOn
    }
}
