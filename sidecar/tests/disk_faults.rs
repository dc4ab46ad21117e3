//! The storage over a disk that fails: every write, sync, creation, renaming and removal of a scripted life, of all
//! its files, each with every fault (docs:
//! reliability.md, layers of testing, 4; faults 1 to 3, 8, 13, 14, 35, 37).
#![allow(clippy::unwrap_used)]

mod medium;

use bytes::Bytes;
use medium::{Disk, Image, Operation, Power, old_state, write_old};
use std::collections::BTreeMap;
use std::time::Duration;
use synod_paxos::message::Counters;
use synod_paxos::{
    Ballot, ClusterId, DurableState, Genesis, Incarnation, MemberId, Row, Slot, SnapshotPart, Storage, Write,
    WriteCounter, row,
};
use synod_sidecar::storage::{Files, LEGACY, Opened, Options, StorageError, open_on};

const CLUSTER: ClusterId = ClusterId([7; 16]);

/// Segments that are left every few commits.
const SMALL: Options = Options { most_bytes: 16 << 10, least_bytes: 2 << 10, background: false };

fn open(disk: &Disk) -> Result<Opened, StorageError> {
    open_on(disk.files(), None, SMALL)
}

fn stored(slot: u64, round: u64, size: usize) -> Write {
    let (slot, ballot) = (Slot(slot), Ballot { round, member: MemberId(1) });
    let value = Bytes::from(vec![slot.0 as u8; size]);
    let checksum = row::checksum(CLUSTER, slot, ballot, &value);
    Write::Row(Row { slot, ballot, chosen: false, value, checksum })
}

fn snapshot(slot: u64) -> Bytes {
    Bytes::from(vec![slot as u8; 900])
}

/// Of the snapshot that is installed in the end.
fn part(offset: u64, length: usize) -> Write {
    let (slot, bytes) = (Slot(18), Bytes::from(vec![18; length]));
    Write::SnapshotPart(SnapshotPart { slot, total: 900, digest: 5, offset, bytes })
}

/// The commits of two boots: form a cluster, promise, append, take snapshots, trim, change the configuration
/// (a system state), fetch a snapshot and install it, grant a lease, meet a peer, make a tombstone.
fn life() -> [Vec<Vec<Write>>; 2] {
    let genesis = Genesis::new(CLUSTER, BTreeMap::from([(MemberId(1), "log-0".to_owned())]));
    let counters = Counters { incarnation: Incarnation(3), written: WriteCounter(9) };
    let system = |slot: u64, size: usize| Write::System {
        applied: Slot(slot),
        state: Bytes::from(vec![slot as u8; size]),
    };
    let first = vec![
        vec![Write::Genesis(genesis), Write::GenesisConfirmed],
        vec![Write::Promised(Ballot { round: 1, member: MemberId(1) })],
        (1..5).map(|slot| stored(slot, 1, 700)).collect(),
        vec![stored(5, 1, 20_000), Write::ChosenThrough(Slot(4)), system(4, 400)],
        vec![Write::Snapshot { slot: Slot(4), state: snapshot(4) }, stored(6, 1, 50)],
        vec![Write::Peer { member: MemberId(2), counters }, Write::Lease(Duration::from_secs(1))],
        vec![Write::Trim { through: Slot(4) }, stored(7, 1, 3_000)],
    ];
    let second = vec![
        vec![Write::Promised(Ballot { round: 4, member: MemberId(2) }), stored(7, 4, 100)],
        (8..20).map(|slot| stored(slot, 4, 900)).collect(),
        vec![Write::ChosenThrough(Slot(15)), system(15, 5_000)],
        vec![part(0, 400)],
        vec![part(400, 300), stored(20, 4, 40)],
        vec![Write::Install { slot: Slot(18), state: snapshot(18) }, stored(21, 4, 10)],
        vec![stored(22, 4, 60_000)],
        vec![Write::Tombstone { version: 3, slot: Slot(16) }],
    ];
    [first, second]
}

