//! Classes 1 to 3: nothing to do, the set of pods, and how a cluster comes into being.
//!
//! A cluster is formed once, by a list that was written down before anyone was told. Disks that have had a
//! life are adopted, never initialised again. docs: operator-rules.md, rules 4, 5, 13 and 14.

use std::collections::BTreeSet;

use crate::crd::OperationType;
use crate::names::{ClusterId, MemberId};
use crate::observed::{ClaimFacts, MemberState};
use crate::validate::Part;

use super::{Gate, GateKind, Step, Verdict, View, majority};

/// What forming the cluster needs next.
pub(super) fn verdict(view: &View<'_>) -> Verdict {
    let o = view.observed;
    if o.deleting {
        return Verdict::Wait(Gate::new(GateKind::Deleting, "the PaxosCluster is being deleted"), None);
    }
    if view.desired.spec.paused && !planted!(PausedIgnored) {
        return Verdict::Wait(
            Gate::new(GateKind::Paused, "spec.paused is true: set it to false to go on"),
            None,
        );
    }
    match pods(view) {
        Verdict::Idle => {}
        other => return other,
    }
    match view.cluster {
        None => unformed(view),
        Some(cluster) => formed(view, cluster),
    }
}

/// Class 2 and the waking and hibernating part of class 3: the number of pods, by rule 4.
fn pods(view: &View<'_>) -> Verdict {
    let current = view.size();
    if view.desired.replicas == 0 {
        let running = view.observed.pods.len();
        let going: Vec<String> = (view.observed.claims.iter())
            .filter(|(ordinal, c)| c.deleting && view.observed.pods.contains_key(ordinal))
            .map(|(ordinal, _)| view.desired.name.claim(*ordinal))
            .collect();
        if current > 0 && !going.is_empty() && !planted!(GoingDiskHibernated) {
            let why = format!(
                "{}: being deleted, their disks would go with the pods; raise spec.replicas to have them replaced",
                going.join(", ")
            );
            return Verdict::wait(GateKind::ClaimTerminating, why, OperationType::Hibernate, None);
        }
        return match (current, running) {
            (0, 0) => {
                Verdict::Wait(Gate::new(GateKind::Hibernated, "replicas is 0: every disk is kept"), None)
            }
            (0, n) => Verdict::wait(
                GateKind::PodsStopping,
                format!("{n} pods are stopping; every disk is kept"),
                OperationType::Hibernate,
                None,
            ),
            (from, _) => Verdict::step(Step::Scale { from, to: 0 }, OperationType::Hibernate, None),
        };
    }
    match &view.observed.set {
        Some(set) if set.deleting => Verdict::wait(
            GateKind::PodsStopping,
            "the old StatefulSet is being deleted",
            OperationType::Wake,
            None,
        ),
        Some(_) if current > 0 => match floor(view) {
            // Somebody scaled the StatefulSet itself: a configured member would lose its pod.
            floor if floor > current => {
                Verdict::step(Step::Scale { from: current, to: floor }, OperationType::Wake, None)
            }
            _ => Verdict::Idle,
        },
        // Pods of a bad template could not be made, and a log of bad settings would be formed for good. A set that
        // sleeps has a template, and its log its settings: it wakes by them.
        set if !view.desired.faults.is_empty() && (set.is_none() || view.cluster.is_none()) => {
            let why: Vec<String> = view.desired.faults.iter().map(|f| f.why.to_string()).collect();
            Verdict::Wait(Gate::new(GateKind::InvalidSpec, why.join("; ")), None)
        }
        _ => {
            let to = recreated_size(view);
            let kind = if view.cluster.is_some() { OperationType::Wake } else { OperationType::Bootstrap };
            Verdict::step(Step::Scale { from: current, to }, kind, None)
        }
    }
}

/// 1 + the highest ordinal that hosts a configured member; 0 where no member answers.
/// docs: operator-rules.md, rule 4.
pub(super) fn floor(view: &View<'_>) -> u32 {
    let members = view.config.map(|c| c.members.as_slice()).unwrap_or_default();
    members.iter().filter_map(|m| view.homes.get(&m.member)).map(|o| o + 1).max().unwrap_or(0)
}

/// The size of a set that is absent or at 0: as many as there are disks with a life, and before there are
/// any as many as will form the cluster. docs: operator-rules.md, rule 4.
fn recreated_size(view: &View<'_>) -> u32 {
    let o = view.observed;
    let pods = o.pods.keys().map(|ordinal| ordinal + 1);
    let claims = o.claims.iter().filter(|(_, c)| c.retired.is_none() && !c.deleting).map(|(o, _)| o + 1);
    let listed = o.status.bootstrap.iter().flat_map(|b| &b.members);
    let listed = listed.filter_map(|m| view.desired.name.ordinal_of_pod(&m.pod)).map(|o| o + 1);
    // A list that is not confirmed binds; a confirmed one may name members that left long ago.
    let open = o.status.bootstrap.as_ref().is_some_and(|b| !b.done);
    let listed = listed.filter(|_| open);
    let life = pods.chain(claims).chain(listed).max();
    let fresh = view.desired.voters();
    match life {
        None => fresh,
        Some(n) if view.cluster.is_none() && o.claims.values().all(|c| c.cluster.is_none()) => n.max(fresh),
        Some(n) => n,
    }
    .min(crate::names::MAX_MEMBERS)
}

