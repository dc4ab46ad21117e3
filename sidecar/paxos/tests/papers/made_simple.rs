//! L. Lamport: *Paxos Made Simple*, 2001.

use super::{accept, answer, append, batch, elect, held, prepare, proposals, settle_among, tell, texts};
use crate::lab::{CLUSTER, Lab, accepted, ballot, m};
use synod_paxos::status::Role;
use synod_paxos::system::SystemState;
use synod_paxos::value::Value;
use synod_paxos::{Message, Row, Slot, row};

/// Section 2.2, P1: "An acceptor must accept the first proposal that it receives."
#[test]
fn p1_the_first_proposal_is_accepted() {
    let mut lab = Lab::new(3, |_, _| {});
    let value = batch("first", ballot(1, 1));
    tell(&mut lab, 1, 2, accept(ballot(1, 1), 1, &value));
    assert_eq!(answer(&mut lab, 2), "Accepted");
    assert_eq!(held(&mut lab, 2, 1), Some((ballot(1, 1), value)));
}

/// Section 2.2, P1a: "An acceptor can accept a proposal numbered n iff it has not responded to a prepare request
/// having a number greater than n." One promise covers every slot.
#[test]
fn p1a_an_accept_below_a_promise_is_refused_and_no_other() {
    let mut lab = Lab::new(3, |_, _| {});
    tell(&mut lab, 3, 2, prepare(ballot(2, 3), 1));
    assert_eq!(answer(&mut lab, 2), "Promise");
    for slot in [1, 7] {
        tell(&mut lab, 1, 2, accept(ballot(2, 1), slot, &Value::NoOp));
        assert_eq!(answer(&mut lab, 2), "Nack");
        assert_eq!(held(&mut lab, 2, slot), None);
    }
    tell(&mut lab, 3, 2, accept(ballot(2, 3), 1, &Value::NoOp));
    assert_eq!(answer(&mut lab, 2), "Accepted", "equal to the promise");
    tell(&mut lab, 1, 2, accept(ballot(3, 1), 2, &Value::NoOp));
    assert_eq!(answer(&mut lab, 2), "Accepted", "above the promise");
    assert_eq!(lab.status(2).promised, ballot(3, 1));
}

/// Section 2.2: a prepare request numbered below what was promised needs no promise; section 2.3: "it should
/// probably inform the proposer, who should then abandon its proposal".
#[test]
fn a_prepare_below_a_promise_is_refused_and_ends_the_proposer() {
    let mut lab = Lab::new(3, |_, disk| {
        if disk.member == m(2) {
            disk.promised = ballot(4, 3);
        }
    });
    lab.campaign(1);
    settle_among(&mut lab, &[1, 3]);
    tell(&mut lab, 1, 2, prepare(ballot(1, 1), 1));
    assert_eq!(lab.mail.iter().filter(|i| matches!(i.message, Message::Nack { .. })).count(), 1);
    assert!(lab.deliver(|i| matches!(i.message, Message::Nack { .. })));
    assert_eq!(lab.status(1).role, Role::Follower);
}

/// Section 2.2, P2c: "For any v and n, if a proposal with value v and number n is issued, then there is a set S
/// consisting of a majority of acceptors such that either (a) no acceptor in S has accepted any proposal numbered
/// less than n, or (b) v is the value of the highest-numbered proposal among all proposals numbered less than n
/// accepted by the acceptors in S." Every case of three acceptors with two earlier proposals, and both majorities.
#[test]
fn p2c_the_highest_numbered_proposal_of_a_majority_binds() {
    let earlier = [None, Some((ballot(1, 3), "low")), Some((ballot(2, 2), "high"))];
    let mut cases = 0;
    for case in 0..27 {
        let holds = |n: u64| earlier[(case / [1, 3, 9][n as usize - 1]) % 3];
        for other in [2, 3] {
            let mut lab = Lab::new(3, |member, disk| {
                disk.promised = ballot(2, 2);
                if let Some((under, text)) = holds(member.0) {
                    disk.rows.insert(Slot(1), accepted(1, under, &batch(text, under)));
                }
            });
            lab.campaign(1);
            let proposed = proposals(&mut lab, other, &[1, other]);
            let bound = holds(1).max(holds(other)).map(|(under, text)| batch(text, under));
            let start = Value::LeaderStart { ballot: ballot(3, 1) };
            let expected = bound.unwrap_or(start);
            assert_eq!(proposed.first(), Some(&(1, expected)), "case {case}, with {other}");
            cases += 1;
        }
    }
    assert_eq!(cases, 54);
}

