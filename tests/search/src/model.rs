//! The states, the steps between them, and where a search begins.

use crate::known::{Known, Outcome, Seat};
use crate::mail::Mail;
use crate::member::{Event, Facts, History, Member};
use crate::print::{Depth, Print};
use crate::properties::{self, Verdict};
use bytes::Bytes;
use stateright::Property;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use synod_paxos::value::Value;
use synod_paxos::{DurableState, Genesis, MemberId, Message, Slot, WriteCounter};

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
    /// What makes it smaller.
    pub reductions: Reductions,
    /// Whether member 1 may ask for a vote for member 3.
    pub promote: bool,
}

/// What makes a search smaller, and hides nothing (docs of the crate, "Reductions").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reductions {
    /// Mail that can have no effect any more is thrown away.
    pub mail: bool,
    /// Once nobody crashes any more, what a member writes is durable before anything else happens.
    pub writes: bool,
    /// States are the same that differ only in traces that no rule of agreement follows.
    pub traces: bool,
    /// Members that propose nothing more are told apart as acceptors only.
    pub quiet: bool,
}

impl Reductions {
    /// All of them.
    pub const ALL: Reductions = Reductions { mail: true, writes: true, traces: true, quiet: true };
    /// None: a search that takes everything as it comes.
    pub const NONE: Reductions = Reductions { mail: false, writes: false, traces: false, quiet: false };
}

/// A cluster and the bounds of its search.
#[derive(Debug)]
pub struct Model {
    /// The bounds.
    pub bounds: Bounds,
    /// What `Initialize` gave to the founders.
    pub genesis: Genesis,
    pub(crate) disks: Vec<DurableState>,
    pub(crate) start: State,
    pub(crate) known: Known,
}

/// Where everyone stands, and what is under way.
#[derive(Clone, Debug)]
pub struct State {
    /// By member, from 1.
    pub seats: [Arc<Seat>; MEMBERS],
    /// By number; of a message that is sent again while it is under way there is one.
    pub(crate) mail: Vec<Mail>,
    pub(crate) timeouts: [u8; MEMBERS],
    pub(crate) crashes: u8,
    pub(crate) promotions: u8,
    /// What the properties say of it, and of where its members stood on the way from the last one.
    pub verdict: Verdict,
}

impl State {
    /// What tells a member apart in this state: less, once it proposes nothing more (docs of the crate, "quiet").
    fn key(&self, place: usize) -> (bool, u32) {
        let seat = &self.seats[place];
        if self.is_quiet(place, seat) { (true, seat.quiet) } else { (false, seat.number) }
    }

    /// Whether a member that stands at `seat` will never again send a Prepare, or an Accept within the bound.
    pub(crate) fn is_quiet(&self, place: usize, seat: &Seat) -> bool {
        seat.quiet != 0 && self.timeouts[place] == 0 && (seat.facts.proposes.is_none() || seat.spent)
    }

    fn parts(&self) -> impl PartialEq + Hash {
        let keys = [self.key(0), self.key(1), self.key(2)];
        (keys, self.timeouts, self.crashes, self.promotions, self.verdict.holds())
    }
}

impl PartialEq for State {
    fn eq(&self, other: &State) -> bool {
        self.parts() == other.parts() && self.mail == other.mail
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.parts().hash(hasher);
        self.mail.iter().for_each(|mail| mail.number().hash(hasher));
    }
}

/// One step.
#[derive(Clone, PartialEq)]
pub enum Action {
    /// A message arrives.
    Deliver(Mail),
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
            Action::Deliver(what) => write!(f, "deliver {what:?}"),
            Action::Persist(member) => write!(f, "persist {}", member.0),
            Action::Timeout(member) => write!(f, "timeout {}", member.0),
            Action::Crash(member) => write!(f, "crash   {}", member.0),
            Action::Promote => write!(f, "promote 3"),
        }
    }
}

pub(crate) fn member(n: u64) -> MemberId {
    MemberId(n)
}

/// How many members every search has.
pub(crate) const MEMBERS: usize = 3;

pub(crate) fn everyone() -> impl Iterator<Item = MemberId> {
    (1..=MEMBERS as u64).map(member)
}

