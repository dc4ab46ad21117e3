//! Every member that has applied the same prefix has the same chain over it.

use crate::oracle::{Violation, violation};
use std::collections::BTreeMap;
use synod_paxos::{MemberId, Node, Slot};

/// The chain at each slot, as the first member to show it had it.
#[derive(Debug, Default)]
pub struct Agreement(BTreeMap<Slot, (u128, MemberId)>);

impl Agreement {
    /// Compares a member with those before it.
    ///
    /// # Errors
    /// Where the chains differ.
    pub fn check(&mut self, member: MemberId, node: &Node) -> Result<(), Violation> {
        let Some(system) = node.system() else { return Ok(()) };
        let (chain, first) = *self.0.entry(system.applied).or_insert((system.chain, member));
        if chain != system.chain {
            let evidence = format!("{first:?} and {member:?} differ at {:?}", system.applied);
            return violation("agreement", evidence);
        }
        Ok(())
    }
}
