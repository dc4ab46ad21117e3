//! Runs the simulator of the operator: many seeds, or one to be read.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use synod_operator::planted::{self, Bug};
use synod_opsim::run::run;
use synod_opsim::sweep::{Seeds, sweep};
use synod_sim::sweep::parse_time;

/// Runs Synod's operator against a Kubernetes, members and people in memory, by seeds.
#[derive(Parser, Debug)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Plant this bug in the operator first.
    #[arg(long, global = true)]
    planted: Option<String>,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run many seeds until one breaks a rule.
    Sweep(Sweep),
    /// Run one seed, and show what happened.
    Explain {
        /// Which.
        seed: u64,
    },
    /// Plant each bug alone, and say which seeds show it.
    Mutants {
        /// Try this many seeds with each.
        #[arg(long, default_value_t = 100)]
        seeds: u64,
        /// Only these bugs.
        bugs: Vec<String>,
    },
}

#[derive(clap::Args, Debug)]
struct Sweep {
    /// Run this many seeds.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Go on for so long instead of a number of seeds: 90s, 10m, 1h.
    #[arg(long = "for", value_name = "TIME", value_parser = parse_time)]
    for_time: Option<Duration>,
    /// Threads; all cores if it is left out.
    #[arg(long)]
    threads: Option<usize>,
    /// Go on behind a seed that breaks a rule.
    #[arg(long)]
    all: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let bug = arguments.planted.as_deref().map(bug_named).transpose()?;
    match arguments.command {
        Command::Sweep(sweep) => sweep_seeds(&sweep, bug),
        Command::Explain { seed } => explain(seed, bug),
        Command::Mutants { seeds, bugs } => mutants(seeds, &bugs),
    }
}

fn bug_named(name: &str) -> anyhow::Result<Bug> {
    let found = Bug::ALL.iter().copied().find(|bug| bug.name() == name);
    found.with_context(|| format!("no planted bug is named {name}"))
}

/// One line a bug: how many of the seeds that were tried until one showed it, which, and what it breaks there.
fn mutants(count: u64, names: &[String]) -> anyhow::Result<()> {
    std::panic::set_hook(Box::new(|_| {}));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let seeds = Seeds { first: 1, count, end: None, threads: cores, stop: true };
    let mut missed = 0;
    for bug in Bug::ALL.iter().filter(|bug| names.is_empty() || names.iter().any(|n| n == bug.name())) {
        let sums = sweep(seeds, &|| planted::plant(Some(*bug)), &|_| {});
        let first = sums.failed.first_key_value();
        let shown = first.map_or_else(|| "- no seed".to_owned(), |(seed, v)| format!("{seed:>4} {}", v.rule));
        missed += u32::from(first.is_none());
        println!("{:<52} {shown} (1 of {})", bug.name(), sums.seeds);
    }
    if missed > 0 {
        bail!("{missed} planted bugs were seen by no seed")
    }
    Ok(())
}

fn sweep_seeds(arguments: &Sweep, bug: Option<Bug>) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let seeds = Seeds {
        first: arguments.first,
        count: if arguments.for_time.is_some() { u64::MAX / 2 } else { arguments.seeds },
        end: arguments.for_time.map(|time| Instant::now() + time),
        threads: arguments.threads.unwrap_or(cores),
        stop: !arguments.all,
    };
    let sums = sweep(seeds, &|| planted::plant(bug), &|outcome| {
        if let Some(violation) = &outcome.violation {
            println!("seed {}: {}: {}", outcome.seed, violation.rule, violation.evidence);
        }
    });
    println!(
        "{} seeds, {:.1} simulated hours, {} reconciles, {} calls, {} with a destroyed quorum, {} violations",
        sums.seeds,
        sums.seconds as f64 / 3_600.0,
        sums.looks,
        sums.calls,
        sums.destroyed,
        sums.failed.len()
    );
    match sums.failed.keys().next() {
        Some(seed) => bail!("see it with: make opsim-explain SEED={seed}"),
        None => Ok(()),
    }
}

fn explain(seed: u64, bug: Option<Bug>) -> anyhow::Result<()> {
    planted::plant(bug);
    let outcome = run(seed, true);
    outcome.lines.iter().for_each(|line| println!("{line}"));
    match outcome.violation {
        Some(violation) => bail!("seed {seed}: {}: {}", violation.rule, violation.evidence),
        None => {
            println!("seed {seed} breaks no rule: {} s, {} calls", outcome.seconds, outcome.calls);
            Ok(())
        }
    }
}
