//! Every member's snapshot at a slot is the same bytes, and one that is installed is the whole state.

use crate::oracle::{Violation, violation};
use std::collections::BTreeMap;
use synod_paxos::{MemberId, Node, Slot, Write};
use xxhash_rust::xxh3::xxh3_128;

/// The snapshot at each slot, as the first member to have it on disk had it.
#[derive(Debug, Default)]
pub struct Snapshots(BTreeMap<Slot, (u128, MemberId)>);

impl Snapshots {
    /// A write is on its way to `member`'s disk.
    ///
    /// # Errors
    /// Where it is another snapshot than an earlier one at its slot.
    pub fn written(&mut self, member: MemberId, write: &Write) -> Result<(), Violation> {
        let (Write::Snapshot { slot, state } | Write::Install { slot, state }) = write else { return Ok(()) };
        let hash = xxh3_128(state);
        let (held, first) = *self.0.entry(*slot).or_insert((hash, member));
        match held == hash {
            true => Ok(()),
            false => violation(
                "snapshots are the same everywhere",
                format!("{first:?} and {member:?} differ at {slot:?}"),
            ),
        }
    }

    /// `member` has taken the snapshot at `slot` for its state.
    ///
    /// # Errors
    /// Where its state is another.
    pub fn installed(&self, member: MemberId, slot: Slot, node: &Node) -> Result<(), Violation> {
        let Some(system) = node.system().filter(|system| system.applied == slot) else { return Ok(()) };
        match self.0.get(&slot) {
            Some((held, from)) if *held != xxh3_128(&system.encode()) => violation(
                "an installed snapshot is the state",
                format!("{member:?} installed {slot:?}, and its state is not what {from:?} had there"),
            ),
            _ => Ok(()),
        }
    }
}
