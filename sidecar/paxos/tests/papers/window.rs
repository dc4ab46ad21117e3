//! The window of α commands: *Paxos Made Simple*, section 3, on getting ahead and on changing the servers.

use super::{answer, append, elect, proposals, rest, settle_among, texts};
use crate::lab::{CLUSTER, Lab, m};
use synod_paxos::configuration::Change;
use synod_paxos::status::Role;
use synod_paxos::value::Value;
use synod_paxos::{AdminCommand, Input, Message, RequestId, Slot};

const ALPHA: u64 = 3;

fn lab() -> Lab {
    Lab::new(3, |_, disk| {
        if let Some(genesis) = disk.genesis.as_mut() {
            genesis.alpha = ALPHA as u32;
        }
    })
}

/// Slots that have been proposed to `to`.
fn proposed(lab: &Lab, to: u64) -> Vec<u64> {
    let slots = lab.mail.iter().filter(|i| i.to == m(to)).filter_map(|i| match &i.message {
        Message::Accept { slot, .. } => Some(slot.0),
        _ => None,
    });
    slots.collect()
}

/// "A leader can get α commands ahead": it proposes commands i + 1 to i + α after commands 1 to i are chosen, and
/// not one more.
#[test]
fn a_leader_gets_alpha_commands_ahead_and_no_further() {
    let mut lab = lab();
    elect(&mut lab, 1, &[1, 2]);
    let chosen = lab.status(1).chosen_through.0;
    for request in 1..=6 {
        append(&mut lab, 1, request, &format!("c{request}"));
        // Its own disk is quick, its followers hear nothing.
        lab.sync(1);
    }
    let ahead: Vec<u64> = (chosen + 1..=chosen + ALPHA).collect();
    assert_eq!(proposed(&lab, 2), ahead);
    assert_eq!(proposed(&lab, 3), ahead);
}

/// "If the leader fails, a gap of up to α - 1 commands could arise": the next leader fills it with no-ops, and the
/// command behind the gap keeps its place.
#[test]
fn a_gap_of_alpha_less_one_is_filled() {
    let mut lab = lab();
    elect(&mut lab, 1, &[1, 2]);
    let first = lab.status(1).chosen_through.0 + 1;
    for request in 1..=ALPHA {
        append(&mut lab, 1, request, &format!("c{request}"));
        lab.sync(1);
    }
    let last = first + ALPHA - 1;
    // Of the α Accepts, only the last one reaches anybody.
    assert!(lab.deliver(|i| {
        i.to == m(2) && matches!(i.message, Message::Accept { slot, .. } if slot == Slot(last))
    }));
    assert_eq!(answer(&mut lab, 2), "Accepted");
    lab.crash(1);
    lab.mail.clear();
    lab.campaign(2);
    let proposed = proposals(&mut lab, 3, &[2, 3]);
    let gap: Vec<_> = (first..last).map(|slot| (slot, Value::NoOp)).collect();
    assert_eq!(proposed[proposed.len() - gap.len() - 2..][..gap.len()], gap);
    assert_eq!(texts(&mut lab, 2), [format!("c{ALPHA}")]);
    assert_eq!(lab.status(2).role, Role::Leader);
}

/// "The set of servers that execute instance i + α of the consensus algorithm [is] specified by the state after
/// execution of the ith state machine command": up to i + α - 1 a removed server's vote counts, from i + α on it
/// does not.
#[test]
fn a_change_in_slot_i_governs_from_i_plus_alpha() {
    let mut lab = lab();
    elect(&mut lab, 1, &[1, 2, 3]);
    let change = AdminCommand::Change {
        cluster: CLUSTER,
        expected_version: 1,
        operation: [1; 16],
        change: Change::Remove { member: m(3) },
    };
    lab.input(1, Input::Admin { request: RequestId(90), command: change });
    let i = proposed(&lab, 3)[0];
    // Votes of 1 and 3 alone: a quorum of the three, not of the two that are left.
    settle_among(&mut lab, &[1, 3]);
    let status = lab.status(1);
    assert_eq!(status.chosen_through, Slot(i + ALPHA - 1), "no-ops fill the window at once");
    append(&mut lab, 1, 1, "new");
    assert!(proposed(&lab, 2).contains(&(i + ALPHA)));
    settle_among(&mut lab, &[1, 3]);
    assert_eq!(lab.status(1).chosen_through, Slot(i + ALPHA - 1), "a removed server's vote");
    rest(&mut lab, &[1, 2]);
    assert_eq!(texts(&mut lab, 1), ["new"]);
}
