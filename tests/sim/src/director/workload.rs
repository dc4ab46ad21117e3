//! The simulated applications' choices: what they ask, where, and when.

use super::{Director, Event};
use crate::action::{Action, Identity, Operation};
use crate::coverage::Rule;
use crate::oracle::Violation;
use std::time::Duration;

impl Director {
    pub(crate) fn think(&mut self, client: usize) {
        let pause = self.random.between(Duration::from_micros(200), self.swarm.think);
        self.schedule(pause, Event::Client(client));
    }

    /// A client without an open operation begins one at a random running member.
    pub(crate) fn client_turn(&mut self, client: usize) -> Result<(), Violation> {
        let state = &self.world.clients[client];
        if state.open.is_some() || (self.settling && state.unresolved.is_none()) {
            return Ok(());
        }
        let Some(&at) = self.random.pick(&self.world.running()) else {
            self.think(client);
            return Ok(());
        };
        let operation = self.new_operation(client);
        let full = self.conditions.get(&at).is_some_and(|condition| condition.full);
        if full && matches!(operation, Operation::Append { .. }) {
            // Refused before it reaches the core: nothing was done.
            self.world.coverage.rule(Rule::AppendDiskFull);
            self.think(client);
            return Ok(());
        }
        let request = self.new_request();
        self.record(|| Action::Call {
            client,
            member: at.0,
            request: request.0,
            operation: operation.clone(),
        });
        self.world.call(client, at, request, &operation)?;
        let patience = self.random.between(self.swarm.patience.0, self.swarm.patience.1);
        self.schedule(patience, Event::GiveUp { client, request });
        Ok(())
    }

    fn new_operation(&mut self, client: usize) -> Operation {
        if let Some(unresolved) = &self.world.clients[client].unresolved {
            return unresolved.operation.clone();
        }
        if self.random.chance(self.swarm.reads) {
            return self.new_read();
        }
        let seen = self.world.seen(client);
        if self.swarm.retention.is_some() && self.random.chance(60) {
            return Operation::SetCursor { index: seen };
        }
        let identity = match self.identities[client] {
            Identities::None => None,
            Identities::Keys => Some(Identity::Key { minted: seen }),
            Identities::Session => match self.world.clients[client].session {
                // Now and then a client forgets to close its session and begins another.
                Some((session, last)) if !self.random.chance(30) => {
                    Some(Identity::Session { session, sequence: last + 1 })
                }
                _ => return Operation::OpenSession,
            },
        };
        self.begun[client] += 1;
        let number = self.begun[client];
        let entries = if self.random.chance(self.swarm.several) { 3 } else { 1 };
        let expected = self.random.chance(self.swarm.conditions).then_some(seen);
        Operation::Append { number, entries, expected, identity }
    }

    fn new_read(&mut self) -> Operation {
        if self.random.chance(800) {
            return Operation::Read;
        }
        let bound = self.random.between(self.swarm.timeout / 20, self.swarm.timeout * 3);
        Operation::ReadStale { bound: u64::try_from(bound.as_nanos()).unwrap_or(0) }
    }

    /// Decides, once, which clients tell repeats by what.
    pub(crate) fn draw_identities(&mut self) {
        for client in 0..self.swarm.clients {
            let one = match (self.random.chance(self.swarm.identities), self.random.chance(500)) {
                (false, _) => Identities::None,
                (true, true) => Identities::Keys,
                (true, false) => Identities::Session,
            };
            self.identities[client] = one;
        }
    }
}

/// How a client tells repeats of its appends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Identities {
    /// Not at all.
    #[default]
    None,
    /// By keys.
    Keys,
    /// In a session.
    Session,
}
