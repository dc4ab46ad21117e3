//! What kind of run a seed makes: which faults, how often, on what network and disks.
//!
//! Every run with a little of everything finds less than many runs that each go far in some direction (swarm
//! testing): so each seed draws a subset of the faults, weights for them, and paces.

use crate::coverage::kinds;
use crate::random::Random;
use std::time::Duration;

kinds! {
    /// Something that the director does to the members.
    #[allow(missing_docs)]
    Trouble {
        Crash = "crash",
        PowerLoss = "power_loss",
        TornWrite = "torn_write",
        Isolate = "isolate",
        OneWay = "one_way",
        Split = "split",
        PartialCut = "partial_cut",
        Hub = "hub",
        Weather = "weather",
        SlowDisk = "slow_disk",
        StallDisk = "stall_disk",
        FailWrite = "fail_write",
        FullDisk = "full_disk",
        Flip = "flip",
        Misdirect = "misdirect",
        LoseSyncs = "lose_syncs",
        OldCopy = "old_copy",
        Wipe = "wipe",
        Pause = "pause",
        Suspend = "suspend",
        Jump = "jump",
        Drain = "drain",
    }
}

/// Whether a run ends in peace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Faults for a while, then everything is mended, and the members must come to rest: liveness.
    Bounded,
    /// Faults to the end: safety only.
    Unbounded,
}

/// One seed's kind of run.
#[derive(Clone, Debug)]
pub struct Swarm {
    /// How it ends.
    pub mode: Mode,
    /// Founding members.
    pub founders: usize,
    /// Simulated applications.
    pub clients: usize,
    /// See [`synod_paxos::Genesis::alpha`].
    pub alpha: u32,
    /// Between a leader's life signs.
    pub heartbeat: Duration,
    /// The election timeout.
    pub timeout: Duration,
    /// A message takes at most this long in good weather.
    pub near: Duration,
    /// A late message takes at most this much longer.
    pub late: Duration,
    /// A sync takes at most this long on a disk in order.
    pub sync: Duration,
    /// Rows that a disk hands out at once.
    pub rows: usize,
    /// Between two troubles.
    pub pace: (Duration, Duration),
    /// What is wrong with the network stays wrong for at most this long.
    pub lasting: Duration,
    /// Clients think for at most this long.
    pub think: Duration,
    /// How long clients wait for an answer.
    pub patience: (Duration, Duration),
    /// Permille of operations that read.
    pub reads: u64,
    /// Permille of appends that demand a last index.
    pub conditions: u64,
    /// Permille of appends of several entries.
    pub several: u64,
    /// Between an operator's steps; none: no operator.
    pub operator: Option<Duration>,
    /// Whether leaders read locally under a lease. Clocks do not jump then: a lease rests on their rate.
    pub leases: bool,
    /// Entries that the log keeps; none: all.
    pub retention: Option<u64>,
    /// Slots between two comparisons of chains.
    pub chain_interval: u32,
    /// Rows of the session table.
    pub session_rows: u32,
    /// Log time after which an idle session is gone.
    pub session_idle: Duration,
    /// Permille of clients whose appends have an identity: they retry until they know the outcome.
    pub identities: u64,
    /// Whether clocks run at other rates than simulated time.
    pub drift: bool,
    /// Weight of each trouble, by its number; 0: never in this run.
    pub weights: [u64; Trouble::ALL.len()],
}

fn one_of<T: Copy>(random: &mut Random, items: &[T]) -> T {
    *random.pick(items).expect("every list here has items")
}

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

