//! Whatever can be proposed can be read back and applied by every member (docs: decisions/0012).

use crate::lab::{CLUSTER, Lab, ballot, m, tell};
use crate::{append, texts};
use bytes::Bytes;
use std::time::Duration;
use synod_paxos::configuration::{Change, ChangeRefused};
use synod_paxos::names::NameError;
use synod_paxos::status::{MemberState, Role};
use synod_paxos::value::{CallError, Operation};
use synod_paxos::{
    AdminCommand, Ballot, Index, Input, Message, Notice, Output, Refusal, Reply, RequestId, Row, Slot, row,
};

/// A value of a version that does not exist, as an acceptor stored it.
fn unreadable(slot: u64, ballot: Ballot) -> Row {
    let value = Bytes::from_static(&[1, 99]);
    let checksum = row::checksum(CLUSTER, Slot(slot), ballot, &value);
    Row { slot: Slot(slot), ballot, chosen: false, value, checksum }
}

fn notices(lab: &mut Lab, n: u64) -> Vec<Notice> {
    let notices = lab.seat(n).other.iter();
    notices.filter_map(|o| if let Output::Notice(notice) = o { Some(notice.clone()) } else { None }).collect()
}

/// An append through member 1 reaches every one of three members.
fn goes_on(lab: &mut Lab) {
    lab.input(1, append(1, None, "after"));
    lab.settle();
    lab.pass(Duration::from_millis(200));
    lab.settle();
    for n in 1..=3 {
        assert_eq!((lab.status(n).state, texts(lab, n)), (MemberState::Active, vec!["after".into()]));
    }
}

fn add_learner(lab: &mut Lab, member: u64, name: &str) -> Result<(), Refusal> {
    let operation = *b"an operation's id".first_chunk().expect("it has 16 bytes");
    let change = Change::AddLearner { member: m(member), name: name.into() };
    let expected_version = 1;
    lab.seat(1).other.clear();
    lab.admin(1, AdminCommand::Change { cluster: CLUSTER, expected_version, operation, change });
    lab.settle();
    let answer = lab.seat(1).other.iter().find_map(|output| match output {
        Output::AdminReply { outcome, .. } => Some(outcome.clone().map(drop)),
        _ => None,
    });
    answer.expect("every admin call is answered")
}

/// One name that is refused costs nothing: every member goes on, and the leader leads.
#[test]
fn a_learners_name_that_no_member_could_read_is_refused() {
    let mut lab = Lab::new(3, |_, _| {});
    lab.campaign(1);
    lab.settle();
    let before = lab.status(1).chosen_through;
    let long = "x".repeat(254);
    for (name, why) in [
        (long.as_str(), NameError::TooLong { bytes: 254 }),
        ("", NameError::Empty),
        ("two\nlines", NameError::Control { name: "two\nlines".into() }),
    ] {
        assert_eq!(add_learner(&mut lab, 0xaa, name), Err(Refusal::Change(ChangeRefused::Name(why))));
    }
    assert_eq!(lab.status(1).chosen_through, before);
    assert_eq!(add_learner(&mut lab, 0xaa, &"x".repeat(253)), Ok(()));
    goes_on(&mut lab);
}

/// A consumer's name is under the same rule; one that is registered already keeps its name.
#[test]
fn a_consumers_name_is_under_the_same_rule() {
    let mut lab = Lab::new(1, |_, _| {});
    lab.campaign(1);
    lab.settle();
    let mut set = |request: u64, name: &str| {
        let operation = Operation::SetCursor { name: name.into(), index: Index(0) };
        lab.input(1, Input::Call { request: RequestId(request), operation });
        lab.settle();
        let mut outputs = lab.seat(1).other.iter();
        outputs.find_map(|output| match output {
            Output::CallReply { request: of, outcome } if of.0 == request => Some(outcome.clone()),
            _ => None,
        })
    };
    let refused = |why| Some(Err(Refusal::Call(CallError::Name(why))));
    assert_eq!(set(1, ""), refused(NameError::Empty));
    assert_eq!(set(2, "a\tb"), refused(NameError::Control { name: "a\tb".into() }));
    assert_eq!(set(3, &"x".repeat(254)), refused(NameError::TooLong { bytes: 254 }));
    assert_eq!(set(4, &"x".repeat(253)), Some(Ok(Reply::CursorNew(Index(0)))));
}

/// An acceptor votes for nothing that it could not apply, and says so once.
#[test]
fn what_cannot_be_read_gets_no_vote() {
    let mut lab = Lab::new(3, |_, _| {});
    let Row { slot, ballot, value, checksum, .. } = unreadable(1, ballot(5, 2));
    let accept = || Message::Accept {
        ballot,
        slot,
        value: value.clone(),
        checksum,
        chosen_through: Slot(0),
        has_quorum: true,
    };
    tell(&mut lab, 2, 1, accept());
    tell(&mut lab, 2, 1, accept());
    lab.sync(1);
    assert_eq!(lab.mail_of(|m| matches!(m, Message::Accepted { .. })), 0);
    assert!(lab.seat(1).disk.0.rows.is_empty());
    let said = notices(&mut lab, 1);
    let unreadable = |again| Notice::Unreadable { slot, from: m(2), again };
    assert_eq!(said, [unreadable(false), unreadable(true)]);
    assert_eq!(lab.status(1).state, MemberState::Active);
}

/// A leader of an older version had proposed it: one voted for it, itself. Once the others have promised it is known
/// not to be chosen, and the slot is free.
#[test]
fn a_slot_is_free_once_it_is_known_that_nothing_unreadable_was_chosen_there() {
    let old = ballot(1, 3);
    let mut lab = Lab::new(3, |member, disk| {
        disk.promised = old;
        if member.0 == 3 {
            disk.rows.insert(Slot(1), unreadable(1, old));
        }
    });
    // Members 1 and 3 are a quorum; what member 2 voted for is not known yet.
    lab.crash(2);
    lab.campaign(1);
    lab.settle_without(2);
    assert!(notices(&mut lab, 1).contains(&Notice::Withheld { slot: Slot(1) }));
    assert_eq!((lab.status(1).chosen_through, lab.status(1).role), (Slot(0), Role::Candidate));
    lab.restart(2);
    lab.settle();
    lab.pass(Duration::from_millis(200));
    lab.settle();
    assert_eq!(lab.status(1).role, Role::Leader);
    goes_on(&mut lab);
}

/// A quorum may have chosen it: nothing else is ever put into that slot.
#[test]
fn what_may_be_chosen_is_never_replaced() {
    let old = ballot(1, 3);
    let mut lab = Lab::new(3, |member, disk| {
        disk.promised = old;
        if member.0 != 1 {
            disk.rows.insert(Slot(1), unreadable(1, old));
        }
    });
    lab.campaign(1);
    lab.settle();
    assert!(notices(&mut lab, 1).contains(&Notice::Withheld { slot: Slot(1) }));
    assert_eq!(lab.status(1).chosen_through, Slot(0));
    // It does not keep those from leading who may be able to read it.
    let why = "it cannot read what others accepted";
    let stepped_down =
        |notice: &Notice| matches!(notice, Notice::SteppedDown { why: said, .. } if *said == why);
    let mut said = Vec::new();
    for _ in 0..30 {
        lab.pass(Duration::from_millis(100));
        lab.settle();
        said.extend(notices(&mut lab, 1));
    }
    assert!(said.iter().any(stepped_down), "{said:?}");
    for n in 2..=3 {
        assert_eq!(lab.seat(n).disk.0.rows[&Slot(1)].value, unreadable(1, old).value);
    }
}
