//! Statements of the papers and texts that Synod follows, one test a statement, on the real core with every
//! message and every write in the test's hands.
//!
//! Slots count from 1 here; slot n of a text that counts from 0 is our slot n + 1.

#[allow(dead_code, reason = "shared with the tests of single rules; each uses a part")]
#[path = "../protocol/lab.rs"]
mod lab;
mod made_live;
mod made_simple;
mod reconciliation;
#[path = "../protocol/show.rs"]
mod show;
mod submissions;
mod window;

use lab::{CLUSTER, Lab, ballot, m};
use synod_paxos::message::Counters;
use synod_paxos::value::{Append, Call, Fields, Operation, Origin, Value};
use synod_paxos::{Ballot, Incarnation, Incoming, Input, Message, RequestId, Slot, row};

/// A batch with one entry, as the leader of `under` took it.
fn batch(text: &str, under: Ballot) -> Value {
    let origin = Origin { member: under.member, incarnation: Incarnation(1), request: RequestId(1) };
    let entries = vec![bytes::Bytes::from(text.to_string())];
    let call = Call { origin, operation: Operation::Append(Append::plain(entries)) };
    Value::Batch {
        ballot: under,
        advance: std::time::Duration::ZERO,
        fields: Fields::NONE,
        calls: vec![call],
    }
}

/// Hands a message to a member as if another had sent it.
fn tell(lab: &mut Lab, from: u64, to: u64, message: Message) {
    let counters = Counters { incarnation: Incarnation(1), ..Counters::default() };
    lab.input(to, Input::Message(Incoming { cluster: CLUSTER, from: m(from), counters, to: m(to), message }));
}

fn prepare(ballot: Ballot, from: u64) -> Message {
    Message::Prepare { ballot, from: Slot(from), hand_over: None }
}

fn accept(ballot: Ballot, slot: u64, value: &Value) -> Message {
    let (slot, value) = (Slot(slot), value.encode());
    let checksum = row::checksum(CLUSTER, slot, ballot, &value);
    Message::Accept { ballot, slot, value, checksum, chosen_through: Slot(0), has_quorum: false }
}

fn append(lab: &mut Lab, at: u64, request: u64, text: &str) {
    let entries = vec![bytes::Bytes::from(text.to_string())];
    let operation = Operation::Append(Append::plain(entries));
    lab.input(at, Input::Call { request: RequestId(request), operation });
}

/// What a member answered last, and nobody has read: its kind, taken out of the mail.
fn answer(lab: &mut Lab, from: u64) -> String {
    lab.sync(from);
    let kinds: Vec<String> =
        lab.mail.iter().filter(|i| i.from == m(from)).map(|i| show::kind(&i.message)).collect();
    lab.mail.retain(|i| i.from != m(from));
    kinds.join(" ")
}

/// Makes `n` a leader by the votes of `quorum`, which includes it, and loses everything else.
fn elect(lab: &mut Lab, n: u64, quorum: &[u64]) {
    lab.campaign(n);
    settle_among(lab, quorum);
}

/// Lets `n` campaign until it leads; everyone hears everyone.
fn lead(lab: &mut Lab, n: u64) {
    for _ in 0..5 {
        if lab.status(n).role == synod_paxos::status::Role::Leader {
            return;
        }
        lab.campaign(n);
        lab.settle();
    }
    panic!("{n} does not come to lead:\n{}", lab.log.join("\n"));
}

/// Lets a leader's followers hear, and write down, what is chosen.
fn rest(lab: &mut Lab, members: &[u64]) {
    for _ in 0..4 {
        lab.pass(std::time::Duration::from_millis(100));
        settle_among(lab, members);
    }
}

/// Delivers among `members` until nothing more happens; what is for others is lost.
fn settle_among(lab: &mut Lab, members: &[u64]) {
    loop {
        members.iter().for_each(|n| lab.sync(*n));
        lab.mail.retain(|i| members.contains(&i.to.0) && members.contains(&i.from.0));
        if !lab.deliver(|_| true) && members.iter().all(|n| lab.seat(*n).writes.is_empty()) {
            return;
        }
    }
}

/// What `settle_among` would propose on the way: slot and value of every Accept to one member, once each.
fn proposals(lab: &mut Lab, to: u64, members: &[u64]) -> Vec<(u64, Value)> {
    let mut proposed = Vec::new();
    loop {
        members.iter().for_each(|n| lab.sync(*n));
        lab.mail.retain(|i| members.contains(&i.to.0) && members.contains(&i.from.0));
        for incoming in lab.mail.iter().filter(|i| i.to == m(to)) {
            if let Message::Accept { slot, value, .. } = &incoming.message {
                proposed.push((slot.0, Value::decode(value.clone()).expect("a value")));
            }
        }
        if !lab.deliver(|_| true) && members.iter().all(|n| lab.seat(*n).writes.is_empty()) {
            break;
        }
    }
    proposed.sort_by_key(|(slot, _)| *slot);
    proposed.dedup();
    proposed
}

fn texts(lab: &mut Lab, n: u64) -> Vec<String> {
    let entries = lab.seat(n).applied.iter().flat_map(|a| a.entries.clone());
    entries.map(|e| show::text(&e.payload)).collect()
}

/// The row that a member's disk holds in a slot: ballot and value.
fn held(lab: &mut Lab, n: u64, slot: u64) -> Option<(Ballot, Value)> {
    let row = lab.seat(n).disk.0.rows.get(&Slot(slot))?;
    Some((row.ballot, Value::decode(row.value.clone()).expect("a value")))
}

#[test]
fn the_bench_elects() {
    let mut lab = Lab::new(3, |_, _| {});
    elect(&mut lab, 1, &[1, 2]);
    assert_eq!(lab.status(1).role, synod_paxos::status::Role::Leader);
    assert_eq!(lab.status(3).promised, ballot(0, 0));
}
