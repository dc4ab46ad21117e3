//! Writes down what a director does, as steps that a replay can do again.

use crate::action::{Action, Step};
use crate::coverage::MessageKind;
use std::collections::BTreeMap;
use synod_paxos::Incoming;

/// A message on its way, and how many copies of it.
#[derive(Debug)]
struct Flight {
    number: u64,
    copies: usize,
}

/// The steps so far, and the messages on their way: a step names a message by its place among those.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    steps: Vec<Step>,
    flights: BTreeMap<(u64, u64, MessageKind), Vec<Flight>>,
    last: u64,
}

impl Recorder {
    /// The steps.
    pub(super) fn into_steps(self) -> Vec<Step> {
        self.steps
    }

    /// Something happened.
    pub(super) fn note(&mut self, at: u64, action: Action) {
        self.steps.push(Step { at, action });
    }

    /// A message left, of which so many copies will arrive or be lost. Returns its number.
    pub(super) fn sent(&mut self, at: u64, incoming: &Incoming, copies: usize) -> u64 {
        self.last += 1;
        let key = (incoming.from.0, incoming.to.0, MessageKind::of(&incoming.message));
        let flights = self.flights.entry(key).or_default();
        if copies == 0 {
            let nth = flights.len();
            let (from, to, kind) = key;
            self.note(at, Action::Drop { from, to, kind, nth });
        } else {
            flights.push(Flight { number: self.last, copies });
        }
        self.last
    }

    /// A copy arrived, or was lost on its way.
    pub(super) fn ended(&mut self, at: u64, incoming: &Incoming, number: u64, arrived: bool) {
        let (from, to, kind) = (incoming.from.0, incoming.to.0, MessageKind::of(&incoming.message));
        let Some(flights) = self.flights.get_mut(&(from, to, kind)) else { return };
        let Some(nth) = flights.iter().position(|flight| flight.number == number) else { return };
        flights[nth].copies -= 1;
        let again = flights[nth].copies > 0;
        if !again {
            flights.remove(nth);
        }
        match (arrived, again) {
            (true, _) => self.note(at, Action::Deliver { from, to, kind, nth, again }),
            (false, false) => self.note(at, Action::Drop { from, to, kind, nth }),
            (false, true) => {}
        }
    }
}
