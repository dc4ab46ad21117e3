//! Opening a data directory, and the one writer.

use super::encoding::{self, FORMAT, MARKS, META, PEERS, ROW_HEAD, ROWS, SKIPPED, SNAPSHOTS, name};
use super::load::{Rows, load};
use super::read::LogReader;
use super::trim::delete_trimmed;
use super::{FILE, StorageError};
use bytes::Bytes;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, WriteTransaction};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use synod_paxos::{
    Ballot, ClusterId, DurableState, Genesis, Index, MemberId, Slot, Storage, Write, WriteCounter,
};

/// redb's page cache, in bytes. Rows are written once and read back mostly by members that catch up.
const CACHE_BYTES: usize = 8 << 20;
/// Rows that one transaction of [`create`] writes.
const CREATE_ROWS: usize = 256;

/// What a slot added to the log. True for ever once the slot is applied; a slot without a mark added nothing,
/// whatever value it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The index of the slot's first entry.
    pub first: Index,
    /// The slot.
    pub slot: Slot,
    /// How many entries; at least one.
    pub count: u32,
    /// Calls of its batch, by place, whose entries were not added.
    pub skipped: Vec<u32>,
}

/// A data directory that this process holds.
#[derive(Clone, Debug)]
pub struct Disk {
    database: Arc<Database>,
    dir: PathBuf,
}

/// An open disk: what it holds, its one writer, and its readers.
#[derive(Debug)]
pub struct Opened {
    /// For [`synod_paxos::Node::new`]: of the rows only those above `applied`.
    pub state: DurableState,
    /// The one writer.
    pub storage: RedbStorage,
    /// Views and reads by index.
    pub reader: LogReader,
}

/// Opens the data directory `dir`, which is made if it is missing. An empty one gets a member id from the
/// system's randomness; every opening raises the incarnation and the write counter durably.
///
/// # Errors
/// See [`StorageError`]; nothing was changed where it says that the directory is another's.
pub fn open(dir: &Path, wanted: Option<ClusterId>) -> Result<Opened, StorageError> {
    std::fs::create_dir_all(dir).map_err(|error| explain_io(dir, error))?;
    let file = dir.join(FILE);
    let database = redb::Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create(&file)
        .map_err(|error| explain_database(dir, error))?;
    start(database, dir, wanted)
}

/// Opens a disk on a backend of the caller's: for tests of what a failing disk does.
///
/// # Errors
/// Those of [`open`].
pub fn open_on(backend: impl redb::StorageBackend) -> Result<Opened, StorageError> {
    let dir = Path::new("(a backend)");
    let database = redb::Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(backend)
        .map_err(|error| explain_database(dir, error))?;
    start(database, dir, None)
}

fn start(database: Database, dir: &Path, wanted: Option<ClusterId>) -> Result<Opened, StorageError> {
    let disk = Disk { database: Arc::new(database), dir: dir.to_owned() };
    disk.check_format()?;
    if let (Some(found), Some(wanted)) = (disk.cluster()?, wanted)
        && found != wanted
    {
        return Err(StorageError::OtherCluster { dir: dir.to_owned(), found, wanted });
    }
    disk.boot().map_err(|error| explain_storage(dir, error))?;
    let state = disk.load()?;
    Ok(Opened {
        reader: LogReader::new(disk.database.clone()),
        storage: RedbStorage {
            disk,
            marks: Vec::new(),
            noted: state.applied,
            marked: state.applied,
            trim_through: state.trim_through,
            // The life before may have ended in the middle of it.
            trimmed: state.trim_through == Slot(0),
        },
        state,
    })
}

fn explain_io(dir: &Path, error: io::Error) -> StorageError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            StorageError::Full { dir: dir.to_owned() }
        }
        _ => StorageError::Unwritable { dir: dir.to_owned(), source: error },
    }
}

fn explain_database(dir: &Path, error: DatabaseError) -> StorageError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => StorageError::InUse { dir: dir.to_owned() },
        DatabaseError::Storage(redb::StorageError::Io(error)) => explain_io(dir, error),
        other => StorageError::Database(other.into()),
    }
}

fn explain_storage(dir: &Path, error: StorageError) -> StorageError {
    match error {
        StorageError::Database(redb::Error::Io(error)) => explain_io(dir, error),
        other => other,
    }
}

