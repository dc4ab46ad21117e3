//! Pages of the log, forwards and backwards.

use super::{convert, failure};
use crate::driver::Handle;
use synod_paxos::Index;
use synod_proto::v1::{Entry, Reason};
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::Status;

/// Entries and bytes of one page, about.
pub(super) const PAGE: (usize, usize) = (1_024, 256 << 10);

/// Pages of this process that are in memory and counted nowhere else, from before they are read until they are given to the
/// transport.
static IN_HAND: Semaphore = Semaphore::const_new(4);

/// A page's place among those in hand, to be dropped once it is counted otherwise.
pub(super) type Turn = SemaphorePermit<'static>;

/// Waits for a place in hand. Each of those before is given on soon, but for those that [`super::paced`] lets wait, which are
/// fewer than there are places.
pub(super) async fn turn() -> Option<Turn> {
    // It is never closed.
    IN_HAND.acquire().await.ok()
}

/// A reader's place in the log.
pub(super) struct Reading {
    pub(super) handle: Handle,
    pub(super) next: Index,
}

impl Reading {
    /// The next entries, up to `through`, which is applied; at least one, at most `bounds`.
    pub(super) async fn page(
        &mut self,
        through: Index,
        bounds: (usize, usize),
    ) -> Result<Vec<Entry>, Status> {
        let found = self.handle.entries(self.next, through, bounds).await;
        // Asked after the read: a trim that overtook it is no damage (docs: reliability.md, fault 41).
        self.check_retained()?;
        let found = found.map_err(|error| {
            tracing::error!(%error, index = self.next.0, "the log cannot be read");
            failure::status(failure::storage(&error))
        })?;
        if found.is_empty() {
            tracing::error!(
                index = self.next.0,
                through = through.0,
                "applied entries are missing on the disk"
            );
            let message = format!("entry {} is missing on this member's disk", self.next);
            return Err(failure::status(failure::refused(Reason::Damaged, message)));
        }
        let first = self.next.0;
        self.next = self.next.plus(found.len() as u64);
        Ok((first..).zip(found).map(|(index, logged)| convert::entry(index, logged)).collect())
    }

    /// What comes next was not trimmed.
    pub(super) fn check_retained(&self) -> Result<(), Status> {
        let first = self.handle.first_index();
        if self.next < first {
            return Err(failure::status(failure::compacted(first, self.handle.newest_checkpoint())));
        }
        Ok(())
    }

    /// The entries up to `last`, which is applied, the newest first: as many as fit, one at least. They are read forwards,
    /// from further and further back only as far as they fit.
    pub(super) async fn page_back(
        handle: &Handle,
        last: Index,
        (entries, bytes): (usize, usize),
    ) -> Result<Vec<Entry>, Status> {
        let first = handle.first_index();
        let mut count = (last.0 + 1 - first.0.min(last.0 + 1)).min(entries as u64).max(1);
        loop {
            let from = Index(last.0 + 1 - count);
            let mut reading = Reading { handle: handle.clone(), next: from };
            let mut found = reading.page(last, (entries, bytes)).await?;
            if found.len() as u64 == count {
                found.reverse();
                return Ok(found);
            }
            // As many as came are about as many as fit.
            count = (found.len() as u64).min(count / 2).max(1);
        }
    }
}
