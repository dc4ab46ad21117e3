//! What a slot carries: an encoded value, the same bytes on every wire and every disk.

use crate::codec::{DecodeError, Reader, Writer};
use crate::configuration::{Change, ConfigurationEntry};
use crate::limits;
use crate::types::{Ballot, Incarnation, Index, MemberId, RequestId};
use alloc::vec::Vec;
use bytes::Bytes;

/// Version of the encoding, the first byte of every value.
const VERSION: u8 = 1;

const NO_OP: u8 = 0;
const LEADER_START: u8 = 1;
const BATCH: u8 = 2;
const CONFIGURATION: u8 = 3;
// Kinds 4 to 15 have their place: sessions, settings, trim, cursors, log time, checkpoints.

const ADD_LEARNER: u8 = 0;
const PROMOTE: u8 = 1;
const REMOVE: u8 = 2;

/// Who took a call from its client: that member answers it when the call is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The member whose socket took it.
    pub member: MemberId,
    /// Its incarnation then: request ids start anew with each.
    pub incarnation: Incarnation,
    /// The request there.
    pub request: RequestId,
}

/// One append call: its entries share one slot and get neighbouring indexes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Who answers it.
    pub origin: Origin,
    /// The last index before the call, where the client demands one; decided at apply.
    pub expected_index: Option<Index>,
    /// The payloads; at least one.
    pub entries: Vec<Bytes>,
}

impl Call {
    /// Payload bytes in all.
    pub fn payload_bytes(&self) -> usize {
        self.entries.iter().map(Bytes::len).sum()
    }

    /// Checks the bounds that the log holds calls to.
    ///
    /// # Errors
    /// What is too large, or that there is no entry at all.
    pub fn validate(&self) -> Result<(), CallError> {
        if self.entries.is_empty() {
            return Err(CallError::Empty);
        }
        if let Some(bytes) = self.entries.iter().map(Bytes::len).find(|&n| n > limits::ENTRY_BYTES) {
            return Err(CallError::EntryTooLarge { bytes });
        }
        let bytes = self.payload_bytes();
        if bytes > limits::BATCH_BYTES || self.entries.len() > limits::BATCH_ENTRIES {
            return Err(CallError::CallTooLarge { bytes, entries: self.entries.len() });
        }
        Ok(())
    }

    /// The call alone, as a forwarded append carries it.
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(64 + self.payload_bytes() + 4 * self.entries.len());
        self.write(&mut w);
        w.finish()
    }

    /// Reads what [`Call::encode`] wrote.
    ///
    /// # Errors
    /// Where the bytes are not a call within its bounds.
    pub fn decode(bytes: Bytes) -> Result<Call, DecodeError> {
        let mut r = Reader::new(bytes);
        let call = Call::read(&mut r)?;
        r.end()?;
        Ok(call)
    }

    fn write(&self, w: &mut Writer) {
        w.u64(self.origin.member.0);
        w.u64(self.origin.incarnation.0);
        w.u64(self.origin.request.0);
        // Bit 0: an expected index. The other bits have their place: session, key.
        w.u8(u8::from(self.expected_index.is_some()));
        if let Some(index) = self.expected_index {
            w.u64(index.0);
        }
        w.length(self.entries.len());
        for entry in &self.entries {
            w.bytes(entry);
        }
    }

    fn read(r: &mut Reader) -> Result<Call, DecodeError> {
        let origin = Origin {
            member: MemberId(r.u64()?),
            incarnation: Incarnation(r.u64()?),
            request: RequestId(r.u64()?),
        };
        let expected_index = match r.u8()? {
            0 => None,
            1 => Some(Index(r.u64()?)),
            found => return Err(DecodeError::Unknown { what: "call option", found: u64::from(found) }),
        };
        let count = r.length("entries", limits::BATCH_ENTRIES, 4)?;
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            entries.push(r.bytes("entry", limits::ENTRY_BYTES)?);
        }
        let call = Call { origin, expected_index, entries };
        match call.validate() {
            Ok(()) => Ok(call),
            Err(_) => Err(DecodeError::OutOfBounds { what: "call", found: call.payload_bytes() as u64 }),
        }
    }
}

