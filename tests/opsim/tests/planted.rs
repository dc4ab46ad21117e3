//! Plants bugs in the operator, one at a time, and demands that the seed that shows each still does.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use synod_operator::planted::{self, Bug};
use synod_opsim::seen::SEEN;
use synod_opsim::sweep::guarded;

/// Property: the simulator sees each of these bugs. Without one, the same seeds pass in `tests/seeds.rs`.
#[test]
fn planted_bugs_are_caught() {
    assert!(SEEN.len() >= 25, "{} bugs", SEEN.len());
    let (next, missed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::panic::set_hook(Box::new(|_| {}));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(seen) = SEEN.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let bug = Bug::ALL.iter().copied().find(|b| b.name() == seen.bug);
                    planted::plant(bug);
                    let shown = bug.is_some() && guarded(seen.seed).violation.is_some();
                    planted::plant(None);
                    if !shown {
                        missed.lock().unwrap().push(seen.bug);
                    }
                }
            });
        }
    });
    let _ = std::panic::take_hook();
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not caught: {missed:?}; `synod-opsim mutants` names other seeds");
}

/// Every bug that can be planted is in the table, or is said to be nobody's to see here.
#[test]
fn the_table_names_every_bug() {
    for bug in Bug::ALL {
        let known = SEEN.iter().any(|s| s.bug == bug.name());
        assert!(known || synod_opsim::seen::UNSEEN.contains(&bug.name()), "{}", bug.name());
    }
}
