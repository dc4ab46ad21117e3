//! The states, the steps between them, and where a search begins.

use crate::mail::Mail;
use crate::member::{CLUSTER, Event, Facts, History, Member};
use crate::print::Print;
use crate::properties::{self, Verdict};
use stateright::Property;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use synod_paxos::{DurableState, Genesis, Incoming, MemberId, Message, Slot, WriteCounter};

/// What is searched: who may do what, and how often.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// How often each member's election timeout may pass.
    pub timeouts: BTreeMap<MemberId, u8>,
    /// Crashes of all members together.
    pub crashes: u8,
    /// Accepts above this slot are lost.
    pub slots: u64,
    /// Whether writes of a member may still be under way when it takes its next input.
    pub slow_disks: bool,
    /// Whether Nacks are delivered.
    pub nacks: bool,
    /// Whether mail that can have no effect is thrown away (see [`Model::purge`]).
    pub purge: bool,
    /// Whether member 1 may ask for a vote for member 3.
    pub promote: bool,
}

/// What something did to a member: where it stands then, and what it sends.
type Outcome = (Seat, Vec<Incoming>);

/// A cluster and the bounds of its search.
#[derive(Debug)]
pub struct Model {
    /// The bounds.
    pub bounds: Bounds,
    /// What `Initialize` gave to the founders.
    pub genesis: Genesis,
    disks: Vec<DurableState>,
    start: State,
    /// What each event does to a member that stands at a fingerprint: most states differ in other members.
    outcomes: Mutex<HashMap<(u128, u128), Arc<Outcome>>>,
    /// The verdict on what three members have voted for and applied.
    verdicts: Mutex<HashMap<u128, Verdict>>,
}

/// A member in a state.
#[derive(Clone, Debug)]
pub struct Seat {
    history: Option<Arc<History>>,
    print: u128,
    /// What the properties read.
    pub facts: Arc<Facts>,
}

/// Where everyone stands, and what is under way.
#[derive(Clone, Debug)]
pub struct State {
    /// By member, from 1.
    pub seats: Vec<Seat>,
    mail: BTreeMap<u128, Mail>,
    /// Whatever was sent once is not sent again: copies change nothing.
    sent: Arc<Vec<u128>>,
    timeouts: BTreeMap<MemberId, u8>,
    crashes: u8,
    promotions: u8,
    /// What the properties say of it.
    pub verdict: Verdict,
}

impl PartialEq for State {
    fn eq(&self, other: &State) -> bool {
        let prints = |state: &State| state.seats.iter().map(|s| s.print).collect::<Vec<_>>();
        prints(self) == prints(other)
            && self.mail.keys().eq(other.mail.keys())
            && (&self.timeouts, self.crashes, self.promotions)
                == (&other.timeouts, other.crashes, other.promotions)
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.seats.iter().for_each(|seat| seat.print.hash(hasher));
        self.mail.keys().for_each(|print| print.hash(hasher));
        self.timeouts.values().for_each(|left| left.hash(hasher));
        (self.crashes, self.promotions).hash(hasher);
    }
}

/// One step.
#[derive(Clone, PartialEq)]
pub enum Action {
    /// A message arrives.
    Deliver(u128, Mail),
    /// All that a member has written becomes durable.
    Persist(MemberId),
    /// A member campaigns.
    Timeout(MemberId),
    /// A member crashes and starts again.
    Crash(MemberId),
    /// Member 1 asks for a vote for member 3.
    Promote,
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Deliver(_, what) => write!(f, "deliver {what:?}"),
            Action::Persist(member) => write!(f, "persist {}", member.0),
            Action::Timeout(member) => write!(f, "timeout {}", member.0),
            Action::Crash(member) => write!(f, "crash   {}", member.0),
            Action::Promote => write!(f, "promote 3"),
        }
    }
}

fn member(n: u64) -> MemberId {
    MemberId(n)
}

/// How many members every search has.
const MEMBERS: u64 = 3;

fn everyone() -> impl Iterator<Item = MemberId> {
    (1..=MEMBERS).map(member)
}

