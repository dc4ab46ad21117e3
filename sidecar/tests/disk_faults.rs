//! redb over a disk that fails: every write and every sync of a scripted life, each with every fault (docs:
//! reliability.md, layers of testing, 4; faults 1 to 3, 8, 13, 14, 35, 37).
#![allow(clippy::unwrap_used)]

mod medium;

use bytes::Bytes;
use medium::{Disk, Operation, apply};
use std::collections::BTreeMap;
use std::time::Duration;
use synod_paxos::message::Counters;
use synod_paxos::{
    Ballot, ClusterId, DurableState, Genesis, Incarnation, MemberId, Row, Slot, Storage, Write, WriteCounter,
    row,
};
use synod_sidecar::storage::{Opened, StorageError, open_on};

const CLUSTER: ClusterId = ClusterId([7; 16]);

fn stored(slot: u64, round: u64, size: usize) -> Write {
    let (slot, ballot) = (Slot(slot), Ballot { round, member: MemberId(1) });
    let value = Bytes::from(vec![slot.0 as u8; size]);
    let checksum = row::checksum(CLUSTER, slot, ballot, &value);
    Write::Row(Row { slot, ballot, chosen: false, value, checksum })
}

fn snapshot(slot: u64) -> Bytes {
    Bytes::from(vec![slot as u8; 900])
}

/// The commits of two boots: form a cluster, promise, append, take snapshots, trim, change the configuration
/// (a system state), install, grant a lease, meet a peer, make a tombstone.
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

/// Lives the life on `disk` until its end or the first error.
fn live(disk: &Disk) -> Acknowledged {
    let mut told = Acknowledged { states: Vec::new(), failed: None, next: None };
    let mut model: Option<DurableState> = None;
    for commits in life() {
        let mut opened = match open_on(disk.clone()) {
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
        for writes in commits {
            state.written = state.written.next();
            writes.iter().for_each(|write| state.apply(write));
            if let Err(error) = opened.storage.commit(state.written, &mut writes.iter()) {
                told.next = Some(state);
                told.failed = Some(error);
                return told;
            }
            told.states.push((disk.medium().asked, state.clone()));
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
fn check(image: Vec<u8>, acknowledged: Option<&DurableState>, under_way: Option<&DurableState>, what: &str) {
    let opened = match open_on(Disk::with(image)) {
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

/// The images that a power cut may leave: all operations up to the last sync, and of those behind it any.
fn cuts(synced: &[u8], behind: &[Operation]) -> Vec<(&'static str, Vec<u8>)> {
    let with = |operations: &mut dyn Iterator<Item = &Operation>| {
        let mut image = synced.to_vec();
        // A write beyond a length that was lost stretches the file, as a file system does.
        for operation in operations {
            if let Operation::Write { offset, data } = operation {
                image.resize(image.len().max(*offset as usize + data.len()), 0);
            }
            apply(&mut image, operation);
        }
        image
    };
    let mut images = vec![("lost", synced.to_vec())];
    if let Some((last, before)) = behind.split_last() {
        images.push(("kept", with(&mut behind.iter())));
        if let Operation::Write { offset, data } = last {
            let half = Operation::Write { offset: *offset, data: data[..data.len() / 2].to_vec() };
            images.push(("torn", with(&mut before.iter().chain([&half]))));
        }
        if behind.len() > 1 {
            images.push(("reordered, the last alone", with(&mut [last].into_iter())));
            images.push(("reordered, every second", with(&mut behind.iter().skip(1).step_by(2))));
        }
    }
    images
}

/// Property: whatever is lost of what was not synced, a start finds the last acknowledged state or the whole of the
/// one under way (docs: protocol.md, "Acceptor": "on disk before the answer leaves").
#[test]
fn every_cut_leaves_what_was_acknowledged() {
    let disk = Disk::default();
    disk.medium().recorded = Some(Vec::new());
    let told = live(&disk);
    assert!(told.failed.is_none());
    let operations = disk.medium().recorded.take().unwrap();
    let (mut image, mut synced, mut behind) = (Vec::new(), Vec::new(), Vec::new());
    let mut points = 0;
    for at in 0..=operations.len() {
        let acknowledged = told.states.iter().rev().find(|(by, _)| *by <= at).map(|(_, state)| state);
        let under_way = told.states.iter().find(|(by, _)| *by > at).map(|(_, state)| state);
        for (fault, image) in cuts(&synced, &behind) {
            points += 1;
            check(image, acknowledged, under_way, &format!("cut before operation {at}, {fault}"));
        }
        let Some(operation) = operations.get(at) else { break };
        apply(&mut image, operation);
        behind.push(operation.clone());
        if matches!(operation, Operation::Sync) {
            synced.clone_from(&image);
            behind.clear();
        }
    }
    println!("{} operations, {points} cuts", operations.len());
}

/// Property: an error of any write or sync ends in an error of the commit, never in an acknowledgement or a panic;
/// and the next start finds what was acknowledged (docs: protocol.md, "Integrity": nothing is retried on the same
/// handle).
#[test]
fn every_error_is_told_and_nothing_acknowledged_is_lost() {
    let disk = Disk::default();
    let whole = live(&disk);
    let operations = whole.states.last().unwrap().0;
    for at in 0..operations {
        let disk = Disk::default();
        disk.medium().fails_at = Some(at);
        let told = live(&disk);
        assert!(told.failed.is_some(), "operation {at} failed and nobody was told");
        let acknowledged = told.states.last().map(|(_, state)| state);
        let image = std::mem::take(&mut disk.medium().image);
        check(image, acknowledged, told.next.as_ref(), &format!("operation {at} fails"));
    }
    println!("{operations} operations, each failed once");
}
