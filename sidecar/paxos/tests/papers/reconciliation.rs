//! The reconciliation table of the text "Multi-Paxos" (the first of the texts that this project began with): what
//! a new leader finds in slots 0 to 4 of acceptors A1 to A3, and what it does. Its slot n is our slot n + 1.

use super::{batch, lead, proposals, rest, texts};
use crate::lab::{Lab, accepted, ballot};
use synod_paxos::value::Value;
use synod_paxos::{DurableState, Message, Slot};

/// | slot | A1 | A2 | A3 |
/// |---|---|---|---|
/// | 0 | C0 | C0 | C0 |
/// | 1 | C1 | C1 | C1 |
/// | 2 | C2 | | |
/// | 3 | | | |
/// | 4 | C4 | C4 | |
const TABLE: [&[(u64, &str)]; 3] = [
    &[(1, "C0"), (2, "C1"), (3, "C2"), (5, "C4")],
    &[(1, "C0"), (2, "C1"), (5, "C4")],
    &[(1, "C0"), (2, "C1")],
];

/// Who tells that everything up to slot 1 of the text is chosen.
fn table(knows: &[u64]) -> Lab {
    let old = ballot(1, 2);
    Lab::new(3, |member, disk: &mut DurableState| {
        disk.promised = old;
        for (slot, text) in TABLE[member.0 as usize - 1] {
            disk.rows.insert(Slot(*slot), accepted(*slot, old, &batch(text, old)));
        }
        if knows.contains(&member.0) {
            disk.chosen_through = Slot(2);
        }
    })
}

/// Slots 0 and 1 stay untouched because a `chosen_through` of 1 is known; 2 is adopted; 3 gets a no-op; 4 is
/// proposed again, although a majority seems to have it.
#[test]
fn the_table() {
    let old = ballot(1, 2);
    let mut lab = table(&[1, 2, 3]);
    lab.campaign(1);
    let expected = [
        (3, batch("C2", old)),
        (4, Value::NoOp),
        (5, batch("C4", old)),
        (6, Value::LeaderStart { ballot: ballot(2, 1) }),
    ];
    assert_eq!(proposals(&mut lab, 3, &[1, 3]), expected);
    assert_eq!(texts(&mut lab, 1), ["C0", "C1", "C2", "C4"]);
}

/// The same where the new leader does not know itself that slots 0 and 1 are chosen, and A1 reports it: it learns
/// them, and proposes nothing there.
#[test]
fn what_is_reported_chosen_is_learnt_and_not_proposed() {
    let old = ballot(1, 2);
    let mut lab = table(&[1]);
    lab.campaign(3);
    let proposed = proposals(&mut lab, 1, &[1, 3]);
    assert_eq!(proposed, [], "it learns first, and campaigns again");
    assert_eq!(texts(&mut lab, 3), ["C0", "C1"]);
    lab.campaign(3);
    let expected = [
        (3, batch("C2", old)),
        (4, Value::NoOp),
        (5, batch("C4", old)),
        (6, Value::LeaderStart { ballot: ballot(2, 3) }),
    ];
    assert_eq!(proposals(&mut lab, 1, &[1, 3]), expected);
}

/// Without A1's answer slot 2 was accepted by nobody that the leader hears: it may be given to a no-op, and C2 is
/// then refused for ever; slot 4 is still re-proposed.
#[test]
fn a_value_that_no_majority_has_may_be_lost() {
    let old = ballot(1, 2);
    let mut lab = table(&[1, 2, 3]);
    lab.campaign(2);
    let proposed = proposals(&mut lab, 3, &[2, 3]);
    assert_eq!(proposed[..3], [(3, Value::NoOp), (4, Value::NoOp), (5, batch("C4", old))]);
    // A1 comes back with C2 and campaigns: it learns that a no-op was chosen.
    rest(&mut lab, &[2, 3]);
    lead(&mut lab, 1);
    assert_eq!(texts(&mut lab, 1), ["C0", "C1", "C4"]);
}

/// "The new leader must reconcile the log before accepting new commands": an append that came early is proposed
/// behind everything that recovery decides.
#[test]
fn new_commands_come_behind_recovery() {
    let mut lab = table(&[1, 2, 3]);
    lab.campaign(1);
    super::append(&mut lab, 1, 1, "new");
    let proposed = proposals(&mut lab, 2, &[1, 2]);
    let slots: Vec<u64> = proposed.iter().map(|(slot, _)| *slot).collect();
    assert_eq!(slots, [3, 4, 5, 6, 7]);
    assert!(matches!(&proposed[4].1, Value::Batch { ballot: b, .. } if *b == ballot(2, 1)));
    assert_eq!(texts(&mut lab, 1).last().map(String::as_str), Some("new"));
    assert_eq!(lab.mail.iter().filter(|i| matches!(i.message, Message::Nack { .. })).count(), 0);
}
