//! Many seeds on two threads, and what they came to.

use crate::coverage::Coverage;
use crate::oracle::Violation;
use crate::run::{Effort, Keep, Outcome, run};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Which seeds to run.
#[derive(Clone, Copy, Debug)]
pub struct Seeds {
    /// The first.
    pub first: u64,
    /// At most so many.
    pub count: u64,
    /// From one to the next.
    pub step: u64,
    /// No new one after this.
    pub end: Option<Instant>,
    /// Threads.
    pub threads: usize,
}

/// What runs came to together.
#[derive(Debug, Default)]
pub struct Sums {
    /// Runs.
    pub seeds: u64,
    /// Simulated time of all.
    pub simulated: Duration,
    /// Client operations judged.
    pub operations: u64,
    /// Of these, such whose outcome nobody can tell.
    pub unknown: u64,
    /// What was met.
    pub coverage: Coverage,
    /// Seeds in which something broke.
    pub failed: BTreeMap<u64, Violation>,
}

/// What a sweep came to, as a file shows it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Runs.
    pub seeds: u64,
    /// Simulated time of all.
    pub simulated_hours: f64,
    /// Client operations judged.
    pub operations_checked: u64,
    /// Operations that the oracle could not judge. It judges each as it is answered, against one log, so
    /// there are none: a timed-out append is unknown to its client, and still judged by what the log shows.
    pub inconclusive: u64,
    /// Runs in which something broke.
    pub violations: u64,
    /// How often each kind of fault, message and rule was met.
    pub coverage: BTreeMap<String, u64>,
    /// Kinds that never were.
    pub unreached: Vec<String>,
}

impl Sums {
    fn add(&mut self, outcome: Outcome) {
        self.seeds += 1;
        self.simulated += outcome.simulated;
        self.operations += outcome.operations;
        self.unknown += outcome.unknown;
        self.coverage.merge(&outcome.coverage);
        if let Some(violation) = outcome.violation {
            self.failed.insert(outcome.seed, violation);
        }
    }

    fn merge(&mut self, other: Sums) {
        self.seeds += other.seeds;
        self.simulated += other.simulated;
        self.operations += other.operations;
        self.unknown += other.unknown;
        self.coverage.merge(&other.coverage);
        self.failed.extend(other.failed);
    }

    /// As a file shows it.
    pub fn report(&self) -> Report {
        let coverage = self.coverage.named();
        let unreached = coverage.iter().filter(|(_, count)| **count == 0).map(|(name, _)| name.clone());
        Report {
            seeds: self.seeds,
            simulated_hours: self.simulated.as_secs_f64() / 3_600.0,
            operations_checked: self.operations,
            inconclusive: 0,
            violations: self.failed.len() as u64,
            unreached: unreached.collect(),
            coverage,
        }
    }
}

/// Runs seeds until they are through or one fails; what they come to does not depend on which thread ran which.
/// Assertions of the core are caught and reported as violations.
pub fn sweep(seeds: Seeds, effort: Effort, progress: &(dyn Fn(&Outcome) + Sync)) -> Sums {
    std::panic::set_hook(Box::new(|_| {}));
    let next = AtomicU64::new(seeds.first);
    let last = seeds.first.saturating_add(seeds.count.saturating_mul(seeds.step));
    let work = || {
        let mut sums = Sums::default();
        while seeds.end.is_none_or(|end| Instant::now() < end) {
            let seed = next.fetch_add(seeds.step, Ordering::Relaxed);
            if seed >= last {
                break;
            }
            let outcome = run_and_sample(seed, effort);
            progress(&outcome);
            if outcome.violation.is_some() {
                next.store(last, Ordering::Relaxed);
            }
            sums.add(outcome);
        }
        sums
    };
    let sums = std::thread::scope(|scope| {
        let others: Vec<_> = (1..seeds.threads).map(|_| scope.spawn(work)).collect();
        let mut sums = work();
        for other in others {
            sums.merge(other.join().expect("a run catches its own panics"));
        }
        sums
    });
    let _ = std::panic::take_hook();
    sums
}

/// Every so many seeds one is run twice: a run must be a function of its seed.
const SAMPLE: u64 = 64;

fn run_and_sample(seed: u64, effort: Effort) -> Outcome {
    let mut outcome = run(seed, effort, Keep::default());
    if seed.is_multiple_of(SAMPLE) && outcome.violation.is_none() {
        let again = run(seed, effort, Keep::default());
        if again.hash != outcome.hash {
            let evidence = format!("hashes {:016x} and {:016x}", outcome.hash, again.hash);
            outcome.violation = Some(Violation { property: "a run is a function of its seed", evidence });
        }
    }
    outcome
}

/// How long to go on: a number with a unit, as in 90s, 10m or 1h.
///
/// # Errors
/// What is wrong with the text, for whoever typed it.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let seconds = match &text[digits.len()..] {
        "s" | "" => 1,
        "m" => 60,
        "h" => 3_600,
        unit => return Err(format!("{unit} is no unit of time: use s, m or h, as in 10m")),
    };
    let number: u64 =
        digits.parse().map_err(|_| format!("{text} is no time: write it as in 90s, 10m or 1h"))?;
    Ok(Duration::from_secs(number * seconds))
}
