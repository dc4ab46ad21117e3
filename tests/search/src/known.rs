//! What a search has met: seats, mail and what they do to each other, each worked out once and numbered.
//!
//! There are some hundred thousand different members at most, and hundreds of millions of states: a state is a handful
//! of numbers, and a step a look into these tables.

use crate::mail::Mail;
use crate::member::{Facts, History};
use crate::properties::Verdict;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use synod_paxos::Incoming;

/// A member in a state.
#[derive(Debug, Default)]
pub struct Seat {
    /// Tells apart all that its future may rest on; 0 on the way to where a search begins.
    pub(crate) number: u32,
    /// The same for one that will not campaign any more (see [`crate::print::Depth::Quiet`]).
    pub(crate) quiet: u32,
    /// The same, but for what a promise that comes late changes (see [`crate::print::Depth::Late`]).
    pub(crate) late: u32,
    /// Tells apart what was voted for and applied here.
    pub(crate) facts_number: u32,
    /// The same within the bound, and in every search.
    pub(crate) bounded: u128,
    /// It proposes, and has proposed in every slot within the bound.
    pub(crate) spent: bool,
    /// It proposes, and adopts what promises report no more: spent, or its LeaderStart stands on its disk.
    pub(crate) settled: bool,
    pub(crate) history: Option<Arc<History>>,
    /// What the properties read.
    pub facts: Facts,
}

/// What something did to a member: where it stands then, and what it sends.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) seat: Arc<Seat>,
    pub(crate) sent: Vec<Mail>,
    /// Where it stood on the way, as far as that must be judged too.
    pub(crate) between: Vec<Arc<Seat>>,
}

/// Spreads numbers that are small or spread already.
#[derive(Default)]
pub(crate) struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(u64::from(n));
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(23) ^ n).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn write_u128(&mut self, n: u128) {
        self.write_u64(n as u64);
    }
}

type Table<K, V> = HashMap<K, V, BuildHasherDefault<Mix>>;

/// The tables; one thread uses them at a time.
#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<Tables>);

#[derive(Debug, Default)]
struct Tables {
    /// Numbers from 1, by fingerprint.
    numbers: Table<u128, u32>,
    mail: Table<u128, Mail>,
    outcomes: Table<(u32, u32), Arc<Outcome>>,
    settled: Table<(u32, u32), Arc<Outcome>>,
    verdicts: Table<(u32, u32, u32), Verdict>,
    judged: HashSet<u128, BuildHasherDefault<Mix>>,
}

impl Known {
    fn with<R>(&self, f: impl FnOnce(&mut Tables) -> R) -> R {
        // A panic while the lock is held leaves the tables whole.
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The number of a fingerprint.
    pub(crate) fn number(&self, print: u128) -> u32 {
        self.with(|tables| {
            let next = u32::try_from(tables.numbers.len() + 1).expect("memory ends before the numbers do");
            *tables.numbers.entry(print).or_insert(next)
        })
    }

    /// The mail of a fingerprint: the first that was met stands for all.
    pub(crate) fn mail(&self, print: u128, incoming: Incoming) -> Mail {
        self.with(|tables| {
            let next = u32::try_from(tables.mail.len() + 1).expect("memory ends before the numbers do");
            tables.mail.entry(print).or_insert_with(|| Mail::new(next, incoming)).clone()
        })
    }

    /// What an event does to a seat, if it is known.
    pub(crate) fn outcome(&self, key: (u32, u32)) -> Option<Arc<Outcome>> {
        self.with(|tables| tables.outcomes.get(&key).cloned())
    }

    pub(crate) fn note_outcome(&self, key: (u32, u32), outcome: Arc<Outcome>) {
        self.with(|tables| tables.outcomes.insert(key, outcome));
    }

    /// The same, with the disk's writes behind it.
    pub(crate) fn settled(&self, key: (u32, u32)) -> Option<Arc<Outcome>> {
        self.with(|tables| tables.settled.get(&key).cloned())
    }

    pub(crate) fn note_settled(&self, key: (u32, u32), outcome: Arc<Outcome>) {
        self.with(|tables| tables.settled.insert(key, outcome));
    }

    pub(crate) fn verdict(&self, key: (u32, u32, u32)) -> Option<Verdict> {
        self.with(|tables| tables.verdicts.get(&key).copied())
    }

    pub(crate) fn note_verdict(&self, key: (u32, u32, u32), verdict: Verdict, bounded: u128) {
        self.with(|tables| {
            tables.verdicts.insert(key, verdict);
            tables.judged.insert(bounded);
        });
    }

    /// How many verdicts were given that differ within the bound, and the sum of what tells them apart: two searches
    /// that judged the same have the same sum.
    pub(crate) fn judged(&self) -> (usize, u128) {
        self.with(|tables| {
            (tables.judged.len(), tables.judged.iter().fold(0, |sum: u128, n| sum.wrapping_add(*n)))
        })
    }
}
