//! The bytes of rows and meta values: little-endian, each with a fixed head.

use crate::StorageError;
use bytes::Bytes;
use redb::TableDefinition;
use std::collections::BTreeMap;
use synod_paxos::codec::{DecodeError, Reader, Writer};
use synod_paxos::message::Counters;
use synod_paxos::{Ballot, ClusterId, Digest, Incarnation, MemberId, Row, Slot, WriteCounter, row};
use xxhash_rust::xxh3::Xxh3;

pub(crate) const ROWS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("rows");
pub(crate) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// Member -> the most that was seen of its counters, and [`peer_checksum`].
pub(crate) const PEERS: TableDefinition<'_, u64, (u64, u64, u64)> = TableDefinition::new("counters");
/// [`PEERS`] of format 1.
pub(crate) const OLD_PEERS: TableDefinition<'_, u64, (u64, u64)> = TableDefinition::new("peers");
/// First index -> slot, count, and [`mark_checksum`].
pub(crate) const MARKS: TableDefinition<'_, u64, (u64, u32, u64)> = TableDefinition::new("marks");
/// Slot -> the places, four bytes each, of calls whose entries were not added.
pub(crate) const SKIPPED: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("skipped");
/// Slot of a mark -> the encoded system state there.
pub(crate) const SNAPSHOTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("snapshots");
/// Offset -> a part of the snapshot that is being fetched.
pub(crate) const FETCHED: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("fetched");

/// One file with nothing sealed, and trimmed rows deleted one by one: the `format` of a directory without segments.
pub(crate) const OLD_FORMAT: u64 = 1;

/// The version of everything in a segment. Its number is the row `format` of the table `meta`, the only one that is
/// stored bare, so that any version can tell which it is; from the third on `layout` repeats it under a checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Format {
    /// A row's checksum does not cover its chosen byte.
    Second,
    /// It does.
    Third,
}

impl Format {
    /// The newest one.
    pub(crate) const NEWEST: Format = Format::Third;

    /// The one that a segment has which begins while the log is at this format level: the members that cannot read the
    /// third one must find none of it as long as the log lets them take part (docs: decisions/0016).
    pub(crate) fn at_level(level: u32) -> Format {
        if level >= 2 { Format::Third } else { Format::Second }
    }

    pub(crate) fn number(self) -> u64 {
        match self {
            Format::Second => 2,
            Format::Third => 3,
        }
    }

    pub(crate) fn from_number(number: u64) -> Option<Format> {
        [Format::Second, Format::Third].into_iter().find(|format| format.number() == number)
    }
}

/// Names of meta rows.
pub(crate) mod name {
    pub(crate) const FORMAT: &str = "format";
    /// The format again, under a checksum; in no segment of the second one.
    pub(crate) const LAYOUT: &str = "layout";
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
    /// Its own number, in a segment that is prepared and not written yet; nothing but the format stands beside it.
    pub(crate) const UNBORN: &str = "unborn";
    /// What stands in the older segments.
    pub(crate) const SEGMENTS: &str = "segments";
    /// Which segment each snapshot stands in.
    pub(crate) const SNAPSHOTS: &str = "snapshots";

    /// In every born segment: what is missing is damage.
    pub(crate) const ALWAYS: [&str; 10] = [
        MEMBER,
        INCARNATION,
        WRITTEN,
        PROMISED,
        CHOSEN_THROUGH,
        APPLIED,
        TRIM_THROUGH,
        LEASE,
        SEGMENTS,
        SNAPSHOTS,
    ];
    /// The format level that the log must be at before a name is written: an older version takes one that it does not
    /// know for damage. None: no version writes it.
    #[cfg(test)]
    pub(crate) fn level(name: &str) -> Option<u32> {
        match name {
            FORMAT | MEMBER | INCARNATION | WRITTEN | PROMISED | CHOSEN_THROUGH | APPLIED | SYSTEM
            | GENESIS | JOINED | CONFIRMED | TOMBSTONE | FENCED | TRIM_THROUGH | LEASE | UNBORN
            | SEGMENTS | SNAPSHOTS => Some(1),
            LAYOUT => Some(2),
            _ => None,
        }
    }

