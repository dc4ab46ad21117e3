//! Each fault of the list that the simulator's disk model goes by, done to the real storage: a fault that is added
//! there does not compile here until it has its arm (docs: reliability.md, layers of testing, 2 and 4).
//!
//! `disk_faults.rs` enumerates the points at which such faults can strike; here each is seen once, with its outcome.
#![allow(clippy::unwrap_used)]

mod medium;

use bytes::Bytes;
use medium::{Disk, Image, Operation, Power};
use std::time::Duration;
use synod_paxos::{Ballot, ClusterId, DurableState, MemberId, Row, Slot, Storage, Write, row};
use synod_sidecar::storage::{Opened, Options, StorageError, open_on};
use synod_sim::disk_faults::DiskFault;

const CLUSTER: ClusterId = ClusterId([7; 16]);
const BALLOT: Ballot = Ballot { round: 3, member: MemberId(1) };
/// Rows that are acknowledged before anything goes wrong.
const ROWS: u64 = 6;

/// A member's disk in use, and what was acknowledged on it.
struct Life {
    disk: Disk,
    opened: Opened,
    acknowledged: DurableState,
}

fn open(disk: &Disk) -> Result<Opened, StorageError> {
    open_on(disk.files(), None, Options { background: false, ..Options::default() })
}

fn shown(opened: &Opened) -> DurableState {
    let (rows, _) = opened.reader.view().unwrap().read(Slot(0), usize::MAX).unwrap();
    DurableState { rows: rows.into_iter().map(|row| (row.slot, row)).collect(), ..opened.state.clone() }
}

fn booted(mut state: DurableState) -> DurableState {
    state.boot();
    state
}

fn is_whole(row: &Row) -> bool {
    row.checksum == row::checksum(CLUSTER, row.slot, row.ballot, &row.value)
}

impl Life {
    /// A member that has promised and accepted.
    fn start() -> Life {
        let disk = Disk::default();
        let opened = open(&disk).unwrap();
        let acknowledged = shown(&opened);
        let mut opened = opened;
        // A log whose rows are covered whole.
        opened.storage.note_level(2);
        let mut life = Life { disk, opened, acknowledged };
        life.commit(vec![Write::Promised(BALLOT)]).unwrap();
        (1..=ROWS).for_each(|slot| life.append(slot).unwrap());
        life
    }

    fn commit(&mut self, writes: Vec<Write>) -> Result<(), StorageError> {
        let mut next = self.acknowledged.clone();
        next.written = next.written.next();
        writes.iter().for_each(|write| next.apply(write));
        self.opened.storage.commit(next.written, &mut writes.iter())?;
        self.acknowledged = next;
        Ok(())
    }

    /// Values of one size, so that one fits over another.
    fn append(&mut self, slot: u64) -> Result<(), StorageError> {
        let (slot, value) = (Slot(slot), Bytes::from(vec![b'a' + slot as u8; 700]));
        let checksum = row::checksum(CLUSTER, slot, BALLOT, &value);
        self.commit(vec![Write::Row(Row { slot, ballot: BALLOT, chosen: false, value, checksum })])
    }

    /// One more commit: what was asked of the disk for it, and what it held before.
    fn recorded(&mut self) -> (Image, Vec<Operation>) {
        let before = self.disk.medium().image.clone();
        self.disk.medium().recorded = Some(Vec::new());
        self.append(ROWS + 1).unwrap();
        let operations = self.disk.medium().recorded.take().unwrap();
        (before, operations)
    }

