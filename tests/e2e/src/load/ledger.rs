//! What the writers were told, as it comes in, and the gaps between.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;

/// An entry that was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledged {
    /// The index that was returned.
    pub index: u64,
    /// The digest of what was appended.
    pub sha256: String,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
}

/// One line of `journal write`.
#[derive(Debug, Clone, Deserialize)]
struct Line {
    index: Option<u64>,
    sha256: String,
    outcome: String,
    at_ms: u64,
    #[serde(default)]
    repeated: bool,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    reason: Option<String>,
}

/// All outcomes so far. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    inner: Arc<Mutex<Outcomes>>,
}

/// The outcomes by kind.
#[derive(Debug, Clone, Default)]
pub struct Outcomes {
    /// Acknowledged, in the order in which the driver heard.
    pub acknowledged: Vec<Acknowledged>,
    /// Where each acknowledged entry stands, by its digest.
    places: HashMap<String, u64>,
    /// Digests of entries whose outcome was told to be unknown, and that were not acknowledged afterwards.
    pub unknown: BTreeSet<String>,
    /// How many acknowledgements said that an earlier try had appended the entry.
    pub repeated: usize,
    /// How many were refused: certainly not appended.
    pub refused: usize,
    /// Why the last of them was.
    pub last_refusal: Option<String>,
    /// Lines that no outcome could be read from.
    pub unreadable: Vec<String>,
}

impl Ledger {
    /// Takes one line that a writer printed. Returns the entry's number if its outcome is known now.
    ///
    /// A writer that was started again tells of entries again that it had told of before it was killed: the
    /// same entry at the same index is one acknowledgement.
    pub fn take(&self, text: &str) -> Option<u64> {
        let mut outcomes = self.lock();
        let line: Line = match serde_json::from_str(text) {
            Ok(line) => line,
            Err(_) => {
                outcomes.unreadable.push(text.to_owned());
                return None;
            }
        };
        match (line.outcome.as_str(), line.index) {
            ("ok", Some(index)) => {
                outcomes.repeated += usize::from(line.repeated);
                outcomes.unknown.remove(&line.sha256);
                if outcomes.places.insert(line.sha256.clone(), index) != Some(index) {
                    let entry = Acknowledged { index, sha256: line.sha256, at_ms: line.at_ms };
                    outcomes.acknowledged.push(entry);
                }
            }
            ("unknown", _) => {
                outcomes.unknown.insert(line.sha256);
                return None;
            }
            ("refused", _) => {
                outcomes.refused += 1;
                outcomes.last_refusal = line.reason;
            }
            _ => {
                outcomes.unreadable.push(text.to_owned());
                return None;
            }
        }
        Some(line.seq)
    }

    /// How many acknowledgements there are.
    pub fn count(&self) -> usize {
        self.lock().acknowledged.len()
    }

    /// How many were refused, and why the last of them was.
    pub fn refusals(&self) -> (usize, Option<String>) {
        let outcomes = self.lock();
        (outcomes.refused, outcomes.last_refusal.clone())
    }

    /// A copy of everything so far.
    pub fn outcomes(&self) -> Outcomes {
        self.lock().clone()
    }

    /// The longest time without an acknowledgement of any writer between two moments, in
    /// milliseconds; the moments themselves count as its ends.
    pub fn longest_gap(&self, from_ms: u64, to_ms: u64) -> u64 {
        let mut times: Vec<u64> = self
            .lock()
            .acknowledged
            .iter()
            .map(|entry| entry.at_ms)
            .filter(|at| (from_ms..=to_ms).contains(at))
            .collect();
        times.extend([from_ms, to_ms]);
        times.sort_unstable();
        times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
    }

    fn lock(&self) -> MutexGuard<'_, Outcomes> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(index: &str, outcome: &str, at_ms: u64) -> String {
        format!(
            r#"{{"writer":"w","seq":1,"index":{index},"sha256":"d{at_ms}","outcome":"{outcome}","at_ms":{at_ms},"reason":"NO_SPACE"}}"#
        )
    }

    #[test]
    fn outcomes_are_kept_by_kind() {
        let ledger = Ledger::default();
        ledger.take(&line("7", "ok", 1));
        ledger.take(&line("null", "unknown", 2));
        ledger.take(&line("null", "refused", 3));
        ledger.take("half a li");
        // An acknowledgement without an index is none.
        ledger.take(&line("null", "ok", 4));
        let outcomes = ledger.outcomes();
        assert_eq!(outcomes.acknowledged, [Acknowledged { index: 7, sha256: "d1".into(), at_ms: 1 }]);
        assert_eq!(outcomes.unknown, ["d2".to_owned()].into());
        assert_eq!((outcomes.refused, outcomes.unreadable.len()), (1, 2));
        assert_eq!(ledger.refusals(), (1, Some("NO_SPACE".to_owned())));
    }

    #[test]
    fn an_entry_that_is_told_of_again_counts_once() {
        let ledger = Ledger::default();
        let again = |index: &str| {
            format!(r#"{{"seq":5,"index":{index},"sha256":"d","outcome":"ok","at_ms":9,"repeated":true}}"#)
        };
        assert_eq!(ledger.take(r#"{"seq":5,"index":null,"sha256":"d","outcome":"unknown","at_ms":1}"#), None);
        assert_eq!(ledger.take(&again("7")), Some(5));
        assert_eq!(ledger.take(&again("7")), Some(5));
        let outcomes = ledger.outcomes();
        assert_eq!((outcomes.acknowledged.len(), outcomes.repeated), (1, 2));
        assert!(outcomes.unknown.is_empty());
        // At another index it is another one, which no log can hold.
        ledger.take(&again("8"));
        assert_eq!(ledger.outcomes().acknowledged.len(), 2);
    }

    #[test]
    fn the_longest_gap_counts_its_ends() {
        let ledger = Ledger::default();
        for at in [1_000, 1_100, 1_500, 1_600, 9_000] {
            ledger.take(&line("7", "ok", at));
        }
        assert_eq!(ledger.longest_gap(1_000, 1_600), 400);
        assert_eq!(ledger.longest_gap(1_000, 2_600), 1_000);
        assert_eq!(ledger.longest_gap(0, 1_600), 1_000);
        assert_eq!(ledger.longest_gap(3_000, 4_000), 1_000);
    }
}
