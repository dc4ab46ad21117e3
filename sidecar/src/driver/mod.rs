//! The only loop that owns the core.
//!
//! ```text
//!  servers --Command--+                    +--> disk thread --Done--+
//!  peers ---Incoming--+--> Driver (Node) --+--> links to peers      |
//!  timer -------------+        ^           +--> window, replies     |
//!                              +------------------------------------+
//! ```
//! Each turn takes all inputs at hand, then all outputs: the more there is to do, the more of it shares a slot,
//! a message and a sync.

mod disk;
mod handle;
mod notices;
mod window;

pub(crate) use handle::Command;
pub use handle::{
    APPENDS_IN_FLIGHT_BYTES, Application, CallOutcome, CallReply, Facts, Handle, History, Report, Unanswered,
};
pub use window::{Position, Window};

use crate::clock;
use crate::storage::{LogReader, Mark, Opened, StorageError};
use crate::telemetry::Metrics;
use crate::transport::{Identity, Link};
use disk::{Done, Job, ViewJob};
use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, mpsc as blocking};
use std::thread::JoinHandle;
use std::time::Duration;
use synod_paxos::codec::DecodeError;
use synod_paxos::system::SystemState;
use synod_paxos::value::{Checkpoint, Operation};
use synod_paxos::{
    AdminOutcome, Applied, ElectionSettings, Incoming, Index, Input, Instant, MemberId, Node, Notice, Output,
    Refusal, RequestId, SessionId, Slot, Write, WriteBatch,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

/// Inputs of each kind that one turn takes before it polls the core.
const INPUTS: usize = 1_024;
/// How long a stop waits for a disk that takes its time.
const CLOSING: Duration = Duration::from_secs(5);
/// A row that is healed is in the write under way when that is told, or in the next one.
const HEALING_WRITES: u32 = 3;

/// Why the driver ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The disk failed; nothing is tried again on it.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// What the disk holds makes no sense to the core.
    #[error("the stored state cannot be read: {0}; use the version that wrote it or a newer one")]
    State(#[from] DecodeError),
    /// A thread could not be started, or the system has no randomness.
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
    /// A value was chosen that this version cannot read.
    #[error(
        "slot {slot} holds an entry that this version does not know: use the version that wrote it, or a newer one; \
         where no version reads it, `synod-sidecar recover` leaves it out of a new log (docs/lost-quorum.md)"
    )]
    Undecodable {
        /// Where.
        slot: Slot,
    },
}

enum Pending {
    /// And whether it is an append, which is counted.
    Call(CallReply, bool, OwnedSemaphorePermit),
    Read(oneshot::Sender<Result<Index, Refusal>>),
    Admin(oneshot::Sender<Result<AdminOutcome, Refusal>>),
}

impl Pending {
    /// Its caller gave up, and the core had no answer to that.
    fn give_up(self) {
        match self {
            Pending::Call(reply, ..) => reply.send(Err(Refusal::OutcomeUnknown)),
            Pending::Read(reply) => drop(reply.send(Err(Refusal::NotConfirmed))),
            // The caller sees its deadline.
            Pending::Admin(reply) => drop(reply),
        }
    }
}

/// Which slots added entries: noted as they are applied, written with the next write.
#[derive(Default)]
struct Marks {
    new: Vec<Mark>,
    /// Noted up to here.
    noted: Slot,
    /// Durable up to here.
    durable: Slot,
}

impl Marks {
    /// A snapshot took the place of the log up to `slot`: what was noted below is void.
    fn install(&mut self, slot: Slot) {
        self.new.clear();
        self.noted = slot;
    }

    fn note(&mut self, applied: &Applied) {
        self.noted = applied.slot;
        if let Ok(count @ 1..) = u32::try_from(applied.entries.len()) {
            let skipped = applied.skipped.clone();
            self.new.push(Mark { first: applied.first, slot: applied.slot, count, skipped });
        }
    }
}

