//! What the core tells about itself.

use super::Node;
use crate::genesis::Genesis;
use crate::status::{MemberState, PeerStatus, RemovedMember, Role, Status};
use crate::types::{Ballot, Index, Instant, MemberId, Slot};
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

impl Node {
    /// The core's view, for status calls and metrics.
    pub fn status(&self, now: Instant) -> Status {
        let system = self.system.as_ref();
        Status {
            member: self.me,
            incarnation: self.incarnation,
            state: self.life.clone(),
            cluster: self.cluster(),
            genesis: self.genesis.as_ref().map(Genesis::digest).or(self.joined.map(|(_, digest)| digest)),
            role: self.role(),
            promised: self.promised,
            leader: self.election.leader,
            fencing_epoch: system.and_then(|s| s.newest_leader()).map_or(Slot(0), |(slot, _)| slot),
            recoveries: system.map_or(0, |s| s.recoveries),
            trim_through: self.trim_through,
            chosen_through: self.chosen_through,
            durable_through: self.disk.chosen_durable(),
            applied: system.map_or(Slot(0), |s| s.applied),
            last_index: system.map_or(Index(0), |s| s.last_index),
            first_index: self.first_index(),
            settings: system.map(|s| s.settings),
            lease: self.proposer.is_some() && self.has_lease(now),
            reads_under_lease: self.reads.under_lease,
            snapshot_through: self.snapshots.durable_through(),
            session_rows: system.map_or(0, |s| s.sessions.rows()),
            chain: system.map_or(0, |s| s.chain),
            caught_up_once: self.catch_up.caught_up_once()
                || self.proposer.as_ref().is_some_and(|p| p.is_serving()),
            damaged: self.wanted.slots.union(&self.damaged).copied().collect(),
            peers: self.peer_statuses(now),
            removed: self.removed_members(),
            waiting_appends: self.appends.len(),
            unwritten_bytes: self.disk.backlog(),
        }
    }

    /// The first index whose row this member has not deleted.
    fn first_index(&self) -> Index {
        let Some(system) = &self.system else { return Index(1) };
        // A snapshot that was installed stands at a mark; the trim to it is applied a few slots later.
        let mark = system.marks.iter().find(|mark| mark.slot == self.trim_through);
        mark.map_or(system.trim.index, |mark| mark.index).next()
    }

    /// The prefix that is on disk and known there to be chosen; cheaper than the whole status.
    pub fn durable_through(&self) -> Slot {
        self.disk.chosen_durable()
    }

    /// Values that wait for this disk, in bytes; cheaper than the whole status.
    pub fn unwritten_bytes(&self) -> usize {
        self.disk.backlog()
    }

    /// Bytes of this disk's snapshots that are in memory: of one at most, and of one more while it heals.
    pub fn snapshot_bytes(&self) -> usize {
        self.snapshots.bytes()
    }

    /// The ballot of the leader it knows; cheaper than the whole status.
    pub fn leader(&self) -> Option<Ballot> {
        self.election.leader
    }

    /// Whether it takes part; cheaper than the whole status.
    pub fn member_state(&self) -> &MemberState {
        &self.life
    }

    /// The highest ballot it has promised; cheaper than the whole status.
    pub fn promised(&self) -> Ballot {
        self.promised
    }

    /// The ballot of its vote in `slot`, as far as it holds votes in memory: for all slots above what it has applied.
    pub fn vote(&self, slot: Slot) -> Option<Ballot> {
        self.rows.get(&slot).map(|row| row.ballot)
    }

    /// What it does in its configuration; cheaper than the whole status.
    pub fn role(&self) -> Role {
        let Some(system) = self.system.as_ref().filter(|_| self.life == MemberState::Active) else {
            return Role::None;
        };
        match &self.proposer {
            Some(proposer) if proposer.is_serving() => return Role::Leader,
            Some(_) => return Role::Candidate,
            None => {}
        }
        match system.configurations.at(self.chosen_through.next()).members.get(&self.me) {
            None => match system.configurations.latest().members.contains_key(&self.me) {
                true => Role::Learner,
                false => Role::None,
            },
            Some(member) if member.voter => Role::Follower,
            Some(_) => Role::Learner,
        }
    }

    fn peer_statuses(&self, now: Instant) -> Vec<PeerStatus> {
        let mut members: BTreeSet<MemberId> = self.peers.keys().copied().collect();
        if let Some(system) = &self.system {
            members.extend(system.configurations.latest().members.keys());
        }
        members.remove(&self.me);
        let leader = self.proposer.as_ref().filter(|p| p.is_leading());
        let status = |member: MemberId| {
            let progress = leader.and_then(|p| p.progress.get(&member));
            PeerStatus {
                member,
                incarnation: self.peers.get(&member).copied().unwrap_or_default().incarnation,
                connected: self.connected.contains(&member),
                durable_through: progress.map_or(Slot(0), |p| p.durable_through),
                silent: progress.and_then(|p| p.silent_for(now)),
                caught_up: progress.is_some_and(|p| p.caught_up),
            }
        };
        members.into_iter().map(status).collect()
    }

    fn removed_members(&self) -> Vec<RemovedMember> {
        let Some(system) = &self.system else { return Vec::new() };
        let removals = system.configurations.all().iter().filter_map(|c| c.removed.as_ref().map(|r| (c, r)));
        removals
            .map(|(configuration, (member, name))| RemovedMember {
                member: *member,
                name: name.clone(),
                version: configuration.version,
                retired: self.is_retired(configuration),
            })
            .collect()
    }
}
