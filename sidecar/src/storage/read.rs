//! Reading: views for the core, entries by index for clients.

use super::StorageError;
use super::encoding::{self, MARKS, META, ROWS, SKIPPED, name};
use bytes::Bytes;
use redb::{Database, ReadOnlyDatabase, ReadOnlyTable, ReadTransaction, ReadableDatabase, TransactionError};
use std::sync::Arc;
use synod_paxos::value::entries_added;
use synod_paxos::{ClusterId, Genesis, Index, Row, Slot};

/// Rows as they were durable when the view was opened.
#[derive(Debug)]
pub struct View {
    rows: ReadOnlyTable<u64, &'static [u8]>,
    /// Rows up to here are trimmed, whether they have been deleted yet or not.
    trim_through: Slot,
}

impl View {
    /// Rows from `from` on, ascending: about `bytes` of values, one row at least if there is one. And
    /// whether the view holds no row behind these.
    ///
    /// # Errors
    /// If the disk cannot be read.
    pub fn read(&self, from: Slot, bytes: usize) -> Result<(Vec<Row>, bool), StorageError> {
        let mut rows = Vec::new();
        let mut taken = 0;
        for row in self.rows.range(from.max(self.trim_through.next()).0..)? {
            let (slot, value) = row?;
            let stored = value.value();
            let size = stored.len().saturating_sub(encoding::ROW_HEAD);
            if !rows.is_empty() && taken + size > bytes {
                return Ok((rows, false));
            }
            taken += size;
            rows.push(encoding::read_row(slot.value(), stored)?);
        }
        Ok((rows, true))
    }
}

/// Reads what is durable. Blocking: not for the runtime's own threads.
#[derive(Clone, Debug)]
pub struct LogReader {
    database: Source,
}

#[derive(Clone)]
enum Source {
    Live(Arc<Database>),
    Offline(Arc<ReadOnlyDatabase>),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Source::Live(_) => "Live",
            Source::Offline(_) => "Offline",
        })
    }
}

impl Source {
    fn begin_read(&self) -> Result<ReadTransaction, TransactionError> {
        match self {
            Source::Live(database) => database.begin_read(),
            Source::Offline(database) => database.begin_read(),
        }
    }
}

impl LogReader {
    pub(super) fn new(database: Arc<Database>) -> LogReader {
        LogReader { database: Source::Live(database) }
    }

    pub(super) fn offline(database: Arc<ReadOnlyDatabase>) -> LogReader {
        LogReader { database: Source::Offline(database) }
    }

    /// A view of the rows as they are durable now.
    ///
    /// # Errors
    /// If the disk cannot be read.
    pub fn view(&self) -> Result<View, StorageError> {
        let transaction = self.database.begin_read()?;
        let meta = transaction.open_table(META)?;
        let stored = meta.get(name::TRIM_THROUGH)?;
        let trim_through = stored.map(|bytes| encoding::read_number(name::TRIM_THROUGH, bytes.value()));
        let trim_through = Slot(trim_through.transpose()?.unwrap_or(0));
        Ok(View { rows: transaction.open_table(ROWS)?, trim_through })
    }

    /// Entries `from ..= through`, at most `entries` of them and about `bytes`, one at least.
    ///
    /// The caller knows that the slot of `through` and those before it are chosen, and that their rows and
    /// marks are durable.
    ///
    /// # Errors
    /// If the disk cannot be read, or a row is damaged or missing.
    pub fn entries(
        &self,
        (from, through): (Index, Index),
        entries: usize,
        bytes: usize,
    ) -> Result<Vec<Bytes>, StorageError> {
        let transaction = self.database.begin_read()?;
        let (marks, rows) = (transaction.open_table(MARKS)?, transaction.open_table(ROWS)?);
        let skipped = transaction.open_table(SKIPPED)?;
        let cluster = cluster(&transaction)?;
        let begin = match marks.range(..=from.0)?.next_back().transpose()? {
            Some((first, _)) => first.value(),
            None => return Err(StorageError::damaged("the log", format!("entry {from} has no slot"))),
        };
        let (mut found, mut taken) = (Vec::new(), 0);
        let mut expected = begin;
        for mark in marks.range(begin..=through.0)? {
            let (first, place) = mark?;
            let (first, (slot, count, _)) = (Index(first.value()), place.value());
            let places = skipped.get(slot)?;
            let places = places.as_ref().map(|places| places.value());
            let skipped = encoding::read_mark(first.0, place.value(), places)?;
            if first.0 != expected {
                return Err(StorageError::damaged("the log", format!("entry {expected} has no slot")));
            }
            expected = first.0.saturating_add(u64::from(count));
            let Some(row) = rows.get(slot)? else {
                return Err(StorageError::damaged("the log", format!("slot {slot} is missing")));
            };
            let row = encoding::read_row(slot, row.value())?;
            if !cluster.is_some_and(|cluster| row.is_intact(cluster)) {
                return Err(StorageError::damaged("a row", format!("slot {slot} fails its checksum")));
            }
            let added =
                entries_added(row.value, &skipped).map_err(|e| StorageError::damaged("a value", e))?;
            if added.len() as u64 != u64::from(count) {
                let why = format!("slot {slot} holds {} entries, not {count}", added.len());
                return Err(StorageError::damaged("the log", why));
            }
            for (offset, entry) in (0..).zip(added) {
                let index = first.plus(offset);
                if index < from {
                    continue;
                }
                if index > through || found.len() >= entries || taken >= bytes {
                    return Ok(found);
                }
                taken += entry.len();
                found.push(entry);
            }
        }
        if found.is_empty() && from <= through {
            return Err(StorageError::damaged("the log", format!("entry {from} is missing")));
        }
        Ok(found)
    }
}

fn cluster(transaction: &ReadTransaction) -> Result<Option<ClusterId>, StorageError> {
    let meta = transaction.open_table(META)?;
    let Some(genesis) = meta.get(name::GENESIS)? else { return Ok(None) };
    let genesis = Genesis::decode(Bytes::copy_from_slice(genesis.value()));
    Ok(Some(genesis.map_err(|e| StorageError::damaged("the genesis", e))?.cluster))
}
