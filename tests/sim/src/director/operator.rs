//! The simulated operator: adds, promotes, removes and replaces members, one step at a time, and moves the leader.

use super::{Director, Event};
use crate::action::{Action, Change, Command};
use crate::faults::Fault;
use crate::oracle::Violation;
use std::collections::BTreeSet;
use std::time::Duration;
use synod_paxos::MemberId;
use synod_paxos::limits;
use synod_paxos::status::Role;

/// What the operator does next. It decides from statuses that it can see, as a real one does.
#[derive(Debug, Default)]
pub(crate) struct Operator {
    operations: u64,
    /// Joined, and to be added.
    joiner: Option<MemberId>,
    /// Whose removal it has asked for.
    removals: BTreeSet<MemberId>,
    /// What it asked for last.
    last: Option<Command>,
}

/// Voters that the operator keeps the cluster between.
const SMALLEST: usize = 3;
const LARGEST: usize = 7;

impl Operator {
    /// Whether it has asked for that member's removal.
    pub(crate) fn is_removing(&self, id: MemberId) -> bool {
        self.removals.contains(&id)
    }

    /// Whether it is adding that member.
    pub(crate) fn is_adding(&self, id: MemberId) -> bool {
        self.joiner == Some(id)
    }
}

impl Director {
    pub(crate) fn operate_and_go_on(&mut self) -> Result<(), Violation> {
        let Some(pace) = self.swarm.operator.filter(|_| !self.settling) else { return Ok(()) };
        self.destroy_retired()?;
        self.operate()?;
        let pause = self.random.between(pace / 8, pace * 2);
        self.schedule(pause, Event::Operate);
        Ok(())
    }

    /// One step: whatever is possible now, chosen by chance.
    fn operate(&mut self) -> Result<(), Violation> {
        let Some(leader) = self.serving_leader() else { return Ok(()) };
        if let Some(last) = self.operator.last.clone().filter(|_| self.random.chance(100)) {
            // It did not hear the answer.
            self.world.met(Fault::RepeatedChange);
            return self.admin(leader, last);
        }
        let Some(system) = self.world.node(leader).and_then(|n| n.system()) else { return Ok(()) };
        let configuration = system.configurations.latest().clone();
        let learner = configuration.members.iter().find(|(_, m)| !m.voter).map(|(id, _)| *id);
        let voters: Vec<MemberId> = configuration.voters().collect();
        let joiner = self.operator.joiner.filter(|j| !configuration.members.contains_key(j));
        let lost = voters.iter().copied().find(|v| self.is_lost(*v));
        let (change, subject) = match (learner, joiner) {
            (Some(member), _) if self.is_lost(member) => (Change::Remove, member),
            (Some(member), _) => (Change::Promote, member),
            (None, Some(member)) if self.is_lost(member) => {
                self.operator.joiner = None;
                return Ok(());
            }
            // A joiner is added once its disk knows the cluster; until then it is told again.
            (None, Some(member)) if !self.disk_belongs(member) => return self.admin(member, Command::Join),
            (None, Some(member)) => (Change::AddLearner, member),
            (None, None)
                if voters.len() < LARGEST && (voters.len() <= SMALLEST || self.random.chance(450)) =>
            {
                return self.start_joiner();
            }
            (None, None) => match lost {
                Some(member) => (Change::Remove, member),
                None if self.random.chance(250) => return self.transfer(leader, &voters),
                None => match self.random.pick(&voters) {
                    Some(&member) if voters.len() > SMALLEST && self.may_remove(member, &voters) => {
                        (Change::Remove, member)
                    }
                    _ => return Ok(()),
                },
            },
        };
        self.change(leader, configuration.version, change, subject)
    }

    fn change(
        &mut self,
        leader: MemberId,
        version: u64,
        change: Change,
        subject: MemberId,
    ) -> Result<(), Violation> {
        self.world.met(match change {
            Change::AddLearner => Fault::AddLearner,
            Change::Promote => Fault::Promote,
            Change::Remove => Fault::Remove,
        });
        self.operator.operations += 1;
        let operation = self.operator.operations;
        let stale = self.random.chance(60) && version > 1;
        let version = if stale { version - 1 } else { version };
        if stale {
            // Planned from what it had seen before the last change.
            self.world.met(Fault::StaleChange);
        }
        if change == Change::Remove {
            self.operator.removals.insert(subject);
        }
        let name = self.odd_name(change);
        let command = Command::Change { version, operation, change, subject: subject.0, name };
        self.operator.last = Some(command.clone());
        let competes = self.random.chance(80);
        self.admin(leader, command)?;
        if competes {
            self.compete(version)?;
        }
        Ok(())
    }

