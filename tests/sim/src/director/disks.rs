//! What goes wrong with members' disks, within what the design says is survivable.

use super::swarm::Trouble;
use super::{Director, Event};
use crate::action::Action;
use crate::disk_faults::DiskFault;
use crate::oracle::Violation;
use std::collections::BTreeSet;
use std::time::Duration;
use synod_paxos::system::SystemState;
use synod_paxos::{DurableState, MemberId, Slot};

impl Director {
    pub(super) fn tear(&mut self, victim: MemberId) -> Result<(), Violation> {
        let member = self.world.members.get(&victim);
        if !self.can_spare(victim) || member.is_none_or(|m| m.disk.syncing.is_empty()) {
            return Ok(());
        }
        self.crash(victim, true)?;
        let pause = self.random.between(Duration::from_millis(1), self.swarm.timeout * 2);
        self.schedule(pause, Event::Restart(victim));
        Ok(())
    }

    pub(super) fn disk_trouble(&mut self, trouble: Trouble, victim: MemberId) {
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

    pub(super) fn fill_disk(&mut self, victim: MemberId) -> Result<(), Violation> {
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
    pub(super) fn damage(&mut self, trouble: Trouble, victim: MemberId) -> Result<(), Violation> {
        if !self.can_spare(victim) {
            return Ok(());
        }
        if self.setup.files {
            return self.rot(victim);
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
            self.flip(victim, slot);
        } else if slot != other {
            self.record(|| Action::Misdirect { member: victim.0, slot: other.0, over: slot.0 });
            self.world.disk(victim, DiskFault::MisdirectedWrite, |m| m.disk.misdirect(other, slot));
        }
        match self.random.below(10) {
            // Mostly it is found when the member starts again.
            0..5 => self.crash_for_a_while(victim),
            5..7 => {
                self.record(|| Action::Scrub { member: victim.0, slot: slot.0 });
                self.world.scrub(victim, slot).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Bits of one member's files change, mostly while it does not run; of no other's, until it is gone.
    fn rot(&mut self, victim: MemberId) -> Result<(), Violation> {
        let other = self.rotten.filter(|rotten| *rotten != victim);
        let stays = |id: &MemberId| self.world.members.get(id).is_some_and(|member| !member.destroyed);
        if other.as_ref().is_some_and(stays) {
            return Ok(());
        }
        self.rotten = Some(victim);
        let lies_down = self.random.chance(600);
        if lies_down {
            self.crash_for_a_while(victim)?;
        }
        for _ in 0..1 + self.random.below(3) {
            let chance = self.random.below(u64::MAX);
            self.record(|| Action::FlipByte { member: victim.0, chance });
            self.world.disk(victim, DiskFault::FlippedByte, |m| m.disk.flip_byte(chance));
        }
        if !lies_down && self.random.chance(500) {
            self.record(|| Action::Scrub { member: victim.0, slot: 0 });
            self.world.scrub(victim, Slot(0))?;
        }
        Ok(())
    }

    /// Some byte of a stored row rots, or one of those without which the row is not found.
    fn flip(&mut self, victim: MemberId, slot: Slot) {
        let member = victim.0;
        let known = self.world.members.get(&victim).is_some_and(|m| slot <= m.disk.state().chosen_through);
        match self.random.below(4) {
            0 => {
                self.record(|| Action::FlipFlag { member, slot: slot.0 });
                self.world.disk(victim, DiskFault::FlippedFlag, |m| m.disk.flip_flag(slot));
            }
            1 if known => {
                self.record(|| Action::Lose { member, slot: slot.0 });
                self.world.disk(victim, DiskFault::LostRow, |m| m.disk.lose(slot));
            }
            _ => {
                self.record(|| Action::Flip { member, slot: slot.0 });
                self.world.disk(victim, DiskFault::FlippedRow, |m| m.disk.damage(slot));
            }
        }
    }

    /// From now on the disk acknowledges and does not keep; mostly a crash shows it soon.
    pub(super) fn lose_syncs(&mut self, victim: MemberId) -> Result<(), Violation> {
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
    pub(super) fn old_copy(&mut self, victim: MemberId) -> Result<(), Violation> {
        let Some(member) = self.world.members.get(&victim) else { return Ok(()) };
        let copy = member.disk.copy().cloned();
        let fenced = copy.is_some_and(|copy| self.would_be_fenced(victim, &copy));
        if !fenced || !self.can_spare(victim) || !self.others_are_well(victim) {
            self.record(|| Action::Copy { member: victim.0 });
            if let Some(member) = self.world.members.get_mut(&victim) {
                member.disk.put_copy_aside();
            }
            if self.random.chance(400) {
                // A backup that is put back at once lacks little.
                let soon = self.random.between(Duration::from_millis(1), self.swarm.timeout);
                self.schedule(soon, Event::Strike(victim, Some(Trouble::OldCopy)));
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
    pub(super) fn would_be_fenced(&self, id: MemberId, shown: &DurableState) -> bool {
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

    pub(super) fn wipe(&mut self, victim: MemberId) -> Result<(), Violation> {
        if self.can_spare(victim) && self.swarm.operator.is_some() {
            self.world.coverage.fault(DiskFault::Wiped);
            self.destroy(victim)?;
        }
        Ok(())
    }

    /// A member's state becomes another while it lies down.
    pub(super) fn diverge(&mut self, victim: MemberId) -> Result<(), Violation> {
        // On files it would be the engine's own fault.
        if self.setup.files || !self.can_spare(victim) || !self.others_are_well(victim) {
            return Ok(());
        }
        self.crash_for_a_while(victim)?;
        self.record(|| Action::Diverge { member: victim.0 });
        self.world.diverge(victim);
        Ok(())
    }
}
