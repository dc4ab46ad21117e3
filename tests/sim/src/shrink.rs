//! Makes a failure short enough for a person: first another run of its kind that breaks the same promise sooner,
//! then fewer of its steps.

use crate::action::{Action, Command, Step};
use crate::coverage::MessageKind;
use crate::director::swarm::{Swarm, Trouble};
use crate::oracle::Violation;
use crate::random::Random;
use crate::replay::replay;
use crate::run::{Effort, Keep, run_kind};
use crate::setup::Setup;
use std::collections::BTreeSet;
use std::time::Instant;

/// Steps that break a promise, from a world that begins with `setup`.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What the world begins with.
    pub setup: Setup,
    /// What happens in it.
    pub steps: Vec<Step>,
    /// What breaks.
    pub violation: Violation,
}

/// A kind of run, and where its chance begins.
#[derive(Clone, Debug)]
struct Kind {
    swarm: Swarm,
    random: Random,
}

/// Looks until `end` for runs like that of `seed` that break `property` sooner: of the same kind, or of a simpler
/// one that leaves faults, members or clients out. Chance alone finds them: what breaks in a run of a minute
/// often also breaks in one of a second, and steps that were never made need not be shrunk away. None: there is
/// none, or the run breaks before it has begun.
pub fn sooner(seed: u64, property: &str, end: Instant, progress: &dyn Fn(u64)) -> Option<Failure> {
    let mut chance = Random::new(seed);
    let mut best = Kind { swarm: Swarm::draw(&mut chance), random: chance.clone() };
    let mut events = u64::MAX;
    while Instant::now() < end {
        let mut swarm = best.swarm.clone();
        simplify(&mut swarm, &mut chance);
        let kind = Kind { swarm, random: Random::new(chance.bits()) };
        let effort = Effort { events, ..Effort::default() };
        let tried = run_kind(seed, kind.swarm.clone(), kind.random.clone(), effort, Keep::default());
        if tried.violation.is_some_and(|v| v.property == property) && tried.events < events {
            events = tried.events;
            best = kind;
            progress(events);
        }
    }
    let found =
        run_kind(seed, best.swarm, best.random, Effort::default(), Keep { steps: true, ..Keep::default() });
    Some(Failure { setup: found.setup?, steps: found.steps, violation: found.violation? })
}

/// Takes some of what makes a run rich away; often nothing at all.
fn simplify(swarm: &mut Swarm, chance: &mut Random) {
    if chance.chance(300) {
        swarm.founders = swarm.founders.min(3);
    }
    if chance.chance(300) {
        swarm.clients = 1 + usize::try_from(chance.below(3)).unwrap_or(0);
    }
    if chance.chance(200) {
        swarm.operator = None;
    }
    if chance.chance(200) {
        (swarm.several, swarm.conditions) = (0, 0);
    }
    if chance.chance(300) {
        let dropped = chance.below(Trouble::ALL.len() as u64);
        let dropped = usize::try_from(dropped).unwrap_or(0);
        swarm.weights[dropped] = 0;
    }
}

/// Fewer steps that break the same promise: as few as it gets until `end`.
///
/// Whole themes are left out first (a client, a member, a kind of step), then pieces, large ones before small
/// ones (delta debugging). What does nothing in a replay is left out with them.
pub fn shrink(mut failure: Failure, end: Instant, progress: &dyn Fn(usize)) -> Failure {
    let first = replay(&failure.setup, &failure.steps, false);
    if let Some(violation) = first.violation {
        failure.steps = pick(&failure.steps, &first.effective);
        failure.violation = violation;
    }
    let mut shrinking = Shrinking { failure, end, progress };
    loop {
        let before = shrinking.failure.steps.len();
        shrinking.leave_out_themes();
        shrinking.leave_out_pieces();
        if shrinking.is_over() || shrinking.failure.steps.len() == before {
            return shrinking.failure;
        }
    }
}

struct Shrinking<'a> {
    failure: Failure,
    end: Instant,
    progress: &'a dyn Fn(usize),
}

