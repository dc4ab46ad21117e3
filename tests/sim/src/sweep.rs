//! Many seeds on two threads, and what they came to.

use crate::faults::{Fault, FaultCounts};
use crate::oracle::Violation;
use crate::run::{Effort, Outcome, run};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Which seeds to run.
#[derive(Clone, Copy, Debug)]
pub struct Seeds {
    /// The first.
    pub first: u64,
    /// At most so many.
    pub count: u64,
    /// No new one after this.
    pub end: Option<Instant>,
}

/// What a sweep came to.
#[derive(Debug, Default, Serialize)]
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
    /// How often each kind of fault happened.
    pub coverage: BTreeMap<String, u64>,
    /// Kinds that never did.
    pub unreached: Vec<String>,
}

/// Runs seeds on two threads until they are through or one fails; outcomes are ordered by seed, and none
/// depends on which thread ran it. Assertions of the core are caught and reported as violations.
pub fn sweep(seeds: Seeds, effort: Effort, progress: &(dyn Fn(&Outcome) + Sync)) -> Vec<Outcome> {
    std::panic::set_hook(Box::new(|_| {}));
    let next = AtomicU64::new(seeds.first);
    let last = seeds.first.saturating_add(seeds.count);
    let work = || {
        let mut outcomes = Vec::new();
        while seeds.end.is_none_or(|end| Instant::now() < end) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= last {
                break;
            }
            let outcome = run_and_sample(seed, effort);
            progress(&outcome);
            if outcome.violation.is_some() {
                next.store(last, Ordering::Relaxed);
            }
            outcomes.push(outcome);
        }
        outcomes
    };
    let mut outcomes = std::thread::scope(|scope| {
        let other = scope.spawn(work);
        let mut outcomes = work();
        outcomes.extend(other.join().expect("a run catches its own panics"));
        outcomes
    });
    let _ = std::panic::take_hook();
    outcomes.sort_by_key(|outcome| outcome.seed);
    outcomes
}

/// Every so many seeds one is run twice: a run must be a function of its seed.
const SAMPLE: u64 = 64;

fn run_and_sample(seed: u64, effort: Effort) -> Outcome {
    let mut outcome = run(seed, effort, false);
    if seed.is_multiple_of(SAMPLE) && outcome.violation.is_none() {
        let again = run(seed, effort, false);
        if again.hash != outcome.hash {
            let evidence = format!("hashes {:016x} and {:016x}", outcome.hash, again.hash);
            outcome.violation = Some(Violation { property: "a run is a function of its seed", evidence });
        }
    }
    outcome
}

impl Report {
    /// Adds up outcomes.
    pub fn of(outcomes: &[Outcome]) -> Report {
        let mut faults = FaultCounts::default();
        let mut report = Report::default();
        for outcome in outcomes {
            faults.merge(&outcome.faults);
            report.seeds += 1;
            report.simulated_hours += outcome.simulated.as_secs_f64() / 3_600.0;
            report.operations_checked += outcome.operations;
            report.violations += u64::from(outcome.violation.is_some());
        }
        for fault in Fault::ALL {
            report.coverage.insert(fault.name().to_owned(), faults.get(fault));
            if faults.get(fault) == 0 {
                report.unreached.push(fault.name().to_owned());
            }
        }
        report
    }
}