/// No log is named in status: adopt what the disks name, or write down who will form one.
fn unformed(view: &View<'_>) -> Verdict {
    let o = view.observed;
    let named: BTreeSet<ClusterId> =
        (o.claims.values().filter(|c| c.retired.is_none()).filter_map(|c| c.cluster))
            .chain(o.reports.values().filter_map(|r| r.cluster))
            .filter(|_| !planted!(KeptDisksIgnored))
            .collect();
    let mut ids = named.iter();
    match (ids.next(), ids.next()) {
        (Some(cluster), None) => {
            return Verdict::step(Step::Adopt { cluster: *cluster }, OperationType::Bootstrap, None);
        }
        (Some(_), Some(_)) => {
            let list: Vec<String> = named.iter().map(ToString::to_string).collect();
            return Verdict::wait(
                GateKind::ForeignDisks,
                format!(
                    "the disks belong to several clusters ({}): delete or rename the claims that are not of this one",
                    list.join(", ")
                ),
                OperationType::Bootstrap,
                None,
            );
        }
        (None, _) => {}
    }
    if view.desired.is_at_fault(Part::Settings) {
        return Verdict::Wait(Gate::new(GateKind::InvalidSpec, "the log's settings are at fault"), None);
    }
    let first = view.desired.voters().min(view.size());
    let members = match first_members(view, first) {
        Ok(members) => members,
        Err(missing) => {
            return Verdict::wait(GateKind::PodsStarting, missing, OperationType::Bootstrap, None);
        }
    };
    Verdict::step(
        Step::RecordBootstrap { cluster: ClusterId(o.fresh_id), members },
        OperationType::Bootstrap,
        None,
    )
}

/// The ids of the first `n` members, if all of them answer with an empty disk.
fn first_members(view: &View<'_>, n: u32) -> Result<Vec<(u32, MemberId)>, String> {
    let mut members = Vec::new();
    let mut missing = Vec::new();
    for ordinal in 0..n {
        match view.observed.reports.get(&ordinal) {
            Some(r) if r.state == MemberState::Uninitialized => members.push((ordinal, r.member)),
            Some(r) => missing.push(format!("{} is {:?}", view.desired.name.pod(ordinal), r.state)),
            None => missing.push(absence(view, ordinal)),
        }
    }
    if missing.is_empty() && n > 0 { Ok(members) } else { Err(format!("first pods: {}", missing.join("; "))) }
}

/// Why a pod's member does not answer, in words.
pub(super) fn absence(view: &View<'_>, ordinal: u32) -> String {
    let pod = view.desired.name.pod(ordinal);
    match view.observed.pods.get(&ordinal) {
        None => format!("{pod} does not exist yet"),
        Some(p) if p.deleting => format!("{pod} is stopping"),
        Some(p) => match (&p.trouble, view.observed.silent.get(&ordinal)) {
            (Some(trouble), _) => format!("{pod}: {}", trouble.message),
            (None, Some(why)) => format!("{pod}: {why}"),
            (None, None) => format!("{pod} is starting"),
        },
    }
}

/// A log is named: see to it that its first members know of each other.
fn formed(view: &View<'_>, cluster: ClusterId) -> Verdict {
    let o = view.observed;
    let Some(bootstrap) = &o.status.bootstrap else { return adopted(view, cluster) };
    if bootstrap.done {
        return Verdict::Idle;
    }
    let members: Vec<(u32, MemberId)> = bootstrap
        .members
        .iter()
        .filter_map(|m| Some((view.desired.name.ordinal_of_pod(&m.pod)?, m.member_id.parse().ok()?)))
        .collect();
    // Whoever leads was confirmed by all of them: a founder that is lost by now is replaced like any member.
    if view.leader.is_some() {
        return Verdict::step(Step::ConfirmBootstrap, OperationType::Bootstrap, None);
    }
    if bootstrap.members.is_empty() {
        return anew(view);
    }
    match start_over(view, &members) {
        Verdict::Idle => {}
        other => return other,
    }
    let report = |id: MemberId| o.reports.iter().find(|(_, r)| r.member == id);
    let waiting: Vec<u32> = members.iter().filter(|(_, id)| report(*id).is_none()).map(|(o, _)| *o).collect();
    // Who is not there cannot be told; who is there is told at once, so that one late pod costs no round.
    let targets: Vec<u32> = members
        .iter()
        .filter_map(|(_, id)| report(*id))
        .filter(|(_, r)| r.state == MemberState::Uninitialized)
        .map(|(ordinal, _)| *ordinal)
        .collect();
    // A claim that is being deleted outlives no pod, and takes no mark.
    let goes = |c: &ClaimFacts| c.deleting && !planted!(GoingMarksAwaited);
    let marked = |ordinal: &u32| o.claims.get(ordinal).is_none_or(|c| goes(c) || c.cluster == Some(cluster));
    if !targets.is_empty() && targets.iter().all(marked) {
        return Verdict::step(Step::Initialize { cluster, members, targets }, OperationType::Bootstrap, None);
    }
    if !targets.is_empty() {
        return Verdict::wait(
            GateKind::BootstrapAgreement,
            "the claims of the first members are marked",
            OperationType::Bootstrap,
            None,
        );
    }
    if !waiting.is_empty() {
        let missing: Vec<String> = waiting.iter().map(|ordinal| absence(view, *ordinal)).collect();
        return Verdict::wait(
            GateKind::PodsStarting,
            format!("first members: {}", missing.join("; ")),
            OperationType::Bootstrap,
            None,
        );
    }
    Verdict::wait(
        GateKind::BootstrapAgreement,
        "the first members agree on the genesis and elect a leader",
        OperationType::Bootstrap,
        None,
    )
}

