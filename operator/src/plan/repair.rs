//! Class 6: outdated pods that do not work are restarted first, also without a quorum: they take nothing
//! away, and a mended template could not reach them otherwise. docs: operator.md, rule 9.

use crate::crd::OperationType;

use super::{Step, Verdict, View};

/// The first outdated pod that is in trouble and whose member takes no part.
pub(super) fn verdict(view: &View<'_>) -> Verdict {
    for (ordinal, pod) in &view.observed.pods {
        let takes_part = view.observed.reports.get(ordinal).is_some_and(|r| view.live.contains(&r.member));
        let broken = pod.trouble.is_some() && !takes_part && !pod.deleting;
        if broken && view.outdated(*ordinal) == Some(true) {
            let step = Step::DeletePod { ordinal: *ordinal, uid: pod.uid.clone(), force: false };
            return Verdict::step(step, OperationType::Repair, *ordinal);
        }
    }
    Verdict::Idle
}