/// What the disk shows, all rows included.
fn shown(opened: &Opened) -> DurableState {
    let (rows, _) = opened.reader.view().unwrap().read(Slot(0), usize::MAX).unwrap();
    DurableState { rows: rows.into_iter().map(|row| (row.slot, row)).collect(), ..opened.state.clone() }
}

/// Each acknowledged state, and how many operations the disk had been asked for by then.
struct Acknowledged {
    states: Vec<(usize, DurableState)>,
    /// The write that failed, where one did.
    failed: Option<StorageError>,
    /// What would have been acknowledged next.
    next: Option<DurableState>,
}

/// Lives the life on `disk` until its end or the first error. What the background does is done behind every commit
/// whose number `every` divides.
fn live(disk: &Disk, before: Option<&DurableState>, every: usize) -> Acknowledged {
    let mut model = before.cloned();
    let mut told = Acknowledged { states: Vec::new(), failed: None, next: None };
    told.states.extend(model.clone().map(|state| (0, state)));
    for commits in life() {
        let mut opened = match open(disk) {
            Ok(opened) => opened,
            Err(error) => {
                told.next = model.map(booted);
                told.failed = Some(error);
                return told;
            }
        };
        let mut state = shown(&opened);
        if let Some(model) = model {
            assert_eq!(state, booted(model));
        }
        told.states.push((disk.medium().asked, state.clone()));
        for (number, mut writes) in (1..).zip(commits) {
            // The core writes no row that is trimmed.
            let trim = state.trim_through;
            writes.retain(|write| !matches!(write, Write::Row(row) if row.slot <= trim));
            state.written = state.written.next();
            writes.iter().for_each(|write| state.apply(write));
            if let Err(error) = opened.storage.commit(state.written, &mut writes.iter()) {
                told.next = Some(state);
                told.failed = Some(error);
                return told;
            }
            told.states.push((disk.medium().asked, state.clone()));
            if number % every == 0 {
                opened.storage.keep_house();
            }
        }
        model = Some(state);
    }
    told
}

fn booted(mut state: DurableState) -> DurableState {
    state.boot();
    state
}

/// Opens what a fault left behind: the last acknowledged state, or the one that was under way, whole.
fn check(image: Image, acknowledged: Option<&DurableState>, under_way: Option<&DurableState>, what: &str) {
    let opened = match open(&Disk::with(image)) {
        Ok(opened) => opened,
        // Before the first acknowledgement nobody has been told of a member.
        Err(_) if acknowledged.is_none() => return,
        Err(error) => panic!("{what}: {error}"),
    };
    let Some(acknowledged) = acknowledged else { return };
    let state = shown(&opened);
    let whole = [Some(acknowledged), under_way].into_iter().flatten().cloned().map(booted);
    assert!(whole.into_iter().any(|whole| whole == state), "{what}: {state:?}");
}

/// Cuts the power at every point of a life that begins with what `disk` holds.
fn cut_everywhere(name: &str, disk: &Disk, before: Option<&DurableState>, every: usize) {
    let mut power = Power { synced: disk.medium().image.clone(), ..Power::default() };
    disk.medium().recorded = Some(Vec::new());
    let told = live(disk, before, every);
    assert!(told.failed.is_none());
    let operations = disk.medium().recorded.take().unwrap();
    let mut points = 0;
    for at in 0..=operations.len() {
        let acknowledged = told.states.iter().rev().find(|(by, _)| *by <= at).map(|(_, state)| state);
        let under_way = told.states.iter().find(|(by, _)| *by > at).map(|(_, state)| state);
        for (fault, image) in power.cuts() {
            points += 1;
            check(image, acknowledged, under_way, &format!("{name}: cut before operation {at}, {fault}"));
        }
        operations.get(at).into_iter().for_each(|operation| power.ask(operation));
    }
    let count = |is: fn(&Operation) -> bool| operations.iter().filter(|operation| is(operation)).count();
    let born = count(|operation| matches!(operation, Operation::Rename { .. }));
    let removed = count(|operation| matches!(operation, Operation::Remove { .. }));
    println!("{name}: {} operations, {born} files, {removed} removed, {points} cuts", operations.len());
    assert!(born > 3 && removed > 0, "the life leaves segments, and removes some");
}

