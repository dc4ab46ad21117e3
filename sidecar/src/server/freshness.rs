//! How fresh an answer must be, as requests say it (docs: protocol.md, "Leases and reads").

use super::{active, failure};
use crate::driver::Handle;
use crate::shared::Shared;
use std::time::Duration;
use synod_paxos::{Consistency as Freshness, Index};
use synod_proto::v1::consistency::Kind;
use synod_proto::v1::{Consistency, Reason, Sequential, StaleBounded};
use tokio::time::Instant;
use tonic::Status;

/// What is older than this is as good as anything.
const STALEST: Duration = Duration::from_secs(30 * 24 * 3_600);

/// Waits until this member is so fresh, linearizable where nothing is said; gives the last index applied here then,
/// which a reader may read to.
pub(super) async fn point(
    shared: &Shared,
    consistency: Option<Consistency>,
    deadline: Instant,
) -> Result<(Handle, Index), Status> {
    active(shared)?;
    let handle = shared.handle();
    let point = match consistency.and_then(|consistency| consistency.kind) {
        None | Some(Kind::Linearizable(_)) => handle.read_point(Freshness::Linearizable, deadline).await,
        Some(Kind::Sequential(Sequential { at_least })) => handle.applied(Index(at_least), deadline).await,
        Some(Kind::StaleBounded(StaleBounded { max })) => {
            let Some(bound) = max.as_ref().and_then(synod_proto::span) else {
                let message = "stale-bounded needs `max`: how old the answer may be, a positive duration";
                return Err(failure::status(failure::refused(Reason::Consistency, message)));
            };
            let bound = Freshness::StaleBounded(bound.min(STALEST));
            handle.read_point(bound, deadline).await
        }
    };
    let last = point.map_err(|error| failure::status(failure::unanswered(&error)))?;
    Ok((handle, last))
}
