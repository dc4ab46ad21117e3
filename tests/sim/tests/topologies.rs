//! Recovery under partial connectivity.

use synod_sim::topologies::{Topology, measure};

/// Property: hub, constrained and chained topologies recover within four election timeouts of simulated time,
/// and stay with one leader then (docs: protocol.md, "Election under partial connectivity"; reliability.md,
/// faults 17 to 19 and scorecard 9).
#[test]
fn partial_connectivity_recovers_within_four_timeouts() {
    for topology in Topology::ALL {
        let found = measure(topology, 1..=1_000).unwrap_or_else(|(seed, violation)| {
            panic!("{} seed {seed}: {}: {}", topology.name(), violation.property, violation.evidence)
        });
        println!("{}", serde_json::to_string(&found).unwrap());
        assert_eq!(found.seeds, 1_000);
        assert!(found.max_ms <= 4 * 1_000, "{found:?}");
        assert!(found.most_later_leaders <= 1, "{found:?}");
    }
}
