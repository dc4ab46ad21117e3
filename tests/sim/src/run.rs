//! One run: trouble while clients work, then peace, and everything must come to rest.

use crate::faults::{Fault, FaultCounts};
use crate::network::Weather;
use crate::oracle::{Violation, violation};
use crate::world::{Event, World};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use synod_paxos::MemberId;
use synod_paxos::status::MemberState;

/// How long a run goes on.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Client operations judged, at least.
    pub operations: u64,
    /// Faults injected, at least.
    pub faults: u64,
}

impl Default for Effort {
    fn default() -> Self {
        Effort { operations: 500, faults: 20 }
    }
}

/// What a run came to.
#[derive(Debug)]
pub struct Outcome {
    /// The run's seed.
    pub seed: u64,
    /// What broke, if something did.
    pub violation: Option<Violation>,
    /// Two runs of one seed have equal hashes.
    pub hash: u64,
    /// Client operations judged.
    pub operations: u64,
    /// Of these, such whose outcome nobody can tell.
    pub unknown: u64,
    /// Faults by kind.
    pub faults: FaultCounts,
    /// Simulated time.
    pub simulated: Duration,
    /// Entries in the log.
    pub entries: usize,
    /// Lines for a person, if they were kept.
    pub trace: Vec<String>,
}

/// Simulated time in which a healed cluster must answer everything and agree: liveness.
const REST: Duration = Duration::from_secs(60);
/// Simulated time after which a run that does not get its work done is a failure of liveness.
const LONGEST: Duration = Duration::from_secs(1_200);

/// Runs one seed. A failed assertion of the core counts as a violation.
pub fn run(seed: u64, effort: Effort, keep_trace: bool) -> Outcome {
    let founders = [3, 3, 3, 5, 5, 1, 2, 4][usize::try_from(seed % 8).unwrap_or(0)];
    let mut world = World::new(seed, founders, 4, keep_trace);
    let ended = catch_unwind(AssertUnwindSafe(|| live(&mut world, effort)));
    let violation = match ended {
        Ok(result) => result.err(),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().cloned();
            let said = said.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Some(Violation { property: "the core's own assertions", evidence: said.unwrap_or_default() })
        }
    };
    Outcome {
        seed,
        violation,
        hash: world.trace.digest(),
        operations: world.oracle.checked,
        unknown: world.oracle.unknown,
        faults: world.faults.clone(),
        simulated: Duration::from_nanos(world.now),
        entries: world.oracle.len(),
        trace: world.trace.lines().to_vec(),
    }
}

fn live(world: &mut World, effort: Effort) -> Result<(), Violation> {
    world.schedule(Duration::from_millis(1_500), Event::Trouble);
    world.schedule(Duration::from_millis(2_000), Event::Operate);
    while world.oracle.checked < effort.operations || world.faults.total() < effort.faults {
        if Duration::from_nanos(world.now) > LONGEST {
            let evidence = format!("{} operations in {LONGEST:?} of simulated time", world.oracle.checked);
            return violation("liveness", evidence);
        }
        world.step()?;
    }
    settle(world)
}

/// Heals everything, then demands that all is answered and all members agree.
fn settle(world: &mut World) -> Result<(), Violation> {
    world.settling = true;
    world.network.heal();
    let down: Vec<MemberId> =
        world.members.values().filter(|m| m.node.is_none() && !m.destroyed).map(|m| m.id).collect();
    for member in world.members.values_mut() {
        member.sync_floor = Duration::ZERO;
    }
    for id in down {
        world.schedule(Duration::ZERO, Event::Restart(id));
    }
    world.connect_all();
    let until = world.now + u64::try_from(REST.as_nanos()).unwrap_or(u64::MAX);
    while !world.is_at_rest() {
        if world.now > until {
            return violation("liveness after healing", world.describe());
        }
        world.step()?;
    }
    world.oracle.finish()
}