impl Shrinking<'_> {
    fn is_over(&self) -> bool {
        Instant::now() > self.end
    }

    /// Takes `fewer` over if it breaks the same promise.
    fn take(&mut self, fewer: &[Step]) -> bool {
        let tried = replay(&self.failure.setup, fewer, false);
        match tried.violation {
            Some(violation) if violation.property == self.failure.violation.property => {
                self.failure.violation = violation;
                self.failure.steps = pick(fewer, &tried.effective);
                (self.progress)(self.failure.steps.len());
                true
            }
            _ => false,
        }
    }

    fn leave_out_themes(&mut self) {
        let themes: BTreeSet<Theme> = self.failure.steps.iter().flat_map(Theme::of).collect();
        for theme in themes {
            if self.is_over() {
                return;
            }
            let steps = self.failure.steps.iter();
            let fewer: Vec<Step> = steps.filter(|step| !Theme::of(step).contains(&theme)).cloned().collect();
            if fewer.len() < self.failure.steps.len() {
                self.take(&fewer);
            }
        }
    }

    fn leave_out_pieces(&mut self) {
        let mut piece = self.failure.steps.len() / 2;
        while piece > 0 {
            let before = self.failure.steps.len();
            // From the end on: what comes later rests on what comes earlier, so it goes more easily.
            let mut until = before;
            while until > 0 {
                if self.is_over() {
                    return;
                }
                let from = until.saturating_sub(piece);
                let mut fewer = self.failure.steps.clone();
                fewer.drain(from..until);
                self.take(&fewer);
                until = from.min(self.failure.steps.len());
            }
            // Once more at the same size while that still helps at the finest.
            if piece > 1 || self.failure.steps.len() == before {
                piece /= 2;
            }
        }
    }
}

/// Steps that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Theme {
    /// What a client does.
    Client(usize),
    /// What happens at a member, or between it and others.
    Member(u64),
    /// The fate of a kind of message.
    Mail(MessageKind),
    /// Something that goes wrong, or that a person does.
    Trouble(&'static str),
}

impl Theme {
    fn of(step: &Step) -> Vec<Theme> {
        match &step.action {
            Action::Deliver { from, to, kind, .. } | Action::Drop { from, to, kind, .. } => {
                vec![Theme::Member(*from), Theme::Member(*to), Theme::Mail(*kind)]
            }
            Action::Call { client, member, .. } => vec![Theme::Client(*client), Theme::Member(*member)],
            Action::Cancel { client, .. } => vec![Theme::Client(*client), Theme::Trouble("cancel")],
            Action::Connect { member, peer } => vec![Theme::Member(*member), Theme::Member(*peer)],
            Action::Disconnect { member, peer } => {
                vec![Theme::Member(*member), Theme::Member(*peer), Theme::Trouble("disconnect")]
            }
            Action::Crash { member, .. } => vec![Theme::Member(*member), Theme::Trouble("crash")],
            Action::Jump { member, .. } => vec![Theme::Member(*member), Theme::Trouble("jump")],
            Action::Flip { member, .. } => vec![Theme::Member(*member), Theme::Trouble("flip")],
            Action::FlipFlag { member, .. } => vec![Theme::Member(*member), Theme::Trouble("flip flag")],
            Action::Lose { member, .. } => vec![Theme::Member(*member), Theme::Trouble("lose")],
            Action::Scrub { member, .. } => vec![Theme::Member(*member), Theme::Trouble("scrub")],
            Action::Misdirect { member, .. } => vec![Theme::Member(*member), Theme::Trouble("misdirect")],
            Action::LoseSyncs { member } | Action::KeepSyncs { member } => {
                vec![Theme::Member(*member), Theme::Trouble("lose syncs")]
            }
            Action::Copy { member } | Action::Restore { member } => {
                vec![Theme::Member(*member), Theme::Trouble("old copy")]
            }
            Action::Admin { member, command, .. } => match command {
                Command::Transfer { .. } => vec![Theme::Member(*member), Theme::Trouble("transfer")],
                Command::PrepareStop => vec![Theme::Member(*member), Theme::Trouble("prepare stop")],
                Command::Change { .. } => vec![Theme::Member(*member), Theme::Trouble("change")],
                _ => vec![Theme::Member(*member)],
            },
            Action::Add { member }
            | Action::Start { member, .. }
            | Action::Tick { member }
            | Action::Synced { member }
            | Action::Read { member, .. }
            | Action::Destroy { member } => vec![Theme::Member(*member)],
            _ => Vec::new(),
        }
    }
}

fn pick(steps: &[Step], places: &[usize]) -> Vec<Step> {
    places.iter().filter_map(|place| steps.get(*place).cloned()).collect()
}
