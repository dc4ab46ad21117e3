//! T. Chandra, R. Griesemer, J. Redstone: *Paxos Made Live, An Engineering Perspective*, PODC 2007.

use super::{append, elect, lead, rest, settle_among, texts};
use crate::lab::{CLUSTER, Lab, accepted, ballot, m};
use std::time::Duration;
use synod_paxos::status::{MemberState, Role};
use synod_paxos::{AdminCommand, DurableState, Input, Message, RequestId, Slot};

/// Section 5.1, disk corruption: "a file's contents may change"; checksums tell. A damaged row is never taken for
/// an empty slot: the replica promises nothing until the slot is filled from others.
#[test]
fn a_replica_with_a_damaged_file_promises_nothing() {
    let old = ballot(1, 3);
    let mut lab = Lab::new(3, |_, disk| {
        disk.promised = old;
        let mut row = accepted(1, old, &super::batch("kept", old));
        if disk.member == m(2) {
            row.checksum ^= 1;
        }
        if disk.member != m(1) {
            disk.rows.insert(Slot(1), row);
        }
    });
    lab.campaign(1);
    settle_among(&mut lab, &[1, 2]);
    assert_eq!(lab.status(1).role, Role::Follower, "no second promise");
    // With the intact copy's promise the value is proposed again, and heals the damaged one.
    elect(&mut lab, 1, &[1, 2, 3]);
    assert_eq!(lab.status(1).role, Role::Leader);
    assert_eq!(texts(&mut lab, 1), ["kept"]);
    lab.pass(Duration::from_millis(100));
    lab.settle();
    assert_eq!(texts(&mut lab, 2), ["kept"]);
}

/// Section 5.1: "a replica with an inaccessible file is indistinguishable from a new replica with an empty disk".
/// Here a replica on an empty disk is a new member with a new id: it has no vote, whatever it is told.
#[test]
fn a_replica_with_an_empty_disk_has_no_vote() {
    let mut lab = Lab::new(3, |_, _| {});
    elect(&mut lab, 1, &[1, 2]);
    lab.crash(3);
    let wiped = DurableState::empty(m(33));
    lab.place(wiped);
    let digest = lab.seat(1).disk.0.genesis.as_ref().expect("a founder").digest();
    lab.input(
        33,
        Input::Admin { request: RequestId(1), command: AdminCommand::Join { cluster: CLUSTER, digest } },
    );
    lab.connect(33);
    lab.settle();
    assert_eq!(lab.status(33).state, MemberState::Active);
    // Its promise or vote is not asked for; what it sends is not counted.
    lab.log.clear();
    append(&mut lab, 1, 1, "x");
    settle_among(&mut lab, &[1, 33]);
    assert_eq!(texts(&mut lab, 1), [] as [&str; 0]);
    assert!(!lab.log.iter().any(|line| line.contains("1>33 Accept")), "{:?}", lab.log);
    settle_among(&mut lab, &[1, 2, 33]);
    lab.pass(Duration::from_millis(300));
    settle_among(&mut lab, &[1, 2, 33]);
    assert_eq!(texts(&mut lab, 1), ["x"]);
}

/// Section 5.1 lets a replica with a lost disk rejoin as a non-voting member until it has seen a whole instance.
/// Under the old identity that is unsafe (docs: reliability.md, fault 27), so a disk that shows less than its peers
/// remember is fenced for good.
#[test]
fn a_replica_that_forgot_does_not_rejoin_under_its_old_name() {
    let mut lab = Lab::new(3, |_, _| {});
    elect(&mut lab, 1, &[1, 2, 3]);
    let copy = lab.seat(3).disk.0.clone();
    append(&mut lab, 1, 1, "x");
    lab.settle();
    lab.crash(3);
    lab.seat(3).disk.0 = copy;
    lab.restart(3);
    lab.settle();
    assert!(matches!(lab.status(3).state, MemberState::Fenced(_)));
    for request in 2..=20 {
        append(&mut lab, 1, request, "y");
        lab.pass(Duration::from_millis(100));
        lab.settle();
    }
    assert!(matches!(lab.status(3).state, MemberState::Fenced(_)), "however many instances it sees");
}

/// Section 5.3, epoch numbers: two requests at one master have the same epoch exactly if it was master in between
/// without a break; every new mastership has a larger one.
#[test]
fn epochs_tell_masterships_apart() {
    let mut lab = Lab::new(3, |_, _| {});
    let mut epochs = Vec::new();
    for (turn, leader) in [1, 1, 2, 1].into_iter().enumerate() {
        if turn == 1 {
            // The same master again, after a break.
            lab.crash(1);
            lab.restart(1);
            lab.settle();
        }
        lead(&mut lab, leader);
        let first = lab.status(leader).fencing_epoch;
        append(&mut lab, leader, 10 + turn as u64, "x");
        lab.settle();
        assert_eq!(lab.status(leader).fencing_epoch, first, "the same while it leads on");
        epochs.push(first);
        rest(&mut lab, &[1, 2, 3]);
    }
    assert!(epochs.windows(2).all(|pair| pair[0] < pair[1]), "{epochs:?}");
}

/// Section 4.1, catch-up: a replica that lagged learns what is chosen from another, without a vote being taken.
#[test]
fn a_lagging_replica_catches_up_without_consensus() {
    let mut lab = Lab::new(3, |_, _| {});
    elect(&mut lab, 1, &[1, 2]);
    for request in 1..=10 {
        append(&mut lab, 1, request, &format!("v{request}"));
        settle_among(&mut lab, &[1, 2]);
    }
    lab.log.clear();
    for _ in 0..6 {
        lab.pass(Duration::from_millis(100));
        lab.settle();
    }
    assert_eq!(texts(&mut lab, 3).len(), 10);
    assert!(lab.log.iter().any(|line| line.contains("Learned")));
    assert!(!lab.mail.iter().any(|i| matches!(i.message, Message::Prepare { .. })));
}

/// Section 5.5, snapshots: a lagging replica whose missing log entries are gone everywhere takes a snapshot from
/// another one, and the rest of the log behind it; what it has promised stands.
#[test]
fn a_replica_behind_the_log_takes_a_snapshot_and_the_rest() {
    let mut lab = Lab::new(3, |_, disk| {
        if let Some(genesis) = &mut disk.genesis {
            genesis.settings.retention.entries = Some(2);
        }
    });
    elect(&mut lab, 1, &[1, 2, 3]);
    let promised = lab.status(3).promised;
    lab.crash(3);
    for request in 1..=60 {
        append(&mut lab, 1, request, &format!("v{request}"));
        settle_among(&mut lab, &[1, 2]);
        lab.pass(Duration::from_millis(100));
        settle_among(&mut lab, &[1, 2]);
    }
    assert!(lab.status(1).trim_through > lab.status(3).chosen_through, "the log begins behind it");
    lab.restart(3);
    for _ in 0..20 {
        lab.pass(Duration::from_millis(100));
        lab.settle();
    }
    let (leader, follower) = (lab.status(1), lab.status(3));
    assert_eq!((follower.chosen_through, follower.last_index), (leader.chosen_through, leader.last_index));
    assert_eq!(follower.promised, promised);
    assert!(lab.log.iter().any(|line| line.contains("SnapshotChunk")), "by a snapshot");
    let chains: Vec<u128> =
        [1, 3].map(|n| lab.seat(n).node.system().expect("a founder").chain).into_iter().collect();
    assert_eq!(chains[0], chains[1], "and its state is the same");
}
