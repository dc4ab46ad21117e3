//! Partial partitions in which a leader is possible, and how long the cluster takes to have one that serves
//! (docs: reliability.md, faults 17 to 19; the three scenarios are those of the OmniPaxos paper, figure 1).
//!
//! ```text
//!   hub           a   b     the leader a keeps only its link to the hub: it has no quorum, the hub alone has
//!                  \ /
//!                   H       one
//!                  / \
//!                 c   d
//!   constrained   as hub, the leader wholly cut off, and the hub's log is behind the others'
//!   chained       a - H - b  the leader a and b do not see each other: b must not unseat a for ever
//! ```

use crate::director::Director;
use crate::director::swarm::Swarm;
use crate::oracle::Violation;
use crate::random::Random;
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use synod_paxos::MemberId;

/// A partial partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// Only the hub reaches a quorum; the leader is another.
    Hub,
    /// As hub, with a leader that reaches nobody and a hub that lags.
    Constrained,
    /// Three in a row, the leader at one end.
    Chained,
}

impl Topology {
    /// All of them.
    pub const ALL: [Topology; 3] = [Topology::Hub, Topology::Constrained, Topology::Chained];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Topology::Hub => "hub",
            Topology::Constrained => "constrained",
            Topology::Chained => "chained",
        }
    }

    fn members(self) -> usize {
        if self == Topology::Chained { 3 } else { 5 }
    }
}

/// How one seed fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// From the cut to the first acknowledged append that began behind it.
    pub after: Duration,
    /// Leaderships that began in the ten timeouts behind that.
    pub later_leaders: u64,
}

/// How many seeds fared under one topology.
#[derive(Clone, Debug, Serialize)]
pub struct Distribution {
    /// Which.
    pub topology: &'static str,
    /// Runs.
    pub seeds: u64,
    /// Milliseconds of simulated time from the cut to serving again: the median.
    pub median_ms: u64,
    /// The 99th percentile.
    pub p99_ms: u64,
    /// The longest.
    pub max_ms: u64,
    /// Most leaderships in the ten timeouts after a recovery: it must not flap.
    pub most_later_leaders: u64,
}

/// Runs `seeds` under `topology` on two threads.
///
/// # Errors
/// The first seed that did not recover, and why.
pub fn measure(
    topology: Topology,
    seeds: std::ops::RangeInclusive<u64>,
) -> Result<Distribution, (u64, Violation)> {
    let next = AtomicU64::new(*seeds.start());
    let work = || {
        let mut found = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > *seeds.end() {
                return Ok(found);
            }
            found.push(recover(topology, seed).map_err(|violation| (seed, violation))?);
        }
    };
    let mut all: Vec<Recovery> = std::thread::scope(|scope| {
        let other = scope.spawn(work);
        let mut all = work()?;
        all.extend(other.join().expect("a failed assertion ends the test as it is")?);
        Ok(all)
    })?;
    all.sort_unstable_by_key(|recovery| recovery.after);
    let at = |permille: usize| {
        let place = (all.len() * permille / 1_000).min(all.len().saturating_sub(1));
        all.get(place).map_or(0, |r| u64::try_from(r.after.as_millis()).unwrap_or(u64::MAX))
    };
    Ok(Distribution {
        topology: topology.name(),
        seeds: all.len() as u64,
        median_ms: at(500),
        p99_ms: at(990),
        max_ms: at(1_000),
        most_later_leaders: all.iter().map(|r| r.later_leaders).max().unwrap_or(0),
    })
}

/// Simulated time that is waited for a recovery.
const LONGEST: Duration = Duration::from_secs(60);

/// Cuts one cluster, made from `seed`, down to `topology` and waits for it to serve.
///
/// # Errors
/// A broken promise, or no recovery at all.
pub fn recover(topology: Topology, seed: u64) -> Result<Recovery, Violation> {
    let swarm = Swarm::calm(topology.members(), 6);
    let mut director = Director::new(seed, swarm, Random::new(seed ^ 0x746f_706f), false, false)?;
    let pause = director.random.between(Duration::from_secs(2), Duration::from_secs(4));
    director.pass(pause)?;
    let Some(leader) = director.serving_leader() else { return stuck("no leader without a fault") };
    let all = director.world.running();
    let others: Vec<MemberId> = all.iter().copied().filter(|m| *m != leader).collect();
    let Some(&hub) = director.random.pick(&others) else { return stuck("no other member") };
    if topology == Topology::Constrained {
        // The hub misses what the others get, for less than an election timeout.
        director.network.cut((leader, hub));
        let pause = director.random.between(Duration::from_millis(100), Duration::from_millis(600));
        director.pass(pause)?;
    }
    director.network.heal();
    for &a in &all {
        for &b in all.iter().filter(|b| **b != a) {
            let isolated = topology == Topology::Constrained && (a == leader || b == leader);
            if isolated || (a != hub && b != hub) {
                director.network.cut((a, b));
            }
        }
    }
    let cut = director.world.now;
    while director.world.last_append_served.is_none_or(|begun| begun <= cut) {
        if director.world.now - cut > u64::try_from(LONGEST.as_nanos()).unwrap_or(u64::MAX) {
            return stuck(&director.describe());
        }
        director.step()?;
    }
    let after = Duration::from_nanos(director.world.now - cut);
    let epochs = |director: &Director| {
        director.world.node(hub).and_then(|n| n.system()).map_or(0, |s| s.leaders.len())
    };
    let before = epochs(&director);
    director.settling = true;
    director.pass(director.swarm.timeout * 10)?;
    Ok(Recovery { after, later_leaders: (epochs(&director) - before) as u64 })
}

fn stuck<T>(evidence: &str) -> Result<T, Violation> {
    Err(Violation { property: "a leader under partial connectivity", evidence: evidence.to_owned() })
}
