//! Runs the simulator over many seeds.

use anyhow::{Context, bail};
use clap::Parser;
use std::time::{Duration, Instant};
use synod_sim::progress::Progress;
use synod_sim::run::{Effort, Outcome, run};
use synod_sim::sweep::{Report, Seeds, sweep};
use synod_sim::topologies::{Distribution, Topology, measure};

/// Runs Synod's consensus core against faulty networks, disks and processes, one seed a run.
///
/// A run's every step follows from its seed: a failure is repeated with --seed, and explained with --trace.
#[derive(Parser, Debug)]
#[command(version, about)]
struct Arguments {
    /// Run this seed alone.
    #[arg(long, conflicts_with_all = ["seeds", "for_time"])]
    seed: Option<u64>,
    /// Run this many seeds.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Go on for so long instead of a number of seeds: 90s, 10m, 1h.
    #[arg(long = "for", value_name = "TIME", value_parser = parse_time)]
    for_time: Option<Duration>,
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
    /// Instead of a sweep: how long partial partitions (hub, constrained, chained) go without a leader that
    /// serves, over --seeds seeds each.
    #[arg(long, conflicts_with_all = ["seed", "for_time"])]
    topologies: bool,
    /// Plant this bug in the core first (only in a build made for that).
    #[arg(long)]
    planted: Option<String>,
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
    if arguments.topologies {
        return measure_topologies(arguments.first, arguments.seeds);
    }
    let progress = Progress::new(arguments.seeds, arguments.for_time);
    let end = arguments.for_time.map(|time| Instant::now() + time);
    let count = if end.is_some() { u64::MAX / 4 } else { arguments.seeds };
    let outcomes =
        sweep(Seeds { first: arguments.first, count, end }, effort, &|outcome| progress.note(outcome));
    progress.finish();
    let report = Report::of(&outcomes);
    let unknown: u64 = outcomes.iter().map(|outcome| outcome.unknown).sum();
    for failed in outcomes.iter().filter_map(|o| o.violation.as_ref().map(|v| (o.seed, v))) {
        println!("seed {}: {}: {}", failed.0, failed.1.property, failed.1.evidence);
    }
    println!(
        "{} seeds, {:.2} simulated hours, {} operations checked ({} unknown), {} violations",
        report.seeds, report.simulated_hours, report.operations_checked, unknown, report.violations
    );
    if !report.unreached.is_empty() {
        println!("never reached: {}", report.unreached.join(", "));
    }
    if let Some(path) = &arguments.report {
        let json = serde_json::to_string_pretty(&report)?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        std::fs::write(path, json).with_context(|| format!("cannot write the report {}", path.display()))?;
    }
    match outcomes.iter().find(|outcome| outcome.violation.is_some()).map(|outcome| outcome.seed) {
        Some(seed) => bail!("seed {seed} failed; see it with: synod-sim --seed {seed} --trace"),
        None => Ok(()),
    }
}

/// A number with a unit: 90s, 10m, 1h.
fn parse_time(text: &str) -> Result<Duration, String> {
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

fn measure_topologies(first: u64, seeds: u64) -> anyhow::Result<()> {
    println!("simulated milliseconds from the cut to an append that is served again");
    println!("{:<12} {:>6} {:>7} {:>6} {:>6}", "topology", "seeds", "median", "p99", "max");
    for topology in Topology::ALL {
        let found = measure(topology, first..=first + seeds.saturating_sub(1));
        let Distribution { topology, seeds, median_ms, p99_ms, max_ms, .. } =
            found.map_err(|(seed, v)| {
                anyhow::anyhow!("{} seed {seed}: {}: {}", topology.name(), v.property, v.evidence)
            })?;
        println!("{topology:<12} {seeds:>6} {median_ms:>7} {p99_ms:>6} {max_ms:>6}");
    }
    Ok(())
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
