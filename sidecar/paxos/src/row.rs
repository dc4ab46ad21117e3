//! One accepted or learnt slot as it is stored and sent.

use crate::types::{Ballot, ClusterId, Slot};
use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

/// What an acceptor holds for one slot.
#[derive(Clone, PartialEq, Eq)]
pub struct Row {
    /// Which slot.
    pub slot: Slot,
    /// The ballot it was accepted under; for a value learnt chosen, the ballot it was reported with.
    pub ballot: Ballot,
    /// Learnt chosen, not merely accepted. [`checksum`] does not cover it, [`cover`] does where the row is stored.
    pub chosen: bool,
    /// An encoded [`crate::value::Value`].
    pub value: Bytes,
    /// [`checksum`] of the above.
    pub checksum: u64,
}

impl Row {
    /// Whether the checksum fits the content in this cluster.
    pub fn is_intact(&self, cluster: ClusterId) -> bool {
        self.checksum == checksum(cluster, self.slot, self.ballot, &self.value)
    }
}

impl core::fmt::Debug for Row {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let mark = if self.chosen { "!" } else { "" };
        write!(f, "{:?}@{:?}{mark}({}B)", self.slot, self.ballot, self.value.len())
    }
}

/// xxh3-64 over cluster id, slot, ballot and value: a row read from another place, or of another cluster,
/// does not pass for this one (docs: protocol.md, "Integrity"; reliability.md, fault 6).
pub fn checksum(cluster: ClusterId, slot: Slot, ballot: Ballot, value: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&cluster.0);
    hash.update(&slot.0.to_le_bytes());
    hash.update(&ballot.round.to_le_bytes());
    hash.update(&ballot.member.0.to_le_bytes());
    hash.update(value);
    hash.digest()
}

/// Odd, so that no two bytes change a checksum in the same way.
const CHOSEN_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// The checksum that a row is stored with: it covers the byte that says whether the row is chosen, too. A flipped bit
/// there must not show a vote as a chosen value.
pub fn cover(checksum: u64, chosen: u8) -> u64 {
    if planted!(FlagTrusted) {
        return checksum;
    }
    checksum ^ CHOSEN_FACTOR.wrapping_mul(u64::from(chosen))
}

/// Reads what [`cover`] wrote: whether the row is chosen, and its [`checksum`], which does not fit where the byte is
/// not the one that was written.
pub fn uncover(stored: u64, chosen: u8) -> (bool, u64) {
    (chosen != 0, cover(stored, chosen))
}
