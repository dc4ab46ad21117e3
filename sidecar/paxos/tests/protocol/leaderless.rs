//! While nobody leads: announced stops.

use crate::lab::{Lab, m};
use std::time::Duration;
use synod_paxos::status::Role;
use synod_paxos::{AdminCommand, Message};

const SECOND: Duration = Duration::from_secs(1);

fn led(leader: u64) -> Lab {
    let mut lab = Lab::new(3, |_, _| {});
    lab.campaign(leader);
    lab.settle();
    assert_eq!(lab.status(leader).role, Role::Leader);
    lab
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