impl Disk {
    fn begin(&self) -> Result<WriteTransaction, StorageError> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_two_phase_commit(true);
        Ok(transaction)
    }

    fn check_format(&self) -> Result<(), StorageError> {
        let found = match self.meta(name::FORMAT)? {
            Some(bytes) => encoding::read_number("the format version", &bytes)?,
            None => return Ok(()),
        };
        if found != FORMAT {
            return Err(StorageError::UnknownFormat { dir: self.dir.clone(), found, known: FORMAT });
        }
        Ok(())
    }

    fn meta(&self, name: &str) -> Result<Option<Bytes>, StorageError> {
        match self.database.begin_read()?.open_table(META) {
            Ok(table) => Ok(table.get(name)?.map(|value| Bytes::copy_from_slice(value.value()))),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn cluster(&self) -> Result<Option<ClusterId>, StorageError> {
        if let Some(bytes) = self.meta(name::GENESIS)? {
            let genesis = Genesis::decode(bytes).map_err(|e| StorageError::damaged("the genesis", e))?;
            return Ok(Some(genesis.cluster));
        }
        let joined = self.meta(name::JOINED)?;
        Ok(joined.map(|bytes| encoding::read_joined(&bytes)).transpose()?.map(|(cluster, _)| cluster))
    }

    /// Raises the incarnation; on an empty disk, mints the member id. The write counter stays: a boot must not
    /// make up for a write that a restored copy lacks (docs: protocol.md, "Identity and amnesia").
    fn boot(&self) -> Result<(), StorageError> {
        let transaction = self.begin()?;
        {
            let mut meta = transaction.open_table(META)?;
            // Later code may rely on every table being there.
            transaction.open_table(ROWS)?;
            transaction.open_table(PEERS)?;
            transaction.open_table(MARKS)?;
            transaction.open_table(SKIPPED)?;
            transaction.open_table(SNAPSHOTS)?;
            if meta.get(name::MEMBER)?.is_none() {
                meta.insert(name::FORMAT, encoding::number(FORMAT).as_slice())?;
                meta.insert(name::MEMBER, encoding::number(mint_member()?.0).as_slice())?;
            }
            let counter = name::INCARNATION;
            let before = meta.get(counter)?.map(|value| encoding::read_number(counter, value.value()));
            let after = before.transpose()?.unwrap_or(0) + 1;
            meta.insert(counter, encoding::number(after).as_slice())?;
        }
        Ok(transaction.commit()?)
    }

    fn load(&self) -> Result<DurableState, StorageError> {
        load(&self.database.begin_read()?, Rows::AboveApplied)
    }
}

/// A random id, never 0.
///
/// # Errors
/// If the system has no randomness.
pub fn mint_member() -> Result<MemberId, StorageError> {
    loop {
        let mut bytes = [0_u8; 8];
        let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| StorageError::Database(redb::Error::Io(error.into())))?;
        let id = u64::from_le_bytes(bytes);
        if filled == bytes.len() && id != 0 {
            return Ok(MemberId(id));
        }
    }
}

/// The one writer of a data directory.
#[derive(Debug)]
pub struct RedbStorage {
    disk: Disk,
    marks: Vec<Mark>,
    /// All marks up to here are in `marks` or durable.
    noted: Slot,
    /// All marks up to here are durable.
    marked: Slot,
    /// Rows up to here may go, a bounded number with each commit.
    trim_through: Slot,
    /// They have all gone.
    trimmed: bool,
}

impl RedbStorage {
    /// Lets marks ride in the next commit; with them all marks up to `noted` are known.
    pub fn add_marks(&mut self, marks: impl IntoIterator<Item = Mark>, noted: Slot) {
        self.marks.extend(marks);
        self.noted = noted;
    }

    /// Every slot up to it that added entries has its mark on the disk.
    pub fn marked(&self) -> Slot {
        self.marked
    }
}

/// Of each kind that replaces what stood before, the last one.
#[derive(Default)]
struct Last<'a> {
    promised: Option<Ballot>,
    chosen_through: Option<Slot>,
    system: Option<(Slot, &'a Bytes)>,
    trim_through: Option<Slot>,
}

impl Storage for RedbStorage {
    type Error = StorageError;

