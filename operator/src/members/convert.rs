//! From the wire's messages to observed types. Unknown enum values are read as "not known", never as an
//! error: a newer sidecar must not blind the operator.

use synod_proto::v1 as wire;
use uuid::Uuid;

use crate::names::{ClusterId, MemberId};
use crate::observed::{Ballot, Config, ConfigMember, MemberState, Peer, Removed, Report, Room, Trust};
use crate::settings::{InForce, Retention, Settings};

use super::MemberError;

/// A cluster id as the wire has it: 16 bytes.
pub(super) fn cluster_bytes(cluster: ClusterId) -> Vec<u8> {
    cluster.0.as_bytes().to_vec()
}

/// A member's answer.
pub(super) fn report(answer: wire::StatusResponse) -> Result<Report, MemberError> {
    let cluster = match answer.cluster_id.len() {
        0 => None,
        16 => {
            let mut bytes = [0; 16];
            bytes.copy_from_slice(&answer.cluster_id);
            Some(ClusterId(Uuid::from_bytes(bytes)))
        }
        n => return Err(MemberError::Malformed(format!("a cluster id of {n} bytes"))),
    };
    let state = match answer.state() {
        wire::MemberState::Uninitialized => MemberState::Uninitialized,
        wire::MemberState::Joining => MemberState::Joining,
        wire::MemberState::Recovering | wire::MemberState::Unspecified => MemberState::Recovering,
        wire::MemberState::Active => MemberState::Active,
        wire::MemberState::Fenced => MemberState::Fenced,
        wire::MemberState::Halted => MemberState::Halted,
        wire::MemberState::Removed => MemberState::Removed,
    };
    let ballot = |b: &wire::Ballot| Ballot { round: b.round, member: b.member };
    Ok(Report {
        member: MemberId(answer.member),
        incarnation: answer.incarnation,
        state,
        cluster,
        genesis_digest: answer.genesis_digest.to_vec(),
        leads: answer.role() == wire::Role::Leader,
        leader: answer.leader.map(MemberId),
        ballot: answer.leader_ballot.as_ref().map(ballot).unwrap_or_default(),
        chosen_through: answer.chosen_through,
        last_index: answer.last_index,
        config: answer.configuration.as_ref().map(config),
        in_force: answer.configuration_in_force,
        peers: answer.peers.iter().map(peer).collect(),
        removed: answer.removed.iter().map(removed).collect(),
        ready: answer.ready,
        reason: answer.reason,
        version: answer.version,
        room: answer.disk.as_ref().map(room).unwrap_or_default(),
        free_bytes: answer.disk.as_ref().map_or(0, |d| d.free_bytes),
        trust: Trust::Newest,
        settings: answer.settings.as_ref().map(in_force),
    })
}

fn room(disk: &wire::Disk) -> Room {
    match disk.room() {
        wire::Room::Unspecified | wire::Room::Plenty => Room::Plenty,
        wire::Room::Low => Room::Low,
        wire::Room::Full | wire::Room::Spent => Room::Full,
    }
}

fn in_force(s: &wire::Settings) -> InForce {
    let election = s.election.unwrap_or_default();
    let reads = s.reads.unwrap_or_default();
    let retention = s.retention.unwrap_or_default();
    let values = Settings {
        heartbeat_ms: election.heartbeat_ms,
        election_timeout_ms: election.timeout_ms,
        leases: reads.leases,
        clock_drift_percent: reads.clock_drift_percent.unwrap_or_default(),
        retention: Retention { entries: retention.entries, bytes: retention.bytes, age_ms: retention.age_ms },
    };
    InForce { version: s.version, values }
}

/// Settings as they are asked for. Limits are left out: they stay as they are.
pub(super) fn settings(s: &Settings) -> wire::Settings {
    let Settings { heartbeat_ms, election_timeout_ms, leases, clock_drift_percent, retention } = *s;
    let Retention { entries, bytes, age_ms } = retention;
    wire::Settings {
        version: 0,
        election: Some(wire::Election { heartbeat_ms, timeout_ms: election_timeout_ms }),
        reads: Some(wire::Reads { leases, clock_drift_percent: Some(clock_drift_percent) }),
        limits: None,
        retention: Some(wire::Retention { entries, bytes, age_ms }),
        // Raised by a person for now.
        format_level: None,
    }
}

fn config(c: &wire::Configuration) -> Config {
    let member = |m: &wire::ConfiguredMember| ConfigMember {
        member: MemberId(m.member),
        name: m.name.clone(),
        voter: m.voter,
    };
    Config { version: c.version, members: c.members.iter().map(member).collect() }
}

fn peer(p: &wire::PeerStatus) -> Peer {
    Peer { member: MemberId(p.member), connected: p.connected, caught_up: p.caught_up }
}

fn removed(r: &wire::RemovedMember) -> Removed {
    Removed { member: MemberId(r.member), version: r.version, retired: r.retired }
}
