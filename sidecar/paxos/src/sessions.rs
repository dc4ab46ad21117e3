//! Exactly once: what the log remembers of calls that may be repeated (docs: protocol.md, "Sessions: exactly
//! once"; the shape of a session's rows follows Ongaro's thesis, section 6.3).
//!
//! Part of the replicated state: decided when a slot is applied, from nothing but what was applied before.

use crate::codec::{DecodeError, Reader, Writer};
use crate::limits;
use crate::settings::Limits;
use crate::types::{Index, SessionId};
use crate::value::{Append, Identity};
use alloc::collections::{BTreeMap, BTreeSet};
use bytes::Bytes;
use core::time::Duration;

/// What became of an append; remembered where the call has an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has these indexes.
    Appended {
        /// The first entry's.
        first: Index,
        /// The last entry's.
        last: Index,
    },
    /// The last index was another than the expected one.
    UnexpectedIndex {
        /// The last index.
        tail: Index,
    },
}

/// Why a call with an identity was neither appended nor found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityRefused {
    /// Idle for too long, closed, or never opened.
    #[error("the session is not known (any more): what it had in flight may or may not have been appended")]
    SessionExpired,
    /// A call before this one is missing.
    #[error("the session's next call has number {expected}: send that one first")]
    SequenceGap {
        /// The number that is due.
        expected: u64,
    },
    /// The client had said that it has the answer, or there were too many before.
    #[error("the outcome of this call is not remembered any more")]
    SequenceForgotten,
    /// The same key or number came with other content before.
    #[error("this key or sequence number was used with other content: choose a new one")]
    Reused,
    /// The key may have been used and evicted.
    #[error(
        "this key may have been used already and forgotten: read the log before appending under a new one"
    )]
    KeyExpired,
    /// The table is full of sessions in use, and of keys that are not old enough to be forgotten.
    #[error(
        "the table of sessions and keys is full, and no key in it is old enough to be forgotten: \
         try again later, or raise the limit of session rows"
    )]
    TooManyKeys,
    /// The table is full of sessions in use.
    #[error("the session table is full: close sessions, or raise the limit of session rows")]
    TooManySessions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Remembered {
    digest: u128,
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Session {
    /// Log time of its last call.
    used: Duration,
    /// The number of its last call.
    last: u64,
    /// Its calls that the client has not said it has the answers of.
    calls: BTreeMap<u64, Remembered>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct KeyRow {
    key: Bytes,
    /// The last index before the call that used it was applied.
    tail: Index,
    /// Log time of its first use; zero while the log is at level 1, where keys have no age.
    used: Duration,
    remembered: Remembered,
}

/// What a lookup finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// Never applied, and may be.
    New,
    /// Applied before.
    Repeat(Outcome),
}

/// What the table goes by: the settings in force, and log time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) limits: Limits,
    /// From level 2 on a key is remembered for as long as a session may be idle, whatever else comes.
    pub(crate) level: u32,
    pub(crate) now: Duration,
}

impl Rules {
    fn keys_have_ages(&self) -> bool {
        self.level >= 2 && !planted!(IdleKeyEvicted)
    }

    fn may_forget(&self, key: &KeyRow) -> bool {
        !self.keys_have_ages() || self.now.saturating_sub(key.used) > self.limits.session_idle
    }
}

/// The session table. Invariant: `rows` counts sessions, their calls and keys. Old keys give way; with
/// nothing but sessions there is at most one row more for each than the limit says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sessions {
    last_id: u64,
    open: BTreeMap<SessionId, Session>,
    /// Keys by their numbers: in the order of their first use, which is that of eviction, and of the encoding.
    keys: BTreeMap<u64, KeyRow>,
    last_key: u64,
    /// No evicted key was used at an index above this one.
    horizon: Index,
    rows: usize,
    /// Sessions in order of their last use; derived.
    by_use: BTreeSet<(Duration, SessionId)>,
    /// The number of each key; derived.
    numbers: BTreeMap<Bytes, u64>,
}

impl Sessions {
    /// Sessions, their remembered calls and keys.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Open sessions.
    pub fn open_sessions(&self) -> usize {
        self.open.len()
    }

    /// The bug that the mutation tests plant.
    pub(crate) fn lose_one(&mut self) {
        if let Some(session) = self.open.values_mut().next() {
            session.last = session.last.saturating_sub(1);
            self.rows -= usize::from(session.calls.pop_last().is_some());
        }
    }

