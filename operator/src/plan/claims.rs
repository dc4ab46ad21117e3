//! Class 12: claims grow to `storage.size`, and follow their cluster into deletion or not.
//! docs: operator.md, rules 11 and 14.

use crate::crd::{OperationType, WhenDeleted};

use super::{Step, Verdict, View};

/// The first claim that differs.
pub(super) fn verdict(view: &View<'_>) -> Verdict {
    let owned = view.desired.spec.storage.when_deleted == WhenDeleted::Delete;
    for (ordinal, claim) in view.observed.claims.iter().filter(|(_, c)| !c.deleting) {
        let (ordinal, uid) = (*ordinal, claim.uid.clone());
        if claim.owned != owned {
            return Verdict::step(Step::OwnClaim { ordinal, uid, owned }, OperationType::Resize, ordinal);
        }
        if claim.requested < view.desired.storage_bytes && ordinal < view.size() {
            let size = view.desired.spec.storage.size.clone();
            return Verdict::step(Step::ResizeClaim { ordinal, uid, size }, OperationType::Resize, ordinal);
        }
    }
    Verdict::Idle
}
