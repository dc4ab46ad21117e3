//! Every page of each of a member's files, damaged one at a time (docs: reliability.md, scorecard 6; faults 4 to 6).
#![allow(clippy::unwrap_used)]

mod medium;

use bytes::Bytes;
use medium::{Disk, Image};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use synod_paxos::value::{Append, Call, Entry, Fields, Logged, Operation, Origin, Value};
use synod_paxos::{
    Ballot, ClusterId, DurableState, Genesis, Incarnation, Index, MemberId, RequestId, Row, Slot,
    SnapshotPart, Storage, Time, Write, row,
};
use synod_sidecar::storage::{Mark, Opened, Options, StorageError, open_on};

const CLUSTER: ClusterId = ClusterId([7; 16]);
const SLOTS: u64 = 400;
/// Rows that are voted for and not known to be chosen.
const VOTES: u64 = 7;
const PAGE: usize = 4_096;
/// Ballot, chosen, checksum.
const HEAD: usize = 25;

/// A member of this size has a few segments.
const SMALL: Options = Options { most_bytes: 120 << 10, least_bytes: 120 << 10, background: false };

fn open(disk: &Disk) -> Result<Opened, StorageError> {
    open_on(disk.files(), None, SMALL)
}

/// A row of two entries, chosen up to the last of `chosen`.
fn batch(slot: u64, chosen: u64) -> Row {
    let ballot = Ballot { round: 1, member: MemberId(1) };
    let origin = Origin { member: MemberId(1), incarnation: Incarnation(1), request: RequestId(slot) };
    let entry = |n: u64| Bytes::from(format!("{n:>width$}", width = usize::try_from(n % 700).unwrap()));
    // Some entries have headers, and all times.
    let headers = (0..slot % 3).map(|n| (format!("h{n}"), slot.to_string())).collect();
    let headed = Entry::new(entry(2 * slot), &headers).unwrap();
    let append = Append { entries: vec![entry(2 * slot - 1).into(), headed], ..Append::plain(Vec::new()) };
    let fields = Fields::timed(Some(Time(slot)));
    let calls = vec![Call { origin, operation: Operation::Append(append) }];
    let value = Value::Batch { ballot, advance: Duration::ZERO, fields, calls }.encode();
    let checksum = row::checksum(CLUSTER, Slot(slot), ballot, &value);
    Row { slot: Slot(slot), ballot, chosen: slot <= chosen, value, checksum }
}

fn random(seed: u64, length: u64) -> Bytes {
    (0..length).map(|n| (n.wrapping_mul(seed + 31) >> 3) as u8).collect()
}

/// The files of a member with two entries a slot, votes behind those that are chosen, two snapshots, and parts of one
/// that it fetches.
fn member(slots: u64) -> Image {
    let disk = Disk::default();
    let mut opened = open(&disk).unwrap();
    let members = BTreeMap::from([(opened.state.member, "log-0".to_owned())]);
    let genesis = [Write::Genesis(Genesis::new(CLUSTER, members)), Write::GenesisConfirmed];
    let mut written = opened.state.written.next();
    opened.storage.commit(written, &mut genesis.iter()).unwrap();
    for first in (1..slots).step_by(40) {
        let rows = (first..first + 40).map(|slot| Write::Row(batch(slot, slots)));
        let writes: Vec<Write> = rows.chain([Write::ChosenThrough(Slot(first + 39))]).collect();
        let marks = (first..first + 40).map(|slot| Mark {
            first: Index(2 * slot - 1),
            slot: Slot(slot),
            count: 2,
            skipped: Vec::new(),
        });
        opened.storage.add_marks(marks, Slot(first + 39));
        written = written.next();
        opened.storage.commit(written, &mut writes.iter()).unwrap();
        opened.storage.keep_house();
    }
    let mut votes: Vec<Write> =
        (slots + 1..=slots + VOTES).map(|slot| Write::Row(batch(slot, slots))).collect();
    // Learnt ahead of the others.
    votes.push(Write::Row(batch(slots + VOTES + 1, u64::MAX)));
    written = written.next();
    opened.storage.commit(written, &mut votes.iter()).unwrap();
    for slot in [slots / 2, slots] {
        let snapshot = Write::Snapshot { slot: Slot(slot), state: random(slot, 9_000) };
        written = written.next();
        opened.storage.commit(written, &mut [snapshot].iter()).unwrap();
    }
    for offset in [0, 5_000] {
        let (slot, bytes) = (Slot(2 * slots), random(offset, 5_000));
        let part = Write::SnapshotPart(SnapshotPart { slot, total: 15_000, digest: 7, offset, bytes });
        written = written.next();
        opened.storage.commit(written, &mut [part].iter()).unwrap();
    }
    drop(opened);
    std::mem::take(&mut disk.medium().image)
}