    /// The images that a cut right before the end of one more commit leaves, by their names.
    fn cuts(&mut self) -> (DurableState, Vec<(&'static str, Image)>) {
        let acknowledged = self.acknowledged.clone();
        let (synced, operations) = self.recorded();
        let mut power = Power { synced, ..Power::default() };
        let mut cuts = Vec::new();
        for operation in &operations {
            power.ask(operation);
            cuts.extend(power.cuts());
        }
        (acknowledged, cuts)
    }
}

/// What a start finds on an image.
fn found(image: Image) -> Result<DurableState, StorageError> {
    open(&Disk::with(image)).map(|opened| shown(&opened))
}

/// A start finds what was acknowledged, or with it the whole of what was under way.
fn keeps(image: Image, acknowledged: &DurableState, under_way: &DurableState) {
    let state = found(image).unwrap();
    assert!(
        state == booted(acknowledged.clone()) || state == booted(under_way.clone()),
        "neither what was acknowledged nor what was under way: {state:?}"
    );
}

/// Cuts of one kind, each of which keeps what was acknowledged.
fn cut(kind: &str) {
    let mut life = Life::start();
    let (acknowledged, cuts) = life.cuts();
    let images: Vec<_> = cuts.into_iter().filter(|(name, _)| name.starts_with(kind)).collect();
    assert!(!images.is_empty(), "no cut is {kind}");
    images.into_iter().for_each(|(_, image)| keeps(image, &acknowledged, &life.acknowledged));
}

/// The place of a slot's value on the disk: its file and offset.
fn place_of(image: &Image, slot: u64) -> (usize, usize) {
    let wanted = vec![b'a' + slot as u8; 700];
    let place = |(file, bytes): (&usize, &std::sync::Arc<Vec<u8>>)| {
        bytes.windows(wanted.len()).position(|window| window == wanted).map(|offset| (*file, offset))
    };
    image.files.iter().find_map(place).expect("the value is on the disk")
}

/// A disk that is damaged while its member is down: the row of slot 2 is never given out as if it were whole.
fn damaged(damage: impl Fn(&mut Image)) {
    let life = Life::start();
    let disk = life.disk.clone();
    let acknowledged = life.acknowledged.clone();
    // Closed cleanly: the database itself does not look any more.
    drop(life.opened);
    let mut image = std::mem::take(&mut disk.medium().image);
    damage(&mut image);
    match found(image) {
        Ok(state) => {
            // With it, slots of which nothing is known may show as damaged: a row may have stood there.
            let acknowledged = acknowledged.rows;
            assert!(state.rows.get(&Slot(2)).is_some_and(|row| !is_whole(row)), "{state:?}");
            for row in state.rows.values().filter(|row| is_whole(row)) {
                assert_eq!(acknowledged.get(&row.slot), Some(row));
            }
            assert!(acknowledged.keys().all(|slot| state.rows.contains_key(slot)), "a row is not shown");
        }
        Err(StorageError::File { .. }) => {}
        Err(error) => panic!("{error}"),
    }
}

/// A failed write or sync: the commit says so, and so does every later one on the same handle.
fn fails(strike: impl Fn(&Disk), mend: impl Fn(&Disk)) -> StorageError {
    let mut life = Life::start();
    let acknowledged = life.acknowledged.clone();
    strike(&life.disk);
    let error = life.append(ROWS + 1).expect_err("the disk failed");
    let mut under_way = acknowledged.clone();
    mend(&life.disk);
    assert!(life.append(ROWS + 2).is_err(), "nothing is tried again on a handle that failed");
    drop(life.opened);
    let state = found(std::mem::take(&mut life.disk.medium().image)).unwrap();
    if let Some(row) = state.rows.get(&Slot(ROWS + 1)) {
        under_way.rows.insert(row.slot, row.clone());
        under_way.written = under_way.written.next();
    }
    assert!([acknowledged, under_way].map(booted).contains(&state), "{state:?}");
    error
}

/// A start on an older image shows less than was acknowledged: that is what peers know the member by.
fn shows_less(older: Image, older_state: &DurableState, acknowledged: &DurableState) {
    let state = found(older).unwrap();
    assert_eq!(state, booted(older_state.clone()));
    assert!(state.written < acknowledged.written && state.member == acknowledged.member);
}

fn inflict(fault: DiskFault) {
    match fault {
        DiskFault::LostUnsynced => cut("lost"),
        DiskFault::UntoldSync => cut("kept"),
        DiskFault::TornWrite => cut("torn"),
        DiskFault::FlippedRow => damaged(|image| {
            let (file, offset) = place_of(image, 2);
            image.bytes_mut(file)[offset + 300] ^= 1;
        }),
        DiskFault::FlippedFlag => damaged(|image| {
            // In front of the value: its chosen byte, and the checksum.
            let (file, offset) = place_of(image, 2);
            image.bytes_mut(file)[offset - 9] ^= 1;
        }),
        DiskFault::LostRow => damaged(|image| {
            // The page that holds the value says that it holds none.
            let (file, offset) = place_of(image, 2);
            let page = offset / 4_096 * 4_096;
            image.bytes_mut(file)[page..page + 4_096].fill(0);
        }),
        DiskFault::FlippedByte => damaged(|image| {
            // What kind of page it is that holds the value.
            let (file, offset) = place_of(image, 2);
            image.bytes_mut(file)[offset / 4_096 * 4_096] ^= 1;
        }),
        DiskFault::MisdirectedWrite => damaged(|image| {
            let ((file, from), (over, to)) = (place_of(image, 5), place_of(image, 2));
            let bytes = image.files[&file][from..from + 700].to_vec();
            image.bytes_mut(over)[to..to + 700].copy_from_slice(&bytes);
        }),
        DiskFault::FailedWrite => {
            let strike = |disk: &Disk| {
                let mut medium = disk.medium();
                medium.fails_at = Some(medium.asked);
            };
            let error = fails(strike, |disk| disk.medium().fails_at = None);
            assert!(matches!(error, StorageError::Database(_) | StorageError::Unusable { .. }), "{error}");
        }
        // The door refuses appends by then; what must be written still is, in files that do not grow.
        DiskFault::Full => {
            let mut life = Life::start();
            life.disk.medium().full = true;
            for slot in ROWS + 1..ROWS + 5 {
                life.append(slot).unwrap();
                life.opened.storage.keep_house();
            }
            let image = life.disk.medium().image.clone();
            assert_eq!(found(image).unwrap(), booted(life.acknowledged));
        }
        DiskFault::FullBeyondReserve => {
            let error = fails(|disk| disk.medium().spent = true, |disk| disk.medium().spent = false);
            assert!(matches!(error, StorageError::Full { .. }), "{error}");
        }
        DiskFault::Slow => {
            let mut life = Life::start();
            life.disk.medium().sync_takes = Duration::from_millis(3);
            life.append(ROWS + 1).unwrap();
            let image = life.disk.medium().image.clone();
            assert_eq!(found(image).unwrap(), booted(life.acknowledged));
        }
        DiskFault::Stalled => stalled(),
        DiskFault::LostSync => {
            let mut life = Life::start();
            let older = life.acknowledged.clone();
            let (synced, operations) = life.recorded();
            // The disk said that each of its syncs was done, and power went.
            shows_less(synced.clone(), &older, &life.acknowledged);
            // Of what it had not kept it may have any part all the same: that is found, or shows as older or whole.
            for kept in 0..operations.len() {
                let mut image = synced.clone();
                operations[..kept].iter().for_each(|operation| image.apply(operation));
                match found(image) {
                    Ok(state) => {
                        assert!([&older, &life.acknowledged].map(|s| booted(s.clone())).contains(&state))
                    }
                    Err(error) => assert!(matches!(error, StorageError::File { .. }), "{error}"),
                }
            }
        }
        DiskFault::RestoredCopy => {
            let mut life = Life::start();
            let (older, copy) = (life.acknowledged.clone(), life.disk.medium().image.clone());
            (1..4).for_each(|more| life.append(ROWS + more).unwrap());
            shows_less(copy, &older, &life.acknowledged);
        }
        DiskFault::Wiped => {
            let life = Life::start();
            let state = found(Image::default()).unwrap();
            assert_ne!(state.member, life.acknowledged.member);
            assert_eq!(state, DurableState::empty(state.member));
        }
    }
}

/// While a sync does not return, nothing is acknowledged; then all is.
fn stalled() {
    let mut life = Life::start();
    let disk = life.disk.clone();
    disk.medium().stands_still = true;
    let committing = std::thread::spawn(move || {
        life.append(ROWS + 1).unwrap();
        life
    });
    while disk.medium().waiting == 0 {
        assert!(!committing.is_finished(), "it was acknowledged without a sync");
        std::thread::yield_now();
    }
    assert!(!committing.is_finished(), "it was acknowledged before its sync returned");
    disk.medium().stands_still = false;
    let life = committing.join().unwrap();
    let image = disk.medium().image.clone();
    assert_eq!(found(image).unwrap(), booted(life.acknowledged));
}

/// Every fault of the list, each with what the storage makes of it (docs: reliability.md, "Layers of testing", 4).
#[test]
fn the_storage_bears_every_fault_of_the_simulators_disk() {
    for fault in DiskFault::ALL {
        println!("{}", fault.name());
        inflict(*fault);
    }
}