/// Where a member is found in a state.
pub(crate) fn place(id: MemberId) -> usize {
    id.0 as usize - 1
}

impl Model {
    /// Lets something happen to a member, and takes what it sends.
    pub(crate) fn happen(&self, state: &mut State, id: MemberId, event: &Event) {
        let outcome = self.outcome(&state.seats[place(id)], id, event);
        self.take(state, id, &outcome);
    }

    fn take(&self, state: &mut State, id: MemberId, outcome: &Outcome) {
        state.seats[place(id)] = outcome.seat.clone();
        outcome.sent.iter().for_each(|mail| self.post(state, mail.clone()));
    }

    /// What `event` does to a member, worked out once for each seat.
    pub(crate) fn outcome(&self, seat: &Seat, id: MemberId, event: &Event) -> Arc<Outcome> {
        // On the way to the start members have no number yet.
        let Some(code) = event.code().filter(|_| seat.number != 0) else {
            return Arc::new(self.carry_out(seat, id, event.clone()));
        };
        let key = (seat.number, code);
        self.known.outcome(key).unwrap_or_else(|| {
            let outcome = Arc::new(self.carry_out(seat, id, event.clone()));
            self.known.note_outcome(key, outcome.clone());
            outcome
        })
    }

    /// The same, and all that the member then writes becomes durable at once.
    pub(crate) fn settled(&self, seat: &Seat, id: MemberId, event: &Event) -> Arc<Outcome> {
        let key = (seat.number, event.code().unwrap_or(u32::MAX));
        self.known.settled(key).unwrap_or_else(|| {
            let mut last = self.outcome(seat, id, event);
            let (mut sent, mut between) = (last.sent.clone(), Vec::new());
            while last.seat.facts.writes && last.seat.facts.broken.is_none() {
                between.push(last.seat.clone());
                last = self.outcome(&last.seat.clone(), id, &Event::Persist);
                sent.extend(last.sent.iter().cloned());
            }
            // What is judged before and after need not be judged in between.
            let ends = [seat.facts_number, last.seat.facts_number];
            between.retain(|seat| !ends.contains(&seat.facts_number));
            let outcome = Arc::new(Outcome { seat: last.seat.clone(), sent, between });
            self.known.note_settled(key, outcome.clone());
            outcome
        })
    }

