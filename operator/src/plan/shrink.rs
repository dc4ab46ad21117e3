//! Class 9: members beyond the wanted number leave, the highest ordinal first; then their pods and disks.
//!
//! Leadership away (confirmed) -> RemoveMember -> retired -> StatefulSet - 1 -> the pod gone -> its claim
//! deleted by UID, or labelled under `whenScaled: Retain`. docs: operator-rules.md, rule 7.

use crate::crd::{OperationType, WhenScaled};
use crate::names::MemberId;

use super::{Change, GateKind, Step, Verdict, View, operation_id};

/// What shrinking needs next.
pub(super) fn verdict(view: &View<'_>) -> Verdict {
    match leftovers(view) {
        Verdict::Idle => {}
        other => return other,
    }
    let size = view.size();
    if size <= view.desired.replicas {
        return Verdict::Idle;
    }
    let ordinal = size - 1;
    match view.members_at(ordinal).first() {
        Some(_) if planted!(SizeFirst) => {
            Verdict::step(Step::Scale { from: size, to: ordinal }, OperationType::Shrink, ordinal)
        }
        Some(member) => remove(view, *member, ordinal, OperationType::Shrink),
        None => match missing(view, ordinal).filter(|_| !planted!(UnknownDiskShrunk)) {
            Some(gate) => gate,
            None => Verdict::step(Step::Scale { from: size, to: ordinal }, OperationType::Shrink, ordinal),
        },
    }
}

/// A configured member of which nothing is heard, while this pod is silent, too: its disk may be this pod's.
fn missing(view: &View<'_>, ordinal: u32) -> Option<Verdict> {
    let o = view.observed;
    let disk = o.claims.get(&ordinal).is_some_and(|c| c.volume.is_some() && !c.stranded);
    if !disk || o.reports.contains_key(&ordinal) {
        return None;
    }
    let member = view.config?.members.iter().map(|m| m.member).find(|m| view.silent(*m))?;
    let pod = view.desired.name.pod(ordinal);
    let why =
        format!("{pod} does not answer, and its disk may be that of member {member}, which is silent, too");
    Some(Verdict::wait(GateKind::MembersNotReady, why, OperationType::Shrink, ordinal))
}

/// Takes a member out: hands leadership over first, and never at the price of the quorum.
pub(super) fn remove(view: &View<'_>, member: MemberId, ordinal: u32, kind: OperationType) -> Verdict {
    let pod = view.desired.name.pod(ordinal);
    let (Some((via, leader)), Some(cluster), Some(config)) = (view.leader, view.cluster, view.config) else {
        return Verdict::wait(GateKind::NoLeader, "a leader is elected", kind, ordinal);
    };
    if config.get(member).is_some_and(|m| m.voter) && !view.quorum_without(member) {
        let hint = if config.voters().count() < 3 { ": raise spec.replicas" } else { "" };
        let why = format!("without {pod} the remaining voters would have no live quorum{hint}");
        return Verdict::wait(GateKind::QuorumAtRisk, why, kind, ordinal);
    }
    if leader.member == member && !planted!(LeaderRemoved) {
        return match view.successor(ordinal) {
            Some((to, member)) => {
                Verdict::step(Step::TransferLeader { from: ordinal, to, member, cluster }, kind, ordinal)
            }
            None => Verdict::wait(
                GateKind::NoSuccessor,
                format!("{pod} leads and no other voter has caught up"),
                kind,
                ordinal,
            ),
        };
    }
    let operation = operation_id(cluster, config.version, "remove", member);
    let change = Change { via, cluster, version: config.version, operation, member, ordinal };
    Verdict::step(Step::RemoveMember(change), kind, ordinal)
}

/// Claims beyond the set whose pods are gone and whose members are no members any more.
fn leftovers(view: &View<'_>) -> Verdict {
    let Some(config) = view.config.filter(|_| !planted!(ClaimsLeft)) else { return Verdict::Idle };
    for (ordinal, claim) in view.observed.claims.iter().filter(|(o, _)| **o >= view.size()) {
        let pod = view.desired.name.pod(*ordinal);
        if view.observed.pods.contains_key(ordinal) {
            return Verdict::wait(
                GateKind::PodsStopping,
                format!("{pod} stops"),
                OperationType::Shrink,
                *ordinal,
            );
        }
        // A claim without a mark never had a pod that answered: whose it is cannot be known, so it stays.
        let Some(member) = claim.member else { continue };
        if claim.deleting || claim.retired.is_some() || config.get(member).is_some() {
            continue;
        }
        let uid = claim.uid.clone();
        let step = match view.desired.spec.storage.when_scaled {
            WhenScaled::Delete => Step::DeleteClaim { ordinal: *ordinal, uid },
            WhenScaled::Retain if planted!(RetainIgnored) => Step::DeleteClaim { ordinal: *ordinal, uid },
            WhenScaled::Retain => Step::RetireClaim { ordinal: *ordinal, uid, member },
        };
        return Verdict::step(step, OperationType::Shrink, *ordinal);
    }
    Verdict::Idle
}
