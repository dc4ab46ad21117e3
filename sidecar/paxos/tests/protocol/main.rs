//! Rules of docs: protocol.md, one test a rule, with every message and every write in the test's hands.

mod catch_up;
mod chains;
mod damaged_snapshots;
#[allow(dead_code, reason = "shared with the scripts; each uses a part")]
mod lab;
mod leaderless;
mod leases;
mod levels;
mod long_promises;
mod lost_rows;
mod recovery;
mod rules;
mod show;
mod slow_disks;
mod slow_links;
mod snapshots;
mod timing;
mod unreadable;

use bytes::Bytes;
use lab::{Lab, accepted, ballot, m};
use std::time::Duration;
use synod_paxos::status::Role;
use synod_paxos::value::{Append, Call, Fields, Operation, Origin, Value};
use synod_paxos::{Incarnation, Index, Input, Message, Output, Refusal, Reply, RequestId, Slot};

fn batch(text: &'static str, round: u64, member: u64) -> Value {
    let origin = Origin { member: m(member), incarnation: Incarnation(1), request: RequestId(1) };
    let append = Append::plain(vec![Bytes::from_static(text.as_bytes())]);
    let call = Call { origin, operation: Operation::Append(append) };
    Value::Batch {
        ballot: ballot(round, member),
        advance: Duration::ZERO,
        fields: Fields::NONE,
        calls: vec![call],
    }
}

/// A client's append of one entry.
fn append(request: u64, expected: Option<u64>, text: &'static str) -> Input {
    let entries = vec![Bytes::from(text)];
    let append = Append { expected_index: expected.map(Index), ..Append::plain(entries) };
    Input::Call { request: RequestId(request), operation: Operation::Append(append) }
}

fn texts(lab: &mut Lab, n: u64) -> Vec<String> {
    let entries = lab.seat(n).applied.iter().flat_map(|a| a.entries.clone());
    entries.map(|e| String::from_utf8_lossy(&e.payload).into_owned()).collect()
}

/// "Leader", rule 2: `Prepare{b}` leaves only after `promised = b` is durable on the candidate itself.
#[test]
fn prepare_waits_for_the_candidates_own_disk() {
    let mut lab = Lab::new(3, |_, _| {});
    lab.campaign(1);
    while lab.deliver(|i| matches!(i.message, Message::Canvass { .. } | Message::CanvassReply { .. })) {}
    assert!(!lab.seat(1).writes.is_empty(), "the promise is on its way to the disk");
    assert_eq!(lab.mail_of(|m| matches!(m, Message::Prepare { .. })), 0);
    lab.sync(1);
    assert_eq!(lab.mail_of(|m| matches!(m, Message::Prepare { .. })), 2);
    assert_eq!(lab.seat(1).disk.0.promised, ballot(1, 1));
}

/// "Acceptor": promised is on disk before the Promise leaves, accepted before the Accepted leaves.
#[test]
fn promise_and_accepted_wait_for_the_acceptors_disk() {
    let mut lab = Lab::new(3, |_, _| {});
    lab.campaign(1);
    while lab.deliver(|i| matches!(i.message, Message::Canvass { .. } | Message::CanvassReply { .. })) {}
    lab.sync(1);
    assert!(lab.deliver(|i| i.to == m(2) && matches!(i.message, Message::Prepare { .. })));
    assert_eq!(lab.mail_of(|m| matches!(m, Message::Promise { .. })), 0);
    lab.sync(2);
    assert_eq!(lab.mail_of(|m| matches!(m, Message::Promise { .. })), 1);
    assert!(lab.deliver(|i| matches!(i.message, Message::Promise { .. })));
    assert!(lab.deliver(|i| i.to == m(2) && matches!(i.message, Message::Accept { .. })));
    assert_eq!(lab.mail_of(|m| matches!(m, Message::Accepted { .. })), 0);
    lab.sync(2);
    assert_eq!(lab.mail_of(|m| matches!(m, Message::Accepted { .. })), 1);
}

