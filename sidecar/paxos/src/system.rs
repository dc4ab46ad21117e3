//! The replicated state that the core itself keeps: what applying a slot changes.
//!
//! It is a pure function of the chosen values, so that every member that has applied the same prefix holds
//! the same bytes. Encoded at a mark it is a snapshot.

use crate::codec::{DecodeError, Reader, Writer};
use crate::configuration::{ChangeRefused, Configuration, ConfigurationHistory, OperationId};
use crate::genesis::Genesis;
use crate::limits;
use crate::sessions::{IdentityRefused, Lookup, Outcome, Sessions};
use crate::settings::{Settings, SettingsError};
use crate::types::{Ballot, Index, MemberId, SessionId, Slot};
use crate::value::{Append, Call, CallError, Identity, Operation, Origin, Value};
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use core::time::Duration;
use xxhash_rust::xxh3::Xxh3;

/// Version of the encoding.
const VERSION: u8 = 1;
/// Leaderships that the history keeps.
const LEADERS: usize = 1_024;
/// Points of the chain that are kept for comparison.
const CHAIN_POINTS: usize = 8;

/// A slot at which every member takes a snapshot, and where the log stood there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Which.
    pub slot: Slot,
    /// The last index then.
    pub index: Index,
    /// Payload bytes of all entries up to it.
    pub payload_bytes: u64,
    /// Log time then.
    pub log_time: Duration,
}

/// State after every slot up to `applied`. Invariant: `last_index` counts the entries of all applied batches
/// that were not refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemState {
    /// Every slot up to it is in this state.
    pub applied: Slot,
    /// The last application entry's index; 0 while there is none.
    pub last_index: Index,
    /// Payload bytes of all entries so far.
    pub payload_bytes: u64,
    /// The leaders' time: it advances with batches, by no more than the clock of the leader that proposed them.
    pub log_time: Duration,
    /// What is in force.
    pub settings: Settings,
    /// Who votes where.
    pub configurations: ConfigurationHistory,
    /// LeaderStart entries, oldest first: fencing epoch and ballot. The newest `LEADERS` are kept.
    pub leaders: Vec<(Slot, Ballot)>,
    /// How often a quorum was lost for good. Fencing epochs are ordered by (recoveries, slot).
    pub recoveries: u32,
    /// What makes appends exactly once.
    pub sessions: Sessions,
    /// Named positions that the log is not trimmed past.
    pub cursors: BTreeMap<String, Index>,
    /// Where the log may be trimmed to: ascending, above `trim`.
    pub marks: Vec<Mark>,
    /// Where it was trimmed to.
    pub trim: Mark,
    /// chain(applied): over the previous chain, slot, chosen bytes, first index and outcomes (docs:
    /// protocol.md, "Integrity").
    pub chain: u128,
    /// The chain at the newest slots at which members compare it, ascending.
    pub chain_points: Vec<(Slot, u128)>,
}

/// What a call that was applied is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Its entries are in the log.
    Appended {
        /// The first entry's index.
        first: Index,
        /// The last entry's.
        last: Index,
        /// They were there before this call: it repeats an earlier one.
        repeat: bool,
    },
    /// A session is open.
    SessionOpened(SessionId),
    /// It is closed.
    SessionClosed,
    /// A cursor stands there.
    CursorSet(Index),
    /// A cursor is gone.
    CursorRemoved,
    /// The settings in force now.
    SettingsChanged(Settings),
}

/// Why a call that was applied changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallRefused {
    /// The last index was another than the expected one.
    #[error("the last index is {tail}, not the expected one: read on and decide again")]
    UnexpectedIndex {
        /// The last index.
        tail: Index,
    },
    /// Its session or key does not let it in.
    #[error(transparent)]
    Identity(#[from] IdentityRefused),
    /// It is over the limits in force.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A settings change that has no effect.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A cursor where the log is trimmed already.
    #[error("the log begins at index {first} now: a cursor cannot stand before it")]
    Compacted {
        /// The first index.
        first: Index,
    },
    /// A cursor beyond the log.
    #[error("the log ends at index {tail}: a cursor cannot stand behind it")]
    BeyondTail {
        /// The last index.
        tail: Index,
    },
    /// Too many cursors.
    #[error("there are {} cursors already: remove one first", limits::CURSORS)]
    TooManyCursors,
}