impl Swarm {
    /// Draws a run.
    pub fn draw(random: &mut Random) -> Swarm {
        let (heartbeat, timeout) = one_of(
            random,
            &[
                (ms(100), ms(1_000)),
                (ms(100), ms(1_000)),
                (ms(100), ms(1_000)),
                (ms(20), ms(120)),
                (ms(50), ms(300)),
            ],
        );
        let mut weights = [0; Trouble::ALL.len()];
        for weight in &mut weights {
            *weight = if random.chance(550) { 1 + random.below(6) } else { 0 };
        }
        // Without any of these a run would show nothing.
        weights[Trouble::Crash as usize] += 1;
        weights[Trouble::Weather as usize] += 1;
        let leases = random.chance(600);
        if leases {
            weights[Trouble::Jump as usize] = 0;
        }
        // Every storm is over sooner or later, and none is shorter than a heartbeat or so.
        let pace = one_of(random, &[(1, 10), (1, 15), (5, 40)]);
        Swarm {
            mode: if random.chance(700) { Mode::Bounded } else { Mode::Unbounded },
            founders: one_of(random, &[3, 3, 3, 3, 4, 5, 5, 7]),
            clients: one_of(random, &[3, 4, 6]),
            alpha: one_of(random, &[1, 2, 3, 4, 8, 64]),
            heartbeat,
            timeout,
            near: one_of(random, &[ms(1), Duration::from_micros(1_500), ms(6)]),
            late: one_of(random, &[timeout / 4, timeout * 2, timeout * 2, timeout * 8]),
            sync: one_of(random, &[Duration::from_micros(300), Duration::from_micros(2_500), ms(12)]),
            // Phase 1 over a whole window must fit into an election timeout.
            rows: one_of(random, if timeout < ms(1_000) { &[8, 1_000] } else { &[1, 4, 1_000] }),
            pace: (timeout * pace.0 / 10, timeout * pace.1 / 10),
            lasting: one_of(random, &[timeout, timeout * 3, timeout * 6]),
            think: one_of(random, &[ms(4), ms(80), ms(120), ms(200)]),
            patience: (timeout / 3, timeout * 4),
            reads: one_of(random, &[100, 200, 500]),
            conditions: one_of(random, &[0, 100, 300]),
            several: one_of(random, &[0, 150, 400]),
            operator: one_of(random, &[None, Some(timeout / 2), Some(timeout), Some(timeout / 8)]),
            leases,
            retention: one_of(random, &[None, None, Some(8), Some(40)]),
            chain_interval: one_of(random, &[4, 16, 1_024]),
            session_rows: one_of(random, &[16, 200, 100_000]),
            session_idle: one_of(random, &[ms(1_000), ms(5_000), ms(3_600_000)]),
            identities: one_of(random, &[0, 500, 1_000]),
            drift: random.chance(500),
            weights,
        }
    }

    /// A run without faults, for scenarios that make their own.
    pub fn calm(founders: usize, clients: usize) -> Swarm {
        Swarm {
            mode: Mode::Bounded,
            founders,
            clients,
            alpha: 64,
            heartbeat: ms(100),
            timeout: ms(1_000),
            near: Duration::from_micros(1_500),
            late: ms(1_000),
            sync: Duration::from_micros(2_500),
            rows: 1_000,
            pace: (ms(1_000), ms(1_000)),
            lasting: ms(1_000),
            think: ms(25),
            // Clients at members that reach no leader try elsewhere soon.
            patience: (ms(50), ms(150)),
            reads: 200,
            conditions: 100,
            several: 150,
            operator: None,
            leases: false,
            retention: None,
            chain_interval: 1_024,
            session_rows: 100_000,
            session_idle: ms(3_600_000),
            identities: 0,
            drift: false,
            weights: [0; Trouble::ALL.len()],
        }
    }

    /// Draws a trouble by its weight; none where every weight is 0.
    pub fn trouble(&self, random: &mut Random) -> Option<Trouble> {
        let mut left = random.below(self.weights.iter().sum());
        Trouble::ALL.iter().copied().zip(self.weights).find_map(|(trouble, weight)| {
            let hit = left < weight;
            left = left.saturating_sub(weight);
            hit.then_some(trouble)
        })
    }
}
