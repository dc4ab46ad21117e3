//! What must hold in every state, judged from votes on disks and from what was applied, apart from what the core
//! believes.
//!
//! | property | source |
//! |---|---|
//! | agreement | *Paxos Made Simple*, 2.1: "only a single value is chosen" |
//! | a chosen value stays | P2b: every higher-numbered proposal *issued* has the chosen value |
//! | only chosen values are applied | 2.1: "a process never learns that a value has been chosen unless it actually has been" |
//! | validity | 2.1: "only a value that has been proposed may be chosen" |
//! | no promise is taken back | P1a; [`crate::member`] notes it at every write |

use crate::model::{Model, State};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use synod_paxos::configuration::Change;
use synod_paxos::system::SystemState;
use synod_paxos::value::{Operation, Value};
use synod_paxos::{Ballot, MemberId, Slot};

/// What was chosen in a slot, and under which ballots.
type Chosen = BTreeMap<Slot, Vec<(Ballot, Bytes)>>;

/// Counts votes: a value is chosen in a slot when a majority of the slot's voters has had it on disk under one
/// ballot. A vote given by a chosen entry in slot i counts from slot i + alpha on.
fn chosen(model: &Model, state: &State) -> Chosen {
    let mut ballots: BTreeMap<(Slot, Ballot), (BTreeSet<MemberId>, &Bytes)> = BTreeMap::new();
    for (member, slot, ballot, value) in state.votes() {
        ballots.entry((slot, ballot)).or_insert((BTreeSet::new(), value)).0.insert(member);
    }
    let founders: BTreeSet<MemberId> = model.genesis.members.keys().copied().collect();
    let mut joined: Vec<(Slot, MemberId)> = Vec::new();
    let mut chosen = Chosen::new();
    for ((slot, ballot), (members, value)) in ballots {
        let later = joined.iter().filter(|(from, _)| *from <= slot).map(|(_, member)| *member);
        let voters: BTreeSet<MemberId> = founders.iter().copied().chain(later).collect();
        if members.intersection(&voters).count() <= voters.len() / 2 {
            continue;
        }
        if let Ok(Value::Configuration(entry)) = Value::decode(value.clone())
            && let Change::Promote { member } = entry.change
        {
            joined.push((slot.plus(u64::from(model.genesis.alpha)), member));
        }
        chosen.entry(slot).or_default().push((ballot, value.clone()));
    }
    chosen
}

/// What the properties say of a state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// No slot is chosen with two values.
    pub agreement: bool,
    /// No vote under a higher ballot is for another value.
    pub chosen_stays: bool,
    /// Whatever any member has applied is the chosen values in order.
    pub applied_is_chosen: bool,
    /// Every vote is for something that somebody proposed.
    pub validity: bool,
    /// No assertion of the core failed, and no member's disk took a promise back.
    pub unbroken: bool,
    /// The last slot within the bound is chosen: a search that never gets there proves little.
    pub last_slot_chosen: bool,
}

impl Verdict {
    /// Of a state that was not judged yet.
    pub const HOLDS: Verdict = Verdict {
        agreement: true,
        chosen_stays: true,
        applied_is_chosen: true,
        validity: true,
        unbroken: true,
        last_slot_chosen: true,
    };

    /// What is broken in either, and else what the `other`, later one says.
    pub fn and(self, other: Verdict) -> Verdict {
        Verdict {
            agreement: self.agreement && other.agreement,
            chosen_stays: self.chosen_stays && other.chosen_stays,
            applied_is_chosen: self.applied_is_chosen && other.applied_is_chosen,
            validity: self.validity && other.validity,
            unbroken: self.unbroken && other.unbroken,
            last_slot_chosen: other.last_slot_chosen,
        }
    }

    /// Nothing is broken.
    pub fn holds(self) -> bool {
        self.agreement && self.chosen_stays && self.applied_is_chosen && self.validity && self.unbroken
    }
}

/// Judges a state.
pub fn judge(model: &Model, state: &State) -> Verdict {
    let chosen = chosen(model, state);
    Verdict {
        agreement: agreement(&chosen),
        chosen_stays: chosen_stays(&chosen, state),
        applied_is_chosen: applied_is_chosen(model, &chosen, state),
        validity: validity(state),
        unbroken: state.seats.iter().all(|seat| seat.facts.broken.is_none()),
        last_slot_chosen: chosen.contains_key(&Slot(model.bounds.slots)),
    }
}

fn agreement(chosen: &Chosen) -> bool {
    chosen.values().all(|all| all.windows(2).all(|pair| pair[0].1 == pair[1].1))
}

fn chosen_stays(chosen: &Chosen, state: &State) -> bool {
    state.votes().all(|(_, slot, ballot, value)| {
        chosen
            .get(&slot)
            .is_none_or(|all| all.iter().all(|(under, chosen)| ballot < *under || value == chosen))
    })
}

/// The chain of whatever was applied is that of a log made of the chosen values.
fn applied_is_chosen(model: &Model, chosen: &Chosen, state: &State) -> bool {
    let mut log = SystemState::new(&model.genesis);
    let mut chains = BTreeMap::from([(log.applied, log.chain)]);
    while let Some(all) = chosen.get(&log.applied.next()) {
        if log.apply(log.applied.next(), &all[0].1).is_err() {
            return false;
        }
        chains.insert(log.applied, log.chain);
    }
    let mut applied = state.seats.iter().filter_map(|seat| seat.facts.applied);
    applied.all(|(slot, chain)| chains.get(&slot) == Some(&chain))
}

/// Every vote is for something that somebody proposed: an append, a no-op, the start of a ballot at or below the
/// vote's, or the one change of the search.
fn validity(state: &State) -> bool {
    state.votes().all(|(_, _, ballot, value)| match Value::decode(value.clone()) {
        Ok(Value::NoOp | Value::Configuration(_)) => true,
        Ok(Value::LeaderStart { ballot: started }) => started <= ballot,
        Ok(Value::Batch { calls, .. }) => calls.iter().all(|call| match &call.operation {
            Operation::Append(append) => {
                append.entries.iter().all(|e| e.payload.len() as u64 == call.origin.member.0)
            }
            _ => false,
        }),
        _ => false,
    })
}
