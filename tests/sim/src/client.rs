//! Simulated applications: each does one operation after the other at one member, and gives up after a while.

use crate::action::Operation;
use crate::coverage::Rule;
use crate::faults::Fault;
use crate::history::Event;
use crate::oracle::{Outcome, Violation};
use crate::world::{Effect, World};
use bytes::Bytes;
use synod_paxos::value::{self, Append};
use synod_paxos::{Consistency, Index, Input, MemberId, Refusal, RequestId};

/// An operation that is not answered.
#[derive(Clone, Debug)]
pub struct Open {
    /// At which member.
    pub at: MemberId,
    /// Its name there.
    pub request: RequestId,
    /// What.
    pub operation: Operation,
    /// The payloads, if it appends.
    pub entries: Vec<Bytes>,
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
    /// The last index it has seen.
    pub seen: Index,
}

/// A payload that stands once in a run.
pub fn payload(client: usize, number: u64, part: usize) -> Bytes {
    Bytes::from(format!("c{client}-{number}-{part}"))
}

impl World {
    /// A client without an open operation begins one. Returns whether it did.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn call(
        &mut self,
        client: usize,
        at: MemberId,
        request: RequestId,
        operation: &Operation,
    ) -> Result<bool, Violation> {
        if self.clients.get(client).is_none_or(|c| c.open.is_some()) || !self.is_running(at) {
            return Ok(false);
        }
        let floor = self.oracle.floor();
        let mut payloads = Vec::new();
        let input = match operation {
            Operation::Append { number, entries, expected } => {
                payloads = (0..*entries).map(|part| payload(client, *number, part)).collect();
                let expected_index = expected.map(Index);
                {
                    let append = Append { expected_index, ..Append::plain(payloads.clone()) };
                    Input::Call { request, operation: value::Operation::Append(append) }
                }
            }
            Operation::Read => Input::Read { request, consistency: Consistency::Linearizable },
        };
        self.trace.step(self.now, 5, client as u64, request.0);
        self.trace.line(self.now, || format!("client {client} at {at:?} {request:?}: {operation:?}"));
        let open =
            Open { at, request, operation: operation.clone(), entries: payloads, begun: self.now, floor };
        self.clients[client].open = Some(open);
        self.input(at, input)?;
        Ok(true)
    }

    /// A client gives up. Returns whether it was still waiting.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn cancel(&mut self, client: usize, request: RequestId) -> Result<bool, Violation> {
        let Some(client_state) = self.clients.get_mut(client) else { return Ok(false) };
        let Some(open) = client_state.open.as_ref().filter(|open| open.request == request) else {
            return Ok(false);
        };
        let at = open.at;
        self.coverage.fault(Fault::ClientTimeout);
        self.input(at, Input::Cancel(request))?;
        // A member that answers nothing even to this is one that has nothing to say any more.
        if self.clients[client].open.as_ref().is_some_and(|open| open.request == request) {
            self.close(client, &Outcome::Unknown)?;
        }
        Ok(true)
    }

    pub(crate) fn answer(
        &mut self,
        id: MemberId,
        request: RequestId,
        outcome: &Outcome,
    ) -> Result<(), Violation> {
        let waits = |c: &Client| c.open.as_ref().is_some_and(|o| o.request == request && o.at == id);
        match self.clients.iter().position(waits) {
            Some(client) => self.close(client, outcome),
            None => Ok(()),
        }
    }

    /// The operation of `client` came to `outcome`.
    pub(crate) fn close(&mut self, client: usize, outcome: &Outcome) -> Result<(), Violation> {
        let Some(open) = self.clients[client].open.take() else { return Ok(()) };
        self.trace.step(self.now, 4, client as u64, open.request.0);
        self.trace.line(self.now, || format!("client {client} {:?} gets {outcome:?}", open.request));
        self.count_answer(outcome, &open);
        let seen = match outcome {
            Outcome::Appended(_, last) => *last,
            Outcome::Read(index) => *index,
            Outcome::Refused(Refusal::UnexpectedIndex { tail }) => *tail,
            Outcome::Refused(_) | Outcome::Unknown => Index(0),
        };
        let known = &mut self.clients[client].seen;
        *known = (*known).max(seen);
        self.oracle.answered(&open, outcome)?;
        if matches!(outcome, Outcome::Appended(..)) {
            self.last_append_served = self.last_append_served.max(Some(open.begun));
        }
        if let Some(history) = &mut self.history {
            history.push(Event::of(client, &open, outcome, self.now));
        }
        self.effects.push(Effect::Answered(client));
        Ok(())
    }

    fn count_answer(&mut self, outcome: &Outcome, open: &Open) {
        let read = open.operation == Operation::Read;
        self.coverage.rule(match outcome {
            Outcome::Appended(..) => Rule::AppendAcknowledged,
            Outcome::Read(_) => Rule::ReadAnswered,
            Outcome::Refused(_) if read => Rule::ReadRefused,
            Outcome::Unknown if read => Rule::ReadRefused,
            Outcome::Refused(Refusal::UnexpectedIndex { .. }) => Rule::AppendUnexpected,
            Outcome::Refused(Refusal::NotActive(_)) => Rule::AppendNotActive,
            Outcome::Refused(_) => Rule::AppendNoLeader,
            Outcome::Unknown => Rule::AppendUnknown,
        });
    }
}