/// "Leader", rule 5: the leader's own vote counts when its write is durable; a quorum of followers chooses
/// without it.
#[test]
fn the_leaders_own_vote_waits_for_its_disk() {
    let mut lab = Lab::new(3, |_, _| {});
    lab.campaign(1);
    lab.settle();
    assert_eq!(lab.status(1).role, Role::Leader);
    let before = lab.status(1).chosen_through;
    lab.input(1, append(1, None, "x"));
    assert!(lab.deliver(|i| i.to == m(2) && matches!(i.message, Message::Accept { .. })));
    lab.sync(2);
    assert!(lab.deliver(|i| i.from == m(2) && matches!(i.message, Message::Accepted { .. })));
    assert_eq!(lab.status(1).chosen_through, before, "one follower's vote is no quorum");
    lab.sync(1);
    assert_eq!(lab.status(1).chosen_through, before.next());
}

/// The reconciliation table of the first seed, with slots counted from 1: slots 1 and 2 are known chosen and
/// stay untouched, 3 is adopted, 4 gets a no-op, 5 is proposed again though a majority holds it.
#[test]
fn a_new_leader_reconciles_what_its_predecessor_left() {
    let old = ballot(1, 3);
    let mut lab = Lab::new(3, |member, disk| {
        disk.promised = old;
        let rows: &[(u64, &str)] = match member.0 {
            1 => &[(1, "C0"), (2, "C1"), (3, "C2"), (5, "C4")],
            2 => &[(1, "C0"), (2, "C1"), (5, "C4")],
            _ => &[(1, "C0"), (2, "C1")],
        };
        for (slot, text) in rows {
            let text: &'static str = match *text {
                "C0" => "C0",
                "C1" => "C1",
                "C2" => "C2",
                _ => "C4",
            };
            disk.rows.insert(Slot(*slot), accepted(*slot, old, &batch(text, 1, 3)));
        }
        disk.chosen_through = Slot(2);
    });
    lab.seats.remove(&m(3));
    lab.campaign(1);
    let mut proposed = Vec::new();
    loop {
        for incoming in &lab.mail {
            if let Message::Accept { slot, value, .. } = &incoming.message
                && incoming.to == m(2)
            {
                proposed.push((slot.0, Value::decode(value.clone()).unwrap()));
            }
        }
        lab.sync(1);
        lab.sync(2);
        if !lab.deliver(|_| true) && lab.seats.values().all(|s| s.writes.is_empty()) {
            break;
        }
    }
    proposed.sort_by_key(|(slot, _)| *slot);
    proposed.dedup();
    let mine = ballot(2, 1);
    let expected = [
        (3, batch("C2", 1, 3)),
        (4, Value::NoOp),
        (5, batch("C4", 1, 3)),
        (6, Value::LeaderStart { ballot: mine }),
    ];
    assert_eq!(proposed, expected);
    assert_eq!(texts(&mut lab, 1), ["C0", "C1", "C2", "C4"]);
}

/// "Leader", rule 3: the value accepted under the highest ballot is adopted (P2c of *Paxos Made Simple*).
#[test]
fn the_highest_ballot_is_adopted() {
    let (low, high) = (ballot(1, 3), ballot(2, 2));
    let mut lab = Lab::new(3, |member, disk| {
        disk.promised = high;
        let row = match member.0 {
            1 => accepted(1, low, &batch("low", 1, 3)),
            2 => accepted(1, high, &batch("high", 2, 2)),
            _ => return,
        };
        disk.rows.insert(Slot(1), row);
    });
    lab.seats.remove(&m(3));
    lab.campaign(1);
    lab.settle();
    assert_eq!(texts(&mut lab, 1), ["high"]);
}

/// "Leader", rule 6: a follower takes a slot as chosen only if its row has *exactly* the ballot of the message
/// that says so; otherwise it asks for the value.
#[test]
fn an_older_ballots_row_is_not_taken_as_chosen() {
    let old = ballot(1, 3);
    let mut lab = Lab::new(3, |member, disk| {
        if member == m(2) {
            disk.promised = old;
            disk.rows.insert(Slot(1), accepted(1, old, &batch("stale", 1, 3)));
        }
    });
    // 1 leads with 3 and chooses two slots; 2 hears nothing of it.
    lab.campaign(1);
    lab.settle_without(2);
    lab.input(1, append(1, None, "new"));
    lab.settle_without(2);
    assert_eq!(lab.status(1).chosen_through, Slot(2));
    // Now 2 hears a heartbeat that says that slot 1 is chosen; its own row there is another ballot's.
    lab.pass(Duration::from_millis(100));
    assert!(lab.deliver(|i| i.to == m(2) && matches!(i.message, Message::Heartbeat { .. })));
    assert_eq!(lab.status(2).chosen_through, Slot(0));
    assert!(texts(&mut lab, 2).is_empty());
    // It asks, and learns what was chosen.
    for _ in 0..5 {
        lab.pass(Duration::from_millis(100));
        lab.settle();
    }
    assert_eq!(texts(&mut lab, 2), ["new"]);
}

