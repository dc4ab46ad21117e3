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
    /// Learnt chosen, not merely accepted.
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
