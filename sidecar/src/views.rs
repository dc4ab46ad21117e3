//! What is shown of a member and its log, as data: the shape of `-o json` and of HTTP. Ids are text, as people copy them.

use serde::Serialize;
use synod_paxos::{ClusterId, MemberId};
use synod_proto::v1;

pub(crate) fn member(id: u64) -> String {
    MemberId(id).to_string()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn cluster(bytes: &[u8]) -> Option<String> {
    bytes.try_into().ok().map(|id| ClusterId(id).to_string())
}

fn ballot(ballot: Option<v1::Ballot>) -> Option<String> {
    ballot.filter(|b| b.round > 0).map(|b| format!("{}.{}", b.round, member(b.member)))
}

fn state(state: v1::MemberState) -> &'static str {
    match state {
        v1::MemberState::Unspecified => "unknown",
        v1::MemberState::Uninitialized => "uninitialized",
        v1::MemberState::Joining => "joining",
        v1::MemberState::Recovering => "recovering",
        v1::MemberState::Active => "active",
        v1::MemberState::Fenced => "fenced",
        v1::MemberState::Halted => "halted",
        v1::MemberState::Removed => "removed",
    }
}

pub(crate) fn role(role: v1::Role) -> &'static str {
    match role {
        v1::Role::Unspecified => "unknown",
        v1::Role::None => "none",
        v1::Role::Learner => "learner",
        v1::Role::Follower => "follower",
        v1::Role::Candidate => "candidate",
        v1::Role::Leader => "leader",
    }
}