impl World {
    /// Every operation answered, a leader serves, and every member of its configuration has all that is chosen.
    fn is_at_rest(&self) -> bool {
        if self.clients.iter().any(|c| c.open.is_some()) {
            return false;
        }
        let Some(leader) = self.serving_leader() else { return false };
        let Some(system) = self.node(leader).and_then(|n| n.system()) else { return false };
        // Every member that was ever removed is retired by now: its disk may go.
        let leading =
            self.members.get(&leader).and_then(|m| Some(m.node.as_ref()?.status(m.local(self.now))));
        if leading.is_none_or(|status| status.removed.iter().any(|removed| !removed.retired)) {
            return false;
        }
        let configuration = system.configurations.latest();
        let next = system.applied.next();
        configuration.effective_from <= next
            && configuration.members.keys().all(|id| {
                let other = self.node(*id).and_then(|n| n.system());
                self.members.get(id).is_some_and(|m| m.destroyed)
                    || other.is_some_and(|o| o.applied == system.applied)
            })
    }

    pub(crate) fn describe(&self) -> String {
        let now = self.now;
        let members = self.members.values().filter_map(|m| {
            let status = m.node.as_ref()?.status(m.local(now));
            Some(format!("{:?} {:?} {:?} {:?}", m.id, status.state, status.role, status.chosen_through))
        });
        let open = self.clients.iter().filter(|c| c.open.is_some()).count();
        format!("{open} operations open; {}", members.collect::<Vec<_>>().join("; "))
    }

    /// Some fault happens, and the next is scheduled.
    pub(crate) fn trouble(&mut self) -> Result<(), Violation> {
        if self.settling {
            return Ok(());
        }
        let pause = self.random.between(Duration::from_millis(100), Duration::from_millis(1_500));
        self.schedule(pause, Event::Trouble);
        let running = self.running();
        let Some(&victim) = self.random.pick(&running) else { return Ok(()) };
        match self.random.below(10) {
            0 | 1 => self.crash_for_a_while(victim),
            2 => self.power_loss(),
            3 => self.isolate(victim, &running),
            4 => self.cut_one_way(victim, &running),
            5 => self.split(&running),
            6 => self.slow_disk(victim),
            _ => self.bad_weather(),
        }
        Ok(())
    }

    fn crash_for_a_while(&mut self, victim: MemberId) {
        let member = self.members.get(&victim).and_then(|m| m.node.as_ref());
        if member.is_some_and(|n| n.status(synod_paxos::Instant(0)).state == MemberState::Uninitialized) {
            return;
        }
        self.crash(victim);
        let pause = self.random.between(Duration::from_millis(1), Duration::from_millis(3_000));
        self.schedule(pause, Event::Restart(victim));
    }

    fn power_loss(&mut self) {
        self.faults.add(Fault::PowerLoss);
        for id in self.running() {
            self.crash(id);
            let pause = self.random.between(Duration::from_millis(100), Duration::from_millis(900));
            self.schedule(pause, Event::Restart(id));
        }
    }

    fn isolate(&mut self, victim: MemberId, running: &[MemberId]) {
        self.faults.add(Fault::Isolation);
        for &other in running.iter().filter(|o| **o != victim) {
            self.network.cut(victim, other);
            self.network.cut(other, victim);
        }
        self.heal_later();
    }

    fn cut_one_way(&mut self, victim: MemberId, running: &[MemberId]) {
        self.faults.add(Fault::OneWayCut);
        for &other in running.iter().filter(|o| **o != victim) {
            if self.random.chance(600) {
                self.network.cut(victim, other);
            }
        }
        self.heal_later();
    }

    fn split(&mut self, running: &[MemberId]) {
        self.faults.add(Fault::Partition);
        let sides: Vec<bool> = running.iter().map(|_| self.random.chance(500)).collect();
        for (a, side_a) in running.iter().zip(&sides) {
            for (b, side_b) in running.iter().zip(&sides) {
                if side_a != side_b {
                    self.network.cut(*a, *b);
                }
            }
        }
        self.heal_later();
    }

    fn slow_disk(&mut self, victim: MemberId) {
        self.faults.add(Fault::SlowDisk);
        let floor = self.random.between(Duration::from_millis(5), Duration::from_millis(400));
        for member in self.members.values_mut() {
            member.sync_floor = if member.id == victim { floor } else { Duration::ZERO };
        }
    }

    fn bad_weather(&mut self) {
        let (drop, duplicate, delay) =
            (self.random.below(150), self.random.below(150), self.random.below(100));
        self.network.weather = Weather { drop, duplicate, delay };
        self.heal_later();
    }

    fn heal_later(&mut self) {
        let pause = self.random.between(Duration::from_millis(200), Duration::from_millis(3_000));
        self.schedule(pause, Event::HealNetwork);
    }
}
