//! Runs the simulator over many seeds.

use anyhow::{Context, bail};
use clap::Parser;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use synod_sim::faults::{Fault, FaultCounts};
use synod_sim::run::{Effort, Outcome, run};

/// Runs Synod's consensus core against faulty networks, disks and processes, one seed a run.
///
/// A run's every step follows from its seed: a failure is repeated with --seed, and explained with --trace.
#[derive(Parser, Debug)]
#[command(version, about)]
struct Arguments {
    /// Run this seed alone.
    #[arg(long, conflicts_with_all = ["seeds", "for_seconds"])]
    seed: Option<u64>,
    /// Run this many seeds.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Go on for so many seconds instead of a number of seeds.
    #[arg(long)]
    for_seconds: Option<u64>,
    /// Client operations of each seed, at least.
    #[arg(long, default_value_t = 500)]
    operations: u64,
    /// Faults of each seed, at least.
    #[arg(long, default_value_t = 20)]
    faults: u64,
    /// Print every step of the seed (with --seed).
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Write the report here, as JSON.
    #[arg(long)]
    report: Option<std::path::PathBuf>,
    /// Plant this bug in the core first (only in a build made for that).
    #[arg(long)]
    planted: Option<String>,
}

/// What a whole session of runs came to.
#[derive(Debug, Default, Serialize)]
struct Report {
    seeds: u64,
    simulated_hours: f64,
    operations_checked: u64,
    unknown_outcomes: u64,
    violations: u64,
    failed_seeds: Vec<u64>,
    coverage: BTreeMap<&'static str, u64>,
    unreached: Vec<&'static str>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    plant(arguments.planted.as_deref())?;
    let effort = Effort { operations: arguments.operations, faults: arguments.faults };
    if let Some(seed) = arguments.seed {
        // An assertion of the core is reported as a violation: its own message is enough.
        std::panic::set_hook(Box::new(|_| {}));
        let outcome = run(seed, effort, arguments.trace);
        outcome.trace.iter().for_each(|line| println!("{line}"));
        return conclude_one(&outcome);
    }
    let report = run_many(&arguments, effort);
    println!(
        "{} seeds, {:.2} simulated hours, {} operations checked ({} unknown), {} violations",
        report.seeds,
        report.simulated_hours,
        report.operations_checked,
        report.unknown_outcomes,
        report.violations
    );
    if let Some(path) = &arguments.report {
        let json = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, json).with_context(|| format!("cannot write the report {}", path.display()))?;
    }
    match report.failed_seeds.first() {
        Some(seed) => bail!("seed {seed} failed; see it with: synod-sim --seed {seed} --trace"),
        None => Ok(()),
    }
}

#[cfg(synod_planted)]
fn plant(bug: Option<&str>) -> anyhow::Result<()> {
    let Some(name) = bug else { return Ok(()) };
    let bug = synod_paxos::planted::Bug::ALL.iter().find(|bug| bug.name() == name);
    let bug = bug.with_context(|| format!("no planted bug is named {name}"))?;
    synod_paxos::planted::plant(*bug);
    Ok(())
}

#[cfg(not(synod_planted))]
fn plant(bug: Option<&str>) -> anyhow::Result<()> {
    match bug {
        Some(_) => bail!("this build has no planted bugs: build with RUSTFLAGS='--cfg synod_planted'"),
        None => Ok(()),
    }
}

fn conclude_one(outcome: &Outcome) -> anyhow::Result<()> {
    println!(
        "seed {}: {} operations, {} faults, {:.1} s simulated, {} entries, hash {:016x}",
        outcome.seed,
        outcome.operations,
        outcome.faults.total(),
        outcome.simulated.as_secs_f64(),
        outcome.entries,
        outcome.hash
    );
    match &outcome.violation {
        Some(violation) => bail!("{}: {}", violation.property, violation.evidence),
        None => Ok(()),
    }
}

/// Two threads share the seeds; the report does not depend on which runs which.
fn run_many(arguments: &Arguments, effort: Effort) -> Report {
    std::panic::set_hook(Box::new(|_| {}));
    let next = AtomicU64::new(arguments.first);
    let last = arguments.for_seconds.map_or(arguments.first + arguments.seeds, |_| u64::MAX);
    let end = arguments.for_seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let progress = indicatif::ProgressBar::new(arguments.seeds);
    let work = || {
        let mut outcomes = Vec::new();
        while end.is_none_or(|end| Instant::now() < end) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= last {
                break;
            }
            let mut outcome = run(seed, effort, false);
            outcome.trace = Vec::new();
            progress.inc(1);
            let failed = outcome.violation.is_some();
            outcomes.push(outcome);
            if failed {
                next.store(u64::MAX / 2, Ordering::Relaxed);
                break;
            }
        }
        outcomes
    };
    let mut outcomes = std::thread::scope(|scope| {
        let other = scope.spawn(work);
        let mut outcomes = work();
        outcomes.extend(other.join().unwrap_or_default());
        outcomes
    });
    progress.finish_and_clear();
    outcomes.sort_by_key(|outcome| outcome.seed);
    summarise(&outcomes)
}

fn summarise(outcomes: &[Outcome]) -> Report {
    let mut faults = FaultCounts::default();
    let mut report = Report::default();
    for outcome in outcomes {
        faults.merge(&outcome.faults);
        report.seeds += 1;
        report.simulated_hours += outcome.simulated.as_secs_f64() / 3_600.0;
        report.operations_checked += outcome.operations;
        report.unknown_outcomes += outcome.unknown;
        if let Some(violation) = &outcome.violation {
            report.violations += 1;
            report.failed_seeds.push(outcome.seed);
            println!("seed {}: {}: {}", outcome.seed, violation.property, violation.evidence);
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
