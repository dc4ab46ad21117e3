//! The small cases, searched to the end.

use synod_search::report::{Case, Limits, search};

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

/// What is thrown away to make a search smaller hides nothing: the members come to vote for and apply the very same,
/// in as many combinations (docs of the crate: "What is left out, and why nothing is lost by it").
#[test]
fn mail_without_effect_hides_nothing() {
    for (slots, crashes) in [(2, 0), (1, 1)] {
        let [with, without] = [true, false].map(|purge| {
            let mut bounds = Case::Leaders.bounds(false);
            (bounds.slots, bounds.crashes, bounds.purge) = (slots, crashes, purge);
            let limits = Limits { depth_first: true, ..Limits::default() };
            let report = search(Case::Leaders, bounds, limits);
            println!("{report}");
            assert!(report.holds() && report.complete, "{report}");
            report
        });
        assert_eq!(with.judged, without.judged, "{slots} slots, {crashes} crashes");
        assert!(with.states < without.states);
    }
}
