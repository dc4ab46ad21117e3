//! The small cases, searched to the end.

use synod_search::model::{Bounds, Reductions};
use synod_search::report::{Case, Limits, Report, search};

fn check(case: Case, crashes: u8, slow_disks: bool) {
    let mut bounds = case.bounds(false);
    bounds.crashes = crashes;
    bounds.slow_disks = slow_disks;
    let report = search(case, bounds, Limits::default());
    println!("{report}");
    assert!(report.holds(), "{report}");
    assert!(report.complete, "every state within the bounds is visited");
}

/// docs: reliability.md, "Layers of testing", 3: 3 members, 2 slots, two competing leaders, one crash.
#[test]
fn leaders_compete_and_one_member_crashes() {
    check(Case::Leaders, 1, false);
}

/// The same with writes that take their time: nothing rests on when a write becomes durable.
#[test]
fn leaders_compete_with_slow_disks() {
    check(Case::Leaders, 0, true);
}

/// docs: reliability.md, "Layers of testing", 3: one reconfiguration, 2 members become 3, alpha 2; and one crash.
#[test]
fn two_members_become_three() {
    check(Case::Growth, 1, false);
}

fn judged(case: Case, change: impl Fn(&mut Bounds)) -> Report {
    let mut bounds = case.bounds(false);
    change(&mut bounds);
    let report = search(case, bounds, Limits { depth_first: true, ..Limits::default() });
    println!("{report}");
    assert!(report.holds() && report.complete, "{report}");
    report
}

/// What makes a search smaller hides nothing: without each reduction, and without any, the members come to vote for and
/// apply the very same, in the same combinations (docs of the crate, "Reductions").
#[test]
fn reductions_hide_nothing() {
    let (all, none) = (Reductions::ALL, Reductions::NONE);
    let fewer = [
        Reductions { mail: false, ..all },
        Reductions { writes: false, ..all },
        Reductions { traces: false, ..all },
        Reductions { quiet: false, ..all },
        none,
    ];
    for (slots, crashes) in [(2, 0), (1, 1)] {
        let search = |reductions| {
            judged(Case::Leaders, |b| (b.slots, b.crashes, b.reductions) = (slots, crashes, reductions))
        };
        let with = search(all);
        for reductions in fewer {
            let without = search(reductions);
            assert_eq!(with.judged, without.judged, "{slots} slots, {crashes} crashes, {reductions:?}");
            assert!(with.states <= without.states, "{reductions:?}");
        }
    }
}

/// The same, two rounds deep: each leader comes back once, or one of them and a member crashes, and mail of four ballots
/// is under way.
#[test]
fn reductions_hide_nothing_in_later_rounds() {
    let all = Reductions::ALL;
    // Without `mail` these are searched to the end only where nobody crashes, and one leader comes once.
    let only_mail = Reductions { mail: true, ..Reductions::NONE };
    for (rounds, crashes, reductions) in [
        ([2, 2], 0, only_mail),
        ([2, 1], 1, only_mail),
        ([1, 2], 1, only_mail),
        ([2, 1], 0, Reductions { mail: false, ..all }),
    ] {
        let search = |reductions| {
            judged(Case::Leaders, |b| {
                (b.slots, b.crashes, b.reductions) = (1, crashes, reductions);
                b.timeouts.values_mut().zip(rounds).for_each(|(left, rounds)| *left = rounds);
            })
        };
        let (with, without) = (search(all), search(reductions));
        assert_eq!(with.judged, without.judged, "{rounds:?}, {crashes} crashes, {reductions:?}");
        assert!(with.states < without.states);
    }
}

/// The same where a member gets a vote.
#[test]
fn reductions_hide_nothing_while_a_member_gets_a_vote() {
    let search = |reductions| judged(Case::Growth, |b| (b.crashes, b.reductions) = (0, reductions));
    let (with, without) = (search(Reductions::ALL), search(Reductions::NONE));
    assert_eq!(with.judged, without.judged);
    assert!(with.states < without.states);
}
