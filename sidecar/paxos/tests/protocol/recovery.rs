//! docs: protocol.md, "Quorum lost for good".

use crate::lab::{Lab, accepted, ballot, m};
use crate::{append, batch, texts};
use std::collections::BTreeMap;
use std::time::Duration;
use synod_paxos::configuration::Change;
use synod_paxos::recovery::{LostSlot, Plan, RecoveryError, plan, plan_without};
use synod_paxos::status::Role;
use synod_paxos::value::{Append, Identity, Operation};
use synod_paxos::{
    AdminCommand, ClusterId, Digest, DurableState, Index, Input, Output, Reply, RequestId, SessionId, Slot,
};

const NEW: ClusterId = ClusterId([8; 16]);

fn in_session(request: u64, sequence: u64, text: &'static str) -> Input {
    let identity = Identity::Session { session: SessionId(1), sequence, acknowledged: 0 };
    let append = Append { identity, ..Append::plain(vec![text.into()]) };
    Input::Call { request: RequestId(request), operation: Operation::Append(append) }
}

fn appended(lab: &mut Lab, n: u64, request: u64) -> Option<(Index, bool)> {
    lab.seat(n).other.iter().find_map(|output| match output {
        Output::CallReply { request: of, outcome: Ok(Reply::Appended { first, repeat, .. }) }
            if of.0 == request =>
        {
            Some((*first, *repeat))
        }
        _ => None,
    })
}

/// The disks of three members after a session's two calls; nobody runs any more.
fn survivors() -> Vec<DurableState> {
    let mut lab = Lab::new(3, |_, _| {});
    lab.campaign(1);
    lab.settle();
    lab.input(1, Input::Call { request: RequestId(1), operation: Operation::OpenSession });
    lab.settle();
    lab.input(1, in_session(2, 1, "a"));
    lab.settle();
    lab.input(1, in_session(3, 2, "b"));
    lab.settle();
    for _ in 0..4 {
        lab.pass(Duration::from_millis(100));
        lab.settle();
    }
    (1..=3).map(|n| lab.seat(n).disk.0.clone()).collect()
}

fn lab_of(plan: &Plan) -> Lab {
    let members = BTreeMap::from([(m(11), "log-0".to_owned())]);
    let mut lab = Lab::empty();
    for mut disk in plan.found(NEW, &members).expect("the ids are new") {
        disk.boot();
        lab.place(disk);
    }
    lab.campaign(11);
    lab.settle();
    lab
}

/// "New cluster id and member ids; indexes and sessions continue"; a member that joins later has the whole log.
#[test]
fn one_survivor_carries_the_log_on() {
    let disks = survivors();
    let plan = plan(&disks[1..2]).unwrap();
    assert_eq!((plan.last_index, plan.lost.len()), (Index(2), 0));
    assert_eq!(plan.missing, [m(1), m(3)]);
    let mut lab = lab_of(&plan);
    assert_eq!(lab.status(11).role, Role::Leader);
    assert_eq!((lab.status(11).cluster, lab.status(11).recoveries), (Some(NEW), 1));
    lab.input(11, in_session(1, 2, "b"));
    lab.input(11, in_session(2, 3, "c"));
    lab.settle();
    assert_eq!(appended(&mut lab, 11, 1), Some((Index(2), true)));
    assert_eq!(appended(&mut lab, 11, 2), Some((Index(3), false)));
    // A learner replays everything, the old configurations included, and ends where the others are.
    let mut empty = DurableState::empty(m(12));
    empty.joined = Some((NEW, plan.genesis_digest(NEW)));
    lab.place(empty);
    lab.connect(12);
    let change = |member, name: &str| Change::AddLearner { member, name: name.into() };
    let version = lab.seat(11).node.system().unwrap().configurations.latest().version;
    let command = AdminCommand::Change {
        cluster: NEW,
        expected_version: version,
        operation: [5; 16],
        change: change(m(12), "log-1"),
    };
    lab.admin(11, command);
    for _ in 0..20 {
        lab.pass(Duration::from_millis(100));
        lab.settle();
    }
    assert_eq!(texts(&mut lab, 12), ["a", "b", "c"]);
    assert_eq!(lab.status(12).chain, lab.status(11).chain);
}

