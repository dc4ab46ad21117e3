//! The core's view in the wire's words.

use super::failure;
use crate::driver::{History, Report};
use crate::space::{Room, Space};
use crate::transport::Identity;
use crate::transport::wire::ballot_out;
use bytes::Bytes;
use prost::Message as _;
use std::collections::BTreeMap;
use std::time::Duration;
use synod_paxos::configuration::Configuration;
use synod_paxos::settings::{ElectionSettings, Limits, Retention, Settings};
use synod_paxos::status::{MemberState, Role};
use synod_paxos::system::Reply;
use synod_paxos::value::{self, Append, Call, Entry, HeaderError, Logged, Operation, Origin};
use synod_paxos::{Genesis, Incarnation, Index, MemberId, RequestId, SessionId, Slot, Status, limits};
use synod_proto::admin::v1 as admin;
use synod_proto::v1::{self, Failure, Reason, append_request};

/// This program's version.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn configuration(configuration: &Configuration) -> v1::Configuration {
    let members = configuration.members.iter().map(|(member, configured)| v1::ConfiguredMember {
        member: member.0,
        name: configured.name.clone(),
        voter: configured.voter,
    });
    v1::Configuration {
        version: configuration.version,
        slot: configuration.slot.0,
        effective_from: configuration.effective_from.0,
        members: members.collect(),
        operation_id: if configuration.version == 1 {
            Bytes::new()
        } else {
            Bytes::copy_from_slice(&configuration.operation)
        },
    }
}

/// Whether /readyz says yes, or else why not (docs: operator-rules.md, "Pod").
pub(super) fn readiness(status: &Status) -> Result<(), String> {
    match &status.state {
        MemberState::Active if status.role == Role::None => {
            Err("this member is in no configuration that it knows".to_owned())
        }
        MemberState::Active if status.caught_up_once => Ok(()),
        MemberState::Active => Err("has not caught up with a leader since it started".to_owned()),
        MemberState::Uninitialized => Err("belongs to no cluster yet".to_owned()),
        MemberState::Joining => Err("waits for its peers, or for the log".to_owned()),
        MemberState::Recovering => Err("waits for a quorum to answer its handshake".to_owned()),
        MemberState::Fenced(why) => Err(format!("fenced: {why}")),
        MemberState::Halted(why) => Err(format!("halted: {why}")),
        MemberState::Removed => Err("was removed from its cluster".to_owned()),
    }
}

pub(super) fn state(state: &MemberState) -> v1::MemberState {
    match state {
        MemberState::Uninitialized => v1::MemberState::Uninitialized,
        MemberState::Joining => v1::MemberState::Joining,
        MemberState::Recovering => v1::MemberState::Recovering,
        MemberState::Active => v1::MemberState::Active,
        MemberState::Fenced(_) => v1::MemberState::Fenced,
        MemberState::Halted(_) => v1::MemberState::Halted,
        MemberState::Removed => v1::MemberState::Removed,
    }
}

pub(super) fn role(role: Role) -> v1::Role {
    match role {
        Role::None => v1::Role::None,
        Role::Learner => v1::Role::Learner,
        Role::Follower => v1::Role::Follower,
        Role::Candidate => v1::Role::Candidate,
        Role::Leader => v1::Role::Leader,
    }
}

pub(super) fn status(report: &Report, identity: &Identity, space: &Space) -> v1::StatusResponse {
    let status = &report.status;
    let (latest, in_force) = match &report.configuration {
        Some((latest, in_force)) => (Some(latest), *in_force),
        None => (None, false),
    };
    let names: BTreeMap<MemberId, &str> =
        latest.iter().flat_map(|c| c.members.iter().map(|(id, m)| (*id, m.name.as_str()))).collect();
    let peers = status.peers.iter().map(|peer| v1::PeerStatus {
        member: peer.member.0,
        name: names.get(&peer.member).copied().unwrap_or_default().to_owned(),
        incarnation: peer.incarnation.0,
        connected: peer.connected,
        durable_through: peer.durable_through.0,
        silent_ms: peer.silent.map_or(0, millis),
        caught_up: peer.caught_up,
    });
    let removed = status.removed.iter().map(|removed| v1::RemovedMember {
        member: removed.member.0,
        name: removed.name.clone(),
        version: removed.version,
        retired: removed.retired,
    });
    let ready = readiness(status);
    v1::StatusResponse {
        member: status.member.0,
        name: identity.name.clone(),
        incarnation: status.incarnation.0,
        state: state(&status.state).into(),
        cluster_id: status.cluster.map_or_else(Bytes::new, |id| Bytes::copy_from_slice(&id.0)),
        genesis_digest: status.genesis.map_or_else(Bytes::new, |digest| Bytes::copy_from_slice(&digest.0)),
        role: role(status.role).into(),
        promised: Some(ballot_out(status.promised)),
        leader: status.leader.map(|ballot| ballot.member.0),
        leader_ballot: status.leader.map(ballot_out),
        fencing_epoch: status.fencing_epoch.0,
        trim_through: status.trim_through.0,
        chosen_through: status.chosen_through.0,
        durable_through: status.durable_through.0,
        applied_slot: status.applied.0,
        last_index: status.last_index.0,
        configuration: latest.map(configuration),
        configuration_in_force: in_force,
        peers: peers.collect(),
        removed: removed.collect(),
        ready: ready.is_ok(),
        reason: ready.err().unwrap_or_default(),
        version: VERSION.to_owned(),
        settings: status.settings.as_ref().map(settings),
        lease: status.lease,
        reads_under_lease: status.reads_under_lease,
        disk: Some(disk(space)),
    }
}

