//! The bytes of rows and meta values: little-endian, each with a fixed head.

use super::StorageError;
use bytes::Bytes;
use redb::TableDefinition;
use synod_paxos::codec::{DecodeError, Reader, Writer};
use synod_paxos::message::Counters;
use synod_paxos::{Ballot, ClusterId, Digest, Incarnation, MemberId, Row, Slot, WriteCounter};
use xxhash_rust::xxh3::Xxh3;

pub(super) const ROWS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("rows");
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
pub(super) const PEERS: TableDefinition<'_, u64, (u64, u64)> = TableDefinition::new("peers");
/// First index -> slot, count, and [`mark_checksum`].
pub(super) const MARKS: TableDefinition<'_, u64, (u64, u32, u64)> = TableDefinition::new("marks");
/// Slot -> the places, four bytes each, of calls whose entries were not added.
pub(super) const SKIPPED: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("skipped");
/// Slot of a mark -> the encoded system state there.
pub(super) const SNAPSHOTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("snapshots");

/// The version of everything in this file; the row `format` of the table `meta`.
pub(super) const FORMAT: u64 = 1;

/// Names of meta rows.
pub(super) mod name {
    pub(crate) const FORMAT: &str = "format";
    pub(crate) const MEMBER: &str = "member";
    pub(crate) const INCARNATION: &str = "incarnation";
    pub(crate) const WRITTEN: &str = "written";
    pub(crate) const PROMISED: &str = "promised";
    pub(crate) const CHOSEN_THROUGH: &str = "chosen_through";
    pub(crate) const APPLIED: &str = "applied";
    pub(crate) const SYSTEM: &str = "system";
    pub(crate) const GENESIS: &str = "genesis";
    pub(crate) const JOINED: &str = "joined";
    pub(crate) const CONFIRMED: &str = "genesis_confirmed";
    pub(crate) const TOMBSTONE: &str = "tombstone";
    pub(crate) const FENCED: &str = "fenced";
    pub(crate) const TRIM_THROUGH: &str = "trim_through";
    pub(crate) const LEASE: &str = "lease";
}

/// ballot (16), chosen (1), checksum (8).
pub(super) const ROW_HEAD: usize = 25;

/// Writes a row into space of `ROW_HEAD` bytes and its value's length.
pub(super) fn write_row(row: &Row, space: &mut [u8]) {
    space[0..8].copy_from_slice(&row.ballot.round.to_le_bytes());
    space[8..16].copy_from_slice(&row.ballot.member.0.to_le_bytes());
    space[16] = u8::from(row.chosen);
    space[17..25].copy_from_slice(&row.checksum.to_le_bytes());
    space[ROW_HEAD..].copy_from_slice(&row.value);
}

pub(super) fn read_row(slot: u64, stored: &[u8]) -> Result<Row, StorageError> {
    if stored.len() < ROW_HEAD {
        return Err(StorageError::damaged("a row", format!("slot {slot} is cut short")));
    }
    let (head, value) = stored.split_at(ROW_HEAD);
    let number = |from: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&head[from..from + 8]);
        u64::from_le_bytes(bytes)
    };
    Ok(Row {
        slot: Slot(slot),
        ballot: Ballot { round: number(0), member: MemberId(number(8)) },
        chosen: head[16] != 0,
        checksum: number(17),
        value: Bytes::copy_from_slice(value),
    })
}

/// Over a whole mark, with the calls that it skips: a flipped bit must not serve an entry under another's index.
pub(super) fn mark_checksum(first: u64, slot: u64, count: u32, skipped: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&first.to_le_bytes());
    hash.update(&slot.to_le_bytes());
    hash.update(&count.to_le_bytes());
    hash.update(skipped);
    hash.digest()
}

/// Checks a mark as it was stored, and gives the calls that it skips.
pub(super) fn read_mark(
    first: u64,
    (slot, count, checksum): (u64, u32, u64),
    skipped: Option<&[u8]>,
) -> Result<Vec<u32>, StorageError> {
    let skipped = skipped.unwrap_or_default();
    if checksum != mark_checksum(first, slot, count, skipped) {
        return Err(StorageError::damaged("a mark", format!("that of index {first} fails its checksum")));
    }
    Ok(skipped.as_chunks().0.iter().map(|place| u32::from_le_bytes(*place)).collect())
}

pub(super) fn number(value: u64) -> [u8; 8] {
    value.to_le_bytes()
}

pub(super) fn pair(first: u64, second: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number(first));
    bytes[8..].copy_from_slice(&number(second));
    bytes
}

pub(super) fn joined(cluster: ClusterId, digest: Digest) -> Bytes {
    let mut w = Writer::with_capacity(48);
    w.array(&cluster.0);
    w.array(&digest.0);
    w.finish()
}

/// Reads one meta value with `read`, which must consume it.
pub(super) fn decode<T>(
    what: &'static str,
    bytes: &[u8],
    read: impl FnOnce(&mut Reader) -> Result<T, DecodeError>,
) -> Result<T, StorageError> {
    let mut reader = Reader::new(Bytes::copy_from_slice(bytes));
    let value = read(&mut reader).map_err(|e| StorageError::damaged(what, e))?;
    reader.end().map_err(|e| StorageError::damaged(what, e))?;
    Ok(value)
}

pub(super) fn read_number(what: &'static str, bytes: &[u8]) -> Result<u64, StorageError> {
    decode(what, bytes, Reader::u64)
}

pub(super) fn read_pair(what: &'static str, bytes: &[u8]) -> Result<(u64, u64), StorageError> {
    decode(what, bytes, |r| Ok((r.u64()?, r.u64()?)))
}

pub(super) fn read_joined(bytes: &[u8]) -> Result<(ClusterId, Digest), StorageError> {
    decode("the joined cluster", bytes, |r| Ok((ClusterId(r.array()?), Digest(r.array()?))))
}

pub(super) fn counters((incarnation, written): (u64, u64)) -> Counters {
    Counters { incarnation: Incarnation(incarnation), written: WriteCounter(written) }
}

pub(super) fn places(skipped: &[u32]) -> Vec<u8> {
    skipped.iter().flat_map(|place| place.to_le_bytes()).collect()
}