/// "Leader", rule 7: a Nack above its current ballot ends leadership; what was queued is not lost.
#[test]
fn a_nack_ends_leadership() {
    let mut lab = Lab::new(3, |_, _| {});
    lab.campaign(1);
    lab.settle();
    let counters = synod_paxos::message::Counters { incarnation: Incarnation(1), ..Default::default() };
    let message = Message::Nack { ballot: ballot(1, 1), promised: ballot(7, 2) };
    let incoming = synod_paxos::Incoming { cluster: lab::CLUSTER, from: m(2), counters, to: m(1), message };
    lab.input(1, Input::Message(incoming));
    assert_ne!(lab.status(1).role, Role::Leader);
    lab.campaign(1);
    lab.settle();
    let status = lab.status(1);
    assert_eq!((status.role, status.promised.round), (Role::Leader, 8), "a ballot above every round seen");
}

/// "Sessions": `expected_index` is judged at apply, against the last index before the call.
#[test]
fn an_unexpected_index_is_refused_at_apply() {
    let mut lab = Lab::new(1, |_, _| {});
    lab.campaign(1);
    lab.settle();
    lab.input(1, append(1, Some(0), "x"));
    lab.input(1, append(2, Some(0), "x"));
    lab.input(1, append(3, Some(1), "x"));
    lab.settle();
    let replies: Vec<_> = lab
        .seat(1)
        .other
        .iter()
        .filter_map(|output| match output {
            Output::CallReply { request, outcome } => Some((request.0, outcome.clone())),
            _ => None,
        })
        .collect();
    let refused = Err(Refusal::UnexpectedIndex { tail: Index(1) });
    let at = |index| Ok(Reply::Appended { first: Index(index), last: Index(index), repeat: false });
    assert_eq!(replies, [(1, at(1)), (2, refused), (3, at(2))]);
}

/// "Configurations": a member promises nothing until it knows that every listed member holds this genesis.
#[test]
fn nobody_leads_before_every_founder_holds_the_genesis() {
    let mut lab = Lab::new(3, |member, disk| {
        if member == m(3) {
            disk.genesis = None;
        }
        disk.genesis_confirmed = false;
    });
    lab.campaign(1);
    lab.settle();
    assert_eq!(lab.status(1).role, Role::None);
    lab.admin(3, synod_paxos::AdminCommand::Initialize(lab::genesis(3)));
    lab.settle();
    lab.pass(Duration::from_millis(200));
    lab.settle();
    lab.campaign(1);
    lab.settle();
    assert_eq!(lab.status(1).role, Role::Leader);
}

/// "Identity and amnesia": a live handshake that shows less than the remembered maximum fences the disk.
#[test]
fn a_disk_restored_from_an_old_copy_is_fenced() {
    let mut lab = Lab::new(3, |member, disk| {
        if member != m(3) {
            let counters = synod_paxos::message::Counters {
                incarnation: Incarnation(4),
                written: synod_paxos::WriteCounter(1_000),
            };
            disk.peers.insert(m(3), counters);
        }
    });
    // Its own messages show an earlier boot than its peers remember, so they are dropped; what it hears of
    // itself from a live peer fences it.
    lab.seat(3).disk.0.incarnation = Incarnation(4);
    let mut disk = lab.seat(3).disk.0.clone();
    disk.boot();
    let node = synod_paxos::Node::new(disk.clone(), lab.now, 33).unwrap();
    lab.seat(3).node = node;
    lab.seat(3).disk.0 = disk;
    lab.mail.clear();
    lab.input(3, Input::PeerConnected(m(1)));
    lab.settle();
    let state = lab.status(3).state;
    assert!(matches!(state, synod_paxos::status::MemberState::Fenced(_)), "{state:?}");
    assert!(lab.seat(3).disk.0.fenced.is_some(), "the fence is on disk");
}