/// Why a call is refused before it reaches the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No entry.
    #[error("a call needs at least one entry (an empty entry is fine)")]
    Empty,
    /// One entry over its bound.
    #[error(
        "an entry of {bytes} bytes is over the limit of {}: keep large data elsewhere and log where it is",
        limits::ENTRY_BYTES
    )]
    EntryTooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The whole call over its bound.
    #[error(
        "a call of {entries} entries and {bytes} bytes is over the limit of {} entries and {} bytes: send several calls",
        limits::BATCH_ENTRIES,
        limits::BATCH_BYTES
    )]
    CallTooLarge {
        /// Payload bytes.
        bytes: usize,
        /// Entries.
        entries: usize,
    },
}

/// What one slot decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Fills a slot that nobody wrote to; no effect.
    NoOp,
    /// The first new entry of a leader; its slot is the fencing epoch.
    LeaderStart {
        /// The ballot it leads under.
        ballot: Ballot,
    },
    /// Application calls, in order.
    Batch {
        /// The ballot of the leader that took them. Behind a LeaderStart of a higher ballot the batch is void
        /// (docs: decisions/0002).
        ballot: Ballot,
        /// The calls.
        calls: Vec<Call>,
    },
    /// A membership change.
    Configuration(ConfigurationEntry),
}

impl Value {
    /// The bytes that are proposed, stored and chained.
    pub fn encode(&self) -> Bytes {
        let payload = match self {
            Value::Batch { calls, .. } => {
                calls.iter().map(|c| 64 + c.payload_bytes() + 4 * c.entries.len()).sum()
            }
            _ => 64,
        };
        let mut w = Writer::with_capacity(32 + payload);
        w.u8(VERSION);
        match self {
            Value::NoOp => w.u8(NO_OP),
            Value::LeaderStart { ballot } => {
                w.u8(LEADER_START);
                w.u64(ballot.round);
                w.u64(ballot.member.0);
            }
            Value::Batch { ballot, calls } => {
                w.u8(BATCH);
                w.u64(ballot.round);
                w.u64(ballot.member.0);
                w.length(calls.len());
                calls.iter().for_each(|call| call.write(&mut w));
            }
            Value::Configuration(entry) => {
                w.u8(CONFIGURATION);
                w.u64(entry.expected_version);
                w.array(&entry.operation);
                let (kind, member) = match &entry.change {
                    Change::AddLearner { member, .. } => (ADD_LEARNER, member),
                    Change::Promote { member } => (PROMOTE, member),
                    Change::Remove { member } => (REMOVE, member),
                };
                w.u8(kind);
                w.u64(member.0);
                if let Change::AddLearner { name, .. } = &entry.change {
                    w.bytes(name.as_bytes());
                }
            }
        }
        w.finish()
    }

    /// Reads what [`Value::encode`] wrote; payloads share the bytes.
    ///
    /// # Errors
    /// Where the bytes are not a value that this program knows.
    pub fn decode(bytes: Bytes) -> Result<Value, DecodeError> {
        let mut r = Reader::new(bytes);
        let version = r.u8()?;
        if version != VERSION {
            return Err(DecodeError::Unknown { what: "value version", found: u64::from(version) });
        }
        let value = match r.u8()? {
            NO_OP => Value::NoOp,
            LEADER_START => {
                Value::LeaderStart { ballot: Ballot { round: r.u64()?, member: MemberId(r.u64()?) } }
            }
            BATCH => {
                let ballot = Ballot { round: r.u64()?, member: MemberId(r.u64()?) };
                let count = r.length("calls", limits::BATCH_ENTRIES, 29)?;
                let mut calls = Vec::with_capacity(count);
                for _ in 0..count {
                    calls.push(Call::read(&mut r)?);
                }
                Value::Batch { ballot, calls }
            }
            CONFIGURATION => {
                let expected_version = r.u64()?;
                let operation = r.array()?;
                let kind = r.u8()?;
                let member = MemberId(r.u64()?);
                let change = match kind {
                    ADD_LEARNER => Change::AddLearner { member, name: r.text("name", limits::NAME_BYTES)? },
                    PROMOTE => Change::Promote { member },
                    REMOVE => Change::Remove { member },
                    found => return Err(DecodeError::Unknown { what: "change", found: u64::from(found) }),
                };
                Value::Configuration(ConfigurationEntry { expected_version, operation, change })
            }
            found => return Err(DecodeError::Unknown { what: "entry kind", found: u64::from(found) }),
        };
        r.end()?;
        Ok(value)
    }
}
