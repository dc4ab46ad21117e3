//! Rows that one disk lost and that others have (docs: protocol.md, "Integrity").

use crate::lab::{CLUSTER, Lab, accepted, ballot, m};
use crate::{batch, texts};
use std::time::Duration;
use synod_paxos::status::Role;
use synod_paxos::value::Value;
use synod_paxos::{Slot, row};

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

/// The first has applied V and lost its row, with which the second holds it; the third holds what an older ballot had
/// proposed there.
fn a_chosen_row_that_is_missing(found: bool) -> (Lab, Value) {
    let (chosen, old) = (batch("V", 2, 1), batch("old", 1, 3));
    let mut lab = Lab::new(3, |member, disk| {
        let (by, value) = match member.0 {
            3 => (ballot(1, 3), &old),
            _ => (ballot(2, 1), &chosen),
        };
        disk.promised = by;
        if member == m(1) {
            let mut state =
                synod_paxos::SystemState::new(disk.genesis.as_ref().expect("the lab forms a cluster"));
            state.apply(Slot(1), &chosen.encode()).expect("a batch can be applied");
            (disk.applied, disk.chosen_through, disk.system) = (Slot(1), Slot(1), state.encode());
        } else {
            disk.rows.insert(Slot(1), accepted(1, by, value));
        }
    });
    if found {
        lab.input(1, synod_paxos::Input::Damaged(Slot(1)));
    }
    (lab, chosen)
}

/// The third campaigns, and of the others hears the first alone; then all hear each other.
fn never_what_was_not_chosen(lab: &mut Lab, chosen: &Value) {
    for _ in 0..40 {
        lab.now = lab.now.after(Duration::from_millis(500));
        lab.input(3, synod_paxos::Input::Tick);
        lab.settle_without(2);
    }
    let held = |lab: &mut Lab, n: u64| lab.seat(n).disk.0.rows.get(&Slot(1)).cloned();
    assert!(held(lab, 1).is_none_or(|row| row.value == chosen.encode()), "{:?}", held(lab, 1));
    assert!(texts(lab, 3).is_empty(), "{:?}", texts(lab, 3));
    for _ in 0..200 {
        lab.pass(Duration::from_millis(100));
        lab.settle();
    }
    for n in 1..=3 {
        assert_eq!(texts(lab, n), if n == 1 { Vec::new() } else { vec!["V"] }, "member {n}");
        let row = held(lab, n).unwrap_or_else(|| panic!("member {n} has no row"));
        assert!(row.is_intact(CLUSTER) && row.value == chosen.encode(), "member {n}: {row:?}");
    }
}

/// "Integrity": a row that is missing at or below what is known chosen is never read as empty. The scrubber has found
/// it.
#[test]
fn a_missing_row_bars_a_promise_over_it() {
    let (mut lab, chosen) = a_chosen_row_that_is_missing(true);
    never_what_was_not_chosen(&mut lab, &chosen);
}

/// The same where nobody has looked: the member finds it when it reads what it would promise.
#[test]
fn a_row_that_a_promise_lacks_is_found_missing() {
    let (mut lab, chosen) = a_chosen_row_that_is_missing(false);
    never_what_was_not_chosen(&mut lab, &chosen);
}

/// A start finds a row missing that its watermark says is there: like a damaged one, it bars every promise.
#[test]
fn a_start_finds_a_row_missing_below_its_watermark() {
    let value = batch("x", 1, 1);
    let mut lab = Lab::new(3, |member, disk| {
        disk.promised = ballot(1, 1);
        disk.chosen_through = Slot(1);
        if member != m(1) {
            disk.rows.insert(Slot(1), accepted(1, ballot(1, 1), &value));
        }
    });
    assert_eq!(lab.status(1).damaged, [Slot(1)]);
    lab.campaign(1);
    lab.settle();
    assert_eq!(lab.status(1).role, Role::Follower);
    lab.campaign(2);
    lab.settle();
    assert_eq!(lab.status(2).role, Role::Leader);
    for _ in 0..40 {
        lab.pass(Duration::from_millis(100));
        lab.settle();
    }
    assert_eq!(lab.status(1).damaged, []);
    assert_eq!(texts(&mut lab, 1), ["x"]);
}

/// A promise that shows no row in a slot which its sender says is chosen does not count, whoever sent it: it may be of
/// a version that promises over what it has lost.
#[test]
fn a_promise_that_lacks_a_chosen_row_does_not_count() {
    let old = batch("old", 1, 3);
    let mut lab = Lab::new(3, |member, disk| {
        disk.promised = ballot(1, 3);
        if member == m(3) {
            disk.rows.insert(Slot(1), accepted(1, ballot(1, 3), &old));
        }
    });
    lab.campaign(3);
    while lab.deliver(|i| !matches!(i.message, synod_paxos::Message::Prepare { .. })) {}
    lab.sync(3);
    let prepared = lab.mail.iter().find_map(|mail| match mail.message {
        synod_paxos::Message::Prepare { ballot, from, .. } => Some((ballot, from)),
        _ => None,
    });
    let (ballot, from) = prepared.expect("it has prepared");
    lab.mail.clear();
    let promise = synod_paxos::Message::Promise {
        ballot,
        from,
        view: synod_paxos::message::ViewId(1),
        chunk: 0,
        last: true,
        trim_through: Slot(0),
        chosen_through: Slot(1),
        rows: Vec::new(),
    };
    crate::lab::tell(&mut lab, 1, 3, promise);
    assert_eq!(lab.mail_of(|m| matches!(m, synod_paxos::Message::Accept { .. })), 0);
    assert_ne!(lab.status(3).role, Role::Leader);
}