    /// Not in every one; a name in neither list is damage too.
    pub(crate) const SOMETIMES: [&str; 8] =
        [FORMAT, LAYOUT, SYSTEM, GENESIS, JOINED, CONFIRMED, TOMBSTONE, FENCED];
}

/// A meta value with a checksum over its name and itself in front: a flipped bit must not change a promise.
pub(crate) fn seal(name: &str, value: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(8 + value.len());
    sealed.extend_from_slice(&seal_checksum(name, value).to_le_bytes());
    sealed.extend_from_slice(value);
    sealed
}

fn seal_checksum(name: &str, value: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(name.as_bytes());
    hash.update(&[0]);
    hash.update(value);
    hash.digest()
}

/// The value under a seal.
pub(crate) fn unseal<'a>(name: &str, sealed: &'a [u8]) -> Result<&'a [u8], StorageError> {
    match sealed.split_first_chunk() {
        Some((checksum, value)) if u64::from_le_bytes(*checksum) == seal_checksum(name, value) => Ok(value),
        _ => Err(StorageError::damaged("what the member is", format!("`{name}` fails its checksum"))),
    }
}

/// In front of a snapshot and its checksum. Snapshots of earlier versions stand bare: they begin with the version of
/// their encoding, which is a small number.
const SEALED: u8 = 0xff;
/// The versions of encodings that ever stood bare. No flipped bit of [`SEALED`] makes one of them.
const BARE: std::ops::RangeInclusive<u8> = 1..=15;

fn snapshot_checksum(slot: u64, state: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&slot.to_le_bytes());
    hash.update(state);
    hash.digest()
}

/// A snapshot with a checksum over its slot and itself: what others install must be what everyone had there.
pub(crate) fn seal_snapshot(slot: u64, state: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(9 + state.len());
    sealed.push(SEALED);
    sealed.extend_from_slice(&snapshot_checksum(slot, state).to_le_bytes());
    sealed.extend_from_slice(state);
    sealed
}

/// The snapshot under a seal.
pub(crate) fn unseal_snapshot(slot: u64, stored: &[u8]) -> Result<&[u8], StorageError> {
    let sealed = match stored.split_first() {
        Some((&SEALED, sealed)) => sealed.split_first_chunk(),
        Some((version, _)) if BARE.contains(version) => return Ok(stored),
        _ => None,
    };
    match sealed {
        Some((checksum, state)) if u64::from_le_bytes(*checksum) == snapshot_checksum(slot, state) => {
            Ok(state)
        }
        _ => Err(StorageError::damaged("a snapshot", format!("that of slot {slot} fails its checksum"))),
    }
}

/// Over a peer's row.
pub(crate) fn peer_checksum(member: u64, incarnation: u64, written: u64) -> u64 {
    let mut hash = Xxh3::new();
    [member, incarnation, written].iter().for_each(|number| hash.update(&number.to_le_bytes()));
    hash.digest()
}

/// What stands in a segment; spans are of what stands there first and last, 0 and 0 for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) number: u64,
    /// Slots of rows.
    pub(crate) slots: (u64, u64),
    /// First indexes of marks.
    pub(crate) marks: (u64, u64),
    /// The slot of the last mark.
    pub(crate) marked: u64,
    /// How far its file is written, in bytes.
    pub(crate) bytes: u64,
}

impl Summary {
    pub(crate) fn add_row(&mut self, slot: u64) {
        self.slots = widened(self.slots, slot);
    }

    pub(crate) fn add_mark(&mut self, first: u64, slot: u64) {
        self.marks = widened(self.marks, first);
        self.marked = self.marked.max(slot);
    }

    /// Nothing in it is above `trim_through`.
    pub(crate) fn is_trimmed(&self, trim_through: u64) -> bool {
        self.slots.1.max(self.marked) <= trim_through
    }
}

fn widened((first, last): (u64, u64), with: u64) -> (u64, u64) {
    (if first == 0 { with } else { first.min(with) }, last.max(with))
}

