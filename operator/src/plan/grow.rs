//! Class 11: one more pod, and how its empty disk becomes a member.
//!
//! StatefulSet + 1 -> the pod runs with an empty disk and its own member id -> Join -> AddLearner ->
//! caught up -> Promote -> the next. docs: operator-rules.md, rule 6.

use crate::names::MemberId;
use crate::observed::{ConfigMember, MemberState, Report};

use super::form::absence;
use super::{Change, GateKind, Step, Verdict, View, operation_id};

/// What growing needs next: the pods there are first, then one more.
pub(super) fn verdict(view: &View<'_>) -> Verdict {
    let mut starting = None;
    for ordinal in 0..view.size().min(view.desired.replicas) {
        match admit(view, ordinal) {
            Verdict::Idle => {}
            // A pod that does not start is no member yet: it keeps none that has started from becoming one.
            Verdict::Wait(gate, operation) if gate.kind == GateKind::PodsStarting => {
                starting.get_or_insert(Verdict::Wait(gate, operation));
            }
            other => return other,
        }
    }
    if let Some(starting) = starting {
        return starting;
    }
    let (from, to) = (view.size(), view.size() + 1);
    if from >= view.desired.replicas {
        return Verdict::Idle;
    }
    let kind = view.grow_kind(from);
    if view.observed.claims.get(&from).is_some_and(|c| c.deleting) {
        let why = format!("the old claim {} is deleted first", view.desired.name.claim(from));
        return Verdict::wait(GateKind::ClaimTerminating, why, kind, from);
    }
    if view.observed.pods.contains_key(&from) {
        let why = format!("the old {} stops first", view.desired.name.pod(from));
        return Verdict::wait(GateKind::PodsStopping, why, kind, from);
    }
    Verdict::step(Step::Scale { from, to }, kind, from)
}

/// Brings the pod of one ordinal into the configuration.
pub(super) fn admit(view: &View<'_>, ordinal: u32) -> Verdict {
    let kind = view.grow_kind(ordinal);
    let Some(report) = view.observed.reports.get(&ordinal) else {
        // A configured member that is silent is not a matter of growing.
        if view.members_at(ordinal).is_empty() {
            return Verdict::wait(GateKind::PodsStarting, absence(view, ordinal), kind, ordinal);
        }
        return Verdict::Idle;
    };
    let (Some(cluster), Some(config), Some((via, leader))) = (view.cluster, view.config, view.leader) else {
        return Verdict::Idle;
    };
    let change = |verb: &str| Change {
        via,
        cluster,
        version: config.version,
        operation: operation_id(cluster, config.version, verb, report.member),
        member: report.member,
        ordinal,
    };
    if let Some(member) = config.get(report.member) {
        if member.voter {
            return Verdict::Idle;
        }
        // Those that are about to leave keep nobody from a vote: the last of them may be all there is.
        let stays = |m: &&ConfigMember| view.homes.get(&m.member).is_none_or(|o| *o < view.desired.replicas);
        let voters = u32::try_from(config.voters().filter(stays).count()).unwrap_or(u32::MAX);
        if voters >= view.desired.voters() && !planted!(PromotedPastTheMost) {
            return Verdict::Idle;
        }
        if !view.caught_up(report.member) {
            let why = format!("{} catches up with the log", view.desired.name.pod(ordinal));
            return Verdict::wait(GateKind::CatchingUp, why, kind, ordinal);
        }
        return Verdict::step(Step::Promote(change("promote")), kind, ordinal);
    }
    if report.cluster.is_some_and(|c| c != cluster) {
        let why = format!(
            "the disk of {} belongs to another cluster: delete its claim {} if it may go",
            view.desired.name.pod(ordinal),
            view.desired.name.claim(ordinal)
        );
        return Verdict::wait(GateKind::ForeignDisks, why, kind, ordinal);
    }
    match report.state {
        MemberState::Uninitialized => {
            let digest = leader.genesis_digest.clone();
            Verdict::step(Step::Join { ordinal, cluster, digest }, kind, ordinal)
        }
        MemberState::Removed if planted!(RemovedAddedAgain) => {
            Verdict::step(Step::AddLearner(change("add")), kind, ordinal)
        }
        MemberState::Removed => Verdict::step(Step::Renew { ordinal, member: report.member }, kind, ordinal),
        // Whether it still waits for the log or follows it already is its own affair.
        MemberState::Joining | MemberState::Recovering | MemberState::Active
            if !was_removed(leader, report.member) && !retired(view, ordinal) =>
        {
            Verdict::step(Step::AddLearner(change("add")), kind, ordinal)
        }
        MemberState::Halted => {
            let why = format!("{} halted: its log says why", view.desired.name.pod(ordinal));
            Verdict::wait(GateKind::MembersNotReady, why, kind, ordinal)
        }
        MemberState::Joining | MemberState::Recovering | MemberState::Active | MemberState::Fenced => {
            let pod = view.desired.name.pod(ordinal);
            let why = format!("{pod} learns that its member {} was removed", report.member);
            Verdict::wait(GateKind::MembersNotReady, why, kind, ordinal)
        }
    }
}

/// Whether the claim says that its member was removed: the disk is not added again under that id.
fn retired(view: &View<'_>, ordinal: u32) -> bool {
    view.observed.claims.get(&ordinal).is_some_and(|c| c.retired.is_some())
}

fn was_removed(leader: &Report, member: MemberId) -> bool {
    leader.removed.iter().any(|r| r.member == member)
}
