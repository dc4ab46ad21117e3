//! Claims follow `whenDeleted` and grow to `storage.size`, in every state of the cluster: beside the step and
//! before it, with or without a quorum. docs: operator-rules.md, rules 11 and 14.

use crate::crd::WhenDeleted;

use super::{ClaimChange, ClaimPatch, View};

/// Every claim that differs. While the cluster is paused or being deleted, or its spec is at fault, only what
/// decides whether data outlives it.
pub(super) fn patches(view: &View<'_>, only_ownership: bool) -> Vec<ClaimPatch> {
    let owned = view.desired.spec.storage.when_deleted == WhenDeleted::Delete;
    let mut patches = Vec::new();
    for (ordinal, claim) in view.observed.claims.iter().filter(|(_, c)| !c.deleting) {
        let mut patch = |change| {
            patches.push(ClaimPatch { ordinal: *ordinal, uid: claim.uid.clone(), change });
        };
        if claim.owned != owned {
            patch(ClaimChange::Own(owned));
        }
        // A retired disk grows when it comes back.
        let grows = claim.requested < view.desired.storage_bytes && claim.retired.is_none();
        if grows && !only_ownership {
            patch(ClaimChange::Resize(view.desired.spec.storage.size.clone()));
        }
    }
    patches
}
