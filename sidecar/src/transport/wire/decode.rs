//! What a peer sent, made the core's: complete, and with numbers that can be counted on.

use super::{Malformed, UNKNOWN};
use std::time::Duration;
use synod_paxos::message::{ChainPoint, Counters, ForwardOutcome, Incoming, Message, ViewId};
use synod_paxos::{
    Ballot, ClusterId, Digest, Incarnation, Index, MemberId, RequestId, Row, SessionId, Slot, WriteCounter,
};
use synod_proto::peer::v1 as peer;
use synod_proto::peer::v1::{envelope::Message as Wire, forward_reply};
use synod_proto::v1;

/// Slots, rounds, starts and writes are counted one by one and never come so far: the core may add to what a peer says.
const MOST: u64 = 1 << 62;

/// A number of something that is counted one by one.
fn count(number: u64) -> Result<u64, Malformed> {
    if number < MOST { Ok(number) } else { Err(Malformed("number below 2^62")) }
}

fn slot(number: u64) -> Result<Slot, Malformed> {
    count(number).map(Slot)
}

fn ballot(wire: Option<v1::Ballot>) -> Result<Ballot, Malformed> {
    maybe_ballot(wire)?.ok_or(Malformed("ballot"))
}

fn maybe_ballot(wire: Option<v1::Ballot>) -> Result<Option<Ballot>, Malformed> {
    wire.map(|b| Ok(Ballot { round: count(b.round)?, member: MemberId(b.member) })).transpose()
}

pub(crate) fn cluster(bytes: &[u8]) -> Result<ClusterId, Malformed> {
    bytes.try_into().map(ClusterId).map_err(|_| Malformed("cluster id"))
}

pub(crate) fn digest(bytes: &[u8]) -> Result<Digest, Malformed> {
    bytes.try_into().map(Digest).map_err(|_| Malformed("genesis digest"))
}

fn row(wire: peer::Row) -> Result<Row, Malformed> {
    Ok(Row {
        slot: slot(wire.slot)?,
        ballot: ballot(wire.ballot)?,
        chosen: wire.chosen,
        value: wire.value,
        checksum: wire.checksum,
    })
}

fn rows(wire: Vec<peer::Row>) -> Result<Vec<Row>, Malformed> {
    wire.into_iter().map(row).collect()
}

fn counters(wire: &peer::PeerCounter) -> Result<Counters, Malformed> {
    let (incarnation, written) = (count(wire.incarnation)?, count(wire.written)?);
    Ok(Counters { incarnation: Incarnation(incarnation), written: WriteCounter(written) })
}

fn number(bytes: &[u8]) -> Result<u128, Malformed> {
    bytes.try_into().map(u128::from_le_bytes).map_err(|_| Malformed("hash of 16 bytes"))
}

fn chain(wire: &peer::ChainPoint) -> Result<ChainPoint, Malformed> {
    Ok(ChainPoint { slot: slot(wire.slot)?, chain: number(&wire.chain)? })
}

fn maybe_chain(wire: Option<&peer::ChainPoint>) -> Result<Option<ChainPoint>, Malformed> {
    wire.map(chain).transpose()
}

fn gossip(wire: &peer::PeerCounter) -> Result<(MemberId, Counters), Malformed> {
    Ok((MemberId(wire.member), counters(wire)?))
}

/// A message as it arrived.
///
/// # Errors
/// Where a part is missing or has the wrong length, a number is no count, or the kind is unknown.
pub fn decode(envelope: peer::Envelope) -> Result<Incoming, Malformed> {
    Ok(Incoming {
        cluster: cluster(&envelope.cluster_id)?,
        from: MemberId(envelope.from),
        counters: Counters {
            incarnation: Incarnation(count(envelope.incarnation)?),
            written: WriteCounter(count(envelope.written)?),
        },
        to: MemberId(envelope.to),
        message: decode_message(envelope.message.ok_or(UNKNOWN)?)?,
    })
}

