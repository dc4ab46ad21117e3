//! A small world for plan tests: observations with a few words, and a fake that carries steps out, so
//! that a whole course of steps can be played through.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use crate::apply::Outcome;
use crate::crd::{PaxosCluster, PaxosClusterSpec};
use crate::names::{ClusterId, MemberId};
use crate::observed::{
    Ballot, ClaimFacts, Config, ConfigMember, MemberState, NodeFacts, Observed, Peer, PodFacts, Removed,
    Report, Room, SetFacts, Trust,
};
use crate::plan::{ClaimChange, Plan, Step, majority, plan};
use crate::settings::InForce;
use crate::validate::{Desired, validate};

/// The log of these tests.
pub(super) const LOG: ClusterId = ClusterId(Uuid::from_u128(7));

/// A checked spec with `replicas` and whatever `change` does to it.
pub(crate) fn desired(replicas: i32, change: impl FnOnce(&mut PaxosClusterSpec)) -> Desired {
    let mut spec = PaxosClusterSpec { replicas, ..PaxosClusterSpec::default() };
    change(&mut spec);
    let mut cluster = PaxosCluster::new("demo", spec);
    cluster.metadata.namespace = Some("ns".into());
    cluster.metadata.uid = Some("uid".into());
    validate(&cluster, "sidecar:1", "cluster.local").unwrap()
}

/// Nothing was ever made.
pub(crate) fn nothing() -> Observed {
    Observed {
        now: Timestamp::from_second(1_000_000).unwrap(),
        fresh_id: LOG.0,
        generation: 1,
        deleting: false,
        replace: None,
        rotate: None,
        status: crate::crd::PaxosClusterStatus::default(),
        set: None,
        pods: Default::default(),
        claims: Default::default(),
        reports: Default::default(),
        silent: Default::default(),
        budget: None,
        budget_refused: false,
        waits_turn: false,
        failed_creates: Vec::new(),
        nodes: None,
    }
}

/// A world whose steps have effects, as a cluster's would have after a while.
pub(crate) struct World {
    pub(crate) desired: Desired,
    pub(crate) o: Observed,
    /// Every step taken, in short.
    pub(crate) taken: Vec<String>,
    next_member: u64,
    next_uid: u64,
    config: Config,
    removed: Vec<Removed>,
    leader: Option<MemberId>,
    /// Members whose peer ports are cut: they answer the operator, and the leader does not hear them.
    cut: BTreeSet<MemberId>,
    /// Members that do not keep up: their streams stand.
    lagging: BTreeSet<MemberId>,
    /// Members that say of themselves that they do not take part: their streams stand, too.
    stuck: BTreeMap<MemberId, MemberState>,
    /// Ordinals whose pods cannot run on the disk they have.
    broken: BTreeSet<u32>,
    pub(crate) settings: InForce,
}

impl World {
    pub(crate) fn new(desired: Desired) -> World {
        World {
            settings: InForce { version: 1, values: desired.settings },
            desired,
            o: nothing(),
            taken: Vec::new(),
            next_member: 100,
            next_uid: 0,
            config: Config::default(),
            removed: Vec::new(),
            leader: None,
            cut: BTreeSet::new(),
            lagging: BTreeSet::new(),
            stuck: BTreeMap::new(),
            broken: BTreeSet::new(),
        }
    }

    /// A formed cluster of `n` that is as desired and at rest; ordinal 0 leads.
    pub(crate) fn formed(n: u32) -> World {
        let mut world = World::new(desired(i32::try_from(n).unwrap(), |_| {}));
        world.settle();
        world.taken.clear();
        world
    }

    pub(crate) fn plan(&self) -> Plan {
        plan(&self.desired, &self.o)
    }

    /// Up to `n` steps.
    pub(crate) fn steps(&mut self, n: u8) {
        for _ in 0..n {
            let plan = self.plan();
            self.patch_claims(&plan);
            let Some(step) = plan.step.clone() else { return };
            self.remember(&plan);
            self.take(&step, &plan);
            self.check();
        }
    }

