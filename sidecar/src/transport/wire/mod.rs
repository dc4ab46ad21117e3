//! The mapping between the core's messages and the wire's. Both directions are complete: a new kind of
//! message does not compile until it is here.

mod decode;

use std::time::Duration;
use synod_paxos::message::{ChainPoint, Counters, ForwardOutcome, Message, Outgoing};
use synod_paxos::{Ballot, Digest, MemberId, Row};
use synod_proto::peer::v1 as peer;
use synod_proto::peer::v1::{envelope::Message as Wire, forward_reply};
use synod_proto::v1;

/// A peer's message that is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a peer sent a message without a valid {0}")]
pub struct Malformed(pub &'static str);

/// A message of a kind that this version does not know.
pub(crate) const UNKNOWN: Malformed = Malformed("kind");

pub use decode::decode;
pub(crate) use decode::{cluster, digest};

pub(crate) fn ballot_out(ballot: Ballot) -> v1::Ballot {
    v1::Ballot { round: ballot.round, member: ballot.member.0 }
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

fn counters_out(member: MemberId, counters: Counters) -> peer::PeerCounter {
    peer::PeerCounter { member: member.0, incarnation: counters.incarnation.0, written: counters.written.0 }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

fn chain_out(point: ChainPoint) -> peer::ChainPoint {
    peer::ChainPoint { slot: point.slot.0, chain: bytes::Bytes::copy_from_slice(&point.chain.to_le_bytes()) }
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

#[cfg(test)]
mod tests {
    use super::*;
    use synod_paxos::{ClusterId, Incarnation, Slot, WriteCounter};

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

    /// What the core adds one to is never the last number that there is; nothing that is counted comes so far.
    #[test]
    fn numbers_that_nothing_can_be_added_to_are_refused() {
        let ballot = |round| Some(v1::Ballot { round, member: 1 });
        let messages = |number| {
            [
                Wire::Prepare(peer::Prepare { ballot: ballot(number), ..Default::default() }),
                Wire::Accept(peer::Accept { ballot: ballot(1), slot: number, ..Default::default() }),
                Wire::Accepted(peer::Accepted { ballot: ballot(1), slots: vec![1, number] }),
                Wire::Heartbeat(peer::Heartbeat {
                    ballot: ballot(1),
                    chosen_through: number,
                    ..Default::default()
                }),
                Wire::LearnRequest(peer::LearnRequest { from: number, ..Default::default() }),
                Wire::ReadPoint(peer::ReadPoint { request: 1, slot: Some(number) }),
                Wire::Retire(peer::Retire { version: number, slot: 4 }),
            ]
        };
        for (number, taken) in [((1 << 62) - 1, true), (1 << 62, false), (u64::MAX, false)] {
            for message in messages(number) {
                let said = format!("{message:?}");
                assert_eq!(decode(envelope(Some(message))).is_ok(), taken, "{said}");
            }
            let starts = peer::Envelope { incarnation: number, ..envelope(Some(messages(1)[0].clone())) };
            assert_eq!(decode(starts).is_ok(), taken, "{number}");
        }
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
