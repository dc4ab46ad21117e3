//! What the director does to the members: one trouble after the other, within what the design says is survivable.

use super::swarm::Trouble;
use super::{Condition, Director, Event};
use crate::action::{Action, Command};
use crate::faults::Fault;
use crate::oracle::Violation;
use std::collections::BTreeSet;
use std::time::Duration;
use synod_paxos::MemberId;
use synod_paxos::status::MemberState;
use synod_paxos::system::SystemState;

impl Director {
    /// Some trouble comes, and the next is scheduled.
    pub(crate) fn trouble(&mut self) -> Result<(), Violation> {
        if self.settling {
            return Ok(());
        }
        let pause = self.random.between(self.swarm.pace.0, self.swarm.pace.1);
        self.schedule(pause, Event::Trouble);
        let running = self.world.running();
        let Some(&victim) = self.random.pick(&running) else { return Ok(()) };
        let Some(trouble) = self.swarm.trouble(&mut self.random) else { return Ok(()) };
        self.strike(victim, trouble)
    }

    /// A member comes to a turning point: what is half done then is what trouble finds out about.
    pub(crate) fn moment(&mut self, member: MemberId) {
        if self.settling {
            return;
        }
        if self.network.holds_some() && self.random.chance(self.swarm.releases) {
            self.release(|(from, to)| from == member || to == member);
        }
        if self.random.chance(self.swarm.moments) {
            let soon = self.random.between(Duration::ZERO, self.swarm.near * 4);
            self.schedule(soon, Event::Strike(member, None));
        }
    }

    /// Trouble comes to a certain member.
    pub(crate) fn strike_at(&mut self, victim: MemberId, named: Option<Trouble>) -> Result<(), Violation> {
        if self.settling || !self.world.is_running(victim) {
            return Ok(());
        }
        match named.or_else(|| self.swarm.trouble(&mut self.random)) {
            Some(trouble) => self.strike(victim, trouble),
            None => Ok(()),
        }
    }

    fn strike(&mut self, victim: MemberId, trouble: Trouble) -> Result<(), Violation> {
        let running = self.world.running();
        if self.is_blank(victim) {
            // Nothing is known of it yet: an operator would simply make another.
            return Ok(());
        }
        match trouble {
            Trouble::Crash => self.crash_for_a_while(victim),
            Trouble::TornWrite => self.tear(victim),
            Trouble::PowerLoss => self.power_loss(),
            Trouble::Isolate
            | Trouble::OneWay
            | Trouble::Split
            | Trouble::PartialCut
            | Trouble::Hub
            | Trouble::Chain => {
                self.cut_some(trouble, victim, &running);
                Ok(())
            }
            Trouble::Weather => {
                self.bad_weather();
                Ok(())
            }
            Trouble::SlowDisk | Trouble::StallDisk | Trouble::FailWrite => {
                self.disk_trouble(trouble, victim);
                Ok(())
            }
            Trouble::FullDisk => self.fill_disk(victim),
            Trouble::Flip | Trouble::Misdirect => self.damage(trouble, victim),
            Trouble::LoseSyncs => self.lose_syncs(victim),
            Trouble::OldCopy => self.old_copy(victim),
            Trouble::Wipe => self.wipe(victim),
            Trouble::Pause | Trouble::Suspend => {
                self.pause(trouble, victim);
                Ok(())
            }
            Trouble::Jump => {
                let by = self.random.between(Duration::from_millis(1), self.swarm.timeout * 3);
                let by = u64::try_from(by.as_nanos()).unwrap_or(0);
                self.record(|| Action::Jump { member: victim.0, by });
                self.world.jump(victim, by).map(drop)
            }
            Trouble::Drain => self.drain(victim),
            Trouble::Hold => {
                self.hold(victim, &running);
                Ok(())
            }
            Trouble::Flap => {
                self.begin_flapping(victim, &running);
                Ok(())
            }
            Trouble::Transfer => self.transfer_somewhere(),
            Trouble::Diverge => self.diverge(victim),
        }
    }