    /// What status remembers of a look: the next plan reads it.
    fn remember(&mut self, plan: &Plan) {
        let status = crate::status::compose(&self.desired, &self.o, plan, &Outcome::Nothing, &[]);
        (self.o.status.operation, self.o.status.members) = (status.operation, status.members);
    }

    /// What goes on beside the step.
    pub(crate) fn patch_claims(&mut self, plan: &Plan) {
        for patch in &plan.claims {
            let claim = self.o.claims.get_mut(&patch.ordinal).unwrap();
            assert_eq!(claim.uid, patch.uid, "a claim is patched by its UID");
            match &patch.change {
                ClaimChange::Own(owned) => {
                    claim.owned = *owned;
                    self.taken.push(format!("own {} {owned}", patch.ordinal));
                }
                ClaimChange::Resize(_) => {
                    claim.requested = self.desired.storage_bytes;
                    self.taken.push(format!("resize {}", patch.ordinal));
                }
            }
        }
    }

    /// Whether the member at an ordinal votes.
    pub(crate) fn votes(&self, ordinal: u32) -> bool {
        let member = self.o.reports.get(&ordinal).map(|r| r.member);
        member.is_some_and(|m| self.config.voters().any(|v| v.member == m))
    }

    /// The plan once labels, budget and marks are in line.
    pub(crate) fn next(&mut self) -> Plan {
        loop {
            let plan = self.plan();
            match plan.step.clone() {
                Some(step @ Step::Tighten { .. }) => self.take(&step, &plan),
                _ => return plan,
            }
        }
    }

    fn uid(&mut self, what: &str) -> String {
        self.next_uid += 1;
        format!("{what}{}", self.next_uid)
    }

    /// Plans and carries out until nothing is left to do; checks the rules after every step.
    pub(crate) fn settle(&mut self) -> Plan {
        for _ in 0..200 {
            let plan = self.plan();
            self.patch_claims(&plan);
            let Some(step) = plan.step.clone() else { return plan };
            self.remember(&plan);
            self.take(&step, &plan);
            self.check();
        }
        panic!("no end: {:?}", self.taken);
    }

    /// What must hold after every step, whatever came before. docs: operator-rules.md, rules 3 and 4.
    fn check(&self) {
        let size = self.o.set.as_ref().map_or(0, |s| s.replicas);
        for member in &self.config.members {
            let home = self.desired.name.ordinal_of_pod(&member.name).unwrap();
            assert!(self.desired.replicas == 0 || home < size, "{member:?} has no pod: {:?}", self.taken);
        }
        // At ordinals that stay: a new disk beyond them goes again with its pod.
        let begins = |(ordinal, r): &(&u32, &Report)| {
            let stays = **ordinal < self.desired.replicas;
            stays && r.state != MemberState::Removed && self.config.get(r.member).is_none()
        };
        let unstarted = self.o.reports.iter().filter(begins);
        let bootstrapped = !self.config.members.is_empty();
        assert!(!bootstrapped || unstarted.count() <= 1, "two unstarted members: {:?}", self.taken);
    }

