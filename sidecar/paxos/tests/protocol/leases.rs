//! docs: protocol.md, "Leases and reads".

use crate::append;
use crate::lab::{Lab, ballot, m};
use std::time::Duration;
use synod_paxos::message::Counters;
use synod_paxos::status::Role;
use synod_paxos::{Consistency, Incarnation, Incoming, Index, Input, Message, Output, RequestId, Slot};

const SECOND: Duration = Duration::from_secs(1);
const BEAT: Duration = Duration::from_millis(100);

/// Three members with leases on, of which the first leads and has its lease.
fn leased() -> Lab {
    let mut lab = Lab::new(3, |_, disk| {
        if let Some(genesis) = &mut disk.genesis {
            genesis.settings.leases = true;
        }
    });
    lab.campaign(1);
    lab.settle();
    // The first heartbeats tell the followers how long a lease to note on disk, the next are granted.
    for _ in 0..3 {
        beat(&mut lab);
    }
    assert!(lab.status(1).lease, "a quorum has granted");
    lab
}

/// A tick of the leader, and everything that follows from it.
fn beat(lab: &mut Lab) {
    lab.now = lab.now.after(BEAT);
    lab.input(1, Input::Tick);
    lab.settle();
}

/// A Prepare of member `from` to member 2, as if it had campaigned without a canvass.
fn prepare(lab: &mut Lab, from: u64, round: u64) {
    let counters = Counters { incarnation: Incarnation(1), ..Counters::default() };
    let next = lab.status(2).chosen_through.next();
    let message = Message::Prepare { ballot: ballot(round, from), from: next, hand_over: None };
    let cluster = crate::lab::CLUSTER;
    lab.input(2, Input::Message(Incoming { cluster, from: m(from), counters, to: m(2), message }));
}

fn reads(lab: &mut Lab, n: u64) -> Vec<(u64, Index)> {
    let outputs = lab.seat(n).other.iter();
    outputs
        .filter_map(|output| match output {
            Output::ReadReady { request, outcome: Ok(index) } => Some((request.0, *index)),
            _ => None,
        })
        .collect()
}

fn read(lab: &mut Lab, n: u64, request: u64) {
    lab.input(n, Input::Read { request: RequestId(request), consistency: Consistency::Linearizable });
}

/// "while it lives, another's Prepare answers `Busy`", and not a moment longer.
#[test]
fn nobody_else_is_promised_anything_while_a_lease_lives() {
    let mut lab = leased();
    let promised = lab.status(2).promised;
    prepare(&mut lab, 3, 9);
    assert_eq!(lab.mail_of(|m| matches!(m, Message::Busy { .. })), 1);
    assert_eq!(lab.status(2).promised, promised);
    lab.now = lab.now.after(SECOND);
    prepare(&mut lab, 3, 9);
    assert_eq!(lab.status(2).promised, ballot(9, 3));
}

/// "The leader counts T from when it *sent* the heartbeat, shortened by the drift bound".
#[test]
fn a_lease_is_counted_from_the_sending_and_shortened() {
    let mut lab = leased();
    lab.now = lab.now.after(BEAT);
    let sent = lab.now;
    lab.input(1, Input::Tick);
    // The answers take 900 ms.
    for n in [2, 3] {
        while lab.deliver(|i| i.to == m(n)) {}
        lab.sync(n);
    }
    lab.now = sent.after(Duration::from_millis(900));
    lab.settle();
    assert!(lab.status(1).lease);
    lab.now = sent.after(Duration::from_millis(949));
    assert!(lab.status(1).lease);
    lab.now = sent.after(Duration::from_millis(951));
    assert!(!lab.status(1).lease, "five hundredths are the clocks' drift");
}

/// "the longest T ever granted is durable and is the wait after a restart".
#[test]
fn a_granter_that_restarted_waits_as_long_as_it_ever_granted() {
    let mut lab = leased();
    assert_eq!(lab.seat(2).disk.0.lease, SECOND);
    lab.crash(2);
    lab.restart(2);
    lab.settle();
    let since = lab.now;
    let mut waited = Duration::ZERO;
    while lab.status(2).promised < ballot(9, 3) {
        prepare(&mut lab, 3, 9);
        waited = lab.now.since(since);
        lab.now = lab.now.after(Duration::from_millis(10));
    }
    assert_eq!(waited, SECOND);
}

/// Before the length of a lease is on disk, it is not granted.
#[test]
fn a_grant_waits_for_the_disk_that_will_remember_it() {
    let mut lab = Lab::new(3, |_, disk| {
        if let Some(genesis) = &mut disk.genesis {
            genesis.settings.leases = true;
        }
    });
    lab.campaign(1);
    lab.settle();
    let granted = |lab: &Lab| lab.mail_of(|m| matches!(m, Message::HeartbeatReply { granted: true, .. }));
    for n in [2, 3] {
        lab.seat(n).disk.0.lease = Duration::ZERO;
    }
    lab.crash(2);
    lab.restart(2);
    lab.settle();
    lab.now = lab.now.after(BEAT);
    lab.input(1, Input::Tick);
    while lab.deliver(|i| i.to == m(2)) {}
    assert_eq!(granted(&lab), 0, "the length is on its way to the disk");
    lab.sync(2);
    lab.now = lab.now.after(BEAT);
    lab.input(1, Input::Tick);
    while lab.deliver(|i| i.to == m(2)) {}
    assert_eq!(granted(&lab), 1);
}