/// What a damaged file is found to be.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// It opens, and everything it shows is right.
    Same,
    /// An error, a failed checksum, or the end of the process: nothing wrong was shown.
    Detected,
}

/// Opens an image and reads all that it shows; any byte that is shown must be right.
fn read(image: Image, whole: &DurableState, entries: &[Logged], what: &str) -> Found {
    let Ok(opened) = open(&Disk::with(image)) else { return Found::Detected };
    let mut found = Found::Same;
    let Ok((rows, _)) = opened.reader.view().and_then(|view| view.read(Slot(0), usize::MAX)) else {
        return Found::Detected;
    };
    // What may have been lost is shown as damaged: no vote is missing without a trace.
    let missing = whole.rows.keys().any(|slot| rows.binary_search_by_key(slot, |row| row.slot).is_err());
    assert!(!missing, "{what}: a row is missing, and nothing says so");
    for row in &rows {
        if row.is_intact(CLUSTER) {
            assert_eq!(row, &whole.rows[&row.slot], "{what}: a row that passes its checksum");
        } else {
            found = Found::Detected;
        }
    }
    let last = Index(entries.len() as u64);
    let all = opened.reader.entries((Index(1), last), usize::MAX, usize::MAX);
    let shown = all.as_ref().map_or(0, Vec::len);
    if let Ok(all) = &all {
        assert!(entries.starts_with(all), "{what}: all entries");
    }
    // One by one where not all can be read.
    for (index, entry) in (1..).zip(entries).skip(shown) {
        match opened.reader.entries((Index(index), last), 1, 1) {
            Ok(page) => assert_eq!(page.first(), Some(entry), "{what}: entry {index}"),
            Err(_) => found = Found::Detected,
        }
    }
    let state = DurableState { rows: BTreeMap::new(), written: whole.written, ..opened.state };
    let mut right = DurableState { rows: BTreeMap::new(), incarnation: state.incarnation, ..whole.clone() };
    // A snapshot that cannot be read is not there, and what cannot be read of a fetch is fetched again.
    if state.snapshots.len() < right.snapshots.len() || state.fetched.len() < right.fetched.len() {
        right.snapshots.retain(|slot, _| state.snapshots.contains_key(slot));
        right.fetched.truncate(state.fetched.len());
        found = Found::Detected;
    }
    assert_eq!(state, right, "{what}: what the member is");
    found
}

/// What is done to a member's files, and what came of it.
struct Flips {
    image: Image,
    whole: DurableState,
    entries: Vec<Logged>,
    same: usize,
    detected: usize,
    failures: Vec<String>,
}

impl Flips {
    fn of(slots: u64) -> Flips {
        let image = member(slots);
        let opened = open(&Disk::with(image.clone())).unwrap();
        let (rows, _) = opened.reader.view().unwrap().read(Slot(0), usize::MAX).unwrap();
        assert_eq!(rows.len() as u64, slots + VOTES + 1);
        assert_eq!(rows.iter().filter(|row| !row.chosen).count() as u64, VOTES);
        let rows = rows.into_iter().map(|row| (row.slot, row)).collect();
        let whole = DurableState { rows, ..opened.state.clone() };
        let entries = opened.reader.entries((Index(1), Index(2 * slots)), usize::MAX, usize::MAX).unwrap();
        assert_eq!(entries.len() as u64, 2 * slots);
        drop(opened);
        assert_eq!(read(image.clone(), &whole, &entries, "nothing"), Found::Same);
        std::panic::set_hook(Box::new(|_| {}));
        Flips { image, whole, entries, same: 0, detected: 0, failures: Vec::new() }
    }

