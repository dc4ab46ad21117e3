//! A removed voter stops answering only when it is not needed any more: every slot that it may have voted in is
//! chosen, and a quorum of a configuration without it has had that prefix on disk and known it chosen.

use crate::oracle::{Violation, violation};
use std::collections::{BTreeMap, BTreeSet};
use synod_paxos::configuration::ConfigurationHistory;
use synod_paxos::{MemberId, Slot};

/// The highest chosen prefix that each disk ever held.
#[derive(Debug, Default)]
pub struct Retirement(BTreeMap<MemberId, Slot>);

impl Retirement {
    /// A disk holds the prefix up to `through`, and knows it chosen.
    pub fn holds(&mut self, member: MemberId, through: Slot) {
        let held = self.0.entry(member).or_default();
        *held = through.max(*held);
    }

    /// `member` stops now; `history` is the newest that anybody has.
    ///
    /// # Errors
    /// Where its vote may still be needed.
    pub fn check(&self, member: MemberId, history: &ConfigurationHistory) -> Result<(), Violation> {
        let gone = |c: &&synod_paxos::configuration::Configuration| {
            c.removed.as_ref().is_some_and(|(removed, _)| *removed == member)
        };
        let Some(without) = history.all().iter().find(gone) else {
            // Longer ago than the history reaches, or never.
            return match history.removed_in(member) {
                Some(_) => Ok(()),
                None => violation("only the removed retire", format!("{member:?} was never removed")),
            };
        };
        let needed = without.effective_from.previous();
        let holding: BTreeSet<MemberId> =
            self.0.iter().filter(|(_, held)| **held >= needed).map(|(member, _)| *member).collect();
        let mut later = history.all().iter().filter(|c| c.version >= without.version);
        match later.any(|c| c.has_quorum(&holding)) {
            true => Ok(()),
            false => violation(
                "the removed answer until a quorum holds their prefix",
                format!("{member:?} stops; only {holding:?} have {needed:?} on disk"),
            ),
        }
    }
}
