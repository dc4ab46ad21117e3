//! All tasks of an application share one append stream, and one session.
//!
//! ```text
//!  append() --Job--> pump task --AppendStreamRequest{tag}--> member
//!     ^                 |  <----AppendStreamResponse{tag}---
//!     +---- answer -----+
//! ```
//! A call takes its place in the queue when its future is polled first: that is its place in the log, too.
//! Calls of the session are numbered, kept and tried again by the pump ([`ordered`] has the rules), in the order
//! in which they came. Of calls with a key, or without an identity, the pump makes one attempt for each job;
//! trying again is [`Appender::append`]'s.

mod content;
mod ordered;
mod pump;

use content::Content;
pub use content::NewEntry;

use crate::error::{AppendError, CallError};
use crate::read;
use crate::retry::within;
use bytes::Bytes;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use synod_proto::v1::append_request::Identity;
use synod_proto::v1::{self, AppendRequest, Outcome, Reason};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tonic::Code;
use tonic::transport::Channel;

/// Unanswered requests of one client.
const IN_FLIGHT: usize = 4_096;
/// The session's bytes under way: with the others' under the member's own bound for all its clients, 64 MiB.
const IN_FLIGHT_BYTES: u32 = 32 << 20;
/// Bytes under way of calls that are not of the session.
const LOOSE_BYTES: u32 = 16 << 20;
/// A call of more bytes is not sent: no log takes it, and the member would end the stream that all tasks share.
const CALL_BYTES: usize = 3 << 20;
/// How much longer than the deadline the member's own answer to it is awaited.
const GRACE: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A name for one append, chosen by the application: repeating the append under the same key, even from another
/// process, appends it once and is answered with its indexes.
///
/// The log remembers the last 100,000 or so keys and sessions, not all. A key that was forgotten would be
/// appended again; [`IdempotencyKey::minted_at`] turns that into an explicit "unknown".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    key: Bytes,
    minted_at: Option<u64>,
}

impl IdempotencyKey {
    /// A key of 1 to 64 bytes: anything that is unique to the append, such as an order's number or a UUID. Other
    /// lengths are refused when it is used.
    pub fn new(key: impl Into<Bytes>) -> IdempotencyKey {
        IdempotencyKey { key: key.into(), minted_at: None }
    }

    /// An index that was in the log when the key was made, kept beside the key (for instance what
    /// [`crate::Client::tail`] said then; `sequential` will do, and 0 for an empty log). With it a repeat that comes
    /// so late that the log may have forgotten the key ends as [`AppendError::Unknown`] with the reason
    /// `key-expired`, and appends nothing.
    #[must_use]
    pub fn minted_at(mut self, index: u64) -> IdempotencyKey {
        self.minted_at = Some(index);
        self
    }
}

/// By what the log tells a repeat of an append from another append.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Repeats {
    /// By the client's session: every try of this append is one append, also across a change of the leader, a
    /// cut connection and a restart of the member. All appends of this kind of one [`crate::Client`] and its clones
    /// are appended in the order in which they were called. The default.
    #[default]
    Session,
    /// By a key of the application's choice: as `Session`, and also across a restart of the application. Such
    /// appends are in no order among each other.
    Key(IdempotencyKey),
    /// By a key that the client makes for this append: as `Session`, without a session, and in no order. Each takes a row
    /// of the log's table for an hour, so that it suits programs that append little or end soon.
    Minted,
    /// Not at all: what may have been appended is not tried again, and ends as [`AppendError::Unknown`].
    Untold,
}

/// How to append.
#[derive(Clone, Debug)]
pub struct AppendOptions {
    /// Append only if this is the log's last index (0: if the log is empty).
    pub expected_index: Option<u64>,
    /// Append only if no later leadership than this fencing epoch has started: what an application does as the leader,
    /// whose pod may have been stopped meanwhile.
    pub fence: Option<u64>,
    /// How long to try, all attempts together. Default: 10 s. The longer it is, the longer a fault of the cluster
    /// may last without the application noticing.
    pub timeout: Duration,
    /// How repeats are told.
    pub repeats: Repeats,
}

