//! The programs that look for a bug: the simulator and the core's tests, built with the bugs in them.

use anyhow::{Context, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use synod_sim::seen::{SEEDS, SEEN};

/// The test programs of the core that plant what `SYNOD_PLANTED` names.
const TESTS: &[&str] = &["protocol", "sessions", "configurations", "papers", "scripts"];
/// Seeds that must pass without a bug.
const SOUND_SEEDS: &str = "200";

/// What saw a bug.
#[derive(Debug)]
pub(crate) struct Seen {
    /// The simulator's seed and property, or the test's name.
    pub(crate) by: String,
    /// How long that one took, in seconds of one core; what others had looked for in vain is not in it.
    pub(crate) seconds: f64,
}

#[derive(Debug)]
pub(crate) struct Programs {
    simulator: PathBuf,
    tests: Vec<(String, PathBuf)>,
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command
        .args(arguments)
        .args(["--quiet", "--locked", "--message-format=json", "--target-dir", "target/planted"])
        .env("RUSTFLAGS", "--cfg synod_planted")
        // Beside this cargo: a `rustc` that is looked up could obey a dependency's own choice of toolchain.
        .env("RUSTC", Path::new(env!("CARGO")).with_file_name("rustc"))
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.."))
        .stderr(Stdio::inherit());
    command
}

/// The programs that a build says it made: name and path.
fn executables(mut command: Command) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let output = command.output().context("cargo cannot be run")?;
    if !output.status.success() {
        bail!("the programs with planted bugs do not build");
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let messages = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let named = messages.filter_map(|message| {
        let path = message.get("executable")?.as_str()?.into();
        Some((message.pointer("/target/name")?.as_str()?.to_owned(), path))
    });
    Ok(named.collect())
}

impl Programs {
    pub(crate) fn build() -> anyhow::Result<Programs> {
        let simulator = executables(cargo(&["build", "--profile", "sim", "--package", "synod-sim"]))?;
        let simulator = simulator.into_iter().find(|(name, _)| name == "synod-sim");
        let (_, simulator) = simulator.context("the simulator was built, and cargo does not say where")?;
        let mut tests = vec!["test", "--no-run", "--package", "synod-paxos"];
        TESTS.iter().for_each(|test| tests.extend(["--test", test]));
        Ok(Programs { simulator, tests: executables(cargo(&tests))? })
    }

    /// A program that fails by itself would seem to see every bug.
    pub(crate) fn pass_without_a_bug(&self) -> anyhow::Result<()> {
        let sound = Command::new(&self.simulator).args(["sweep", "--seeds", SOUND_SEEDS]).output()?;
        if !sound.status.success() {
            bail!("without a planted bug: {}", String::from_utf8_lossy(&sound.stdout));
        }
        for (name, path) in &self.tests {
            if !Command::new(path).current_dir(core()).output()?.status.success() {
                bail!("{name} fails without a planted bug");
            }
        }
        Ok(())
    }

    /// Whatever sees the bug first, the simulator for so many seconds and then the core's tests; none: nothing did.
    pub(crate) fn try_bug(&self, bug: &str, patience: u64) -> anyhow::Result<Option<Seen>> {
        let seen = self.simulate(bug, &["--for", &format!("{patience}s")])?;
        if seen.is_some() { Ok(seen) } else { self.test(bug) }
    }

    /// What must see the bug: the simulator, where it is known to; else the core's tests.
    pub(crate) fn demand(&self, bug: &str) -> anyhow::Result<Option<Seen>> {
        if SEEN.contains(&bug) {
            self.simulate(bug, &["--seeds", &SEEDS.to_string()])
        } else {
            self.test(bug)
        }
    }

    fn simulate(&self, bug: &str, limit: &[&str]) -> anyhow::Result<Option<Seen>> {
        let began = Instant::now();
        let swept = Command::new(&self.simulator)
            .args(["sweep", "--threads", "1", "--planted", bug])
            .args(limit)
            .output()?;
        let said = String::from_utf8_lossy(&swept.stdout);
        // A run that failed for another reason than a broken promise names no seed.
        let named = said.lines().find(|line| line.starts_with("seed ")).filter(|_| !swept.status.success());
        Ok(named.map(|line| {
            let property = line.splitn(3, ": ").take(2).collect::<Vec<_>>().join(": ");
            Seen { by: format!("simulator, {property}"), seconds: began.elapsed().as_secs_f64() }
        }))
    }

    fn test(&self, bug: &str) -> anyhow::Result<Option<Seen>> {
        for (name, path) in &self.tests {
            let began = Instant::now();
            let run = Command::new(path).env("SYNOD_PLANTED", bug).current_dir(core()).output()?;
            let said = String::from_utf8_lossy(&run.stdout);
            let failed =
                said.lines().find_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
            if let (false, Some(test)) = (run.status.success(), failed) {
                return Ok(Some(Seen {
                    by: format!("test {name}::{test}"),
                    seconds: began.elapsed().as_secs_f64(),
                }));
            }
        }
        Ok(None)
    }
}

/// Where cargo would run the core's tests.
fn core() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../sidecar/paxos")
}