/// The loop around the core.
pub struct Driver {
    node: Node,
    commands: mpsc::UnboundedReceiver<Command>,
    messages: mpsc::Receiver<(Incoming, OwnedSemaphorePermit)>,
    writer: blocking::Sender<Job>,
    viewer: blocking::Sender<ViewJob>,
    reader: LogReader,
    links: HashMap<MemberId, Vec<Link>>,
    pending: HashMap<RequestId, Pending>,
    cancelled: Vec<RequestId>,
    window: Arc<Window>,
    checkpoints: watch::Sender<Vec<Checkpoint>>,
    facts: watch::Sender<Facts>,
    marks: Marks,
    identity: watch::Sender<Identity>,
    metrics: Arc<Metrics>,
    /// Raised when rows that were healed are on the disk.
    healed: watch::Sender<u64>,
    /// Writes to come that may be the one of a row that was healed.
    healing: u32,
    /// The threads that touch the disk.
    threads: Vec<JoinHandle<()>>,
    stopping: bool,
}

impl Driver {
    /// Starts the core on an open disk, and the threads that touch the disk. `election` takes the place of the log's own
    /// election timing.
    ///
    /// # Errors
    /// If the stored state cannot be read or a thread cannot be started.
    pub fn start(
        disk: Opened,
        identity: watch::Sender<Identity>,
        metrics: Arc<Metrics>,
        election: Option<ElectionSettings>,
    ) -> Result<(Driver, Handle), Fatal> {
        let Opened { state, storage, reader } = disk;
        // Where the disk stands, not the core: the core applies what is chosen above it at once, and gives
        // those slots out as applied.
        let position = match state.system.is_empty() {
            true => Position::default(),
            false => {
                let system = SystemState::decode(state.system.clone())?;
                Position { slot: system.applied, index: system.last_index }
            }
        };
        let mut node = Node::new(state, clock::now(), clock::seed()?)?;
        if let Some(election) = election {
            tracing::warn!(?election, "goes by this election timing in place of the log's");
            node.override_election(clock::now(), election);
        }
        let window = Arc::new(Window::new(position, node.status(clock::now()).first_index));
        let checkpoints = node.system().map(|system| system.checkpoints.clone()).unwrap_or_default();
        let checkpoints = watch::Sender::new(checkpoints);
        let facts = watch::Sender::new(Facts::of(&node));
        let healed = watch::Sender::new(0);
        let (commands, command_queue) = mpsc::unbounded_channel();
        let (messages, message_queue) = mpsc::channel(INPUTS);
        let answer = {
            let commands = commands.clone();
            // A driver that has ended needs no answer.
            move |done| drop(commands.send(Command::Disk(done)))
        };
        let (writer, writing) = disk::start_writer(storage, metrics.clone(), answer.clone())?;
        let (viewer, viewing) = disk::start_viewer(answer)?;
        let handle = Handle {
            commands,
            messages,
            inbox: Arc::new(Semaphore::new(handle::INBOX_BYTES)),
            // No life names its requests as another does, not even one on a restored disk, whose boots repeat.
            next_request: Arc::new(AtomicU64::new(clock::seed()? >> 1)),
            in_flight: Arc::new(Semaphore::new(APPENDS_IN_FLIGHT_BYTES)),
            window: window.clone(),
            checkpoints: checkpoints.subscribe(),
            facts: facts.subscribe(),
            reader: reader.clone(),
            healed: healed.subscribe(),
        };
        let driver = Driver {
            node,
            commands: command_queue,
            messages: message_queue,
            writer,
            viewer,
            reader,
            links: HashMap::new(),
            pending: HashMap::new(),
            cancelled: Vec::new(),
            window,
            checkpoints,
            facts,
            marks: Marks { noted: position.slot, durable: position.slot, ..Marks::default() },
            identity,
            metrics,
            healed,
            healing: 0,
            threads: vec![writing, viewing],
            stopping: false,
        };
        Ok((driver, handle))
    }