/// "in each slot the chosen, else the highest-ballot accepted, value is kept up to the first hole; the rest is
/// reported".
#[test]
fn the_highest_ballot_is_kept_up_to_the_first_hole() {
    let mut disks = survivors();
    let end = disks[0].chosen_through.0;
    let put = |disk: &mut DurableState, slot: u64, round: u64, text: &'static str| {
        let by = ballot(round, 2);
        disk.rows.insert(Slot(slot), accepted(slot, by, &batch(text, round, 2)));
    };
    put(&mut disks[0], end + 1, 5, "old");
    put(&mut disks[1], end + 1, 6, "new");
    put(&mut disks[0], end + 3, 6, "behind the hole");
    let found = plan(&disks[..2]).unwrap();
    assert_eq!((found.kept_through, found.chosen_through), (Slot(end + 1), Slot(end)));
    let lost = |slot, held| LostSlot { slot: Slot(slot), chosen: false, held };
    assert_eq!(found.lost, [lost(end + 2, false), lost(end + 3, true)]);
    assert_eq!(found.missing, [m(3)]);
    let mut lab = lab_of(&found);
    lab.input(11, append(9, None, "after"));
    lab.settle();
    assert_eq!(texts(&mut lab, 11), ["a", "b", "new", "after"]);
}

/// A damaged row is no value: the others' is kept, and without one it is a hole that is reported as chosen.
#[test]
fn a_damaged_row_is_taken_from_another_survivor_or_reported() {
    let mut disks = survivors();
    let slot = disks[0].chosen_through;
    for disk in &mut disks[..2] {
        disk.rows.get_mut(&slot).unwrap().checksum ^= 1;
    }
    assert_eq!(plan(&disks).unwrap().lost, []);
    let alone = plan(&disks[..1]).unwrap();
    assert_eq!(alone.lost, [LostSlot { slot, chosen: true, held: false }]);
    assert_eq!(alone.kept_through, slot.previous());
}

/// An entry that no version reads was chosen: it is named, and left out only where a person names that very one.
#[test]
fn an_entry_that_nobody_reads_is_left_out_where_it_is_named() {
    let mut disks = survivors();
    let slot = disks[0].chosen_through.next();
    let value = bytes::Bytes::from_static(&[1, 99]);
    let by = ballot(3, 1);
    for disk in &mut disks {
        let checksum = synod_paxos::row::checksum(crate::lab::CLUSTER, slot, by, &value);
        let row = synod_paxos::Row { slot, ballot: by, chosen: true, value: value.clone(), checksum };
        disk.rows.insert(slot, row);
        disk.rows.insert(slot.next(), accepted(slot.next().0, by, &batch("behind", 3, 1)));
        disk.chosen_through = slot.next();
    }
    let Err(RecoveryError::Undecodable { slot: named, digest }) = plan(&disks) else { panic!("it is named") };
    assert_eq!(named, slot);
    let other = Digest([7; 32]);
    for wrong in [(slot, other), (slot.next(), digest), (Slot(900), digest)] {
        let refused = plan_without(&disks, &BTreeMap::from([(slot, digest), wrong]));
        assert_eq!(refused, Err(RecoveryError::NotSkipped(wrong.0)));
    }
    let found = plan_without(&disks, &BTreeMap::from([(slot, digest)])).unwrap();
    assert_eq!(found.skipped, BTreeMap::from([(slot, digest)]));
    assert_eq!((found.kept_through, found.last_index), (slot.next(), Index(3)));
    let mut lab = lab_of(&found);
    lab.input(11, append(9, None, "after"));
    lab.settle();
    assert_eq!(texts(&mut lab, 11), ["a", "b", "behind", "after"]);
}

#[test]
fn what_cannot_be_recovered_from_is_refused() {
    let disks = survivors();
    assert_eq!(plan(&[]), Err(RecoveryError::NoSurvivors));
    assert_eq!(plan(&[DurableState::empty(m(9))]), Err(RecoveryError::NoCluster(m(9))));
    let mut fenced = disks[0].clone();
    fenced.fenced = Some("old copy".into());
    assert_eq!(plan(&[fenced]), Err(RecoveryError::Fenced(m(1))));
    let mut other = disks[1].clone();
    other.genesis.as_mut().unwrap().cluster = ClusterId([7; 16]);
    let refused = Err(RecoveryError::OtherCluster { one: m(1), other: m(2) });
    assert_eq!(plan(&[disks[0].clone(), other]), refused);
    let found = plan(&disks).unwrap();
    let long = BTreeMap::from([(m(11), "x".repeat(254))]);
    assert!(matches!(found.found(NEW, &long), Err(RecoveryError::Name(_))));
    let old = BTreeMap::from([(m(1), "log-0".to_owned())]);
    assert_eq!(found.found(NEW, &old), Err(RecoveryError::Members));
}
