//! Plants bugs in the core, one at a time, and demands that the search finds each: a search that cannot fail proves
//! nothing. The switches are compiled in only here, into the target folder that the simulator's test uses too.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Bugs, and the search that finds each within seconds.
const CAUGHT: &[(&str, &[&str])] = &[
    ("quorum-minus-one", &["leaders"]),
    ("inference-with-at-least-for-equal", &["leaders"]),
    ("ballot-reused-after-restart", &["leaders"]),
    ("stale-view-in-a-promise", &["leaders"]),
    ("promise-forgotten-on-restart", &["leaders"]),
    ("self-vote-before-sync", &["leaders", "--crashes", "0", "--slow-disks"]),
    ("lowest-ballot-adopted", &["leaders", "--crashes", "0", "--rounds", "2"]),
    ("learners-accepted-counted", &["growth"]),
    ("configuration-governs-from-one-slot-early", &["growth"]),
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn build() -> PathBuf {
    let target = workspace().join("target/planted");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--package", "synod-search", "--bin", "synod-search", "--quiet"])
        .current_dir(workspace())
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTFLAGS", "--cfg synod_planted")
        // Beside this cargo: a `rustc` that is looked up could obey a dependency's own choice of toolchain.
        .env("RUSTC", Path::new(env!("CARGO")).with_file_name("rustc"))
        .status()
        .expect("cargo runs: it runs this test");
    assert!(status.success(), "the search with planted bugs does not build");
    target.join("debug/synod-search")
}

/// Property: the search sees each of these bugs (docs: protocol.md, "Planted bugs"); without one, the very same
/// program finds nothing.
#[test]
fn planted_bugs_are_found() {
    let program = build();
    let search = |arguments: &[&str]| {
        let output = Command::new(&program)
            .args(["--small", "--states", "3000000"])
            .args(arguments)
            .output()
            .expect("the program was just built");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), said)
    };
    let (holds, said) = search(&["growth"]);
    assert!(holds, "the build without a planted bug must hold:\n{said}");
    for (bug, arguments) in CAUGHT {
        let (holds, said) = search(&[arguments, &["--plant", bug][..]].concat());
        assert!(!holds && said.contains("BROKEN"), "{bug} is not found:\n{said}");
        let way = said.lines().find(|line| line.contains("BROKEN")).unwrap_or_default();
        println!("{bug:<45}{way}");
    }
}
