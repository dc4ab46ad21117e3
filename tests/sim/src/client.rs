//! Simulated applications: each does one operation after the other at one member, and gives up after a while.

use crate::faults::Fault;
use crate::oracle::{Outcome, Violation};
use crate::world::{Event, World};
use bytes::Bytes;
use std::time::Duration;
use synod_paxos::value::{self, Append};
use synod_paxos::{Consistency, Index, Input, MemberId, Refusal, RequestId};

/// What a client asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Append these payloads, on the condition that the last index is the expected one.
    Append {
        /// Unique in the run.
        entries: Vec<Bytes>,
        /// The condition.
        expected: Option<Index>,
    },
    /// A linearizable read of the last index.
    Read,
}

/// An operation that is not answered.
#[derive(Clone, Debug)]
pub struct Open {
    /// At which member.
    pub at: MemberId,
    /// Its name there.
    pub request: RequestId,
    /// What.
    pub operation: Operation,
    /// When it began.
    pub begun: u64,
    /// The highest index that any answer given before it began had shown.
    pub floor: Index,
}

/// One application.
#[derive(Debug, Default)]
pub struct Client {
    /// The operation under way.
    pub open: Option<Open>,
    /// Operations begun.
    pub begun: u64,
    /// The last index it has seen.
    pub seen: Index,
}

/// A payload that stands once in a run.
pub fn payload(client: usize, number: u64, part: usize) -> Bytes {
    Bytes::from(format!("c{client}-{number}-{part}"))
}

impl World {
    pub(crate) fn client_pause(&mut self, client: usize) {
        let pause = self.random.between(Duration::from_micros(200), Duration::from_millis(25));
        self.schedule(pause, Event::Client(client));
    }

    /// A client without an open operation begins one at a random running member.
    pub(crate) fn client_turn(&mut self, client: usize) -> Result<(), Violation> {
        if self.settling || self.clients[client].open.is_some() {
            return Ok(());
        }
        let Some(&at) = self.random.pick(&self.running()) else {
            self.client_pause(client);
            return Ok(());
        };
        let request = self.new_request();
        let operation = self.new_operation(client);
        let floor = self.oracle.floor();
        let input = match &operation {
            Operation::Append { entries, expected } => {
                let append = Append { expected_index: *expected, ..Append::plain(entries.clone()) };
                Input::Call { request, operation: value::Operation::Append(append) }
            }
            Operation::Read => Input::Read { request, consistency: Consistency::Linearizable },
        };
        self.trace.line(self.now, || format!("client {client} at {at:?} {request:?}: {operation:?}"));
        self.clients[client].open = Some(Open { at, request, operation, begun: self.now, floor });
        let patience = self.random.between(self.patience.0, self.patience.1);
        self.schedule(patience, Event::GiveUp { client, request });
        self.input(at, input)
    }

    fn new_operation(&mut self, client: usize) -> Operation {
        self.clients[client].begun += 1;
        if self.random.chance(200) {
            return Operation::Read;
        }
        let number = self.clients[client].begun;
        let count = if self.random.chance(150) { 3 } else { 1 };
        let entries = (0..count).map(|part| payload(client, number, part)).collect();
        let expected = self.random.chance(100).then(|| self.clients[client].seen);
        Operation::Append { entries, expected }
    }

    pub(crate) fn give_up(&mut self, client: usize, request: RequestId) -> Result<(), Violation> {
        let Some(open) = self.clients[client].open.as_ref().filter(|open| open.request == request) else {
            return Ok(());
        };
        let at = open.at;
        self.faults.add(Fault::ClientTimeout);
        self.input(at, Input::Cancel(request))?;
        // A member that answers nothing even to this is one that has nothing to say any more.
        if let Some(open) = self.clients[client].open.take_if(|open| open.request == request) {
            self.oracle.answered(&open, &Outcome::Unknown)?;
            self.client_pause(client);
        }
        Ok(())
    }

    pub(crate) fn answer(
        &mut self,
        id: MemberId,
        request: RequestId,
        outcome: &Outcome,
    ) -> Result<(), Violation> {
        let waits = |c: &Client| c.open.as_ref().is_some_and(|o| o.request == request && o.at == id);
        let Some(client) = self.clients.iter().position(waits) else { return Ok(()) };
        let Some(open) = self.clients[client].open.take() else { return Ok(()) };
        self.trace.step(self.now, 4, client as u64, request.0);
        self.trace.line(self.now, || format!("client {client} {request:?} gets {outcome:?}"));
        let seen = match outcome {
            Outcome::Appended(_, last) => *last,
            Outcome::Read(index) => *index,
            Outcome::Refused(Refusal::UnexpectedIndex { tail }) => *tail,
            Outcome::Refused(_) | Outcome::Unknown => Index(0),
        };
        let known = &mut self.clients[client].seen;
        *known = (*known).max(seen);
        self.oracle.answered(&open, outcome)?;
        self.note_served(&open.operation, outcome, open.begun);
        self.client_pause(client);
        Ok(())
    }
}
