//! docs: protocol.md, "Acceptor": promises in "flow-controlled chunks" that take longer than an election timeout.

use crate::batch;
use crate::lab::{Lab, accepted, ballot, m};
use std::time::Duration;
use synod_paxos::status::Role;
use synod_paxos::{Incoming, Input, Message};

/// Three members with 40 votes each, which travel one by one; the first campaigns.
fn backlog() -> Lab {
    let mut lab = Lab::new(3, |_, disk| {
        let rows = (1..=40).map(|slot| accepted(slot, ballot(1, 3), &batch("x", 1, 3)));
        disk.rows = rows.map(|row| (row.slot, row)).collect();
        disk.promised = ballot(1, 3);
    });
    lab.chunk_rows = 1;
    lab.campaign(1);
    lab
}

/// "flow-controlled chunks": a promise that takes longer than an election timeout is not overtaken by its own sender,
/// or a long backlog would keep everybody from leading.
#[test]
fn a_long_promise_is_waited_for_by_its_sender() {
    let mut lab = backlog();
    for _ in 0..10_000 {
        (1..=3).for_each(|n| lab.sync(n));
        if lab.mail_of(|m| matches!(m, Message::PromiseMore { .. })) > 0 {
            // A little for each message: many timeouts for all chunks.
            lab.pass(Duration::from_millis(50));
        }
        if !lab.deliver(|_| true) {
            break;
        }
    }
    assert_eq!(lab.status(1).role, Role::Leader);
    assert_eq!(lab.status(1).promised, ballot(2, 1), "by its first candidacy");
}

/// "flow-controlled chunks": nor does its sender promise another candidate more, or two whose promises take longer
/// than an election timeout would take turns for ever (found by the simulator).
#[test]
fn a_long_promise_is_not_interrupted_for_another_candidate() {
    let mut lab = backlog();
    let between = |a: u64, b: u64| move |i: &Incoming| [(m(a), m(b)), (m(b), m(a))].contains(&(i.from, i.to));
    while lab.mail_of(|m| matches!(m, Message::PromiseMore { .. })) == 0 {
        (1..=3).for_each(|n| lab.sync(n));
        assert!(lab.deliver(between(1, 2)));
    }
    let mut ask = |takes: bool| {
        lab.now = lab.now.after(Duration::from_secs(3));
        if takes {
            assert!(lab.deliver(between(1, 2)), "the next chunk is asked for");
        }
        lab.input(3, Input::Tick);
        assert!(lab.deliver(|i| i.to == m(2) && matches!(i.message, Message::Canvass { .. })));
        let last = lab.mail.iter().rev().find_map(|i| match i.message {
            Message::CanvassReply { willing, .. } if i.from == m(2) && i.to == m(3) => Some(willing),
            _ => None,
        });
        last.expect("it answers")
    };
    assert!(!ask(true), "while its candidate takes chunks");
    assert!(ask(false), "when it takes no more");
}
