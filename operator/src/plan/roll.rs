//! Class 10: pods of an older revision are restarted, one at a time, by the eviction API; the leader last,
//! after it has handed over. docs: operator-rules.md, rule 9.

use crate::crd::OperationType;

use crate::observed::PodFacts;
use crate::validate::Part;

use super::form::absence;
use super::{GateKind, Step, Verdict, View};

/// How long a pod with an application must have been ready before the next one is restarted.
const MIN_READY_SECONDS: i64 = 10;

/// The next pod to restart.
pub(super) fn verdict(view: &View<'_>) -> Verdict {
    let kind = OperationType::Roll;
    // The operator cannot write the template now: what stands may be by somebody's hand. docs: decisions/0045.
    let stands = view.observed.waits_turn || view.desired.is_at_fault(Part::Template);
    if stands && !planted!(HandTemplateRolled) {
        return Verdict::Idle;
    }
    let mut outdated = Vec::new();
    for (ordinal, pod) in &view.observed.pods {
        match view.outdated(*ordinal) {
            None => {
                let why = "the StatefulSet controller sees the new template";
                return Verdict::wait(GateKind::RevisionUnknown, why, kind, None);
            }
            Some(true) => outdated.push((*ordinal, pod)),
            // Its file system grows when the pod restarts. docs: operator-rules.md, rule 11.
            Some(false) if view.observed.claims.get(ordinal).is_some_and(|c| c.waits_for_restart) => {
                outdated.push((*ordinal, pod));
            }
            Some(false) => {}
        }
    }
    if outdated.is_empty() {
        return Verdict::Idle;
    }
    if let Some(gate) = others_not_ready(view).filter(|_| !planted!(RestartUnchecked)) {
        return gate;
    }
    let leader = view.leader.map(|(ordinal, _)| ordinal);
    // Whoever is not ready already first, the leader too: the budget counts it as down, and would let none of the
    // others go. Then the highest ordinal, as a StatefulSet would; the leader last.
    let follows = |(o, _): &&(u32, &PodFacts)| Some(*o) != leader;
    let unready = || outdated.iter().rev().filter(|(_, p)| !p.ready && !planted!(UnreadyLast));
    let next = unready().find(follows).or(unready().next());
    let next = next.or(outdated.iter().rev().find(follows)).or(outdated.last());
    let Some((ordinal, pod)) = next else { return Verdict::Idle };
    if view.claim_goes(*ordinal) && !planted!(GoingDiskRestarted) {
        let claim = view.desired.name.claim(*ordinal);
        let why = format!("claim {claim} is being deleted: its disk would go with the pod");
        return Verdict::wait(GateKind::ClaimTerminating, why, kind, *ordinal);
    }
    let member = view.observed.reports.get(ordinal).map(|r| r.member);
    let votes = member.is_some_and(|m| view.voters().contains(&m));
    let voters = view.voters().len();
    if let (Some(member), true) = (member, votes && voters > 2)
        && !view.quorum_while_down(member)
        && !planted!(RestartUnchecked)
    {
        let why =
            format!("while {} restarts the other voters would be no quorum", view.desired.name.pod(*ordinal));
        return Verdict::wait(GateKind::QuorumAtRisk, why, kind, *ordinal);
    }
    if Some(*ordinal) == leader && voters > 1 && !planted!(LeaderEvicted) {
        return match (view.successor(*ordinal), view.cluster) {
            (Some((to, member)), Some(cluster)) => {
                Verdict::step(Step::TransferLeader { from: *ordinal, to, member, cluster }, kind, *ordinal)
            }
            _ => Verdict::wait(
                GateKind::NoSuccessor,
                format!("{} leads and no other voter has caught up", view.desired.name.pod(*ordinal)),
                kind,
                *ordinal,
            ),
        };
    }
    let (ordinal, uid) = (*ordinal, pod.uid.clone());
    if !pod.ready {
        // Its member takes part and its application does not. With the same poison in every pod the budget
        // would refuse each eviction, and the mended template could never arrive. The budget counts this
        // pod as down already, and the quorum was checked above.
        return Verdict::step(Step::DeletePod { ordinal, uid, force: false }, kind, ordinal);
    }
    Verdict::step(Step::Evict { ordinal, uid }, kind, ordinal)
}

/// Every voter takes part and keeps up, and every pod of the new revision has been ready for a while, before
/// the next one is restarted: a bad revision stops at its first pod. What has no vote holds nobody up, and a
/// pod that finds no node says nothing about its revision. docs: operator-rules.md, rule 9.
fn others_not_ready(view: &View<'_>) -> Option<Verdict> {
    let kind = OperationType::Roll;
    let wait = |gate, why: String, ordinal| Some(Verdict::wait(gate, why, kind, ordinal));
    for ordinal in 0..view.size() {
        let name = view.desired.name.pod(ordinal);
        let votes = view.members_at(ordinal).iter().any(|m| view.voters().contains(m));
        let Some(pod) = view.observed.pods.get(&ordinal).filter(|p| !p.deleting) else {
            if votes {
                return wait(GateKind::PodsStarting, absence(view, ordinal), ordinal);
            }
            continue;
        };
        match view.observed.reports.get(&ordinal) {
            None if votes => return wait(GateKind::MembersNotReady, absence(view, ordinal), ordinal),
            Some(report) if votes && !(report.ready && view.caught_up(report.member)) => {
                let why = if report.reason.is_empty() { "it is catching up" } else { &report.reason };
                return wait(GateKind::MembersNotReady, format!("{name}: {why}"), ordinal);
            }
            _ => {}
        }
        if view.outdated(ordinal) == Some(false) && pod.node.is_some() && !is_settled(view, pod) {
            let why = pod.trouble.as_ref().map_or("it becomes ready and stays so", |t| &t.message);
            return wait(GateKind::MembersNotReady, format!("{name}: {why}"), ordinal);
        }
    }
    None
}

/// Whether a pod of the new revision can be trusted: an application that ends after some seconds is ready
/// for a moment in each pod.
fn is_settled(view: &View<'_>, pod: &PodFacts) -> bool {
    let wait = if view.desired.has_application() { MIN_READY_SECONDS } else { 0 };
    let ready_for = pod.ready_since.map(|since| view.observed.now.duration_since(since).as_secs());
    pod.ready && ready_for.is_none_or(|seconds| seconds >= wait)
}
