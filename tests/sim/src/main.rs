//! Runs the simulator: many seeds, one seed, an event file, or a kind of partition.

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use indicatif::ProgressBar;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use synod_sim::action::Step;
use synod_sim::director::FILES;
use synod_sim::explain;
use synod_sim::oracle::Violation;
use synod_sim::progress::Progress;
use synod_sim::replay::{read_events, replay, write_events};
use synod_sim::run::{Effort, Keep, Outcome, run};
use synod_sim::setup::Setup;
use synod_sim::shrink::{Failure, shrink, sooner};
use synod_sim::sweep::{Report, Seeds, parse_time, sweep};
use synod_sim::topologies::{Distribution, Topology, measure};

/// Runs Synod's consensus core against faulty networks, disks, clocks and processes.
///
/// A run's every step follows from its seed. A seed that breaks a promise can be explained: its steps are shrunk to
/// few, and shown as a time line and a trace.
#[derive(Parser, Debug)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Plant this bug in the core first (only in a build made for that).
    #[arg(long, global = true)]
    planted: Option<String>,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run many seeds, on all cores, until one breaks a promise.
    Sweep(Sweep),
    /// Run one seed.
    Seed {
        /// Which.
        seed: u64,
        /// Print every step.
        #[arg(long)]
        trace: bool,
        /// Write every step here, as JSON lines that `replay` reads.
        #[arg(long)]
        events: Option<PathBuf>,
        /// Write every client operation here, as JSON lines: client, op, input, output, outcome, invoke_ns,
        /// return_ns.
        #[arg(long)]
        history: Option<PathBuf>,
    },
    /// Shrink what a seed breaks to few steps, and show them.
    Explain {
        /// Which.
        seed: u64,
        /// Shrink for so long at most: 90s, 10m.
        #[arg(long, default_value = "60s", value_parser = parse_time)]
        patience: Duration,
        /// Write the few steps here, as JSON lines.
        #[arg(long)]
        events: Option<PathBuf>,
    },
    /// Do the steps of an event file again, and show them.
    Replay {
        /// Made by --events.
        file: PathBuf,
        /// Shrink what it breaks first.
        #[arg(long)]
        shrink: bool,
    },
    /// Measure how long partial partitions (hub, constrained, chained) go without a leader that serves.
    Topologies {
        /// Seeds of each.
        #[arg(long, default_value_t = 1_000)]
        seeds: u64,
    },
}

#[derive(clap::Args, Debug)]
struct Sweep {
    /// Run this many seeds.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Go on for so long instead of a number of seeds: 90s, 10m, 1h.
    #[arg(long = "for", value_name = "TIME", value_parser = parse_time)]
    for_time: Option<Duration>,
    /// Only seeds whose members run the real storage engine: one of twenty.
    #[arg(long)]
    files: bool,
    /// Client operations of each seed, at least.
    #[arg(long, default_value_t = Effort::default().operations)]
    operations: u64,
    /// Threads; all cores if it is left out.
    #[arg(long)]
    threads: Option<usize>,
    /// Write the report here, as JSON.
    #[arg(long)]
    report: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    plant(arguments.planted.as_deref())?;
    match arguments.command {
        Command::Sweep(sweep) => sweep_seeds(&sweep),
        Command::Seed { seed, trace, events, history } => one_seed(seed, trace, events, history),
        Command::Explain { seed, patience, events } => explain_seed(seed, patience, events.as_deref()),
        Command::Replay { file, shrink } => replay_file(&file, shrink),
        Command::Topologies { seeds } => measure_topologies(seeds),
    }
}

fn sweep_seeds(arguments: &Sweep) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let step = if arguments.files { FILES } else { 1 };
    let seeds = Seeds {
        first: arguments.first.next_multiple_of(step),
        step,
        count: if arguments.for_time.is_some() { u64::MAX / 4 } else { arguments.seeds },
        end: arguments.for_time.map(|time| Instant::now() + time),
        threads: arguments.threads.unwrap_or(cores),
    };
    let effort = Effort { operations: arguments.operations, ..Effort::default() };
    let progress = Progress::new(arguments.seeds, arguments.for_time);
    let sums = sweep(seeds, effort, &|outcome| progress.note(outcome));
    progress.finish();
    let report = sums.report();
    for (seed, violation) in &sums.failed {
        println!("seed {seed}: {}: {}", violation.property, violation.evidence);
    }
    println!(
        "{} seeds, {:.2} simulated hours, {} operations checked\n({} of them unknown to their clients), {} violations",
        report.seeds, report.simulated_hours, report.operations_checked, sums.unknown, report.violations
    );
    if !report.unreached.is_empty() {
        println!("never reached: {}", report.unreached.join(", "));
    }
    if let Some(path) = &arguments.report {
        write_report(path, &report)?;
    }
    match sums.failed.first_key_value() {
        Some((seed, _)) => bail!("seed {seed} failed; see it with: make sim-explain SEED={seed}"),
        None => Ok(()),
    }
}