    /// The effects of a step, and what the rest of Kubernetes would do then.
    pub(crate) fn take(&mut self, step: &Step, plan: &Plan) {
        self.taken.push(short(step));
        self.o.budget = plan
            .budget
            .and_then(|b| i32::try_from(b).ok())
            .filter(|_| matches!(step, Step::Tighten { budget: true, .. }) || self.o.budget.is_some());
        match step {
            Step::Scale { to, .. } => self.scale(*to),
            Step::Adopt { cluster } => self.o.status.cluster_id = Some(cluster.to_string()),
            Step::RecordBootstrap { cluster, members } => {
                let members: Vec<_> = members
                    .iter()
                    .map(|(o, m)| json!({ "pod": self.desired.name.pod(*o), "memberId": m.to_string() }))
                    .collect();
                self.o.status.cluster_id = Some(cluster.to_string());
                self.o.status.bootstrap = serde_json::from_value(json!({ "members": members })).unwrap();
            }
            Step::Initialize { members, .. } => {
                let member = |(o, m): &(u32, MemberId)| ConfigMember {
                    member: *m,
                    name: self.desired.name.pod(*o),
                    voter: true,
                };
                self.config = Config { version: 1, members: members.iter().map(member).collect() };
                self.leader = members.first().map(|(_, m)| *m);
            }
            Step::ConfirmBootstrap => self.o.status.bootstrap.get_or_insert_default().done = true,
            Step::Tighten { labels, marks, .. } => {
                for label in labels {
                    let pod = self.o.pods.get_mut(&label.ordinal).unwrap();
                    (pod.role, pod.counted) = (Some(label.role.into()), label.counted);
                }
                for mark in marks {
                    let claim = self.o.claims.get_mut(&mark.ordinal).unwrap();
                    (claim.member, claim.cluster, claim.retired) = (Some(mark.member), mark.cluster, None);
                }
            }
            Step::Join { ordinal, cluster, .. } => {
                let report = self.o.reports.get_mut(ordinal).unwrap();
                (report.state, report.cluster) = (MemberState::Joining, Some(*cluster));
            }
            Step::AddLearner(c) => {
                assert_eq!(c.version, self.config.version);
                let name = self.desired.name.pod(c.ordinal);
                self.config.members.push(ConfigMember { member: c.member, name, voter: false });
                self.config.version += 1;
            }
            Step::Promote(c) => {
                self.config.members.iter_mut().find(|m| m.member == c.member).unwrap().voter = true;
                self.config.version += 1;
            }
            Step::RemoveMember(c) => {
                assert_ne!(Some(c.member), self.leader, "a leader hands over first");
                self.check_removal(c.member);
                self.config.members.retain(|m| m.member != c.member);
                self.config.version += 1;
                let version = self.config.version;
                self.removed.push(Removed { member: c.member, version, retired: true });
            }
            Step::ChangeSettings { version, settings, .. } => {
                assert_eq!(*version, self.settings.version);
                self.settings = InForce { version: version + 1, values: *settings };
            }
            Step::TransferLeader { member, .. } => {
                assert!(self.works(*member), "{member} cannot lead: {:?}", self.taken);
                self.leader = Some(*member);
            }
            Step::Renew { ordinal, .. } => {
                let member = self.mint();
                let report = self.o.reports.get_mut(ordinal).unwrap();
                (report.member, report.state, report.cluster) = (member, MemberState::Uninitialized, None);
            }
            Step::Evict { ordinal, .. } => {
                self.check_budget(*ordinal);
                self.restart(*ordinal);
            }
            Step::DeletePod { ordinal, uid, .. } => {
                assert_eq!(&self.o.pods[ordinal].uid, uid);
                self.restart(*ordinal);
            }
            // A claim goes when no pod holds it any more.
            Step::DeleteClaim { ordinal, .. } if self.o.pods.contains_key(ordinal) => {
                self.o.claims.get_mut(ordinal).unwrap().deleting = true;
            }
            Step::DeleteClaim { ordinal, .. } => drop(self.o.claims.remove(ordinal)),
            Step::RetireClaim { ordinal, member, .. } => {
                self.o.claims.get_mut(ordinal).unwrap().retired = Some(member.to_string());
            }
        }
        if !matches!(step, Step::Tighten { .. }) {
            self.refresh();
        }
    }

    /// What the eviction API asks the budget.
    fn check_budget(&self, evicted: u32) {
        let healthy = self.o.pods.iter().filter(|(o, p)| **o != evicted && p.ready && p.counted);
        let left = i32::try_from(healthy.count()).unwrap();
        assert!(
            self.o.budget.is_none_or(|b| left >= b),
            "refused: {left} < {:?}: {:?}",
            self.o.budget,
            self.taken
        );
    }

    /// Appends go on when a voter is taken out: those that stay need nobody who hangs. docs: operator-rules.md, rule 3.
    fn check_removal(&self, leaves: MemberId) {
        if self.config.get(leaves).is_some_and(|m| m.voter) {
            let rest: Vec<MemberId> =
                self.config.voters().map(|m| m.member).filter(|m| *m != leaves).collect();
            let working = rest.iter().filter(|m| self.works(**m)).count();
            assert!(working >= majority(rest.len()), "{working} of {}: {:?}", rest.len(), self.taken);
        }
    }

