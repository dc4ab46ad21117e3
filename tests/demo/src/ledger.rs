//! What the writers were told, as it comes in, and the gaps between.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;

/// An entry that was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Acknowledged {
    /// The index that was returned.
    pub(crate) index: u64,
    /// The digest of what was appended.
    pub(crate) sha256: String,
    /// When, in milliseconds since 1970.
    pub(crate) at_ms: u64,
}

/// One line of `journal write`.
#[derive(Debug, Clone, Deserialize)]
struct Line {
    index: Option<u64>,
    sha256: String,
    outcome: String,
    at_ms: u64,
}

/// All outcomes so far. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger {
    inner: Arc<Mutex<Outcomes>>,
}

/// The outcomes by kind.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcomes {
    /// Acknowledged, in the order in which the driver heard.
    pub(crate) acknowledged: Vec<Acknowledged>,
    /// Digests of entries whose outcome is unknown.
    pub(crate) unknown: Vec<String>,
    /// How many were refused: certainly not appended.
    pub(crate) refused: usize,
    /// Lines that no outcome could be read from.
    pub(crate) unreadable: Vec<String>,
}

impl Ledger {
    /// Takes one line that a writer printed.
    pub(crate) fn take(&self, text: &str) {
        let mut outcomes = self.lock();
        let line: Line = match serde_json::from_str(text) {
            Ok(line) => line,
            Err(_) => {
                outcomes.unreadable.push(text.to_owned());
                return;
            }
        };
        match (line.outcome.as_str(), line.index) {
            ("ok", Some(index)) => {
                outcomes.acknowledged.push(Acknowledged { index, sha256: line.sha256, at_ms: line.at_ms });
            }
            ("unknown", _) => outcomes.unknown.push(line.sha256),
            ("refused", _) => outcomes.refused += 1,
            _ => outcomes.unreadable.push(text.to_owned()),
        }
    }

    /// How many acknowledgements there are.
    pub(crate) fn count(&self) -> usize {
        self.lock().acknowledged.len()
    }

    /// A copy of everything so far.
    pub(crate) fn outcomes(&self) -> Outcomes {
        self.lock().clone()
    }

    /// The longest time without an acknowledgement of any writer between two moments, in
    /// milliseconds; the moments themselves count as its ends.
    pub(crate) fn longest_gap(&self, from_ms: u64, to_ms: u64) -> u64 {
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
            r#"{{"writer":"w","seq":1,"index":{index},"sha256":"d{at_ms}","outcome":"{outcome}","at_ms":{at_ms}}}"#
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
        assert_eq!(outcomes.unknown, ["d2"]);
        assert_eq!((outcomes.refused, outcomes.unreadable.len()), (1, 2));
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
