//! What clients ask of the log: calls, their operations, and how a repeat is told from a new one.

use super::entry::{Entry, HeaderError};
use super::fields::Fields;
use crate::codec::{DecodeError, Reader, Writer};
use crate::limits;
use crate::names::{self, NameError};
use crate::settings::{Settings, SettingsError, nanos};
use crate::types::{Digest, Incarnation, Index, MemberId, RequestId, SessionId, Slot};
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use core::time::Duration;
use xxhash_rust::xxh3::Xxh3;

const APPEND: u8 = 0;
const OPEN_SESSION: u8 = 1;
const CLOSE_SESSION: u8 = 2;
const SET_CURSOR: u8 = 3;
const REMOVE_CURSOR: u8 = 4;
const CHANGE_SETTINGS: u8 = 5;
const SAVE_CHECKPOINT: u8 = 6;
const ADVANCE_CURSOR: u8 = 7;
const OPEN_SESSION_AS: u8 = 8;
const FENCED_APPEND: u8 = 9;
const SEEK_CURSOR: u8 = 10;
const LEASE_CURSOR: u8 = 11;

const EXPECTED_INDEX: u8 = 1;
const WITH_SESSION: u8 = 2;
const WITH_KEY: u8 = 4;
const MINTED_AT: u8 = 8;
const WITH_FIELDS: u8 = 16;

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

/// One client's call: what it asks for, and who answers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Who answers it.
    pub origin: Origin,
    /// What it asks for.
    pub operation: Operation,
}

/// What a call asks for; decided when it is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Entries.
    Append(Append),
    /// Entries that are refused once a later leadership than `fence` has started; since level 3.
    FencedAppend {
        /// The fencing epoch of the leadership that the caller goes by.
        fence: Slot,
        /// The entries.
        append: Append,
    },
    /// A new session, under an id that the log gives.
    OpenSession,
    /// A new session under a number that its member drew, so that nobody guesses it; since level 2.
    OpenSessionAs {
        /// Not 0.
        session: SessionId,
    },
    /// The end of a session.
    CloseSession {
        /// Which.
        session: SessionId,
    },
    /// Registers a cursor or moves it on; it never goes back. The log is not trimmed past it.
    SetCursor {
        /// Its name, 1 to [`limits::NAME_BYTES`] bytes.
        name: String,
        /// What its owner is done with.
        index: Index,
    },
    /// Moves a cursor on that is registered; one that was removed stays removed.
    AdvanceCursor {
        /// Its name.
        name: String,
        /// What its owner is done with.
        index: Index,
    },
    /// Puts a cursor that is registered anywhere in the log, back as well; since level 4.
    SeekCursor {
        /// Its name.
        name: String,
        /// What its owner is done with from now on.
        index: Index,
    },
    /// As [`Operation::SetCursor`]; and the cursor is removed once its owner has not been heard of for `expiry` of log time.
    /// Since level 4.
    LeaseCursor {
        /// Its name.
        name: String,
        /// What its owner is done with.
        index: Index,
        /// [`limits::CURSOR_EXPIRY`]; zero: never, from now on.
        expiry: Duration,
    },
    /// Removes a cursor.
    RemoveCursor {
        /// Its name.
        name: String,
    },
    /// New settings in place of those of a version.
    ChangeSettings {
        /// The version that the change was planned from.
        expected_version: u64,
        /// All of them; the version within is ignored.
        settings: Settings,
    },
    /// The application has saved its state at an index: the log is never trimmed past the newest checkpoint.
    SaveCheckpoint(Checkpoint),
}

/// An application's state at an index, as the log knows it; the bytes themselves lie beside the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Every entry up to it is in the state.
    pub index: Index,
    /// Bytes of the state.
    pub length: u64,
    /// SHA-256 of the state.
    pub digest: Digest,
}

