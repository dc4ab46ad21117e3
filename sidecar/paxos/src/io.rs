//! What goes into the core and what comes out of it.

use crate::configuration::{Change, ChangeRefused, Configuration, OperationId};
use crate::genesis::{Genesis, GenesisError};
use crate::message::{Incoming, Outgoing, ViewId};
use crate::row::Row;
use crate::sessions::IdentityRefused;
use crate::settings::SettingsError;
use crate::storage::{Completed, WriteBatch};
use crate::system::{CallRefused, Reply};
use crate::types::{Ballot, ClusterId, Digest, Index, MemberId, RequestId, Slot, Time};
use crate::value::{CallError, Entry, Operation};
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use core::time::Duration;

/// Everything the core reacts to.
#[derive(Debug)]
pub enum Input {
    /// The deadline of [`crate::Node::next_deadline`] has passed.
    Tick,
    /// A message arrived.
    Message(Incoming),
    /// A connection to a peer stands, and its greeting named this member.
    PeerConnected(MemberId),
    /// It broke.
    PeerDisconnected(MemberId),
    /// Writes became durable.
    Persisted(Completed),
    /// The answer to [`Output::ReadView`].
    ViewRows {
        /// Which view.
        view: ViewId,
        /// The next rows, ascending.
        rows: Vec<Row>,
        /// The view holds no row behind these.
        end: bool,
    },
    /// The answer to [`Output::ReadSnapshot`].
    SnapshotRead {
        /// Of which slot.
        slot: Slot,
        /// Its bytes; none: they cannot be read now. Damage is told apart, by [`Input::DamagedSnapshot`].
        state: Option<Bytes>,
    },
    /// The row of a slot was found damaged on the disk, or is missing there though it is known to be chosen.
    Damaged(Slot),
    /// The snapshot at a slot was found damaged on the disk, or is missing there though it is listed.
    DamagedSnapshot(Slot),
    /// A client calls: answered by [`Output::CallReply`].
    Call {
        /// Chosen by the driver, unique while this incarnation lives.
        request: RequestId,
        /// What it asks for.
        operation: Operation,
    },
    /// The client of a call, a read or an admin call gave up. A call that was not proposed yet never will be.
    Cancel(RequestId),
    /// A client wants to read: answered by [`Output::ReadReady`].
    Read {
        /// Chosen by the driver, unique while this incarnation lives.
        request: RequestId,
        /// How fresh it must be.
        consistency: Consistency,
    },
    /// An administrator's call: answered by [`Output::AdminReply`].
    Admin {
        /// Chosen by the driver, unique while this incarnation lives.
        request: RequestId,
        /// The call.
        command: AdminCommand,
    },
}

/// How fresh a read must be. A *sequential* read needs no word of the core: it reads what is applied here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// It sees every append acknowledged before it began.
    Linearizable,
    /// It sees every append acknowledged this long before it began (docs: decisions/0005).
    StaleBounded(Duration),
}

/// What an administrator may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminCommand {
    /// Form a cluster.
    Initialize(Genesis),
    /// Wait to be added to a cluster.
    Join {
        /// Which.
        cluster: ClusterId,
        /// Its genesis.
        digest: Digest,
    },
    /// Change the membership.
    Change {
        /// Guards against the wrong cluster.
        cluster: ClusterId,
        /// The version that the change was planned from.
        expected_version: u64,
        /// A repeat is answered with what happened.
        operation: OperationId,
        /// The change.
        change: Change,
    },
    /// Hand leadership over.
    TransferLeader {
        /// Guards against the wrong cluster.
        cluster: ClusterId,
        /// To whom; none: the most caught-up voter.
        to: Option<MemberId>,
    },
    /// The pod is going: hand leadership over if this member leads, and do not campaign for two minutes, or until no
    /// leader was heard for four election timeouts.
    PrepareStop,
}

/// The answer to an [`AdminCommand`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminOutcome {
    /// Initialize: this genesis is on disk.
    Initialized(Digest),
    /// Join: noted on disk.
    Joined,
    /// A membership change was chosen and applied here.
    Changed {
        /// What it made.
        configuration: Configuration,
        /// It governs the next slot.
        in_force: bool,
        /// Remove only: the removed member's vote is not needed any more.
        retired: bool,
    },
    /// Leadership lies with another member now.
    Transferred(MemberId),
    /// PrepareStop: this member does not lead and leaves campaigning to others.
    StopPrepared,
}