fn write_report(path: &Path, report: &Report) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    write(path, &(serde_json::to_string_pretty(report)? + "\n"))
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// An assertion of the core is reported as a violation: its own message is enough.
fn hush() {
    std::panic::set_hook(Box::new(|_| {}));
}

fn one_seed(seed: u64, trace: bool, events: Option<PathBuf>, history: Option<PathBuf>) -> anyhow::Result<()> {
    hush();
    let keep = Keep { trace, steps: events.is_some(), history: history.is_some() };
    let outcome = run(seed, Effort::default(), keep);
    outcome.trace.iter().for_each(|line| println!("{line}"));
    if let (Some(path), Some(setup)) = (events, &outcome.setup) {
        write(&path, &write_events(setup, &outcome.steps)?)?;
    }
    if let Some(path) = history {
        let lines: Result<Vec<String>, _> = outcome.history.iter().map(serde_json::to_string).collect();
        write(&path, &(lines?.join("\n") + "\n"))?;
    }
    conclude_one(&outcome)
}

fn conclude_one(outcome: &Outcome) -> anyhow::Result<()> {
    println!(
        "seed {}: {} operations, {} faults, {:.1} s simulated, {} entries, hash {:016x}",
        outcome.seed,
        outcome.operations,
        outcome.coverage.faults(),
        outcome.simulated.as_secs_f64(),
        outcome.entries,
        outcome.hash
    );
    match &outcome.violation {
        Some(violation) => bail!("{}: {}", violation.property, violation.evidence),
        None => Ok(()),
    }
}

fn explain_seed(seed: u64, patience: Duration, events: Option<&Path>) -> anyhow::Result<()> {
    hush();
    let outcome = run(seed, Effort::default(), Keep { steps: true, ..Keep::default() });
    let Some(violation) = &outcome.violation else {
        println!("seed {seed} breaks nothing: {} operations", outcome.operations);
        return Ok(());
    };
    println!("seed {seed}: {}: {}", violation.property, violation.evidence);
    let first = outcome.steps.len();
    let setup = outcome.setup.clone().context("it broke before its members had started")?;
    let mut failure = Failure { setup, steps: outcome.steps, violation: violation.clone() };
    let bar = ProgressBar::new_spinner();
    let found = sooner(seed, failure.violation.property, Instant::now() + patience / 3, &|events| {
        bar.set_message(format!("it breaks within {events} events"));
    });
    bar.finish_and_clear();
    if let Some(found) = found.filter(|found| found.steps.len() < first) {
        println!("a run of its kind breaks the same in {} steps instead of {first}", found.steps.len());
        failure = found;
    }
    shrink_and_show(failure, patience * 2 / 3, events)
}

fn replay_file(file: &Path, shrinks: bool) -> anyhow::Result<()> {
    hush();
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let (setup, steps) = read_events(&text)
        .map_err(|(line, error)| anyhow::anyhow!("{} line {line}: {error}", file.display()))?;
    match replay(&setup, &steps, false).violation {
        Some(violation) if shrinks => {
            shrink_and_show(Failure { setup, steps, violation }, Duration::from_secs(60), None)
        }
        violation => show(&setup, &steps, violation.as_ref()),
    }
}

fn shrink_and_show(failure: Failure, patience: Duration, events: Option<&Path>) -> anyhow::Result<()> {
    let before = failure.steps.len();
    let bar = ProgressBar::new_spinner();
    let Failure { setup, steps, violation } = shrink(failure, Instant::now() + patience, &|left| {
        bar.set_message(format!("{left} of {before} steps are left"));
    });
    bar.finish_and_clear();
    println!("{before} steps, shrunk to {}", steps.len());
    if let Some(path) = events {
        write(path, &write_events(&setup, &steps)?)?;
    }
    show(&setup, &steps, Some(&violation))
}

fn show(setup: &Setup, steps: &[Step], violation: Option<&Violation>) -> anyhow::Result<()> {
    println!();
    explain::trace(setup, steps).iter().for_each(|line| println!("{line}"));
    println!();
    explain::time_line(setup, steps).iter().for_each(|line| println!("{line}"));
    match violation {
        Some(violation) => bail!("{}: {}", violation.property, violation.evidence),
        None => {
            println!("nothing is broken by these steps");
            Ok(())
        }
    }
}

fn measure_topologies(seeds: u64) -> anyhow::Result<()> {
    println!("simulated milliseconds from the cut to an append that is served again");
    println!("{:<12} {:>6} {:>7} {:>6} {:>6}", "topology", "seeds", "median", "p99", "max");
    for topology in Topology::ALL {
        let found = measure(topology, 1..=seeds);
        let Distribution { topology, seeds, median_ms, p99_ms, max_ms, .. } =
            found.map_err(|(seed, v)| {
                anyhow::anyhow!("{} seed {seed}: {}: {}", topology.name(), v.property, v.evidence)
            })?;
        println!("{topology:<12} {seeds:>6} {median_ms:>7} {p99_ms:>6} {max_ms:>6}");
    }
    Ok(())
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
