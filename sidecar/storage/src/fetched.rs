//! Parts of a snapshot that is being fetched. What cannot be read of them is fetched again, so nothing here is damage
//! that anybody needs to hear of.

use crate::StorageError;
use crate::encoding::FETCHED;
use bytes::Bytes;
use redb::{ReadOnlyTable, ReadTransaction, ReadableTable, TableError, WriteTransaction};
use synod_paxos::codec::{DecodeError, Reader, Writer};
use synod_paxos::{Slot, SnapshotPart};
use xxhash_rust::xxh3::Xxh3;

/// slot, total, digest, checksum.
const HEAD: usize = 40;

fn checksum(part: &SnapshotPart) -> u64 {
    let mut hash = Xxh3::new();
    [part.slot.0, part.total, part.offset].iter().for_each(|number| hash.update(&number.to_le_bytes()));
    hash.update(&part.digest.to_le_bytes());
    hash.update(&part.bytes);
    hash.digest()
}

pub(crate) fn encode(part: &SnapshotPart) -> Bytes {
    let mut w = Writer::with_capacity(HEAD + part.bytes.len());
    w.u64(part.slot.0);
    w.u64(part.total);
    w.array(&part.digest.to_le_bytes());
    w.u64(checksum(part));
    w.array(&part.bytes);
    w.finish()
}

/// The part at `offset`; none: it is damaged.
pub(crate) fn decode(offset: u64, stored: &[u8]) -> Option<SnapshotPart> {
    let (head, bytes) = stored.split_at_checked(HEAD)?;
    let mut reader = Reader::new(Bytes::copy_from_slice(head));
    let mut read = || {
        let (slot, total) = (Slot(reader.u64()?), reader.u64()?);
        let digest = u128::from_le_bytes(reader.array()?);
        let part = SnapshotPart { slot, total, digest, offset, bytes: Bytes::copy_from_slice(bytes) };
        Ok::<_, DecodeError>((reader.u64()?, part))
    };
    read().ok().filter(|(sum, part)| checksum(part) == *sum).map(|(_, part)| part)
}

/// One more; the first takes the place of all that stood there.
pub(crate) fn put(transaction: &WriteTransaction, part: &SnapshotPart) -> Result<(), StorageError> {
    if part.offset == 0 {
        clear(transaction)?;
    }
    transaction.open_table(FETCHED)?.insert(part.offset, encode(part).as_ref())?;
    Ok(())
}

/// Removes all.
pub(crate) fn clear(transaction: &WriteTransaction) -> Result<(), StorageError> {
    transaction.open_table(FETCHED)?.retain(|_, _| false)?;
    Ok(())
}

/// Removes those of a snapshot that is not needed any more.
pub(crate) fn trim(transaction: &WriteTransaction, through: Slot) -> Result<(), StorageError> {
    let mut table = transaction.open_table(FETCHED)?;
    table.retain(|offset, stored| decode(offset, stored).is_some_and(|part| part.slot > through))?;
    Ok(())
}

/// The table; none in a segment of a version that did not have it.
fn table(transaction: &ReadTransaction) -> Result<Option<ReadOnlyTable<u64, &'static [u8]>>, StorageError> {
    match transaction.open_table(FETCHED) {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Those that stand in a row from the first byte on.
pub(crate) fn load(transaction: &ReadTransaction) -> Result<Vec<SnapshotPart>, StorageError> {
    let mut parts: Vec<SnapshotPart> = Vec::new();
    let Some(table) = table(transaction)? else { return Ok(parts) };
    for row in table.iter()? {
        let (offset, stored) = row?;
        match decode(offset.value(), stored.value()) {
            Some(part) if parts.last().map_or(part.offset == 0, |last| part.follows(last)) => {
                parts.push(part)
            }
            _ => break,
        }
    }
    Ok(parts)
}

/// Takes them into the next segment.
pub(crate) fn carry(before: &ReadTransaction, transaction: &WriteTransaction) -> Result<(), StorageError> {
    let Some(from) = table(before)? else { return Ok(()) };
    let mut to = transaction.open_table(FETCHED)?;
    for row in from.iter()? {
        let (offset, stored) = row?;
        to.insert(offset.value(), stored.value())?;
    }
    Ok(())
}
