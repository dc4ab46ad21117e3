//! A value is applied only when it is chosen: a quorum of conf(slot) holds it on disk under one ballot. And once
//! it is, nobody votes for another value there under a higher ballot.
//!
//! Votes are counted from the disks themselves, so that no member's own bookkeeping is believed.

use crate::invariants::told;
use crate::oracle::{Violation, violation};
use std::collections::{BTreeMap, BTreeSet};
use synod_paxos::{Ballot, MemberId, Node, Row, Slot};
use xxhash_rust::xxh3::xxh3_64;

type Votes = BTreeMap<(Ballot, u64), BTreeSet<MemberId>>;

/// Votes on disks, by slot, ballot and value; and what was chosen.
#[derive(Debug, Default)]
pub struct Chosen {
    votes: BTreeMap<Slot, Votes>,
    /// The value's hash, and the lowest ballot under which a quorum was seen to have it.
    chosen: BTreeMap<Slot, (u64, Ballot)>,
}

impl Chosen {
    /// A row became durable at `member`. Learnt rows are no votes.
    ///
    /// # Errors
    /// Where it votes for another value than was chosen there under a lower ballot, or has one as chosen.
    pub fn voted(&mut self, member: MemberId, row: &Row) -> Result<(), Violation> {
        if row.chosen {
            return told::check_row(self, member, row);
        }
        let value = xxh3_64(&row.value);
        match self.chosen.get(&row.slot) {
            None => {
                let votes = self.votes.entry(row.slot).or_default();
                votes.entry((row.ballot, value)).or_default().insert(member);
                Ok(())
            }
            Some((chosen, under)) if *under < row.ballot && *chosen != value => violation(
                "a chosen value never changes",
                format!("{member:?} votes {row:?}, another value was chosen under {under:?}"),
            ),
            Some(_) => Ok(()),
        }
    }

    /// Whether `row` is what a quorum of its slot's configuration is seen to have voted for, in a slot that nobody had
    /// applied before this step.
    pub fn is_winner(&self, node: &Node, row: &Row) -> bool {
        let voters = self.votes.get(&row.slot).and_then(|v| v.get(&(row.ballot, xxh3_64(&row.value))));
        let configuration = node.system().map(|system| system.configurations.at(row.slot));
        voters.zip(configuration).is_some_and(|(voters, configuration)| configuration.has_quorum(voters))
    }

    /// The hash of what was chosen in `slot`, if anybody has applied it.
    pub fn value(&self, slot: Slot) -> Option<u64> {
        self.chosen.get(&slot).map(|(value, _)| *value)
    }

    /// `node` has applied every slot up to `applied`: those not seen before must have been chosen.
    ///
    /// # Errors
    /// Where a slot was applied without a quorum of durable votes for one value under one ballot.
    pub fn check(&mut self, node: &Node, applied: Slot) -> Result<(), Violation> {
        let Some(system) = node.system() else { return Ok(()) };
        let mut slot = self.chosen.last_key_value().map_or(Slot(1), |(last, _)| last.next());
        while slot <= applied {
            let configuration = system.configurations.at(slot);
            let votes = self.votes.remove(&slot).unwrap_or_default();
            let winner = votes.iter().find(|(_, voters)| configuration.has_quorum(voters));
            let Some(((ballot, value), _)) = winner else {
                let evidence = format!("{slot:?} applied with only these durable votes: {votes:?}");
                return violation("applied only if chosen", evidence);
            };
            self.chosen.insert(slot, (*value, *ballot));
            slot = slot.next();
        }
        Ok(())
    }
}
