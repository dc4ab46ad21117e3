//! The mapping between the core's messages and the wire's. Both directions are complete: a new kind of
//! message does not compile until it is here.

use std::time::Duration;
use synod_paxos::message::{ChainPoint, Counters, ForwardOutcome, Incoming, Message, Outgoing, ViewId};
use synod_paxos::{
    Ballot, ClusterId, Digest, Incarnation, Index, MemberId, RequestId, Row, SessionId, Slot, WriteCounter,
};
use synod_proto::peer::v1 as peer;
use synod_proto::peer::v1::{envelope::Message as Wire, forward_reply};
use synod_proto::v1;

/// A peer's message that is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a peer sent a message without a valid {0}")]
pub struct Malformed(pub &'static str);

/// A message of a kind that this version does not know.
pub(crate) const UNKNOWN: Malformed = Malformed("kind");

pub(crate) fn ballot_out(ballot: Ballot) -> v1::Ballot {
    v1::Ballot { round: ballot.round, member: ballot.member.0 }
}

fn ballot(wire: Option<v1::Ballot>) -> Result<Ballot, Malformed> {
    maybe_ballot(wire).ok_or(Malformed("ballot"))
}

fn maybe_ballot(wire: Option<v1::Ballot>) -> Option<Ballot> {
    wire.map(|b| Ballot { round: b.round, member: MemberId(b.member) })
}

pub(crate) fn cluster(bytes: &[u8]) -> Result<ClusterId, Malformed> {
    bytes.try_into().map(ClusterId).map_err(|_| Malformed("cluster id"))
}

pub(crate) fn digest(bytes: &[u8]) -> Result<Digest, Malformed> {
    bytes.try_into().map(Digest).map_err(|_| Malformed("genesis digest"))
}

fn digest_out(digest: Digest) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(&digest.0)
}

fn row_out(row: &Row) -> peer::Row {
    peer::Row {
        slot: row.slot.0,
        ballot: Some(ballot_out(row.ballot)),
        chosen: row.chosen,
        value: row.value.clone(),
        checksum: row.checksum,
    }
}

fn row(wire: peer::Row) -> Result<Row, Malformed> {
    Ok(Row {
        slot: Slot(wire.slot),
        ballot: ballot(wire.ballot)?,
        chosen: wire.chosen,
        value: wire.value,
        checksum: wire.checksum,
    })
}

fn rows(wire: Vec<peer::Row>) -> Result<Vec<Row>, Malformed> {
    wire.into_iter().map(row).collect()
}

fn counters_out(member: MemberId, counters: Counters) -> peer::PeerCounter {
    peer::PeerCounter { member: member.0, incarnation: counters.incarnation.0, written: counters.written.0 }
}

