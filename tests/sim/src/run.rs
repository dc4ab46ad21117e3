//! One run: trouble while clients work, then peace, and everything must come to rest.

use crate::action::Step;
use crate::coverage::Coverage;
use crate::director::swarm::{Mode, Swarm};
use crate::director::{Director, Event};
use crate::history;
use crate::oracle::{Violation, violation};
use crate::random::Random;
use crate::setup::Setup;
use crate::world::World;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use synod_paxos::{MemberId, SystemState};

/// How long a run goes on.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Client operations judged, at least.
    pub operations: u64,
    /// Faults met, at least.
    pub faults: u64,
    /// Simulated time, at most, before everything is mended: some runs cannot get much done.
    pub longest: Duration,
    /// A run is left behind so many events, whatever state it is in.
    pub events: u64,
}

impl Default for Effort {
    fn default() -> Self {
        Effort { operations: 500, faults: 200, longest: Duration::from_secs(60), events: u64::MAX }
    }
}

/// What somebody wants to keep of a run beside its result.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keep {
    /// Lines for a person.
    pub trace: bool,
    /// Steps that can be done again.
    pub steps: bool,
    /// Operations from call to return.
    pub history: bool,
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
    /// What was met.
    pub coverage: Coverage,
    /// Simulated time.
    pub simulated: Duration,
    /// Entries in the log.
    pub entries: usize,
    /// What the run began with.
    pub setup: Option<Setup>,
    /// Lines for a person, if they were kept.
    pub trace: Vec<String>,
    /// Steps, if they were kept.
    pub steps: Vec<Step>,
    /// Operations, if they were kept.
    pub history: Vec<history::Event>,
    /// What happened, counted.
    pub events: u64,
}

/// Simulated time in which a healed cluster must answer everything and agree: liveness.
const REST: Duration = Duration::from_secs(60);
/// How often it is looked whether everything has come to rest.
const LOOK: Duration = Duration::from_millis(20);

/// Runs one seed. A failed assertion of the core counts as a violation.
pub fn run(seed: u64, effort: Effort, keep: Keep) -> Outcome {
    let mut random = Random::new(seed);
    let swarm = Swarm::draw(&mut random);
    run_kind(seed, swarm, random, effort, keep)
}

/// Runs a kind of run with chance of the caller's; `seed` is its name. A failed assertion of the core counts as a
/// violation.
pub fn run_kind(seed: u64, swarm: Swarm, random: Random, effort: Effort, keep: Keep) -> Outcome {
    // The oracle and the invariants hold no state across a panic that anybody reads afterwards but for reports.
    let begun = catch_unwind(|| Director::new(seed, swarm, random, keep.trace, keep.steps));
    let mut director = match begun {
        Ok(Ok(director)) => director,
        Ok(Err(violation)) => return Outcome::failed(seed, violation),
        Err(panic) => return Outcome::failed(seed, assertion(&*panic)),
    };
    if keep.history {
        director.world.history = Some(Vec::new());
    }
    let ended = catch_unwind(AssertUnwindSafe(|| live(&mut director, effort)));
    let violation = match ended {
        Ok(result) => result.err(),
        Err(panic) => Some(assertion(&*panic)),
    };
    let steps = director.steps();
    let world = &mut director.world;
    Outcome {
        seed,
        violation,
        hash: world.trace.digest(),
        operations: world.oracle.checked,
        unknown: world.oracle.unknown,
        coverage: world.coverage.clone(),
        simulated: Duration::from_nanos(world.now),
        entries: world.oracle.len(),
        setup: Some(director.setup.clone()),
        trace: world.trace.lines().to_vec(),
        steps,
        history: world.history.take().unwrap_or_default(),
        events: director.events,
    }
}