    /// Turns until it is stopped or fails, then waits for what is being written, so that whoever stops the process
    /// behind it closes the disk.
    ///
    /// # Errors
    /// See [`Fatal`].
    pub async fn run(mut self) -> Result<(), Fatal> {
        let outcome = self.turns().await;
        let threads = std::mem::take(&mut self.threads);
        // With its queues the threads have nothing more to wait for.
        drop(self);
        // A panic there has been told by its hook.
        let ending = tokio::task::spawn_blocking(|| threads.into_iter().for_each(|t| drop(t.join())));
        if tokio::time::timeout(CLOSING, ending).await.is_err() {
            tracing::warn!("the disk takes too long: it is left as it is, as after a crash");
        }
        outcome
    }

    async fn turns(&mut self) -> Result<(), Fatal> {
        self.settle()?;
        let mut timer = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
        // What the timer is set for; none: it went off, and asking it again would answer at once, for ever.
        let mut set_for: Option<Option<Instant>> = None;
        while !self.stopping {
            let deadline = self.node.next_deadline();
            if set_for != Some(deadline) {
                set_for = Some(deadline);
                let wait = deadline.map_or(Duration::from_secs(3_600), |d| d.since(clock::now()));
                timer.as_mut().reset(tokio::time::Instant::now() + wait);
            }
            self.metrics.turns.inc();
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command)?,
                    None => return Ok(()),
                },
                Some((message, _)) = self.messages.recv() => self.handle(Input::Message(message)),
                () = &mut timer => set_for = None,
            }
            for _ in 0..INPUTS {
                let Ok(command) = self.commands.try_recv() else { break };
                self.command(command)?;
            }
            for _ in 0..INPUTS {
                let Ok((message, _)) = self.messages.try_recv() else { break };
                self.handle(Input::Message(message));
            }
            if deadline.is_some_and(|deadline| deadline <= clock::now()) {
                self.handle(Input::Tick);
            }
            self.settle()?;
        }
        Ok(())
    }

    /// A session gets a number that nobody guesses, once the log's level has such sessions.
    fn drawn(&self, operation: Operation) -> Operation {
        let level = self.node.system().map_or(1, |system| system.settings.format_level);
        match (operation, clock::seed()) {
            (Operation::OpenSession, Ok(number)) if level >= 2 && number != 0 => {
                Operation::OpenSessionAs { session: SessionId(number) }
            }
            (operation, _) => operation,
        }
    }

    fn handle(&mut self, input: Input) {
        self.node.set_wall_clock(clock::wall());
        self.node.handle(clock::now(), input);
    }

    fn command(&mut self, command: Command) -> Result<(), Fatal> {
        match command {
            Command::Call { request, operation, reply, permit } => {
                let appends = if let Some(append) = operation.as_append() {
                    self.metrics.append_calls.inc();
                    self.metrics.append_entries.inc_by(append.entries.len() as u64);
                    true
                } else {
                    false
                };
                self.pending.insert(request, Pending::Call(reply, appends, permit));
                let operation = self.drawn(operation);
                self.handle(Input::Call { request, operation });
            }
            Command::Read(request, consistency, reply) => {
                self.pending.insert(request, Pending::Read(reply));
                self.handle(Input::Read { request, consistency });
            }
            Command::Admin(request, command, reply) => {
                self.pending.insert(request, Pending::Admin(reply));
                self.handle(Input::Admin { request, command });
            }
            Command::Cancel(request) => {
                if self.pending.contains_key(&request) {
                    self.handle(Input::Cancel(request));
                    self.cancelled.push(request);
                }
            }
            Command::Damaged(slot) => self.handle(Input::Damaged(slot)),
            Command::DamagedSnapshot(slot) => self.handle(Input::DamagedSnapshot(slot)),
            Command::Status(reply) => drop(reply.send(self.report())),
            Command::History(reply) => drop(reply.send(self.history())),
            Command::RepeatOf(append, reply) => {
                let system = self.node.system();
                // Whoever went away does not get it.
                let _ = reply.send(system.and_then(|system| system.repeat_of(&append)));
            }
            Command::Application(reply) => drop(reply.send(self.application())),
            Command::LinkUp(member, link) => {
                let links = self.links.entry(member).or_default();
                links.push(link);
                if links.len() == 1 {
                    self.handle(Input::PeerConnected(member));
                }
            }
            Command::LinkDown(member, id) => self.link_down(member, id),
            Command::Disk(Done::Persisted(completed, marked)) => {
                self.marks.durable = self.marks.durable.max(marked);
                if self.healing > 0 {
                    self.healing -= 1;
                    self.healed.send_modify(|times| *times += 1);
                }
                self.handle(Input::Persisted(completed));
            }
            Command::Disk(Done::ViewRows { view, rows, end }) => {
                self.handle(Input::ViewRows { view, rows, end });
            }
            Command::Disk(Done::Snapshot { slot, state, damaged }) => {
                self.handle(Input::SnapshotRead { slot, state });
                if damaged {
                    self.handle(Input::DamagedSnapshot(slot));
                }
            }
            Command::Disk(Done::Failed(error)) => return Err(error.into()),
            Command::Stop => self.stopping = true,
        }
        Ok(())
    }

    fn link_down(&mut self, member: MemberId, id: u64) {
        let Some(links) = self.links.get_mut(&member) else { return };
        links.retain(|link| link.id() != id);
        if links.is_empty() {
            self.links.remove(&member);
            self.handle(Input::PeerDisconnected(member));
        }
    }

    /// Takes every output of the core.
    fn settle(&mut self) -> Result<(), Fatal> {
        let now = clock::now();
        let mut batches = Vec::new();
        let mut applied = Vec::new();
        let mut replies: Vec<(RequestId, Reply)> = Vec::new();
        while let Some(output) = self.node.poll_output(now) {
            match output {
                Output::Send(message) => {
                    if let Some(link) = self.links.get(&message.to()).and_then(|links| links.last()) {
                        link.send(&message);
                    }
                }
                Output::Persist(batch) => batches.push(batch),
                Output::OpenView { view } => match self.reader.view() {
                    Ok(open) => self.view(ViewJob::Open(view, open)),
                    Err(error) => tracing::error!(%error, "the log cannot be read now"),
                },
                Output::ReadView { view, from, bytes } => self.view(ViewJob::Read { view, from, bytes }),
                Output::CloseView(view) => self.view(ViewJob::Close(view)),
                Output::ReadSnapshot { slot } => {
                    self.view(ViewJob::Snapshot { slot, reader: self.reader.clone() });
                }
                Output::Applied(slot) => {
                    self.marks.note(&slot);
                    applied.push(slot);
                }
                Output::CallReply { request, outcome } => replies.push((request, Reply::Call(outcome))),
                Output::Installed { slot, index } => {
                    // What was applied before lies below it; the log goes on behind it.
                    applied.clear();
                    self.marks.install(slot);
                    self.window.install(Position { slot, index });
                }
                Output::Trimmed { index, .. } => self.window.trim(index),
                Output::ReadReady { request, outcome } => replies.push((request, Reply::Read(outcome))),
                Output::AdminReply { request, outcome } => replies.push((request, Reply::Admin(outcome))),
                Output::LeaderChanged { leader } => match leader {
                    Some(ballot) => tracing::info!(%ballot, "follows a leader"),
                    None => tracing::info!("no leader is known"),
                },
                Output::Notice(notice) => {
                    self.metrics.count_notice(&notice);
                    if matches!(notice, Notice::Healed { .. }) {
                        self.healing = HEALING_WRITES;
                    }
                    notices::tell(notice)?;
                }
            }
        }
        self.persist(batches);
        // First what was applied, then the answers: whoever has an answer can read what it speaks of.
        self.window.extend(&mut applied);
        self.tell_checkpoints();
        let now = Facts::of(&self.node);
        self.facts.send_if_modified(|facts| {
            let is_new = *facts != now;
            *facts = now;
            is_new
        });
        for (request, reply) in replies {
            self.answer(request, reply);
        }
        for request in std::mem::take(&mut self.cancelled) {
            if let Some(pending) = self.pending.remove(&request) {
                pending.give_up();
            }
        }
        if self.window.is_over() {
            // Both the rows and the marks must be on disk before an entry can be read from there.
            self.window.evict(self.node.durable_through().min(self.marks.durable));
        }
        Ok(())
    }

    /// Marks of a turn ride with its first write: a `Write::System` of this turn can only speak of slots whose
    /// marks are here or were handed over before. In a turn without a write they wait for the next.
    fn persist(&mut self, batches: Vec<WriteBatch>) {
        let level = self.node.system().map_or(1, |system| system.settings.format_level);
        for batch in batches {
            for write in batch.writes() {
                let cluster = match write {
                    Write::Genesis(genesis) => Some((genesis.cluster, genesis.digest())),
                    Write::Joined { cluster, digest } => Some((*cluster, *digest)),
                    _ => None,
                };
                if let Some(cluster) = cluster {
                    self.identity.send_modify(|identity| identity.cluster = Some(cluster));
                }
            }
            let marks = std::mem::take(&mut self.marks.new);
            // The writer ends only after it has said why; that answer is in the queue.
            drop(self.writer.send(Job { batch, marks, noted: self.marks.noted, level }));
        }
    }

    fn view(&self, job: ViewJob) {
        // The viewer ends only after it has said why; that answer is in the queue.
        drop(self.viewer.send(job));
    }

    fn answer(&mut self, request: RequestId, reply: Reply) {
        // An answer to a request that was given up goes nowhere.
        let Some(pending) = self.pending.remove(&request) else { return };
        match (pending, reply) {
            (Pending::Call(waiting, appends, _permit), Reply::Call(outcome)) => {
                if appends {
                    self.metrics.count_append(&outcome);
                }
                waiting.send(outcome);
            }
            (Pending::Read(waiting), Reply::Read(outcome)) => drop(waiting.send(outcome)),
            (Pending::Admin(waiting), Reply::Admin(outcome)) => drop(waiting.send(outcome)),
            (Pending::Call(..) | Pending::Read(_) | Pending::Admin(_), _) => {
                unreachable!("the core answered {request:?} with an answer of another kind")
            }
        }
    }

    fn report(&self) -> Report {
        let status = self.node.status(clock::now());
        let configuration = self.node.system().map(|system| {
            let latest = system.configurations.latest();
            let governing = system.configurations.at(status.chosen_through.next());
            (latest.clone(), governing.version == latest.version)
        });
        Report { status, configuration }
    }

    fn application(&self) -> Application {
        let (first_index, last_index) = (self.window.first_index(), self.window.position().index);
        let Some(system) = self.node.system() else {
            return Application { first_index, last_index, ..Application::default() };
        };
        Application {
            cursors: system.cursors.clone(),
            cursor_expiry: system
                .cursor_expiry
                .iter()
                .map(|(name, (expiry, _))| (name.clone(), *expiry))
                .collect(),
            checkpoints: system.checkpoints.clone(),
            configuration: Some(system.configurations.latest().clone()),
            first_index,
            last_index,
        }
    }

    /// Tells whoever keeps checkpoints that the log names others now.
    fn tell_checkpoints(&self) {
        let named = self.node.system().map(|system| system.checkpoints.as_slice()).unwrap_or_default();
        self.checkpoints.send_if_modified(|told| {
            let differs = told.as_slice() != named;
            if differs {
                *told = named.to_vec();
            }
            differs
        });
    }

    fn history(&self) -> History {
        self.node.system().map_or_else(History::default, |system| History {
            configurations: system.configurations.all().to_vec(),
            leaders: system.leaders.clone(),
        })
    }
}

enum Reply {
    Call(CallOutcome),
    Read(Result<Index, Refusal>),
    Admin(Result<AdminOutcome, Refusal>),
}