    /// Opens a session: under `wanted`, a number that its member drew, or under the next one.
    pub(crate) fn open(
        &mut self,
        wanted: Option<SessionId>,
        rules: &Rules,
    ) -> Result<SessionId, IdentityRefused> {
        self.evict_keys(rules, 1);
        let id = wanted.unwrap_or(SessionId(self.last_id + 1));
        // A number that is drawn twice is as unlikely as one that is guessed.
        if self.rows >= rules.limits.session_rows as usize || self.open.contains_key(&id) {
            return Err(IdentityRefused::TooManySessions);
        }
        if wanted.is_none() {
            self.last_id = id.0;
        }
        self.open.insert(id, Session { used: rules.now, last: 0, calls: BTreeMap::new() });
        self.by_use.insert((rules.now, id));
        self.rows += 1;
        Ok(id)
    }

    /// Makes room for a new key, before anything is appended under it.
    pub(crate) fn make_room(&mut self, identity: &Identity, rules: &Rules) -> Result<(), IdentityRefused> {
        let Identity::Key { .. } = identity else { return Ok(()) };
        if !rules.keys_have_ages() {
            return Ok(());
        }
        self.evict_keys(rules, 1);
        if self.rows >= rules.limits.session_rows as usize {
            return Err(IdentityRefused::TooManyKeys);
        }
        Ok(())
    }

    /// The level has risen to where keys have ages: those from before count from now.
    pub(crate) fn begin_ages(&mut self, now: Duration) {
        self.keys.values_mut().for_each(|row| row.used = now);
    }

    pub(crate) fn close(&mut self, id: SessionId) {
        let Some(session) = self.open.remove(&id) else { return };
        self.by_use.remove(&(session.used, id));
        self.rows -= 1 + session.calls.len();
    }

    /// Ends the sessions that were idle for too long by log time `now`.
    pub(crate) fn expire(&mut self, now: Duration, limits: &Limits) {
        while let Some((used, id)) = self.by_use.first().copied() {
            if now.saturating_sub(used) <= limits.session_idle {
                break;
            }
            self.close(id);
        }
    }

    /// What is remembered of a call; it changes nothing.
    pub(crate) fn look_up(&self, append: &Append, digest: u128) -> Result<Lookup, IdentityRefused> {
        let found = match &append.identity {
            Identity::None => return Ok(Lookup::New),
            Identity::Session { session, sequence, .. } => {
                let session = self.open.get(session).ok_or(IdentityRefused::SessionExpired)?;
                if *sequence == session.last + 1 {
                    return Ok(Lookup::New);
                }
                if *sequence > session.last {
                    return Err(IdentityRefused::SequenceGap { expected: session.last + 1 });
                }
                *session.calls.get(sequence).ok_or(IdentityRefused::SequenceForgotten)?
            }
            Identity::Key { key, minted_at } => match self.row_of(key) {
                Some(row) => row.remembered,
                None if minted_at.is_some_and(|minted| minted < self.horizon) => {
                    return Err(IdentityRefused::KeyExpired);
                }
                None => return Ok(Lookup::New),
            },
        };
        if found.digest == digest { Ok(Lookup::Repeat(found.outcome)) } else { Err(IdentityRefused::Reused) }
    }

    fn row_of(&self, key: &Bytes) -> Option<&KeyRow> {
        self.keys.get(self.numbers.get(key)?)
    }

    /// Notes that a session is alive, and which answers its client has.
    pub(crate) fn touch(&mut self, identity: &Identity, now: Duration) {
        let Identity::Session { session: id, acknowledged, .. } = identity else { return };
        let Some(session) = self.open.get_mut(id) else { return };
        self.by_use.remove(&(session.used, *id));
        session.used = session.used.max(now);
        self.by_use.insert((session.used, *id));
        let kept = session.calls.split_off(&acknowledged.saturating_add(1));
        self.rows -= session.calls.len();
        session.calls = kept;
    }

    /// Remembers what became of a call that [`Sessions::look_up`] found new. `tail` is the last index before it.
    pub(crate) fn remember(
        &mut self,
        identity: &Identity,
        digest: u128,
        outcome: Outcome,
        tail: Index,
        rules: &Rules,
    ) {
        let limits = &rules.limits;
        let remembered = Remembered { digest, outcome };
        match identity {
            Identity::None => {}
            Identity::Session { session, sequence, .. } => {
                self.evict_keys(rules, 1);
                let Some(session) = self.open.get_mut(session) else { return };
                session.last = *sequence;
                session.calls.insert(*sequence, remembered);
                self.rows += 1;
                // The table stays within its limit whatever the clients do: a session then forgets its oldest
                // outcome, and a retry of it is told so.
                let full = self.rows > limits.session_rows as usize;
                if (full && session.calls.len() > 1) || session.calls.len() > limits::SESSION_WINDOW {
                    session.calls.pop_first();
                    self.rows -= 1;
                }
            }
            Identity::Key { key, .. } => {
                self.evict_keys(rules, 1);
                self.last_key += 1;
                let used = if rules.level >= 2 { rules.now } else { Duration::ZERO };
                // The key's bytes are copied: a slice would keep the whole batch in memory.
                let key = Bytes::copy_from_slice(key);
                self.numbers.insert(key.clone(), self.last_key);
                self.keys.insert(self.last_key, KeyRow { key, tail, used, remembered });
                self.rows += 1;
            }
        }
    }

