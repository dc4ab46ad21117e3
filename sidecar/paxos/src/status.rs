//! What the core tells about itself, for status calls and metrics.

use crate::settings::Settings;
use crate::types::{Ballot, ClusterId, Digest, Incarnation, Index, MemberId, Slot};
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

/// Where a member stands in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// An empty disk: no cluster, no vote.
    Uninitialized,
    /// Waits for its peers' agreement on the genesis, or for the log.
    Joining,
    /// Waits for a quorum to answer its handshake.
    Recovering,
    /// Takes part.
    Active,
    /// Its disk shows less than its peers remember, or its log differs from a quorum's: it never takes part
    /// again and is to be replaced.
    Fenced(String),
    /// It stopped because going on might be wrong, and a person must look: replacing it would help nobody.
    Halted(String),
    /// A chosen entry removed it.
    Removed,
}

/// What a member does in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// In no configuration.
    None,
    /// Follows without a vote.
    Learner,
    /// Votes.
    Follower,
    /// Canvasses, prepares or recovers.
    Candidate,
    /// Leads, its LeaderStart applied.
    Leader,
}

/// What is known of another member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Whose.
    pub member: MemberId,
    /// The highest incarnation seen.
    pub incarnation: Incarnation,
    /// A connection stands.
    pub connected: bool,
    /// At the leader: the prefix the peer holds durably.
    pub durable_through: Slot,
    /// At the leader: how long it has been silent.
    pub silent: Option<Duration>,
    /// At the leader: within a window of the leader's own prefix.
    pub caught_up: bool,
}

/// A removed member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovedMember {
    /// Which.
    pub member: MemberId,
    /// Its name.
    pub name: String,
    /// The configuration without it.
    pub version: u64,
    /// Known at the leader: its vote is not needed any more.
    pub retired: bool,
}

/// A snapshot of the core's view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This member.
    pub member: MemberId,
    /// Its boot.
    pub incarnation: Incarnation,
    /// Where it stands.
    pub state: MemberState,
    /// Its cluster, once known.
    pub cluster: Option<ClusterId>,
    /// Its genesis, once known.
    pub genesis: Option<Digest>,
    /// What it does.
    pub role: Role,
    /// What it has promised.
    pub promised: Ballot,
    /// The leader it follows, or its own ballot where it leads.
    pub leader: Option<Ballot>,
    /// The slot of the newest applied LeaderStart.
    pub fencing_epoch: Slot,
    /// How often a quorum was lost for good: fencing epochs are ordered by (recoveries, slot).
    pub recoveries: u32,
    /// Every slot up to it may be deleted.
    pub trim_through: Slot,
    /// Every slot up to it is chosen and known here. Invariant: `trim <= applied <= chosen_through`.
    pub chosen_through: Slot,
    /// The prefix on disk, and known chosen there.
    pub durable_through: Slot,
    /// Every slot up to it is applied.
    pub applied: Slot,
    /// The last application index.
    pub last_index: Index,
    /// The first application index that is in the log: 1, or what follows the trim.
    pub first_index: Index,
    /// The settings in force, once a genesis is known.
    pub settings: Option<Settings>,
    /// At the leader: reads need no round of heartbeats now.
    pub lease: bool,
    /// Read points that this leader answered under a lease since it started.
    pub reads_under_lease: u64,
    /// The newest mark whose snapshot is on disk.
    pub snapshot_through: Slot,
    /// Sessions, their remembered calls and keys.
    pub session_rows: usize,
    /// The chain at the applied slot.
    pub chain: u128,
    /// Rows of this disk that are damaged and wait to be healed, ascending.
    pub damaged: Vec<Slot>,
    /// Caught up with a leader once since this start.
    pub caught_up_once: bool,
    /// Other members.
    pub peers: Vec<PeerStatus>,
    /// Removed members whose history is kept.
    pub removed: Vec<RemovedMember>,
    /// Appends taken and not answered.
    pub waiting_appends: usize,
    /// Values that wait for this disk, in bytes: at most [`crate::limits::ACCEPT_BACKLOG_BYTES`] and what a part that is
    /// learnt adds.
    pub unwritten_bytes: usize,
}