fn genesis(founders: Vec<MemberId>, alpha: u32) -> Genesis {
    let members = founders.into_iter().map(|m| (m, format!("m{}", m.0))).collect();
    let mut genesis = Genesis { alpha, ..Genesis::new(CLUSTER, members) };
    genesis.settings.leases = false;
    genesis
}

fn founder(genesis: &Genesis, id: MemberId) -> DurableState {
    let mut disk = DurableState::empty(id);
    disk.genesis = Some(genesis.clone());
    disk.genesis_confirmed = true;
    disk
}

impl Model {
    /// Three voters; members 1 and 2 compete, each with an append of its own at hand.
    pub fn leaders(bounds: Bounds) -> Model {
        let genesis = genesis(everyone().collect(), Genesis::DEFAULT_ALPHA);
        let disks = everyone().map(|m| founder(&genesis, m)).collect();
        let mut model = Model::at(bounds, genesis, disks);
        let mut state = model.start.clone();
        model.connect(&mut state);
        for id in [1, 2] {
            model.happen(&mut state, member(id), Event::Append(id as usize));
        }
        model.begin(state);
        model
    }

    /// Two voters and a learner that has caught up, one leader; alpha is 2. Member 3 may be given a vote.
    pub fn growth(bounds: Bounds) -> Model {
        let genesis = genesis([1, 2].map(member).into(), 2);
        let disks = everyone().map(|m| founder(&genesis, m)).collect();
        let mut model = Model::at(bounds, genesis, disks);
        let mut state = model.start.clone();
        model.connect(&mut state);
        model.happen(&mut state, member(1), Event::Timeout);
        model.settle(&mut state);
        model.happen(&mut state, member(1), Event::AddLearner(member(3)));
        for _ in 0..6 {
            model.settle(&mut state);
            for id in everyone() {
                model.happen(&mut state, id, Event::Tick(Duration::from_millis(150)));
            }
        }
        model.settle(&mut state);
        model.begin(state);
        model
    }

    fn at(bounds: Bounds, genesis: Genesis, disks: Vec<DurableState>) -> Model {
        let seat = Seat { history: None, print: 0, facts: Arc::default() };
        let start = State {
            seats: vec![seat; disks.len()],
            mail: BTreeMap::new(),
            sent: Arc::default(),
            timeouts: BTreeMap::new(),
            crashes: bounds.crashes,
            promotions: u8::from(bounds.promote),
            verdict: Verdict::default(),
        };
        let (outcomes, verdicts) = (Mutex::default(), Mutex::default());
        Model { bounds, genesis, disks, start, outcomes, verdicts }
    }

    /// The search begins here; nothing of the way here is under way any more.
    fn begin(&mut self, mut state: State) {
        state.mail.clear();
        state.timeouts = self.bounds.timeouts.clone();
        for (seat, first) in state.seats.iter_mut().zip(&self.disks) {
            seat.print = Member::build(first, seat.history.as_ref()).print();
        }
        self.judge(&mut state);
        self.start = state;
    }

    fn connect(&self, state: &mut State) {
        for one in everyone() {
            for other in everyone().filter(|other| *other != one) {
                self.happen(state, one, Event::Connected(other));
            }
        }
    }

    /// Everything is delivered and durable, heartbeats included: only on the way to the start.
    fn settle(&self, state: &mut State) {
        loop {
            let mut moved = false;
            for id in everyone() {
                if state.seats[id.0 as usize - 1].facts.writes {
                    self.happen(state, id, Event::Persist);
                    moved = true;
                }
            }
            while let Some((_, mail)) = state.mail.pop_first() {
                self.happen(state, mail.0.to, Event::Message(mail.0));
                moved = true;
            }
            if !moved {
                return;
            }
        }
    }

    /// Lets something happen to a member, and takes what it sends.
    fn happen(&self, state: &mut State, id: MemberId, event: Event) {
        let place = id.0 as usize - 1;
        let outcome = self.outcome(&state.seats[place], id, event);
        state.seats[place] = outcome.0.clone();
        for incoming in &outcome.1 {
            self.post(state, incoming.clone());
        }
    }