    fn is_blank(&self, id: MemberId) -> bool {
        let Some(member) = self.world.members.get(&id) else { return true };
        member.node.as_ref().is_some_and(|node| *node.member_state() == MemberState::Uninitialized)
    }

    /// Its volume is gone, or is worth nothing any more: it is to be replaced.
    pub(crate) fn is_lost(&self, id: MemberId) -> bool {
        self.world.members.get(&id).is_none_or(|m| m.destroyed || m.disk.state().fenced.is_some())
    }

    /// It may not be able to do its part in a quorum, for longer than a restart takes.
    pub(crate) fn is_impaired(&self, id: MemberId) -> bool {
        let Some(member) = self.world.members.get(&id) else { return true };
        self.is_lost(id)
            || member.disk.kept().is_some()
            || self.world.rolled_back.contains(&id)
            || self.world.diverged.contains(&id)
            || !member.disk.damaged().is_empty()
            || member.disk.is_rotten()
    }

    /// Every configuration in force or pending keeps a quorum of members in order without this one; so does the
    /// one that the operator is about to make.
    pub(super) fn can_spare(&self, id: MemberId) -> bool {
        let mut configurations = self.world.configurations();
        let Some(newest) = configurations.last().cloned() else { return false };
        let mut larger: BTreeSet<MemberId> = newest.iter().copied().collect();
        larger.extend(self.world.members.keys().copied().filter(|m| self.is_on_its_way(*m)));
        // A member that knows less, or would after a restart, still needs a quorum of what was in force there.
        for member in self.world.members.values().filter(|m| !self.is_lost(m.id)) {
            let held = member.disk.kept().unwrap_or(member.disk.state());
            let Ok(system) = SystemState::decode(held.system.clone()) else { continue };
            if system.configurations.latest().members.contains_key(&member.id) {
                let needed = system.configurations.from(held.chosen_through.next());
                configurations.extend(needed.map(|c| c.voters().collect::<Vec<_>>()));
            }
        }
        for voters in [newest, larger.into_iter().collect::<Vec<_>>()] {
            // At worst those are removed that are well, and those that are lost stay.
            let stay = |m: &MemberId| *m == id || self.is_impaired(*m) || !self.operator.is_removing(*m);
            configurations.push(voters.iter().copied().filter(stay).collect());
            configurations.push(voters);
        }
        configurations.iter().all(|voters| {
            let well = voters.iter().filter(|v| **v != id && !self.is_impaired(**v)).count();
            well > voters.len() / 2
        })
    }

    /// It is no voter yet, and may become one.
    fn is_on_its_way(&self, id: MemberId) -> bool {
        let learns = self.world.members.values().filter_map(|m| m.node.as_ref()?.system()).any(|system| {
            system.configurations.latest().members.get(&id).is_some_and(|member| !member.voter)
        });
        learns || self.operator.is_adding(id)
    }

    pub(crate) fn crash_for_a_while(&mut self, victim: MemberId) -> Result<(), Violation> {
        self.crash(victim, false)?;
        let longest = self.swarm.timeout * if self.random.chance(300) { 6 } else { 1 };
        let pause = self.random.between(Duration::from_millis(1), longest);
        self.schedule(pause, Event::Restart(victim));
        Ok(())
    }

    /// Ends a process; any prefix of what is on its way to the disk may be there.
    pub(super) fn crash(&mut self, victim: MemberId, torn: bool) -> Result<(), Violation> {
        let syncing = self.world.members.get(&victim).map_or(0, |m| m.disk.syncing.len());
        let kept = match self.random.below(3) {
            0 => 0,
            1 => syncing,
            _ => usize::try_from(self.random.below(syncing as u64 + 1)).unwrap_or(0),
        };
        let lying = self.world.members.get(&victim).and_then(|m| m.disk.kept().cloned());
        if lying.is_some_and(|kept| !self.would_be_fenced(victim, &kept)) {
            self.record(|| Action::KeepSyncs { member: victim.0 });
            if let Some(member) = self.world.members.get_mut(&victim) {
                member.disk.keep_syncs();
            }
        }
        self.record(|| Action::Crash { member: victim.0, kept, torn });
        self.world.crash(victim, kept, torn).map(drop)
    }