    /// Makes room for `wanted` rows by forgetting the keys used longest ago, as far as they are old enough.
    fn evict_keys(&mut self, rules: &Rules, wanted: usize) {
        while self.rows + wanted > rules.limits.session_rows as usize {
            let Some(oldest) = self.keys.first_entry().filter(|oldest| rules.may_forget(oldest.get())) else {
                return;
            };
            let row = oldest.remove();
            self.numbers.remove(&row.key);
            // What was minted at or below `row.tail` may be this key.
            self.horizon = self.horizon.max(row.tail.next());
            self.rows -= 1;
        }
    }

    /// At `level`: ages of keys came with level 2.
    pub(crate) fn write(&self, w: &mut Writer, level: u32) {
        w.u64(self.last_id);
        w.u64(self.last_key);
        w.u64(self.horizon.0);
        w.length(self.open.len());
        for (id, session) in &self.open {
            w.u64(id.0);
            w.u64(crate::settings::nanos(session.used));
            w.u64(session.last);
            w.length(session.calls.len());
            for (sequence, remembered) in &session.calls {
                w.u64(*sequence);
                remembered.write(w);
            }
        }
        w.length(self.keys.len());
        for (number, row) in &self.keys {
            w.u64(*number);
            w.bytes(&row.key);
            w.u64(row.tail.0);
            if level >= 2 {
                w.u64(crate::settings::nanos(row.used));
            }
            row.remembered.write(w);
        }
    }

    /// Rows out of order, or a number twice, are found by the state around it, which has one encoding only.
    pub(crate) fn read(r: &mut Reader, level: u32) -> Result<Sessions, DecodeError> {
        let mut sessions = Sessions {
            last_id: r.position("session")?,
            last_key: r.position("key")?,
            horizon: Index(r.u64()?),
            ..Sessions::default()
        };
        for _ in 0..r.length("sessions", limits::SESSION_ROWS, 28)? {
            let id = SessionId(r.u64()?);
            let (used, last) = (Duration::from_nanos(r.u64()?), r.u64()?);
            let mut calls = BTreeMap::new();
            for _ in 0..r.length("remembered calls", limits::SESSION_WINDOW, 41)? {
                calls.insert(r.u64()?, Remembered::read(r)?);
            }
            sessions.rows += 1 + calls.len();
            sessions.by_use.insert((used, id));
            sessions.open.insert(id, Session { used, last, calls });
        }
        for _ in 0..r.length("keys", limits::SESSION_ROWS, 53)? {
            let number = r.u64()?;
            let key = Bytes::copy_from_slice(&r.bytes("key", limits::KEY_BYTES)?);
            let tail = Index(r.u64()?);
            let used = if level >= 2 { Duration::from_nanos(r.u64()?) } else { Duration::ZERO };
            let remembered = Remembered::read(r)?;
            if sessions.numbers.insert(key.clone(), number).is_some() {
                return Err(DecodeError::Disordered);
            }
            sessions.keys.insert(number, KeyRow { key, tail, used, remembered });
            sessions.rows += 1;
        }
        Ok(sessions)
    }
}

impl Remembered {
    fn write(&self, w: &mut Writer) {
        w.array(&self.digest.to_le_bytes());
        self.outcome.write(w);
    }

    fn read(r: &mut Reader) -> Result<Remembered, DecodeError> {
        Ok(Remembered { digest: u128::from_le_bytes(r.array()?), outcome: Outcome::read(r)? })
    }
}

impl Outcome {
    pub(crate) fn write(&self, w: &mut Writer) {
        match self {
            Outcome::Appended { first, last } => {
                w.u8(0);
                w.u64(first.0);
                w.u64(last.0);
            }
            Outcome::UnexpectedIndex { tail } => {
                w.u8(1);
                w.u64(tail.0);
                w.u64(0);
            }
        }
    }

    pub(crate) fn read(r: &mut Reader) -> Result<Outcome, DecodeError> {
        match (r.u8()?, r.u64()?, r.u64()?) {
            (0, first, last) => Ok(Outcome::Appended { first: Index(first), last: Index(last) }),
            (1, tail, 0) => Ok(Outcome::UnexpectedIndex { tail: Index(tail) }),
            (found, ..) => Err(DecodeError::Unknown { what: "outcome", found: u64::from(found) }),
        }
    }
}