    /// What `event` does to a member, worked out once for each fingerprint.
    fn outcome(&self, seat: &Seat, id: MemberId, event: Event) -> Arc<Outcome> {
        let key = (seat.print, event.print());
        // Nothing can panic while this lock is held.
        let known = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        known.unwrap_or_else(|| {
            let outcome = Arc::new(self.carry_out(seat, id, event));
            // On the way to the start members have no fingerprint yet.
            if key.0 != 0 {
                let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
                outcomes.insert(key, outcome.clone());
            }
            outcome
        })
    }

    fn carry_out(&self, seat: &Seat, id: MemberId, event: Event) -> Outcome {
        let history = History::with(seat.history.clone(), event);
        let first = &self.disks[id.0 as usize - 1];
        let built = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let member = Member::build(first, history.as_ref());
            let print = if seat.print == 0 { 0 } else { member.print() };
            (member.facts(), print, member.sent)
        }));
        let (facts, print, mut sent) = built.unwrap_or_else(|panic| {
            let why = panic.downcast_ref::<String>().cloned();
            let why = why.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            let facts = Facts { broken: Some(why.unwrap_or_default()), ..Facts::clone(&seat.facts) };
            (facts, 1, Vec::new())
        });
        // Nobody remembers a write of anybody: two histories that end alike may have counted differently.
        sent.iter_mut().for_each(|incoming| incoming.counters.written = WriteCounter(0));
        (Seat { history, print, facts: Arc::new(facts) }, sent)
    }

    /// How many different triples of what members have voted for and applied were judged.
    pub fn judged(&self) -> usize {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Judges a state by what its members have voted for and applied, once for each such triple.
    fn judge(&self, state: &mut State) {
        let mut print = Print::default();
        for seat in &state.seats {
            print.bytes(&seat.facts.print.to_le_bytes());
        }
        let key = print.finish();
        let known = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
        state.verdict = known.unwrap_or_else(|| {
            let verdict = properties::judge(self, state);
            self.verdicts.lock().unwrap_or_else(PoisonError::into_inner).insert(key, verdict);
            verdict
        });
    }

    fn post(&self, state: &mut State, incoming: Incoming) {
        let handshake = matches!(incoming.message, Message::Hello { .. } | Message::Welcome { .. });
        if handshake {
            // Answered at once.
            let to = incoming.to;
            return self.happen(state, to, Event::Message(Arc::new(incoming)));
        }
        let searching = !state.timeouts.is_empty();
        let (print, mail) = if searching {
            Mail::of(incoming)
        } else {
            // On the way to the start, everything travels, in order.
            (state.mail.last_key_value().map_or(0, |(last, _)| last + 1), Mail(Arc::new(incoming)))
        };
        if !searching {
            state.mail.insert(print, mail);
        } else if mail.travels(&self.bounds) && !state.sent.contains(&print) {
            Arc::make_mut(&mut state.sent).push(print);
            state.mail.insert(print, mail);
        }
    }

    /// Whether a message changes nothing at its receiver, and is answered by nothing that was not sent before.
    fn does_nothing(&self, state: &State, mail: &Mail) -> bool {
        let seat = &state.seats[mail.0.to.0 as usize - 1];
        let outcome = self.outcome(seat, mail.0.to, Event::Message(mail.0.clone()));
        let (after, sent) = &*outcome;
        after.print == seat.print
            && sent.iter().all(|answer| {
                let (print, answer) = Mail::of(answer.clone());
                !answer.travels(&self.bounds) || state.sent.contains(&print)
            })
    }

    /// Whether a message that does nothing now will do nothing later. A leader in office only learns: what does not
    /// count with it now never will, unless members may get a vote meanwhile. Nor does an Accept of what its
    /// receiver has and knows of, unless a crash may make it forget.
    fn stays_idle(&self, state: &State, mail: &Mail) -> bool {
        let facts = &state.seats[mail.0.to.0 as usize - 1].facts;
        match &mail.0.message {
            Message::Promise { .. } | Message::Accepted { .. } => facts.serves && !self.bounds.promote,
            Message::Accept { .. } => state.crashes == 0,
            _ => false,
        }
    }

    /// Throws away mail that can have no effect any more: a Prepare or Accept below what its receiver's disk has
    /// promised (promises do not go back, which is a property of every search), an answer to a candidacy or leadership
    /// that is over (no ballot is resumed), and what does nothing now and never will.
    fn purge(&self, state: &mut State) {
        if !self.bounds.purge {
            return;
        }
        let idle = |mail: &Mail| {
            let writes = state.seats[mail.0.to.0 as usize - 1].facts.writes;
            !writes && self.stays_idle(state, mail) && self.does_nothing(state, mail)
        };
        let idle: Vec<u128> = state.mail.iter().filter(|(_, m)| idle(m)).map(|(print, _)| *print).collect();
        idle.iter().for_each(|print| drop(state.mail.remove(print)));
        let seats = &state.seats;
        state.mail.retain(|_, mail| {
            let facts = &seats[mail.0.to.0 as usize - 1].facts;
            match &mail.0.message {
                Message::Prepare { ballot, .. } | Message::Accept { ballot, .. } => *ballot >= facts.promised,
                Message::Promise { ballot, .. }
                | Message::Accepted { ballot, .. }
                | Message::Nack { ballot, .. } => facts.proposes == Some(*ballot),
                _ => true,
            }
        });
    }
}

