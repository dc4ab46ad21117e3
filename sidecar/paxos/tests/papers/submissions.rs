//! The three pictures of the WeChat backend team's text on Multi-Paxos: parallel submission, only one node submits,
//! another one submits at instance 4. Nodes A, B and C are members 1, 2 and 3; 1(A) is ballot 1.1. The first slot
//! of a leader is its LeaderStart, so instance n is slot n + 1.

use super::{answer, append, elect, prepare, settle_among, tell, texts};
use crate::lab::{Lab, ballot, m};
use std::time::Duration;
use synod_paxos::status::Role;
use synod_paxos::{Ballot, Message, Slot};

fn count(lab: &Lab, what: &str) -> usize {
    lab.log.iter().filter(|line| line.contains(what)).count()
}

/// Picture "evolution when only node A submits": one Prepare, whose promise holds for Instance[i, ∞), then Accepts
/// alone, all under the same number.
#[test]
fn only_one_node_submits() {
    let mut lab = Lab::new(3, |_, _| {});
    elect(&mut lab, 1, &[1, 2, 3]);
    for request in 1..=5 {
        append(&mut lab, 1, request, &format!("v{request}"));
        settle_among(&mut lab, &[1, 2, 3]);
    }
    assert_eq!(texts(&mut lab, 1), ["v1", "v2", "v3", "v4", "v5"]);
    let sent = |what: &str| count(&lab, &format!("  1>2 {what}"));
    assert_eq!(sent("Prepare"), 1);
    assert_eq!(sent("Accept s"), 6);
    assert_eq!(count(&lab, "@b1.1"), count(&lab, "@b"), "one number throughout");
    assert_eq!(count(&lab, "Nack"), 0);
}

/// Picture "node B submits at instance 4": instances 1 to 3 need no Prepare; then Promised(b) becomes 2(B), node
/// A's Accept is rejected, and A must raise its number to compete.
#[test]
fn another_node_interrupts_at_instance_4() {
    let mut lab = Lab::new(3, |_, _| {});
    elect(&mut lab, 1, &[1, 2, 3]);
    for request in 1..=3 {
        append(&mut lab, 1, request, &format!("a{request}"));
        settle_among(&mut lab, &[1, 2, 3]);
    }
    assert_eq!(count(&lab, "  1>2 Prepare"), 1);
    // B learns what is chosen, hears nothing for long, and prepares.
    lab.pass(Duration::from_millis(100));
    settle_among(&mut lab, &[1, 2, 3]);
    lab.campaign(2);
    while lab.deliver(|i| i.to != m(1) && i.from != m(1)) {
        lab.sync(2);
        lab.sync(3);
        if lab.status(2).promised == ballot(2, 2) && lab.status(3).promised == ballot(2, 2) {
            break;
        }
    }
    assert_eq!(lab.status(3).promised, ballot(2, 2));
    // A still thinks that it leads: its Accept in instance 4 is rejected.
    append(&mut lab, 1, 4, "a4");
    assert!(lab.deliver(|i| i.from == m(1) && i.to == m(3) && matches!(i.message, Message::Accept { .. })));
    assert!(lab.deliver(|i| i.to == m(1) && matches!(i.message, Message::Nack { .. })));
    assert_ne!(lab.status(1).role, Role::Leader);
    assert_eq!(texts(&mut lab, 1), ["a1", "a2", "a3"]);
    // To compete it must raise its number.
    lab.mail.clear();
    lab.campaign(1);
    settle_among(&mut lab, &[1, 3]);
    assert!(lab.status(1).promised > ballot(2, 2));
    assert_eq!(lab.status(1).role, Role::Leader);
    assert_eq!(texts(&mut lab, 1), ["a1", "a2", "a3", "a4"], "its own disk held a4: recovered");
}

/// Picture "parallel submission of nodes A/B/C": each Prepare raises what the others have promised, so each must
/// prepare again with a larger number for every attempt, and nothing is decided until one is left alone.
#[test]
fn parallel_submission_raises_numbers_without_end() {
    let mut lab = Lab::new(3, |_, _| {});
    let mut numbers: Vec<Ballot> = Vec::new();
    for turn in 0..9 {
        let node = turn % 3 + 1;
        // Its phase 1 goes through; its Accepts come after the next node's Prepare.
        lab.campaign(node);
        for _ in 0..50 {
            (1..=3).for_each(|n| lab.sync(n));
            lab.deliver(|i| {
                (i.from == m(node) || i.to == m(node)) && !matches!(i.message, Message::Accept { .. })
            });
        }
        numbers.push(lab.status(node).promised);
        while lab.deliver(|i| i.from != m(node) && matches!(i.message, Message::Accept { .. })) {}
    }
    assert!(numbers.windows(2).all(|pair| pair[0].round < pair[1].round), "{numbers:?}");
    assert!((1..=3).all(|n| lab.status(n).chosen_through == Slot(0)), "nothing was decided");
    assert!(count(&lab, "Nack") > 0);
    // Left alone, the last one needs one round trip.
    lab.settle();
    assert_eq!(lab.status(3).role, Role::Leader);
}

/// "When an Accept is received from another node, reject new submissions for a short time": whoever has heard a
/// leader is not willing, and does not campaign itself, until the timeout has passed.
#[test]
fn an_accept_keeps_others_from_submitting() {
    let mut lab = Lab::new(3, |_, _| {});
    elect(&mut lab, 1, &[1, 2, 3]);
    append(&mut lab, 1, 1, "v");
    settle_among(&mut lab, &[1, 2, 3]);
    lab.log.clear();
    lab.pass(Duration::from_millis(900));
    lab.mail.clear();
    assert_eq!(count(&lab, "Canvass"), 0, "nobody campaigns");
    lab.pass(Duration::from_millis(2_000));
    assert!(count(&lab, "Canvass") > 0, "until it has heard nothing for long");
}

/// "Skipping Prepare is safe because the number has been promised": an Accept whose number was not promised, and
/// lies below what was, is rejected, whoever sends it.
#[test]
fn skipping_prepare_needs_the_promise() {
    let mut lab = Lab::new(3, |_, _| {});
    tell(&mut lab, 2, 3, prepare(ballot(2, 2), 1));
    assert_eq!(answer(&mut lab, 3), "Promise");
    let value = super::batch("a", ballot(1, 1));
    for slot in 1..=4 {
        tell(&mut lab, 1, 3, super::accept(ballot(1, 1), slot, &value));
        assert_eq!(answer(&mut lab, 3), "Nack");
    }
}
