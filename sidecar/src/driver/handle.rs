//! How the servers and the transport speak to the driver.

use super::disk::Done;
use super::window::{Position, Window};
use crate::storage::{LogReader, Place, Scrubbed, StorageError};
use crate::transport::Link;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use synod_paxos::configuration::Configuration;
use synod_paxos::status::{MemberState, Role};
use synod_paxos::system::Reply;
use synod_paxos::value::{Append, Checkpoint, Logged, Operation};
use synod_paxos::{
    AdminCommand, AdminOutcome, Ballot, Consistency, Incoming, Index, MemberId, Node, Refusal, RequestId,
    Settings, Slot, Status,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

/// Payload bytes of unanswered appends at one member (docs: reliability.md, "Bounds").
pub const APPENDS_IN_FLIGHT_BYTES: usize = 64 << 20;
/// Values in peers' messages that wait for the driver, in bytes: what comes above that waits on its connection.
pub(super) const INBOX_BYTES: usize = 32 << 20;
/// What a call costs beside its payload.
const CALL_OVERHEAD: usize = 512;
/// How long the driver may take to answer a request that was cancelled at its deadline.
const CANCEL_GRACE: Duration = Duration::from_secs(1);

/// What the log made of a call, or why not.
pub type CallOutcome = Result<Reply, Refusal>;

/// Where the answer to a call goes.
#[derive(Debug)]
pub enum CallReply {
    /// To the one who waits for it.
    Once(oneshot::Sender<CallOutcome>),
    /// To a stream of answers.
    Tagged(u64, mpsc::UnboundedSender<(u64, CallOutcome)>),
}

impl CallReply {
    /// Delivers it; whoever went away does not get it.
    pub(super) fn send(self, outcome: CallOutcome) {
        match self {
            CallReply::Once(waiting) => drop(waiting.send(outcome)),
            CallReply::Tagged(tag, stream) => drop(stream.send((tag, outcome))),
        }
    }
}

/// The core's view, with the newest configuration it has applied.
#[derive(Clone, Debug)]
pub struct Report {
    /// The core's own words.
    pub status: Status,
    /// The newest configuration, and whether it governs the next slot.
    pub configuration: Option<(Configuration, bool)>,
}

/// Bytes of rows behind a damaged one that are looked at for others.
const LOOK_AHEAD: u64 = 16 << 20;
/// How long a reader waits for a damaged row to be healed from peers.
const HEALING: Duration = Duration::from_secs(30);

/// Configurations and leaderships so far.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Oldest first.
    pub configurations: Vec<Configuration>,
    /// Fencing epoch and ballot, oldest first.
    pub leaders: Vec<(Slot, Ballot)>,
}

/// What a member is now: told of each change, and looked at by every call at no cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Whether it takes part.
    pub state: MemberState,
    /// What it does in its configuration.
    pub role: Role,
    /// The fencing epoch of the newest leadership that it has applied.
    pub epoch: Slot,
    /// It leads, and the newest leadership that it has applied is its own: `epoch` names it.
    pub leads: bool,
    /// Who leads, where that is known.
    pub leader: Option<MemberId>,
    /// How often the log was recovered from the loss of a quorum.
    pub recoveries: u32,
    /// The settings in force; none: it knows none yet.
    pub settings: Option<Settings>,
}

impl Facts {
    pub(super) fn of(node: &Node) -> Facts {
        let system = node.system();
        let newest = system.and_then(|system| system.newest_leader());
        Facts {
            state: node.member_state().clone(),
            role: node.role(),
            epoch: newest.map_or(Slot(0), |(slot, _)| slot),
            // A leader may learn of the next one's first entry before it learns that it leads no more.
            leads: node.role() == Role::Leader && newest.map(|(_, ballot)| ballot) == node.leader(),
            leader: node.leader().map(|ballot| ballot.member),
            recoveries: system.map_or(0, |system| system.recoveries),
            settings: system.map(|system| system.settings),
        }
    }

    /// Why it takes no part, nor is about to.
    pub fn excluded(&self) -> Option<&str> {
        match &self.state {
            MemberState::Active | MemberState::Joining | MemberState::Recovering => None,
            MemberState::Uninitialized => {
                Some("this member belongs to no cluster yet: initialize it, or add it to one")
            }
            MemberState::Removed => Some("this member was removed from its cluster: use another"),
            MemberState::Fenced(why) | MemberState::Halted(why) => Some(why),
        }
    }
}

