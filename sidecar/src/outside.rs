//! Every decoder of bytes that come from outside: from peers, from the disk, from the socket. The fuzz targets in
//! `fuzz/` and the test over their corpus call these; nothing else does (docs: reliability.md, fault 53).
//!
//! Each takes any bytes. It must neither panic nor take memory beyond a small multiple of their length, and what it
//! accepts must be written again as it was read.

mod asked;

use crate::transport::wire;
use bytes::Bytes;
use prost::Message as _;
use synod_paxos::system::SystemState;
use synod_paxos::value::{self, Call, Value};
use synod_paxos::{Genesis, Message, Slot};
use synod_proto::peer::v1 as peer;

/// Takes any bytes; panics where a decoder does not do what it must.
pub type Decoder = fn(&[u8]);

/// The decoders by name: the names of fuzz targets and of their corpora.
pub const DECODERS: &[(&str, Decoder)] = &[
    ("peer_message", peer_message),
    ("stored_row", stored_row),
    ("value", value),
    ("call", call),
    ("snapshot", snapshot),
    ("genesis", genesis),
    ("socket_request", socket_request),
    ("accepted", accepted),
];

/// What a peer sends: a frame with a greeting or a message, and what is encoded within.
///
/// # Panics
/// Where a decoder does not do what it must.
pub fn peer_message(bytes: &[u8]) {
    let Ok(frame) = peer::PeerFrame::decode(bytes) else { return };
    assert_eq!(peer::PeerFrame::decode(frame.encode_to_vec().as_slice()).as_ref(), Ok(&frame));
    let Some(peer::peer_frame::Frame::Envelope(envelope)) = frame.frame else { return };
    let Ok(incoming) = wire::decode(envelope) else { return };
    match incoming.message {
        Message::Welcome { full_genesis: Some(bytes), .. } => genesis(&bytes),
        Message::Promise { rows, .. } | Message::Learned { rows, .. } => {
            rows.iter().for_each(|row| value(&row.value));
        }
        Message::Accept { value: bytes, .. } => value(&bytes),
        Message::Forward { call: bytes, .. } => call(&bytes),
        Message::SnapshotChunk { bytes, .. } => snapshot(&bytes),
        _ => {}
    }
}

/// What the disk holds beside values and states.
///
/// # Panics
/// Where a decoder does not do what it must.
pub fn stored_row(bytes: &[u8]) {
    crate::storage::check_stored(bytes);
}

/// What a slot decides.
///
/// # Panics
/// Where a decoder does not do what it must.
pub fn value(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    let Ok(value) = Value::decode(bytes.clone()) else { return };
    assert_eq!(value.encode(), bytes, "{value:?}");
    // What it adds can be told, whatever is said to have been refused.
    let count = |skipped: &[u32]| value::entries_added(bytes.clone(), skipped).map(|entries| entries.len());
    assert!(count(&[0, 3, u32::MAX]).is_ok_and(|fewer| count(&[]).is_ok_and(|all| fewer <= all)));
}

/// A forwarded call.
///
/// # Panics
/// Where a decoder does not do what it must.
pub fn call(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    let Ok(call) = Call::decode(bytes.clone()) else { return };
    assert_eq!(call.encode(), bytes, "{call:?}");
}

/// What is accepted from a caller: it is encoded, read back as it was meant by every member, and applied.
///
/// # Panics
/// Where a decoder does not do what it must.
pub fn accepted(bytes: &[u8]) {
    let Some(mut asked) = asked::Asked::read(bytes) else { return };
    let genesis = asked.genesis();
    if genesis.validate().is_err() {
        return;
    }
    assert_eq!(Genesis::decode(genesis.encode()).as_ref(), Ok(&genesis));
    let mut state = SystemState::new(&genesis);
    for value in asked.values(&state) {
        let Some(bytes) = value.encode_checked() else { panic!("accepted, and not read back: {value:?}") };
        let next = state.applied.next();
        assert!(state.apply(next, &bytes).is_ok(), "{value:?}");
        assert_eq!(SystemState::decode(state.encode()).as_ref(), Ok(&state), "{value:?}");
    }
}

/// The system state: what stands beside the rows, and what a snapshot is.
///
/// # Panics
/// Where a decoder does not do what it must.
pub fn snapshot(bytes: &[u8]) {
    let Ok(state) = SystemState::decode(Bytes::copy_from_slice(bytes)) else { return };
    let again = state.encode();
    assert_eq!(SystemState::decode(again.clone()).as_ref(), Ok(&state));
    // A no-op can be applied to any state that has a next slot.
    if state.applied < Slot(u64::MAX) {
        let mut state = state;
        let next = state.applied.next();
        assert!(state.apply(next, &Value::NoOp.encode()).is_ok());
    }
}

/// The first configuration, as a peer or the disk gives it.
///
/// # Panics
/// Where a decoder does not do what it must.
pub fn genesis(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    let Ok(genesis) = Genesis::decode(bytes) else { return };
    assert_eq!(Genesis::decode(genesis.encode()).as_ref(), Ok(&genesis));
}

/// What a client or an administrator asks for.
///
/// # Panics
/// Where a decoder does not do what it must.
pub fn socket_request(bytes: &[u8]) {
    crate::server::check_request(bytes);
}