    fn carry_out(&self, seat: &Seat, id: MemberId, event: Event) -> Outcome {
        let history = History::with(seat.history.clone(), event);
        let searching = seat.number != 0;
        let built = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let member = Member::build(&self.disks[place(id)], history.as_ref());
            (self.seat(&member, history.clone(), searching), member.sent)
        }));
        let (seat, mut sent) = built.unwrap_or_else(|panic| {
            let why = panic.downcast_ref::<String>().cloned();
            let why = why.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            let facts = Facts { broken: Some(why.unwrap_or_default()), ..seat.facts.clone() };
            (Seat { number: u32::MAX, facts_number: u32::MAX, history, facts, ..Seat::default() }, Vec::new())
        });
        // Nobody remembers a write of anybody: two histories that end alike may have counted differently.
        sent.iter_mut().for_each(|incoming| incoming.counters.written = WriteCounter(0));
        let mail =
            |incoming| if searching { Mail::of(incoming, &self.known) } else { Mail::new(0, incoming) };
        Outcome { seat: Arc::new(seat), sent: sent.into_iter().map(mail).collect(), between: Vec::new() }
    }

    pub(crate) fn seat(&self, member: &Member, history: Option<Arc<History>>, searching: bool) -> Seat {
        let facts = member.facts();
        if !searching {
            return Seat { history, facts, ..Seat::default() };
        }
        let number = |depth| self.known.number(member.print(depth));
        let Reductions { traces, quiet, .. } = self.bounds.reductions;
        // Its own votes under the ballot that it proposes under: it votes for whatever it proposes.
        let own = facts.votes.iter().filter(|((_, under), _)| Some(*under) == facts.proposes);
        let spent = own.clone().any(|((slot, _), _)| slot.0 >= self.bounds.slots);
        let starts = |value: &Bytes| match Value::decode(value.clone()) {
            Ok(Value::LeaderStart { ballot }) => Some(ballot) == facts.proposes,
            _ => false,
        };
        let settled = spent || own.clone().any(|(_, value)| starts(value));
        Seat {
            number: number(if traces { Depth::Full } else { Depth::Traces }),
            late: number(Depth::Late),
            quiet: if quiet && !self.bounds.promote { number(Depth::Quiet) } else { 0 },
            facts_number: self.known.number(facts.print(Slot(u64::MAX))),
            bounded: facts.print(Slot(self.bounds.slots)),
            spent,
            settled,
            history,
            facts,
        }
    }

    /// Lets something happen to a member. Once nobody crashes any more, what it writes is durable before anything
    /// else happens: then the write could only be waited for.
    fn step(&self, state: &mut State, id: MemberId, event: &Event) {
        if state.crashes > 0 || self.bounds.slow_disks || !self.bounds.reductions.writes {
            return self.happen(state, id, event);
        }
        let outcome = self.settled(&state.seats[place(id)], id, event);
        for seat in &outcome.between {
            state.seats[place(id)] = seat.clone();
            self.judge(state);
        }
        self.take(state, id, &outcome);
    }

    /// How many different triples of what members have voted for and applied, within the bound, were judged, and a sum
    /// that tells whether two searches judged the same.
    pub fn judged(&self) -> (usize, u128) {
        self.known.judged()
    }

    /// Judges a state by what its members have voted for and applied, once for each such triple.
    pub(crate) fn judge(&self, state: &mut State) {
        let [one, two, three] = [0, 1, 2].map(|place| state.seats[place].facts_number);
        let key = (one, two, three);
        let verdict = self.known.verdict(key).unwrap_or_else(|| {
            let verdict = properties::judge(self, state);
            let mut bounded = Print::default();
            state.seats.iter().for_each(|seat| bounded.bytes(&seat.bounded.to_le_bytes()));
            self.known.note_verdict(key, verdict, bounded.finish());
            verdict
        });
        state.verdict = state.verdict.and(verdict);
    }

    fn post(&self, state: &mut State, mail: Mail) {
        let incoming = mail.incoming();
        if matches!(incoming.message, Message::Hello { .. } | Message::Welcome { .. }) {
            // Answered at once.
            return self.happen(state, incoming.to, &Event::Message(mail));
        }
        if state.seats[0].number == 0 {
            // On the way to the start, everything travels, in order.
            return state.mail.push(mail);
        }
        if mail.travels(&self.bounds)
            && let Err(at) = state.mail.binary_search_by_key(&mail.number(), Mail::number)
        {
            state.mail.insert(at, mail);
        }
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
        let busy = |id: &MemberId| state.seats[place(*id)].facts.writes;
        if let Some(id) = everyone().find(|id| busy(id) && !self.bounds.slow_disks) {
            actions.push(Action::Persist(id));
            if state.crashes > 0 {
                actions.push(Action::Crash(id));
            }
            return;
        }
        actions.extend(state.mail.iter().cloned().map(Action::Deliver));
        for id in everyone() {
            if busy(&id) {
                actions.push(Action::Persist(id));
            }
            if state.timeouts[place(id)] > 0 {
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
        state.verdict = Verdict::HOLDS;
        let actor = match action {
            Action::Deliver(mail) => {
                let to = mail.incoming().to;
                state.mail.retain(|other| *other != mail);
                self.step(&mut state, to, &Event::Message(mail));
                Some(to)
            }
            Action::Persist(id) => {
                self.step(&mut state, id, &Event::Persist);
                Some(id)
            }
            Action::Timeout(id) => {
                state.timeouts[place(id)] -= 1;
                self.step(&mut state, id, &Event::Timeout);
                Some(id)
            }
            Action::Crash(id) => {
                state.crashes -= 1;
                self.happen(&mut state, id, &Event::Reboot);
                for other in everyone().filter(|other| *other != id) {
                    self.happen(&mut state, id, &Event::Connected(other));
                }
                None
            }
            Action::Promote => {
                state.promotions -= 1;
                self.happen(&mut state, member(1), &Event::Promote(member(3)));
                // A client's call is behind it: the slots in the window are not no-ops only.
                self.happen(&mut state, member(1), &Event::Append(1));
                None
            }
        };
        self.purge(&mut state, actor);
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