/// What the log knows of the application's own positions, as far as this member has applied it.
#[derive(Clone, Debug, Default)]
pub struct Application {
    /// Named positions that the log is not trimmed past.
    pub cursors: BTreeMap<String, Index>,
    /// After how long without a word each of those is removed that expire.
    pub cursor_expiry: BTreeMap<String, Duration>,
    /// The newest checkpoints, ascending by index.
    pub checkpoints: Vec<Checkpoint>,
    /// The newest configuration; none: this member belongs to no cluster.
    pub configuration: Option<Configuration>,
    /// The first index that can be read here.
    pub first_index: Index,
    /// The last index applied here.
    pub last_index: Index,
}

/// What the driver is told.
#[derive(Debug)]
pub(crate) enum Command {
    Call { request: RequestId, operation: Operation, reply: CallReply, permit: OwnedSemaphorePermit },
    Read(RequestId, Consistency, oneshot::Sender<Result<Index, Refusal>>),
    Admin(RequestId, AdminCommand, oneshot::Sender<Result<AdminOutcome, Refusal>>),
    Cancel(RequestId),
    Damaged(Slot),
    DamagedSnapshot(Slot),
    Status(oneshot::Sender<Report>),
    History(oneshot::Sender<History>),
    Application(oneshot::Sender<Application>),
    RepeatOf(Append, oneshot::Sender<Option<Reply>>),
    LinkUp(MemberId, Link),
    LinkDown(MemberId, u64),
    Disk(Done),
    Stop,
}

/// The request was not answered by the core.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// The core refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The deadline passed first.
    #[error("the deadline passed")]
    Deadline,
    /// The deadline passed before this member had applied what the reader has seen already.
    #[error("this member has applied the log up to index {applied} only: try again, or read elsewhere")]
    Behind {
        /// The last index applied here.
        applied: Index,
    },
    /// The member is going down, or its disk was renewed.
    #[error("this member is stopping: try again in a moment")]
    Stopping,
}

/// A handle to a running driver; clones speak to the same one.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) messages: mpsc::Sender<(Incoming, OwnedSemaphorePermit)>,
    /// Bytes of values that peers' messages may hold while they wait for the driver.
    pub(super) inbox: Arc<Semaphore>,
    pub(super) next_request: Arc<AtomicU64>,
    pub(super) in_flight: Arc<Semaphore>,
    pub(super) window: Arc<Window>,
    pub(super) checkpoints: watch::Receiver<Vec<Checkpoint>>,
    pub(super) facts: watch::Receiver<Facts>,
    pub(super) reader: LogReader,
    /// Changes when rows that were healed are on the disk.
    pub(super) healed: watch::Receiver<u64>,
}

/// Tells the driver that nobody waits for a request any more, unless its answer came.
struct Waiting<'a> {
    handle: &'a Handle,
    request: RequestId,
    answered: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.handle.cancel(self.request);
        }
    }
}

impl Handle {
    fn request(&self) -> RequestId {
        RequestId(self.next_request.fetch_add(1, Ordering::Relaxed))
    }

    /// A stopped driver answers nothing; the senders inside the command are dropped and tell so.
    pub(crate) fn tell(&self, command: Command) {
        drop(self.commands.send(command));
    }

    /// A message from a peer, its sender and addressee checked; waits while the driver is behind. `false`:
    /// the driver has stopped.
    pub(crate) async fn deliver(&self, message: Incoming) -> bool {
        let bytes = message.message.value_bytes().min(INBOX_BYTES);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let Ok(permit) = self.inbox.clone().acquire_many_owned(bytes).await else { return false };
        self.messages.send((message, permit)).await.is_ok()
    }

    /// Nobody waits for this request any more; a call that was not proposed yet never will be.
    pub fn cancel(&self, request: RequestId) {
        self.tell(Command::Cancel(request));
    }

