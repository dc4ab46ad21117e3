//! What the director does to the members: one trouble after the other, within what the design says is survivable.

use super::network::{Link, Weather};
use super::swarm::Trouble;
use super::{Condition, Director, Event};
use crate::action::{Action, Command};
use crate::disk_faults::DiskFault;
use crate::faults::Fault;
use crate::oracle::Violation;
use std::collections::BTreeSet;
use std::time::Duration;
use synod_paxos::status::MemberState;
use synod_paxos::system::SystemState;
use synod_paxos::{DurableState, MemberId, Slot};

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
        if self.is_blank(victim) {
            // Nothing is known of it yet: an operator would simply make another.
            return Ok(());
        }
        match trouble {
            Trouble::Crash => self.crash_for_a_while(victim),
            Trouble::TornWrite => self.tear(victim),
            Trouble::PowerLoss => self.power_loss(),
            Trouble::Isolate | Trouble::OneWay | Trouble::Split | Trouble::PartialCut | Trouble::Hub => {
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
            || !member.disk.damaged().is_empty()
    }

    /// Every configuration in force or pending keeps a quorum of members in order without this one; so does the
    /// one that the operator is about to make.
    fn can_spare(&self, id: MemberId) -> bool {
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
    fn crash(&mut self, victim: MemberId, torn: bool) -> Result<(), Violation> {
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

    fn tear(&mut self, victim: MemberId) -> Result<(), Violation> {
        let member = self.world.members.get(&victim);
        if !self.can_spare(victim) || member.is_none_or(|m| m.disk.syncing.is_empty()) {
            return Ok(());
        }
        self.crash(victim, true)?;
        let pause = self.random.between(Duration::from_millis(1), self.swarm.timeout * 2);
        self.schedule(pause, Event::Restart(victim));
        Ok(())
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

    fn power_loss(&mut self) -> Result<(), Violation> {
        self.world.met(Fault::PowerLoss);
        for id in self.world.running() {
            self.crash(id, false)?;
            let pause = self.random.between(self.swarm.timeout / 10, self.swarm.timeout);
            self.schedule(pause, Event::Restart(id));
        }
        Ok(())
    }

    fn cut_some(&mut self, trouble: Trouble, victim: MemberId, running: &[MemberId]) {
        let (fault, permille) = match trouble {
            Trouble::Isolate => (Fault::Isolation, 1_000),
            Trouble::OneWay => (Fault::OneWayCut, 600),
            Trouble::Split => (Fault::Partition, 1_000),
            Trouble::Hub => (Fault::HubTopology, 1_000),
            _ => (Fault::PartialPartition, 350),
        };
        self.world.met(fault);
        let side: BTreeSet<MemberId> = running.iter().copied().filter(|_| self.random.chance(500)).collect();
        let mut links: Vec<Link> = Vec::new();
        for &a in running {
            for &b in running.iter().filter(|b| **b != a) {
                let concerned = match trouble {
                    Trouble::Isolate => a == victim || b == victim,
                    Trouble::OneWay => a == victim,
                    Trouble::Split => side.contains(&a) != side.contains(&b),
                    Trouble::Hub => a != victim && b != victim,
                    _ => true,
                };
                if concerned && self.random.chance(permille) {
                    links.push((a, b));
                }
            }
        }
        let breaks = self.random.chance(500);
        for &link in &links {
            self.network.cut(link);
            if breaks {
                let delay = self.random.between(Duration::from_micros(100), self.swarm.timeout);
                self.schedule(delay, Event::Connection { at: link.0, peer: link.1, stands: false });
            }
        }
        self.note(victim, || {
            let links: Vec<String> = links.iter().map(|(a, b)| format!("{}>{}", a.0, b.0)).collect();
            format!("{}: cut {}", fault.name(), links.join(" "))
        });
        let lasting = self.random.between(self.swarm.timeout / 5, self.swarm.lasting);
        self.schedule(lasting, Event::Mend(links));
    }

    pub(crate) fn mend(&mut self, links: &[Link]) {
        for &(a, b) in links {
            if self.network.mend((a, b)) {
                let delay = self.random.between(Duration::from_millis(1), Duration::from_millis(50));
                self.schedule(delay, Event::Connection { at: a, peer: b, stands: true });
                self.schedule(delay, Event::Connection { at: b, peer: a, stands: true });
            }
        }
        self.note(MemberId::NONE, || format!("{} links are mended", links.len()));
    }

    fn bad_weather(&mut self) {
        let weather = Weather {
            drop: self.random.below(200),
            duplicate: self.random.below(200),
            delay: self.random.below(250),
        };
        self.network.weather = weather;
        self.note(MemberId::NONE, || {
            let Weather { drop, duplicate, delay } = weather;
            format!("weather: of 1000 messages {drop} lost, {duplicate} doubled, {delay} late")
        });
        let lasting = self.random.between(self.swarm.timeout / 2, self.swarm.lasting);
        self.schedule(lasting, Event::Clear);
    }

    fn disk_trouble(&mut self, trouble: Trouble, victim: MemberId) {
        let (now, timeout) = (self.world.now, self.swarm.timeout);
        let lasting = self.random.between(timeout / 5, self.swarm.lasting);
        let until = now + u64::try_from(lasting.as_nanos()).unwrap_or(0);
        let floor = self.random.between(timeout / 100, timeout / 2);
        let condition = self.condition(victim);
        let fault = match trouble {
            Trouble::SlowDisk => {
                condition.sync_floor = floor;
                DiskFault::Slow
            }
            Trouble::StallDisk => {
                condition.stalled_until = until;
                DiskFault::Stalled
            }
            _ => {
                condition.fails = true;
                DiskFault::FailedWrite
            }
        };
        if trouble != Trouble::FailWrite {
            self.world.coverage.fault(fault);
            self.schedule(lasting, Event::DiskInOrder(victim));
        }
        self.note(victim, || format!("disk: {}", fault.name()));
    }

    /// The transaction under way ends: it is durable, or it fails and the process ends with it.
    pub(crate) fn synced(&mut self, member: MemberId) -> Result<(), Violation> {
        if self.conditions.get(&member).is_some_and(|c| c.fails) {
            self.condition(member).fails = false;
            self.world.coverage.fault(DiskFault::FailedWrite);
            return self.crash_for_a_while(member);
        }
        self.record(|| Action::Synced { member: member.0 });
        self.world.synced(member).map(drop)
    }

    fn fill_disk(&mut self, victim: MemberId) -> Result<(), Violation> {
        let lasting = self.random.between(self.swarm.timeout / 5, self.swarm.lasting);
        self.condition(victim).full = true;
        self.world.coverage.fault(DiskFault::Full);
        self.note(victim, || "disk: full".into());
        self.schedule(lasting, Event::DiskInOrder(victim));
        if self.random.chance(250) {
            // It cannot start either before there is space.
            self.world.coverage.fault(DiskFault::FullBeyondReserve);
            self.crash(victim, false)?;
            self.schedule(lasting, Event::Restart(victim));
        }
        Ok(())
    }

    /// A row of one member rots or is written over: no other member's row of that slot is damaged already.
    fn damage(&mut self, trouble: Trouble, victim: MemberId) -> Result<(), Violation> {
        if !self.can_spare(victim) {
            return Ok(());
        }
        let Some(member) = self.world.members.get(&victim) else { return Ok(()) };
        let slots: Vec<Slot> = match self.random.chance(700) {
            // Mostly where it matters: rows that a start reads.
            true => member.disk.rows().range(member.disk.state().applied.next()..).map(|(s, _)| *s).collect(),
            false => member.disk.rows().keys().copied().collect(),
        };
        let (Some(&slot), Some(&other)) = (self.random.pick(&slots), self.random.pick(&slots)) else {
            return Ok(());
        };
        let elsewhere = self.world.members.values().any(|m| m.disk.damaged().contains(&slot));
        if elsewhere {
            return Ok(());
        }
        if trouble == Trouble::Flip {
            self.record(|| Action::Flip { member: victim.0, slot: slot.0 });
            self.world.disk(victim, DiskFault::FlippedRow, |m| m.disk.damage(slot));
        } else if slot != other {
            self.record(|| Action::Misdirect { member: victim.0, slot: other.0, over: slot.0 });
            self.world.disk(victim, DiskFault::MisdirectedWrite, |m| m.disk.misdirect(other, slot));
        }
        // What only this member knows to be chosen heals when it starts anew and another takes over.
        let known_elsewhere = self
            .world
            .members
            .values()
            .any(|m| m.id != victim && !self.is_lost(m.id) && m.disk.state().chosen_through >= slot);
        if known_elsewhere { Ok(()) } else { self.crash_for_a_while(victim) }
    }

    /// From now on the disk acknowledges and does not keep; mostly a crash shows it soon.
    fn lose_syncs(&mut self, victim: MemberId) -> Result<(), Violation> {
        if !self.can_spare(victim) || !self.others_are_well(victim) {
            return Ok(());
        }
        self.record(|| Action::LoseSyncs { member: victim.0 });
        if let Some(member) = self.world.members.get_mut(&victim) {
            member.disk.lose_syncs();
        }
        self.note(victim, || "disk: syncs are not kept from now on".into());
        let boot = self.world.members.get(&victim).map_or(0, |m| m.boot);
        let soon = self.random.between(self.swarm.timeout / 10, self.swarm.timeout * 3);
        self.schedule(soon, Event::Crash(victim, boot, false));
        Ok(())
    }

    /// A copy is put aside; or a member's volume comes back as the copy that was.
    fn old_copy(&mut self, victim: MemberId) -> Result<(), Violation> {
        let Some(member) = self.world.members.get(&victim) else { return Ok(()) };
        let copy = member.disk.copy().cloned();
        let fenced = copy.is_some_and(|copy| self.would_be_fenced(victim, &copy));
        if !fenced || !self.can_spare(victim) || !self.others_are_well(victim) {
            self.record(|| Action::Copy { member: victim.0 });
            if let Some(member) = self.world.members.get_mut(&victim) {
                member.disk.put_copy_aside();
            }
            return Ok(());
        }
        self.crash(victim, false)?;
        self.record(|| Action::Restore { member: victim.0 });
        self.world.restore(victim);
        let pause = self.random.between(Duration::from_millis(1), self.swarm.timeout);
        self.schedule(pause, Event::Restart(victim));
        Ok(())
    }

    fn others_are_well(&self, id: MemberId) -> bool {
        let voters: BTreeSet<MemberId> = self.world.configurations().into_iter().flatten().collect();
        voters.iter().all(|v| *v == id || !self.is_impaired(*v))
    }

    /// Whether every quorum that can let a member back in, on a disk that shows `shown`, has somebody whose own
    /// disk remembers more of it than a start on that disk will show.
    fn would_be_fenced(&self, id: MemberId, shown: &DurableState) -> bool {
        let newest = |state: &DurableState| {
            SystemState::decode(state.system.clone()).ok().map(|s| s.configurations.latest().version)
        };
        let current = self.world.members.values().filter_map(|m| m.node.as_ref()?.system());
        let current = current.map(|s| s.configurations.latest().version).max();
        if shown.genesis.is_none() || newest(shown).is_none() || newest(shown) != current {
            return false;
        }
        let (boot, written) = (shown.incarnation.next(), shown.written.next());
        let remembers = |member: &MemberId| {
            self.world.members.get(member).is_some_and(|m| {
                let known = m.disk.kept().unwrap_or(m.disk.state()).peers.get(&id).copied();
                known.is_some_and(|known| known.incarnation > boot || known.written > written)
            })
        };
        self.world.configurations().iter().all(|voters| {
            let others: Vec<&MemberId> = voters.iter().filter(|v| **v != id).collect();
            let knowing = others.iter().filter(|v| remembers(v)).count();
            let needed = voters.len() / 2 + 1 - usize::from(voters.contains(&id));
            others.len() - knowing < needed
        })
    }

    fn wipe(&mut self, victim: MemberId) -> Result<(), Violation> {
        if self.can_spare(victim) && self.swarm.operator.is_some() {
            self.world.coverage.fault(DiskFault::Wiped);
            self.destroy(victim)?;
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
        let boot = self.world.members.get(&victim).map_or(0, |m| m.boot);
        let grace = self.random.between(self.swarm.timeout / 10, self.swarm.timeout * 2);
        self.schedule(grace, Event::Crash(victim, boot, false));
        Ok(())
    }

    /// Mends everything: the network, machines, disks, and starts what lies down.
    pub(crate) fn heal(&mut self) -> Result<(), Violation> {
        self.settling = true;
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
