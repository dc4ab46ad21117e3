//! Everything that can happen to the simulated members, as typed events.
//!
//! A run is a list of steps; whoever made it, chance or a file, the world does the same with it. A step that is not
//! possible when its turn comes (a crash of a process that does not run, a message that is not on its way) does
//! nothing: so any part of a list is a list, which is what shrinking needs.

use crate::coverage::MessageKind;
use crate::random::nanos;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use synod_paxos::{ElectionSettings, Settings};

/// One step: what, and when in simulated nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Simulated nanoseconds since the run began.
    pub at: u64,
    /// What happens.
    #[serde(flatten)]
    pub action: Action,
}

/// Something that happens. Members are named by the number of their id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Action {
    /// An empty volume appears.
    Add {
        /// Whose.
        member: u64,
    },
    /// A process starts on a volume.
    Start {
        /// Whose.
        member: u64,
        /// Feeds the core's random timeouts.
        seed: u64,
        /// What its clock shows at simulated time 0, in nanoseconds.
        offset: u64,
        /// How much faster than simulated time its clock runs, in parts per million.
        drift: i64,
    },
    /// A process dies.
    Crash {
        /// Whose.
        member: u64,
        /// How many of the batches in the transaction under way are on the disk afterwards.
        kept: usize,
        /// The last row of these is not whole.
        torn: bool,
    },
    /// A connection stands, as one end sees it.
    Connect {
        /// Who sees it.
        member: u64,
        /// With whom.
        peer: u64,
    },
    /// A connection broke, as one end sees it.
    Disconnect {
        /// Who sees it.
        member: u64,
        /// With whom.
        peer: u64,
    },
    /// A message arrives.
    Deliver {
        /// From whom.
        from: u64,
        /// To whom.
        to: u64,
        /// Of which kind.
        kind: MessageKind,
        /// Which of this kind on this link, counted from the oldest that is still on its way.
        nth: usize,
        /// A copy stays on its way: it will arrive again, or be lost.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        again: bool,
    },
    /// A message is lost.
    Drop {
        /// From whom.
        from: u64,
        /// To whom.
        to: u64,
        /// Of which kind.
        kind: MessageKind,
        /// As in Deliver.
        nth: usize,
    },
    /// A member's timer fires.
    Tick {
        /// Whose.
        member: u64,
    },
    /// The transaction under way is durable, and the member is told.
    Synced {
        /// Whose.
        member: u64,
    },
    /// The disk answers the oldest read of a view.
    Read {
        /// Whose.
        member: u64,
        /// At most so many rows.
        rows: usize,
    },
    /// A client calls.
    Call {
        /// Which.
        client: usize,
        /// At which member.
        member: u64,
        /// The call's name there.
        request: u64,
        /// What it asks for.
        operation: Operation,
    },
    /// A client gives up.
    Cancel {
        /// Which.
        client: usize,
        /// The call's name.
        request: u64,
    },
    /// An operator calls.
    Admin {
        /// At which member.
        member: u64,
        /// The call's name there.
        request: u64,
        /// What it asks for.
        command: Command,
    },
    /// A volume goes for good, with the process on it.
    Destroy {
        /// Whose.
        member: u64,
    },
    /// A stored row rots.
    Flip {
        /// On whose disk.
        member: u64,
        /// Which.
        slot: u64,
    },
    /// The bit of a stored row that says whether it is chosen rots.
    FlipFlag {
        /// On whose disk.
        member: u64,
        /// Which.
        slot: u64,
    },
    /// A stored row that the disk knows to be chosen is gone.
    Lose {
        /// On whose disk.
        member: u64,
        /// Which.
        slot: u64,
    },
    /// One bit of a member's files changes.
    FlipByte {
        /// Whose.
        member: u64,
        /// What the file and the place in it follow from.
        chance: u64,
    },
    /// A scrubber finds that a row is damaged or gone.
    Scrub {
        /// On whose disk.
        member: u64,
        /// Which.
        slot: u64,
    },
    /// A row lies in another's place as well.
    Misdirect {
        /// On whose disk.
        member: u64,
        /// The row.
        slot: u64,
        /// Where else it lies.
        over: u64,
    },
    /// From now on syncs are acknowledged and not kept.
    LoseSyncs {
        /// On whose disk.
        member: u64,
    },
    /// Syncs are kept again, those before included.
    KeepSyncs {
        /// On whose disk.
        member: u64,
    },
    /// A copy of the volume is put aside.
    Copy {
        /// Of whose.
        member: u64,
    },
    /// The volume of a member that does not run is what the copy was.
    Restore {
        /// Whose.
        member: u64,
    },
    /// The state of a member that does not run becomes another, and no checksum shows it.
    Diverge {
        /// Whose.
        member: u64,
    },
    /// A clock jumps ahead.
    Jump {
        /// Whose.
        member: u64,
        /// By so many nanoseconds.
        by: u64,
    },
    /// Says what is behind the next steps; nothing happens to the members by it.
    Note {
        /// Whom it is about; 0: all.
        member: u64,
        /// What.
        text: String,
    },
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Operation {
    /// Append so many entries.
    Append {
        /// Names the call among its client's.
        number: u64,
        /// Entries.
        entries: usize,
        /// On the condition that the last index is this.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expected: Option<u64>,
        /// How a repeat is told from a new call.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        identity: Option<Identity>,
    },
    /// Read linearizably.
    Read,
    /// Read what was acknowledged so many nanoseconds ago.
    ReadStale {
        /// Nanoseconds.
        bound: u64,
    },
    /// Open a session.
    OpenSession,
    /// Move the client's cursor to what it has seen.
    SetCursor {
        /// Where it is to stand.
        index: u64,
    },
    /// Say that the application's state at an index is saved.
    SaveCheckpoint {
        /// Which.
        index: u64,
    },
    /// Change the settings.
    ChangeSettings {
        /// The version that the change was planned from.
        version: u64,
        /// What they are to be.
        wanted: Wanted,
    },
}