/// The older segments, oldest first, behind the number up to which all of them were closed cleanly.
pub(crate) fn segments(closed: u64, segments: &[Summary]) -> Vec<u8> {
    let numbers = segments.iter().flat_map(|segment| {
        let Summary { number, slots, marks, marked, bytes } = *segment;
        [number, slots.0, slots.1, marks.0, marks.1, marked, bytes]
    });
    std::iter::once(closed).chain(numbers).flat_map(u64::to_le_bytes).collect()
}

pub(crate) fn read_segments(bytes: &[u8]) -> Result<(u64, Vec<Summary>), StorageError> {
    decode("the list of segments", bytes, |r| {
        let closed = r.u64()?;
        let mut found = Vec::new();
        for _ in 0..bytes.len().saturating_sub(8) / 56 {
            found.push(Summary {
                number: r.u64()?,
                slots: (r.u64()?, r.u64()?),
                marks: (r.u64()?, r.u64()?),
                marked: r.u64()?,
                bytes: r.u64()?,
            });
        }
        Ok((closed, found))
    })
}

/// Which segment each snapshot stands in, by slot.
pub(crate) fn catalog(snapshots: &BTreeMap<u64, u64>) -> Vec<u8> {
    snapshots.iter().flat_map(|(slot, number)| pair(*slot, *number)).collect()
}

pub(crate) fn read_catalog(bytes: &[u8]) -> Result<BTreeMap<u64, u64>, StorageError> {
    decode("the list of snapshots", bytes, |r| {
        (0..bytes.len() / 16).map(|_| Ok((r.u64()?, r.u64()?))).collect()
    })
}

/// ballot (16), chosen (1), checksum (8).
pub(crate) const ROW_HEAD: usize = 25;
/// Where in it the chosen byte is.
const CHOSEN: usize = 16;

/// Writes a row into space of `ROW_HEAD` bytes and its value's length.
pub(crate) fn write_row(format: Format, row: &Row, space: &mut [u8]) {
    let checksum = match format {
        Format::Second => row.checksum,
        Format::Third => row::cover(row.checksum, u8::from(row.chosen)),
    };
    space[0..8].copy_from_slice(&row.ballot.round.to_le_bytes());
    space[8..CHOSEN].copy_from_slice(&row.ballot.member.0.to_le_bytes());
    space[CHOSEN] = u8::from(row.chosen);
    space[CHOSEN + 1..ROW_HEAD].copy_from_slice(&checksum.to_le_bytes());
    space[ROW_HEAD..].copy_from_slice(&row.value);
}

/// A row as it is stored. One that makes no sense is shown with a checksum that does not fit: every reader of rows
/// looks at that, and knows what to do with a damaged one.
pub(crate) fn read_row(format: Format, slot: u64, stored: &[u8]) -> Row {
    let Some((head, value)) = stored.split_at_checked(ROW_HEAD) else { return damaged_row(slot) };
    let number = |from: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&head[from..from + 8]);
        u64::from_le_bytes(bytes)
    };
    let (chosen, stored) = (head[CHOSEN], number(CHOSEN + 1));
    let (chosen, checksum) = match (format, chosen) {
        (Format::Second, 0 | 1) => (chosen == 1, stored),
        // In the second format, nobody writes another: it fails like one of the third.
        (Format::Second | Format::Third, _) => row::uncover(stored, chosen),
    };
    let ballot = Ballot { round: number(0), member: MemberId(number(8)) };
    Row { slot: Slot(slot), ballot, chosen, checksum, value: Bytes::copy_from_slice(value) }
}

/// What is shown in the place of a row that cannot be read: it fails its checksum.
pub(crate) fn damaged_row(slot: u64) -> Row {
    Row { slot: Slot(slot), ballot: Ballot::ZERO, chosen: false, value: Bytes::new(), checksum: 0 }
}

/// The same row in a segment of another format. A damaged one stays damaged.
pub(crate) fn convert_row(from: Format, to: Format, slot: u64, stored: &[u8]) -> Vec<u8> {
    let mut converted = stored.to_vec();
    if from != to && matches!(stored.get(CHOSEN), Some(0 | 1)) && stored.len() >= ROW_HEAD {
        write_row(to, &read_row(from, slot, stored), &mut converted);
    }
    converted
}

