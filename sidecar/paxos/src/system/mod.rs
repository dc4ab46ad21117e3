//! The replicated state that the core itself keeps: what applying a slot changes.
//!
//! It is a pure function of the chosen values, so that every member that has applied the same prefix holds
//! the same bytes. Encoded at a mark it is a snapshot.

mod encoding;
mod outcome;

use outcome::note_outcome;
pub use outcome::{CallOutcome, CallRefused, Effect, Reply};

use crate::codec::{DecodeError, Writer};
use crate::configuration::ConfigurationHistory;
use crate::genesis::Genesis;
use crate::limits;
use crate::sessions::{Lookup, Outcome, Rules, Sessions};
use crate::settings::Settings;
use crate::types::{Ballot, Index, MemberId, Slot, Time};
use crate::value::{Append, Call, CallError, Checkpoint, Entry, Identity, Operation, Value};
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use core::time::Duration;
use xxhash_rust::xxh3::Xxh3;

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
    /// The time of the newest entry, since the level that has times. The next one's is no earlier.
    pub entry_time: Time,
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
    /// Of those that expire: after how long, and the log time when their owner was heard of last.
    pub cursor_expiry: BTreeMap<String, (Duration, Duration)>,
    /// The application's newest checkpoints, ascending by index.
    pub checkpoints: Vec<Checkpoint>,
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