/// What became of one call when its slot was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallOutcome {
    /// Who answers it.
    pub origin: Origin,
    /// The answer.
    pub result: Result<Reply, CallRefused>,
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
        /// Calls of the batch, by their place in it from 0, whose entries were not added.
        skipped: Vec<u32>,
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
    /// Every member takes a snapshot here.
    Mark,
    /// The log begins behind this mark now.
    Trim(Mark),
}

impl SystemState {
    /// Before the first slot.
    pub fn new(genesis: &Genesis) -> SystemState {
        SystemState {
            applied: Slot(0),
            last_index: Index(0),
            payload_bytes: 0,
            log_time: Duration::ZERO,
            settings: genesis.settings,
            configurations: ConfigurationHistory::new(genesis),
            leaders: Vec::new(),
            recoveries: 0,
            sessions: Sessions::default(),
            cursors: BTreeMap::new(),
            marks: Vec::new(),
            trim: Mark::default(),
            chain: 0,
            chain_points: Vec::new(),
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
        let mut outcomes = Writer::default();
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
            Value::Batch { advance, calls, .. } => self.apply_batch(advance, calls, &mut outcomes),
            Value::Configuration(entry) => Effect::Configuration {
                operation: entry.operation,
                result: self.configurations.apply(slot, &entry).cloned(),
            },
            Value::Mark => self.apply_mark(slot),
            Value::Trim { through } => self.apply_trim(through),
            Value::Recovered { members } => {
                self.recoveries += 1;
                Effect::Configuration {
                    operation: [0; 16],
                    result: Ok(self.configurations.recover(slot, members).clone()),
                }
            }
        };
        self.applied = slot;
        self.chain = self.next_chain(slot, bytes, first, &outcomes.finish());
        if slot.0.is_multiple_of(u64::from(self.settings.chain_interval)) {
            self.chain_points.push((slot, self.chain));
            if self.chain_points.len() > CHAIN_POINTS {
                self.chain_points.remove(0);
            }
        }
        Ok(effect)
    }

    fn is_void(&self, ballot: Ballot) -> bool {
        self.newest_leader().is_some_and(|(_, newest)| ballot < newest) && !planted!(VoidBatchApplied)
    }

    fn apply_batch(&mut self, advance: Duration, calls: Vec<Call>, outcomes: &mut Writer) -> Effect {
        // Kept within what is stored, so that a state and its snapshot never differ.
        self.log_time = Duration::from_nanos(crate::settings::nanos(self.log_time.saturating_add(advance)));
        self.sessions.expire(self.log_time, &self.settings.limits);
        let first = self.last_index.next();
        let (mut entries, mut skipped, mut answers) =
            (Vec::new(), Vec::new(), Vec::with_capacity(calls.len()));
        for (place, Call { origin, operation }) in (0..).zip(calls) {
            let result = match operation {
                Operation::Append(append) => {
                    let before = entries.len();
                    let result = self.apply_append(append, &mut entries);
                    if entries.len() == before {
                        skipped.push(place);
                    }
                    result
                }
                other => self.apply_operation(other),
            };
            note_outcome(&result, outcomes);
            answers.push(CallOutcome { origin, result });
        }
        Effect::Batch { first, entries, skipped, calls: answers }
    }

