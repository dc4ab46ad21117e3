//! The log's settings: brought in line with the spec by a log entry. docs: operator-rules.md, rule 10.

use crate::crd::OperationType;
use crate::validate::Part;

use super::{Step, Verdict, View};

/// A change, where the leader reports other settings than are wanted. What the leader has applied is the
/// newest there is; a change that another one overtook is refused by its version, and planned anew.
pub(super) fn verdict(view: &View<'_>) -> Verdict {
    let Some(((via, leader), cluster)) = view.leader.zip(view.cluster) else { return Verdict::Idle };
    if view.desired.is_at_fault(Part::Settings) {
        return Verdict::Idle;
    }
    let wanted = view.desired.settings;
    match leader.settings {
        Some(now) if now.values != wanted && !planted!(SettingsForgotten) => Verdict::step(
            Step::ChangeSettings { via, cluster, version: now.version, settings: wanted },
            OperationType::Configure,
            None,
        ),
        // A sidecar that reports no settings cannot change any.
        Some(_) | None => Verdict::Idle,
    }
}
