//! Many seeds on several threads.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::rules::Violation;
use crate::run::{Outcome, run};

/// Every so many seeds one is run twice: a run must be a function of its seed.
const SAMPLE: u64 = 32;

/// Which seeds to run.
#[derive(Clone, Copy, Debug)]
pub struct Seeds {
    /// The first.
    pub first: u64,
    /// How many at most.
    pub count: u64,
    /// No new one after this.
    pub end: Option<Instant>,
    /// Threads.
    pub threads: usize,
    /// Whether the first that fails ends it.
    pub stop: bool,
}

/// What seeds came to together.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    /// Runs.
    pub seeds: u64,
    /// Calls of the operators.
    pub calls: u64,
    /// Reconciles.
    pub looks: u64,
    /// Simulated seconds.
    pub seconds: i64,
    /// Runs whose faults destroyed a quorum of disks.
    pub destroyed: u64,
    /// Seeds that broke a rule.
    pub failed: BTreeMap<u64, Violation>,
}

/// Runs seeds; `tell` hears of each. `plant` is run on each thread before its first seed.
pub fn sweep(seeds: Seeds, plant: &(dyn Fn() + Sync), tell: &(dyn Fn(&Outcome) + Sync)) -> Sums {
    let next = AtomicU64::new(seeds.first);
    let last = seeds.first.saturating_add(seeds.count);
    let sums = Mutex::new(Sums::default());
    let work = || {
        plant();
        while seeds.end.is_none_or(|end| Instant::now() < end) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= last {
                break;
            }
            let outcome = sampled(seed);
            tell(&outcome);
            let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
            sums.seeds += 1;
            sums.calls += outcome.calls;
            sums.looks += outcome.looks;
            sums.seconds += outcome.seconds;
            sums.destroyed += u64::from(outcome.destroyed);
            if let Some(violation) = outcome.violation {
                sums.failed.insert(seed, violation);
                if seeds.stop {
                    next.store(last, Ordering::Relaxed);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..seeds.threads.max(1) {
            scope.spawn(work);
        }
    });
    sums.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn sampled(seed: u64) -> Outcome {
    let mut outcome = guarded(seed);
    if seed.is_multiple_of(SAMPLE) && outcome.violation.is_none() {
        let again = run(seed, false);
        if again.hash != outcome.hash {
            let evidence = format!("hashes {:016x} and {:016x}", outcome.hash, again.hash);
            outcome.violation = Some(Violation { rule: "a run is a function of its seed", evidence });
        }
    }
    outcome
}

/// Runs a seed; a panic of the operator is a broken rule.
pub fn guarded(seed: u64) -> Outcome {
    std::panic::catch_unwind(|| run(seed, false)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned()));
        Outcome {
            seed,
            violation: Some(Violation {
                rule: "the operator does not panic",
                evidence: text.unwrap_or_default(),
            }),
            hash: 0,
            calls: 0,
            looks: 0,
            seconds: 0,
            destroyed: false,
            lines: Vec::new(),
        }
    })
}
