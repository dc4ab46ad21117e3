//! Class 8: members whose disks are lost, empty or rolled back leave the configuration; their ordinals
//! start over with new ids. Removal is the fence: a claim or a pod goes only afterwards.
//! docs: operator.md, rule 8.

use crate::crd::{OperationType, ReplaceLost};
use crate::names::MemberId;
use crate::observed::MemberState;

use super::{Step, Verdict, View, grow, shrink};

/// What replacing needs next.
pub(super) fn verdict(view: &View<'_>) -> Verdict {
    let kind = OperationType::Replace;
    if let Some((member, ordinal)) = lost(view) {
        return shrink::remove(view, member, ordinal, kind);
    }
    // What a removed member left at an ordinal that stays: its disk, then its pod, both by UID.
    for ordinal in 0..view.size().min(view.desired.replicas) {
        let (Some(pod), Some(claim)) = (view.observed.pods.get(&ordinal), view.observed.claims.get(&ordinal))
        else {
            continue;
        };
        let Some(member) = view.observed.reports.get(&ordinal).map(|r| r.member).or(claim.member) else {
            continue;
        };
        let fenced = view.observed.reports.get(&ordinal).is_some_and(|r| r.state == MemberState::Fenced);
        let homeless = homeless(view, ordinal);
        if view.configured(member) || !view.retired(member) || !(fenced || homeless) {
            continue;
        }
        if !claim.deleting {
            return Verdict::step(Step::DeleteClaim { ordinal, uid: claim.uid.clone() }, kind, ordinal);
        }
        let step = Step::DeletePod { ordinal, uid: pod.uid.clone(), force: homeless };
        if homeless || !pod.deleting {
            return Verdict::step(step, kind, ordinal);
        }
    }
    // The new disk at a replaced ordinal is brought in before anybody else leaves.
    match view.running_operation() {
        Some(op) if op.kind == kind => match op.ordinal {
            Some(ordinal) if ordinal < view.size().min(view.desired.replicas) => grow::admit(view, ordinal),
            _ => Verdict::Idle,
        },
        _ => Verdict::Idle,
    }
}

/// A configured member that will not come back by itself, and its ordinal.
fn lost(view: &View<'_>) -> Option<(MemberId, u32)> {
    let config = view.config?;
    let o = view.observed;
    config.members.iter().find_map(|m| {
        let ordinal = *view.homes.get(&m.member)?;
        let declared = o.replace == Some(m.member);
        let report = o.reports.get(&ordinal);
        let answers = report.is_some_and(|r| r.member == m.member);
        let fenced = report.is_some_and(|r| r.member == m.member && r.state == MemberState::Fenced);
        // The ordinal answers, with a disk that has had no life: the old one is gone.
        let emptied = !answers
            && report.is_some_and(|r| {
                matches!(r.state, MemberState::Uninitialized | MemberState::Joining)
                    && !view.configured(r.member)
            });
        let stranded = !answers
            && view.desired.spec.storage.replace_lost == ReplaceLost::NodeGone
            && homeless(view, ordinal);
        (declared || fenced || emptied || stranded).then_some((m.member, ordinal))
    })
}

/// Whether the pod's Node object is gone, or its volume fits no node there is. `None` nodes: the operator
/// may not read them, nothing is lost.
fn homeless(view: &View<'_>, ordinal: u32) -> bool {
    let Some(nodes) = &view.observed.nodes else { return false };
    let node = view.observed.pods.get(&ordinal).and_then(|p| p.node.as_ref());
    let stranded = view.observed.claims.get(&ordinal).is_some_and(|c| c.stranded);
    stranded || node.is_some_and(|n| !nodes.contains(n))
}
