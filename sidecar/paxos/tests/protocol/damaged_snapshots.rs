//! Snapshots that are damaged on the disk (docs: storage.md, "The scrubber").

use crate::lab::{Lab, m, tell};
use crate::snapshots::{beat, fill, trimming};
use bytes::Bytes;
use synod_paxos::value::Operation;
use synod_paxos::{Input, Message, Notice, Output, RequestId, Slot};

/// docs: storage.md, "The scrubber": a snapshot that is found damaged is written again from memory.
#[test]
fn a_damaged_snapshot_is_written_again() {
    let mut lab = trimming();
    fill(&mut lab, 1..20, None);
    let trim = lab.status(2).trim_through;
    let whole = lab.seats.get_mut(&m(2)).unwrap().disk.0.snapshots.insert(trim, "damaged".into());
    let told = |lab: &mut Lab, slot| {
        lab.input(2, Input::DamagedSnapshot(slot));
        lab.settle();
        lab.seat(2).other.iter().any(|output| {
            matches!(output, Output::Notice(synod_paxos::Notice::DamagedSnapshot { slot: of, healed: true }) if *of == slot)
        })
    };
    assert!(told(&mut lab, trim));
    assert_eq!(lab.seat(2).disk.0.snapshots.get(&trim), whole.as_ref());
    // One that was trimmed in the meantime stays away.
    assert!(!told(&mut lab, Slot(1)));
    assert!(!lab.seat(2).disk.0.snapshots.contains_key(&Slot(1)));
}

/// One that is damaged and in nobody's memory comes from a peer's disk, whichever of them it is.
#[test]
fn a_damaged_snapshot_that_is_not_served_heals_from_a_peer() {
    let mut lab = trimming();
    fill(&mut lab, 1..10, None);
    let cursor = Operation::SetCursor { name: "forgotten".into(), index: lab.status(1).first_index };
    lab.input(1, Input::Call { request: RequestId(90), operation: cursor });
    lab.settle();
    fill(&mut lab, 100..140, None);
    let last = *lab.seat(2).disk.0.snapshots.keys().next_back().unwrap();
    assert!(last > lab.status(2).trim_through);
    let whole = lab.seat(2).disk.0.snapshots.insert(last, "damaged".into());
    lab.input(2, Input::DamagedSnapshot(last));
    lab.settle();
    assert_eq!(lab.seat(2).disk.0.snapshots.get(&last), whole.as_ref());
}

/// A peer that answers with other bytes than stood here is asked no more often than one that does not answer: the
/// member says in the end that nobody could help.
#[test]
fn a_damaged_snapshot_of_which_others_have_other_bytes_is_given_up() {
    let mut lab = trimming();
    fill(&mut lab, 1..10, None);
    fill(&mut lab, 100..140, None);
    // In nobody's memory.
    (0..30).for_each(|_| beat(&mut lab, None));
    let last = *lab.seat(2).disk.0.snapshots.keys().next_back().unwrap();
    lab.input(2, Input::DamagedSnapshot(last));
    let is_request = |i: &synod_paxos::Incoming| {
        i.from == m(2) && matches!(i.message, Message::SnapshotRequest { slot, .. } if slot == last)
    };
    let other = Bytes::from_static(b"other");
    let mut asked = Vec::new();
    while let Some(at) = lab.mail.iter().position(is_request) {
        let to = lab.mail.remove(at).unwrap().to;
        asked.push(to.0);
        assert!(asked.len() < 100, "asked without end: {asked:?}");
        let (total, digest) = (other.len() as u64, xxhash_rust::xxh3::xxh3_128(&other));
        tell(
            &mut lab,
            to.0,
            2,
            Message::SnapshotChunk { slot: last, total, digest, offset: 0, bytes: other.clone() },
        );
    }
    assert!(asked.contains(&1) && asked.contains(&3), "{asked:?}");
    let given_up = |output: &Output| matches!(output, Output::Notice(Notice::DamagedSnapshot { slot, healed: false }) if *slot == last);
    assert!(lab.seat(2).other.iter().any(given_up), "{asked:?}");
}