    /// Whether a member runs, takes part, keeps up and hears the others.
    fn works(&self, member: MemberId) -> bool {
        let active = |r: &Report| r.member == member && r.state == MemberState::Active;
        self.o.reports.values().any(active) && !self.cut.contains(&member) && !self.lagging.contains(&member)
    }

    /// Whether the log goes on without the member at an ordinal.
    pub(crate) fn spares(&self, ordinal: u32) -> bool {
        let member = self.o.reports.get(&ordinal).map(|r| r.member);
        let others = self.config.voters().map(|m| m.member).filter(|m| Some(*m) != member);
        others.filter(|m| self.works(*m)).count() >= majority(self.config.voters().count())
    }

    /// Whether the member at an ordinal works and is a voter: whoever leads is.
    pub(crate) fn can_lead(&self, ordinal: u32) -> bool {
        self.votes(ordinal) && self.o.reports.get(&ordinal).is_some_and(|r| self.works(r.member))
    }

    /// A member falls behind; its stream stands.
    pub(crate) fn lag(&mut self, ordinal: u32) {
        let member = self.o.reports[&ordinal].member;
        if self.leader != Some(member) {
            self.lagging.insert(member);
        }
        self.refresh();
    }

    /// A member says of itself that it does not take part; its stream stands.
    pub(crate) fn stick(&mut self, ordinal: u32, state: MemberState) {
        let member = self.o.reports[&ordinal].member;
        if self.leader != Some(member) {
            self.stuck.insert(member, state);
        }
        self.refresh();
    }

    /// Everybody keeps up and takes part again.
    pub(crate) fn keep_up(&mut self) {
        self.lagging.clear();
        self.stuck.clear();
        self.refresh();
    }

    fn mint(&mut self) -> MemberId {
        self.next_member += 1;
        MemberId(self.next_member)
    }

    /// The StatefulSet controller, the kubelets and the sidecars after a change of size.
    pub(crate) fn scale(&mut self, to: u32) {
        let uid = self.uid("set");
        let set = self.o.set.get_or_insert(SetFacts {
            uid,
            resource_version: "1".into(),
            replicas: 0,
            applied_size: None,
            made_from: None,
            template: None,
            generation: 1,
            observed_generation: 1,
            update_revision: "r1".into(),
            deleting: false,
            claim_size: Some("10Gi".into()),
        });
        set.replicas = to;
        self.o.pods.retain(|o, _| *o < to);
        self.o.reports.retain(|o, _| *o < to);
        self.o.claims.retain(|o, c| *o < to || !c.deleting);
        for ordinal in 0..to {
            if !self.o.pods.contains_key(&ordinal) {
                self.start(ordinal);
            }
        }
    }

    fn start(&mut self, ordinal: u32) {
        if !self.o.claims.contains_key(&ordinal) {
            let uid = self.uid("claim");
            let claim = ClaimFacts { uid, requested: 10 << 30, ..ClaimFacts::default() };
            self.o.claims.insert(ordinal, claim);
        }
        let uid = self.uid("pod");
        let revision = self.o.set.as_ref().unwrap().update_revision.clone();
        let pod = PodFacts {
            uid,
            ip: Some("10.0.0.1".into()),
            node: Some(format!("node{ordinal}")),
            ready: true,
            revision,
            ..PodFacts::default()
        };
        self.o.pods.insert(ordinal, pod);
        let claim = &self.o.claims[&ordinal];
        let (old, cluster) = (claim.member, claim.cluster);
        let member = match old {
            Some(member) => member,
            None => self.mint(),
        };
        let cluster = cluster.filter(|_| old.is_some());
        self.o.reports.insert(ordinal, report(member, cluster));
    }

