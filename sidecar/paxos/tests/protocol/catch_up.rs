//! docs: protocol.md, "Snapshots, checkpoints, trim": "Transfer: chunked, resumable, verified, rate-limited, off the
//! leader where possible ... each retry is faster."

use crate::lab::{CLUSTER, Lab, m};
use bytes::Bytes;
use std::time::Duration;
use synod_paxos::message::Counters;
use synod_paxos::value::{Append, Operation};
use synod_paxos::{Incarnation, Incoming, Input, Message, RequestId, Slot};

const BEAT: Duration = Duration::from_millis(100);
const LARGE: usize = 1_000_000;

/// `members` of which the first leads.
fn led(members: u64) -> Lab {
    let mut lab = Lab::new(members, |_, _| {});
    lab.campaign(1);
    lab.settle();
    lab
}

/// Appends entries of `size` bytes at the leader, each in a slot of its own, that all but `without` get.
fn fill(lab: &mut Lab, requests: std::ops::Range<u64>, size: usize, without: u64) {
    for request in requests {
        let append = Append::plain(vec![Bytes::from(vec![7; size])]);
        lab.input(1, Input::Call { request: RequestId(request), operation: Operation::Append(append) });
        lab.settle_without(without);
    }
}

fn cut_off(lab: &mut Lab, n: u64) {
    for other in lab.running().into_iter().filter(|other| *other != n) {
        lab.input(other, Input::PeerDisconnected(m(n)));
        lab.input(n, Input::PeerDisconnected(m(other)));
    }
}

/// Delivers everything, but nothing to `without`, and says that member `busy` has a lot to do wherever it says how
/// much. Gives who was asked for rows, in order.
fn settle_busy(lab: &mut Lab, busy: u64, without: Option<u64>) -> Vec<u64> {
    let mut asked = Vec::new();
    loop {
        lab.running().into_iter().for_each(|n| lab.sync(n));
        lab.mail.retain(|incoming| Some(incoming.to.0) != without);
        for incoming in &mut lab.mail {
            match &mut incoming.message {
                Message::HeartbeatReply { load, .. } => *load = if incoming.from == m(busy) { 2 } else { 1 },
                Message::LearnRequest { .. } => asked.push(incoming.to.0),
                _ => {}
            }
        }
        if !lab.deliver(|_| true) {
            asked.dedup();
            return asked;
        }
    }
}

/// "off the leader where possible", and from the member that is nearest to idle, by what each says to the leader.
#[test]
fn a_member_far_behind_asks_the_one_nearest_to_idle() {
    for (busy, idle) in [(2, 3), (3, 2)] {
        let mut lab = led(4);
        cut_off(&mut lab, 4);
        fill(&mut lab, 1..100, 10, 4);
        // The leader hears how far the others are, and how busy.
        for _ in 0..2 {
            lab.pass(BEAT);
            settle_busy(&mut lab, busy, Some(4));
        }
        lab.connect(4);
        let mut asked = Vec::new();
        for _ in 0..5 {
            lab.pass(BEAT);
            asked.extend(settle_busy(&mut lab, busy, None));
        }
        assert_eq!(lab.status(4).chosen_through, lab.status(1).chosen_through);
        assert_eq!(asked, [idle]);
    }
}

/// Rows that one member was sent since the mail was emptied.
fn served(lab: &mut Lab) -> usize {
    let count = lab.mail_of(|message| matches!(message, Message::Learned { .. }));
    lab.mail.clear();
    count
}

/// Member 3 asks for rows from `from` on: another place each time, as one that has got what it asked for before.
fn request(lab: &mut Lab, from: u64, retries: u32) {
    let message = Message::LearnRequest { from: Slot(from), through: Slot(40), retries };
    let counters = Counters { incarnation: Incarnation(1), ..Counters::default() };
    lab.input(2, Input::Message(Incoming { cluster: CLUSTER, from: m(3), counters, to: m(2), message }));
}

/// "rate-limited", and only as long as appends go on beside it.
#[test]
fn rows_are_served_at_a_pace_while_appends_go_on() {
    let mut lab = led(3);
    lab.chunk_rows = 1;
    cut_off(&mut lab, 3);
    lab.pass(Duration::from_millis(1));
    lab.settle_without(3);
    fill(&mut lab, 1..4, LARGE, 3);
    lab.connect(3);
    lab.settle_without(3);
    lab.mail.clear();
    request(&mut lab, 2, 0);
    assert_eq!(served(&mut lab), 1, "the first is served at once");
    for _ in 0..3 {
        request(&mut lab, 3, 0);
    }
    assert_eq!(served(&mut lab), 0, "the next one waits");
    let due = lab.seat(2).node.next_deadline().unwrap();
    assert!(due > lab.now && due.since(lab.now) < BEAT / 2, "{due:?}");
    lab.pass(due.since(lab.now));
    assert_eq!(served(&mut lab), 1, "asked three times, it is served once when its turn has come");
    // Nothing is appended any more.
    for _ in 0..3 {
        lab.pass(BEAT);
    }
    lab.mail.clear();
    for turn in 0..9 {
        request(&mut lab, 2 + turn % 2, 0);
        assert_eq!(served(&mut lab), 1);
    }
}

/// "each retry is faster".
#[test]
fn whoever_fell_behind_again_is_served_faster() {
    let wait = |retries: u32| {
        let mut lab = led(3);
        lab.chunk_rows = 1;
        cut_off(&mut lab, 3);
        fill(&mut lab, 1..4, LARGE, 3);
        lab.connect(3);
        lab.settle_without(3);
        lab.mail.clear();
        let began = lab.now;
        for turn in 0..20 {
            request(&mut lab, 2 + turn % 2, retries);
            while served(&mut lab) == 0 {
                let due = lab.seat(2).node.next_deadline().unwrap();
                lab.pass(due.since(lab.now));
            }
            // Appends go on.
            fill(&mut lab, 100..101, 10, 3);
        }
        lab.now.since(began)
    };
    let waits: Vec<Duration> = (0..4).map(wait).collect();
    assert!(waits.windows(2).all(|pair| pair[1] < pair[0]), "{waits:?}");
}

/// A member that catches up asks for no more than its disk takes in: its memory is bounded however fast others are.
#[test]
fn a_slow_disk_holds_back_what_is_asked_for() {
    let mut lab = led(3);
    lab.chunk_rows = 1;
    cut_off(&mut lab, 3);
    fill(&mut lab, 1..41, LARGE, 3);
    lab.connect(3);
    lab.settle();
    let rounds = |lab: &mut Lab, disk: bool| {
        for _ in 0..10 {
            lab.pass(BEAT);
            loop {
                [1, 2].into_iter().for_each(|n| lab.sync(n));
                if disk {
                    lab.sync(3);
                }
                if !lab.deliver(|_| true) {
                    break;
                }
            }
        }
    };
    let before = lab.status(3).chosen_through.0;
    rounds(&mut lab, false);
    let taken = lab.status(3).chosen_through.0 - before;
    assert!((10..25).contains(&taken), "{taken} rows of 1 MB");
    rounds(&mut lab, true);
    assert_eq!(lab.status(3).chosen_through, lab.status(1).chosen_through);
}
