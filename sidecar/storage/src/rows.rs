//! The rows of one segment, read by the segment's own format.

use crate::StorageError;
use crate::encoding::{self, Format, META, ROWS, name};
use redb::{OwnedRange, ReadOnlyTable, ReadTransaction, ReadableTable};
use std::collections::BTreeMap;
use synod_paxos::Row;

/// The table of rows, and how they are stored in it.
pub(crate) struct RowTable {
    table: ReadOnlyTable<u64, &'static [u8]>,
    format: Format,
}

impl RowTable {
    pub(crate) fn open(transaction: &ReadTransaction) -> Result<RowTable, StorageError> {
        let format = stored_format(&transaction.open_table(META)?)?;
        Ok(RowTable { table: transaction.open_table(ROWS)?, format })
    }

    pub(crate) fn get(&self, slot: u64) -> Result<Option<Row>, StorageError> {
        Ok(self.table.get(slot)?.map(|stored| encoding::read_row(self.format, slot, stored.value())))
    }

    pub(crate) fn from(&self, slot: u64) -> Result<RowsFrom, StorageError> {
        Ok(RowsFrom { range: self.table.range_owned(slot..)?, format: self.format })
    }
}

/// Rows from a slot on, ascending.
pub(crate) struct RowsFrom {
    range: OwnedRange<u64, &'static [u8]>,
    format: Format,
}

impl Iterator for RowsFrom {
    type Item = Result<Row, StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(match self.range.next()? {
            Ok((slot, stored)) => Ok(encoding::read_row(self.format, slot.value(), stored.value())),
            Err(error) => Err(error.into()),
        })
    }
}

/// The format of a segment, from its table of meta values.
pub(crate) fn stored_format(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<Format, StorageError> {
    let format = meta.get(name::FORMAT)?;
    let layout = meta.get(name::LAYOUT)?;
    segment_format(format.as_ref().map(|stored| stored.value()), layout.as_ref().map(|stored| stored.value()))
}

/// The same of values that were read already.
pub(crate) fn format_of(meta: &BTreeMap<String, Vec<u8>>) -> Result<Format, StorageError> {
    segment_format(meta.get(name::FORMAT).map(Vec::as_slice), meta.get(name::LAYOUT).map(Vec::as_slice))
}

/// `format` is what any version looks at; from the third on `layout` says the same under a checksum.
fn segment_format(format: Option<&[u8]>, layout: Option<&[u8]>) -> Result<Format, StorageError> {
    let what = "the format version";
    let format = format.ok_or_else(|| StorageError::damaged(what, "it is missing"))?;
    let format = encoding::read_number(what, format)?;
    let sealed = layout.map(|sealed| encoding::read_number(what, encoding::unseal(name::LAYOUT, sealed)?));
    match (Format::from_number(format), sealed.transpose()?) {
        (Some(Format::Second), None) => Ok(Format::Second),
        (Some(Format::Third), Some(layout)) if layout == format => Ok(Format::Third),
        _ => Err(StorageError::damaged(
            what,
            format!("{format} is not the one that the segment was written with"),
        )),
    }
}