/// Over a whole mark, with the calls that it skips: a flipped bit must not serve an entry under another's index.
pub(crate) fn mark_checksum(first: u64, slot: u64, count: u32, skipped: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&first.to_le_bytes());
    hash.update(&slot.to_le_bytes());
    hash.update(&count.to_le_bytes());
    hash.update(skipped);
    hash.digest()
}

/// Checks a mark as it was stored, and gives the calls that it skips.
pub(crate) fn read_mark(
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

pub(crate) fn number(value: u64) -> [u8; 8] {
    value.to_le_bytes()
}

pub(crate) fn pair(first: u64, second: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number(first));
    bytes[8..].copy_from_slice(&number(second));
    bytes
}

pub(crate) fn joined(cluster: ClusterId, digest: Digest) -> Bytes {
    let mut w = Writer::with_capacity(48);
    w.array(&cluster.0);
    w.array(&digest.0);
    w.finish()
}

/// Reads one meta value with `read`, which must consume it.
pub(crate) fn decode<T>(
    what: &'static str,
    bytes: &[u8],
    read: impl FnOnce(&mut Reader) -> Result<T, DecodeError>,
) -> Result<T, StorageError> {
    let mut reader = Reader::new(Bytes::copy_from_slice(bytes));
    let value = read(&mut reader).map_err(|e| StorageError::damaged(what, e))?;
    reader.end().map_err(|e| StorageError::damaged(what, e))?;
    Ok(value)
}

pub(crate) fn read_number(what: &'static str, bytes: &[u8]) -> Result<u64, StorageError> {
    decode(what, bytes, Reader::u64)
}

pub(crate) fn read_pair(what: &'static str, bytes: &[u8]) -> Result<(u64, u64), StorageError> {
    decode(what, bytes, |r| Ok((r.u64()?, r.u64()?)))
}

pub(crate) fn read_joined(bytes: &[u8]) -> Result<(ClusterId, Digest), StorageError> {
    decode("the joined cluster", bytes, |r| Ok((ClusterId(r.array()?), Digest(r.array()?))))
}

pub(crate) fn counters(
    member: u64,
    (incarnation, written, checksum): (u64, u64, u64),
) -> Result<Counters, StorageError> {
    if checksum != peer_checksum(member, incarnation, written) {
        return Err(StorageError::damaged("what the member is", "a peer's counters fail their checksum"));
    }
    Ok(Counters { incarnation: Incarnation(incarnation), written: WriteCounter(written) })
}

pub(crate) fn places(skipped: &[u32]) -> Vec<u8> {
    skipped.iter().flat_map(|place| place.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::{name, seal_snapshot, unseal_snapshot};

    /// Property: whatever bit of a sealed snapshot is flipped, it is not shown (docs: decisions/0016). A flipped bit
    /// of the seal's own mark once made it a bare one of an earlier version.
    #[test]
    fn a_flipped_bit_anywhere_breaks_the_seal() {
        let sealed = seal_snapshot(7, b"\x03the state");
        assert_eq!(unseal_snapshot(7, &sealed).ok(), Some(b"\x03the state".as_slice()));
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(unseal_snapshot(7, &flipped).is_err(), "bit {bit}");
        }
        assert!(unseal_snapshot(7, b"").is_err());
        assert_eq!(unseal_snapshot(7, b"\x02bare").ok(), Some(b"\x02bare".as_slice()));
    }

    /// A name that this list does not have is damage to the version before: it needs a level above 1, and is not written
    /// before the log is at that level.
    #[test]
    fn each_name_has_a_level_and_those_of_level_1_are_known_to_the_version_before() {
        let mut names: Vec<&str> =
            name::ALWAYS.into_iter().chain(name::SOMETIMES).chain([name::UNBORN]).collect();
        names.sort_unstable();
        for name in &names {
            assert!(name::level(name).is_some(), "{name} has no level");
        }
        names.retain(|name| name::level(name) == Some(1));
        let before = [
            "applied",
            "chosen_through",
            "fenced",
            "format",
            "genesis",
            "genesis_confirmed",
            "incarnation",
            "joined",
            "lease",
            "member",
            "promised",
            "segments",
            "snapshots",
            "system",
            "tombstone",
            "trim_through",
            "unborn",
            "written",
        ];
        assert_eq!(names, before);
    }
}
