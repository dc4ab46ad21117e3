//! Judges every answer that a client gets. A timed-out append is *unknown*: it may stand in the log or not.
//!
//! Checking a log is almost linear (docs: reliability.md, "Layers of testing"): each entry stands at exactly
//! one index; an append acknowledged before another began has the smaller index; a linearizable read covers
//! every append acknowledged before it began.

use crate::action::Operation;
use crate::client::Open;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use synod_paxos::sessions::IdentityRefused;
use synod_paxos::value::Entry;
use synod_paxos::{Applied, Index, MemberId, Refusal, Slot, Time};

/// What an operation came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// First and last index of an append.
    Appended(Index, Index),
    /// The last index that a read saw.
    Read(Index),
    /// A session is open under that id.
    Session(u64),
    /// A cursor stands there.
    Cursor(Index),
    /// A checkpoint is noted.
    Checkpoint,
    /// The settings in force have that version.
    Settings(u64),
    /// Refused, and certainly not appended.
    Refused(Refusal),
    /// Nobody can tell.
    Unknown,
}

/// A broken promise: which, and the evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The property.
    pub property: &'static str,
    /// Both sides.
    pub evidence: String,
}

/// Makes a violation.
pub fn violation<T>(property: &'static str, evidence: impl Into<String>) -> Result<T, Violation> {
    Err(Violation { property, evidence: evidence.into() })
}

/// The log as members applied it, and what clients were told.
#[derive(Debug, Default)]
pub struct Oracle {
    /// index -> entry, from whoever applied it first, and its time.
    log: BTreeMap<Index, (Entry, Option<Time>)>,
    /// payload -> index.
    places: BTreeMap<Bytes, Index>,
    /// Payloads that were refused for certain.
    refused: BTreeSet<Bytes>,
    /// The highest index that an answer has shown.
    floor: Index,
    /// When it was raised, and to what: ascending.
    floors: Vec<(u64, Index)>,
    /// Acknowledged appends that no live member has applied yet.
    owed: Vec<(Index, Vec<Entry>)>,
    /// Operations judged.
    pub checked: u64,
    /// Operations whose outcome nobody can tell.
    pub unknown: u64,
}

impl Oracle {
    /// The highest index that any answer has shown so far: what a new operation must respect.
    pub fn floor(&self) -> Index {
        self.floor
    }

    /// A member applied a slot.
    ///
    /// # Errors
    /// Where it differs from what another member applied, doubles an entry, or holds a refused one.
    pub fn applied(&mut self, by: MemberId, applied: &Applied) -> Result<(), Violation> {
        for (i, entry) in applied.entries.iter().enumerate() {
            let index = applied.first.plus(i as u64);
            let (payload, time) = (&entry.payload, applied.time);
            match self.log.get(&index) {
                Some((held, at)) if held == entry && *at == time => continue,
                Some(held) => {
                    return violation(
                        "one log",
                        format!("{index:?}: {by:?} applied {entry:?} of {time:?}, before it was {held:?}"),
                    );
                }
                None => {}
            }
            // None is before any.
            if let Some((_, before)) = self.log.get(&index.previous())
                && *before > time
            {
                return violation(
                    "times never go back",
                    format!("{index:?} is of {time:?}, the entry in front of it of {before:?}"),
                );
            }
            if let Some(other) = self.places.get(payload) {
                return violation("no duplicates", format!("{payload:?} at {other:?} and at {index:?}"));
            }
            if self.refused.contains(payload) {
                return violation("refused means not appended", format!("{payload:?} at {index:?}"));
            }
            self.log.insert(index, (entry.clone(), time));
            self.places.insert(payload.clone(), index);
        }
        Ok(())
    }

    /// Dense indexes: an applied batch continues where the log ended.
    ///
    /// # Errors
    /// Where an index below the newest is missing.
    pub fn dense(&self, slot: Slot) -> Result<(), Violation> {
        match self.log.last_key_value() {
            Some((last, _)) if last.0 != self.log.len() as u64 => violation(
                "dense indexes",
                format!("after {slot:?}: {} entries, last {last:?}", self.log.len()),
            ),
            _ => Ok(()),
        }
    }

    /// A client got its answer, or gave up.
    ///
    /// # Errors
    /// Where the answer cannot be right.
    pub fn answered(&mut self, open: &Open, outcome: &Outcome, now: u64) -> Result<(), Violation> {
        self.checked += 1;
        self.judge(open, outcome)?;
        if self.floors.last().is_none_or(|(_, floor)| *floor < self.floor) {
            self.floors.push((now, self.floor));
        }
        Ok(())
    }

    /// The highest index that answers had shown at a moment.
    fn floor_at(&self, moment: u64) -> Index {
        let before = self.floors.partition_point(|(at, _)| *at <= moment);
        before.checked_sub(1).map_or(Index(0), |place| self.floors[place].1)
    }