/// A disk that the version before segments left, and what it holds.
fn old_disk() -> (Disk, DurableState) {
    let Write::Row(row) = stored(4, 1, 300) else { unreachable!("it is a row") };
    let (disk, state) = (Disk::default(), old_state(CLUSTER, row));
    let file = Wrapped(disk.create(LEGACY).unwrap());
    write_old(&redb::Builder::new().create_with_backend(file).unwrap(), &state);
    disk.medium().asked = 0;
    (disk, state)
}

/// A file, for redb.
#[derive(Debug)]
struct Wrapped(Box<dyn redb::StorageBackend>);

impl redb::StorageBackend for Wrapped {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.0.write(offset, data)
    }
}

/// Property: whatever is lost of what was not synced, a start finds the last acknowledged state or the whole of the
/// one under way (docs: protocol.md, "Acceptor": "on disk before the answer leaves").
#[test]
fn every_cut_leaves_what_was_acknowledged() {
    cut_everywhere("a life", &Disk::default(), None, 1);
}

/// The same where the background comes late: segments are left, closed and removed several commits later.
#[test]
fn every_cut_leaves_what_was_acknowledged_when_the_background_is_late() {
    cut_everywhere("a life with a late background", &Disk::default(), None, 2);
}

/// The same where the life begins on a disk of format 1 (docs: storage.md, "Format 1").
#[test]
fn every_cut_of_a_takeover_leaves_what_was_there() {
    let (disk, before) = old_disk();
    cut_everywhere("a life taken over from format 1", &disk, Some(&before), 1);
}

/// Property: an error of any operation ends in an error of a commit or a start, never in an acknowledgement or a
/// panic; and the next start finds what was acknowledged (docs: protocol.md, "Integrity": nothing is retried on the
/// same handle).
#[test]
fn every_error_is_told_and_nothing_acknowledged_is_lost() {
    for (name, make) in [("a life", None), ("a life taken over from format 1", Some(old_disk))] {
        let fresh = || {
            make.map_or_else(
                || (Disk::default(), None),
                |make| {
                    let (disk, before) = make();
                    (disk, Some(before))
                },
            )
        };
        let (disk, before) = fresh();
        let whole = live(&disk, before.as_ref(), 1);
        assert!(whole.failed.is_none());
        let operations = whole.states.last().unwrap().0;
        for at in 0..operations {
            let (disk, before) = fresh();
            disk.medium().fails_at = Some(at);
            let told = live(&disk, before.as_ref(), 1);
            assert!(told.failed.is_some(), "{name}: operation {at} failed and nobody was told");
            let acknowledged = told.states.last().map(|(_, state)| state);
            let image = std::mem::take(&mut disk.medium().image);
            check(image, acknowledged, told.next.as_ref(), &format!("{name}: operation {at} fails"));
        }
        println!("{name}: {operations} operations, each failed once");
    }
}

/// docs: reliability.md, fault 11: where there is no space for the next segment the one that is written goes on, and
/// the log is left for the next one when there is space again.
#[test]
fn no_space_for_the_next_segment_is_no_failure() {
    let disk = Disk::default();
    let mut opened = open(&disk).unwrap();
    let mut state = shown(&opened);
    let mut append = |opened: &mut Opened, slots: std::ops::Range<u64>| {
        for slot in slots {
            state.written = state.written.next();
            let writes = [stored(slot, 1, 900)];
            writes.iter().for_each(|write| state.apply(write));
            opened.storage.commit(state.written, &mut writes.iter()).unwrap();
            opened.storage.keep_house();
        }
        assert_eq!(shown(opened).rows, state.rows);
    };
    disk.medium().full = true;
    append(&mut opened, 1..20);
    assert_eq!(disk.list().unwrap().len(), 1, "nothing of the next segment takes space");
    disk.medium().full = false;
    append(&mut opened, 20..30);
    assert!(disk.list().unwrap().len() > 2);
    drop(opened);
    assert_eq!(shown(&open(&disk).unwrap()).rows, state.rows);
}