    /// A second operator, with another plan from the same version, at whatever member it finds.
    fn compete(&mut self, version: u64) -> Result<(), Violation> {
        let running = self.world.running();
        let Some(&at) = self.random.pick(&running) else { return Ok(()) };
        let Some(voters) = self.world.configurations().pop() else { return Ok(()) };
        let Some(&subject) = self.random.pick(&voters) else { return Ok(()) };
        if voters.len() <= SMALLEST || !self.may_remove(subject, &voters) {
            return Ok(());
        }
        self.world.met(Fault::CompetingChange);
        self.operator.removals.insert(subject);
        self.operator.operations += 1;
        let operation = self.operator.operations;
        let (change, subject) = (Change::Remove, subject.0);
        self.admin(at, Command::Change { version, operation, change, subject, name: None })
    }

    /// Now and then a new member's name has as many bytes as a name may have, one less, or one more.
    fn odd_name(&mut self, change: Change) -> Option<u32> {
        if change != Change::AddLearner || !self.random.chance(250) {
            return None;
        }
        self.world.met(Fault::NameAtBound);
        let bound = u32::try_from(limits::NAME_BYTES).unwrap_or(u32::MAX);
        self.random.pick(&[0, 1, bound - 1, bound, bound + 1, bound * 300]).copied()
    }

    /// A careful operator removes no member while the rest would lack a live quorum.
    fn may_remove(&self, member: MemberId, voters: &[MemberId]) -> bool {
        let well = |v: &&MemberId| self.world.is_running(**v) && !self.is_impaired(**v);
        let live = voters.iter().filter(|v| **v != member).filter(well).count();
        live > (voters.len() - 1) / 2
    }

    fn start_joiner(&mut self) -> Result<(), Violation> {
        let id = self.mint()?;
        self.operator.joiner = Some(id);
        self.start(id)?;
        self.admin(id, Command::Join)
    }

    fn disk_belongs(&self, id: MemberId) -> bool {
        self.world.members.get(&id).is_some_and(|m| m.disk.state().joined.is_some())
    }

    fn transfer(&mut self, leader: MemberId, voters: &[MemberId]) -> Result<(), Violation> {
        let others: Vec<MemberId> = voters.iter().copied().filter(|v| *v != leader).collect();
        let to = self.random.pick(&others).map(|m| m.0);
        self.world.met(Fault::TransferLeader);
        self.admin(leader, Command::Transfer { to })
    }

    /// Leadership is to move, to a certain member or to whoever is best.
    pub(crate) fn transfer_somewhere(&mut self) -> Result<(), Violation> {
        let Some(leader) = self.serving_leader() else { return Ok(()) };
        let voters = self.world.configurations().pop().unwrap_or_default();
        if self.random.chance(300) {
            self.world.met(Fault::TransferLeader);
            return self.admin(leader, Command::Transfer { to: None });
        }
        self.transfer(leader, &voters)
    }

    /// Removed members whose retirement the leader confirms lose their disks, as an operator deletes claims; sooner or
    /// later.
    fn destroy_retired(&mut self) -> Result<(), Violation> {
        let Some(leader) = self.serving_leader() else { return Ok(()) };
        let Some(member) = self.world.members.get(&leader) else { return Ok(()) };
        let local = member.clock.local(self.world.now);
        let Some(status) = member.node.as_ref().map(|n| n.status(local)) else { return Ok(()) };
        if status.lease {
            self.world.coverage.rule(crate::coverage::Rule::LeaseHeld);
        }
        for removed in status.removed {
            let gone = self.world.members.get(&removed.member).is_none_or(|m| m.destroyed);
            if !removed.retired || gone {
                continue;
            }
            if self.random.chance(self.swarm.deletes) {
                self.destroy(removed.member)?;
            } else if self.random.chance(200) {
                // Its pod comes back on the volume that was left.
                self.crash_for_a_while(removed.member)?;
            }
        }
        Ok(())
    }

    pub(crate) fn destroy(&mut self, id: MemberId) -> Result<(), Violation> {
        self.record(|| Action::Destroy { member: id.0 });
        self.world.destroy(id).map(drop)
    }

    /// A member that says it leads and is ready to serve; the highest ballot if there are several.
    pub(crate) fn serving_leader(&self) -> Option<MemberId> {
        let serving = self.world.members.values().filter_map(|member| {
            let node = member.node.as_ref()?;
            (node.role() == Role::Leader).then_some((node.promised(), member.id))
        });
        serving.max().map(|(_, id)| id)
    }

    /// How long an operator waits before its first step.
    pub(crate) fn hire_operator(&mut self) {
        if self.swarm.operator.is_some() {
            self.schedule(Duration::from_millis(2_000), Event::Operate);
        }
    }
}
