//! Plants bugs in the operator, one at a time, and demands that the seed that shows each still does.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use synod_operator::planted::{self, Bug};
use synod_opsim::sweep::guarded;

/// The table: a bug, a seed that shows it, and the rule that it breaks there.
fn table() -> Vec<(String, u64)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/planted.txt");
    let text = std::fs::read_to_string(path).expect("the table is in this crate");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
    };
    lines.filter_map(line).collect()
}

/// Property: the simulator sees each of these bugs. Without one, the first seeds pass in `tests/seeds.rs`.
#[test]
fn planted_bugs_are_caught() {
    let table = table();
    assert!(table.len() >= 25, "{} bugs", table.len());
    let (next, missed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::panic::set_hook(Box::new(|_| {}));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((name, seed)) = table.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let bug = Bug::ALL.iter().copied().find(|b| b.name() == name);
                    planted::plant(bug);
                    let shown = bug.is_some() && guarded(*seed).violation.is_some();
                    planted::plant(None);
                    // A seed that fails anyway shows nothing.
                    if !shown || guarded(*seed).violation.is_some() {
                        missed.lock().unwrap().push(name.clone());
                    }
                }
            });
        }
    });
    let _ = std::panic::take_hook();
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not caught: {missed:?}; `synod-opsim mutants` names other seeds");
}
