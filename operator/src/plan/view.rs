//! What the observations add up to: who lives where, who is alive, who leads.
//!
//! A member is where it answers; a member that does not answer is where its claim says, and failing that
//! where the configuration says it was added. Addresses and ordinals are never identities.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use k8s_openapi::jiff::Timestamp;

use crate::crd::OperationType;
use crate::names::{ClusterId, MemberId};
use crate::observed::{Config, MemberState, Observed, Peer, Removed, Report};
use crate::validate::Desired;

use super::{Gate, GateKind, Operation, Step};

/// The observations of one reconcile, put together.
pub struct View<'a> {
    /// What is wanted.
    pub desired: &'a Desired,
    /// What was read.
    pub observed: &'a Observed,
    /// The log, once status names it.
    pub cluster: Option<ClusterId>,
    /// The ordinal that leads, and its report.
    pub leader: Option<(u32, &'a Report)>,
    /// The newest configuration any member of this log has applied.
    pub config: Option<&'a Config>,
    /// Where configured and reporting members live.
    pub homes: BTreeMap<MemberId, u32>,
    /// Members that take part, as the leader reports it, and are not about to go. Without a leader: those
    /// that say so themselves.
    pub live: BTreeSet<MemberId>,
}

impl<'a> View<'a> {
    /// Puts the observations together.
    pub fn new(desired: &'a Desired, observed: &'a Observed) -> View<'a> {
        let cluster = observed.status.cluster_id.as_deref().and_then(|id| ClusterId::from_str(id).ok());
        let of_cluster = |r: &&Report| cluster.is_some() && r.cluster == cluster;
        let leader = observed
            .reports
            .iter()
            .filter(|(_, r)| of_cluster(r) && r.leads && r.state == MemberState::Active)
            .max_by_key(|(_, r)| r.ballot)
            .map(|(o, r)| (*o, r));
        // A leader's configuration is the newest there is; without one the newest known must do.
        let config = leader.and_then(|(_, r)| r.config.as_ref()).or_else(|| {
            let known = observed.reports.values().filter(of_cluster).filter_map(|r| r.config.as_ref());
            known.max_by_key(|c| c.version)
        });
        let homes = homes(desired, observed, config);
        let going = |member: &MemberId| {
            let pod = homes.get(member).and_then(|ordinal| observed.pods.get(ordinal));
            pod.is_some_and(|p| p.deleting)
        };
        let told: BTreeSet<MemberId> = match leader {
            // The leader counts whom it hears: a member that answers the operator may be cut off from it.
            Some((_, r)) if !planted!(LiveByAnswer) => {
                let peers = r.peers.iter().filter(|p| p.connected).map(|p| p.member);
                std::iter::once(r.member).chain(peers).collect()
            }
            _ => observed
                .reports
                .values()
                .filter(|r| of_cluster(r) && r.state == MemberState::Active)
                .map(|r| r.member)
                .collect(),
        };
        let live = told.into_iter().filter(|m| !going(m)).collect();
        View { desired, observed, cluster, leader, config, homes, live }
    }

    /// Replicas of the StatefulSet as the operator wrote them last, 0 where there is none: what somebody
    /// else wrote into it is put back, never followed.
    pub fn size(&self) -> u32 {
        let own = |_: &u32| !planted!(HandSizeFollowed);
        self.observed.set.as_ref().map_or(0, |s| s.applied_size.filter(own).unwrap_or(s.replicas))
    }

    /// Ids of the voters.
    pub fn voters(&self) -> BTreeSet<MemberId> {
        self.config.map(|c| c.voters().map(|m| m.member).collect()).unwrap_or_default()
    }

    /// Whether the member is in the newest configuration.
    pub fn configured(&self, member: MemberId) -> bool {
        self.config.is_some_and(|c| c.get(member).is_some())
    }

    /// Configured members that live at an ordinal. More than one where a lost one was there before.
    pub fn members_at(&self, ordinal: u32) -> Vec<MemberId> {
        let all = self.config.map(|c| c.members.as_slice()).unwrap_or_default();
        all.iter().map(|m| m.member).filter(|m| self.homes.get(m) == Some(&ordinal)).collect()
    }

    /// Whether a live quorum of the voters would remain if `without` left the configuration.
    /// docs: operator-rules.md, rule 3.
    pub fn quorum_without(&self, without: MemberId) -> bool {
        let mut rest = self.voters();
        rest.remove(&without);
        if planted!(QuorumUnchecked) {
            return !rest.is_empty();
        }
        !rest.is_empty() && rest.iter().filter(|m| self.serves(**m)).count() >= majority(rest.len())
    }

    /// Whether a live quorum of the voters would remain while `down` restarts.
    pub fn quorum_while_down(&self, down: MemberId) -> bool {
        let voters = self.voters();
        let up = voters.iter().filter(|m| **m != down && self.serves(**m)).count();
        up >= majority(voters.len())
    }

    /// Whether the leader says that the member is connected and keeps up; the leader itself does.
    pub fn caught_up(&self, member: MemberId) -> bool {
        let keeps_up = |p: &Peer| p.member == member && p.connected && p.caught_up;
        self.leader.is_some_and(|(_, r)| r.member == member || r.peers.iter().any(keeps_up))
    }

    /// Whether appends can count on the member: the leader hears it and says that it keeps up, and the
    /// member itself, if it answers, says that it takes part. A stream stands also where a disk hangs.
    pub fn serves(&self, member: MemberId) -> bool {
        let mut own = self.observed.reports.values().filter(|r| r.member == member);
        self.live.contains(&member) && self.caught_up(member) && own.all(|r| r.state == MemberState::Active)
    }

    /// Whether the disk of an ordinal goes with its pod: its claim is being deleted.
    pub fn claim_goes(&self, ordinal: u32) -> bool {
        self.observed.claims.get(&ordinal).is_some_and(|c| c.deleting)
    }

    /// Whether nothing is heard of a member, neither by the operator nor by the leader.
    pub fn silent(&self, member: MemberId) -> bool {
        !self.live.contains(&member) && !self.observed.reports.values().any(|r| r.member == member)
    }

    /// Members that are silent and whose volumes are bound to nodes that do not exist.
    pub fn stranded(&self, ordinal: u32, member: MemberId) -> bool {
        self.silent(member) && self.observed.claims.get(&ordinal).is_some_and(|c| c.stranded && !c.deleting)
    }

    /// Since when a member is stranded, as status remembers it.
    pub fn stranded_since(&self, ordinal: u32, member: MemberId) -> Option<Timestamp> {
        let (pod, id) = (self.desired.name.pod(ordinal), member.to_string());
        let mut members = self.observed.status.members.iter();
        let known = members.find(|m| m.pod == pod && m.member_id.as_deref() == Some(&id))?;
        known.lost_since.as_ref().map(|t| t.0)
    }

    /// Why membership cannot be changed now: too few voters answer, or nobody leads.
    pub fn no_quorum(&self) -> Option<Gate> {
        let voters = self.voters();
        let live = voters.intersection(&self.live).count();
        let needed = majority(voters.len());
        if voters.is_empty() {
            let why = "no member that knows the configuration answers; their disks hold the log";
            return Some(Gate::new(GateKind::QuorumLost, why));
        }
        if live < needed {
            let silent: Vec<String> = self
                .observed
                .silent
                .iter()
                .map(|(o, why)| format!("{}: {why}", self.desired.name.pod(*o)))
                .collect();
            let detail = if silent.is_empty() { String::new() } else { format!(" ({})", silent.join("; ")) };
            return Some(Gate::new(
                GateKind::QuorumLost,
                format!("{live} of {} voters answer, {needed} are needed{detail}", voters.len()),
            ));
        }
        if self.leader.is_none() {
            return Some(Gate::new(GateKind::NoLeader, "a quorum answers and elects a leader"));
        }
        None
    }

    /// Why the next change has to wait for the one before.
    pub fn change_pending(&self) -> Option<Gate> {
        let (_, leader) = self.leader?;
        if !leader.in_force {
            let version = leader.config.as_ref().map_or(0, |c| c.version);
            return Some(Gate::new(
                GateKind::ChangePending,
                format!("configuration {version} comes into force"),
            ));
        }
        let waits = |r: &&Removed| !r.retired && !planted!(DeletedBeforeRetired) && self.matters(r);
        let removed = leader.removed.iter().find(waits)?;
        let who = self
            .homes
            .get(&removed.member)
            .map_or(String::new(), |o| format!(" on {}", self.desired.name.pod(*o)));
        Some(Gate::new(
            GateKind::Retiring,
            format!(
                "member {}{who} votes on in older slots until a quorum without it holds them",
                removed.member
            ),
        ))
    }

    /// Whether a removed member that is not retired is worth waiting for: the newest change took it out,
    /// or there is a disk of it that must not go yet. Of others nothing is left to wait for; and the label
    /// on a kept claim says that it was retired once, which does not change.
    fn matters(&self, removed: &Removed) -> bool {
        let o = self.observed;
        let kept = |ordinal: &u32| o.claims.get(ordinal).is_some_and(|c| c.retired.is_some());
        self.config.is_some_and(|c| c.version == removed.version)
            || o.reports.iter().any(|(ordinal, r)| r.member == removed.member && !kept(ordinal))
            || o.claims.values().any(|c| c.member == Some(removed.member) && c.retired.is_none())
    }

    /// Whether the log knows that this member was removed and is retired.
    pub fn retired(&self, member: MemberId) -> bool {
        self.leader.is_some_and(|(_, r)| {
            let done = |gone: &&Removed| gone.retired || planted!(DeletedBeforeRetired);
            r.removed.iter().filter(done).any(|gone| gone.member == member)
        })
    }

    /// The operation that status records, as a plan would name it.
    pub fn running_operation(&self) -> Option<Operation> {
        let recorded = self.observed.status.operation.as_ref()?;
        let ordinal = recorded.member.as_deref().and_then(|pod| self.desired.name.ordinal_of_pod(pod));
        Some(Operation { kind: recorded.kind, ordinal })
    }

    /// Whether the operation is the recorded one and has taken longer than the deadline.
    pub fn overdue(&self, operation: Option<&Operation>) -> bool {
        let Some(recorded) = self.observed.status.operation.as_ref() else { return false };
        let same = operation == self.running_operation().as_ref();
        same && self.observed.now.duration_since(recorded.started_at.0).as_secs()
            > self.desired.deadline_seconds
    }

    /// The voter that should take leadership from the member at `from`: one that serves, and if it can
    /// be one of the newest revision and one that stays; the lowest ordinal of those.
    pub fn successor(&self, from: u32) -> Option<(u32, MemberId)> {
        let fit = self.voters().into_iter().filter(|m| self.serves(*m));
        let mut placed: Vec<(bool, bool, u32, MemberId)> = fit
            .filter_map(|m| self.homes.get(&m).map(|o| (*o, m)))
            .filter(|(o, _)| *o != from)
            .map(|(o, m)| (o >= self.desired.replicas, self.outdated(o) == Some(true), o, m))
            .collect();
        placed.sort();
        placed.first().map(|(_, _, o, m)| (*o, *m))
    }

    /// Whether the pod is of an older revision; `None` where that cannot be known yet.
    /// docs: operator-rules.md, rule 9.
    pub fn outdated(&self, ordinal: u32) -> Option<bool> {
        let set = self.observed.set.as_ref()?;
        let seen = set.observed_generation == set.generation || planted!(RevisionOfTheLastSet);
        if !seen || set.update_revision.is_empty() {
            return None;
        }
        self.observed.pods.get(&ordinal).map(|p| p.revision != set.update_revision)
    }

    /// Whether the step may take a healthy voter away. Taking out a learner, or a voter that is down, does not.
    pub(super) fn may_lower_voters(&self, step: &Step) -> bool {
        match step {
            Step::RemoveMember(change) => self.is_live_voter(change.member),
            Step::Evict { ordinal, .. } | Step::DeletePod { ordinal, .. } => {
                self.members_at(*ordinal).into_iter().any(|m| self.is_live_voter(m))
            }
            Step::TransferLeader { .. } => true,
            _ => false,
        }
    }

    fn is_live_voter(&self, member: MemberId) -> bool {
        self.live.contains(&member) && self.voters().contains(&member)
    }

    /// What the pod is part of while the plan brings it up.
    pub fn grow_kind(&self, ordinal: u32) -> OperationType {
        match self.observed.status.operation.as_ref() {
            Some(op)
                if op.kind == OperationType::Replace
                    && op.member.as_deref() == Some(&self.desired.name.pod(ordinal)) =>
            {
                OperationType::Replace
            }
            _ => OperationType::Grow,
        }
    }
}

/// Members needed to decide among `voters`.
pub(crate) fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// Where members live: reports first, then the marks on claims, then the names in the configuration.
fn homes(desired: &Desired, observed: &Observed, config: Option<&Config>) -> BTreeMap<MemberId, u32> {
    let mut homes = BTreeMap::new();
    for member in config.map(|c| c.members.as_slice()).unwrap_or_default() {
        if let Some(ordinal) = desired.name.ordinal_of_pod(&member.name) {
            homes.insert(member.member, ordinal);
        }
    }
    for (ordinal, claim) in &observed.claims {
        if let Some(member) = claim.member.filter(|_| claim.retired.is_none()) {
            homes.insert(member, *ordinal);
        }
    }
    for (ordinal, report) in &observed.reports {
        homes.insert(report.member, *ordinal);
    }
    homes
}
