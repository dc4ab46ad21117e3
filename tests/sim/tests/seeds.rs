//! The simulator's part of `make test`: a fixed range of seeds, every kind of fault, and replay.

use synod_sim::replay::{read_events, replay, write_events};
use synod_sim::run::{Effort, Keep, run};
use synod_sim::sweep::{Seeds, sweep};

/// About two minutes of two cores in the profile that tests are built with.
const SEEDS: u64 = 4_000;

/// What is reached so seldom that a fixed range of seeds need not meet it; long sweeps name what they miss.
const RARE: &[&str] = &[
    // Two leaders' changes from one base, and both are chosen.
    "rule.configuration_void",
    // A leader learns what was chosen before it is refused by anybody.
    "rule.stepped_down_on_another_batch",
];

/// Properties: those of `synod_sim::invariants` and of the oracle, over a fixed range of seeds (docs: reliability.md,
/// "Layers of testing", 2). Every 64th seed is run twice, with equal hashes.
#[test]
fn a_fixed_range_of_seeds_breaks_nothing() {
    let effort = Effort::default();
    let sums = sweep(Seeds { first: 1, count: SEEDS, step: 1, end: None, threads: 2 }, effort, &|_| {});
    let report = sums.report();
    println!("{}", serde_json::to_string_pretty(&report).unwrap());
    if let Some((seed, violation)) = sums.failed.first_key_value() {
        panic!(
            "seed {seed}: {}: {}\nsee it with: make sim-explain SEED={seed}",
            violation.property, violation.evidence
        );
    }
    assert_eq!(report.seeds, SEEDS);
    let missed: Vec<&String> =
        report.unreached.iter().filter(|name| !RARE.contains(&name.as_str())).collect();
    assert!(missed.is_empty(), "never reached: {missed:?}");
}

/// Property: a run is a function of its seed (docs: reliability.md, "Layers of testing", 2).
#[test]
fn a_seed_replays_to_the_same_trace() {
    for seed in [1, 2, 5, 6, 7, 77, 439, 3_542, 4_272] {
        let (first, second) =
            (run(seed, Effort::default(), Keep::default()), run(seed, Effort::default(), Keep::default()));
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert_eq!(first.entries, second.entries, "seed {seed}");
    }
}

/// The hash sees differences: other seeds give other traces.
#[test]
fn seeds_differ() {
    let effort = Effort { operations: 50, faults: 1, ..Effort::default() };
    assert_ne!(run(1, effort, Keep::default()).hash, run(2, effort, Keep::default()).hash);
}

/// Property: a run is a function of its recorded events, too: done again from an event file, they have the very same
/// trace (docs: reliability.md, "Layers of testing", 2).
#[test]
fn an_event_file_replays_to_the_same_trace() {
    for seed in 1..=40 {
        let outcome = run(seed, Effort::default(), Keep { steps: true, ..Keep::default() });
        let setup = outcome.setup.expect("a run that began");
        let file = write_events(&setup, &outcome.steps).unwrap();
        let (read_setup, steps) = read_events(&file).unwrap();
        assert_eq!((&read_setup, &steps), (&setup, &outcome.steps), "seed {seed}");
        let again = replay(&setup, &steps, false);
        assert_eq!(again.violation, outcome.violation, "seed {seed}");
        assert_eq!(again.world.trace.digest(), outcome.hash, "seed {seed}");
        assert_eq!(again.world.oracle.checked, outcome.operations, "seed {seed}");
    }
}
