//! `synod-search`: visits every state of small cases of the consensus core.

use clap::Parser;
use std::time::Duration;
use synod_search::model::Reductions;
use synod_search::report::{Case, Limits, search};

/// Visits every state that a small cluster can come into, and judges each.
///
/// The consensus core is driven through every order of messages, writes, timeouts and crashes within the bounds. If
/// a property does not hold, a shortest way there is printed and the exit code is 1.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// Which case: `leaders` (3 members, 2 slots, two competing leaders, one crash), `growth` (2 members become 3
    /// while leaders compete), or `all`
    #[arg(default_value = "all", value_parser = ["leaders", "growth", "all"])]
    case: String,
    /// The small bounds, as `make test` has them
    #[arg(long)]
    small: bool,
    /// Writes take their time: a member may take further input while they are under way
    #[arg(long)]
    slow_disks: bool,
    /// Nacks are delivered too
    #[arg(long)]
    nacks: bool,
    /// Do without these reductions, which make a search smaller and hide nothing
    #[arg(long, value_delimiter = ',', value_parser = ["mail", "writes", "traces", "quiet", "all"])]
    without: Vec<String>,
    /// Rounds of each competing leader: one number for all, or one each, in the order of the members, as in `2,1`
    #[arg(long, value_delimiter = ',')]
    rounds: Vec<u8>,
    /// How many slots: Accepts above are lost
    #[arg(long)]
    slots: Option<u64>,
    /// Crashes in all
    #[arg(long)]
    crashes: Option<u8>,
    /// Go deep first: a tenth of the memory, and no shortest way
    #[arg(long)]
    depth_first: bool,
    /// Stop after so many states
    #[arg(long)]
    states: Option<usize>,
    /// Stop after so many seconds
    #[arg(long)]
    seconds: Option<u64>,
    /// `text` or `json`
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
    /// Plant a bug, by its name; needs a build with `--cfg synod_planted`
    #[cfg(synod_planted)]
    #[arg(long)]
    plant: Option<String>,
}

fn reductions(without: &[String]) -> Reductions {
    let keeps = |name: &str| !without.iter().any(|other| other == name || other == "all");
    Reductions {
        mail: keeps("mail"),
        writes: keeps("writes"),
        traces: keeps("traces"),
        quiet: keeps("quiet"),
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    #[cfg(synod_planted)]
    if let Some(name) = &arguments.plant {
        let bug = synod_paxos::planted::Bug::ALL.iter().find(|bug| bug.name() == name);
        synod_paxos::planted::plant(*bug.ok_or_else(|| anyhow::anyhow!("there is no bug named {name}"))?);
    }
    let cases: Vec<Case> = [Case::Leaders, Case::Growth]
        .into_iter()
        .filter(|case| arguments.case == "all" || arguments.case == case.name())
        .collect();
    let limits = Limits {
        states: arguments.states,
        time: arguments.seconds.map(Duration::from_secs),
        progress: true,
        depth_first: arguments.depth_first,
    };
    let mut reports = Vec::new();
    for case in cases {
        let mut bounds = case.bounds(!arguments.small);
        bounds.slow_disks |= arguments.slow_disks;
        bounds.nacks |= arguments.nacks;
        bounds.reductions = reductions(&arguments.without);
        bounds.slots = arguments.slots.unwrap_or(bounds.slots);
        bounds.crashes = arguments.crashes.unwrap_or(bounds.crashes);
        for (left, rounds) in bounds.timeouts.values_mut().zip(arguments.rounds.iter().cycle()) {
            *left = *rounds;
        }
        let report = search(case, bounds, limits);
        if arguments.output == "text" {
            print!("{report}");
        }
        reports.push(report);
    }
    if arguments.output == "json" {
        let all: Vec<_> = reports.iter().map(synod_search::report::Report::json).collect();
        println!("{:#}", serde_json::Value::from(all));
    }
    std::process::exit(i32::from(!reports.iter().all(|report| report.holds())));
}
