//! Where in the log a time is.

use super::reading::Reading;
use crate::driver::Handle;
use synod_paxos::{Index, Time};
use synod_proto::v1::Entry;
use tonic::Status;

/// The first index that can be read here whose entry is of `time` or later; where there is none, the one behind the last.
/// Times never go back along the log, so that a few entries are looked at only, whatever its length.
pub(super) async fn index_at(handle: &Handle, time: Time) -> Result<Index, Status> {
    let (mut from, mut behind) = (handle.first_index(), handle.position().index.next());
    while from < behind {
        let middle = Index(from.0 + (behind.0 - from.0) / 2);
        let mut reading = Reading { handle: handle.clone(), next: middle };
        match reading.page(middle, (1, 1)).await {
            Ok(page) if page.first().is_some_and(|entry| is_at(entry, time)) => behind = middle,
            Ok(_) => from = middle.next(),
            // It was trimmed meanwhile, and so is everything before it.
            Err(_) if middle < handle.first_index() => from = handle.first_index(),
            Err(status) => return Err(status),
        }
    }
    Ok(from.max(handle.first_index()))
}

/// Whether an entry is of `time` or later; one without a time is before any.
pub(super) fn is_at(entry: &Entry, time: Time) -> bool {
    entry.time.as_ref().and_then(synod_proto::micros).is_some_and(|micros| Time(micros) >= time)
}