/// "`linearizable`: with a lease, local at the leader"; a follower asks the leader, one message each way.
#[test]
fn a_leader_with_a_lease_reads_without_a_round() {
    let mut lab = leased();
    lab.input(1, append(1, None, "x"));
    lab.settle();
    read(&mut lab, 1, 7);
    assert_eq!(reads(&mut lab, 1), [(7, Index(1))]);
    assert!(lab.mail.is_empty(), "nothing was asked of anybody: {:?}", lab.mail);
    read(&mut lab, 2, 8);
    assert!(lab.deliver(|i| matches!(i.message, Message::ReadPointRequest { .. })));
    assert_eq!(lab.mail_of(|m| matches!(m, Message::Heartbeat { .. })), 0);
    lab.settle();
    assert_eq!(lab.status(1).reads_under_lease, 2);
}

/// "The lease is checked after the request arrived": one that ran out is of no use.
#[test]
fn a_leader_without_a_lease_asks_a_quorum() {
    let mut lab = leased();
    lab.now = lab.now.after(SECOND);
    read(&mut lab, 1, 7);
    assert_eq!(reads(&mut lab, 1), []);
    assert_eq!(lab.mail_of(|m| matches!(m, Message::Heartbeat { .. })), 2);
    lab.settle();
    assert_eq!(reads(&mut lab, 1), [(7, Index(0))]);
}

/// "No grant without durable progress."
#[test]
fn a_member_whose_disk_hangs_grants_nothing() {
    let mut lab = leased();
    lab.input(1, append(1, None, "x"));
    while lab.deliver(|i| i.to == m(2)) {}
    assert!(!lab.seat(2).writes.is_empty());
    // Its disk takes no write for half an election timeout, while it answers heartbeats.
    let mut granted = true;
    for _ in 0..8 {
        lab.now = lab.now.after(BEAT);
        lab.input(1, Input::Tick);
        while lab.deliver(|i| i.to == m(2)) {}
        granted = lab.mail_of(|m| matches!(m, Message::HeartbeatReply { granted: true, .. })) > 0;
        lab.mail.retain(|i| i.from != m(2));
        lab.sync(1);
        lab.sync(3);
        while lab.deliver(|i| i.to != m(2)) {}
    }
    assert!(!granted);
}

/// "Hand-over: stop proposing, give up leases for the rest of this ballot"; the target's Prepare overrides the
/// grants of that ballot, and of no other.
#[test]
fn a_hand_over_ends_the_lease_before_the_successor_is_asked() {
    let mut lab = leased();
    lab.admin(1, synod_paxos::AdminCommand::TransferLeader { cluster: crate::lab::CLUSTER, to: Some(m(2)) });
    assert!(!lab.status(1).lease);
    assert_eq!(lab.status(1).role, Role::Leader);
    lab.settle();
    assert_eq!(lab.status(2).role, Role::Leader, "at once, though the grants live");
    assert_eq!(lab.status(1).role, Role::Follower);
}

/// "An acknowledged append is seen by every linearizable read that begins after it": the old leader, cut off,
/// loses its lease before anybody can be promised anything.
#[test]
fn an_isolated_leader_stops_reading_before_another_leads() {
    let mut lab = leased();
    for n in [2, 3] {
        lab.input(n, Input::PeerDisconnected(m(1)));
    }
    let mut overlapped = false;
    for _ in 0..400 {
        lab.now = lab.now.after(Duration::from_millis(10));
        for n in [1, 2, 3] {
            let now = lab.now;
            if lab.seat(n).node.next_deadline().is_some_and(|due| due <= now) {
                lab.input(n, Input::Tick);
            }
        }
        lab.settle_without(1);
        let led = [2, 3].into_iter().any(|n| lab.status(n).promised > ballot(1, 1));
        overlapped |= led && lab.status(1).lease;
    }
    assert!([2, 3].into_iter().any(|n| lab.status(n).role == Role::Leader));
    assert!(!overlapped);
}

/// "`stale-bounded(d)`": served from a point that is at most d old by this member's own clock, else the leader
/// is asked (docs: decisions/0005).
#[test]
fn a_bounded_read_uses_a_young_point_and_no_other() {
    let mut lab = leased();
    lab.input(1, append(1, None, "x"));
    lab.settle();
    let bounded = |lab: &mut Lab, request: u64, millis: u64| {
        let consistency = Consistency::StaleBounded(Duration::from_millis(millis));
        lab.input(2, Input::Read { request: RequestId(request), consistency });
    };
    bounded(&mut lab, 1, 500);
    assert_eq!(reads(&mut lab, 2), [], "no point is known yet");
    lab.settle();
    for _ in 0..2 {
        beat(&mut lab);
    }
    bounded(&mut lab, 2, 250);
    assert_eq!(reads(&mut lab, 2).last(), Some(&(2, Index(1))));
    assert!(lab.mail.is_empty());
    bounded(&mut lab, 3, 150);
    assert_eq!(lab.mail_of(|m| matches!(m, Message::ReadPointRequest { .. })), 1);
    lab.settle();
    assert_eq!(reads(&mut lab, 2).len(), 3);
}

/// "read before LeaderStart": a leader without its first entry applied has no lease, whatever it was granted.
#[test]
fn no_lease_before_leader_start_is_applied() {
    let mut lab = leased();
    assert!(lab.status(1).fencing_epoch > Slot(0));
    lab.crash(1);
    lab.now = lab.now.after(SECOND * 2);
    lab.campaign(2);
    let mut early = false;
    loop {
        for n in [2, 3] {
            lab.sync(n);
        }
        early |= lab.status(2).role == Role::Candidate && lab.status(2).lease;
        let waiting = [2, 3].iter().any(|n| !lab.seat(*n).writes.is_empty());
        if !lab.deliver(|i| i.to != m(1)) && !waiting {
            break;
        }
    }
    assert_eq!(lab.status(2).role, Role::Leader);
    assert!(!early);
}