fn counters(wire: peer::PeerCounter) -> Counters {
    Counters { incarnation: Incarnation(wire.incarnation), written: WriteCounter(wire.written) }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

fn number(bytes: &[u8]) -> Result<u128, Malformed> {
    bytes.try_into().map(u128::from_le_bytes).map_err(|_| Malformed("hash of 16 bytes"))
}

fn chain_out(point: ChainPoint) -> peer::ChainPoint {
    peer::ChainPoint { slot: point.slot.0, chain: bytes::Bytes::copy_from_slice(&point.chain.to_le_bytes()) }
}

fn chain(wire: &peer::ChainPoint) -> Result<ChainPoint, Malformed> {
    Ok(ChainPoint { slot: Slot(wire.slot), chain: number(&wire.chain)? })
}

fn maybe_chain(wire: Option<&peer::ChainPoint>) -> Result<Option<ChainPoint>, Malformed> {
    wire.map(chain).transpose()
}

/// The envelope of a message that may leave.
pub fn encode(outgoing: &Outgoing) -> peer::Envelope {
    peer::Envelope {
        cluster_id: bytes::Bytes::copy_from_slice(&outgoing.cluster().0),
        from: outgoing.from().0,
        incarnation: outgoing.counters().incarnation.0,
        to: outgoing.to().0,
        written: outgoing.counters().written.0,
        disk_full: false,
        message: Some(encode_message(outgoing)),
    }
}

fn encode_message(outgoing: &Outgoing) -> Wire {
    match outgoing.message() {
        Message::Hello { nonce, genesis, needs_genesis } => Wire::Hello(peer::Hello {
            nonce: *nonce,
            genesis_digest: digest_out(*genesis),
            needs_genesis: *needs_genesis,
        }),
        Message::Welcome { nonce, remembered, gossip, genesis, full_genesis, chosen_through } => {
            Wire::Welcome(peer::Welcome {
                nonce: *nonce,
                remembered: Some(counters_out(outgoing.to(), *remembered)),
                gossip: gossip.iter().map(|(member, counters)| counters_out(*member, *counters)).collect(),
                genesis_digest: digest_out(*genesis),
                genesis: full_genesis.clone().unwrap_or_default(),
                chosen_through: chosen_through.0,
            })
        }
        Message::Canvass { id, ballot, from, hand_over } => Wire::Canvass(peer::Canvass {
            id: *id,
            ballot: Some(ballot_out(*ballot)),
            from: from.0,
            hand_over: hand_over.map(ballot_out),
        }),
        Message::CanvassReply { id, willing, promised, chosen_through } => {
            Wire::CanvassReply(peer::CanvassReply {
                id: *id,
                willing: *willing,
                promised: Some(ballot_out(*promised)),
                chosen_through: chosen_through.0,
            })
        }
        Message::Prepare { ballot, from, hand_over } => Wire::Prepare(peer::Prepare {
            ballot: Some(ballot_out(*ballot)),
            from: from.0,
            hand_over: hand_over.map(ballot_out),
        }),
        Message::Promise { ballot, from, view, chunk, last, trim_through, chosen_through, rows } => {
            Wire::Promise(peer::Promise {
                ballot: Some(ballot_out(*ballot)),
                from: from.0,
                view: view.0,
                chunk: *chunk,
                last: *last,
                trim_through: trim_through.0,
                chosen_through: chosen_through.0,
                rows: rows.iter().map(row_out).collect(),
            })
        }
        Message::PromiseMore { ballot, view, chunk } => Wire::PromiseMore(peer::PromiseMore {
            ballot: Some(ballot_out(*ballot)),
            view: view.0,
            chunk: *chunk,
        }),
        Message::Nack { ballot, promised } => Wire::Nack(peer::Nack {
            ballot: Some(ballot_out(*ballot)),
            promised: Some(ballot_out(*promised)),
        }),
        Message::Accept { ballot, slot, value, checksum, chosen_through, has_quorum } => {
            Wire::Accept(peer::Accept {
                ballot: Some(ballot_out(*ballot)),
                slot: slot.0,
                value: value.clone(),
                checksum: *checksum,
                chosen_through: chosen_through.0,
                has_quorum: *has_quorum,
            })
        }
        Message::Accepted { ballot, slots } => Wire::Accepted(peer::Accepted {
            ballot: Some(ballot_out(*ballot)),
            slots: slots.iter().map(|slot| slot.0).collect(),
        }),
        Message::AlreadyChosen { ballot, trim_through } => Wire::AlreadyChosen(peer::AlreadyChosen {
            ballot: Some(ballot_out(*ballot)),
            trim_through: trim_through.0,
        }),
        Message::Heartbeat { ballot, sequence, chosen_through, has_quorum, lease, chain, source, taken } => {
            Wire::Heartbeat(peer::Heartbeat {
                ballot: Some(ballot_out(*ballot)),
                sequence: *sequence,
                chosen_through: chosen_through.0,
                has_quorum: *has_quorum,
                lease_nanos: nanos(*lease),
                chain: chain.map(chain_out),
                source: source.map(|member| member.0),
                taken: taken.map(|(incarnation, through)| peer::ForwardsTaken {
                    incarnation: incarnation.0,
                    through,
                }),
            })
        }
        Message::HeartbeatReply {
            ballot,
            sequence,
            chosen_through,
            durable_through,
            granted,
            snapshot_through,
            chain,
            format_level,
            load,
        } => Wire::HeartbeatReply(peer::HeartbeatReply {
            ballot: Some(ballot_out(*ballot)),
            sequence: *sequence,
            chosen_through: chosen_through.0,
            durable_through: durable_through.0,
            granted: *granted,
            snapshot_through: snapshot_through.0,
            chain: chain.map(chain_out),
            format_level: *format_level,
            load: *load,
        }),
        Message::Busy { ballot, wait } => {
            Wire::Busy(peer::Busy { ballot: Some(ballot_out(*ballot)), wait_nanos: nanos(*wait) })
        }
        Message::SnapshotRequest { slot, offset } => {
            Wire::SnapshotRequest(peer::SnapshotRequest { slot: slot.0, offset: *offset })
        }
        Message::SnapshotChunk { slot, total, digest, offset, bytes } => {
            Wire::SnapshotChunk(peer::SnapshotChunk {
                slot: slot.0,
                total: *total,
                digest: bytes::Bytes::copy_from_slice(&digest.to_le_bytes()),
                offset: *offset,
                bytes: bytes.clone(),
            })
        }
        Message::Diverged { at, agreed } => Wire::Diverged(peer::Diverged {
            at: Some(chain_out(*at)),
            agreed: agreed.iter().map(|member| member.0).collect(),
        }),
        Message::LearnRequest { from, through, retries } => {
            Wire::LearnRequest(peer::LearnRequest { from: from.0, through: through.0, retries: *retries })
        }
        Message::Learned { from, trim_through, chosen_through, rows } => Wire::Learned(peer::Learned {
            from: from.0,
            trim_through: trim_through.0,
            chosen_through: chosen_through.0,
            rows: rows.iter().map(row_out).collect(),
        }),
        Message::Forward { request, ballot, sequence, call } => Wire::Forward(peer::Forward {
            request: request.0,
            ballot: Some(ballot_out(*ballot)),
            sequence: *sequence,
            call: call.clone(),
        }),
        Message::ForwardReply { request, incarnation, ballot, outcome } => {
            Wire::ForwardReply(peer::ForwardReply {
                request: request.0,
                incarnation: incarnation.0,
                ballot: Some(ballot_out(*ballot)),
                outcome: Some(outcome_out(outcome)),
            })
        }
        Message::ReadPointRequest { request, ballot } => Wire::ReadPointRequest(peer::ReadPointRequest {
            request: request.0,
            ballot: Some(ballot_out(*ballot)),
        }),
        Message::ReadPoint { request, slot } => {
            Wire::ReadPoint(peer::ReadPoint { request: request.0, slot: slot.map(|slot| slot.0) })
        }
        Message::HandOver { ballot } => Wire::HandOver(peer::HandOver { ballot: Some(ballot_out(*ballot)) }),
        Message::Retire { version, slot } => Wire::Retire(peer::Retire { version: *version, slot: slot.0 }),
    }
}

fn outcome_out(outcome: &ForwardOutcome) -> forward_reply::Outcome {
    match outcome {
        ForwardOutcome::Appended { first, last, repeat } => {
            forward_reply::Outcome::Appended(peer::Appended {
                first_index: first.0,
                last_index: last.0,
                repeat: *repeat,
            })
        }
        ForwardOutcome::SessionOpened(session) => forward_reply::Outcome::SessionOpened(session.0),
        ForwardOutcome::UnexpectedIndex { tail } => forward_reply::Outcome::UnexpectedTail(tail.0),
        ForwardOutcome::Refused(why) => forward_reply::Outcome::Refused(why.clone()),
    }
}

/// A message as it arrived.
///
/// # Errors
/// Where a part is missing or has the wrong length, or the kind is unknown.
pub fn decode(envelope: peer::Envelope) -> Result<Incoming, Malformed> {
    Ok(Incoming {
        cluster: cluster(&envelope.cluster_id)?,
        from: MemberId(envelope.from),
        counters: Counters {
            incarnation: Incarnation(envelope.incarnation),
            written: WriteCounter(envelope.written),
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
            remembered: m.remembered.map(counters).unwrap_or_default(),
            gossip: m.gossip.into_iter().map(|peer| (MemberId(peer.member), counters(peer))).collect(),
            genesis: digest(&m.genesis_digest)?,
            full_genesis: Some(m.genesis).filter(|genesis| !genesis.is_empty()),
            chosen_through: Slot(m.chosen_through),
        },
        Wire::Canvass(m) => Message::Canvass {
            id: m.id,
            ballot: ballot(m.ballot)?,
            from: Slot(m.from),
            hand_over: maybe_ballot(m.hand_over),
        },
        Wire::CanvassReply(m) => Message::CanvassReply {
            id: m.id,
            willing: m.willing,
            promised: ballot(m.promised)?,
            chosen_through: Slot(m.chosen_through),
        },
        Wire::Prepare(m) => Message::Prepare {
            ballot: ballot(m.ballot)?,
            from: Slot(m.from),
            hand_over: maybe_ballot(m.hand_over),
        },
        Wire::Promise(m) => Message::Promise {
            ballot: ballot(m.ballot)?,
            from: Slot(m.from),
            view: ViewId(m.view),
            chunk: m.chunk,
            last: m.last,
            trim_through: Slot(m.trim_through),
            chosen_through: Slot(m.chosen_through),
            rows: rows(m.rows)?,
        },
        Wire::PromiseMore(m) => {
            Message::PromiseMore { ballot: ballot(m.ballot)?, view: ViewId(m.view), chunk: m.chunk }
        }
        Wire::Nack(m) => Message::Nack { ballot: ballot(m.ballot)?, promised: ballot(m.promised)? },
        Wire::Accept(m) => Message::Accept {
            ballot: ballot(m.ballot)?,
            slot: Slot(m.slot),
            value: m.value,
            checksum: m.checksum,
            chosen_through: Slot(m.chosen_through),
            has_quorum: m.has_quorum,
        },
        Wire::Accepted(m) => {
            Message::Accepted { ballot: ballot(m.ballot)?, slots: m.slots.into_iter().map(Slot).collect() }
        }
        Wire::AlreadyChosen(m) => {
            Message::AlreadyChosen { ballot: ballot(m.ballot)?, trim_through: Slot(m.trim_through) }
        }
        Wire::Heartbeat(m) => Message::Heartbeat {
            ballot: ballot(m.ballot)?,
            sequence: m.sequence,
            chosen_through: Slot(m.chosen_through),
            has_quorum: m.has_quorum,
            lease: Duration::from_nanos(m.lease_nanos),
            chain: maybe_chain(m.chain.as_ref())?,
            source: m.source.map(MemberId),
            taken: m.taken.map(|taken| (Incarnation(taken.incarnation), taken.through)),
        },
        Wire::HeartbeatReply(m) => Message::HeartbeatReply {
            ballot: ballot(m.ballot)?,
            sequence: m.sequence,
            chosen_through: Slot(m.chosen_through),
            durable_through: Slot(m.durable_through),
            granted: m.granted,
            snapshot_through: Slot(m.snapshot_through),
            chain: maybe_chain(m.chain.as_ref())?,
            format_level: m.format_level,
            load: m.load,
        },
        Wire::Busy(m) => {
            Message::Busy { ballot: ballot(m.ballot)?, wait: Duration::from_nanos(m.wait_nanos) }
        }
        Wire::SnapshotRequest(m) => Message::SnapshotRequest { slot: Slot(m.slot), offset: m.offset },
        Wire::SnapshotChunk(m) => Message::SnapshotChunk {
            slot: Slot(m.slot),
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
            Message::LearnRequest { from: Slot(m.from), through: Slot(m.through), retries: m.retries }
        }
        Wire::Learned(m) => Message::Learned {
            from: Slot(m.from),
            trim_through: Slot(m.trim_through),
            chosen_through: Slot(m.chosen_through),
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
            incarnation: Incarnation(m.incarnation),
            ballot: ballot(m.ballot)?,
            outcome: outcome(m.outcome.ok_or(Malformed("outcome"))?),
        },
        Wire::ReadPointRequest(m) => {
            Message::ReadPointRequest { request: RequestId(m.request), ballot: ballot(m.ballot)? }
        }
        Wire::ReadPoint(m) => Message::ReadPoint { request: RequestId(m.request), slot: m.slot.map(Slot) },
        Wire::HandOver(m) => Message::HandOver { ballot: ballot(m.ballot)? },
        Wire::Retire(m) => Message::Retire { version: m.version, slot: Slot(m.slot) },
    })
}

fn outcome(wire: forward_reply::Outcome) -> ForwardOutcome {
    match wire {
        forward_reply::Outcome::Appended(m) => ForwardOutcome::Appended {
            first: Index(m.first_index),
            last: Index(m.last_index),
            repeat: m.repeat,
        },
        forward_reply::Outcome::SessionOpened(session) => ForwardOutcome::SessionOpened(SessionId(session)),
        forward_reply::Outcome::UnexpectedTail(tail) => ForwardOutcome::UnexpectedIndex { tail: Index(tail) },
        forward_reply::Outcome::Refused(why) => ForwardOutcome::Refused(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(message: Option<Wire>) -> peer::Envelope {
        peer::Envelope {
            cluster_id: vec![7; 16].into(),
            from: 1,
            incarnation: 2,
            to: 3,
            written: 4,
            disk_full: false,
            message,
        }
    }

    /// docs: reliability.md, fault 53: what a peer leaves out or garbles is refused before the core.
    #[test]
    fn malformed_messages_are_refused() {
        let nack = peer::Nack { ballot: None, promised: Some(v1::Ballot::default()) };
        assert_eq!(decode(envelope(Some(Wire::Nack(nack)))), Err(Malformed("ballot")));
        assert_eq!(decode(envelope(None)), Err(Malformed("kind")));
        let hello = peer::Hello { nonce: 1, genesis_digest: vec![1; 31].into(), needs_genesis: false };
        assert_eq!(decode(envelope(Some(Wire::Hello(hello)))), Err(Malformed("genesis digest")));
        let reply = peer::ForwardReply { ballot: Some(v1::Ballot::default()), ..Default::default() };
        assert_eq!(decode(envelope(Some(Wire::ForwardReply(reply)))), Err(Malformed("outcome")));
        let elsewhere = peer::Envelope { cluster_id: vec![7; 15].into(), ..envelope(None) };
        assert_eq!(decode(elsewhere), Err(Malformed("cluster id")));
    }

    /// A newer version's fields are left out, and its messages are of no known kind; neither is an error of the frame.
    #[test]
    fn what_a_newer_version_adds_is_left_out() {
        use prost::Message as _;
        let frame = |envelope: peer::Envelope| peer::PeerFrame {
            frame: Some(peer::peer_frame::Frame::Envelope(envelope)),
        };
        let decoded = |bytes: &[u8]| match peer::PeerFrame::decode(bytes).unwrap().frame {
            Some(peer::peer_frame::Frame::Envelope(envelope)) => decode(envelope),
            other => panic!("{other:?}"),
        };
        // Field 900 of the envelope, with two bytes in it: a message that came later.
        let unknown = [0xa2, 0x38, 2, 8, 7];
        let nested = |mut envelope: Vec<u8>| {
            envelope.extend(unknown);
            let mut frame = vec![frame(peer::Envelope::default()).encode_to_vec()[0]];
            prost::encoding::encode_varint(envelope.len() as u64, &mut frame);
            frame.extend(envelope);
            frame
        };
        assert_eq!(decoded(&nested(envelope(None).encode_to_vec())), Err(UNKNOWN));
        let retire = envelope(Some(Wire::Retire(peer::Retire { version: 3, slot: 4 })));
        let known = decoded(&nested(retire.encode_to_vec())).unwrap();
        assert_eq!(known.message, Message::Retire { version: 3, slot: Slot(4) });
    }

    #[test]
    fn a_message_keeps_its_envelope() {
        let beat = peer::Heartbeat {
            ballot: Some(v1::Ballot { round: 5, member: 1 }),
            sequence: 6,
            chosen_through: 7,
            has_quorum: true,
            taken: Some(peer::ForwardsTaken { incarnation: 3, through: 8 }),
            ..Default::default()
        };
        let incoming = decode(envelope(Some(Wire::Heartbeat(beat)))).unwrap();
        assert_eq!(
            (incoming.cluster, incoming.from, incoming.to),
            (ClusterId([7; 16]), MemberId(1), MemberId(3))
        );
        assert_eq!(incoming.counters.written, WriteCounter(4));
        let ballot = Ballot { round: 5, member: MemberId(1) };
        let expected = Message::Heartbeat {
            ballot,
            sequence: 6,
            chosen_through: Slot(7),
            has_quorum: true,
            lease: Duration::ZERO,
            chain: None,
            source: None,
            taken: Some((Incarnation(3), 8)),
        };
        assert_eq!(incoming.message, expected);
    }
}