impl Outcome {
    fn failed(seed: u64, violation: Violation) -> Outcome {
        Outcome {
            seed,
            violation: Some(violation),
            hash: 0,
            operations: 0,
            unknown: 0,
            coverage: Coverage::default(),
            simulated: Duration::ZERO,
            entries: 0,
            setup: None,
            trace: Vec::new(),
            steps: Vec::new(),
            history: Vec::new(),
            events: 0,
        }
    }
}

/// A failed assertion of the core, as a violation.
pub fn assertion(panic: &(dyn std::any::Any + Send)) -> Violation {
    let said = panic.downcast_ref::<String>().cloned();
    let said = said.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
    Violation { property: "the core's own assertions", evidence: said.unwrap_or_default() }
}

fn live(director: &mut Director, effort: Effort) -> Result<(), Violation> {
    director.schedule(director.swarm.timeout * 3 / 2, Event::Trouble);
    director.hire_operator();
    let enough = |world: &World| {
        world.oracle.checked >= effort.operations && world.coverage.faults() >= effort.faults
            || Duration::from_nanos(world.now) > effort.longest
    };
    while !enough(&director.world) {
        director.step()?;
        if director.events > effort.events {
            return Ok(());
        }
    }
    match director.swarm.mode {
        Mode::Bounded => settle(director),
        Mode::Unbounded => director.world.oracle.settle_owed(),
    }
}

/// Heals everything, then demands that all is answered and all members agree.
fn settle(director: &mut Director) -> Result<(), Violation> {
    director.heal()?;
    let until = director.world.now + u64::try_from(REST.as_nanos()).unwrap_or(u64::MAX);
    while !director.is_at_rest() {
        if director.world.now > until {
            return violation("liveness after healing", director.describe());
        }
        director.pass(LOOK)?;
    }
    director.world.oracle.finish()
}

impl Director {
    /// Every operation answered, a leader serves, and every member of its configuration has all that is chosen.
    fn is_at_rest(&self) -> bool {
        if !self.world.is_quiet() {
            return false;
        }
        let Some(leader) = self.serving_leader() else { return false };
        let Some(system) = self.world.node(leader).and_then(|n| n.system()) else { return false };
        // Every member that was ever removed is retired by now: its disk may go.
        let leading = self.world.members.get(&leader);
        let leading = leading.and_then(|m| Some(m.node.as_ref()?.status(m.clock.local(self.world.now))));
        if leading.is_none_or(|status| status.removed.iter().any(|removed| !removed.retired)) {
            return false;
        }
        let configuration = system.configurations.latest();
        let next = system.applied.next();
        // Whose state differs is found out by then.
        let newest = system.chain_points.last();
        let differs = |o: &SystemState| {
            newest.is_some_and(|(slot, chain)| o.chain_at(*slot).is_some_and(|other| other != *chain))
        };
        configuration.effective_from <= next
            && configuration.members.keys().all(|id| {
                let other = self.world.node(*id).and_then(|n| n.system());
                self.is_lost(*id) || other.is_some_and(|o| o.applied == system.applied && !differs(o))
            })
    }

    pub(crate) fn describe(&self) -> String {
        let now = self.world.now;
        let members = self.world.members.values().filter_map(|m| {
            let status = m.node.as_ref()?.status(m.clock.local(now));
            Some(format!("{:?} {:?} {:?} {:?}", m.id, status.state, status.role, status.chosen_through))
        });
        let open = self.world.clients.iter().filter(|c| c.open.is_some()).count();
        let leader = self.serving_leader().and_then(|id| self.world.members.get(&id));
        let status = leader.and_then(|m| Some(m.node.as_ref()?.status(m.clock.local(now))));
        let waiting: Vec<MemberId> =
            status.iter().flat_map(|s| &s.removed).filter(|r| !r.retired).map(|r| r.member).collect();
        let configurations = self.world.configurations();
        format!(
            "{open} operations open, voters {configurations:?}, not retired {waiting:?}; {}",
            members.collect::<Vec<_>>().join("; ")
        )
    }
}