    pub(crate) fn restart(&mut self, id: MemberId) -> Result<(), Violation> {
        let Some(member) = self.world.members.get(&id) else { return Ok(()) };
        if member.destroyed || member.node.is_some() {
            return Ok(());
        }
        if self.world.rolled_back.contains(&id) && !self.would_be_fenced(id, &member.disk.state().clone()) {
            // Beyond what counters can see by now: such a volume is not let in again.
            return self.destroy(id);
        }
        self.start(id)?;
        if !self.settling && self.random.chance(120) {
            let boot = self.world.members.get(&id).map_or(0, |m| m.boot);
            let soon = self.random.between(Duration::from_micros(100), Duration::from_millis(60));
            self.schedule(soon, Event::Crash(id, boot, true));
        }
        Ok(())
    }

    /// A person has looked at a member that stopped by itself: it starts again.
    pub(crate) fn reopen(&mut self, id: MemberId) -> Result<(), Violation> {
        let Some(member) = self.world.members.get(&id) else { return Ok(()) };
        let state = member.node.as_ref().map(|n| n.status(member.clock.local(self.world.now)).state);
        if matches!(state, Some(MemberState::Halted(_))) {
            self.crash(id, false)?;
            self.schedule(Duration::from_millis(1), Event::Restart(id));
        }
        Ok(())
    }

    fn power_loss(&mut self) -> Result<(), Violation> {
        self.world.met(Fault::PowerLoss);
        for id in self.world.running() {
            self.crash(id, false)?;
            let pause = self.random.between(self.swarm.timeout / 10, self.swarm.timeout);
            self.schedule(pause, Event::Restart(id));
        }
        Ok(())
    }

    fn pause(&mut self, trouble: Trouble, victim: MemberId) {
        let timeout = self.swarm.timeout;
        let (fault, span) = match trouble {
            Trouble::Pause => (Fault::Pause, (timeout / 50, timeout * 3 / 2)),
            _ => (Fault::Suspend, (timeout * 2, timeout * 8)),
        };
        self.world.met(fault);
        let span = self.random.between(span.0, span.1);
        let until = self.world.now + u64::try_from(span.as_nanos()).unwrap_or(0);
        self.condition(victim).paused_until = until;
        self.note(victim, || format!("{} for {} ms", fault.name(), span.as_millis()));
        if fault == Fault::Suspend {
            for peer in self.world.running() {
                if peer != victim {
                    let delay = self.random.between(timeout / 2, timeout * 2);
                    self.schedule(delay, Event::Connection { at: peer, peer: victim, stands: false });
                    self.schedule(span + delay, Event::Connection { at: peer, peer: victim, stands: true });
                }
            }
        }
    }

    fn drain(&mut self, victim: MemberId) -> Result<(), Violation> {
        self.world.met(Fault::Drain);
        self.admin(victim, Command::PrepareStop)?;
        // A drain may be called off: the member stays, and must not wait for a stop for ever.
        if self.random.chance(250) {
            return Ok(());
        }
        let boot = self.world.members.get(&victim).map_or(0, |m| m.boot);
        let grace = self.random.between(self.swarm.timeout / 10, self.swarm.timeout * 2);
        self.schedule(grace, Event::Crash(victim, boot, false));
        Ok(())
    }

    /// Mends everything: the network, machines, disks, and starts what lies down.
    pub(crate) fn heal(&mut self) -> Result<(), Violation> {
        self.settling = true;
        self.release(|_| true);
        self.network.heal();
        let members: Vec<MemberId> = self.world.members.keys().copied().collect();
        for id in &members {
            *self.condition(*id) = Condition::default();
            self.record(|| Action::KeepSyncs { member: id.0 });
            if let Some(member) = self.world.members.get_mut(id) {
                member.disk.keep_syncs();
            }
        }
        self.note(MemberId::NONE, || "everything is mended".into());
        for id in &members {
            self.schedule(Duration::ZERO, Event::Restart(*id));
            if self.world.is_running(*id) {
                self.connect(*id);
            }
        }
        Ok(())
    }
}
