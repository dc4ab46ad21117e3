//! Each bug of `sidecar/paxos/src/planted.rs`, planted alone: which test sees it, and how soon (docs: protocol.md,
//! "Planted bugs"; reliability.md, "Mutation").
//!
//! The general simulator is asked first, then the core's own tests. All of them are built once, with
//! `--cfg synod_planted`, into a target folder of their own; the bug is chosen when they run.

mod programs;

use anyhow::{Context, bail};
use clap::Parser;
use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use programs::{Programs, Seen};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The list itself: names stand behind `=`.
const LIST: &str = include_str!("../../../../sidecar/paxos/src/planted.rs");
const WIDTH: u16 = 80;

/// Plant each bug in the consensus core and see which test catches it.
#[derive(Debug, Parser)]
#[command(max_term_width = 80)]
struct Options {
    /// Only these bugs; all without it.
    bugs: Vec<String>,
    /// One bug of so many, other ones each day; each must be seen by what is known to see it.
    #[arg(long)]
    share: Option<usize>,
    /// Which of the shares; the day's number without it.
    #[arg(long, env = "SYNOD_TURN")]
    turn: Option<u64>,
    /// How long the simulator may look for one bug on one core, in seconds.
    #[arg(long, default_value_t = 120)]
    patience: u64,
    /// Bugs at a time; each takes one core.
    #[arg(long, default_value_t = 2)]
    cores: usize,
    /// Where the report goes.
    #[arg(long, default_value = "target/mutants/report.json")]
    report: PathBuf,
}

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
struct Line {
    name: String,
    caught: bool,
    caught_by: String,
    seconds: f64,
}

fn names() -> Vec<String> {
    let quoted = |line: &str| {
        line.split_once(" = \"").and_then(|(_, rest)| rest.strip_suffix("\",").map(str::to_owned))
    };
    LIST.lines().filter_map(quoted).collect()
}

fn chosen(wanted: &[String]) -> anyhow::Result<Vec<String>> {
    let all = names();
    for name in wanted {
        if !all.contains(name) {
            bail!("no planted bug is named {name}; they are:\n  {}", all.join("\n  "));
        }
    }
    Ok(if wanted.is_empty() { all } else { wanted.to_vec() })
}

/// One bug of so many, from the `turn`-th on.
fn one_of(bugs: &[String], share: usize, turn: u64) -> Vec<String> {
    let share = share.max(1);
    let first = usize::try_from(turn % share as u64).unwrap_or(0);
    bugs.iter().skip(first).step_by(share).cloned().collect()
}

/// Days since 1970.
fn today() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() / 86_400)
}

/// Tries the bugs on as many cores as asked for, in their order.
fn try_all(programs: &Programs, bugs: &[String], options: &Options) -> anyhow::Result<Vec<Line>> {
    let progress = ProgressBar::new(bugs.len() as u64);
    progress.set_style(ProgressStyle::with_template("{bar:20} {pos} of {len}  {wide_msg}")?);
    let next = AtomicUsize::new(0);
    let lines: Mutex<Vec<(usize, anyhow::Result<Line>)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..options.cores.max(1) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(name) = bugs.get(at) else { break };
                    progress.set_message(name.clone());
                    let seen = match options.share {
                        Some(_) => programs.demand(name),
                        None => programs.try_bug(name, options.patience),
                    };
                    let line = seen.map(|seen| line(name, seen));
                    if let Ok(line) = &line {
                        let said = format!("{:<58} {:>6.1} s  {}", line.name, line.seconds, line.caught_by);
                        // A bar that nobody sees prints nothing either.
                        match progress.is_hidden() {
                            true => eprintln!("{said}"),
                            false => progress.println(said),
                        }
                    }
                    progress.inc(1);
                    lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((at, line));
                }
            });
        }
    });
    progress.finish_and_clear();
    let mut lines = lines.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    lines.sort_by_key(|(at, _)| *at);
    lines.into_iter().map(|(_, line)| line).collect()
}

fn line(name: &str, seen: Option<Seen>) -> Line {
    let name = name.to_owned();
    match seen {
        Some(Seen { by, seconds }) => Line { name, caught: true, caught_by: by, seconds },
        None => Line { name, caught: false, caught_by: String::new(), seconds: 0.0 },
    }
}

fn print(lines: &[Line]) {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH)
        .set_header(vec!["BUG", "SECONDS", "CAUGHT BY"]);
    for line in lines {
        let by = if line.caught { line.caught_by.clone() } else { "NOTHING".to_owned() };
        table.add_row(vec![line.name.clone(), format!("{:.1}", line.seconds), by]);
    }
    println!("{}", table.trim_fmt());
    let mut seconds: Vec<f64> = lines.iter().filter(|line| line.caught).map(|line| line.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    let median = seconds.get(seconds.len() / 2).copied().unwrap_or_default();
    println!("{} of {} caught, median {median:.1} s of one core", seconds.len(), lines.len());
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let mut bugs = chosen(&options.bugs)?;
    if let Some(share) = options.share {
        bugs = one_of(&bugs, share, options.turn.unwrap_or_else(today));
        println!("{} bugs", bugs.len());
    }
    let programs = Programs::build()?;
    programs.pass_without_a_bug()?;
    let lines = try_all(&programs, &bugs, &options)?;
    if let Some(folder) = options.report.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&options.report, serde_json::to_string_pretty(&lines)? + "\n")
        .with_context(|| format!("cannot write {}", options.report.display()))?;
    print(&lines);
    match lines.iter().filter(|line| !line.caught).count() {
        0 => Ok(()),
        missed => bail!("{missed} planted bugs were seen by no test"),
    }
}

#[cfg(test)]
mod tests {
    /// docs: protocol.md, "Planted bugs": at least forty.
    #[test]
    fn the_list_is_read() {
        let names = super::names();
        assert!(names.len() >= 40, "{names:?}");
        assert!(
            names.iter().all(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '-')),
            "{names:?}"
        );
        assert!(super::chosen(&["no-such-bug".to_owned()]).is_err());
        let shares: Vec<_> = (7..10).flat_map(|turn| super::one_of(&names, 3, turn)).collect();
        assert!(names.iter().all(|name| shares.contains(name)) && shares.len() == names.len());
    }
}
