//! Plants bugs in the core, one at a time, and demands that the general simulator catches each.
//!
//! The switches are compiled in only here: this test builds the simulator once more, with
//! `--cfg synod_planted`, into a target folder of its own. `make mutants` goes on for longer, and with every bug.

use std::path::{Path, PathBuf};
use std::process::Command;
use synod_sim::seen::{SEEDS, SEEN};

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

/// Without a bug the same program passes; `tests/seeds.rs` goes on for longer.
const SOUND_SEEDS: u64 = 1_000;

fn seeds(program: &Path, bug: Option<&str>) -> (bool, String) {
    let mut command = Command::new(program);
    let seeds = if bug.is_some() { SEEDS } else { SOUND_SEEDS };
    command.args(["sweep", "--seeds", &seeds.to_string()]);
    command.args(bug.iter().flat_map(|bug| ["--planted", bug]));
    let output = command.output().expect("the program was just built");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let named = said.lines().find(|line| line.starts_with("seed ")).unwrap_or("").to_owned();
    (output.status.success(), named)
}

/// Property: the simulator sees each of these bugs (docs: protocol.md, "Planted bugs"); without one, the very
/// same program finds nothing.
#[test]
fn planted_bugs_are_caught() {
    let program = build();
    assert!(seeds(&program, None).0, "the build without a planted bug must pass");
    let mut missed = Vec::new();
    for bug in SEEN {
        let began = std::time::Instant::now();
        let (passed, named) = seeds(&program, Some(bug));
        println!("{bug:<56} {:>5.1} s  {}", began.elapsed().as_secs_f64(), named.get(..70).unwrap_or(&named));
        // A run that failed for another reason than a broken promise names no seed.
        if passed || named.is_empty() {
            missed.push(*bug);
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

/// What a seed breaks is explained by a shorter list of steps that breaks the same promise, again and again.
#[test]
fn a_failure_is_shrunk_to_steps_that_show_it() {
    const BUG: &str = "inference-with-at-least-for-equal";
    let program = build();
    let (passed, named) = seeds(&program, Some(BUG));
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