fn disk(space: &Space) -> v1::Disk {
    let room = match space.room() {
        Room::Plenty => v1::Room::Plenty,
        Room::Low => v1::Room::Low,
        Room::Full => v1::Room::Full,
        Room::Spent => v1::Room::Spent,
    };
    v1::Disk { free_bytes: space.free(), reserve_bytes: space.reserve(), room: room.into() }
}

/// Settings as they are in force.
pub(super) fn settings(settings: &Settings) -> v1::Settings {
    let Settings {
        version,
        election,
        leases,
        clock_drift_percent,
        limits,
        retention,
        chain_interval: _,
        format_level,
    } = settings;
    let short = |span| u32::try_from(millis(span)).unwrap_or(u32::MAX);
    v1::Settings {
        version: *version,
        election: Some(v1::Election {
            heartbeat_ms: short(election.heartbeat),
            timeout_ms: short(election.timeout),
        }),
        reads: Some(v1::Reads { leases: *leases, clock_drift_percent: Some(*clock_drift_percent) }),
        limits: Some(v1::Limits {
            entry_bytes: limits.entry_bytes,
            call_bytes: limits.call_bytes,
            session_rows: limits.session_rows,
            session_idle_ms: millis(limits.session_idle),
        }),
        retention: Some(v1::Retention {
            entries: retention.entries,
            bytes: retention.bytes,
            age_ms: retention.age.map(millis),
        }),
        format_level: Some(*format_level),
    }
}

/// Settings as they are asked for, where `base` is in force: what is unset stays, a 0 takes the default.
pub(super) fn changed_settings(base: Settings, wanted: &v1::Settings) -> Settings {
    let default = Settings::default();
    let span = Duration::from_millis;
    let mut next = base;
    if let Some(election) = wanted.election {
        let v1::Election { heartbeat_ms, timeout_ms } = election;
        next.election = ElectionSettings {
            heartbeat: or(span(u64::from(heartbeat_ms)), default.election.heartbeat),
            timeout: or(span(u64::from(timeout_ms)), default.election.timeout),
        };
    }
    if let Some(v1::Reads { leases, clock_drift_percent }) = wanted.reads {
        next.leases = leases;
        next.clock_drift_percent = clock_drift_percent.unwrap_or(base.clock_drift_percent);
    }
    if let Some(limits) = wanted.limits {
        let v1::Limits { entry_bytes, call_bytes, session_rows, session_idle_ms } = limits;
        next.limits = Limits {
            entry_bytes: or(entry_bytes, default.limits.entry_bytes),
            call_bytes: or(call_bytes, default.limits.call_bytes),
            session_rows: or(session_rows, default.limits.session_rows),
            session_idle: or(span(session_idle_ms), default.limits.session_idle),
        };
    }
    if let Some(v1::Retention { entries, bytes, age_ms }) = wanted.retention {
        next.retention = Retention { entries, bytes, age: age_ms.map(span) };
    }
    next.format_level = wanted.format_level.unwrap_or(base.format_level);
    next
}

fn or<T: Default + PartialEq>(wanted: T, default: T) -> T {
    if wanted == T::default() { default } else { wanted }
}

