//! What kind of run a seed makes: which faults, how often, on what network and disks.
//!
//! Every run with a little of everything finds less than many runs that each go far in some direction (swarm
//! testing): so each seed draws a subset of the faults, weights for them, and paces.

use crate::coverage::kinds;
use crate::random::Random;
use std::time::Duration;
use synod_paxos::Settings;

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
        Chain = "chain",
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
        Hold = "hold",
        Flap = "flap",
        Transfer = "transfer",
        Diverge = "diverge",
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
    /// Applications that only read, each at a member that it stays with; beside the others.
    pub watchers: usize,
    /// Permille of the other applications that stay with a member as long as it runs.
    pub bound: u64,
    /// Permille of turning points (a campaign, a leader, a configuration, a snapshot) at which trouble comes at once.
    pub moments: u64,
    /// Permille of turning points at which streams that stood still flow again.
    pub releases: u64,
    /// Permille of calls that change the settings.
    pub settings: u64,
    /// Permille of calls that save a checkpoint.
    pub checkpoints: u64,
    /// Permille of an operator's looks at which a retired member's volume is deleted.
    pub deletes: u64,
    /// Bytes that fill every entry up; where there are any, the members' bounds in bytes are smaller by as much as
    /// entries are.
    pub padding: usize,
    /// Bytes of values that a link carries a second, until everything is mended; none: any number.
    pub rate: Option<u64>,
    /// The format level that the log begins at. At an older one the founders are of an older version until they start
    /// again.
    pub format_level: u32,
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
                (ms(20), ms(200)),
                (ms(50), ms(500)),
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
        let retention = one_of(random, &[None, None, Some(8), Some(40)]);
        let chain_interval = one_of(random, &[4, 16, 1_024]);
        if leases {
            weights[Trouble::Jump as usize] = 0;
        }
        if retention.is_some() || chain_interval > 16 {
            // A snapshot would carry it on, and no comparison would come soon.
            weights[Trouble::Diverge as usize] = 0;
        }
        // Entries of up to a megabyte, and links of a megabyte a second and more, a kilobyte for each.
        let padding = if random.chance(150) { one_of(random, &[60, 400, 1_000]) } else { 0 };
        let rate =
            if padding > 0 { one_of(random, &[None, Some(1_000), Some(4_000), Some(16_000)]) } else { None };
        // Every storm is over sooner or later, and none is shorter than a heartbeat or so.
        let pace = one_of(random, &[(1, 10), (1, 15), (5, 40)]);
        let format_level = one_of(random, &[Settings::FORMAT_LEVEL, Settings::FORMAT_LEVEL, 1]);
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
            rows: one_of(random, &[1, 4, 1_000]),
            pace: (timeout * pace.0 / 10, timeout * pace.1 / 10),
            lasting: one_of(random, &[timeout, timeout * 3, timeout * 6]),
            think: one_of(random, &[ms(8), ms(150), ms(300), ms(500)]),
            patience: (timeout / 3, timeout * 4),
            reads: one_of(random, &[100, 200, 500]),
            conditions: one_of(random, &[0, 100, 300]),
            several: one_of(random, &[0, 150, 400]),
            operator: one_of(random, &[None, Some(timeout / 2), Some(timeout), Some(timeout / 8)]),
            leases,
            retention,
            chain_interval,
            session_rows: one_of(random, &[16, 200, 100_000]),
            session_idle: one_of(random, &[ms(1_000), ms(5_000), ms(3_600_000)]),
            identities: one_of(random, &[0, 500, 1_000]),
            watchers: one_of(random, &[0, 1, 2]),
            bound: one_of(random, &[0, 500, 1_000]),
            moments: one_of(random, &[0, 0, 20, 60]),
            releases: one_of(random, &[0, 300, 700]),
            settings: one_of(random, if format_level == 1 { &[20, 40] } else { &[0, 0, 6, 20] }),
            checkpoints: one_of(random, &[0, 0, 20]),
            deletes: one_of(random, &[700, 700, 100]),
            padding,
            rate,
            format_level,
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
            watchers: 0,
            bound: 0,
            moments: 0,
            releases: 0,
            settings: 0,
            checkpoints: 0,
            deletes: 700,
            padding: 0,
            rate: None,
            format_level: Settings::FORMAT_LEVEL,
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
