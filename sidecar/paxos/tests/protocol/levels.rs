//! Nothing is proposed that a member cannot read because its version is older (docs: decisions/0013).

use crate::lab::{CLUSTER, Lab, m};
use crate::{append, texts};
use std::time::Duration;
use synod_paxos::configuration::Change;
use synod_paxos::settings::SettingsError;
use synod_paxos::status::MemberState;
use synod_paxos::value::{Append, Entry, Operation};
use synod_paxos::{
    AdminCommand, DurableState, Input, MemberId, Output, Refusal, Reply, RequestId, Settings, SystemState,
    Time,
};

/// Three members of a log at level 1; those of `old` run a version that reads no more.
fn lab(old: &[u64]) -> Lab {
    let mut lab = Lab::new(3, |_, disk| {
        if let Some(genesis) = &mut disk.genesis {
            genesis.settings.format_level = 1;
        }
    });
    old.iter().for_each(|n| lab.seat(*n).node.read_up_to(1));
    lab.campaign(1);
    lab.settle();
    beat(&mut lab);
    lab
}

fn beat(lab: &mut Lab) {
    for _ in 0..3 {
        lab.pass(Duration::from_millis(100));
        lab.settle();
    }
}

fn raise(lab: &mut Lab, n: u64, level: u32) -> Option<Result<u32, Refusal>> {
    let now = lab.status(n).settings.expect("it belongs to a cluster");
    let operation = Operation::ChangeSettings {
        expected_version: now.version,
        settings: Settings { format_level: level, ..now },
    };
    lab.seat(n).other.clear();
    lab.input(n, Input::Call { request: RequestId(700), operation });
    lab.settle();
    lab.seat(n).other.iter().find_map(|output| match output {
        Output::CallReply { request: RequestId(700), outcome } => Some(match outcome {
            Ok(Reply::SettingsChanged(settings)) => Ok(settings.format_level),
            Ok(other) => panic!("{other:?}"),
            Err(refusal) => Err(refusal.clone()),
        }),
        _ => None,
    })
}

fn level(lab: &mut Lab, n: u64) -> u32 {
    lab.status(n).settings.expect("it belongs to a cluster").format_level
}

#[test]
fn the_level_rises_when_every_member_reads_the_next() {
    let mut lab = lab(&[3]);
    let behind = Refusal::NotEveryMember { member: m(3), level: 2 };
    assert_eq!(raise(&mut lab, 1, 2), Some(Err(behind.clone())));
    // A member that is down may come back in its old version.
    lab.crash(3);
    assert_eq!(raise(&mut lab, 1, 2), Some(Err(behind.clone())));
    lab.restart(3);
    beat(&mut lab);
    assert_eq!(raise(&mut lab, 2, 2), Some(Err(Refusal::NotLeader { leader: m(1) })));
    assert_eq!(
        raise(&mut lab, 1, Settings::FORMAT_LEVEL + 1),
        Some(Err(Refusal::Call(SettingsError::FormatLevel { actual: Settings::FORMAT_LEVEL }.into())))
    );
    assert_eq!(raise(&mut lab, 1, 2), Some(Ok(2)));
    lab.input(1, append(1, None, "after"));
    beat(&mut lab);
    for n in 1..=3 {
        assert_eq!((level(&mut lab, n), lab.status(n).state), (2, MemberState::Active));
        assert_eq!(texts(&mut lab, n), ["after"]);
    }
    assert_eq!(raise(&mut lab, 1, 1), Some(Err(Refusal::Settings(SettingsError::FormatLevel { actual: 2 }))));
}

/// What a member said before it fell silent is not believed: it may be another version when it comes back.
#[test]
fn a_silent_member_holds_the_level_back() {
    let mut lab = lab(&[]);
    lab.crash(3);
    for _ in 0..12 {
        lab.pass(Duration::from_millis(100));
        lab.settle_without(3);
    }
    assert_eq!(raise(&mut lab, 1, 2), Some(Err(Refusal::NotEveryMember { member: m(3), level: 2 })));
    assert_eq!(level(&mut lab, 1), 1);
}

fn change(lab: &mut Lab, operation: u8, change: Change) -> Result<(), Refusal> {
    let version = lab.seat(1).node.system().map(|s: &SystemState| s.configurations.latest().version);
    let expected_version = version.expect("it belongs to a cluster");
    lab.seat(1).other.clear();
    let operation = [operation; 16];
    lab.admin(1, AdminCommand::Change { cluster: CLUSTER, expected_version, operation, change });
    beat(lab);
    let answer = lab.seat(1).other.iter().find_map(|output| match output {
        Output::AdminReply { outcome, .. } => Some(outcome.clone().map(drop)),
        _ => None,
    });
    answer.expect("every admin call is answered")
}

fn join(lab: &mut Lab, member: MemberId, reads: u32) {
    let digest = lab.seat(1).disk.0.genesis.as_ref().expect("it is a founder").digest();
    let mut empty = DurableState::empty(member);
    empty.joined = Some((CLUSTER, digest));
    lab.place(empty);
    lab.seat(member.0).node.read_up_to(reads);
    lab.connect(member.0);
}