/// Entries that share one slot and get neighbouring indexes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// How a repeat of this call is told from a new one.
    pub identity: Identity,
    /// The last index before the call, where the client demands one; decided at apply.
    pub expected_index: Option<Index>,
    /// At least one; since level 4 with headers.
    pub entries: Vec<Entry>,
}

/// How a repeat is told from a new call (docs: protocol.md, "Sessions: exactly once").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Identity {
    /// Not at all: such a call is never sent again by us.
    #[default]
    None,
    /// By its number in a session.
    Session {
        /// Which.
        session: SessionId,
        /// 1 for the session's first call, +1 for each.
        sequence: u64,
        /// The client has the answers of all calls up to this one: their rows may be forgotten.
        acknowledged: u64,
    },
    /// By a key of the client's choice.
    Key {
        /// 1 to [`limits::KEY_BYTES`] bytes.
        key: Bytes,
        /// An index that the client had seen when it chose the key: a retry after the key was evicted is then
        /// refused rather than appended again.
        minted_at: Option<Index>,
    },
}

impl Operation {
    /// The entries that it asks for, fenced or not.
    pub fn as_append(&self) -> Option<&Append> {
        match self {
            Operation::Append(append) | Operation::FencedAppend { append, .. } => Some(append),
            Operation::OpenSession
            | Operation::OpenSessionAs { .. }
            | Operation::CloseSession { .. }
            | Operation::SetCursor { .. }
            | Operation::AdvanceCursor { .. }
            | Operation::SeekCursor { .. }
            | Operation::LeaseCursor { .. }
            | Operation::RemoveCursor { .. }
            | Operation::ChangeSettings { .. }
            | Operation::SaveCheckpoint(_) => None,
        }
    }
}

impl Append {
    /// Entries without an identity or a condition.
    pub fn plain(payloads: Vec<Bytes>) -> Append {
        let entries = payloads.into_iter().map(Entry::from).collect();
        Append { identity: Identity::None, expected_index: None, entries }
    }

    /// Whether anything stands beside the payload of an entry.
    pub fn has_fields(&self) -> bool {
        self.entries.iter().any(Entry::has_fields)
    }

    /// Bytes of its entries in all.
    pub fn size(&self) -> usize {
        self.entries.iter().map(Entry::size).sum()
    }

    /// Tells another content under the same key or number from a repeat: xxh3-128 over the condition and the
    /// payloads with their lengths, and what stands beside them but for [`TRACE`](super::TRACE).
    pub fn digest(&self) -> u128 {
        let mut hash = Xxh3::new();
        hash.update(&self.expected_index.map_or(u64::MAX, |index| index.0).to_le_bytes());
        for entry in &self.entries {
            hash.update(&(entry.payload.len() as u64).to_le_bytes());
            hash.update(&entry.payload);
        }
        let compared: Vec<Fields> = match self.has_fields() {
            true => self.entries.iter().map(Entry::compared).collect(),
            false => Vec::new(),
        };
        if compared.iter().any(|fields| !fields.is_empty()) {
            // No payload has this length.
            hash.update(&u64::MAX.to_le_bytes());
            for fields in &compared {
                hash.update(&(fields.len() as u64).to_le_bytes());
                hash.update(fields.bytes());
            }
        }
        hash.digest128()
    }

    fn validate(&self) -> Result<(), CallError> {
        if self.entries.is_empty() {
            return Err(CallError::Empty);
        }
        if let Some(bytes) = self.entries.iter().map(Entry::size).find(|&n| n > limits::ENTRY_BYTES) {
            return Err(CallError::EntryTooLarge { bytes, limit: limits::ENTRY_BYTES });
        }
        let bytes = self.size();
        if bytes > limits::BATCH_BYTES || self.entries.len() > limits::BATCH_ENTRIES {
            let limit = limits::BATCH_BYTES;
            return Err(CallError::CallTooLarge { bytes, entries: self.entries.len(), limit });
        }
        match &self.identity {
            Identity::Key { key, .. } if key.is_empty() || key.len() > limits::KEY_BYTES => {
                Err(CallError::Key { bytes: key.len() })
            }
            Identity::Session { sequence: 0, .. } => Err(CallError::Sequence),
            _ => Ok(()),
        }
    }