/// Why a request was not carried out. Where it says "not appended", that is certain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not appended: no leader is known or reachable now.
    #[error("no leader right now: try again shortly")]
    NoLeader,
    /// A read that was cancelled while a leader is known.
    #[error(
        "the deadline passed before the leader had confirmed how far the log reaches: give the read more time"
    )]
    NotConfirmed,
    /// It was proposed, and whether it will be chosen cannot be known here any more.
    #[error("whether it was carried out is not known: it may be, now or a little later")]
    OutcomeUnknown,
    /// Not appended: the last index is another.
    #[error("the last index is {tail}, not the expected one: read on and decide again")]
    UnexpectedIndex {
        /// The last index.
        tail: Index,
    },
    /// Not appended: the newest leadership is not the one that the call goes by.
    #[error("another leadership is the newest, with the fencing epoch {epoch}: whoever leads now may append")]
    Fenced {
        /// The newest leadership's.
        epoch: Slot,
    },
    /// Not appended: too much is waiting here.
    #[error("too many appends are waiting: slow down and try again")]
    Backpressure,
    /// Not appended: the call is beyond its bounds.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Not appended: its session or key does not let it in.
    #[error(transparent)]
    Identity(#[from] IdentityRefused),
    /// Settings that have no effect.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A cursor that cannot stand there.
    #[error("{0}")]
    Cursor(CallRefused),
    /// This member belongs to no cluster, or takes no part in it.
    #[error("{0}")]
    NotActive(String),
    /// A membership change that has no effect.
    #[error(transparent)]
    Change(#[from] ChangeRefused),
    /// A learner that is not ready to vote.
    #[error("{member} has not caught up yet ({behind} slots behind): ask again")]
    NotCaughtUp {
        /// Which.
        member: MemberId,
        /// How far its durable prefix lies behind.
        behind: u64,
    },
    /// The call belongs to a leader, and another member leads.
    #[error("{leader} leads: ask it")]
    NotLeader {
        /// Who leads.
        leader: MemberId,
    },
    /// The call names another cluster.
    #[error("this member belongs to cluster {actual}")]
    OtherCluster {
        /// This member's.
        actual: ClusterId,
    },
    /// Initialize with another genesis than the one on disk.
    #[error("this member holds another genesis already: a disk is initialised once")]
    OtherGenesis,
    /// Initialize without this member in the list.
    #[error("the genesis does not list this member, {0}")]
    NotListed(MemberId),
    /// A genesis beyond its bounds.
    #[error(transparent)]
    Genesis(#[from] GenesisError),
    /// Not appended: the log is not at the level that this needs.
    #[error(
        "this needs format level {needed}, and the log is at {actual}: when every member runs a version that reads it, \
         raise the level with `synod-sidecar admin settings --format-level {needed}`"
    )]
    FormatLevel {
        /// The level that it needs.
        needed: u32,
        /// The level in force.
        actual: u32,
    },
    /// The level does not rise: a member could not read the log any more.
    #[error(
        "{member} has not said lately that it reads format level {level}: run this version on every member, learners \
         included, wait until all are connected, and ask again"
    )]
    NotEveryMember {
        /// One that has not.
        member: MemberId,
        /// The level that was asked for, or is in force.
        level: u32,
    },
    /// Not appended: no member would read it back as it is.
    #[error(
        "no member could read this back from the log, so nothing was appended: this is a fault of Synod's"
    )]
    Unreadable,
    /// Nobody took leadership over in time.
    #[error("nobody took leadership over in time: this member may lead on")]
    NotTransferred,
}

impl From<CallRefused> for Refusal {
    fn from(refused: CallRefused) -> Refusal {
        match refused {
            CallRefused::UnexpectedIndex { tail } => Refusal::UnexpectedIndex { tail },
            CallRefused::Fenced { epoch } => Refusal::Fenced { epoch },
            CallRefused::Identity(why) => Refusal::Identity(why),
            CallRefused::Call(why) => Refusal::Call(why),
            CallRefused::Settings(why) => Refusal::Settings(why),
            CallRefused::Compacted { .. }
            | CallRefused::BeyondTail { .. }
            | CallRefused::TooManyCursors
            | CallRefused::NoSuchCursor { .. } => Refusal::Cursor(refused),
        }
    }
}

