//! The simulator's part of `make test`: a fixed range of seeds, every kind of fault, and replay.

use synod_sim::run::{Effort, run};
use synod_sim::sweep::{Report, Seeds, sweep};

/// About two minutes of two cores in the profile that tests are built with.
const SEEDS: u64 = 20_000;

/// Properties: those of `synod_sim::invariants` and of the oracle, over a fixed range of seeds with at least 500
/// client operations and 20 faults each (docs: reliability.md, "Layers of testing", 2). Every 64th seed is run
/// twice, with equal hashes.
#[test]
fn a_fixed_range_of_seeds_breaks_nothing() {
    let effort = Effort::default();
    let outcomes = sweep(Seeds { first: 1, count: SEEDS, end: None }, effort, &|_| {});
    let report = Report::of(&outcomes);
    println!("{}", serde_json::to_string_pretty(&report).unwrap());
    for outcome in &outcomes {
        if let Some(violation) = &outcome.violation {
            panic!(
                "seed {}: {}: {}\nsee it with: synod-sim --seed {} --trace",
                outcome.seed, violation.property, violation.evidence, outcome.seed
            );
        }
        assert!(outcome.operations >= effort.operations, "seed {}: {}", outcome.seed, outcome.operations);
        assert!(outcome.faults.total() >= effort.faults, "seed {}", outcome.seed);
    }
    assert_eq!(report.seeds, SEEDS);
    assert!(report.unreached.is_empty(), "kinds of fault that never happened: {:?}", report.unreached);
}

/// Property: a run is a function of its seed (docs: reliability.md, "Layers of testing", 2).
#[test]
fn a_seed_replays_to_the_same_trace() {
    for seed in [1, 2, 5, 6, 7, 77, 439, 3_542, 4_272] {
        let (first, second) = (run(seed, Effort::default(), false), run(seed, Effort::default(), false));
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert_eq!(first.entries, second.entries, "seed {seed}");
    }
}

/// The hash sees differences: other seeds give other traces.
#[test]
fn seeds_differ() {
    let effort = Effort { operations: 50, faults: 1 };
    assert_ne!(run(1, effort, false).hash, run(2, effort, false).hash);
}