    fn write(&self, w: &mut Writer) {
        let identity = match &self.identity {
            Identity::None => 0,
            Identity::Session { .. } => WITH_SESSION,
            Identity::Key { minted_at, .. } => WITH_KEY | if minted_at.is_some() { MINTED_AT } else { 0 },
        };
        let expected = if self.expected_index.is_some() { EXPECTED_INDEX } else { 0 };
        let with_fields = self.has_fields();
        w.u8(identity | expected | if with_fields { WITH_FIELDS } else { 0 });
        if let Some(index) = self.expected_index {
            w.u64(index.0);
        }
        match &self.identity {
            Identity::None => {}
            Identity::Session { session, sequence, acknowledged } => {
                w.u64(session.0);
                w.u64(*sequence);
                w.u64(*acknowledged);
            }
            Identity::Key { key, minted_at } => {
                w.bytes(key);
                if let Some(index) = minted_at {
                    w.u64(index.0);
                }
            }
        }
        w.length(self.entries.len());
        for entry in &self.entries {
            w.bytes(&entry.payload);
            if with_fields {
                entry.fields().write(w);
            }
        }
    }

    fn read(r: &mut Reader) -> Result<Append, DecodeError> {
        let flags = r.u8()?;
        let unknown = || DecodeError::Unknown { what: "call option", found: u64::from(flags) };
        let expected_index = if flags & EXPECTED_INDEX != 0 { Some(Index(r.u64()?)) } else { None };
        let with_fields = flags & WITH_FIELDS != 0;
        let identity = match flags & !(EXPECTED_INDEX | WITH_FIELDS) {
            0 => Identity::None,
            WITH_SESSION => {
                Identity::Session { session: SessionId(r.u64()?), sequence: r.u64()?, acknowledged: r.u64()? }
            }
            WITH_KEY => Identity::Key { key: r.bytes("key", limits::KEY_BYTES)?, minted_at: None },
            other if other == WITH_KEY | MINTED_AT => {
                let key = r.bytes("key", limits::KEY_BYTES)?;
                Identity::Key { key, minted_at: Some(Index(r.u64()?)) }
            }
            _ => return Err(unknown()),
        };
        let count = r.length("entries", limits::BATCH_ENTRIES, 4)?;
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            entries.push(Entry::read(r, with_fields)?);
        }
        let append = Append { identity, expected_index, entries };
        // One encoding for each append.
        if append.has_fields() == with_fields { Ok(append) } else { Err(unknown()) }
    }
}

impl Checkpoint {
    pub(crate) fn write(&self, w: &mut Writer) {
        w.u64(self.index.0);
        w.u64(self.length);
        w.array(&self.digest.0);
    }

    pub(crate) fn read(r: &mut Reader) -> Result<Checkpoint, DecodeError> {
        Ok(Checkpoint { index: Index(r.u64()?), length: r.u64()?, digest: Digest(r.array()?) })
    }
}

impl Call {
    /// Bytes of its entries in all.
    pub fn payload_bytes(&self) -> usize {
        let append = self.operation.as_append();
        append.map_or(0, Append::size)
    }

    /// How many entries it adds if it is not refused.
    pub fn entry_count(&self) -> usize {
        self.operation.as_append().map_or(0, |append| append.entries.len())
    }

    /// About how many bytes it takes in a batch.
    pub(super) fn encoded_bytes(&self) -> usize {
        let name = match &self.operation {
            Operation::SetCursor { name, .. }
            | Operation::AdvanceCursor { name, .. }
            | Operation::SeekCursor { name, .. }
            | Operation::LeaseCursor { name, .. }
            | Operation::RemoveCursor { name } => name.len(),
            _ => 0,
        };
        192 + name + self.payload_bytes() + 8 * self.entry_count()
    }