    /// Lookup comes before `expected_index`: a repeat is answered with what happened the first time (docs:
    /// protocol.md, "Sessions").
    fn apply_append(&mut self, append: Append, entries: &mut Vec<Bytes>) -> Result<Reply, CallRefused> {
        let tail = self.last_index;
        let limits = self.settings.limits;
        if append.identity == Identity::None {
            return match self.add_entries(append, entries)? {
                Outcome::Appended { first, last } => Ok(Reply::Appended { first, last, repeat: false }),
                Outcome::UnexpectedIndex { tail } => Err(CallRefused::UnexpectedIndex { tail }),
            };
        }
        let digest = append.digest();
        let unexpected = append.expected_index.is_some_and(|expected| expected != tail);
        if unexpected && planted!(ConditionBeforeLookup) {
            return Err(CallRefused::UnexpectedIndex { tail });
        }
        self.sessions.touch(&append.identity, self.log_time);
        let found = match self.sessions.look_up(&append, digest) {
            Ok(Lookup::Repeat(_)) if planted!(DedupWhenProposing) => Ok(Lookup::New),
            found => found,
        };
        let (outcome, repeat) = match found? {
            Lookup::Repeat(outcome) => (outcome, true),
            Lookup::New => {
                let identity = append.identity.clone();
                let outcome = self.add_entries(append, entries)?;
                self.sessions.remember(&identity, digest, outcome, tail, &limits);
                (outcome, false)
            }
        };
        match outcome {
            Outcome::Appended { first, last } => Ok(Reply::Appended { first, last, repeat }),
            Outcome::UnexpectedIndex { tail } => Err(CallRefused::UnexpectedIndex { tail }),
        }
    }

    fn add_entries(&mut self, append: Append, entries: &mut Vec<Bytes>) -> Result<Outcome, CallRefused> {
        let tail = self.last_index;
        if append.expected_index.is_some_and(|expected| expected != tail) {
            return Ok(Outcome::UnexpectedIndex { tail });
        }
        let bytes = check_limits(&append, &self.settings)?;
        self.last_index = tail.plus(append.entries.len() as u64);
        self.payload_bytes = self.payload_bytes.saturating_add(bytes);
        entries.extend(append.entries);
        Ok(Outcome::Appended { first: tail.next(), last: self.last_index })
    }

    fn apply_operation(&mut self, operation: Operation) -> Result<Reply, CallRefused> {
        match operation {
            Operation::Append(append) => self.apply_append(append, &mut Vec::new()),
            Operation::OpenSession => {
                Ok(Reply::SessionOpened(self.sessions.open(self.log_time, &self.settings.limits)?))
            }
            Operation::CloseSession { session } => {
                self.sessions.close(session);
                Ok(Reply::SessionClosed)
            }
            Operation::SetCursor { name, index } => self.set_cursor(name, index),
            Operation::RemoveCursor { name } => {
                self.cursors.remove(&name);
                Ok(Reply::CursorRemoved)
            }
            Operation::ChangeSettings { expected_version, settings } => {
                Ok(Reply::SettingsChanged(self.settings.change(expected_version, settings)?))
            }
        }
    }

    fn set_cursor(&mut self, name: String, index: Index) -> Result<Reply, CallRefused> {
        if index > self.last_index {
            return Err(CallRefused::BeyondTail { tail: self.last_index });
        }
        if let Some(held) = self.cursors.get_mut(&name) {
            *held = index.max(*held);
            return Ok(Reply::CursorSet(*held));
        }
        if index < self.trim.index {
            return Err(CallRefused::Compacted { first: self.trim.index.next() });
        }
        if self.cursors.len() >= limits::CURSORS {
            return Err(CallRefused::TooManyCursors);
        }
        self.cursors.insert(name, index);
        Ok(Reply::CursorSet(index))
    }

    fn apply_mark(&mut self, slot: Slot) -> Effect {
        if self.marks.len() >= limits::MARKS {
            return Effect::None;
        }
        let (index, payload_bytes, log_time) = (self.last_index, self.payload_bytes, self.log_time);
        self.marks.push(Mark { slot, index, payload_bytes, log_time });
        Effect::Mark
    }