    /// A pod is deleted and comes back in the newest revision, on its own disk; on an empty one if its
    /// claim was being deleted.
    pub(crate) fn restart(&mut self, ordinal: u32) {
        let member = self.o.reports.get(&ordinal).map(|r| r.member);
        self.o.pods.remove(&ordinal);
        self.o.silent.remove(&ordinal);
        let before = self.o.reports.remove(&ordinal);
        if self.o.claims.get(&ordinal).is_some_and(|c| c.deleting) {
            self.o.claims.remove(&ordinal);
            self.broken.remove(&ordinal);
            self.start(ordinal);
        } else {
            self.start(ordinal);
            if let Some(before) = before {
                self.o.reports.insert(ordinal, before);
            }
        }
        if self.broken.contains(&ordinal) {
            self.silence(ordinal);
        }
        if self.leader == member && member.is_some() {
            // The only voter elects itself again.
            let mut others = self.config.voters().map(|m| m.member).filter(|m| self.works(*m));
            self.leader = others.find(|m| Some(*m) != member).or(member);
        }
        self.refresh();
    }

    /// A pod runs and its member says nothing.
    pub(crate) fn silence(&mut self, ordinal: u32) {
        let gone = self.o.reports.remove(&ordinal).map(|r| r.member);
        self.o.silent.insert(ordinal, "connection refused".into());
        self.o.pods.get_mut(&ordinal).unwrap().ready = false;
        if self.leader.is_some() && self.leader == gone {
            let answering: BTreeSet<MemberId> = self.o.reports.values().map(|r| r.member).collect();
            self.leader = self.config.voters().map(|m| m.member).find(|m| answering.contains(m));
        }
        self.refresh();
    }

    /// A member's disk is so damaged that its process ends as soon as it starts.
    pub(crate) fn corrupt(&mut self, ordinal: u32) -> MemberId {
        let member = self.o.reports[&ordinal].member;
        self.broken.insert(ordinal);
        self.silence(ordinal);
        member
    }

    /// A learner is in the configuration already.
    pub(crate) fn join_config(&mut self, member: MemberId, ordinal: u32) {
        let name = self.desired.name.pod(ordinal);
        self.config.members.push(ConfigMember { member, name, voter: false });
        self.config.version += 1;
        self.refresh();
    }

    /// Whether the disk of an ordinal goes with its pod.
    pub(crate) fn goes(&self, ordinal: u32) -> bool {
        self.o.claims.get(&ordinal).is_some_and(|c| c.deleting)
    }

    /// Whether at least three vote, everybody who runs is a member and takes part, and no claim is being deleted.
    pub(crate) fn is_whole(&self) -> bool {
        let members = self.o.reports.values().all(|r| self.config.get(r.member).is_some());
        let homes = self.config.members.len() == self.o.reports.len();
        let free = self.stuck.keys().all(|m| self.config.get(*m).is_none());
        members
            && homes
            && free
            && self.config.voters().count() > 2
            && self.o.claims.values().all(|c| !c.deleting)
    }

    /// An ordinal's disk is lost, and its pod starts on an empty one.
    pub(crate) fn empty(&mut self, ordinal: u32) {
        self.o.claims.get_mut(&ordinal).unwrap().deleting = true;
        self.restart(ordinal);
    }

    /// A member is cut off from its peers; the operator still reaches it.
    pub(crate) fn cut(&mut self, ordinal: u32) {
        self.cut.insert(self.o.reports[&ordinal].member);
        self.refresh();
    }

    /// Every pod's node exists, under a name of its own and a host name label of another.
    pub(crate) fn with_nodes(&mut self) {
        let nodes = self.o.pods.values().filter_map(|p| p.node.clone());
        self.o.nodes = Some(nodes.map(|n| (n, NodeFacts::default())).collect());
    }

    /// The Node object of a pod goes, and with it all that the pod says.
    pub(crate) fn lose_node(&mut self, ordinal: u32, bound: bool) {
        let node = self.o.pods[&ordinal].node.clone().unwrap();
        self.o.nodes.as_mut().unwrap().remove(&node);
        self.o.claims.get_mut(&ordinal).unwrap().stranded = bound;
        self.silence(ordinal);
    }

