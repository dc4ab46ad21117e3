//! docs: protocol.md, "Integrity": chains are compared, and a member is fenced only when it differs from an
//! agreeing quorum; reliability.md, fault 57.

use crate::append;
use crate::lab::Lab;
use std::time::Duration;

use synod_paxos::status::{MemberState, Role};
use synod_paxos::system::SystemState;

/// Founders that compare every four slots; the state of those in `differing` is another than what the log says.
fn lab(members: u64, differing: &[u64]) -> Lab {
    let mut lab = Lab::new(members, |_, disk| {
        if let Some(genesis) = &mut disk.genesis {
            genesis.settings.chain_interval = 4;
        }
    });
    lab.campaign(1);
    lab.settle();
    (1..3).for_each(|request| lab.input(1, append(request, None, "x")));
    beats(&mut lab, 4);
    for n in differing {
        // What a bug or a lying disk would leave behind: a state that was not made from this log.
        let mut disk = lab.seat(*n).disk.0.clone();
        let mut state = SystemState::decode(disk.system.clone()).expect("it was written by a member");
        state.chain ^= 1;
        disk.system = state.encode();
        lab.crash(*n);
        lab.seat(*n).disk.0 = disk;
        lab.restart(*n);
        lab.settle();
    }
    lab
}

fn beats(lab: &mut Lab, count: usize) {
    for _ in 0..count {
        lab.pass(Duration::from_millis(100));
        lab.settle();
    }
}

fn run_on(lab: &mut Lab) {
    for request in 10..30 {
        for n in lab.running() {
            if lab.status(n).role == Role::Leader {
                lab.input(n, append(request, None, "x"));
            }
        }
        beats(lab, 2);
    }
    beats(lab, 30);
}

#[test]
fn the_member_that_differs_from_a_quorum_is_fenced() {
    for differing in 1..=3 {
        let mut lab = lab(3, &[differing]);
        run_on(&mut lab);
        for n in 1..=3 {
            let fenced = matches!(lab.status(n).state, MemberState::Fenced(_));
            assert_eq!(fenced, n == differing, "member {n}, {differing} differs: {:?}", lab.status(n).state);
        }
        assert!(lab.seat(differing).disk.0.fenced.is_some(), "for ever");
    }
}

#[test]
fn without_an_agreeing_quorum_everybody_stops_and_nobody_is_fenced() {
    let mut lab = lab(2, &[2]);
    run_on(&mut lab);
    for n in 1..=2 {
        assert!(matches!(lab.status(n).state, MemberState::Halted(_)), "{:?}", lab.status(n).state);
        assert_eq!(lab.seat(n).disk.0.fenced, None);
    }
    lab.input(1, append(99, None, "refused"));
    assert!(lab.seat(1).writes.is_empty());
}

#[test]
fn members_that_agree_are_left_alone() {
    let mut lab = lab(3, &[]);
    run_on(&mut lab);
    for n in 1..=3 {
        assert_eq!(lab.status(n).state, MemberState::Active);
    }
    assert!(lab.seat(1).node.system().unwrap().chain_points.len() > 1);
}
