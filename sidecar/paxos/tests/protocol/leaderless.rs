//! While nobody leads: announced stops, and calls that wait.

use crate::append;
use crate::lab::{Lab, m};
use std::time::Duration;
use synod_paxos::status::Role;
use synod_paxos::{AdminCommand, Message, Output, Refusal, Reply, RequestId};

const SECOND: Duration = Duration::from_secs(1);

fn led(leader: u64) -> Lab {
    let mut lab = Lab::new(3, |_, _| {});
    lab.campaign(leader);
    lab.settle();
    assert_eq!(lab.status(leader).role, Role::Leader);
    lab
}

fn answer(lab: &mut Lab, n: u64, wanted: u64) -> Option<Result<Reply, Refusal>> {
    lab.seat(n).other.iter().find_map(|output| match output {
        Output::CallReply { request, outcome } if *request == RequestId(wanted) => Some(outcome.clone()),
        _ => None,
    })
}

fn forwards(lab: &Lab) -> usize {
    lab.mail_of(|message| matches!(message, Message::Forward { .. }))
}

/// An announced stop may be called off. Two of three are to stop, and the leader dies: they leave leading to others for
/// four election timeouts, then one of them leads.
#[test]
fn an_announced_stop_does_not_bar_campaigns_for_ever() {
    let mut lab = led(1);
    lab.admin(2, AdminCommand::PrepareStop);
    lab.admin(3, AdminCommand::PrepareStop);
    lab.crash(1);
    let canvasses = |lab: &Lab| lab.mail_of(|message| matches!(message, Message::Canvass { .. }));
    for _ in 0..3 {
        lab.pass(SECOND);
        assert_eq!(canvasses(&lab), 0, "others go first");
    }
    let leads = |lab: &mut Lab| [2, 3].into_iter().any(|n| lab.status(n).role == Role::Leader);
    for _ in 0..200 {
        lab.pass(SECOND / 10);
        lab.settle_without(1);
    }
    assert!(leads(&mut lab), "no leader for 23 election timeouts");
}

/// While another member leads, an announced stop bars campaigns for two minutes.
#[test]
fn an_announced_stop_expires() {
    let mut lab = led(1);
    lab.admin(2, AdminCommand::PrepareStop);
    for tenth in 0..1_250 {
        lab.pass(SECOND / 10);
        lab.settle();
        assert_eq!(lab.status(1).role, Role::Leader, "after {tenth} tenths of a second");
    }
    // It does not go last any more: its own timeout is enough.
    lab.crash(1);
    lab.campaign(2);
    lab.settle_without(1);
    assert_eq!(lab.status(2).role, Role::Leader);
}

/// A leader that was not heard is forgotten by those, too, that may not campaign.
#[test]
fn a_dead_leader_is_not_shown_for_ever() {
    let mut lab = led(1);
    lab.admin(2, AdminCommand::PrepareStop);
    lab.crash(1);
    assert_eq!(lab.status(2).leader.map(|ballot| ballot.member), Some(m(1)));
    lab.pass(SECOND * 2);
    assert_eq!(lab.status(2).leader, None);
}

/// A call that comes while the leader's connection is gone is held for the next leader: sent to one that is dead, it
/// could only be refused.
#[test]
fn calls_are_held_while_the_leader_cannot_be_reached() {
    let mut lab = led(1);
    lab.crash(1);
    lab.input(2, append(7, None, "held"));
    assert_eq!(forwards(&lab), 0);
    lab.campaign(3);
    lab.settle_without(1);
    assert_eq!(lab.status(3).role, Role::Leader);
    // What the last heartbeat tells is chosen.
    lab.pass(SECOND / 10);
    lab.settle_without(1);
    let outcome = answer(&mut lab, 2, 7);
    assert!(matches!(outcome, Some(Ok(Reply::Appended { .. }))), "{outcome:?}");
}

/// The same with a leader whose connection stands and that says nothing; it gets the calls when it speaks again.
#[test]
fn calls_are_held_while_the_leader_is_silent() {
    let mut lab = led(1);
    lab.pass(SECOND * 2 / 5);
    lab.input(3, append(7, None, "held"));
    assert_eq!(forwards(&lab), 0);
    while lab.deliver(|incoming| incoming.from == m(1) && incoming.to == m(3)) {}
    assert_eq!(forwards(&lab), 1);
    lab.settle();
    let outcome = answer(&mut lab, 3, 7);
    assert!(matches!(outcome, Some(Ok(Reply::Appended { .. }))), "{outcome:?}");
}

/// A held call whose client gives up was not appended, for certain.
#[test]
fn a_held_call_is_taken_back() {
    let mut lab = led(1);
    lab.crash(1);
    lab.input(2, append(7, None, "held"));
    lab.input(2, synod_paxos::Input::Cancel(RequestId(7)));
    assert_eq!(answer(&mut lab, 2, 7), Some(Err(Refusal::NoLeader)));
}
