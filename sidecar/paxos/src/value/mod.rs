//! What a slot carries: an encoded value, the same bytes on every wire and every disk.

mod call;
mod entry;
mod fields;

pub use call::{Append, Call, CallError, Checkpoint, Identity, Operation, Origin};
pub use entry::{Entry, HeaderError, Logged, TRACE};
pub use fields::Fields;

use crate::codec::{DecodeError, Reader, Writer};
use crate::configuration::{Change, ConfigurationEntry};
use crate::limits;
use crate::types::{Ballot, MemberId, Slot, Time};
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use core::time::Duration;

/// Version of the encoding, the first byte of every value.
const VERSION: u8 = 1;
/// Version of a batch that has optional fields.
const WITH_FIELDS: u8 = 2;

const NO_OP: u8 = 0;
const LEADER_START: u8 = 1;
const BATCH: u8 = 2;
const CONFIGURATION: u8 = 3;
const MARK: u8 = 4;
const TRIM: u8 = 5;
const RECOVERED: u8 = 6;

const ADD_LEARNER: u8 = 0;
const PROMOTE: u8 = 1;
const REMOVE: u8 = 2;

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
        /// How much log time passes with it: the leader's clock since its previous batch; for its first, since it saw an
        /// earlier leader's applied, or 0.
        advance: Duration,
        /// What else stands beside it, see [`Value::time`]; since level 4.
        fields: Fields,
        /// The calls.
        calls: Vec<Call>,
    },
    /// A membership change.
    Configuration(ConfigurationEntry),
    /// Every member takes a snapshot of its system state at this slot: the log may be trimmed to here later.
    Mark,
    /// Slots up to a mark may be deleted.
    Trim {
        /// The mark's slot.
        through: Slot,
    },
    /// A quorum was lost for good: from the next slot on these vote, and nobody else (docs: protocol.md,
    /// "Quorum lost for good"). Only [`crate::recovery`] makes one, and no leader proposes it.
    Recovered {
        /// The new cluster's voters and their names.
        members: BTreeMap<MemberId, String>,
    },
}