fn decode_message(wire: Wire) -> Result<Message, Malformed> {
    Ok(match wire {
        Wire::Hello(m) => Message::Hello {
            nonce: m.nonce,
            genesis: digest(&m.genesis_digest)?,
            needs_genesis: m.needs_genesis,
        },
        Wire::Welcome(m) => Message::Welcome {
            nonce: m.nonce,
            remembered: m.remembered.as_ref().map(counters).transpose()?.unwrap_or_default(),
            gossip: m.gossip.iter().map(gossip).collect::<Result<_, _>>()?,
            genesis: digest(&m.genesis_digest)?,
            full_genesis: Some(m.genesis).filter(|genesis| !genesis.is_empty()),
            chosen_through: slot(m.chosen_through)?,
        },
        Wire::Canvass(m) => Message::Canvass {
            id: m.id,
            ballot: ballot(m.ballot)?,
            from: slot(m.from)?,
            hand_over: maybe_ballot(m.hand_over)?,
        },
        Wire::CanvassReply(m) => Message::CanvassReply {
            id: m.id,
            willing: m.willing,
            promised: ballot(m.promised)?,
            chosen_through: slot(m.chosen_through)?,
        },
        Wire::Prepare(m) => Message::Prepare {
            ballot: ballot(m.ballot)?,
            from: slot(m.from)?,
            hand_over: maybe_ballot(m.hand_over)?,
        },
        Wire::Promise(m) => Message::Promise {
            ballot: ballot(m.ballot)?,
            from: slot(m.from)?,
            view: ViewId(m.view),
            chunk: m.chunk,
            last: m.last,
            trim_through: slot(m.trim_through)?,
            chosen_through: slot(m.chosen_through)?,
            rows: rows(m.rows)?,
        },
        Wire::PromiseMore(m) => {
            Message::PromiseMore { ballot: ballot(m.ballot)?, view: ViewId(m.view), chunk: m.chunk }
        }
        Wire::Nack(m) => Message::Nack { ballot: ballot(m.ballot)?, promised: ballot(m.promised)? },
        Wire::Accept(m) => Message::Accept {
            ballot: ballot(m.ballot)?,
            slot: slot(m.slot)?,
            value: m.value,
            checksum: m.checksum,
            chosen_through: slot(m.chosen_through)?,
            has_quorum: m.has_quorum,
        },
        Wire::Accepted(m) => Message::Accepted {
            ballot: ballot(m.ballot)?,
            slots: m.slots.into_iter().map(slot).collect::<Result<_, _>>()?,
        },
        Wire::AlreadyChosen(m) => {
            Message::AlreadyChosen { ballot: ballot(m.ballot)?, trim_through: slot(m.trim_through)? }
        }
        Wire::Heartbeat(m) => Message::Heartbeat {
            ballot: ballot(m.ballot)?,
            sequence: m.sequence,
            chosen_through: slot(m.chosen_through)?,
            has_quorum: m.has_quorum,
            lease: Duration::from_nanos(m.lease_nanos),
            chain: maybe_chain(m.chain.as_ref())?,
            source: m.source.map(MemberId),
            taken: m
                .taken
                .map(|taken| Ok((Incarnation(count(taken.incarnation)?), taken.through)))
                .transpose()?,
        },
        Wire::HeartbeatReply(m) => Message::HeartbeatReply {
            ballot: ballot(m.ballot)?,
            sequence: m.sequence,
            chosen_through: slot(m.chosen_through)?,
            durable_through: slot(m.durable_through)?,
            granted: m.granted,
            snapshot_through: slot(m.snapshot_through)?,
            chain: maybe_chain(m.chain.as_ref())?,
            format_level: m.format_level,
            load: m.load,
        },
        Wire::Busy(m) => {
            Message::Busy { ballot: ballot(m.ballot)?, wait: Duration::from_nanos(m.wait_nanos) }
        }
        Wire::SnapshotRequest(m) => Message::SnapshotRequest { slot: slot(m.slot)?, offset: m.offset },
        Wire::SnapshotChunk(m) => Message::SnapshotChunk {
            slot: slot(m.slot)?,
            total: m.total,
            digest: number(&m.digest)?,
            offset: m.offset,
            bytes: m.bytes,
        },
        Wire::Diverged(m) => Message::Diverged {
            at: chain(&m.at.ok_or(Malformed("chain point"))?)?,
            agreed: m.agreed.into_iter().map(MemberId).collect(),
        },
        Wire::LearnRequest(m) => {
            Message::LearnRequest { from: slot(m.from)?, through: slot(m.through)?, retries: m.retries }
        }
        Wire::Learned(m) => Message::Learned {
            from: slot(m.from)?,
            trim_through: slot(m.trim_through)?,
            chosen_through: slot(m.chosen_through)?,
            rows: rows(m.rows)?,
        },
        Wire::Forward(m) => Message::Forward {
            request: RequestId(m.request),
            ballot: ballot(m.ballot)?,
            sequence: m.sequence,
            call: m.call,
        },
        Wire::ForwardReply(m) => Message::ForwardReply {
            request: RequestId(m.request),
            incarnation: Incarnation(count(m.incarnation)?),
            ballot: ballot(m.ballot)?,
            outcome: outcome(m.outcome.ok_or(Malformed("outcome"))?)?,
        },
        Wire::ReadPointRequest(m) => {
            Message::ReadPointRequest { request: RequestId(m.request), ballot: ballot(m.ballot)? }
        }
        Wire::ReadPoint(m) => {
            Message::ReadPoint { request: RequestId(m.request), slot: m.slot.map(slot).transpose()? }
        }
        Wire::HandOver(m) => Message::HandOver { ballot: ballot(m.ballot)? },
        Wire::Retire(m) => Message::Retire { version: count(m.version)?, slot: slot(m.slot)? },
    })
}

fn outcome(wire: forward_reply::Outcome) -> Result<ForwardOutcome, Malformed> {
    Ok(match wire {
        forward_reply::Outcome::Appended(m) => ForwardOutcome::Appended {
            first: Index(count(m.first_index)?),
            last: Index(count(m.last_index)?),
            repeat: m.repeat,
        },
        forward_reply::Outcome::SessionOpened(session) => ForwardOutcome::SessionOpened(SessionId(session)),
        forward_reply::Outcome::UnexpectedTail(tail) => {
            ForwardOutcome::UnexpectedIndex { tail: Index(count(tail)?) }
        }
        forward_reply::Outcome::Refused(why) => ForwardOutcome::Refused(why),
    })
}
