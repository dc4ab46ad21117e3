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

use crate::client::Operation;
use crate::oracle::{Outcome, Violation};
use crate::world::World;
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
    let mut world = World::new(seed ^ 0x746f_706f, topology.members(), 6, false);
    // Clients at members that reach no leader try elsewhere soon, so that what is measured is the cluster.
    world.patience = (Duration::from_millis(50), Duration::from_millis(150));
    let leader = lead(&mut world)?;
    let others: Vec<MemberId> = world.running().into_iter().filter(|m| *m != leader).collect();
    let Some(&hub) = world.random.pick(&others) else { return stuck("no other member") };
    if topology == Topology::Constrained {
        // The hub misses what the others get, for less than an election timeout.
        world.network.cut(leader, hub);
        let pause = world.random.between(Duration::from_millis(100), Duration::from_millis(600));
        world.pass(pause)?;
    }
    world.network.heal();
    let all = world.running();
    for &a in &all {
        for &b in all.iter().filter(|b| **b != a) {
            let isolated = topology == Topology::Constrained && (a == leader || b == leader);
            if isolated || (a != hub && b != hub) {
                world.network.cut(a, b);
            }
        }
    }
    let cut = world.now;
    let epochs = |world: &World| world.node(hub).and_then(|n| n.system()).map_or(0, |s| s.leaders.len());
    while !world.served_since(cut) {
        if world.now - cut > nanos(LONGEST) {
            return stuck(&world.describe());
        }
        world.step()?;
    }
    let after = Duration::from_nanos(world.now - cut);
    let before = epochs(&world);
    world.settling = true;
    world.pass(world.genesis.settings.election.timeout * 10)?;
    Ok(Recovery { after, later_leaders: (epochs(&world) - before) as u64 })
}

fn stuck<T>(evidence: &str) -> Result<T, Violation> {
    Err(Violation { property: "a leader under partial connectivity", evidence: evidence.to_owned() })
}

/// Lets a cluster elect a leader and work for a while.
fn lead(world: &mut World) -> Result<MemberId, Violation> {
    let pause = world.random.between(Duration::from_secs(2), Duration::from_secs(4));
    world.pass(pause)?;
    match world.serving_leader() {
        Some(leader) => Ok(leader),
        None => stuck("no leader without a fault"),
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

impl World {
    /// Lets simulated time pass.
    pub(crate) fn pass(&mut self, span: Duration) -> Result<(), Violation> {
        let until = self.now + nanos(span);
        while self.now < until {
            self.step()?;
        }
        Ok(())
    }

    fn served_since(&self, moment: u64) -> bool {
        self.last_append_served.is_some_and(|begun| begun > moment)
    }

    /// Notes when the newest acknowledged append had begun.
    pub(crate) fn note_served(&mut self, operation: &Operation, outcome: &Outcome, begun: u64) {
        if matches!((operation, outcome), (Operation::Append { .. }, Outcome::Appended(..))) {
            self.last_append_served = self.last_append_served.max(Some(begun));
        }
    }
}
