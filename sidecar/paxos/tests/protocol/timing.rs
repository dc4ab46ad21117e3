//! Election timing that a log can go on with (docs: settings.md), and the time that passes in a quiet log.

use crate::append;
use crate::lab::{CLUSTER, Lab, m};
use std::time::Duration;
use synod_paxos::genesis::GenesisError;
use synod_paxos::settings::SettingsError;
use synod_paxos::status::Role;
use synod_paxos::system::{CallRefused, Effect};
use synod_paxos::value::{Call, Fields, Operation, Origin, Value};
use synod_paxos::{
    AdminCommand, Ballot, ElectionSettings, Genesis, Incarnation, Index, Input, RequestId, Settings, Slot,
    SystemState,
};

fn timing(heartbeat_ms: u64, timeout_ms: u64) -> ElectionSettings {
    let ms = Duration::from_millis;
    ElectionSettings { heartbeat: ms(heartbeat_ms), timeout: ms(timeout_ms) }
}

fn change(expected_version: u64, settings: Settings) -> Operation {
    Operation::ChangeSettings { expected_version, settings }
}

fn genesis(format_level: u32, election: ElectionSettings) -> Genesis {
    let base = crate::lab::genesis(3);
    Genesis { settings: Settings { format_level, election, ..base.settings }, ..base }
}

#[test]
fn election_timing_has_bounds_that_a_slow_disk_survives() {
    for (heartbeat, timeout, good) in [
        (19, 1_000, false),
        (20, 200, true),
        (20, 199, false),
        (100, 999, false),
        (100, 1_000, true),
        (6_000, 60_000, true),
        (6_000, 60_001, false),
        (1, 5, false),
    ] {
        let founding = genesis(2, timing(heartbeat, timeout));
        let refused = Err(GenesisError::Settings(SettingsError::Election));
        assert_eq!(founding.validate(), if good { Ok(()) } else { refused }, "{heartbeat} {timeout}");
        // What was founded before the bounds is still read.
        assert_eq!(Genesis::decode(founding.encode()), Ok(founding));
    }
}

/// What an entry with the older bounds means depends on the level of the log: at level 1 as in the version before.
#[test]
fn the_bounds_are_judged_at_apply_from_level_2_on() {
    let unwise = timing(1, 5);
    for (level, applied) in [(1, Ok(unwise)), (2, Err(CallRefused::Settings(SettingsError::Election)))] {
        let mut state = SystemState::new(&genesis(level, ElectionSettings::default()));
        let settings = Settings { election: unwise, ..state.settings };
        let origin = Origin { member: m(1), incarnation: Incarnation(1), request: RequestId(1) };
        let calls = vec![Call { origin, operation: change(1, settings) }];
        let value =
            Value::Batch { ballot: Ballot::ZERO, advance: Duration::ZERO, fields: Fields::NONE, calls };
        let effect = state.apply(Slot(1), &value.encode()).expect("both versions read it");
        let Effect::Batch { calls, .. } = effect else { panic!("{effect:?}") };
        let refused = calls[0].result.clone().err();
        assert_eq!(refused.map_or(Ok(state.settings.election), Err), applied);
    }
}

/// Timing from before the bounds stays while something else is changed.
#[test]
fn unwise_timing_may_stay_but_not_come() {
    let now = Settings { election: timing(1, 5), ..Settings::default() };
    assert_eq!(Settings { leases: true, ..now }.validate_change(&now), Ok(()));
    let other = Settings { election: timing(1, 6), ..now };
    assert_eq!(other.validate_change(&now), Err(SettingsError::Election));
    assert_eq!(Settings::default().validate_change(&now), Ok(()));
}

/// A log whose own timing lets nobody lead is led under an override, and then its settings are changed.
#[test]
fn a_log_that_is_stuck_is_led_under_an_override() {
    let stuck = timing(100, 3_600_000);
    let mut lab = Lab::new(3, |_, disk| disk.genesis = Some(genesis(2, stuck)));
    lab.campaign(1);
    lab.settle();
    assert_ne!(lab.status(1).role, Role::Leader);
    for n in 1..=3 {
        let now = lab.now;
        lab.seat(n).node.override_election(now, ElectionSettings::default());
    }
    lab.campaign(1);
    lab.settle();
    assert_eq!(lab.status(1).role, Role::Leader);
    let settings = Settings { election: ElectionSettings::default(), ..genesis(2, stuck).settings };
    lab.input(1, Input::Call { request: RequestId(1), operation: change(1, settings) });
    lab.settle();
    let in_force = lab.status(1).settings.map(|settings| settings.election);
    assert_eq!(in_force, Some(ElectionSettings::default()));
}

/// A log that nobody writes to any more still loses what is older than its retention says, across leaders too.
#[test]
fn a_quiet_log_is_trimmed_by_age() {
    let age = Duration::from_secs(16);
    let mut lab = Lab::new(3, |_, disk| {
        if let Some(genesis) = &mut disk.genesis {
            genesis.settings.retention.age = Some(age);
        }
    });
    lab.campaign(1);
    lab.settle();
    for request in 1..=5 {
        lab.input(1, append(request, None, "x"));
        lab.settle();
    }
    let quiet = |lab: &mut Lab, span: Duration| {
        let end = lab.now.after(span);
        while lab.now < end {
            lab.pass(Duration::from_millis(100));
            lab.settle();
        }
    };
    quiet(&mut lab, age / 2);
    lab.admin(1, AdminCommand::TransferLeader { cluster: CLUSTER, to: Some(m(2)) });
    lab.settle();
    assert_eq!(lab.status(2).role, Role::Leader);
    // Nothing goes that is younger than was asked for; with three eighths more, everything has gone.
    quiet(&mut lab, age / 2 - Duration::from_millis(200));
    assert_eq!(lab.status(2).first_index, Index(1));
    quiet(&mut lab, age * 3 / 8 + Duration::from_secs(1));
    for n in 1..=3 {
        assert_eq!(lab.status(n).first_index, Index(6), "member {n}");
    }
    // Then it is quiet.
    let slot = lab.status(2).chosen_through;
    quiet(&mut lab, age);
    assert_eq!(lab.status(2).chosen_through, slot);
}

/// A consumer that nothing is heard of expires although nobody writes, and then the log is quiet.
#[test]
fn a_cursor_expires_in_a_quiet_log() {
    let expiry = Duration::from_secs(16);
    let mut lab = Lab::new(3, |_, _| {});
    lab.campaign(1);
    lab.settle();
    let operation = Operation::LeaseCursor { name: "reader".into(), index: Index(0), expiry };
    lab.input(2, Input::Call { request: RequestId(1), operation });
    lab.settle();
    let quiet = |lab: &mut Lab, span: Duration| {
        let end = lab.now.after(span);
        while lab.now < end {
            lab.pass(Duration::from_millis(100));
            lab.settle();
        }
    };
    let stands = |lab: &mut Lab, n: u64| {
        let system = lab.seat(n).node.system().expect("it belongs to a cluster");
        system.cursors.contains_key("reader")
    };
    quiet(&mut lab, expiry - Duration::from_millis(200));
    assert!(stands(&mut lab, 1));
    quiet(&mut lab, expiry / 4);
    for n in 1..=3 {
        assert!(!stands(&mut lab, n), "member {n}");
    }
    let slot = lab.status(1).chosen_through;
    quiet(&mut lab, expiry);
    assert_eq!(lab.status(1).chosen_through, slot);
}