/// Section 2.2, P2: "If a proposal with value v is chosen, then every higher-numbered proposal that is chosen has
/// value v": the next leader's majority meets the one that chose.
#[test]
fn p2_a_chosen_value_stays() {
    let mut lab = Lab::new(3, |_, _| {});
    elect(&mut lab, 1, &[1, 2]);
    append(&mut lab, 1, 1, "chosen");
    settle_among(&mut lab, &[1, 2]);
    assert_eq!(texts(&mut lab, 1), ["chosen"]);
    for leader in [3, 2, 3] {
        elect(&mut lab, leader, &[2, 3]);
        lab.pass(std::time::Duration::from_millis(10));
        settle_among(&mut lab, &[2, 3]);
    }
    assert_eq!(texts(&mut lab, 3), ["chosen"]);
}

/// Section 2.2: an acceptor "must remember this information even if it fails and then is restarted": the highest
/// number it has promised, and the highest-numbered proposal that it has accepted.
#[test]
fn an_acceptor_remembers_across_a_restart() {
    let mut lab = Lab::new(3, |_, _| {});
    tell(&mut lab, 1, 2, accept(ballot(1, 1), 1, &batch("kept", ballot(1, 1))));
    assert_eq!(answer(&mut lab, 2), "Accepted");
    tell(&mut lab, 3, 2, prepare(ballot(2, 3), 1));
    assert_eq!(answer(&mut lab, 2), "Promise");
    lab.crash(2);
    lab.restart(2);
    lab.settle();
    tell(&mut lab, 1, 2, accept(ballot(1, 1), 2, &Value::NoOp));
    assert_eq!(answer(&mut lab, 2), "Nack");
    tell(&mut lab, 3, 2, prepare(ballot(3, 3), 1));
    lab.sync(2);
    let reported = lab.mail.iter().find_map(|i| match &i.message {
        Message::Promise { rows, .. } => Some(rows.clone()),
        _ => None,
    });
    let row = accepted(1, ballot(1, 1), &batch("kept", ballot(1, 1)));
    assert_eq!(reported, Some(vec![row]));
}

/// Section 2.5: "Different proposers choose their numbers from disjoint sets of numbers", and each remembers "the
/// highest-numbered proposal it has tried to issue": no number is used twice, not even across a restart.
#[test]
fn a_number_is_never_used_twice() {
    let mut lab = Lab::new(3, |_, _| {});
    let mut used = Vec::new();
    for _ in 0..3 {
        lab.campaign(1);
        settle_among(&mut lab, &[1, 2]);
        used.push(lab.status(1).promised);
        lab.crash(1);
        lab.restart(1);
        lab.settle();
    }
    assert!(used.windows(2).all(|pair| pair[0] < pair[1]), "{used:?}");
    assert!(used.iter().all(|b| b.member == m(1)));
}

/// Section 3, the example: the new leader knows commands 1 to 134, 138 and 139; phase 1 for 135 to 137 and for all
/// above 139 shows constrained values in 135 and 140 only. It proposes those, fills 136 and 137 with a "no-op"
/// command, and leaves 138 and 139 alone. Its own first command comes behind.
#[test]
fn the_example_with_slots_135_to_140() {
    let old = ballot(1, 3);
    let known = |slot: u64, chosen: bool| {
        let value = batch(&format!("c{slot}"), old).encode();
        let checksum = row::checksum(CLUSTER, Slot(slot), old, &value);
        Row { slot: Slot(slot), ballot: old, chosen, value, checksum }
    };
    let mut lab = Lab::new(3, |member, disk| {
        let mut system = SystemState::new(disk.genesis.as_ref().expect("a founder"));
        for slot in 1..=134 {
            system.apply(Slot(slot), &known(slot, true).value).expect("a value");
        }
        disk.promised = old;
        disk.chosen_through = Slot(134);
        disk.applied = Slot(134);
        disk.system = system.encode();
        let above: &[(u64, bool)] = match member.0 {
            1 => &[(138, true), (139, true)],
            2 => &[(135, false), (138, false), (139, false), (140, false)],
            _ => &[],
        };
        disk.rows.extend(above.iter().map(|(slot, chosen)| (Slot(*slot), known(*slot, *chosen))));
    });
    lab.campaign(1);
    let proposed = proposals(&mut lab, 2, &[1, 2]);
    let expected = [
        (135, batch("c135", old)),
        (136, Value::NoOp),
        (137, Value::NoOp),
        (140, batch("c140", old)),
        (141, Value::LeaderStart { ballot: ballot(2, 1) }),
    ];
    assert_eq!(proposed, expected);
    assert_eq!(texts(&mut lab, 1), ["c135", "c138", "c139", "c140"]);
    assert_eq!(lab.status(1).role, Role::Leader);
}