    /// The log is trimmed to marks only, and never past a cursor, whatever the proposer thought.
    fn apply_trim(&mut self, through: Slot) -> Effect {
        let Some(mark) = self.marks.iter().find(|mark| mark.slot == through).copied() else {
            return Effect::None;
        };
        let held = self.cursors.values().any(|cursor| *cursor < mark.index);
        if held && !planted!(TrimPastCursor) {
            return Effect::None;
        }
        self.trim = mark;
        self.marks.retain(|mark| mark.slot > through);
        Effect::Trim(mark)
    }

    fn next_chain(&self, slot: Slot, bytes: &Bytes, first: Index, outcomes: &[u8]) -> u128 {
        let mut hash = Xxh3::new();
        hash.update(&self.chain.to_le_bytes());
        hash.update(&slot.0.to_le_bytes());
        hash.update(bytes);
        hash.update(&first.0.to_le_bytes());
        hash.update(&self.last_index.0.to_le_bytes());
        hash.update(outcomes);
        hash.digest128()
    }

    /// Judges a call by what is applied now, without changing anything: what would certainly be refused need
    /// not be proposed.
    ///
    /// # Errors
    /// Where it is over the limits in force.
    pub fn check_limits(&self, call: &Call) -> Result<(), CallError> {
        match &call.operation {
            Operation::Append(append) => check_limits(append, &self.settings).map(|_| ()),
            _ => Ok(()),
        }
    }

    /// The ballot of the newest LeaderStart and its slot, the fencing epoch.
    pub fn newest_leader(&self) -> Option<(Slot, Ballot)> {
        self.leaders.last().copied()
    }

    /// Whether `member` was removed by an applied entry.
    pub fn is_removed(&self, member: MemberId) -> bool {
        self.configurations.removed_in(member).is_some()
    }

    /// The chain at `slot`, if it is one of the points that are kept.
    pub fn chain_at(&self, slot: Slot) -> Option<u128> {
        self.chain_points.iter().find(|(point, _)| *point == slot).map(|(_, chain)| *chain)
    }

    /// The bytes that are stored beside the rows, and that a snapshot consists of.
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(512 + self.leaders.len() * 24 + self.sessions.rows() * 64);
        w.u8(VERSION);
        w.u64(self.applied.0);
        w.u64(self.last_index.0);
        w.u64(self.payload_bytes);
        w.u64(crate::settings::nanos(self.log_time));
        self.settings.write(&mut w);
        w.array(&self.chain.to_le_bytes());
        w.length(self.chain_points.len());
        for (slot, chain) in &self.chain_points {
            w.u64(slot.0);
            w.array(&chain.to_le_bytes());
        }
        self.configurations.encode(&mut w);
        w.length(self.leaders.len());
        for (slot, ballot) in &self.leaders {
            w.u64(slot.0);
            w.u64(ballot.round);
            w.u64(ballot.member.0);
        }
        w.u32(self.recoveries);
        w.length(self.cursors.len());
        for (name, index) in &self.cursors {
            w.bytes(name.as_bytes());
            w.u64(index.0);
        }
        self.trim.write(&mut w);
        w.length(self.marks.len());
        self.marks.iter().for_each(|mark| mark.write(&mut w));
        self.sessions.write(&mut w);
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
        let (payload_bytes, log_time) = (r.u64()?, Duration::from_nanos(r.u64()?));
        let settings = Settings::read(&mut r)?;
        let chain = u128::from_le_bytes(r.array()?);
        let mut chain_points = Vec::new();
        for _ in 0..r.length("chain points", CHAIN_POINTS, 24)? {
            chain_points.push((Slot(r.u64()?), u128::from_le_bytes(r.array()?)));
        }
        let configurations = ConfigurationHistory::decode(&mut r)?;
        let mut leaders = Vec::new();
        for _ in 0..r.length("leaders", LEADERS, 24)? {
            let slot = Slot(r.u64()?);
            leaders.push((slot, Ballot { round: r.u64()?, member: MemberId(r.u64()?) }));
        }
        let recoveries = r.u32()?;
        let mut cursors = BTreeMap::new();
        for _ in 0..r.length("cursors", limits::CURSORS, 12)? {
            let name = r.text("cursor", limits::NAME_BYTES)?;
            cursors.insert(name, Index(r.u64()?));
        }
        let trim = Mark::read(&mut r)?;
        let mut marks = Vec::new();
        for _ in 0..r.length("marks", limits::MARKS, 32)? {
            marks.push(Mark::read(&mut r)?);
        }
        let sessions = Sessions::read(&mut r)?;
        r.end()?;
        Ok(SystemState {
            applied,
            last_index,
            payload_bytes,
            log_time,
            settings,
            configurations,
            leaders,
            recoveries,
            sessions,
            cursors,
            marks,
            trim,
            chain,
            chain_points,
        })
    }
}

