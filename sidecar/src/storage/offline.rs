//! Looking at a data directory that no process holds, without changing a byte of it.

use super::encoding::{self, FORMAT, MARKS, META, ROWS, SKIPPED, SNAPSHOTS, name};
use super::load::{Rows, load};
use super::read::LogReader;
use super::{FILE, StorageError};
use bytes::Bytes;
use redb::{DatabaseError, ReadOnlyDatabase, ReadableDatabase, ReadableTable, ReadableTableMetadata};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use synod_paxos::system::SystemState;
use synod_paxos::value::{Value, entries_added};
use synod_paxos::{ClusterId, DurableState, Index, Slot};

/// A data directory opened for reading.
#[derive(Clone)]
pub struct Offline {
    database: Arc<ReadOnlyDatabase>,
    dir: PathBuf,
}

/// What a check of every row found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Rows read.
    pub rows: u64,
    /// Entries that they added to the log.
    pub entries: u64,
    /// Bytes of values.
    pub bytes: u64,
    /// Snapshots read.
    pub snapshots: u64,
    /// What cannot be read or does not fit, in words.
    pub damaged: Vec<String>,
}

impl Offline {
    /// Opens `dir`. With `copy_to` its file is copied there first, and the copy is opened and repaired where its
    /// last process was killed; `dir` itself is never written to.
    ///
    /// # Errors
    /// See [`StorageError`]: in use, missing, not closed cleanly, or of another format.
    pub fn open(dir: &Path, copy_to: Option<&Path>) -> Result<Offline, StorageError> {
        let source = dir.join(FILE);
        if !source.exists() {
            return Err(StorageError::Missing { dir: dir.to_owned() });
        }
        let dir = match copy_to {
            None => dir.to_owned(),
            Some(to) => copy(&source, to)?,
        };
        let database = ReadOnlyDatabase::open(dir.join(FILE)).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => StorageError::InUse { dir: dir.clone() },
            DatabaseError::RepairAborted => StorageError::Unclean { dir: dir.clone() },
            other => StorageError::Database(other.into()),
        })?;
        let offline = Offline { database: Arc::new(database), dir };
        offline.check_format()?;
        Ok(offline)
    }

    fn check_format(&self) -> Result<(), StorageError> {
        let meta = self.database.begin_read()?.open_table(META)?;
        let found = meta.get(name::FORMAT)?;
        let found = found.map(|bytes| encoding::read_number("the format version", bytes.value()));
        match found.transpose()? {
            Some(FORMAT) => Ok(()),
            Some(found) => Err(StorageError::UnknownFormat { dir: self.dir.clone(), found, known: FORMAT }),
            None => Err(StorageError::Missing { dir: self.dir.clone() }),
        }
    }

    /// What the disk holds.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn state(&self, rows: Rows) -> Result<DurableState, StorageError> {
        load(&self.database.begin_read()?, rows)
    }

    /// How many rows there are, those included that are trimmed and not deleted yet.
    ///
    /// # Errors
    /// If the disk cannot be read.
    pub fn row_count(&self) -> Result<u64, StorageError> {
        Ok(self.database.begin_read()?.open_table(ROWS)?.len()?)
    }

    /// Entries by index.
    pub fn reader(&self) -> LogReader {
        LogReader::offline(self.database.clone())
    }

    /// First and last index whose entries stand on this disk with their marks.
    ///
    /// # Errors
    /// If the disk cannot be read.
    pub fn span(&self) -> Result<Option<(Index, Index)>, StorageError> {
        let state = self.state(Rows::None)?;
        let marks = self.database.begin_read()?.open_table(MARKS)?;
        let mut first = None;
        for mark in marks.iter()? {
            let (index, place) = mark?;
            if place.value().0 > state.trim_through.0 {
                first = Some(Index(index.value()));
                break;
            }
        }
        let last = marks.last()?;
        let last =
            last.map(|(index, place)| Index(index.value()).plus(u64::from(place.value().1)).previous());
        Ok(first.zip(last))
    }

    /// Reads every row, mark and snapshot. `step` is told of each row.
    ///
    /// # Errors
    /// If the database itself cannot be read; single damages are found, counted and named.
    pub fn check(&self, mut step: impl FnMut()) -> Result<Checked, StorageError> {
        let transaction = self.database.begin_read()?;
        let state = load(&transaction, Rows::None)?;
        let mut checked = Checked::default();
        if !state.system.is_empty()
            && let Err(error) = SystemState::decode(state.system.clone())
        {
            checked.damaged.push(format!("the system state: {error}"));
        }
        for snapshot in transaction.open_table(SNAPSHOTS)?.iter()? {
            let (slot, bytes) = snapshot?;
            checked.snapshots += 1;
            match SystemState::decode(Bytes::copy_from_slice(bytes.value())) {
                Ok(decoded) if decoded.applied.0 == slot.value() => {}
                Ok(_) => checked.damaged.push(format!("snapshot {}: of another slot", slot.value())),
                Err(error) => checked.damaged.push(format!("snapshot {}: {error}", slot.value())),
            }
        }
        let cluster = state.genesis.map(|genesis| genesis.cluster);
        for row in transaction.open_table(ROWS)?.range(state.trim_through.0 + 1..)? {
            let (slot, stored) = row?;
            step();
            checked.rows += 1;
            checked.bytes += stored.value().len() as u64;
            if let Err(why) = check_row(cluster, slot.value(), stored.value()) {
                checked.damaged.push(format!("slot {}: {why}", slot.value()));
            }
        }
        self.check_marks(state.trim_through, &mut checked)?;
        Ok(checked)
    }

    /// Marks follow one another without a gap, and each fits its row.
    fn check_marks(&self, trim_through: Slot, checked: &mut Checked) -> Result<(), StorageError> {
        let transaction = self.database.begin_read()?;
        let (marks, rows) = (transaction.open_table(MARKS)?, transaction.open_table(ROWS)?);
        let skipped = transaction.open_table(SKIPPED)?;
        let mut next = None;
        for mark in marks.iter()? {
            let (first, place) = mark?;
            let (first, (slot, count, _)) = (first.value(), place.value());
            if slot <= trim_through.0 {
                continue;
            }
            if next.is_some_and(|next| next != first) {
                checked.damaged.push(format!("index {first}: entries before it have no slot"));
            }
            next = Some(first + u64::from(count));
            checked.entries += u64::from(count);
            let places = skipped.get(slot)?;
            let places = match encoding::read_mark(first, place.value(), places.as_ref().map(|p| p.value())) {
                Ok(places) => places,
                Err(error) => {
                    checked.damaged.push(error.to_string());
                    continue;
                }
            };
            let added = rows
                .get(slot)?
                .and_then(|row| encoding::read_row(slot, row.value()).ok())
                .and_then(|row| entries_added(row.value, &places).ok());
            if added.is_none_or(|added| added.len() as u64 != u64::from(count)) {
                checked.damaged.push(format!("index {first}: slot {slot} does not hold its {count} entries"));
            }
        }
        Ok(())
    }
}

fn check_row(cluster: Option<ClusterId>, slot: u64, stored: &[u8]) -> Result<(), String> {
    let row = encoding::read_row(slot, stored).map_err(|error| error.to_string())?;
    if !cluster.is_some_and(|cluster| row.is_intact(cluster)) {
        return Err("fails its checksum".to_owned());
    }
    Value::decode(row.value).map(|_| ()).map_err(|error| error.to_string())
}

/// Copies a data file into an empty directory, and lets redb repair the copy.
fn copy(source: &Path, to: &Path) -> Result<PathBuf, StorageError> {
    let unwritable = |source| StorageError::Unwritable { dir: to.to_owned(), source };
    std::fs::create_dir_all(to).map_err(unwritable)?;
    let target = to.join(FILE);
    if target.exists() {
        return Err(StorageError::NotEmpty { dir: to.to_owned() });
    }
    std::fs::copy(source, &target).map_err(unwritable)?;
    let repaired = redb::Builder::new().create(&target);
    drop(repaired.map_err(|error| StorageError::Database(error.into()))?);
    Ok(to.to_owned())
}
