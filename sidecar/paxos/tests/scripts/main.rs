//! Interactions as readable scripts: a scenario and its trace in one file.
//!
//! Every `scripts/*.txt` is a row of blocks: commands, a line `----`, and what they printed. The whole trace is
//! compared; `UPDATE=1 cargo test -p synod-paxos --test scripts` writes it anew, and the diff is then read by a
//! person. The commands are explained in `engine.rs`. The idea is that of etcd-io/raft's testdata.

mod engine;
#[allow(dead_code, reason = "shared with the tests of single rules; each uses a part")]
#[path = "../protocol/lab.rs"]
mod lab;
#[path = "../protocol/show.rs"]
mod show;

use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts")
}

/// Runs one script and compares, or with `UPDATE` set writes, its trace.
fn check(name: &str) {
    let path = folder().join(format!("{name}.txt"));
    let expected = std::fs::read_to_string(&path).expect("the script is there");
    let actual = engine::run(&expected);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, actual).expect("the script can be written");
        return;
    }
    if let Some(difference) = difference(&expected, &actual) {
        panic!(
            "{name}.txt does not tell what happens any more.\n{difference}\n\
             If the new trace is right: UPDATE=1 cargo test -p synod-paxos --test scripts"
        );
    }
}

/// The first lines that differ, with what stands before them.
fn difference(expected: &str, actual: &str) -> Option<String> {
    let (old, new): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), actual.lines().collect());
    let at = (0..old.len().max(new.len())).find(|at| old.get(*at) != new.get(*at))?;
    let mut text = format!("line {}:\n", at + 1);
    old[at.saturating_sub(6)..at].iter().for_each(|line| text.push_str(&format!("    {line}\n")));
    old.iter().skip(at).take(4).for_each(|line| text.push_str(&format!("  - {line}\n")));
    new.iter().skip(at).take(4).for_each(|line| text.push_str(&format!("  + {line}\n")));
    Some(text)
}

macro_rules! scripts {
    ($($name:ident)*) => {
        $(#[test] fn $name() { check(stringify!($name)); })*

        /// A script that no test runs would prove nothing.
        #[test]
        fn every_script_is_run() {
            let mut here: Vec<String> = std::fs::read_dir(folder())
                .expect("the folder is there")
                .map(|entry| entry.expect("readable").path())
                .filter(|path| path.extension().is_some_and(|e| e == "txt"))
                .map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned())
                .collect();
            here.sort();
            assert_eq!(here, [$(stringify!($name)),*]);
        }
    };
}

// In alphabetical order.
scripts! {
    chosen_inference
    competing_candidates
    damaged_row
    fenced_by_the_slower
    fenced_disk
    forwarded_across_leaders
    hand_over
    lease
    lost_messages
    member_added
    member_removed
    nack
    no_ops_fill_holes
    normal_append
    promise_chunks
    read_rounds
    recovery
    restart
    same_operation
    snapshot
}
