//! Rules of docs: protocol.md, "Configurations": one change an entry, judged at apply, in force alpha later.

#[path = "protocol/planted.rs"]
mod planted;

use std::collections::BTreeMap;
use synod_paxos::configuration::{Change, ChangeRefused, ConfigurationEntry, ConfigurationHistory};
use synod_paxos::value::Value;
use synod_paxos::{ClusterId, Genesis, MemberId, Slot, SystemState};

fn history() -> ConfigurationHistory {
    planted::plant();
    let members = (1..=3).map(|m| (MemberId(m), format!("log-{m}"))).collect();
    let mut genesis = Genesis::new(ClusterId([1; 16]), members);
    genesis.alpha = 8;
    ConfigurationHistory::new(&genesis)
}

fn entry(expected_version: u64, change: Change) -> ConfigurationEntry {
    ConfigurationEntry { expected_version, operation: [expected_version as u8; 16], change }
}

fn add(member: u64) -> Change {
    Change::AddLearner { member: MemberId(member), name: format!("log-{member}") }
}

#[test]
fn an_entry_chosen_in_slot_i_governs_from_i_plus_alpha() {
    let mut history = history();
    history.apply(Slot(10), &entry(1, Change::Remove { member: MemberId(3) })).unwrap();
    assert_eq!(history.at(Slot(17)).version, 1);
    assert_eq!(history.at(Slot(18)).version, 2);
    assert_eq!(history.from(Slot(17)).count(), 2);
    assert_eq!(history.from(Slot(18)).count(), 1);
}

#[test]
fn a_change_on_a_stale_base_has_no_effect() {
    let mut history = history();
    history.apply(Slot(10), &entry(1, add(4))).unwrap();
    let refused = history.apply(Slot(30), &entry(1, add(5)));
    assert_eq!(refused.unwrap_err(), ChangeRefused::VersionMoved { actual: 2 });
    assert_eq!(history.latest().version, 2);
}

#[test]
fn a_change_while_one_is_pending_has_no_effect() {
    let mut history = history();
    history.apply(Slot(10), &entry(1, add(4))).unwrap();
    assert_eq!(
        history.apply(Slot(17), &entry(2, add(5))).unwrap_err(),
        ChangeRefused::Pending { version: 2 }
    );
    history.apply(Slot(18), &entry(2, add(5))).unwrap();
}

#[test]
fn an_id_is_used_once() {
    let mut history = history();
    history.apply(Slot(1), &entry(1, Change::Remove { member: MemberId(3) })).unwrap();
    assert_eq!(
        history.apply(Slot(20), &entry(2, add(3))).unwrap_err(),
        ChangeRefused::UsedMember(MemberId(3))
    );
    assert_eq!(history.removed_in(MemberId(3)), Some(Slot(1)));
}

#[test]
fn the_last_voter_stays() {
    let mut history = history();
    history.apply(Slot(1), &entry(1, Change::Remove { member: MemberId(1) })).unwrap();
    history.apply(Slot(20), &entry(2, Change::Remove { member: MemberId(2) })).unwrap();
    let last = history.apply(Slot(40), &entry(3, Change::Remove { member: MemberId(3) }));
    assert_eq!(last.unwrap_err(), ChangeRefused::LastVoter(MemberId(3)));
}

#[test]
fn learners_make_no_quorum() {
    let mut history = history();
    history.apply(Slot(1), &entry(1, add(4))).unwrap();
    let configuration = history.latest();
    assert_eq!(configuration.quorum(), 2);
    assert!(!configuration.has_quorum(&[MemberId(1), MemberId(4)].into()));
    assert!(configuration.has_quorum(&[MemberId(1), MemberId(2)].into()));
}

#[test]
fn a_repeat_finds_what_its_operation_made() {
    let mut history = history();
    history.apply(Slot(1), &entry(1, add(4))).unwrap();
    assert_eq!(history.made_by(&[1; 16]).map(|c| c.version), Some(2));
    assert_eq!(history.made_by(&[9; 16]), None);
    assert_eq!(history.made_by(&[0; 16]), None, "the genesis is no operation's work");
}

/// A log that has seen as many configurations as its history keeps is recovered into one whose state can be read.
#[test]
fn a_recovery_keeps_the_bound_of_the_history() {
    planted::plant();
    let members = (1..=3).map(|m| (MemberId(m), format!("log-{m}"))).collect();
    let genesis = Genesis { alpha: 1, ..Genesis::new(ClusterId([1; 16]), members) };
    let mut state = SystemState::new(&genesis);
    let kept = synod_paxos::limits::HISTORY as u64;
    for n in 0..kept {
        let change = match n % 2 {
            0 => add(100 + n),
            _ => Change::Remove { member: MemberId(100 + n - 1) },
        };
        let value = Value::Configuration(entry(n + 1, change)).encode();
        state.apply(Slot(n + 1), &value).unwrap();
    }
    assert_eq!(state.configurations.all().len() as u64, kept);
    let members = BTreeMap::from([(MemberId(7), "new".to_owned())]);
    state.apply(Slot(kept + 1), &Value::Recovered { members }.encode()).unwrap();
    assert_eq!(state.configurations.all().len() as u64, kept);
    assert_eq!(SystemState::decode(state.encode()).as_ref(), Ok(&state));
}