/// One member of a configuration, with what the answering member knows of it.
#[derive(Debug, Serialize)]
pub(crate) struct Member {
    pub(crate) member: String,
    pub(crate) name: String,
    pub(crate) voter: bool,
    pub(crate) leader: bool,
    /// The answering member itself.
    pub(crate) this: bool,
    pub(crate) connected: bool,
    pub(crate) incarnation: u64,
    /// Known at the leader, and of the answering member itself.
    pub(crate) durable_through: Option<u64>,
    pub(crate) caught_up: Option<bool>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Configuration {
    pub(crate) version: u64,
    pub(crate) slot: u64,
    pub(crate) effective_from: u64,
    pub(crate) voters: Vec<String>,
    pub(crate) learners: Vec<String>,
    pub(crate) names: Vec<Named>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) operation_id: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Named {
    pub(crate) member: String,
    pub(crate) name: String,
}

impl From<&v1::Configuration> for Configuration {
    fn from(wire: &v1::Configuration) -> Configuration {
        let ids = |voter: bool| {
            wire.members.iter().filter(|m| m.voter == voter).map(|m| member(m.member)).collect()
        };
        let names =
            wire.members.iter().map(|m| Named { member: member(m.member), name: m.name.clone() }).collect();
        Configuration {
            version: wire.version,
            slot: wire.slot,
            effective_from: wire.effective_from,
            voters: ids(true),
            learners: ids(false),
            names,
            operation_id: (!wire.operation_id.is_empty()).then(|| hex(&wire.operation_id)),
        }
    }
}

/// The settings that all members go by.
#[derive(Debug, Serialize)]
pub(crate) struct Settings {
    pub(crate) version: u64,
    pub(crate) heartbeat_ms: u32,
    pub(crate) election_timeout_ms: u32,
    pub(crate) leases: bool,
    pub(crate) clock_drift_percent: u32,
    pub(crate) entry_bytes: u32,
    pub(crate) call_bytes: u32,
    pub(crate) session_rows: u32,
    pub(crate) session_idle_ms: u64,
    pub(crate) retain_entries: Option<u64>,
    pub(crate) retain_bytes: Option<u64>,
    pub(crate) retain_age_ms: Option<u64>,
    pub(crate) format_level: Option<u32>,
}

impl From<&v1::Settings> for Settings {
    fn from(wire: &v1::Settings) -> Settings {
        let election = wire.election.unwrap_or_default();
        let limits = wire.limits.unwrap_or_default();
        let reads = wire.reads.unwrap_or_default();
        let retention = wire.retention.unwrap_or_default();
        Settings {
            version: wire.version,
            heartbeat_ms: election.heartbeat_ms,
            election_timeout_ms: election.timeout_ms,
            leases: reads.leases,
            clock_drift_percent: reads.clock_drift_percent.unwrap_or_default(),
            entry_bytes: limits.entry_bytes,
            call_bytes: limits.call_bytes,
            session_rows: limits.session_rows,
            session_idle_ms: limits.session_idle_ms,
            retain_entries: retention.entries,
            retain_bytes: retention.bytes,
            retain_age_ms: retention.age_ms,
            format_level: wire.format_level,
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Removed {
    pub(crate) member: String,
    pub(crate) name: String,
    pub(crate) version: u64,
    pub(crate) retired: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct Status {
    pub(crate) member: String,
    pub(crate) name: String,
    pub(crate) incarnation: u64,
    pub(crate) state: &'static str,
    pub(crate) ready: bool,
    pub(crate) reason: String,
    pub(crate) cluster_id: Option<String>,
    pub(crate) genesis_digest: Option<String>,
    pub(crate) role: &'static str,
    pub(crate) leader: Option<String>,
    pub(crate) leader_name: Option<String>,
    pub(crate) leader_ballot: Option<String>,
    pub(crate) promised: Option<String>,
    pub(crate) fencing_epoch: u64,
    pub(crate) trim_through: u64,
    pub(crate) chosen_through: u64,
    pub(crate) durable_through: u64,
    pub(crate) applied_slot: u64,
    pub(crate) last_index: u64,
    pub(crate) configuration: Option<Configuration>,
    pub(crate) configuration_in_force: bool,
    pub(crate) members: Vec<Member>,
    pub(crate) removed: Vec<Removed>,
    pub(crate) settings: Option<Settings>,
    pub(crate) lease: bool,
    pub(crate) reads_under_lease: u64,
    pub(crate) disk: Option<Disk>,
    pub(crate) version: String,
}

/// The space on the member's disk.
#[derive(Debug, Serialize)]
pub(crate) struct Disk {
    pub(crate) free_bytes: u64,
    pub(crate) reserve_bytes: u64,
    /// `plenty`, `low`, `full` or `spent`.
    pub(crate) room: &'static str,
}

impl From<&v1::Disk> for Disk {
    fn from(wire: &v1::Disk) -> Disk {
        let room = match wire.room() {
            v1::Room::Unspecified => "unknown",
            v1::Room::Plenty => "plenty",
            v1::Room::Low => "low",
            v1::Room::Full => "full",
            v1::Room::Spent => "spent",
        };
        Disk { free_bytes: wire.free_bytes, reserve_bytes: wire.reserve_bytes, room }
    }
}

impl From<&v1::StatusResponse> for Status {
    fn from(wire: &v1::StatusResponse) -> Status {
        let members = members(wire);
        let named = |id: u64| {
            let found = wire.configuration.iter().flat_map(|c| &c.members).find(|m| m.member == id);
            found.map(|m| m.name.clone())
        };
        let removed = wire.removed.iter().map(|r| Removed {
            member: member(r.member),
            name: r.name.clone(),
            version: r.version,
            retired: r.retired,
        });
        Status {
            member: member(wire.member),
            name: wire.name.clone(),
            incarnation: wire.incarnation,
            state: state(wire.state()),
            ready: wire.ready,
            reason: wire.reason.clone(),
            cluster_id: cluster(&wire.cluster_id),
            genesis_digest: (!wire.genesis_digest.is_empty()).then(|| hex(&wire.genesis_digest)),
            role: role(wire.role()),
            leader: wire.leader.map(member),
            leader_name: wire.leader.and_then(named),
            leader_ballot: ballot(wire.leader_ballot),
            promised: ballot(wire.promised),
            fencing_epoch: wire.fencing_epoch,
            trim_through: wire.trim_through,
            chosen_through: wire.chosen_through,
            durable_through: wire.durable_through,
            applied_slot: wire.applied_slot,
            last_index: wire.last_index,
            configuration: wire.configuration.as_ref().map(Configuration::from),
            configuration_in_force: wire.configuration_in_force,
            members,
            removed: removed.collect(),
            settings: wire.settings.as_ref().map(Settings::from),
            lease: wire.lease,
            reads_under_lease: wire.reads_under_lease,
            disk: wire.disk.as_ref().map(Disk::from),
            version: wire.version.clone(),
        }
    }
}

/// A member's status, as every command prints it.
pub(crate) fn status(wire: &v1::StatusResponse) -> serde_json::Result<serde_json::Value> {
    serde_json::to_value(Status::from(wire))
}

pub(crate) fn members(wire: &v1::StatusResponse) -> Vec<Member> {
    let leads = wire.leader == Some(wire.member);
    let of = |configured: &v1::ConfiguredMember| {
        let this = configured.member == wire.member;
        let peer = wire.peers.iter().find(|peer| peer.member == configured.member);
        Member {
            member: member(configured.member),
            name: configured.name.clone(),
            voter: configured.voter,
            leader: wire.leader == Some(configured.member),
            this,
            connected: this || peer.is_some_and(|peer| peer.connected),
            incarnation: if this { wire.incarnation } else { peer.map_or(0, |peer| peer.incarnation) },
            durable_through: match peer {
                _ if this => Some(wire.durable_through),
                Some(peer) if leads => Some(peer.durable_through),
                _ => None,
            },
            caught_up: match peer {
                _ if this => Some(wire.ready),
                Some(peer) if leads => Some(peer.caught_up),
                _ => None,
            },
        }
    };
    wire.configuration.iter().flat_map(|c| &c.members).map(of).collect()
}

#[derive(Debug, Serialize)]
pub(crate) struct Leadership {
    pub(crate) fencing_epoch: u64,
    pub(crate) ballot: Option<String>,
    pub(crate) member: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct History {
    pub(crate) configurations: Vec<Configuration>,
    pub(crate) leaders: Vec<Leadership>,
}

impl From<&v1::HistoryResponse> for History {
    fn from(wire: &v1::HistoryResponse) -> History {
        let leaders = wire.leaders.iter().map(|l| Leadership {
            fencing_epoch: l.fencing_epoch,
            ballot: ballot(l.ballot),
            member: member(l.ballot.map_or(0, |b| b.member)),
        });
        History {
            configurations: wire.configurations.iter().map(Configuration::from).collect(),
            leaders: leaders.collect(),
        }
    }
}
