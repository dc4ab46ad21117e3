//! Class 8: members whose disks are lost, empty or rolled back leave the configuration; their ordinals
//! start over with new ids. Removal is the fence: a claim or a pod goes only afterwards.
//! docs: operator-rules.md, rule 8.

use crate::crd::{OperationType, ReplacePolicy};
use crate::names::MemberId;
use crate::observed::MemberState;

use super::{GateKind, Step, Verdict, View, grow, shrink};

const KIND: OperationType = OperationType::Replace;

/// A replacement that was begun: what the removed member left at an ordinal that stays, then the new disk,
/// until it votes. Nobody else leaves before.
pub(super) fn under_way(view: &View<'_>) -> Verdict {
    for ordinal in 0..view.size().min(view.desired.replicas) {
        match leftover(view, ordinal) {
            Verdict::Idle => {}
            other => return other,
        }
    }
    let ordinal = view.running_operation().filter(|op| op.kind == KIND).and_then(|op| op.ordinal);
    match ordinal {
        // Not before the old one is out: two members at one ordinal would be one too many for its pod.
        Some(ordinal)
            if ordinal < view.size().min(view.desired.replicas) && !awaits_removal(view, ordinal) =>
        {
            grow::admit(view, ordinal)
        }
        _ => Verdict::Idle,
    }
}

fn awaits_removal(view: &View<'_>, ordinal: u32) -> bool {
    view.members_at(ordinal).into_iter().any(|m| cause(view, m, ordinal).is_some())
}

/// The next member to take out.
pub(super) fn begin(view: &View<'_>) -> Verdict {
    let Some((cause, member, ordinal)) = lost(view) else { return Verdict::Idle };
    // One that takes no part, whoever says that it is lost, waits for nobody else.
    if cause != Cause::Gone && view.live.contains(&member) {
        // It still takes part: an empty disk that is to go goes first,
        let size = view.size();
        if size > view.desired.replicas && view.members_at(size - 1).is_empty() {
            return Verdict::Idle;
        }
        // and whoever is on the way to a vote gets there first.
        for other in 0..view.size().min(view.desired.replicas) {
            match grow::admit(view, other) {
                Verdict::Idle => {}
                other => return other,
            }
        }
    }
    shrink::remove(view, member, ordinal, KIND)
}

/// What a removed member left: its disk goes first, then its pod, both by UID. One that answers and whose
/// disk works starts over on it instead (`grow`).
fn leftover(view: &View<'_>, ordinal: u32) -> Verdict {
    let o = view.observed;
    let Some(claim) = o.claims.get(&ordinal) else { return Verdict::Idle };
    let report = o.reports.get(&ordinal);
    let Some(member) = report.map(|r| r.member).or(claim.member) else { return Verdict::Idle };
    if view.configured(member) || !view.retired(member) {
        return Verdict::Idle;
    }
    let declared = o.replace == Some(member);
    let fenced = report.is_some_and(|r| r.state == MemberState::Fenced);
    let kept = claim.retired.is_some() && !declared;
    if kept || !(declared || fenced || claim.deleting || report.is_none()) {
        return Verdict::Idle;
    }
    if !claim.deleting {
        return Verdict::step(Step::DeleteClaim { ordinal, uid: claim.uid.clone() }, KIND, ordinal);
    }
    match o.pods.get(&ordinal) {
        // A pod that runs nowhere holds no claim.
        Some(pod) if pod.node.is_some() && (!pod.deleting || report.is_none()) => {
            // Force only where nothing would be heard of its end: its member is removed already.
            let force = report.is_none();
            Verdict::step(Step::DeletePod { ordinal, uid: pod.uid.clone(), force }, KIND, ordinal)
        }
        _ => {
            let why = format!("the old claim {} goes", view.desired.name.claim(ordinal));
            Verdict::wait(GateKind::ClaimTerminating, why, KIND, ordinal)
        }
    }
}

/// Why a member is to be replaced: those that take no part any more go first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    /// Its disk is empty, rolled back, or can be used nowhere any more.
    Gone,
    /// A person says so.
    Declared,
    /// Its claim is being deleted: the disk goes with the pod.
    Going,
}

/// A configured member that will not come back by itself, why, and its ordinal. The leader last.
fn lost(view: &View<'_>) -> Option<(Cause, MemberId, u32)> {
    let leader = view.leader.map(|(_, r)| r.member);
    let members = view.config.map(|c| c.members.as_slice()).unwrap_or_default();
    let found = members.iter().filter_map(|m| {
        let ordinal = *view.homes.get(&m.member)?;
        let cause = cause(view, m.member, ordinal)?;
        Some((cause, leader == Some(m.member), ordinal, m.member))
    });
    found.min().map(|(cause, _, ordinal, member)| (cause, member, ordinal))
}

fn cause(view: &View<'_>, member: MemberId, ordinal: u32) -> Option<Cause> {
    let o = view.observed;
    let report = o.reports.get(&ordinal);
    let answers = report.is_some_and(|r| r.member == member);
    let fenced =
        report.is_some_and(|r| r.member == member && r.state == MemberState::Fenced) && !planted!(FencedKept);
    // The ordinal answers with another disk, one without a life or another member's: the old one is gone.
    let emptied = !answers
        && report.is_some_and(|r| {
            matches!(r.state, MemberState::Uninitialized | MemberState::Joining)
                || (view.configured(r.member) && is_nowhere(view, member))
        });
    if fenced || emptied || stranded(view, member, ordinal) {
        return Some(Cause::Gone);
    }
    if o.replace == Some(member) && !planted!(DeclaredForgotten) {
        return Some(Cause::Declared);
    }
    // One that is to leave needs no new disk: until it does, it may hold the last whole copy.
    let stays = ordinal < view.desired.replicas;
    let claim = o.claims.get(&ordinal).filter(|c| stays && c.deleting && c.retired.is_none())?;
    // A silent one may run from another silent pod's claim: volumes can have changed places.
    let elsewhere = (0..view.size()).any(|other| other != ordinal && !o.reports.contains_key(&other));
    let unsure = !claim.stranded && view.silent(member) && elsewhere;
    (!unsure || planted!(GoingTakenByItsPod)).then_some(Cause::Going)
}

/// Whether every pod answers and none of them is the member. Where one is silent the member may be there: volumes
/// can have changed places.
fn is_nowhere(view: &View<'_>, member: MemberId) -> bool {
    let everyone = planted!(SwapTakenForLoss);
    (0..view.size()).all(|ordinal| everyone || view.observed.reports.contains_key(&ordinal))
        && (everyone || view.silent(member))
}

/// Whether the member's volume has been unusable anywhere for longer than `replaceLost.after`.
fn stranded(view: &View<'_>, member: MemberId, ordinal: u32) -> bool {
    if view.desired.spec.storage.replace_lost.policy != ReplacePolicy::NodeGone
        || !view.stranded(ordinal, member)
    {
        return false;
    }
    let after = if planted!(GivenUpAtOnce) { 0 } else { i128::from(view.desired.replace_after_ms) };
    view.stranded_since(ordinal, member)
        .is_some_and(|since| view.observed.now.duration_since(since).as_millis() >= after)
}