impl Default for AppendOptions {
    fn default() -> Self {
        AppendOptions {
            expected_index: None,
            fence: None,
            timeout: Duration::from_secs(10),
            repeats: Repeats::Session,
        }
    }
}

/// Where the entries are for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Appended {
    /// The index of the first entry.
    pub first_index: u64,
    /// The index of the last entry.
    pub last_index: u64,
    /// An earlier try had appended it; the one that was answered added nothing.
    pub repeated: bool,
}

impl From<v1::AppendResponse> for Appended {
    fn from(answer: v1::AppendResponse) -> Appended {
        let v1::AppendResponse { first_index, last_index, repeated } = answer;
        Appended { first_index, last_index, repeated }
    }
}

/// What one attempt came to.
#[derive(Debug)]
enum Attempt {
    Appended(Appended),
    Failed(CallError),
    /// The request never left: trying again is safe.
    NotSent(CallError),
    /// It left, and its answer will not come.
    Lost(CallError),
}

/// On what a call is appended.
#[derive(Clone, Copy, Debug, Default)]
struct Condition {
    expected_index: Option<u64>,
    fence: Option<u64>,
}

impl Condition {
    /// The request that asks for `content` under this condition.
    fn request(self, content: Content, identity: Option<Identity>) -> AppendRequest {
        let Condition { expected_index, fence } = self;
        let Content { payloads, entries } = content;
        AppendRequest { entries: payloads, new_entries: entries, expected_index, fence, identity }
    }
}

/// A call of the session.
#[derive(Debug)]
struct Job {
    content: Content,
    condition: Condition,
    deadline: Instant,
    answer: oneshot::Sender<Result<Appended, AppendError>>,
    /// Its share of the bytes that may be under way, from when it is sent.
    permit: Option<OwnedSemaphorePermit>,
}

/// One attempt of a call that is not of the session.
#[derive(Debug)]
struct Loose {
    request: AppendRequest,
    deadline: Instant,
    answer: oneshot::Sender<Attempt>,
}

#[derive(Debug)]
enum Command {
    Ordered(Job),
    Loose(Loose),
    /// Answered when everything before it is, and the session is closed.
    Close(oneshot::Sender<()>),
}

#[derive(Clone, Debug)]
pub(crate) struct Appender {
    commands: mpsc::UnboundedSender<Command>,
    /// Bytes under way of calls that are not of the session.
    loose_bytes: Arc<Semaphore>,
    seen: Arc<AtomicU64>,
    /// For what an append by a key needs to know of the log.
    calls: Channel,
    minter: Arc<Minter>,
}

/// Makes keys that nobody else makes: two numbers by a keyed function, whose 128 bits of key are this client's own.
#[derive(Debug, Default)]
struct Minter {
    state: RandomState,
    made: AtomicU64,
}

impl Minter {
    fn key(&self) -> Bytes {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let half = |which: u8| self.state.hash_one((number, which)).to_be_bytes();
        [half(0), half(1)].concat().into()
    }
}

/// What tells a repeat of a call that is not of the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// A key that the application keeps: an earlier process may have used it.
    Kept,
    /// A key that nobody used before this call.
    Minted,
    /// Nothing: what may have been appended is not tried again.
    Nothing,
}

impl Appender {
    /// `seen` is raised to the indexes that are acknowledged.
    pub(crate) fn start(channel: Channel, calls: Channel, seen: Arc<AtomicU64>) -> Appender {
        // Bounded by the callers, each of which has its payload already.
        let (commands, queue) = mpsc::unbounded_channel();
        tokio::spawn(pump::run(channel, queue));
        let loose_bytes = Arc::new(Semaphore::new(LOOSE_BYTES as usize));
        Appender { commands, loose_bytes, seen, calls, minter: Arc::default() }
    }