    /// A new revision of the pods.
    pub(crate) fn new_revision(&mut self, revision: &str) {
        self.o.set.as_mut().unwrap().update_revision = revision.into();
    }

    pub(crate) fn lead(&mut self, ordinal: u32) {
        self.leader = Some(self.o.reports[&ordinal].member);
        self.refresh();
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Every report says what the log says.
    fn refresh(&mut self) {
        let (config, removed, leader, settings) = (&self.config, &self.removed, self.leader, self.settings);
        // The leader hears whoever runs and is not cut off.
        let running: BTreeSet<MemberId> = self.o.reports.values().map(|r| r.member).collect();
        let peers: Vec<Peer> = config
            .members
            .iter()
            .map(|m| (m.member, running.contains(&m.member) && !self.cut.contains(&m.member)))
            .map(|(member, heard)| {
                let caught_up = !self.lagging.contains(&member);
                Peer { member, connected: heard, caught_up }
            })
            .collect();
        for report in self.o.reports.values_mut() {
            if removed.iter().any(|r| r.member == report.member) {
                report.state = MemberState::Removed;
            } else if config.get(report.member).is_some() {
                let state = self.stuck.get(&report.member).copied().unwrap_or(MemberState::Active);
                (report.state, report.cluster) = (state, Some(LOG));
                report.config = Some(config.clone());
                report.settings = Some(settings);
                report.removed = removed.clone();
                report.peers = peers.clone();
                report.ready = state == MemberState::Active;
            }
            report.leads = leader == Some(report.member);
            report.leader = leader;
        }
    }
}

/// What a member says before anything is known of it.
pub(crate) fn report(member: MemberId, cluster: Option<ClusterId>) -> Report {
    Report {
        member,
        incarnation: 1,
        state: if cluster.is_some() { MemberState::Recovering } else { MemberState::Uninitialized },
        cluster,
        genesis_digest: vec![1],
        leads: false,
        leader: None,
        ballot: Ballot { round: 1, member: member.0 },
        chosen_through: 0,
        last_index: 0,
        config: None,
        in_force: true,
        peers: Vec::new(),
        removed: Vec::new(),
        ready: false,
        reason: String::new(),
        version: "0.1.0".into(),
        room: Room::Plenty,
        free_bytes: 1 << 30,
        trust: Trust::Newest,
        settings: None,
    }
}

/// A step in a word or two.
fn short(step: &Step) -> String {
    match step {
        Step::Scale { to, .. } => format!("scale {to}"),
        Step::Initialize { targets, .. } => format!("initialize {targets:?}"),
        Step::Join { ordinal, .. } => format!("join {ordinal}"),
        Step::AddLearner(c) => format!("add {}", c.ordinal),
        Step::Promote(c) => format!("promote {}", c.ordinal),
        Step::RemoveMember(c) => format!("remove {}", c.ordinal),
        Step::ChangeSettings { settings, .. } => format!("settings leases={}", settings.leases),
        Step::TransferLeader { from, to, .. } => format!("transfer {from}->{to}"),
        Step::Renew { ordinal, .. } => format!("renew {ordinal}"),
        Step::DeletePod { ordinal, .. } => format!("delete pod {ordinal}"),
        Step::Evict { ordinal, .. } => format!("evict {ordinal}"),
        Step::DeleteClaim { ordinal, .. } => format!("delete claim {ordinal}"),
        Step::RetireClaim { ordinal, .. } => format!("retire claim {ordinal}"),
        Step::Adopt { .. } => "adopt".into(),
        Step::RecordBootstrap { .. } => "record".into(),
        Step::ConfirmBootstrap => "confirm".into(),
        Step::Tighten { .. } => "tighten".into(),
    }
}

impl World {
    /// The steps taken, without the small ones in between.
    pub(crate) fn course(&self) -> Vec<&str> {
        self.taken.iter().map(String::as_str).filter(|s| *s != "tighten").collect()
    }

    pub(crate) fn want(&mut self, replicas: u32) {
        self.desired.replicas = replicas;
        self.desired.spec.replicas = i32::try_from(replicas).unwrap();
    }
}