    /// Checks what a caller asks for: every bound that no settings can pass, and the rule for names. What passes is
    /// read back by every member as it was meant.
    ///
    /// # Errors
    /// What is out of bounds, or that there is no entry at all.
    pub fn validate(&self) -> Result<(), CallError> {
        match &self.operation {
            Operation::SetCursor { name, .. } => names::check(name)?,
            Operation::LeaseCursor { name, expiry, .. } => {
                names::check(name)?;
                if !expiry.is_zero() && !limits::CURSOR_EXPIRY.contains(expiry) {
                    return Err(CallError::Expiry);
                }
            }
            Operation::ChangeSettings { settings, .. } => settings.validate()?,
            Operation::Append(_)
            | Operation::FencedAppend { .. }
            | Operation::OpenSession
            | Operation::OpenSessionAs { .. }
            | Operation::CloseSession { .. }
            | Operation::AdvanceCursor { .. }
            | Operation::SeekCursor { .. }
            | Operation::RemoveCursor { .. }
            | Operation::SaveCheckpoint(_) => {}
        }
        self.check_readable()
    }

    /// The bounds of every version: within them a call is read back. A consumer that was registered under a name that
    /// the rule refuses now can still be moved on and removed.
    fn check_readable(&self) -> Result<(), CallError> {
        match &self.operation {
            Operation::Append(append) | Operation::FencedAppend { append, .. } => append.validate(),
            Operation::SetCursor { name, .. }
            | Operation::AdvanceCursor { name, .. }
            | Operation::SeekCursor { name, .. }
            | Operation::LeaseCursor { name, .. }
            | Operation::RemoveCursor { name } => match name.len() {
                0 => Err(NameError::Empty.into()),
                1..=limits::NAME_BYTES => Ok(()),
                bytes => Err(NameError::TooLong { bytes }.into()),
            },
            Operation::ChangeSettings { settings, .. } => Ok(settings.check_readable()?),
            Operation::OpenSession
            | Operation::OpenSessionAs { .. }
            | Operation::CloseSession { .. }
            | Operation::SaveCheckpoint(_) => Ok(()),
        }
    }

    /// Whether every member reads this very call back from its bytes.
    pub(crate) fn is_readable(&self) -> bool {
        Call::decode(self.encode()).is_ok_and(|read| read == *self)
    }

    /// The call alone, as a forwarded one travels.
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(self.encoded_bytes());
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

    pub(super) fn write(&self, w: &mut Writer) {
        w.u64(self.origin.member.0);
        w.u64(self.origin.incarnation.0);
        w.u64(self.origin.request.0);
        match &self.operation {
            Operation::Append(append) => {
                w.u8(APPEND);
                append.write(w);
            }
            Operation::FencedAppend { fence, append } => {
                w.u8(FENCED_APPEND);
                w.u64(fence.0);
                append.write(w);
            }
            Operation::OpenSession => w.u8(OPEN_SESSION),
            Operation::OpenSessionAs { session } => {
                w.u8(OPEN_SESSION_AS);
                w.u64(session.0);
            }
            Operation::CloseSession { session } => {
                w.u8(CLOSE_SESSION);
                w.u64(session.0);
            }
            Operation::SetCursor { name, index } => {
                w.u8(SET_CURSOR);
                w.bytes(name.as_bytes());
                w.u64(index.0);
            }
            Operation::AdvanceCursor { name, index } => {
                w.u8(ADVANCE_CURSOR);
                w.bytes(name.as_bytes());
                w.u64(index.0);
            }
            Operation::SeekCursor { name, index } => {
                w.u8(SEEK_CURSOR);
                w.bytes(name.as_bytes());
                w.u64(index.0);
            }
            Operation::LeaseCursor { name, index, expiry } => {
                w.u8(LEASE_CURSOR);
                w.bytes(name.as_bytes());
                w.u64(index.0);
                w.u64(nanos(*expiry));
            }
            Operation::RemoveCursor { name } => {
                w.u8(REMOVE_CURSOR);
                w.bytes(name.as_bytes());
            }
            Operation::ChangeSettings { expected_version, settings } => {
                w.u8(CHANGE_SETTINGS);
                w.u64(*expected_version);
                settings.write(w);
            }
            Operation::SaveCheckpoint(checkpoint) => {
                w.u8(SAVE_CHECKPOINT);
                checkpoint.write(w);
            }
        }
    }

