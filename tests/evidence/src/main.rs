//! Runs the simulator, torture, power cuts and lost volumes one after the other, and writes one table of what came of
//! them into docs/reliability.md.

use anyhow::{Context, bail};
use clap::Parser;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

const DOCUMENT: &str = "docs/reliability.md";
const BEGIN: &str = "<!-- evidence: written by `make evidence` -->\n";
const END: &str = "<!-- end of evidence -->\n";

/// Try to break Synod for long, and write the table of it to docs/reliability.md.
#[derive(Debug, Parser)]
#[command(max_term_width = 80)]
struct Options {
    /// How long the simulator and torture run each: 10m, 1h.
    #[arg(long = "for", default_value = "10m")]
    for_time: String,
    /// Power cuts, and volumes of each kind that are lost.
    #[arg(long, default_value_t = 200)]
    runs: u64,
    /// Only these: sim, torture, powercut, volumes.
    #[arg(value_parser = ["sim", "torture", "powercut", "volumes"])]
    only: Vec<String>,
}

/// One row of the table.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    name: String,
    command: String,
    done: String,
    judged: String,
    broken: String,
}

/// Runs a target of the Makefile, shows what it prints, and gives back all of it.
fn make(arguments: &[String]) -> anyhow::Result<String> {
    let mut child = Command::new("make").args(arguments).stdout(Stdio::piped()).spawn()?;
    let mut said = String::new();
    if let Some(out) = child.stdout.take() {
        for line in BufReader::new(out).lines() {
            let line = line?;
            println!("{line}");
            said.push_str(&line);
            said.push('\n');
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("make {} failed: {status}", arguments.join(" "));
    }
    Ok(said)
}

/// The last JSON object that stands on lines of its own.
fn last_report(said: &str) -> anyhow::Result<Value> {
    let begins = said.match_indices("\n{\n").last().context("the run printed no report")?.0;
    let text = &said[begins..];
    let ends = text.find("\n}").context("the report is not whole")? + 2;
    Ok(serde_json::from_str(&text[..ends])?)
}

fn number(report: &Value, name: &str) -> u64 {
    report.pointer(&format!("/{}", name.replace('.', "/"))).and_then(Value::as_u64).unwrap_or(0)
}

fn row(name: &str, command: &str, report: &Value) -> Row {
    let n = |name| number(report, name);
    let (done, judged, broken) = match name {
        "sim" => (
            format!(
                "{} seeds, {:.1} simulated hours",
                n("seeds"),
                report.get("simulated_hours").and_then(Value::as_f64).unwrap_or(0.0)
            ),
            format!("{} operations", n("operations_checked")),
            format!("{} promises; never reached: {}", n("violations"), unreached(report)),
        ),
        "volumes" => (
            format!("{} runs", report.get("kinds").and_then(Value::as_array).map_or(0, Vec::len)),
            format!("{} acknowledged", n("acknowledged")),
            lost(report),
        ),
        _ => (
            format!(
                "{} kills, {} pauses, {} stalls, {} full disks, {} cuts in {} s",
                n("kills"),
                n("pauses"),
                n("stalls"),
                n("full_disks"),
                n("cuts"),
                n("seconds")
            ),
            format!(
                "{} acknowledged, {} reads, at most {} MiB a member",
                n("acknowledged"),
                n("readers.reads"),
                n("memory") >> 20
            ),
            lost(report),
        ),
    };
    Row { name: name.to_owned(), command: command.to_owned(), done, judged, broken }
}

fn lost(report: &Value) -> String {
    let n = |name| number(report, name);
    format!(
        "{} lost, {} twice, {} out of order; reads: {} stale, {} with holes, {} differing",
        n("lost"),
        n("duplicated"),
        n("reordered"),
        n("readers.stale"),
        n("readers.holes"),
        n("readers.differing")
    )
}

fn unreached(report: &Value) -> String {
    let names = report.get("unreached").and_then(Value::as_array).cloned().unwrap_or_default();
    let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

/// The document with the table in place of the one that stands in it; rows of runs that were not made stay.
fn written(document: &str, rows: &[Row]) -> anyhow::Result<String> {
    let (before, rest) = document.split_once(BEGIN).context("the document has no place for the table")?;
    let (old, after) = rest.split_once(END).context("the table in the document has no end")?;
    let mut lines: Vec<String> = old.lines().skip(2).map(str::to_owned).collect();
    for row in rows {
        let line =
            format!("| {} | `{}` | {} | {} | {} |", row.name, row.command, row.done, row.judged, row.broken);
        match lines.iter_mut().find(|line| line.starts_with(&format!("| {} |", row.name))) {
            Some(old) => *old = line,
            None => lines.push(line),
        }
    }
    let head = "| what | command | done to it | judged | broken |\n|---|---|---|---|---|\n";
    let table: String = lines.into_iter().map(|line| line + "\n").collect();
    Ok(format!("{before}{BEGIN}{head}{table}{END}{after}"))
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let all = ["sim", "torture", "powercut", "volumes"];
    for name in
        all.into_iter().filter(|name| options.only.is_empty() || options.only.iter().any(|o| o == name))
    {
        let bound = match name {
            "sim" | "torture" => format!("FOR={}", options.for_time),
            _ => format!("RUNS={}", options.runs),
        };
        let arguments = [name.to_owned(), bound];
        let said = make(&arguments)?;
        let report = match name {
            "sim" => serde_json::from_str(&std::fs::read_to_string("target/sim/report.json")?)?,
            _ => last_report(&said)?,
        };
        let row = row(name, &format!("make {}", arguments.join(" ")), &report);
        let document = std::fs::read_to_string(DOCUMENT)?;
        // After each, so that a run that fails takes no other's row with it.
        std::fs::write(Path::new(DOCUMENT), written(&document, &[row])?)?;
    }
    println!("{DOCUMENT} has the table");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Result;

    #[test]
    fn a_row_takes_the_place_of_its_run_and_of_no_other() -> Result<()> {
        let document = format!(
            "text\n{BEGIN}| what |\n|---|\n| sim | `make sim FOR=1m` | a | b | c |\n| volumes | x | y | z | w |\n{END}more\n"
        );
        let said = "noise\n{\n  \"old\": 1\n}\n   9 s\n{\n  \"kills\": 3,\n  \"memory\": 3145728,\n  \"readers\": {\n    \"reads\": 5\n  }\n}\ntest ok\n";
        let torture = row("torture", "make torture FOR=1m", &last_report(said)?);
        assert!(torture.judged.ends_with("5 reads, at most 3 MiB a member"), "{torture:?}");
        let after = written(&document, &[torture])?;
        let lines: Vec<&str> = after.lines().filter(|line| line.starts_with("| ")).collect();
        assert_eq!(lines.len(), 4, "{after}");
        assert!(lines[1].starts_with("| sim |") && lines[2].starts_with("| volumes |"));
        assert!(lines[3].starts_with("| torture | `make torture FOR=1m` | 3 kills"), "{after}");
        assert!(after.starts_with("text\n") && after.ends_with("more\n"));
        assert!(written("no place", &[]).is_err() && last_report("nothing").is_err());
        Ok(())
    }
}