    fn commit(
        &mut self,
        written: WriteCounter,
        writes: &mut dyn Iterator<Item = &Write>,
    ) -> Result<(), StorageError> {
        let transaction = self.disk.begin()?;
        {
            let mut meta = transaction.open_table(META)?;
            let mut last = Last::default();
            let mut rows = None;
            for write in writes {
                match write {
                    Write::Row(row) => {
                        let rows = match &mut rows {
                            Some(rows) => rows,
                            none => none.insert(transaction.open_table(ROWS)?),
                        };
                        let mut space = rows.insert_reserve(row.slot.0, ROW_HEAD + row.value.len())?;
                        encoding::write_row(row, space.as_mut());
                    }
                    Write::Promised(ballot) => last.promised = Some(*ballot),
                    Write::ChosenThrough(slot) => last.chosen_through = Some(*slot),
                    Write::System { applied, state } => last.system = Some((*applied, state)),
                    Write::Snapshot { slot, state } => {
                        transaction.open_table(SNAPSHOTS)?.insert(slot.0, state.as_ref())?;
                    }
                    Write::Trim { through } => {
                        transaction.open_table(SNAPSHOTS)?.retain_in(..through.0, |_, _| false)?;
                        last.trim_through = Some(*through);
                    }
                    Write::Install { slot, state } => {
                        let mut snapshots = transaction.open_table(SNAPSHOTS)?;
                        snapshots.retain(|_, _| false)?;
                        snapshots.insert(slot.0, state.as_ref())?;
                        last.trim_through = Some(*slot);
                        last.chosen_through = Some(*slot);
                        last.system = Some((*slot, state));
                    }
                    Write::Lease(longest) => {
                        let nanos = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX);
                        meta.insert(name::LEASE, encoding::number(nanos).as_slice())?;
                    }
                    Write::Genesis(genesis) => {
                        meta.insert(name::GENESIS, genesis.encode().as_ref())?;
                    }
                    Write::Joined { cluster, digest } => {
                        meta.insert(name::JOINED, encoding::joined(*cluster, *digest).as_ref())?;
                    }
                    Write::GenesisConfirmed => {
                        meta.insert(name::CONFIRMED, [].as_slice())?;
                    }
                    Write::Peer { member, counters } => {
                        let pair = (counters.incarnation.0, counters.written.0);
                        transaction.open_table(PEERS)?.insert(member.0, pair)?;
                    }
                    Write::Tombstone { version, slot } => {
                        meta.insert(name::TOMBSTONE, encoding::pair(*version, slot.0).as_slice())?;
                    }
                    Write::Fenced(why) => {
                        meta.insert(name::FENCED, why.as_bytes())?;
                    }
                }
            }
            if let Some(ballot) = last.promised {
                meta.insert(name::PROMISED, encoding::pair(ballot.round, ballot.member.0).as_slice())?;
            }
            if let Some(slot) = last.chosen_through {
                meta.insert(name::CHOSEN_THROUGH, encoding::number(slot.0).as_slice())?;
            }
            if let Some((applied, state)) = last.system {
                meta.insert(name::APPLIED, encoding::number(applied.0).as_slice())?;
                meta.insert(name::SYSTEM, state.as_ref())?;
            }
            meta.insert(name::WRITTEN, encoding::number(written.0).as_slice())?;
            if let Some(through) = last.trim_through {
                meta.insert(name::TRIM_THROUGH, encoding::number(through.0).as_slice())?;
                self.trim_through = through;
                self.trimmed = false;
                // What was noted of slots that are gone is of no use.
                self.marks.retain(|mark| mark.slot > through);
            }
            drop(rows);
            if !self.marks.is_empty() {
                let mut marks = transaction.open_table(MARKS)?;
                let mut skipped = transaction.open_table(SKIPPED)?;
                for mark in self.marks.drain(..) {
                    let (first, slot, count) = (mark.first.0, mark.slot.0, mark.count);
                    let places = encoding::places(&mark.skipped);
                    let checksum = encoding::mark_checksum(first, slot, count, &places);
                    marks.insert(first, (slot, count, checksum))?;
                    if !mark.skipped.is_empty() {
                        skipped.insert(mark.slot.0, places.as_slice())?;
                    }
                }
            }
        }
        if !self.trimmed {
            self.trimmed = delete_trimmed(&transaction, self.trim_through)?;
        }
        transaction.commit().map_err(|error| explain_storage(&self.disk.dir, StorageError::from(error)))?;
        self.marked = self.noted;
        Ok(())
    }
}

/// Writes a whole state into an empty data directory: the disk of a member that was never started. Rows go in
/// many transactions; the last one makes the directory a member's.
///
/// # Errors
/// If the directory holds a member already, or cannot be written to.
pub fn create(dir: &Path, state: &DurableState) -> Result<(), StorageError> {
    std::fs::create_dir_all(dir).map_err(|error| explain_io(dir, error))?;
    if dir.join(FILE).exists() {
        return Err(StorageError::NotEmpty { dir: dir.to_owned() });
    }
    let database = redb::Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create(dir.join(FILE))
        .map_err(|error| explain_database(dir, error))?;
    let disk = Disk { database: Arc::new(database), dir: dir.to_owned() };
    let mut storage = RedbStorage {
        disk: disk.clone(),
        marks: Vec::new(),
        noted: Slot(0),
        marked: Slot(0),
        trim_through: Slot(0),
        trimmed: true,
    };
    let mut writes: Vec<Write> = Vec::new();
    if let Some(snapshot) = state.snapshots.get(&state.trim_through) {
        writes.push(Write::Install { slot: state.trim_through, state: snapshot.clone() });
    }
    writes.extend(state.genesis.clone().map(Write::Genesis));
    writes.push(Write::Promised(state.promised));
    let rows = state.rows.values().cloned().map(Write::Row).collect::<Vec<_>>();
    for chunk in core::iter::once(writes.as_slice()).chain(rows.chunks(CREATE_ROWS)) {
        storage.commit(state.written, &mut chunk.iter())?;
    }
    let mut last = vec![Write::ChosenThrough(state.chosen_through)];
    last.extend(state.genesis_confirmed.then_some(Write::GenesisConfirmed));
    storage.commit(state.written, &mut last.iter())?;
    let transaction = disk.begin()?;
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert(name::FORMAT, encoding::number(FORMAT).as_slice())?;
        meta.insert(name::MEMBER, encoding::number(state.member.0).as_slice())?;
    }
    Ok(transaction.commit()?)
}