    pub(super) fn read(r: &mut Reader) -> Result<Call, DecodeError> {
        let origin = Origin {
            member: MemberId(r.u64()?),
            incarnation: Incarnation(r.u64()?),
            request: RequestId(r.u64()?),
        };
        let operation = match r.u8()? {
            APPEND => Operation::Append(Append::read(r)?),
            FENCED_APPEND => Operation::FencedAppend { fence: Slot(r.u64()?), append: Append::read(r)? },
            OPEN_SESSION => Operation::OpenSession,
            OPEN_SESSION_AS => Operation::OpenSessionAs { session: SessionId(r.u64()?) },
            CLOSE_SESSION => Operation::CloseSession { session: SessionId(r.u64()?) },
            SET_CURSOR => {
                let name = r.text("cursor", limits::NAME_BYTES)?;
                Operation::SetCursor { name, index: Index(r.u64()?) }
            }
            ADVANCE_CURSOR => {
                let name = r.text("cursor", limits::NAME_BYTES)?;
                Operation::AdvanceCursor { name, index: Index(r.u64()?) }
            }
            SEEK_CURSOR => {
                let name = r.text("cursor", limits::NAME_BYTES)?;
                Operation::SeekCursor { name, index: Index(r.u64()?) }
            }
            LEASE_CURSOR => {
                let name = r.text("cursor", limits::NAME_BYTES)?;
                let (index, expiry) = (Index(r.u64()?), Duration::from_nanos(r.u64()?));
                Operation::LeaseCursor { name, index, expiry }
            }
            REMOVE_CURSOR => Operation::RemoveCursor { name: r.text("cursor", limits::NAME_BYTES)? },
            CHANGE_SETTINGS => {
                Operation::ChangeSettings { expected_version: r.u64()?, settings: Settings::read(r)? }
            }
            SAVE_CHECKPOINT => Operation::SaveCheckpoint(Checkpoint::read(r)?),
            found => return Err(DecodeError::Unknown { what: "operation", found: u64::from(found) }),
        };
        let call = Call { origin, operation };
        match call.check_readable() {
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
        "an entry of {bytes} bytes is over the limit of {limit}: keep large data elsewhere and log where it is"
    )]
    EntryTooLarge {
        /// Its size.
        bytes: usize,
        /// The limit in force.
        limit: usize,
    },
    /// The whole call over its bound.
    #[error(
        "the call is over its limits, {} entries and {limit} bytes, with {entries} and {bytes}: send several calls",
        limits::BATCH_ENTRIES
    )]
    CallTooLarge {
        /// Payload bytes.
        bytes: usize,
        /// Entries.
        entries: usize,
        /// The limit of bytes in force.
        limit: usize,
    },
    /// An idempotency key out of its bounds.
    #[error("an idempotency key has 1 to {} bytes, not {bytes}", limits::KEY_BYTES)]
    Key {
        /// Its size.
        bytes: usize,
    },
    /// A session's calls are numbered from 1.
    #[error("the calls of a session are numbered from 1")]
    Sequence,
    /// Headers beyond their bounds.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// An expiry beyond its bounds.
    #[error("a consumer expires after 10 s to 100 years in which nothing is heard of it")]
    Expiry,
    /// Settings beyond their bounds.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A consumer's name that breaks the rule for names.
    #[error(transparent)]
    Name(#[from] NameError),
}