/// Everything the core asks for.
#[derive(Debug)]
pub enum Output {
    /// Send it; it may be lost.
    Send(Outgoing),
    /// Make it durable, in order, then answer [`Input::Persisted`] (see [`crate::storage::commit`]).
    Persist(WriteBatch),
    /// Open a view of the rows as they are durable now.
    OpenView {
        /// Its name from now on.
        view: ViewId,
    },
    /// Read rows of a view, ascending from `from`: about `bytes` of values, one row at least if there is one.
    /// Answered by [`Input::ViewRows`].
    ReadView {
        /// Which.
        view: ViewId,
        /// First slot wanted.
        from: Slot,
        /// Stop before this many bytes of values are passed.
        bytes: usize,
    },
    /// The view is not needed any more.
    CloseView(ViewId),
    /// Read a snapshot that is on the disk. Answered by [`Input::SnapshotRead`].
    ReadSnapshot {
        /// Of which slot.
        slot: Slot,
    },
    /// A slot was applied; slots come in order, without a gap.
    Applied(Applied),
    /// The system state was replaced by a snapshot: the entries up to its index are not in this member's log.
    Installed {
        /// The snapshot's slot.
        slot: Slot,
        /// The last index in it.
        index: Index,
    },
    /// The log begins behind this mark now; rows up to it may be deleted here.
    Trimmed {
        /// The mark's slot.
        slot: Slot,
        /// The last index that is gone.
        index: Index,
    },
    /// The answer to [`Input::Call`].
    CallReply {
        /// Which.
        request: RequestId,
        /// What came of it.
        outcome: Result<Reply, Refusal>,
    },
    /// The answer to [`Input::Read`]: what is applied now covers every append acknowledged before the read.
    ReadReady {
        /// Which.
        request: RequestId,
        /// The last index applied here now.
        outcome: Result<Index, Refusal>,
    },
    /// The answer to [`Input::Admin`].
    AdminReply {
        /// Which.
        request: RequestId,
        /// What came of it.
        outcome: Result<AdminOutcome, Refusal>,
    },
    /// Who leads changed, as far as this member knows.
    LeaderChanged {
        /// The leader and its ballot; none: unknown.
        leader: Option<Ballot>,
    },
    /// Something a person should read in the log.
    Notice(Notice),
}

/// A slot as it was applied. The entries it added are those of [`crate::value::entries_added`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Which.
    pub slot: Slot,
    /// The index of the first of `entries`, if there are any.
    pub first: Index,
    /// When they were proposed, where the log says so.
    pub time: Option<Time>,
    /// The application entries it added to the log.
    pub entries: Vec<Entry>,
    /// Calls of its batch, by place, whose entries were not added: refused, or repeats.
    pub skipped: Vec<u32>,
}

/// Events worth a line in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// This member campaigns.
    Campaigning(Ballot),
    /// This member leads; LeaderStart is applied.
    Leading {
        /// Under which ballot.
        ballot: Ballot,
        /// The fencing epoch.
        epoch: Slot,
    },
    /// This member led and does not any more.
    SteppedDown {
        /// The ballot it gave up.
        ballot: Ballot,
        /// Why.
        why: &'static str,
    },
    /// A configuration was applied.
    Configured(Configuration),
    /// This member was removed and its vote is not needed any more.
    Removed,
    /// This disk shows less than its peers remember.
    Fenced(String),
    /// A row or a message whose checksum does not fit.
    Damaged {
        /// Where.
        slot: Slot,
        /// From whom, if not from this disk.
        from: Option<MemberId>,
    },
    /// The members' chains differ: somewhere the same log was applied to another result.
    Diverged {
        /// At which slot.
        slot: Slot,
    },
    /// A snapshot was taken in place of the log up to there.
    Installed {
        /// Its slot.
        slot: Slot,
        /// From whom.
        from: MemberId,
    },
    /// A damaged row of this disk is written again.
    Healed {
        /// Where.
        slot: Slot,
    },
    /// A snapshot of this disk is damaged.
    DamagedSnapshot {
        /// Its slot.
        slot: Slot,
        /// It is written again; else it was not read when this member started, and stays as it is until a trim.
        healed: bool,
    },
    /// A peer's proposal gets no vote here: this member could not apply it.
    Unreadable {
        /// Where.
        slot: Slot,
        /// The leader.
        from: MemberId,
        /// It came before: it is counted, and told once.
        again: bool,
    },
    /// A call was refused right before it was proposed: its bytes would not be read back as it is.
    NotProposed {
        /// Where it would have been.
        slot: Slot,
    },
    /// What others accepted in a slot cannot be read here, and may be chosen: this leader proposes nothing from there
    /// on until enough members tell.
    Withheld {
        /// Where.
        slot: Slot,
    },
    /// A value that cannot be decoded was chosen: this member halts rather than guess.
    Undecodable {
        /// Where.
        slot: Slot,
    },
}