    /// Changes one byte of a file, and looks at what is shown then.
    fn flip(&mut self, name: &str, at: usize, bits: u8) {
        let mut damaged = self.image.clone();
        let Some(byte) = damaged.named(name).get_mut(at) else { return };
        *byte ^= bits;
        let what = format!("{name}, byte {at}, bits {bits:#010b}");
        match catch_unwind(AssertUnwindSafe(|| read(damaged, &self.whole, &self.entries, &what))) {
            Ok(Found::Same) => self.same += 1,
            Ok(Found::Detected) => self.detected += 1,
            // Our own assertion is a failure; redb's is the end of the process, before anything is shown.
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                if text.contains(&what) { self.failures.push(text) } else { self.detected += 1 }
            }
        }
    }

    fn judge(self, what: &str) {
        drop(std::panic::take_hook());
        println!("{what}: {} flips detected, {} harmless", self.detected, self.same);
        let failures = self.failures;
        assert!(failures.is_empty(), "{} of them, the first: {}", failures.len(), failures[0]);
    }
}

/// Property: whatever bit of a row's head is flipped, no vote shows as chosen, and no row as one of another ballot.
#[test]
fn every_bit_of_every_rows_head_flipped_is_detected() {
    let mut flips = Flips::of(40);
    let ballot = [1_u64.to_le_bytes(), 1_u64.to_le_bytes()].concat();
    let mut heads = Vec::new();
    for (name, file) in &flips.image.names {
        let bytes = &flips.image.files[file];
        let found = bytes
            .windows(HEAD)
            .enumerate()
            .filter(|(_, head)| head.starts_with(&ballot) && head[16] <= 1 && head[17..] != [0; 8]);
        heads.extend(found.map(|(at, _)| (name.clone(), at)));
    }
    assert!(heads.len() as u64 >= 40 + VOTES, "{} heads", heads.len());
    for (number, (name, at)) in heads.iter().enumerate() {
        // All bits of a share of them, the first bit of each byte of the others.
        let step = if number % 8 == turn() % 8 { 1 } else { 8 };
        for bit in (0..HEAD * 8).step_by(step) {
            flips.flip(name, at + bit / 8, 1 << (bit % 8));
        }
        for bits in [0x02, 0x03, 0x80, 0xff] {
            flips.flip(name, at + 16, bits);
        }
    }
    assert!(flips.detected >= 40, "{} detected", flips.detected);
    flips.judge(&format!("{} heads of rows", heads.len()));
}

/// Which share of the flips this run does; all of them in so many runs with the numbers from 0 on.
fn turn() -> usize {
    std::env::var("SYNOD_FLIP_TURN").ok().and_then(|turn| turn.parse().ok()).unwrap_or(0)
}

/// Property: whatever byte of what is stored is changed, no vote and no chosen value shows as another, and none is
/// missing without a trace. One bit of every 32nd byte of all that was ever written; `SYNOD_FLIP_TURN` moves it.
#[test]
fn any_byte_changed_is_detected_or_harmless() {
    const SHARE: usize = 32;
    let mut flips = Flips::of(40);
    let image = flips.image.clone();
    let (mut bytes, mut flipped) = (0, 0);
    for (name, file) in &image.names {
        let written =
            image.files[file].chunks(PAGE).enumerate().filter(|(_, page)| page.iter().any(|b| *b != 0));
        for (page, held) in written {
            bytes += held.len();
            for at in (0..held.len()).filter(|at| (page * PAGE + at) % SHARE == turn() % SHARE) {
                flips.flip(name, page * PAGE + at, 1 << ((turn() / SHARE + at / SHARE) % 8));
                flipped += 1;
            }
        }
    }
    flips.judge(&format!("{bytes} bytes in {} files, {flipped} flips", image.names.len()));
}

/// Property: a flipped bit is detected or changes nothing that is shown; wrong bytes served: 0.
#[test]
fn every_page_flipped_is_detected_or_harmless() {
    let mut flips = Flips::of(SLOTS);
    let image = flips.image.clone();
    let mut pages = 0;
    for (name, file) in &image.names {
        for page in 0..image.files[file].len().div_ceil(PAGE) {
            pages += 1;
            // The head of the page, and three places that differ from page to page.
            for place in [5, 700 + page * 37 % 600, 1_500 + page * 101 % 900, 2_600 + page * 211 % 1_400] {
                flips.flip(name, page * PAGE + place, 1 << (page % 8));
            }
        }
    }
    assert!(image.names.len() > 2);
    flips.judge(&format!("{} files, {pages} pages", image.names.len()));
}
