//! Deleting what is trimmed, a bounded number of rows at a time.

use super::StorageError;
use super::encoding::{MARKS, ROWS, SKIPPED};
use redb::{ReadableTable, WriteTransaction};
use synod_paxos::Slot;

/// Trimmed rows that one commit deletes: what is trimmed at once must not hold up what is appended.
const TRIM_ROWS: usize = 512;

/// Deletes up to [`TRIM_ROWS`] of the rows up to `through`, with what is known of them; false: some are left.
pub(super) fn delete_trimmed(transaction: &WriteTransaction, through: Slot) -> Result<bool, StorageError> {
    let mut rows = transaction.open_table(ROWS)?;
    let mut last = None;
    let mut count = 0;
    for row in rows.range(..=through.0)?.take(TRIM_ROWS) {
        last = Some(row?.0.value());
        count += 1;
    }
    let done = count < TRIM_ROWS;
    let Some(through) = (if done { Some(through.0) } else { last }) else { return Ok(true) };
    rows.retain_in(..=through, |_, _| false)?;
    transaction.open_table(SKIPPED)?.retain_in(..=through, |_, _| false)?;
    // Marks are by index, in the order of their slots.
    let mut marks = transaction.open_table(MARKS)?;
    let mut behind = u64::MAX;
    for mark in marks.iter()? {
        let (first, place) = mark?;
        if place.value().0 > through {
            behind = first.value();
            break;
        }
    }
    marks.retain_in(..behind, |_, _| false)?;
    Ok(done)
}
