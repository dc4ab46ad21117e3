//! Many seeds on two threads, and what they came to.

use crate::faults::{Fault, FaultCounts};
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
    /// Of these, such whose outcome nobody can tell.
    pub unknown_outcomes: u64,
    /// Runs in which something broke.
    pub violations: u64,
    /// Their seeds.
    pub failed_seeds: Vec<u64>,
    /// How often each kind of fault happened.
    pub coverage: BTreeMap<&'static str, u64>,
    /// Kinds that never did.
    pub unreached: Vec<&'static str>,
}

/// Runs seeds on two threads until they are through or one fails; outcomes are ordered by seed, and none
/// depends on which thread ran it. Assertions of the core are caught and reported as violations.
pub fn sweep(seeds: Seeds, effort: Effort, progress: &(dyn Fn() + Sync)) -> Vec<Outcome> {
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
            let outcome = run(seed, effort, false);
            progress();
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
            report.unknown_outcomes += outcome.unknown;
            if outcome.violation.is_some() {
                report.violations += 1;
                report.failed_seeds.push(outcome.seed);
            }
        }
        for fault in Fault::ALL {
            report.coverage.insert(fault.name(), faults.get(fault));
            if faults.get(fault) == 0 {
                report.unreached.push(fault.name());
            }
        }
        report
    }
}