    /// Hands a call to the driver.
    ///
    /// # Errors
    /// [`Refusal::Backpressure`] where too much is waiting: nothing was appended.
    pub fn call(&self, operation: Operation, reply: CallReply) -> Result<RequestId, (Refusal, CallReply)> {
        let entries = operation.as_append().map(|append| &append.entries);
        let payload = entries.map_or(0, |entries| entries.iter().map(|entry| entry.size() + 64).sum());
        let size = u32::try_from((CALL_OVERHEAD + payload).min(APPENDS_IN_FLIGHT_BYTES)).unwrap_or(u32::MAX);
        let Ok(permit) = self.in_flight.clone().try_acquire_many_owned(size) else {
            return Err((Refusal::Backpressure, reply));
        };
        let request = self.request();
        self.tell(Command::Call { request, operation, reply, permit });
        Ok(request)
    }

    /// Calls and waits for the outcome.
    ///
    /// # Errors
    /// See [`Unanswered`]; at the deadline the call is cancelled, and what the core says then is returned.
    pub async fn call_and_wait(
        &self,
        operation: Operation,
        deadline: Option<Instant>,
    ) -> Result<Reply, Unanswered> {
        let (reply, answer) = oneshot::channel();
        let request = self
            .call(operation, CallReply::Once(reply))
            .map_err(|(refusal, _)| Unanswered::Refused(refusal))?;
        self.wait(request, answer, deadline).await
    }

