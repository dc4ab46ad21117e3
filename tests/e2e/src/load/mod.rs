//! A load on a log while something is done to it: writers in its pods, what they were told, and what the log makes of it.

mod ledger;
mod writers;

use std::collections::{HashMap, HashSet};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;

pub use ledger::{Acknowledged, Ledger, Outcomes};
pub use writers::{Once, Place, Writer};

use crate::Test;
use crate::report::Row;

/// The container of the example application.
const APPLICATION: &str = "journal";
/// Acknowledgements that show that the writers go on.
const SOME: usize = 50;

/// The wall clock in milliseconds since 1970: the writers' clock too, since they run on this machine.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Writers at work.
#[derive(Debug)]
pub struct Load {
    writers: Vec<Writer>,
    ledger: Ledger,
    began_ms: u64,
}

/// What became of a load.
#[derive(Debug)]
pub struct Judged {
    /// Entries that were acknowledged.
    pub acknowledged: usize,
    /// Calls that were refused.
    pub refused: usize,
    /// Calls whose outcome nobody knows.
    pub unknown: usize,
    /// Acknowledged entries that do not stand at their index, in any of the logs that were read.
    pub lost: usize,
    /// Entries that stand more than once.
    pub duplicated: usize,
    /// The longest time without an acknowledgement, in milliseconds.
    pub longest_gap_ms: u64,
}

/// One line of `journal cat -o json`.
#[derive(Deserialize)]
struct Line {
    index: u64,
    sha256: String,
}

/// Whether a pod's application runs.
fn runs(test: &Test, pod: &str) -> bool {
    let pod = test.get("pod", pod);
    let containers = pod["status"]["containerStatuses"].as_array();
    containers.is_some_and(|all| {
        all.iter().any(|one| one["name"] == APPLICATION && one["state"]["running"].is_object())
    })
}

impl Load {
    /// Starts a writer in each of the pods, whose application is the journal, and waits until entries are acknowledged.
    ///
    /// # Panics
    /// If none is within a minute.
    pub fn start(test: &Test, pods: &[&str]) -> Load {
        let ledger = Ledger::default();
        let began_ms = now_ms();
        let writers = pods.iter().map(|pod| {
            let place = Place {
                cluster: test.cluster.clone(),
                namespace: test.namespace.clone(),
                pod: (*pod).to_owned(),
                container: APPLICATION.to_owned(),
            };
            // Their pods may go under them.
            Writer::start(place, pod, Once::Keys { minted_at: 0 }, &ledger)
        });
        let load = Load { writers: writers.collect(), ledger, began_ms };
        load.goes_on(test);
        load
    }

    /// Waits until some more entries are acknowledged.
    ///
    /// # Panics
    /// If none are within two minutes, or if as many appends are refused meanwhile.
    pub fn goes_on(&self, test: &Test) {
        let enough = self.ledger.count() + SOME;
        let too_many = self.ledger.refusals().0 + SOME;
        test.wait("the writers' acknowledgements", 120, || {
            let (refused, reason) = self.ledger.refusals();
            assert!(refused < too_many, "the writers' appends are refused: {reason:?}");
            (self.ledger.count() >= enough).then_some(())
        });
    }

    /// The longest time without an acknowledgement between two moments, in milliseconds.
    pub fn longest_gap(&self, from_ms: u64, to_ms: u64) -> u64 {
        self.ledger.longest_gap(from_ms, to_ms)
    }

    /// Stops the writers, reads the whole log in each of the pods, and notes what was found for the report.
    ///
    /// # Panics
    /// If a writer said what is no outcome, or a log cannot be read.
    pub fn judge(self, test: &Test, pods: &[&str]) -> Judged {
        let ended_ms = now_ms();
        self.writers.into_iter().for_each(Writer::stop);
        let outcomes = self.ledger.outcomes();
        assert!(outcomes.unreadable.is_empty(), "no outcomes: {:?}", outcomes.unreadable);
        let mut judged = Judged {
            acknowledged: outcomes.acknowledged.len(),
            refused: outcomes.refused,
            unknown: outcomes.unknown.len(),
            lost: 0,
            duplicated: 0,
            longest_gap_ms: self.ledger.longest_gap(self.began_ms, ended_ms),
        };
        for pod in pods {
            // One that ended while there was no log waits for its kubelet.
            test.wait(&format!("the application in {pod}"), 300, || runs(test, pod).then_some(()));
            let text = test.exec(pod, APPLICATION, &["journal", "cat", "-o", "json"]);
            let lines = text.lines().map(|line| serde_json::from_str(line).expect("an entry a line"));
            let log: Vec<Line> = lines.collect();
            let at: HashMap<u64, &str> = log.iter().map(|line| (line.index, line.sha256.as_str())).collect();
            let stands = |entry: &&Acknowledged| at.get(&entry.index) == Some(&entry.sha256.as_str());
            judged.lost += outcomes.acknowledged.len() - outcomes.acknowledged.iter().filter(stands).count();
            let mut seen = HashSet::new();
            judged.duplicated += log.iter().filter(|line| !seen.insert(line.sha256.as_str())).count();
        }
        test.note(Row {
            longest_gap_ms: Some(judged.longest_gap_ms),
            acknowledged: Some(judged.acknowledged),
            lost: Some(judged.lost + judged.duplicated),
            ..Row::default()
        });
        println!("{judged:?}");
        judged
    }
}

impl Judged {
    /// # Panics
    /// If an acknowledged entry is not in the log, once and at its index.
    pub fn nothing_was_lost(&self) {
        assert!(self.acknowledged > 0, "nothing was acknowledged");
        assert_eq!((self.lost, self.duplicated), (0, 0), "{self:?}");
    }

    /// # Panics
    /// If something was lost, or a call failed: each tries for two minutes, through whatever happens meanwhile.
    pub fn no_call_failed(&self) {
        self.nothing_was_lost();
        assert_eq!((self.refused, self.unknown), (0, 0), "{self:?}");
    }
}
