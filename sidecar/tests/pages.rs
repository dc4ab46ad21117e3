//! Every page of each of a member's files, damaged one at a time (docs: reliability.md, scorecard 6; faults 4 to 6).
#![allow(clippy::unwrap_used)]

mod medium;

use bytes::Bytes;
use medium::{Disk, Image};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use synod_paxos::value::{Append, Call, Operation, Origin, Value};
use synod_paxos::{
    Ballot, ClusterId, DurableState, Genesis, Incarnation, Index, MemberId, RequestId, Row, Slot,
    SnapshotPart, Storage, Write, row,
};
use synod_sidecar::storage::{Mark, Opened, Options, StorageError, open_on};

const CLUSTER: ClusterId = ClusterId([7; 16]);
const SLOTS: u64 = 400;
const PAGE: usize = 4_096;

/// A member of this size has a few segments.
const SMALL: Options = Options { most_bytes: 120 << 10, least_bytes: 120 << 10, background: false };

fn open(disk: &Disk) -> Result<Opened, StorageError> {
    open_on(disk.files(), None, SMALL)
}

fn batch(slot: u64) -> Row {
    let ballot = Ballot { round: 1, member: MemberId(1) };
    let origin = Origin { member: MemberId(1), incarnation: Incarnation(1), request: RequestId(slot) };
    let entry = |n: u64| Bytes::from(format!("{n:>width$}", width = usize::try_from(n % 700).unwrap()));
    let append = Append::plain(vec![entry(2 * slot - 1), entry(2 * slot)]);
    let calls = vec![Call { origin, operation: Operation::Append(append) }];
    let value = Value::Batch { ballot, advance: Duration::ZERO, calls }.encode();
    let checksum = row::checksum(CLUSTER, Slot(slot), ballot, &value);
    Row { slot: Slot(slot), ballot, chosen: true, value, checksum }
}

fn random(seed: u64, length: u64) -> Bytes {
    (0..length).map(|n| (n.wrapping_mul(seed + 31) >> 3) as u8).collect()
}

/// The files of a member with two entries a slot, two snapshots, and parts of one that it fetches.
fn member() -> Image {
    let disk = Disk::default();
    let mut opened = open(&disk).unwrap();
    let members = BTreeMap::from([(opened.state.member, "log-0".to_owned())]);
    let genesis = [Write::Genesis(Genesis::new(CLUSTER, members)), Write::GenesisConfirmed];
    let mut written = opened.state.written.next();
    opened.storage.commit(written, &mut genesis.iter()).unwrap();
    for first in (1..SLOTS).step_by(40) {
        let rows = (first..first + 40).map(|slot| Write::Row(batch(slot)));
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
    for slot in [SLOTS / 2, SLOTS] {
        let snapshot = Write::Snapshot { slot: Slot(slot), state: random(slot, 9_000) };
        written = written.next();
        opened.storage.commit(written, &mut [snapshot].iter()).unwrap();
    }
    for offset in [0, 5_000] {
        let (slot, bytes) = (Slot(2 * SLOTS), random(offset, 5_000));
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
fn read(image: Image, whole: &DurableState, entries: &[Bytes], what: &str) -> Found {
    let Ok(opened) = open(&Disk::with(image)) else { return Found::Detected };
    let mut found = Found::Same;
    let Ok((rows, _)) = opened.reader.view().and_then(|view| view.read(Slot(0), usize::MAX)) else {
        return Found::Detected;
    };
    for row in &rows {
        if row.is_intact(CLUSTER) {
            assert_eq!(row, &whole.rows[&row.slot], "{what}: a row that passes its checksum");
        } else {
            found = Found::Detected;
        }
    }
    let last = Index(entries.len() as u64);
    let all = opened.reader.entries((Index(1), last), usize::MAX, usize::MAX);
    if let Ok(all) = &all {
        assert_eq!(all, entries, "{what}: all entries");
    }
    // One by one where not all can be read.
    for (index, entry) in (1..).zip(entries).filter(|_| all.is_err()) {
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
    if rows.len() != whole.rows.len() {
        // Fewer rows than there were, told by nobody: the watermark says that they must be there.
        assert!(state.chosen_through == right.chosen_through, "{what}: rows are missing");
        found = Found::Detected;
    }
    assert_eq!(state, right, "{what}: what the member is");
    found
}

/// Property: a flipped bit is detected or changes nothing that is shown; wrong bytes served: 0.
#[test]
fn every_page_flipped_is_detected_or_harmless() {
    let image = member();
    let opened = open(&Disk::with(image.clone())).unwrap();
    let (rows, _) = opened.reader.view().unwrap().read(Slot(0), usize::MAX).unwrap();
    let rows = rows.into_iter().map(|row| (row.slot, row)).collect();
    let whole = DurableState { rows, ..opened.state.clone() };
    let entries = opened.reader.entries((Index(1), Index(2 * SLOTS)), usize::MAX, usize::MAX).unwrap();
    assert_eq!(entries.len() as u64, 2 * SLOTS);
    drop(opened);
    std::panic::set_hook(Box::new(|_| {}));
    let (mut same, mut detected, mut failures) = (0, 0, Vec::new());
    let mut pages = 0;
    for (name, file) in &image.names {
        for page in 0..image.files[file].len().div_ceil(PAGE) {
            pages += 1;
            // The head of the page, and three places that differ from page to page.
            for place in [5, 700 + page * 37 % 600, 1_500 + page * 101 % 900, 2_600 + page * 211 % 1_400] {
                let mut damaged = image.clone();
                let Some(byte) = damaged.named(name).get_mut(page * PAGE + place) else { continue };
                *byte ^= 1 << (page % 8);
                let what = format!("{name}, page {page}, byte {place}");
                match catch_unwind(AssertUnwindSafe(|| read(damaged, &whole, &entries, &what))) {
                    Ok(Found::Same) => same += 1,
                    Ok(Found::Detected) => detected += 1,
                    // Our own assertion is a failure; redb's is the end of the process, before anything is shown.
                    Err(panic) => {
                        let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                        if text.contains(&what) { failures.push(text) } else { detected += 1 }
                    }
                }
            }
        }
    }
    drop(std::panic::take_hook());
    println!("{} files, {pages} pages: {detected} flips detected, {same} harmless", image.names.len());
    assert!(image.names.len() > 2);
    assert!(failures.is_empty(), "{} of them, the first: {}", failures.len(), failures[0]);
}
