//! What is promised on disk never goes down.

use crate::oracle::{Violation, violation};
use std::collections::BTreeMap;
use synod_paxos::{Ballot, MemberId};

/// The highest durable promise of each disk.
#[derive(Debug, Default)]
pub struct Promises(BTreeMap<MemberId, Ballot>);

impl Promises {
    /// The disk lost what it had acknowledged: it begins anew.
    pub fn forget(&mut self, member: MemberId) {
        self.0.remove(&member);
    }

    /// Compares a disk with what it held before.
    ///
    /// # Errors
    /// Where a promise was lowered.
    pub fn check(&mut self, member: MemberId, promised: Ballot) -> Result<(), Violation> {
        let held = self.0.entry(member).or_insert(promised);
        if promised < *held {
            return violation("promises hold", format!("{member:?} promised {held:?}, now {promised:?}"));
        }
        *held = promised;
        Ok(())
    }
}