/// A founder is lost before all of them agreed: its ordinal answers with a new disk, and nobody can ever
/// confirm the list. Where no listed member has confirmed it nothing can have been chosen (a member promises
/// nothing before): the list is given up, which an empty one records, before anyone starts over. A majority that
/// is lost may have chosen among themselves, and nobody is left to say so: a person decides.
/// docs: operator-rules.md, rule 5.
fn start_over(view: &View<'_>, members: &[(u32, MemberId)]) -> Verdict {
    let o = view.observed;
    let listed = |id: MemberId| members.iter().any(|(_, m)| *m == id);
    let answers = |id: MemberId| o.reports.values().any(|r| r.member == id);
    let is_new = |ordinal: &u32| {
        o.reports.get(ordinal).is_some_and(|r| r.state == MemberState::Uninitialized && !listed(r.member))
    };
    let (here, gone): (Vec<_>, Vec<_>) = members.iter().partition(|(_, id)| answers(*id));
    if gone.is_empty() || !gone.iter().all(|(ordinal, _)| is_new(ordinal)) {
        return Verdict::Idle;
    }
    let confirmed = |id: MemberId| {
        let mut own = o.reports.values().filter(|r| r.member == id);
        own.any(|r| !matches!(r.state, MemberState::Joining | MemberState::Uninitialized))
    };
    if here.iter().any(|(_, id)| confirmed(*id)) && !planted!(StartedOver) {
        return Verdict::Idle;
    }
    if gone.len() >= majority(members.len()) {
        let why = format!(
            "{} of {} first members answer with new disks, and nobody is left who knows whether they held entries: \
             bring their volumes back; if nothing was appended, delete the PaxosCluster and its claims, and make it again",
            gone.len(),
            members.len()
        );
        return Verdict::wait(GateKind::BootstrapAgreement, why, OperationType::Bootstrap, None);
    }
    let cluster = ClusterId(o.fresh_id);
    Verdict::step(Step::RecordBootstrap { cluster, members: Vec::new() }, OperationType::Bootstrap, None)
}

/// A list was given up: whoever was told of it starts over under a new id, then a new list is recorded.
fn anew(view: &View<'_>) -> Verdict {
    let o = view.observed;
    let mut told = o.reports.iter().filter(|(_, r)| r.state == MemberState::Joining);
    if let Some((ordinal, r)) = told.next() {
        let step = Step::Renew { ordinal: *ordinal, member: r.member };
        return Verdict::step(step, OperationType::Bootstrap, *ordinal);
    }
    match first_members(view, view.desired.voters().min(view.size())) {
        Ok(members) => {
            let cluster = ClusterId(o.fresh_id);
            Verdict::step(Step::RecordBootstrap { cluster, members }, OperationType::Bootstrap, None)
        }
        Err(missing) => Verdict::wait(GateKind::PodsStarting, missing, OperationType::Bootstrap, None),
    }
}

/// A log is named and no list stands in status: its disks were adopted. Members with a life need nothing.
/// If every disk is empty still and is the very one its claim was marked for, the forming was cut short
/// before anyone was told, and the marks are the list. docs: operator-rules.md, rules 5 and 14.
fn adopted(view: &View<'_>, cluster: ClusterId) -> Verdict {
    let o = view.observed;
    let alive = o.reports.values().any(|r| r.cluster == Some(cluster));
    if alive || o.reports.is_empty() {
        return if alive && view.leader.is_some() {
            Verdict::step(Step::ConfirmBootstrap, OperationType::Bootstrap, None)
        } else {
            Verdict::Idle
        };
    }
    let marked: Vec<(u32, MemberId)> = o
        .claims
        .iter()
        .filter(|(_, c)| c.cluster == Some(cluster))
        .filter_map(|(o, c)| Some((*o, c.member?)))
        .collect();
    let untouched = |(ordinal, id): &(u32, MemberId)| {
        o.reports.get(ordinal).is_some_and(|r| r.member == *id && r.state == MemberState::Uninitialized)
    };
    if !marked.is_empty() && marked.iter().all(untouched) {
        return Verdict::step(
            Step::RecordBootstrap { cluster, members: marked },
            OperationType::Bootstrap,
            None,
        );
    }
    Verdict::Idle
}