    pub(crate) async fn append(
        &self,
        content: impl Into<Content>,
        options: AppendOptions,
    ) -> Result<Appended, AppendError> {
        let AppendOptions { expected_index, fence, timeout, repeats } = options;
        let condition = Condition { expected_index, fence };
        let deadline = within(timeout);
        let content = content.into();
        let bytes = content.bytes();
        if bytes > CALL_BYTES {
            return Err(AppendError::Refused(too_large(bytes)));
        }
        let outcome = match repeats {
            // Nothing is awaited before the call has its place in the queue.
            Repeats::Session => self.ordered(content, condition, deadline).await,
            Repeats::Key(IdempotencyKey { key, minted_at }) => {
                let identity = Some(Identity::Key(v1::IdempotencyKey { key, minted_at }));
                self.loose(condition.request(content, identity), bytes, deadline, Told::Kept).await
            }
            Repeats::Minted => self.minted(content, condition, deadline).await,
            Repeats::Untold => {
                self.loose(condition.request(content, None), bytes, deadline, Told::Nothing).await
            }
        };
        if let Ok(appended) = &outcome {
            self.seen.fetch_max(appended.last_index, Ordering::Relaxed);
        }
        outcome
    }

    async fn ordered(
        &self,
        content: Content,
        condition: Condition,
        deadline: Instant,
    ) -> Result<Appended, AppendError> {
        let (answer, reply) = oneshot::channel();
        let job = Command::Ordered(Job { content, condition, deadline, answer, permit: None });
        if self.commands.send(job).is_err() {
            return Err(AppendError::Refused(not_sent("the client has stopped")));
        }
        // The pump keeps the deadline, because it knows what may have been appended.
        reply.await.unwrap_or_else(|_| Err(AppendError::Unknown(transport("the client has stopped"))))
    }

    /// An append by a key of its own. `minted_at` is what this client has seen; where the log has forgotten keys since,
    /// the key is made anew with the log's end.
    async fn minted(
        &self,
        content: Content,
        condition: Condition,
        deadline: Instant,
    ) -> Result<Appended, AppendError> {
        let bytes = content.bytes();
        let mut minted_at = self.seen.load(Ordering::Relaxed);
        let mut asked = false;
        loop {
            if minted_at == 0 || asked {
                let consistency = if asked { None } else { Some(read::sequential(0)) };
                minted_at = self.last_index(consistency, deadline).await?;
            }
            let key = v1::IdempotencyKey { key: self.minter.key(), minted_at: Some(minted_at) };
            let request = condition.request(content.clone(), Some(Identity::Key(key)));
            match self.loose(request, bytes, deadline, Told::Minted).await {
                Err(AppendError::Refused(error)) if error.reason == Reason::KeyExpired && !asked => {
                    asked = true
                }
                outcome => return outcome,
            }
        }
    }

