//! The simulated applications' choices: what they ask, where, and when.

use super::swarm::Trouble;
use super::{Director, Event};
use crate::action::{Action, Identity, Operation, Wanted};
use crate::coverage::Rule;
use crate::faults::Fault;
use crate::oracle::Violation;
use std::time::Duration;
use synod_paxos::{MemberId, Settings, limits};

impl Director {
    pub(crate) fn think(&mut self, client: usize) {
        let pause = match client < self.swarm.clients {
            true => self.random.between(Duration::from_micros(200), self.swarm.think),
            false => self.random.between(self.swarm.heartbeat / 4, self.swarm.heartbeat * 6),
        };
        self.schedule(pause, Event::Client(client));
    }

    /// A client without an open operation begins one at a random running member.
    pub(crate) fn client_turn(&mut self, client: usize) -> Result<(), Violation> {
        let state = &self.world.clients[client];
        if state.open.is_some() || (self.settling && state.unresolved.is_none()) {
            return Ok(());
        }
        let Some(at) = self.choose_member(client) else {
            self.think(client);
            return Ok(());
        };
        let operation = self.new_operation(client, at);
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

    /// Some clients stay with a member as long as it runs, whatever becomes of it; others ask anyone.
    fn choose_member(&mut self, client: usize) -> Option<MemberId> {
        // In the end only a member that takes part can answer.
        let serves = |home: &MemberId| {
            let votes = || self.world.configurations().iter().any(|voters| voters.contains(home));
            !self.settling || votes() && !self.is_lost(*home)
        };
        let home = self.homes[client].filter(|home| self.world.is_running(*home)).filter(serves);
        if let Some(home) = home.filter(|_| !self.random.chance(10)) {
            return Some(home);
        }
        let at = self.random.pick(&self.world.running()).copied();
        let stays = client >= self.swarm.clients
            || (client as u64) * 1_000 < self.swarm.bound * (self.swarm.clients as u64);
        self.homes[client] = at.filter(|_| stays);
        at
    }

    fn new_operation(&mut self, client: usize, at: MemberId) -> Operation {
        if let Some(unresolved) = &self.world.clients[client].unresolved {
            return unresolved.operation.clone();
        }
        if client >= self.swarm.clients || self.random.chance(self.swarm.reads) {
            return self.new_read();
        }
        let seen = self.world.seen(client);
        if self.swarm.retention.is_some() && self.random.chance(60) {
            return Operation::SetCursor { index: seen };
        }
        if self.random.chance(self.swarm.checkpoints) {
            return Operation::SaveCheckpoint { index: seen };
        }
        if self.random.chance(self.swarm.settings)
            && let Some(change) = self.new_settings(at)
        {
            return change;
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

    /// One of the settings becomes another, seldom from a version that has passed.
    fn new_settings(&mut self, at: MemberId) -> Option<Operation> {
        let held = self.world.node(at)?.system()?.settings;
        let mut wanted = Wanted::of(&held);
        if held.format_level < Settings::FORMAT_LEVEL && self.random.chance(500) {
            wanted.format_level += 1;
            return Some(Operation::ChangeSettings { version: held.version, wanted });
        }
        match self.random.below(5) {
            0 => {
                let (heartbeat, timeout) = *self.random.pick(&[(20, 200), (50, 500), (100, 1_000)])?;
                (wanted.heartbeat, wanted.timeout) = (heartbeat * 1_000_000, timeout * 1_000_000);
            }
            // A lease rests on clocks that do not jump.
            1 if self.swarm.leases => wanted.leases = !wanted.leases,
            // A snapshot would carry a state that differs to others.
            2 if self.swarm.weights[Trouble::Diverge as usize] == 0 => {
                wanted.retention = *self.random.pick(&[None, Some(8), Some(40)])?;
            }
            3 => {
                self.world.met(Fault::SettingAtBound);
                return self.setting_at_bound(&held);
            }
            _ => wanted.session_rows = *self.random.pick(&[16, 200, 100_000])?,
        }
        let version = if self.random.chance(100) { held.version.saturating_sub(1) } else { held.version };
        Some(Operation::ChangeSettings { version, wanted })
    }

    /// One of the settings at a bound, one below or one above it. Those that a run could not go on with are not asked for.
    fn setting_at_bound(&mut self, held: &Settings) -> Option<Operation> {
        let mut wanted = Wanted::of(held);
        let rows = u32::try_from(limits::SESSION_ROWS).unwrap_or(u32::MAX);
        match self.random.below(5) {
            0 => wanted.heartbeat = *self.random.pick(&[0, 1, 19_999_999, 20_000_000])?,
            1 => {
                wanted.timeout = *self.random.pick(&[
                    0,
                    wanted.heartbeat * 10 - 1,
                    wanted.heartbeat * 10,
                    60_000_000_001,
                    u64::MAX,
                ])?
            }
            2 => wanted.session_rows = *self.random.pick(&[0, 15, 16, 17, rows - 1, rows, rows + 1])?,
            3 => wanted.session_idle = *self.random.pick(&[999_999_999, u64::MAX - 1, u64::MAX])?,
            _ => wanted.chain_interval = *self.random.pick(&[0, 1 << 20, (1 << 20) + 1, u32::MAX])?,
        }
        Some(Operation::ChangeSettings { version: held.version, wanted })
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
