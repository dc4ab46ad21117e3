//! The simulated operator: adds, promotes and removes members, one step at a time, and moves the leader.

use crate::faults::Fault;
use crate::world::World;
use synod_paxos::configuration::Change;
use synod_paxos::status::Role;
use synod_paxos::{AdminCommand, MemberId};

/// What the operator does next. It decides from statuses that it can see, as a real one does.
#[derive(Debug, Default)]
pub struct Operator {
    operations: u64,
    /// Joined, and to be added.
    joiner: Option<MemberId>,
}

/// Members that the operator keeps the cluster between.
const SMALLEST: usize = 1;
const LARGEST: usize = 7;

impl World {
    /// One step: whatever is possible now, chosen by chance.
    pub(crate) fn operate(&mut self) {
        let Some(leader) = self.serving_leader() else { return };
        let Some(system) = self.node(leader).and_then(|n| n.system()) else { return };
        let configuration = system.configurations.latest().clone();
        let learner = configuration.members.iter().find(|(_, m)| !m.voter).map(|(id, _)| *id);
        let voters: Vec<MemberId> = configuration.voters().collect();
        let joiner = self.operator.joiner.filter(|j| !configuration.members.contains_key(j));
        let change = match (learner, joiner) {
            (Some(member), _) => Change::Promote { member },
            // A joiner is added once its disk knows the cluster; until then it is told again.
            (None, Some(member)) if !self.disk_belongs(member) => return self.tell_to_join(member),
            (None, Some(member)) => Change::AddLearner { member, name: format!("{member}") },
            (None, None)
                if voters.len() < LARGEST && (voters.len() <= SMALLEST || self.random.chance(450)) =>
            {
                return self.start_joiner();
            }
            (None, None) if self.random.chance(250) => return self.transfer(leader, &voters),
            (None, None) if voters.len() > SMALLEST => match self.random.pick(&voters) {
                Some(&member) if self.may_remove(member, &voters) => Change::Remove { member },
                _ => return,
            },
            (None, None) => return,
        };
        self.faults.add(match change {
            Change::AddLearner { .. } => Fault::AddLearner,
            Change::Promote { .. } => Fault::Promote,
            Change::Remove { .. } => Fault::Remove,
        });
        self.operator.operations += 1;
        let mut operation = [0; 16];
        operation[..8].copy_from_slice(&self.operator.operations.to_le_bytes());
        let cluster = self.cluster;
        let expected_version = configuration.version;
        self.admin(leader, AdminCommand::Change { cluster, expected_version, operation, change });
    }

    /// A careful operator removes no member while the rest would lack a live quorum.
    fn may_remove(&self, member: MemberId, voters: &[MemberId]) -> bool {
        let live = voters.iter().filter(|v| **v != member && self.is_running(**v)).count();
        live > (voters.len() - 1) / 2
    }

    fn start_joiner(&mut self) {
        let id = self.mint();
        self.add_member(id);
        self.start(id);
        self.tell_to_join(id);
        self.operator.joiner = Some(id);
    }

    fn tell_to_join(&mut self, id: MemberId) {
        let (cluster, digest) = (self.cluster, self.genesis.digest());
        self.admin(id, AdminCommand::Join { cluster, digest });
    }

    fn disk_belongs(&self, id: MemberId) -> bool {
        self.members.get(&id).is_some_and(|m| m.disk.durable().joined.is_some())
    }

    fn transfer(&mut self, leader: MemberId, voters: &[MemberId]) {
        let others: Vec<MemberId> = voters.iter().copied().filter(|v| *v != leader).collect();
        let to = self.random.pick(&others).copied();
        self.faults.add(Fault::TransferLeader);
        let cluster = self.cluster;
        self.admin(leader, AdminCommand::TransferLeader { cluster, to });
    }

    /// Removed members whose retirement the leader confirms lose their disks, as an operator deletes claims.
    pub(crate) fn destroy_retired(&mut self) {
        let Some(leader) = self.serving_leader() else { return };
        let now = self.now;
        let Some(member) = self.members.get(&leader) else { return };
        let local = member.local(now);
        let Some(status) = member.node.as_ref().map(|n| n.status(local)) else { return };
        for removed in status.removed {
            if removed.retired && self.random.chance(700) {
                self.destroy(removed.member);
            }
        }
        if self.operator.joiner.is_some_and(|j| self.members.get(&j).is_none_or(|m| m.destroyed)) {
            self.operator.joiner = None;
        }
    }

    /// A member that says it leads and is ready to serve; the highest ballot if there are several.
    pub(crate) fn serving_leader(&self) -> Option<MemberId> {
        let now = self.now;
        let serving = self.members.values().filter_map(|member| {
            let status = member.node.as_ref()?.status(member.local(now));
            (status.role == Role::Leader).then_some((status.promised, member.id))
        });
        serving.max().map(|(_, id)| id)
    }
}