    /// The log's last index, tried as an append is.
    async fn last_index(
        &self,
        consistency: Option<v1::Consistency>,
        deadline: Instant,
    ) -> Result<u64, AppendError> {
        let mut pause = FIRST_PAUSE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let error = match read::tail(&self.calls, left, consistency).await {
                Ok(tail) => return Ok(tail.last_index),
                Err(error) => error.of_append(Outcome::NotAppended),
            };
            let wake = Instant::now() + wait(&error, pause);
            if judge(&error) != Judged::MayPass || wake >= deadline {
                return Err(AppendError::Refused(error));
            }
            tokio::time::sleep_until(wake).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn loose(
        &self,
        request: AppendRequest,
        bytes: usize,
        deadline: Instant,
        told: Told,
    ) -> Result<Appended, AppendError> {
        let size = u32::try_from(bytes).unwrap_or(u32::MAX).min(LOOSE_BYTES);
        let room = self.loose_bytes.clone().acquire_many_owned(size);
        let Ok(Ok(_room)) = tokio::time::timeout_at(deadline, room).await else {
            return Err(AppendError::Refused(too_slow()));
        };
        let mut pause = FIRST_PAUSE;
        let mut maybe = false;
        loop {
            let error = match self.attempt(request.clone(), deadline).await {
                Attempt::Appended(appended) => return Ok(appended),
                Attempt::NotSent(error) => error,
                Attempt::Failed(error) => match judge(&error) {
                    Judged::UnexpectedIndex { tail } => return Err(AppendError::UnexpectedIndex { tail }),
                    // Of a key that nobody used before, no earlier try can have appended it.
                    Judged::Forgotten => return Err(ended(error, maybe || told != Told::Minted)),
                    Judged::Reused => return Err(AppendError::Refused(error)),
                    Judged::Refused => return Err(ended(error, maybe)),
                    Judged::MayPass => error,
                    Judged::Maybe => {
                        maybe = true;
                        error
                    }
                },
                Attempt::Lost(error) => {
                    maybe = true;
                    error
                }
            };
            if maybe && told == Told::Nothing {
                return Err(AppendError::Unknown(error));
            }
            let wake = Instant::now() + wait(&error, pause);
            if wake >= deadline {
                return Err(ended(error, maybe));
            }
            tokio::time::sleep_until(wake).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn attempt(&self, request: AppendRequest, deadline: Instant) -> Attempt {
        let (answer, reply) = oneshot::channel();
        let loose = Command::Loose(Loose { request, deadline, answer });
        if self.commands.send(loose).is_err() {
            return Attempt::NotSent(not_sent("the client has stopped"));
        }
        match tokio::time::timeout_at(deadline + GRACE, reply).await {
            Ok(Ok(attempt)) => attempt,
            Ok(Err(_)) => Attempt::Lost(transport("the connection broke before the answer came")),
            Err(_) => Attempt::Lost(no_answer()),
        }
    }

    /// Waits for what was appended before, then closes the session.
    pub(crate) async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.commands.send(Command::Close(done)).is_ok() {
            // A pump that has ended has nothing open.
            drop(closed.await);
        }
    }
}

/// The end of a call that trying longer does not help.
fn ended(error: CallError, maybe: bool) -> AppendError {
    if maybe { AppendError::Unknown(error) } else { AppendError::Refused(error) }
}

/// What a failed attempt says about the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judged {
    /// The log has decided: this call is not appended.
    UnexpectedIndex { tail: u64 },
    /// The name is taken by other content: this content is not appended under it.
    Reused,
    /// This try appended nothing; whether an earlier one did, the log does not remember.
    Forgotten,
    /// This try may have appended it.
    Maybe,
    /// This try appended nothing, and the cause may be gone in a moment.
    MayPass,
    /// This try appended nothing, and trying again does not help.
    Refused,
}

fn judge(error: &CallError) -> Judged {
    match (error.reason, error.tail) {
        (Reason::ExpectedIndex, Some(tail)) => Judged::UnexpectedIndex { tail },
        (Reason::KeyReused, _) => Judged::Reused,
        (Reason::KeyExpired | Reason::SequenceForgotten | Reason::SessionExpired, _) => Judged::Forgotten,
        // A member of a version that does not know the call.
        _ if error.code == Code::Unimplemented => Judged::Refused,
        _ if error.outcome != Outcome::NotAppended => Judged::Maybe,
        (Reason::Backpressure | Reason::SequenceGap | Reason::TooManySessions, _) => Judged::MayPass,
        // A member that takes no part yet may be on its way into its cluster.
        (Reason::NotActive, _) => Judged::MayPass,
        _ if error.code == Code::Unavailable => Judged::MayPass,
        _ => Judged::Refused,
    }
}

/// How long to wait before the next try: the member's hint or the pause, and up to half of it more, so that
/// many clients do not come back at once.
fn wait(error: &CallError, pause: Duration) -> Duration {
    let least = error.retry_after.unwrap_or_default().max(pause);
    // The hasher's keys differ from call to call: that is all the randomness that this needs.
    let share = (RandomState::new().build_hasher().finish() % 1_024) as u32;
    least + least * share / 2_048
}

fn transport(message: &str) -> CallError {
    CallError::local(Reason::Transport, message).of_append(Outcome::Unknown)
}

fn not_sent(message: &str) -> CallError {
    transport(message).of_append(Outcome::NotAppended)
}

fn no_answer() -> CallError {
    let message = "no answer came before the deadline, and whether it was appended is not known";
    CallError::local(Reason::OutcomeUnknown, message).of_append(Outcome::Unknown)
}

fn too_large(bytes: usize) -> CallError {
    let message = format!("an append of about {bytes} bytes is larger than any log takes: send several");
    CallError::local(Reason::CallTooLarge, message).of_append(Outcome::NotAppended)
}

fn too_slow() -> CallError {
    let message = "the deadline passed before the append could be sent";
    CallError::local(Reason::Backpressure, message).of_append(Outcome::NotAppended)
}
