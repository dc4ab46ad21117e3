//! Rows that one disk lost and that others have (docs: protocol.md, "Integrity").

use crate::lab::{CLUSTER, Lab, accepted, ballot, m};
use crate::{batch, texts};
use std::time::Duration;
use synod_paxos::Slot;
use synod_paxos::status::Role;
use synod_paxos::value::Value;

/// All have accepted a value; the first, who leads, has applied it, alone knows it to be chosen, and its row fails its
/// checksum.
fn a_row_that_only_its_leader_knows_chosen() -> (Lab, Value) {
    let value = batch("x", 1, 1);
    let mut lab = Lab::new(3, |member, disk| {
        disk.promised = ballot(1, 1);
        disk.rows.insert(Slot(1), accepted(1, ballot(1, 1), &value));
        if member == m(1) {
            let mut state =
                synod_paxos::SystemState::new(disk.genesis.as_ref().expect("the lab forms a cluster"));
            state.apply(Slot(1), &value.encode()).expect("a batch can be applied");
            (disk.applied, disk.chosen_through, disk.system) = (Slot(1), Slot(1), state.encode());
            disk.rows.get_mut(&Slot(1)).expect("it was put there").checksum ^= 1;
        }
    });
    lab.campaign(1);
    lab.settle();
    assert_eq!(lab.status(1).role, Role::Leader);
    (lab, value)
}

fn heals_everywhere(lab: &mut Lab, value: &Value) {
    for _ in 0..100 {
        lab.pass(Duration::from_millis(100));
        lab.settle();
    }
    for n in 1..=3 {
        assert_eq!(texts(lab, n), if n == 1 { Vec::new() } else { vec!["x"] }, "member {n}");
        let row = &lab.seat(n).disk.0.rows[&Slot(1)];
        assert!(row.is_intact(CLUSTER) && row.value == value.encode(), "member {n}: {row:?}");
    }
}

/// "Integrity": a damaged row heals even where its holder alone knows that it is chosen (seed 1774 of the
/// simulator): the leader gives way, and the next one brings the value back from those that accepted it.
#[test]
fn a_leader_that_lost_a_row_that_only_it_knows_chosen_gives_way() {
    let (mut lab, value) = a_row_that_only_its_leader_knows_chosen();
    heals_everywhere(&mut lab, &value);
}

/// The same where it is elected again before the others were ready to lead (seed 13925): it gives way again.
#[test]
fn who_is_elected_again_without_its_row_gives_way_again() {
    let (mut lab, value) = a_row_that_only_its_leader_knows_chosen();
    while lab.status(1).role == Role::Leader {
        lab.pass(Duration::from_millis(100));
        lab.settle();
    }
    // It waits longer than others would before it campaigns again; here nobody else's clock moves.
    for _ in 0..2 {
        lab.campaign(1);
        lab.settle();
    }
    assert_eq!(lab.status(1).role, Role::Leader, "again");
    heals_everywhere(&mut lab, &value);
}