/// "Integrity": what is lost heals at the pace of catching up, not a row a heartbeat.
#[test]
fn many_lost_rows_heal_without_waiting_for_heartbeats() {
    const LOST: u64 = 300;
    let mut lab = Lab::new(3, |_, _| {});
    lab.campaign(2);
    lab.settle();
    for n in 0..LOST {
        lab.input(2, crate::append(n + 1, None, "x"));
        lab.settle();
    }
    lab.pass(Duration::from_millis(100));
    lab.settle();
    let last = lab.status(1).chosen_through;
    assert!(last.0 >= LOST);
    for slot in (1..=last.0).map(Slot) {
        lab.seat(1).disk.0.rows.remove(&slot);
        lab.input(1, synod_paxos::Input::Damaged(slot));
    }
    let beats = 10;
    for _ in 0..beats {
        lab.pass(Duration::from_millis(100));
        lab.settle();
    }
    assert_eq!(lab.status(1).damaged, [], "after {beats} heartbeats");
    assert!((1..=last.0).all(|slot| lab.seat(1).disk.0.rows.contains_key(&Slot(slot))));
}

/// A disk that has lost a row may show the one that it took the place of. What was applied is known, and no other value is
/// told of that slot: the row heals from those that have it.
#[test]
fn an_older_row_in_an_applied_slot_is_not_told() {
    let mut lab = Lab::new(3, |_, _| {});
    lab.campaign(1);
    lab.settle();
    lab.input(1, crate::append(1, None, "V"));
    lab.settle();
    let slot = lab.status(1).applied;
    for _ in 0..3 {
        // The watermark becomes durable.
        lab.pass(Duration::from_millis(100));
        lab.settle();
    }
    let older = accepted(slot.0, ballot(1, 3), &batch("old", 1, 3));
    lab.seat(1).disk.0.rows.insert(slot, older);
    let asks = synod_paxos::Message::LearnRequest { from: slot, through: slot, retries: 0 };
    crate::lab::tell(&mut lab, 3, 1, asks);
    for incoming in &lab.mail {
        if let synod_paxos::Message::Learned { rows, .. } = &incoming.message {
            assert!(rows.is_empty(), "{rows:?}");
        }
    }
    assert_eq!(lab.status(1).damaged, [slot]);
    for _ in 0..10 {
        lab.pass(Duration::from_millis(100));
        lab.settle();
    }
    assert_eq!(lab.status(1).damaged, []);
    let healed = lab.seat(1).disk.0.rows[&slot].clone();
    let has_v = healed.value.windows(1).any(|byte| byte == b"V");
    assert!(healed.is_intact(CLUSTER) && has_v, "{healed:?}");
}

/// The same above what is chosen: a promise in which an older vote stands for the last one does not leave.
#[test]
fn an_older_vote_in_place_of_the_last_one_is_not_promised() {
    let (last, old) = (batch("V", 2, 1), batch("old", 1, 3));
    let mut lab = Lab::new(3, |member, disk| {
        disk.promised = ballot(2, 1);
        if member == m(2) {
            disk.rows.insert(Slot(1), accepted(1, ballot(2, 1), &last));
        }
    });
    lab.seat(2).disk.0.rows.insert(Slot(1), accepted(1, ballot(1, 3), &old));
    lab.campaign(3);
    for _ in 0..6 {
        (1..=3).for_each(|n| lab.sync(n));
        while lab.deliver(|i| !matches!(i.message, synod_paxos::Message::Promise { .. })) {}
    }
    let promised = lab.mail.iter().filter(|incoming| incoming.from == m(2)).find_map(|i| match &i.message {
        synod_paxos::Message::Promise { rows, .. } => Some(rows.clone()),
        _ => None,
    });
    assert_eq!(promised, None);
    // It holds the vote in memory, so the disk has it again.
    assert_eq!(lab.seat(2).disk.0.rows[&Slot(1)].ballot, ballot(2, 1));
}

/// A promise that the disk cannot give is not begun: a candidate that waited for it would keep everyone from leading.
#[test]
fn a_promise_that_cannot_be_read_is_not_begun() {
    let mut lab = Lab::new(3, |_, disk| {
        disk.promised = ballot(1, 3);
        disk.rows.insert(Slot(1), accepted(1, ballot(1, 3), &batch("x", 1, 3)));
    });
    // Every read of a view gives nothing, and no end.
    lab.chunk_rows = 0;
    lab.campaign(1);
    lab.settle();
    assert_eq!(lab.status(1).role, Role::Candidate);
    lab.chunk_rows = usize::MAX;
    for _ in 0..100 {
        lab.pass(Duration::from_millis(100));
        lab.settle();
    }
    let leads = (1..=3).any(|n| lab.status(n).role == Role::Leader);
    assert!(leads, "a leader, once the disks can be read");
}

/// "Integrity": whatever byte stands where a stored row says whether it is chosen, none but the one that was written
/// shows a row that passes its checksum (docs: decisions/0016).
#[test]
fn no_byte_but_the_written_one_says_that_a_row_is_chosen() {
    let _bench = Lab::empty();
    let value = batch("x", 1, 1).encode();
    let sum = row::checksum(CLUSTER, Slot(1), ballot(1, 1), &value);
    for written in [0, 1] {
        let stored = row::cover(sum, written);
        for found in 0..=u8::MAX {
            let (chosen, shown) = row::uncover(stored, found);
            assert_eq!(shown == sum, found == written, "{written} written, {found} found");
            assert_eq!(chosen, found != 0);
        }
    }
}