fn append_with_headers(lab: &mut Lab, n: u64) -> Result<Reply, Refusal> {
    let headers = [("traceparent".to_owned(), "00-1-2-01".to_owned())].into();
    let entries = vec![Entry::new("headed".into(), &headers).expect("within its bounds")];
    let append = Append { entries, ..Append::plain(Vec::new()) };
    lab.seat(n).other.clear();
    lab.input(n, Input::Call { request: RequestId(701), operation: Operation::Append(append) });
    beat(lab);
    let answer = lab.seat(n).other.iter().find_map(|output| match output {
        Output::CallReply { request: RequestId(701), outcome } => Some(outcome.clone()),
        _ => None,
    });
    answer.expect("every call is answered")
}

/// Headers and times wait for their level: below it an append with headers is refused, never taken without them.
#[test]
fn headers_and_times_begin_with_their_level() {
    let mut lab = lab(&[]);
    for n in 1..=3 {
        lab.seat(n).node.set_wall_clock(Time(1_000));
    }
    for level in 1..Settings::TIMES {
        let refused = Err(Refusal::FormatLevel { needed: Settings::TIMES, actual: level });
        assert_eq!(append_with_headers(&mut lab, 1), refused);
        assert_eq!(append_with_headers(&mut lab, 2), refused, "where it is not the leader's");
        lab.input(1, append(u64::from(level), None, "plain"));
        beat(&mut lab);
        assert_eq!(raise(&mut lab, 1, level + 1), Some(Ok(level + 1)));
    }
    beat(&mut lab);
    assert!(append_with_headers(&mut lab, 2).is_ok());
    for n in 1..=3 {
        let entries = lab.seat(n).applied.iter().flat_map(|a| a.entries.iter().map(|e| (e.clone(), a.time)));
        let entries: Vec<_> = entries.collect();
        let times: Vec<_> = entries.iter().map(|(_, time)| *time).collect();
        assert_eq!(times, [None, None, None, Some(Time(1_000))]);
        assert_eq!(entries[3].0.headers().len(), 1);
    }
}

/// Neither a clock that is set back nor another leader's clock takes the times of entries back.
#[test]
fn times_never_go_back() {
    let mut lab = Lab::new(3, |_, _| {});
    lab.campaign(1);
    lab.settle();
    let times = |lab: &mut Lab| -> Vec<u64> {
        let applied = lab.seat(3).applied.iter().filter(|a| !a.entries.is_empty());
        applied.map(|a| a.time.expect("the log has times").0).collect()
    };
    for (request, wall) in [(1, 5_000), (2, 4_000), (3, 6_000)] {
        lab.seat(1).node.set_wall_clock(Time(wall));
        lab.input(1, append(request, None, "of the first"));
        beat(&mut lab);
    }
    assert_eq!(times(&mut lab), [5_000, 5_000, 6_000]);
    lab.admin(1, AdminCommand::TransferLeader { cluster: CLUSTER, to: Some(m(2)) });
    beat(&mut lab);
    assert_eq!(lab.status(3).leader.map(|ballot| ballot.member), Some(m(2)));
    for (request, wall) in [(4, 10), (5, 7_000)] {
        lab.seat(2).node.set_wall_clock(Time(wall));
        lab.input(2, append(request, None, "of the second"));
        beat(&mut lab);
    }
    assert_eq!(times(&mut lab), [5_000, 5_000, 6_000, 6_000, 7_000]);
}

/// A learner that has not said what it reads holds the level back; one that is too old gets no vote.
#[test]
fn a_learner_of_an_older_version_is_not_promoted() {
    let mut lab = Lab::new(3, |_, _| {});
    lab.campaign(1);
    lab.settle();
    join(&mut lab, m(4), 1);
    assert_eq!(change(&mut lab, 1, Change::AddLearner { member: m(4), name: "log-3".into() }), Ok(()));
    for _ in 0..10 {
        beat(&mut lab);
    }
    let refused = Err(Refusal::NotEveryMember { member: m(4), level: Settings::FORMAT_LEVEL });
    assert_eq!(change(&mut lab, 2, Change::Promote { member: m(4) }), refused);
    lab.crash(4);
    lab.restart(4);
    for _ in 0..10 {
        beat(&mut lab);
    }
    assert_eq!(change(&mut lab, 3, Change::Promote { member: m(4) }), Ok(()));
}

#[test]
fn a_learner_holds_the_level_back_until_it_says_that_it_reads_the_next() {
    let mut lab = lab(&[]);
    join(&mut lab, m(4), 1);
    assert_eq!(change(&mut lab, 1, Change::AddLearner { member: m(4), name: "log-3".into() }), Ok(()));
    for _ in 0..10 {
        beat(&mut lab);
    }
    assert_eq!(raise(&mut lab, 1, 2), Some(Err(Refusal::NotEveryMember { member: m(4), level: 2 })));
    assert_eq!(lab.status(4).state, MemberState::Active);
}
