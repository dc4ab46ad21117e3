//! The replicated state that the core itself keeps: what applying a slot changes.
//!
//! It is a pure function of the chosen values, so that every member that has applied the same prefix holds
//! the same bytes.

use crate::codec::{DecodeError, Reader, Writer};
use crate::configuration::{ChangeRefused, Configuration, ConfigurationHistory, OperationId};
use crate::genesis::Genesis;
use crate::types::{Ballot, Index, MemberId, Slot};
use crate::value::{Call, Origin, Value};
use alloc::vec::Vec;
use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

/// Version of the encoding.
const VERSION: u8 = 1;
/// Leaderships that the history keeps.
const LEADERS: usize = 1_024;

/// State after every slot up to `applied`. Invariant: `last_index` counts the entries of all applied batches
/// that were not refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemState {
    /// Every slot up to it is in this state.
    pub applied: Slot,
    /// The last application entry's index; 0 while there is none.
    pub last_index: Index,
    /// Who votes where.
    pub configurations: ConfigurationHistory,
    /// LeaderStart entries, oldest first: fencing epoch and ballot. The newest `LEADERS` are kept.
    pub leaders: Vec<(Slot, Ballot)>,
    /// chain(applied): over the previous chain, slot, chosen bytes, first index and outcomes (docs:
    /// protocol.md, "Integrity").
    pub chain: u128,
}

/// What became of one call when its slot was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallOutcome {
    /// Who answers it.
    pub origin: Origin,
    /// First and last index, or the last index where it was not the expected one.
    pub result: Result<(Index, Index), Index>,
}

/// What applying one slot did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing that anyone sees.
    None,
    /// A leader may serve.
    LeaderStart(Ballot),
    /// Entries were added, or refused.
    Batch {
        /// The first added entry's index.
        first: Index,
        /// The added entries.
        entries: Vec<Bytes>,
        /// One for each call.
        calls: Vec<CallOutcome>,
    },
    /// A configuration entry was judged.
    Configuration {
        /// Whose.
        operation: OperationId,
        /// What it made, or why it made nothing.
        result: Result<Configuration, ChangeRefused>,
    },
}

impl SystemState {
    /// Before the first slot.
    pub fn new(genesis: &Genesis) -> SystemState {
        SystemState {
            applied: Slot(0),
            last_index: Index(0),
            configurations: ConfigurationHistory::new(genesis),
            leaders: Vec::new(),
            chain: 0,
        }
    }

    /// Applies the value chosen in the next slot.
    ///
    /// # Errors
    /// Where the value cannot be decoded: an unknown entry kind halts the member.
    ///
    /// # Panics
    /// If `slot` is not the next one: applying out of order would diverge.
    pub fn apply(&mut self, slot: Slot, bytes: &Bytes) -> Result<Effect, DecodeError> {
        assert!(slot == self.applied.next(), "applied {slot:?} behind {:?}", self.applied);
        let value = Value::decode(bytes.clone())?;
        let first = self.last_index.next();
        let effect = match value {
            Value::NoOp => Effect::None,
            Value::LeaderStart { ballot } => {
                self.leaders.push((slot, ballot));
                if self.leaders.len() > LEADERS {
                    self.leaders.remove(0);
                }
                Effect::LeaderStart(ballot)
            }
            // A batch behind the LeaderStart of a higher ballot: its calls were told that they are not
            // appended, so they never are.
            Value::Batch { ballot, .. } if self.is_void(ballot) => Effect::None,
            Value::Batch { calls, .. } => {
                let mut entries = Vec::new();
                let outcomes = calls.into_iter().map(|call| self.apply_call(call, &mut entries)).collect();
                Effect::Batch { first, entries, calls: outcomes }
            }
            Value::Configuration(entry) => Effect::Configuration {
                operation: entry.operation,
                result: self.configurations.apply(slot, &entry).cloned(),
            },
        };
        self.applied = slot;
        self.chain = self.next_chain(slot, bytes, first);
        Ok(effect)
    }

    fn is_void(&self, ballot: Ballot) -> bool {
        self.newest_leader().is_some_and(|(_, newest)| ballot < newest) && !planted!(VoidBatchApplied)
    }

    fn apply_call(&mut self, call: Call, entries: &mut Vec<Bytes>) -> CallOutcome {
        let tail = self.last_index;
        if call.expected_index.is_some_and(|expected| expected != tail) {
            return CallOutcome { origin: call.origin, result: Err(tail) };
        }
        self.last_index = tail.plus(call.entries.len() as u64);
        entries.extend(call.entries);
        CallOutcome { origin: call.origin, result: Ok((tail.next(), self.last_index)) }
    }

    fn next_chain(&self, slot: Slot, bytes: &Bytes, first: Index) -> u128 {
        let mut hash = Xxh3::new();
        hash.update(&self.chain.to_le_bytes());
        hash.update(&slot.0.to_le_bytes());
        hash.update(bytes);
        hash.update(&first.0.to_le_bytes());
        hash.update(&self.last_index.0.to_le_bytes());
        hash.digest128()
    }

    /// The ballot of the newest LeaderStart and its slot, the fencing epoch.
    pub fn newest_leader(&self) -> Option<(Slot, Ballot)> {
        self.leaders.last().copied()
    }

    /// Whether `member` was removed by an applied entry.
    pub fn is_removed(&self, member: MemberId) -> bool {
        self.configurations.removed_in(member).is_some()
    }

    /// The bytes that are stored beside the rows.
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(256 + self.leaders.len() * 24);
        w.u8(VERSION);
        w.u64(self.applied.0);
        w.u64(self.last_index.0);
        w.array(&self.chain.to_le_bytes());
        self.configurations.encode(&mut w);
        w.length(self.leaders.len());
        for (slot, ballot) in &self.leaders {
            w.u64(slot.0);
            w.u64(ballot.round);
            w.u64(ballot.member.0);
        }
        w.finish()
    }

    /// Reads what [`SystemState::encode`] wrote.
    ///
    /// # Errors
    /// Where the bytes are not a system state of a known version.
    pub fn decode(bytes: Bytes) -> Result<SystemState, DecodeError> {
        let mut r = Reader::new(bytes);
        let version = r.u8()?;
        if version != VERSION {
            return Err(DecodeError::Unknown { what: "system state version", found: u64::from(version) });
        }
        let (applied, last_index) = (Slot(r.u64()?), Index(r.u64()?));
        let chain = u128::from_le_bytes(r.array()?);
        let configurations = ConfigurationHistory::decode(&mut r)?;
        let count = r.length("leaders", LEADERS, 24)?;
        let mut leaders = Vec::with_capacity(count);
        for _ in 0..count {
            let slot = Slot(r.u64()?);
            leaders.push((slot, Ballot { round: r.u64()?, member: MemberId(r.u64()?) }));
        }
        r.end()?;
        Ok(SystemState { applied, last_index, configurations, leaders, chain })
    }
}
