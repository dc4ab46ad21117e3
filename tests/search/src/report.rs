//! Runs a search, shows how it goes, and tells what it found.

use crate::model::{Bounds, Model, Reductions};
use stateright::{Checker, HasDiscoveries, Model as _};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use synod_paxos::MemberId;

/// Which case is searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// 3 members, 2 slots, competing leaders, a crash.
    Leaders,
    /// 2 members grow to 3, alpha 2.
    Growth,
}

impl Case {
    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Case::Leaders => "leaders",
            Case::Growth => "growth",
        }
    }

    /// The bounds that `make test` searches to the end, or those of `make search`.
    pub fn bounds(self, full: bool) -> Bounds {
        let timeouts =
            |of: &[(u64, u8)]| of.iter().map(|(m, n)| (MemberId(*m), *n)).collect::<BTreeMap<_, _>>();
        match self {
            Case::Leaders => Bounds {
                timeouts: timeouts(if full { &[(1, 2), (2, 2)] } else { &[(1, 1), (2, 1)] }),
                crashes: 1,
                slots: 2,
                slow_disks: false,
                nacks: false,
                reductions: Reductions::ALL,
                promote: false,
            },
            Case::Growth => Bounds {
                timeouts: timeouts(if full { &[(1, 1), (2, 1), (3, 1)] } else { &[(2, 1), (3, 1)] }),
                crashes: 1,
                slots: 6,
                slow_disks: false,
                nacks: false,
                reductions: Reductions::ALL,
                promote: true,
            },
        }
    }

    /// The case within `bounds`.
    pub fn model(self, bounds: Bounds) -> Model {
        match self {
            Case::Leaders => Model::leaders(bounds),
            Case::Growth => Model::growth(bounds),
        }
    }
}

/// How long a search may take, and how much it may keep.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Stops after so many different states.
    pub states: Option<usize>,
    /// Stops after so long.
    pub time: Option<Duration>,
    /// Prints a line every few seconds.
    pub progress: bool,
    /// Goes deep first: takes a tenth of the memory, and the way to a broken property is not a shortest one.
    pub depth_first: bool,
}

/// What a search found.
#[derive(Clone, Debug)]
pub struct Report {
    /// Which case.
    pub case: Case,
    /// Different states.
    pub states: usize,
    /// Steps taken.
    pub steps: usize,
    /// Different triples of what the members have ever voted for and have applied, within the bound, and their sum:
    /// searches that judged the same have the same.
    pub judged: (usize, u128),
    /// The longest way.
    pub depth: usize,
    /// Every state within the bounds was visited.
    pub complete: bool,
    /// What does not hold, with the shortest way there.
    pub broken: Vec<(String, Vec<String>)>,
    /// What was to be reached at least once and was not.
    pub unreached: Vec<String>,
    /// How long it took.
    pub seconds: f64,
}

/// Searches a case on one thread; breadth first, the first way to a broken property is a shortest one.
pub fn search(case: Case, bounds: Bounds, limits: Limits) -> Report {
    let began = Instant::now();
    // A failed assertion is a finding, told with the way to it.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut builder = case.model(bounds).checker().threads(1).finish_when(HasDiscoveries::AnyFailures);
    if let Some(states) = limits.states {
        builder = builder.target_state_count(states);
    }
    if let Some(time) = limits.time {
        builder = builder.timeout(time);
    }
    let report = if limits.depth_first {
        watch(case, limits, began, &builder.spawn_dfs())
    } else {
        watch(case, limits, began, &builder.spawn_bfs())
    };
    std::panic::set_hook(hook);
    report
}

fn watch(case: Case, limits: Limits, began: Instant, checker: &impl Checker<Model>) -> Report {
    let mut told = Instant::now();
    while !checker.is_done() {
        std::thread::sleep(Duration::from_millis(20));
        if limits.progress && told.elapsed() >= Duration::from_secs(5) {
            told = Instant::now();
            let (states, depth) = (checker.unique_state_count(), checker.max_depth());
            let seconds = began.elapsed().as_secs();
            eprintln!("  {:8} {states:>10} states, depth {depth:>3}, {seconds:>4} s", case.name());
        }
    }
    let (mut broken, mut reached) = (Vec::new(), Vec::new());
    for (name, path) in checker.discoveries() {
        if checker.model().property(name).expectation.discovery_is_failure() {
            let last = path.last_state().clone();
            let mut way: Vec<String> = path.into_actions().iter().map(|a| format!("{a:?}")).collect();
            way.extend(last.seats.iter().filter_map(|s| s.facts.broken.clone()));
            broken.push((name.to_owned(), way));
        } else {
            reached.push(name);
        }
    }
    let properties = checker.model().properties();
    let wanted = properties.iter().filter(|p| !p.expectation.discovery_is_failure());
    let unreached = wanted.filter(|p| !reached.contains(&p.name)).map(|p| p.name.to_owned()).collect();
    let states = checker.unique_state_count();
    let cut = limits.states.is_some_and(|most| states >= most)
        || limits.time.is_some_and(|most| began.elapsed() >= most);
    Report {
        case,
        states,
        steps: checker.state_count(),
        judged: checker.model().judged(),
        depth: checker.max_depth(),
        complete: !cut && broken.is_empty(),
        broken,
        unreached,
        seconds: began.elapsed().as_secs_f64(),
    }
}

impl Report {
    /// Nothing is broken, and everything that had to be reached was.
    pub fn holds(&self) -> bool {
        self.broken.is_empty() && self.unreached.is_empty()
    }

    /// For scripts.
    pub fn json(&self) -> serde_json::Value {
        let broken: BTreeMap<_, _> = self.broken.iter().cloned().collect();
        serde_json::json!({
            "case": self.case.name(), "states": self.states, "steps": self.steps, "judged": self.judged.0, "depth": self.depth,
            "complete": self.complete, "broken": broken, "unreached": self.unreached, "seconds": self.seconds,
        })
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Report { case, states, steps, depth, seconds, .. } = self;
        let end = if self.complete { "all of them" } else { "not all of them" };
        writeln!(
            f,
            "{}: {states} states explored ({end}), {steps} steps, depth {depth}, {seconds:.1} s",
            case.name()
        )?;
        for (property, way) in &self.broken {
            writeln!(f, "  BROKEN: {property}, after {} steps:", way.len())?;
            way.iter().try_for_each(|step| writeln!(f, "    {step}"))?;
        }
        for property in &self.unreached {
            writeln!(f, "  never reached: {property}")?;
        }
        Ok(())
    }
}