    async fn wait<T>(
        &self,
        request: RequestId,
        mut answer: oneshot::Receiver<Result<T, Refusal>>,
        deadline: Option<Instant>,
    ) -> Result<T, Unanswered> {
        let mut waiting = Waiting { handle: self, request, answered: false };
        let outcome = match deadline {
            None => (&mut answer).await,
            Some(deadline) => match tokio::time::timeout_at(deadline, &mut answer).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    self.cancel(request);
                    waiting.answered = true;
                    match tokio::time::timeout(CANCEL_GRACE, answer).await {
                        Ok(Ok(outcome)) => Ok(outcome),
                        Ok(Err(_)) | Err(_) => return Err(Unanswered::Deadline),
                    }
                }
            },
        };
        waiting.answered = true;
        Ok(outcome.map_err(|_| Unanswered::Stopping)??)
    }

    /// A read point: what is applied here when this returns is as fresh as `consistency` asks.
    ///
    /// # Errors
    /// See [`Unanswered`].
    pub async fn read_point(&self, consistency: Consistency, deadline: Instant) -> Result<Index, Unanswered> {
        let (reply, answer) = oneshot::channel();
        let request = self.request();
        self.tell(Command::Read(request, consistency, reply));
        self.wait(request, answer, Some(deadline)).await
    }

    /// What is applied here, once that is at least `index`.
    ///
    /// # Errors
    /// [`Unanswered::Behind`] at the deadline.
    pub async fn applied(&self, index: Index, deadline: Instant) -> Result<Index, Unanswered> {
        let mut positions = self.window.watch();
        let reached = positions.wait_for(|position| position.index >= index);
        match tokio::time::timeout_at(deadline, reached).await {
            Ok(Ok(position)) => Ok(position.index),
            Ok(Err(_)) => Err(Unanswered::Stopping),
            Err(_) => Err(Unanswered::Behind { applied: self.position().index }),
        }
    }

    /// An administrator's call.
    ///
    /// # Errors
    /// See [`Unanswered`].
    pub async fn admin(&self, command: AdminCommand, deadline: Instant) -> Result<AdminOutcome, Unanswered> {
        let (reply, answer) = oneshot::channel();
        let request = self.request();
        self.tell(Command::Admin(request, command, reply));
        self.wait(request, answer, Some(deadline)).await
    }

    /// The core's view now; also the proof that the driver's loop turns.
    ///
    /// # Errors
    /// If the driver has stopped.
    pub async fn status(&self) -> Result<Report, Unanswered> {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Status(reply));
        answer.await.map_err(|_| Unanswered::Stopping)
    }

    /// Configurations and leaderships.
    ///
    /// # Errors
    /// If the driver has stopped.
    pub async fn history(&self) -> Result<History, Unanswered> {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::History(reply));
        answer.await.map_err(|_| Unanswered::Stopping)
    }

    /// Consumers and checkpoints.
    ///
    /// # Errors
    /// If the driver has stopped.
    pub async fn application(&self) -> Result<Application, Unanswered> {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Application(reply));
        answer.await.map_err(|_| Unanswered::Stopping)
    }

    /// What an append was answered before, where it repeats one that this member has applied and that is remembered.
    pub async fn repeat_of(&self, append: Append) -> Option<Reply> {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::RepeatOf(append, reply));
        answer.await.ok().flatten()
    }

    /// The checkpoints that the log names, as far as this member has applied it, and their changes.
    pub fn checkpoints(&self) -> watch::Receiver<Vec<Checkpoint>> {
        self.checkpoints.clone()
    }

    /// What this member is, and its changes.
    pub fn facts(&self) -> watch::Receiver<Facts> {
        self.facts.clone()
    }

    /// The newest checkpoint's index.
    pub fn newest_checkpoint(&self) -> Option<Index> {
        self.checkpoints.borrow().last().map(|newest| newest.index)
    }

    /// How far this member has applied.
    pub fn position(&self) -> Position {
        self.window.position()
    }

    /// The first index that can be read here: what is before was trimmed.
    pub fn first_index(&self) -> Index {
        self.window.first_index()
    }

    /// Changes of the position.
    pub fn watch(&self) -> watch::Receiver<Position> {
        self.window.watch()
    }

    /// Entries `from ..= through`, where `through` is applied: from memory, or else from the disk on a thread
    /// that may block. At most `entries` and about `bytes`, one at least. Where the first one's row is damaged, peers
    /// are asked for it, and the caller waits.
    ///
    /// # Errors
    /// If the disk cannot be read, or no peer has given the row within [`HEALING`].
    pub async fn entries(
        &self,
        from: Index,
        through: Index,
        (entries, bytes): (usize, usize),
    ) -> Result<Vec<Logged>, StorageError> {
        let stored = match self.window.entries((from, through), entries, bytes) {
            Ok(found) => return Ok(found),
            Err(stored) => stored,
        };
        let mut healed = self.healed.clone();
        let until = Instant::now() + HEALING;
        loop {
            // Before the disk is looked at: a row that is healed meanwhile is noticed.
            healed.mark_unchanged();
            let reader = self.reader.clone();
            let reading = tokio::task::spawn_blocking(move || reader.entries((from, stored), entries, bytes));
            let found =
                reading.await.map_err(|e| StorageError::Damaged { what: "the log", why: e.to_string() })?;
            let Err(StorageError::DamagedRow { slot }) = found else { return found };
            // Whatever lies behind it is lost as well, mostly: all of it is asked for at once.
            let more = self.scrub(Place::Row(slot), LOOK_AHEAD).await.map(|found| found.damaged);
            self.damaged(slot);
            more.unwrap_or_default().into_iter().for_each(|slot| self.damaged(slot));
            match tokio::time::timeout_at(until, healed.changed()).await {
                Ok(Ok(())) => {}
                // No peer has it, or the driver has ended.
                Ok(Err(_)) | Err(_) => return found,
            }
        }
    }

    /// Reads a piece of the log again, about `bytes`, on a thread that may block.
    ///
    /// # Errors
    /// If the newest segment cannot be read.
    pub(crate) async fn scrub(&self, from: Place, bytes: u64) -> Result<Scrubbed, StorageError> {
        let reader = self.reader.clone();
        let reading = tokio::task::spawn_blocking(move || reader.scrub(from, bytes));
        reading.await.map_err(|e| StorageError::Damaged { what: "the log", why: e.to_string() })?
    }

    /// The row of `slot` was found damaged on this disk: it is to be healed.
    pub(crate) fn damaged(&self, slot: Slot) {
        self.tell(Command::Damaged(slot));
    }

    /// The snapshot at `slot` was found damaged on this disk: it is to be written again.
    pub(crate) fn damaged_snapshot(&self, slot: Slot) {
        self.tell(Command::DamagedSnapshot(slot));
    }

    /// Ends the driver; requests that wait are answered as stopping.
    pub fn stop(&self) {
        self.tell(Command::Stop);
    }

    /// Resolves when the driver has ended.
    pub async fn stopped(&self) {
        self.commands.closed().await;
    }
}