    fn judge(&mut self, open: &Open, outcome: &Outcome) -> Result<(), Violation> {
        match (&open.operation, outcome) {
            (_, Outcome::Unknown) => self.unknown += 1,
            (Operation::Append { expected, .. }, Outcome::Appended(first, last)) => {
                self.judge_append(open, &open.entries, expected.map(Index), *first, *last)?;
            }
            (Operation::Append { .. }, Outcome::Refused(Refusal::Identity(why))) => {
                if matches!(why, IdentityRefused::SequenceGap { .. } | IdentityRefused::Reused) {
                    return violation("sessions remember", format!("{:?}: {why}", open.operation));
                }
                // What an earlier try of it came to is not known any more.
                self.unknown += 1;
            }
            (Operation::Append { expected, .. }, Outcome::Refused(refusal)) => {
                self.judge_refusal(open, &open.entries, expected.map(Index), refusal)?;
            }
            (Operation::Read, Outcome::Read(index)) => {
                if *index < open.floor {
                    let evidence = format!("read {index:?} after {:?} had been shown", open.floor);
                    return violation("linearizable reads", evidence);
                }
                self.floor = self.floor.max(*index);
            }
            (Operation::ReadStale { bound }, Outcome::Read(index)) => {
                // By the member's own clock, which runs at most one in a hundred slow.
                let floor = self.floor_at(open.begun.saturating_sub(bound + bound / 100));
                if *index < floor {
                    let evidence = format!("read {index:?}, {floor:?} had been shown {bound} ns before");
                    return violation("reads of bounded staleness", evidence);
                }
            }
            (Operation::SetCursor { index }, Outcome::Cursor(stands)) if stands >= &Index(*index) => {}
            (Operation::OpenSession, Outcome::Session(_))
            | (Operation::SaveCheckpoint { .. }, Outcome::Checkpoint) => {}
            (Operation::ChangeSettings { version, .. }, Outcome::Settings(made)) if *made == version + 1 => {}
            (
                Operation::Read
                | Operation::ReadStale { .. }
                | Operation::OpenSession
                | Operation::SetCursor { .. }
                | Operation::SaveCheckpoint { .. }
                | Operation::ChangeSettings { .. },
                Outcome::Refused(_),
            ) => {}
            (operation, outcome) => {
                return violation("answers fit", format!("{operation:?} was answered {outcome:?}"));
            }
        }
        Ok(())
    }

    fn judge_append(
        &mut self,
        open: &Open,
        entries: &[Entry],
        expected: Option<Index>,
        first: Index,
        last: Index,
    ) -> Result<(), Violation> {
        if last.0 + 1 != first.0 + entries.len() as u64 {
            return violation(
                "a call's entries are neighbours",
                format!("{first:?}..{last:?} for {}", entries.len()),
            );
        }
        if first <= open.floor {
            let evidence =
                format!("{entries:?} at {first:?}, but {:?} had been shown before it began", open.floor);
            return violation("real-time order", evidence);
        }
        if expected.is_some_and(|expected| expected.next() != first) {
            return violation("expected_index", format!("{first:?}, expected behind {expected:?}"));
        }
        self.floor = self.floor.max(last);
        self.owed.push((first, entries.to_vec()));
        self.settle_owed()
    }

    fn judge_refusal(
        &mut self,
        open: &Open,
        entries: &[Entry],
        expected: Option<Index>,
        refusal: &Refusal,
    ) -> Result<(), Violation> {
        if let Refusal::UnexpectedIndex { tail } = refusal
            && (expected.is_none_or(|expected| expected == *tail) || *tail < open.floor)
        {
            return violation("expected_index", format!("refused at tail {tail:?}, expected {expected:?}"));
        }
        for Entry { payload, .. } in entries {
            if let Some(index) = self.places.get(payload) {
                let evidence = format!("{payload:?} was refused ({refusal}) and stands at {index:?}");
                return violation("refused means not appended", evidence);
            }
            self.refused.insert(payload.clone());
        }
        Ok(())
    }

    /// Compares acknowledged appends with the log, as far as members have applied it.
    ///
    /// # Errors
    /// Where an acknowledged entry does not stand at the index that was returned.
    pub fn settle_owed(&mut self) -> Result<(), Violation> {
        let newest = self.log.last_key_value().map_or(Index(0), |(last, _)| *last);
        let mut open = Vec::new();
        for (first, entries) in std::mem::take(&mut self.owed) {
            if first.plus(entries.len() as u64 - 1) > newest {
                open.push((first, entries));
                continue;
            }
            for (i, entry) in entries.iter().enumerate() {
                let index = first.plus(i as u64);
                if self.log.get(&index).map(|(held, _)| held) != Some(entry) {
                    let evidence =
                        format!("{entry:?} acknowledged at {index:?}, there is {:?}", self.log.get(&index));
                    return violation("acknowledged is durable", evidence);
                }
            }
        }
        self.owed = open;
        Ok(())
    }

    /// The run is over and healed: nothing acknowledged may be missing.
    ///
    /// # Errors
    /// Where something is.
    pub fn finish(&mut self) -> Result<(), Violation> {
        self.settle_owed()?;
        match self.owed.first() {
            Some((first, entries)) => violation(
                "acknowledged is durable",
                format!("{entries:?} acknowledged at {first:?} is not in the log"),
            ),
            None => Ok(()),
        }
    }

    /// Entries in the log.
    pub fn len(&self) -> usize {
        self.log.len()
    }

    /// Whether the log is empty.
    pub fn is_empty(&self) -> bool {
        self.log.is_empty()
    }
}
