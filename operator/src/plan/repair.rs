//! Class 6: pods that do not work and whose restart takes nothing away, also without a quorum.
//! docs: operator-rules.md, rules 8 and 9.

use crate::crd::OperationType;
use crate::observed::{MemberState, PodFacts};

use super::{Step, Verdict, View};

/// The first outdated pod that is in trouble and whose member takes no part, or the first pod whose node is
/// gone and whose volume other nodes can use: it comes back elsewhere as the same member.
pub(super) fn verdict(view: &View<'_>) -> Verdict {
    for (ordinal, pod) in &view.observed.pods {
        // Its disk goes with the pod: it is replaced, or somebody has to look.
        if view.claim_goes(*ordinal) {
            continue;
        }
        let part = takes_part(view, *ordinal) && !planted!(BrokenThoughVoting);
        let broken = pod.trouble.is_some() && !part && !pod.deleting;
        let outdated = broken && view.outdated(*ordinal) == Some(true);
        let abandoned = abandoned(view, *ordinal, pod);
        if outdated || abandoned {
            let step = Step::DeletePod { ordinal: *ordinal, uid: pod.uid.clone(), force: abandoned };
            return Verdict::step(step, OperationType::Repair, *ordinal);
        }
    }
    Verdict::Idle
}

/// Whether the member of an ordinal says so, or the leader hears it: either is enough to keep its pod.
fn takes_part(view: &View<'_>, ordinal: u32) -> bool {
    let says_so = view.observed.reports.get(&ordinal).is_some_and(|r| r.state == MemberState::Active);
    says_so || view.members_at(ordinal).iter().any(|m| view.live.contains(m))
}

/// Whether nothing is heard of the pod, its Node object is gone or was declared out of service, and its
/// volume can be used elsewhere.
fn abandoned(view: &View<'_>, ordinal: u32, pod: &PodFacts) -> bool {
    let (Some(nodes), Some(node)) = (&view.observed.nodes, &pod.node) else { return false };
    let gone = nodes.get(node).is_none_or(|n| n.out_of_service) || planted!(ForcedWhereNodesLive);
    let heard = view.observed.reports.contains_key(&ordinal)
        || view.members_at(ordinal).iter().any(|m| view.live.contains(m));
    let usable = view.observed.claims.get(&ordinal).is_some_and(|c| !c.stranded);
    gone && !heard && usable
}
