//! The simulated applications' choices: what they ask, where, and when.

use super::{Director, Event};
use crate::action::{Action, Operation};
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
        if self.settling || self.world.clients[client].open.is_some() {
            return Ok(());
        }
        let Some(&at) = self.random.pick(&self.world.running()) else {
            self.think(client);
            return Ok(());
        };
        let operation = self.new_operation(client);
        let full = self.conditions.get(&at).is_some_and(|condition| condition.full);
        if full && operation != Operation::Read {
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
        if self.random.chance(self.swarm.reads) {
            return Operation::Read;
        }
        self.begun[client] += 1;
        let number = self.begun[client];
        let entries = if self.random.chance(self.swarm.several) { 3 } else { 1 };
        let expected = self.random.chance(self.swarm.conditions).then(|| self.world.seen(client));
        Operation::Append { number, entries, expected }
    }
}