impl SystemState {
    /// Before the first slot.
    pub fn new(genesis: &Genesis) -> SystemState {
        SystemState {
            applied: Slot(0),
            last_index: Index(0),
            payload_bytes: 0,
            log_time: Duration::ZERO,
            entry_time: Time(0),
            settings: genesis.settings,
            configurations: ConfigurationHistory::new(genesis),
            leaders: Vec::new(),
            recoveries: 0,
            sessions: Sessions::default(),
            cursors: BTreeMap::new(),
            cursor_expiry: BTreeMap::new(),
            checkpoints: Vec::new(),
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
        let (first, time) = (self.last_index.next(), value.time());
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
            Value::Batch { advance, calls, .. } => self.apply_batch(advance, time, calls, &mut outcomes),
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

    fn apply_batch(
        &mut self,
        advance: Duration,
        time: Option<Time>,
        calls: Vec<Call>,
        outcomes: &mut Writer,
    ) -> Effect {
        // Below the level that has them no time is stored.
        if let Some(time) = time.filter(|_| self.settings.format_level >= Settings::TIMES) {
            self.entry_time = self.entry_time.max(time);
        }
        // Kept within what is stored, so that a state and its snapshot never differ.
        self.log_time = Duration::from_nanos(crate::settings::nanos(self.log_time.saturating_add(advance)));
        self.sessions.expire(self.log_time, &self.settings.limits);
        self.expire_cursors();
        let first = self.last_index.next();
        let (mut entries, mut skipped, mut answers) =
            (Vec::new(), Vec::new(), Vec::with_capacity(calls.len()));
        for (place, Call { origin, operation }) in (0..).zip(calls) {
            let result = match operation {
                Operation::Append(append) => {
                    let before = entries.len();
                    let result = self.apply_append(append, None, &mut entries);
                    if entries.len() == before {
                        skipped.push(place);
                    }
                    result
                }
                Operation::FencedAppend { fence, append } => {
                    let before = entries.len();
                    let result = self.apply_append(append, Some(fence), &mut entries);
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
        Effect::Batch { first, time, entries, skipped, calls: answers }
    }

    /// Lookup comes before `expected_index`: a repeat is answered with what happened the first time (docs:
    /// protocol.md, "Sessions").
    fn apply_append(
        &mut self,
        append: Append,
        fence: Option<Slot>,
        entries: &mut Vec<Entry>,
    ) -> Result<Reply, CallRefused> {
        let tail = self.last_index;
        if append.identity == Identity::None {
            return match self.add_entries(append, fence, entries)? {
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
                let (identity, rules) = (append.identity.clone(), self.session_rules());
                self.sessions.make_room(&identity, &rules)?;
                let outcome = self.add_entries(append, fence, entries)?;
                self.sessions.remember(&identity, digest, outcome, tail, &rules);
                (outcome, false)
            }
        };
        match outcome {
            Outcome::Appended { first, last } => Ok(Reply::Appended { first, last, repeat }),
            Outcome::UnexpectedIndex { tail } => Err(CallRefused::UnexpectedIndex { tail }),
        }
    }

    /// What an append was answered before, where it repeats one that is remembered. Nothing is changed.
    pub fn repeat_of(&self, append: &Append) -> Option<Reply> {
        match self.sessions.look_up(append, append.digest()) {
            Ok(Lookup::Repeat(Outcome::Appended { first, last })) => {
                Some(Reply::Appended { first, last, repeat: true })
            }
            Ok(Lookup::Repeat(Outcome::UnexpectedIndex { .. }) | Lookup::New) | Err(_) => None,
        }
    }

    fn add_entries(
        &mut self,
        append: Append,
        fence: Option<Slot>,
        entries: &mut Vec<Entry>,
    ) -> Result<Outcome, CallRefused> {
        let tail = self.last_index;
        // A fence above the newest leadership is of a log that was lost, or never was one: it must not let every
        // leadership pass until the log has come so far.
        let epoch = self.newest_leader().map_or(Slot(0), |(epoch, _)| epoch);
        if fence.is_some_and(|fence| fence != epoch) {
            return Err(CallRefused::Fenced { epoch });
        }
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
            Operation::Append(append) => self.apply_append(append, None, &mut Vec::new()),
            Operation::FencedAppend { fence, append } => {
                self.apply_append(append, Some(fence), &mut Vec::new())
            }
            Operation::OpenSession => {
                Ok(Reply::SessionOpened(self.sessions.open(None, &self.session_rules())?))
            }
            Operation::OpenSessionAs { session } => {
                Ok(Reply::SessionOpened(self.sessions.open(Some(session), &self.session_rules())?))
            }
            Operation::CloseSession { session } => {
                self.sessions.close(session);
                Ok(Reply::SessionClosed)
            }
            Operation::SetCursor { name, index } => self.set_cursor(name, index),
            Operation::AdvanceCursor { name, .. } | Operation::SeekCursor { name, .. }
                if !self.cursors.contains_key(&name) =>
            {
                Err(CallRefused::NoSuchCursor { name })
            }
            Operation::AdvanceCursor { name, index } => self.set_cursor(name, index),
            Operation::SeekCursor { name, index } => self.seek_cursor(&name, index),
            Operation::LeaseCursor { name, index, expiry } => {
                let reply = self.set_cursor(name.clone(), index)?;
                // Below the level that has it nothing of it is stored.
                match expiry.is_zero() || self.settings.format_level < Settings::TIMES {
                    true => self.cursor_expiry.remove(&name),
                    false => self.cursor_expiry.insert(name, (expiry, self.log_time)),
                };
                Ok(reply)
            }
            Operation::RemoveCursor { name } => {
                self.cursors.remove(&name);
                self.cursor_expiry.remove(&name);
                Ok(Reply::CursorRemoved)
            }
            Operation::SaveCheckpoint(checkpoint) => self.save_checkpoint(checkpoint),
            Operation::ChangeSettings { expected_version, settings } => {
                let before = self.settings.format_level;
                let changed = self.settings.change(expected_version, settings)?;
                if before < 2 && changed.format_level >= 2 {
                    self.sessions.begin_ages(self.log_time);
                }
                Ok(Reply::SettingsChanged(changed))
            }
        }
    }

    fn session_rules(&self) -> Rules {
        Rules { limits: self.settings.limits, level: self.settings.format_level, now: self.log_time }
    }

    fn set_cursor(&mut self, name: String, index: Index) -> Result<Reply, CallRefused> {
        if index > self.last_index {
            return Err(CallRefused::BeyondTail { tail: self.last_index });
        }
        self.touch_cursor(&name);
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
        Ok(Reply::CursorNew(index))
    }

    /// Back as far as the log goes, or ahead as far.
    fn seek_cursor(&mut self, name: &str, index: Index) -> Result<Reply, CallRefused> {
        if index > self.last_index {
            return Err(CallRefused::BeyondTail { tail: self.last_index });
        }
        if index < self.trim.index {
            return Err(CallRefused::Compacted { first: self.trim.index.next() });
        }
        self.touch_cursor(name);
        if let Some(held) = self.cursors.get_mut(name) {
            *held = index;
        }
        Ok(Reply::CursorSet(index))
    }

    /// Its owner was heard of.
    fn touch_cursor(&mut self, name: &str) {
        if let Some((_, heard)) = self.cursor_expiry.get_mut(name) {
            *heard = self.log_time;
        }
    }

    /// Those whose owner has not been heard of for too long hold the log back no more.
    fn expire_cursors(&mut self) {
        let now = self.log_time;
        let expired = |(expiry, heard): &(Duration, Duration)| now.saturating_sub(*heard) >= *expiry;
        for (name, _) in self.cursor_expiry.extract_if(.., |_, since| expired(since)) {
            self.cursors.remove(&name);
        }
    }

    /// "for an index it has applied; above that it is refused" (docs: protocol.md, "Snapshots").
    fn save_checkpoint(&mut self, checkpoint: Checkpoint) -> Result<Reply, CallRefused> {
        if checkpoint.index > self.last_index {
            return Err(CallRefused::BeyondTail { tail: self.last_index });
        }
        if checkpoint.index < self.trim.index {
            return Err(CallRefused::Compacted { first: self.trim.index.next() });
        }
        self.checkpoints.retain(|held| held.index != checkpoint.index);
        self.checkpoints.push(checkpoint);
        self.checkpoints.sort_by_key(|held| held.index);
        if self.checkpoints.len() > limits::CHECKPOINTS {
            self.checkpoints.remove(0);
        }
        Ok(Reply::CheckpointSaved)
    }

    /// The index that nothing is trimmed past: the slowest cursor's, or the newest checkpoint's.
    pub fn trim_limit(&self) -> Index {
        let cursor = self.cursors.values().min().copied().unwrap_or(Index(u64::MAX));
        self.checkpoints.last().map_or(cursor, |newest| newest.index.min(cursor))
    }

    fn apply_mark(&mut self, slot: Slot) -> Effect {
        if self.marks.len() >= limits::MARKS {
            return Effect::None;
        }
        let (index, payload_bytes, log_time) = (self.last_index, self.payload_bytes, self.log_time);
        self.marks.push(Mark { slot, index, payload_bytes, log_time });
        Effect::Mark
    }

    /// The log is trimmed to marks only, and never past a cursor or the newest checkpoint, whatever the proposer
    /// thought.
    fn apply_trim(&mut self, through: Slot) -> Effect {
        let Some(mark) = self.marks.iter().find(|mark| mark.slot == through).copied() else {
            return Effect::None;
        };
        if self.trim_limit() < mark.index && !planted!(TrimPastCursor) {
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

    /// Judges a call by what is applied now, without changing anything: what is out of bounds, or would certainly be
    /// refused, need not be proposed. A consumer keeps the name that it is registered under.
    ///
    /// # Errors
    /// Where it is out of bounds, or over the limits in force.
    pub fn check_call(&self, call: &Call) -> Result<(), CallError> {
        match &call.operation {
            Operation::SetCursor { name, .. } if self.cursors.contains_key(name) => Ok(()),
            Operation::Append(append) | Operation::FencedAppend { append, .. } => {
                call.validate()?;
                check_limits(append, &self.settings).map(|_| ())
            }
            Operation::ChangeSettings { settings, .. } => Ok(settings.validate_change(&self.settings)?),
            _ => call.validate(),
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
}

/// The payload's size, if the limits in force allow it.
fn check_limits(append: &Append, settings: &Settings) -> Result<u64, CallError> {
    let (entry_limit, call_limit) =
        (settings.limits.entry_bytes as usize, settings.limits.call_bytes as usize);
    let mut total = 0;
    for entry in &append.entries {
        if entry.size() > entry_limit {
            return Err(CallError::EntryTooLarge { bytes: entry.size(), limit: entry_limit });
        }
        total += entry.size();
    }
    if total > call_limit {
        let entries = append.entries.len();
        return Err(CallError::CallTooLarge { bytes: total, entries, limit: call_limit });
    }
    Ok(total as u64)
}
