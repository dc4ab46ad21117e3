//! Plants bugs in the core, one at a time, and demands that the general simulator catches each.
//!
//! The switches are compiled in only here: this test builds the simulator once more, with
//! `--cfg synod_planted`, into a target folder of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Bugs that the simulator catches, and within how many seeds it must.
const CAUGHT: &[(&str, u64)] = &[
    ("ballot-reused-after-restart", 1_000),
    ("inference-with-at-least-for-equal", 1_000),
    ("quorum-minus-one", 1_000),
    ("lowest-ballot-adopted", 6_000),
    ("promise-forgotten-on-restart", 1_000),
    ("self-vote-before-sync", 1_000),
    ("learners-accepted-counted", 2_000),
    ("acknowledged-before-chosen", 1_000),
    ("read-before-leader-start", 1_000),
    ("read-joins-an-older-round", 6_000),
    ("alpha-unchecked-during-recovery", 6_000),
    ("configuration-governs-from-one-slot-early", 2_000),
    ("duplicate-delivery-applied-twice", 1_000),
    ("re-forwarded-keyless-append", 1_000),
    ("rows-marked-chosen-by-a-watermark-not-durable", 6_000),
    ("removed-voter-retires-before-a-quorum-holds-its-prefix", 2_000),
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn build() -> PathBuf {
    let target = workspace().join("target/planted");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--package", "synod-sim", "--bin", "synod-sim", "--quiet"])
        .current_dir(workspace())
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTFLAGS", "--cfg synod_planted")
        .status()
        .expect("cargo runs: it runs this test");
    assert!(status.success(), "the simulator with planted bugs does not build");
    target.join("debug/synod-sim")
}

fn seeds(program: &Path, bug: Option<&str>, count: u64) -> (bool, String) {
    let mut command = Command::new(program);
    command.args(["sweep", "--seeds", &count.to_string()]);
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
    assert!(seeds(&program, None, 500).0, "the build without a planted bug must pass");
    let mut missed = Vec::new();
    for (bug, count) in CAUGHT {
        let began = std::time::Instant::now();
        let (passed, named) = seeds(&program, Some(bug), *count);
        println!("{bug:<56} {:>5.1} s  {}", began.elapsed().as_secs_f64(), named.get(..70).unwrap_or(&named));
        // A run that failed for another reason than a broken promise names no seed.
        if passed || named.is_empty() {
            missed.push(*bug);
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