impl Mark {
    fn write(&self, w: &mut Writer) {
        w.u64(self.slot.0);
        w.u64(self.index.0);
        w.u64(self.payload_bytes);
        w.u64(crate::settings::nanos(self.log_time));
    }

    fn read(r: &mut Reader) -> Result<Mark, DecodeError> {
        Ok(Mark {
            slot: Slot(r.u64()?),
            index: Index(r.u64()?),
            payload_bytes: r.u64()?,
            log_time: Duration::from_nanos(r.u64()?),
        })
    }
}

/// The payload's size, if the limits in force allow it.
fn check_limits(append: &Append, settings: &Settings) -> Result<u64, CallError> {
    let (entry_limit, call_limit) =
        (settings.limits.entry_bytes as usize, settings.limits.call_bytes as usize);
    let mut total = 0;
    for entry in &append.entries {
        if entry.len() > entry_limit {
            return Err(CallError::EntryTooLarge { bytes: entry.len(), limit: entry_limit });
        }
        total += entry.len();
    }
    if total > call_limit {
        let entries = append.entries.len();
        return Err(CallError::CallTooLarge { bytes: total, entries, limit: call_limit });
    }
    Ok(total as u64)
}

/// What the chain takes in of an outcome: enough that members that decided otherwise differ.
fn note_outcome(result: &Result<Reply, CallRefused>, w: &mut Writer) {
    match result {
        Ok(Reply::Appended { first, last, repeat }) => {
            w.u8(0);
            w.u64(first.0);
            w.u64(last.0);
            w.bool(*repeat);
        }
        Ok(Reply::SessionOpened(session)) => {
            w.u8(1);
            w.u64(session.0);
        }
        Ok(Reply::CursorSet(index)) => {
            w.u8(2);
            w.u64(index.0);
        }
        Ok(Reply::SessionClosed | Reply::CursorRemoved) => w.u8(3),
        Ok(Reply::SettingsChanged(settings)) => {
            w.u8(4);
            w.u64(settings.version);
        }
        Err(CallRefused::UnexpectedIndex { tail }) => {
            w.u8(5);
            w.u64(tail.0);
        }
        Err(CallRefused::Identity(why)) => {
            w.u8(6);
            w.u8(match why {
                IdentityRefused::SessionExpired => 0,
                IdentityRefused::SequenceGap { .. } => 1,
                IdentityRefused::SequenceForgotten => 2,
                IdentityRefused::Reused => 3,
                IdentityRefused::KeyExpired => 4,
                IdentityRefused::TooManySessions => 5,
            });
        }
        Err(
            CallRefused::Call(_)
            | CallRefused::Settings(_)
            | CallRefused::Compacted { .. }
            | CallRefused::BeyondTail { .. }
            | CallRefused::TooManyCursors,
        ) => w.u8(7),
    }
}