/// Settings as a client wants them; what is not named stays as it is by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Nanoseconds.
    pub heartbeat: u64,
    /// Nanoseconds.
    pub timeout: u64,
    /// Leaders read locally under a lease.
    pub leases: bool,
    /// Entries that the log keeps; none: all.
    pub retention: Option<u64>,
    /// Slots between two comparisons of chains.
    pub chain_interval: u32,
    /// Rows of the session table.
    pub session_rows: u32,
    /// Nanoseconds of log time after which an idle session is gone.
    pub session_idle: u64,
    /// The format that entries may use.
    #[serde(default = "newest_level")]
    pub format_level: u32,
}

fn newest_level() -> u32 {
    Settings::FORMAT_LEVEL
}

impl Wanted {
    /// The settings that a member has.
    pub fn of(settings: &Settings) -> Wanted {
        Wanted {
            heartbeat: nanos(settings.election.heartbeat),
            timeout: nanos(settings.election.timeout),
            leases: settings.leases,
            retention: settings.retention.entries,
            chain_interval: settings.chain_interval,
            session_rows: settings.limits.session_rows,
            session_idle: nanos(settings.limits.session_idle),
            format_level: settings.format_level,
        }
    }

    /// As the core takes them.
    pub fn settings(&self) -> Settings {
        let mut settings = Settings {
            leases: self.leases,
            chain_interval: self.chain_interval,
            format_level: self.format_level,
            election: ElectionSettings {
                heartbeat: Duration::from_nanos(self.heartbeat),
                timeout: Duration::from_nanos(self.timeout),
            },
            ..Settings::default()
        };
        settings.retention.entries = self.retention;
        settings.limits.session_rows = self.session_rows;
        settings.limits.session_idle = Duration::from_nanos(self.session_idle);
        settings
    }
}

/// The identity of an append that its client sends again until it knows the outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// By its number in the client's session.
    Session {
        /// Which session.
        session: u64,
        /// Which of its calls.
        sequence: u64,
    },
    /// By a key of its own.
    Key {
        /// An index that the client had seen when it chose the key.
        minted: u64,
    },
}

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// Form the cluster of the run.
    Initialize,
    /// Wait to be added to it.
    Join,
    /// Change the membership.
    Change {
        /// The version it was planned from.
        version: u64,
        /// A repeat carries the same.
        operation: u64,
        /// The change.
        change: Change,
        /// Whom it is about.
        subject: u64,
        /// Bytes of a new member's name; none: a usual name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<u32>,
    },
    /// Hand leadership over.
    Transfer {
        /// To whom; none: whoever is best.
        to: Option<u64>,
    },
    /// Prepare to stop.
    PrepareStop,
}

/// How the membership changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// A learner is added.
    AddLearner,
    /// A learner becomes a voter.
    Promote,
    /// A member is removed.
    Remove,
}