/// Takes bytes through what a client's request goes through on its way to the core.
pub(crate) fn check_request(bytes: &[u8]) {
    if let Ok(request) = v1::AppendRequest::decode(bytes)
        && let Ok(operation) = append(request)
    {
        check_call(operation);
    }
    if let Ok(request) = v1::AppendStreamRequest::decode(bytes)
        && let Some(request) = request.append
        && let Ok(operation) = append(request)
    {
        check_call(operation);
    }
    if let Ok(v1::AdvanceConsumerRequest { name, index }) = v1::AdvanceConsumerRequest::decode(bytes) {
        check_call(Operation::SetCursor { name, index: Index(index) });
    }
    if let Ok(request) = v1::ResumeRequest::decode(bytes)
        && let Some(checkpoint) = crate::checkpoints::named(request.checkpoint)
    {
        check_call(Operation::SaveCheckpoint(checkpoint));
    }
    if let Ok(request) = admin::ChangeSettingsRequest::decode(bytes) {
        let settings = changed_settings(Settings::default(), &request.settings.unwrap_or_default());
        if settings.validate().is_ok() {
            check_call(Operation::ChangeSettings { expected_version: request.expected_version, settings });
        }
    }
    if let Ok(request) = admin::InitializeRequest::decode(bytes)
        && let Ok(genesis) = super::admin::genesis(request)
        && genesis.validate().is_ok()
    {
        assert_eq!(Genesis::decode(genesis.encode()).as_ref(), Ok(&genesis));
    }
}

/// What the bounds let through is read by every member as it was meant.
fn check_call(operation: Operation) {
    let origin = Origin { member: MemberId(1), incarnation: Incarnation(1), request: RequestId(1) };
    let call = Call { origin, operation };
    if call.validate().is_ok() {
        assert_eq!(Call::decode(call.encode()).as_ref(), Ok(&call));
    }
}

/// Entries as the core takes them.
fn entries(payloads: Vec<Bytes>, new: Vec<v1::NewEntry>) -> Result<Vec<Entry>, Box<Failure>> {
    if new.is_empty() {
        return Ok(payloads.into_iter().map(Entry::from).collect());
    }
    if !payloads.is_empty() {
        let message = "entries stand in `entries` or in `new_entries`, not in both";
        return Err(Box::new(failure::refused(Reason::Invalid, message)));
    }
    let headers: usize = new.iter().map(|entry| entry.headers.len()).sum();
    if headers > limits::CALL_HEADERS {
        let most = limits::CALL_HEADERS;
        let message = format!("a call has at most {most} headers, not {headers}: send several calls");
        return Err(Box::new(failure::refused(Reason::CallTooLarge, message)));
    }
    let entry = |v1::NewEntry { payload, headers }| Entry::new(payload, &headers);
    let entries: Result<_, HeaderError> = new.into_iter().map(entry).collect();
    entries.map_err(|error| Box::new(failure::refused(Reason::Invalid, error)))
}

/// An entry as it is given out.
pub(super) fn entry(index: u64, logged: Logged) -> v1::Entry {
    let Logged { time, entry } = logged;
    let headers = entry.headers();
    let time = time.map(|time| synod_proto::timestamp(time.0));
    v1::Entry { index, payload: entry.payload, time, headers }
}

/// An append as the core takes it.
pub(super) fn append(request: v1::AppendRequest) -> Result<Operation, Box<Failure>> {
    let v1::AppendRequest { entries: payloads, new_entries, expected_index, identity, fence } = request;
    let entries = entries(payloads, new_entries)?;
    let identity = match identity {
        None => value::Identity::None,
        Some(append_request::Identity::Session(call)) => value::Identity::Session {
            session: SessionId(call.session),
            sequence: call.sequence,
            acknowledged: call.acknowledged,
        },
        Some(append_request::Identity::Key(v1::IdempotencyKey { key, minted_at })) => {
            value::Identity::Key { key, minted_at: minted_at.map(Index) }
        }
    };
    let append = Append { identity, expected_index: expected_index.map(Index), entries };
    Ok(match fence {
        None => Operation::Append(append),
        Some(fence) => Operation::FencedAppend { fence: Slot(fence), append },
    })
}

/// What an append is answered; `None`: the core gave an answer of another kind.
pub(super) fn appended(reply: Reply) -> Option<v1::AppendResponse> {
    match reply {
        Reply::Appended { first, last, repeat } => {
            Some(v1::AppendResponse { first_index: first.0, last_index: last.0, repeated: repeat })
        }
        Reply::SessionOpened(_)
        | Reply::SessionClosed
        | Reply::CursorSet(_)
        | Reply::CursorNew(_)
        | Reply::CursorRemoved
        | Reply::CheckpointSaved
        | Reply::SettingsChanged(_) => None,
    }
}

pub(super) fn history(history: &History) -> v1::HistoryResponse {
    let leaders = history.leaders.iter().map(|(slot, ballot)| v1::LeadershipRecord {
        fencing_epoch: slot.0,
        ballot: Some(ballot_out(*ballot)),
    });
    v1::HistoryResponse {
        configurations: history.configurations.iter().map(configuration).collect(),
        leaders: leaders.collect(),
    }
}
