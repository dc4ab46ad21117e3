//! How fresh an answer must be, as requests say it (docs: protocol.md, "Leases and reads").

use super::failure;
use crate::driver::Handle;
use crate::shared::Shared;
use std::time::Duration;
use synod_paxos::{Consistency as Freshness, Index};
use synod_proto::v1::{Consistency, Reason};
use tokio::time::Instant;
use tonic::Status;

/// How fresh, as a request says it.
pub(super) struct Wanted {
    pub(super) consistency: i32,
    pub(super) at_least: u64,
    pub(super) max_staleness_ms: u32,
}

impl Wanted {
    /// Waits until this member is so fresh; gives the last index applied here then, which a reader may read to.
    pub(super) async fn point(&self, shared: &Shared, deadline: Instant) -> Result<(Handle, Index), Status> {
        let handle = shared.handle();
        let point = match Consistency::try_from(self.consistency) {
            Ok(Consistency::Unspecified | Consistency::Linearizable) => {
                handle.read_point(Freshness::Linearizable, deadline).await
            }
            Ok(Consistency::Sequential) => handle.applied(Index(self.at_least), deadline).await,
            Ok(Consistency::StaleBounded) => {
                let bound = Duration::from_millis(u64::from(self.max_staleness_ms));
                handle.read_point(Freshness::StaleBounded(bound), deadline).await
            }
            Err(_) => {
                let message =
                    "this consistency is not known here: ask for linearizable, sequential or stale-bounded";
                return Err(failure::status(failure::refused(Reason::Consistency, message)));
            }
        };
        let last = point.map_err(|error| failure::status(failure::unanswered(&error)))?;
        Ok((handle, last))
    }
}
