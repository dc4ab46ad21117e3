//! What a member says of itself.

use synod_proto::v1;

/// Where the log begins and ends, at the member that was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tail {
    /// The first index that can be read; one more than `last_index` where nothing can be.
    pub first_index: u64,
    /// The last index; 0 where the log is empty.
    pub last_index: u64,
}

/// Whether a member takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemberState {
    /// It belongs to no cluster yet.
    Uninitialized,
    /// It waits for its peers, or for the log.
    Joining,
    /// It has started again, and waits for a quorum.
    Recovering,
    /// It takes part.
    Active,
    /// Its disk shows less than its peers remember: it takes no part any more.
    Fenced,
    /// It was removed from its cluster.
    Removed,
    /// It stopped because going on might be wrong.
    Halted,
    /// One that this version does not know.
    Unknown,
}

/// What a member does in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// Nothing.
    None,
    /// It learns the log, and does not vote.
    Learner,
    /// It votes and follows.
    Follower,
    /// It tries to lead.
    Candidate,
    /// It leads.
    Leader,
}

/// What a member knows of itself and its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Its id.
    pub member: u64,
    /// Its name: the pod's.
    pub name: String,
    /// Whether it takes part.
    pub state: MemberState,
    /// What it does.
    pub role: Role,
    /// Who leads, where that is known.
    pub leader: Option<u64>,
    /// The newest leadership that it has applied; it only grows.
    pub fencing_epoch: u64,
    /// The last index that it has applied.
    pub last_index: u64,
    /// It is ready to serve.
    pub ready: bool,
    /// Why it is not ready; empty where it is.
    pub why_not: String,
    /// The program's version.
    pub version: String,
}

impl From<v1::StatusResponse> for Status {
    fn from(wire: v1::StatusResponse) -> Status {
        use v1::MemberState as Wire;
        let state = match wire.state() {
            Wire::Uninitialized => MemberState::Uninitialized,
            Wire::Joining => MemberState::Joining,
            Wire::Recovering => MemberState::Recovering,
            Wire::Active => MemberState::Active,
            Wire::Fenced => MemberState::Fenced,
            Wire::Removed => MemberState::Removed,
            Wire::Halted => MemberState::Halted,
            Wire::Unspecified => MemberState::Unknown,
        };
        let role = match wire.role() {
            v1::Role::Unspecified | v1::Role::None => Role::None,
            v1::Role::Learner => Role::Learner,
            v1::Role::Follower => Role::Follower,
            v1::Role::Candidate => Role::Candidate,
            v1::Role::Leader => Role::Leader,
        };
        Status {
            member: wire.member,
            name: wire.name,
            state,
            role,
            leader: wire.leader,
            fencing_epoch: wire.fencing_epoch,
            last_index: wire.last_index,
            ready: wire.ready,
            why_not: wire.reason,
            version: wire.version,
        }
    }
}
