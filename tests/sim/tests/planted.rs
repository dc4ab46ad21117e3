//! Plants bugs in the core, one at a time, and demands that the simulator or the core's tests catch each.
//!
//! The switches are compiled in only here and in `synod-mutants`: they build the simulator once more, with
//! `--cfg synod_planted`, into a target folder of its own. `make mutants` goes on for longer, and with every bug.

use std::path::{Path, PathBuf};
use std::process::Command;

/// One bug of so many is planted in each run; which ones changes from day to day.
const SHARE: &str = "3";
/// Within so many seeds: with any change of the core or the simulator a bug that takes a rare chance is met in others.
const SEEDS: u64 = 2_000;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn build() -> PathBuf {
    let target = workspace().join("target/planted");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--package", "synod-sim", "--bin", "synod-sim", "--quiet", "--profile", "sim"])
        .current_dir(workspace())
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTFLAGS", "--cfg synod_planted")
        // Beside this cargo: a `rustc` that is looked up could obey a dependency's own choice of toolchain.
        .env("RUSTC", Path::new(env!("CARGO")).with_file_name("rustc"))
        .status()
        .expect("cargo runs: it runs this test");
    assert!(status.success(), "the simulator with planted bugs does not build");
    target.join("sim/synod-sim")
}

fn seeds(program: &Path, bug: &str) -> (bool, String) {
    let mut command = Command::new(program);
    command.args(["sweep", "--seeds", &SEEDS.to_string(), "--planted", bug]);
    let output = command.output().expect("the program was just built");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let named = said.lines().find(|line| line.starts_with("seed ")).unwrap_or("").to_owned();
    (output.status.success(), named)
}

/// Property: each planted bug is seen, by the simulator where it is known to see it, else by the core's tests (docs:
/// protocol.md, "Planted bugs"); without one, the very same programs find nothing. A third of all bugs in each run;
/// `SYNOD_TURN` chooses which, and is the day's number where it is not set.
#[test]
fn planted_bugs_are_caught() {
    let status = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--locked", "--package", "synod-mutants", "--", "--share", SHARE])
        .current_dir(workspace())
        .status()
        .expect("cargo runs: it runs this test");
    assert!(status.success(), "a planted bug is not caught");
}

/// What a seed breaks is explained by a shorter list of steps that breaks the same promise, again and again.
#[test]
fn a_failure_is_shrunk_to_steps_that_show_it() {
    const BUG: &str = "inference-with-at-least-for-equal";
    let program = build();
    let (passed, named) = seeds(&program, BUG);
    assert!(!passed, "{BUG} is not caught");
    let (seed, rest) = named.strip_prefix("seed ").and_then(|n| n.split_once(": ")).expect("a seed failed");
    let property = rest.split(": ").next().expect("a violation names its property");
    let file = tempfile::NamedTempFile::new().expect("a file can be made");
    let run = |arguments: &[&str]| {
        let output =
            Command::new(&program).args(["--planted", BUG]).args(arguments).arg(file.path()).output();
        let output = output.expect("the program was just built");
        (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (said, why) = run(&["explain", seed, "--patience", "20s", "--events"]);
    assert!(why.contains(property), "{why}");
    let shrunk =
        said.lines().find_map(|line| line.split_once(" steps, shrunk to ")).expect("it says how far");
    let [before, after] = [shrunk.0, shrunk.1].map(|n| n.parse::<usize>().expect("a number of steps"));
    assert!(after < before, "{said}");
    let lines = std::fs::read_to_string(file.path()).expect("the event file was written").lines().count();
    assert_eq!(lines, after + 1, "the event file is the setup and the steps");
    let (again, why) = run(&["replay"]);
    assert!(why.contains(property), "the file does not show it: {again}{why}");
}