impl Value {
    /// The bytes that are proposed, stored and chained.
    pub fn encode(&self) -> Bytes {
        let payload = match self {
            Value::Batch { calls, .. } => calls.iter().map(Call::encoded_bytes).sum(),
            _ => 64,
        };
        let mut w = Writer::with_capacity(64 + payload);
        w.u8(match self {
            Value::Batch { fields, .. } if !fields.is_empty() => WITH_FIELDS,
            _ => VERSION,
        });
        match self {
            Value::NoOp => w.u8(NO_OP),
            Value::LeaderStart { ballot } => {
                w.u8(LEADER_START);
                w.u64(ballot.round);
                w.u64(ballot.member.0);
            }
            Value::Batch { ballot, advance, fields, calls } if !fields.is_empty() => {
                w.u8(BATCH);
                w.varint(ballot.round);
                w.u64(ballot.member.0);
                w.varint(crate::settings::nanos(*advance));
                fields.write(&mut w);
                w.varint(calls.len() as u64);
                calls.iter().for_each(|call| call.write(&mut w));
            }
            Value::Batch { ballot, advance, fields: _, calls } => {
                w.u8(BATCH);
                w.u64(ballot.round);
                w.u64(ballot.member.0);
                w.u64(crate::settings::nanos(*advance));
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
            Value::Mark => w.u8(MARK),
            Value::Trim { through } => {
                w.u8(TRIM);
                w.u64(through.0);
            }
            Value::Recovered { members } => {
                w.u8(RECOVERED);
                w.length(members.len());
                for (member, name) in members {
                    w.u64(member.0);
                    w.bytes(name.as_bytes());
                }
            }
        }
        w.finish()
    }

    /// The bytes, if every member reads this very value back from them; `None`: it must not be proposed.
    pub fn encode_checked(&self) -> Option<Bytes> {
        let bytes = self.encode();
        let same = || Value::decode(bytes.clone()).is_ok_and(|read| read == *self);
        (bytes.len() <= limits::VALUE_BYTES && same() || planted!(UndecodableProposed)).then_some(bytes)
    }

    /// Reads what [`Value::encode`] wrote; payloads share the bytes.
    ///
    /// # Errors
    /// Where the bytes are not a value that this program knows.
    pub fn decode(bytes: Bytes) -> Result<Value, DecodeError> {
        let mut r = Reader::new(bytes);
        let version = r.u8()?;
        let value = match version {
            VERSION => Value::read(&mut r)?,
            WITH_FIELDS => Value::read_with_fields(&mut r)?,
            _ => return Err(DecodeError::Unknown { what: "value version", found: u64::from(version) }),
        };
        r.end()?;
        Ok(value)
    }

    /// What follows the first version.
    fn read(r: &mut Reader) -> Result<Value, DecodeError> {
        Ok(match r.u8()? {
            NO_OP => Value::NoOp,
            LEADER_START => {
                Value::LeaderStart { ballot: Ballot { round: r.u64()?, member: MemberId(r.u64()?) } }
            }
            BATCH => {
                let ballot = Ballot { round: r.u64()?, member: MemberId(r.u64()?) };
                let advance = Duration::from_nanos(r.u64()?);
                let count = r.length("calls", limits::BATCH_ENTRIES, 25)?;
                Value::Batch { ballot, advance, fields: Fields::NONE, calls: read_calls(r, count)? }
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
            MARK => Value::Mark,
            TRIM => Value::Trim { through: Slot(r.u64()?) },
            RECOVERED => {
                let mut members = BTreeMap::new();
                for _ in 0..r.length("members", limits::MEMBERS, 12)? {
                    let member = MemberId(r.u64()?);
                    // One encoding for each value: a row's bytes are compared and chained.
                    if members.last_key_value().is_some_and(|(last, _)| member <= *last) {
                        return Err(DecodeError::OutOfBounds { what: "order of members", found: member.0 });
                    }
                    members.insert(member, r.text("name", limits::NAME_BYTES)?);
                }
                if members.is_empty() {
                    return Err(DecodeError::OutOfBounds { what: "members", found: 0 });
                }
                Value::Recovered { members }
            }
            found => return Err(DecodeError::Unknown { what: "entry kind", found: u64::from(found) }),
        })
    }

    /// What follows the version with optional fields: a batch, its numbers as short as they are.
    fn read_with_fields(r: &mut Reader) -> Result<Value, DecodeError> {
        match r.u8()? {
            BATCH => {
                let ballot = Ballot { round: r.varint()?, member: MemberId(r.u64()?) };
                let advance = Duration::from_nanos(r.varint()?);
                let fields = entry::read_batch_fields(r)?;
                let count = r.short_length("calls", limits::BATCH_ENTRIES, 25)?;
                Ok(Value::Batch { ballot, advance, fields, calls: read_calls(r, count)? })
            }
            found => Err(DecodeError::Unknown { what: "entry kind", found: u64::from(found) }),
        }
    }

    /// When it was proposed, by the leader's wall clock, where it says so.
    pub fn time(&self) -> Option<Time> {
        match self {
            Value::Batch { fields, .. } => entry::time_of(fields),
            _ => None,
        }
    }
}

fn read_calls(r: &mut Reader, count: usize) -> Result<Vec<Call>, DecodeError> {
    let mut calls = Vec::with_capacity(count);
    for _ in 0..count {
        calls.push(Call::read(r)?);
    }
    Ok(calls)
}

/// The entries that a batch added to the log: all but those of the calls in `skipped`, which are named by their
/// place in it (see [`crate::Applied::skipped`]). Other values add none.
///
/// # Errors
/// Where the bytes are not a value.
pub fn entries_added(value: Bytes, skipped: &[u32]) -> Result<Vec<Logged>, DecodeError> {
    let value = Value::decode(value)?;
    let time = value.time();
    let Value::Batch { calls, .. } = value else { return Ok(Vec::new()) };
    let mut entries = Vec::new();
    for (place, call) in (0..).zip(calls) {
        if let Operation::Append(append) | Operation::FencedAppend { append, .. } = call.operation
            && !skipped.contains(&place)
        {
            entries.extend(append.entries.into_iter().map(|entry| Logged { time, entry }));
        }
    }
    Ok(entries)
}
