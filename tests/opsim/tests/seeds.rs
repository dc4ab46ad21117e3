//! The simulator's part of `make test`: a fixed range of seeds, and replay.

use synod_opsim::run::run;
use synod_opsim::sweep::{Seeds, sweep};

/// About two minutes of two cores in the profile that tests are built with.
const SEEDS: u64 = 100;

/// Properties: those of `synod_opsim::rules`, over a fixed range of seeds (docs: operator.md, "How it is tested").
#[test]
fn a_fixed_range_of_seeds_breaks_nothing() {
    let seeds = Seeds { first: 1, count: SEEDS, end: None, threads: 2, stop: true };
    let sums = sweep(seeds, &|| {}, &|_| {});
    if let Some((seed, violation)) = sums.failed.first_key_value() {
        panic!(
            "seed {seed}: {}: {}\nsee it with: make opsim-explain SEED={seed}",
            violation.rule, violation.evidence
        );
    }
    assert_eq!(sums.seeds, SEEDS);
}

/// Property: a run is a function of its seed.
#[test]
fn a_seed_replays_to_the_same_trace() {
    for seed in 1..=6 {
        let (first, second) = (run(seed, false), run(seed, true));
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert_eq!((first.calls, first.seconds), (second.calls, second.seconds), "seed {seed}");
    }
    assert_ne!(run(1, false).hash, run(2, false).hash, "the hash sees differences");
}