impl stateright::Model for Model {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.start.clone()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.seats.iter().any(|seat| seat.facts.broken.is_some()) {
            return;
        }
        let busy = |id: &MemberId| state.seats[id.0 as usize - 1].facts.writes;
        if let Some(id) = everyone().find(|id| busy(id) && !self.bounds.slow_disks) {
            actions.push(Action::Persist(id));
            if state.crashes > 0 {
                actions.push(Action::Crash(id));
            }
            return;
        }
        actions.extend(state.mail.iter().map(|(print, mail)| Action::Deliver(*print, mail.clone())));
        for id in everyone() {
            if busy(&id) {
                actions.push(Action::Persist(id));
            }
            if state.timeouts.get(&id).is_some_and(|left| *left > 0) {
                actions.push(Action::Timeout(id));
            }
            if state.crashes > 0 {
                actions.push(Action::Crash(id));
            }
        }
        if state.promotions > 0 && state.seats[0].facts.serves {
            actions.push(Action::Promote);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut state = state.clone();
        match action {
            Action::Deliver(print, _) => {
                let mail = state.mail.remove(&print)?;
                self.happen(&mut state, mail.0.to, Event::Message(mail.0));
            }
            Action::Persist(id) => self.happen(&mut state, id, Event::Persist),
            Action::Timeout(id) => {
                *state.timeouts.get_mut(&id)? -= 1;
                self.happen(&mut state, id, Event::Timeout);
            }
            Action::Crash(id) => {
                state.crashes -= 1;
                self.happen(&mut state, id, Event::Reboot);
                for other in everyone().filter(|other| *other != id) {
                    self.happen(&mut state, id, Event::Connected(other));
                }
            }
            Action::Promote => {
                state.promotions -= 1;
                self.happen(&mut state, member(1), Event::Promote(member(3)));
                // A client's call is behind it: the slots in the window are not no-ops only.
                self.happen(&mut state, member(1), Event::Append(1));
            }
        }
        self.purge(&mut state);
        self.judge(&mut state);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Model>> {
        vec![
            Property::always("agreement", |_, s: &State| s.verdict.agreement),
            Property::always("a chosen value stays", |_, s: &State| s.verdict.chosen_stays),
            Property::always("only chosen values are applied", |_, s: &State| s.verdict.applied_is_chosen),
            Property::always("validity", |_, s: &State| s.verdict.validity),
            Property::always("no assertion fails, no promise is taken back", |_, s: &State| {
                s.verdict.unbroken
            }),
            Property::sometimes("a leader serves", |_, s: &State| s.seats.iter().any(|m| m.facts.serves)),
            Property::sometimes("the last slot is chosen", |_, s: &State| s.verdict.last_slot_chosen),
        ]
    }
}

impl State {
    /// Every vote that was ever durable: who cast it, where, under which ballot, for what.
    pub fn votes(&self) -> impl Iterator<Item = (MemberId, Slot, synod_paxos::Ballot, &bytes::Bytes)> {
        self.seats.iter().zip(1..).flat_map(|(seat, id)| {
            seat.facts.votes.iter().map(move |((slot, ballot), value)| (member(id), *slot, *ballot, value))
        })
    }
}
