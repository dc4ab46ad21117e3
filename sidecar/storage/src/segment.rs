//! Segments: the files of the log, and who may read which of them.
//!
//! Only the newest one is written to. An older one never changes again: it is opened when somebody reads in it, and
//! few are open at a time.

use crate::StorageError;
use crate::encoding::{self, Format, META, PEERS, ROWS, Summary, name};
use crate::files::{Files, explain_io, is_shortage};
use crate::rows::format_of;
use crate::sums::{self, Watch, Watched};
use redb::{
    Builder, Database, DatabaseError, ReadOnlyDatabase, ReadTransaction, ReadableDatabase, ReadableTable,
    StorageBackend, TransactionError, WriteTransaction,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use synod_paxos::Slot;

/// Page cache of the segment that is written, in bytes. Rows are written once and read back mostly by members that
/// catch up.
const CACHE_BYTES: usize = 8 << 20;
/// Page cache of an older segment while it is open, in bytes.
const OLDER_CACHE_BYTES: usize = 1 << 20;
/// Older segments that are open at a time, beside those that somebody is reading in.
const OPEN: usize = 4;
/// Behind the name of a file that is not whole yet.
const NEW: &str = ".new";

/// A segment's file name.
pub(crate) fn file_name(number: u64) -> String {
    format!("segment-{number:010}.redb")
}

/// The number in a segment's file name.
pub(crate) fn parse_name(name: &str) -> Option<u64> {
    let number = name.strip_prefix("segment-")?.strip_suffix(".redb")?.parse().ok()?;
    (file_name(number) == name).then_some(number)
}

/// Whether a file was given up before it had its name.
pub(crate) fn is_unfinished(name: &str) -> bool {
    name.strip_suffix(NEW).and_then(parse_name).is_some()
}

/// A database that is open, one way or the other.
#[derive(Clone)]
pub(crate) enum Db {
    Written(Arc<Database>, Arc<Watch>),
    ReadOnly(Arc<ReadOnlyDatabase>, Arc<Watch>),
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Db::Written(..) => "Written",
            Db::ReadOnly(..) => "ReadOnly",
        })
    }
}

impl Db {
    pub(crate) fn begin_read(&self) -> Result<ReadTransaction, TransactionError> {
        match self {
            Db::Written(database, _) => database.begin_read(),
            Db::ReadOnly(database, _) => database.begin_read(),
        }
    }

    fn watch(&self) -> &Watch {
        let (Db::Written(_, watch) | Db::ReadOnly(_, watch)) = self;
        watch
    }

    /// What was read from it may lack something.
    pub(crate) fn is_damaged(&self) -> bool {
        self.watch().is_damaged()
    }

    /// Only another opening of the file tells whether it can be read.
    fn has_to_be_opened_anew(&self) -> bool {
        let is_free = match self {
            // Nobody may read in it while it is repaired.
            Db::Written(database, _) => Arc::strong_count(database) == 1,
            Db::ReadOnly(..) => true,
        };
        self.watch().has_failed_to_read() && is_free
    }
}

/// What a database said when a segment was opened, with the file's name.
fn explain_open(files: &dyn Files, name: &str, error: DatabaseError) -> StorageError {
    match error {
        DatabaseError::Storage(redb::StorageError::Io(error))
            if error.kind() != std::io::ErrorKind::InvalidData =>
        {
            explain_io(files.place(), error)
        }
        DatabaseError::DatabaseAlreadyOpen => StorageError::InUse { dir: files.place().to_owned() },
        DatabaseError::RepairAborted => StorageError::Unclean { dir: files.place().to_owned() },
        other => StorageError::file(files, name, other),
    }
}

/// Names the file where something in it cannot be read.
pub(crate) fn in_file<T>(
    files: &dyn Files,
    number: u64,
    read: Result<T, StorageError>,
) -> Result<T, StorageError> {
    read.map_err(|error| match error {
        StorageError::Damaged { what, why } => {
            StorageError::file(files, &file_name(number), format!("{what}: {why}"))
        }
        StorageError::Database(redb::Error::Io(error)) if is_shortage(&error) => {
            explain_io(files.place(), error)
        }
        StorageError::Database(error) => StorageError::file(files, &file_name(number), error),
        other => other,
    })
}

fn open_file(files: &dyn Files, name: &str, write: bool) -> Result<Box<dyn StorageBackend>, StorageError> {
    let explain = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => StorageError::file(files, name, "it is missing"),
        _ => explain_io(files.place(), error),
    };
    let backend = files.open(name, write).map_err(explain)?;
    // An empty file would be made a new database.
    if backend.len().map_err(explain)? == 0 {
        return Err(StorageError::file(files, name, "it is empty"));
    }
    Ok(backend)
}

/// Opens a file for writing, repaired if its last process was killed.
pub(crate) fn open_written(
    files: &Arc<dyn Files>,
    name: &str,
) -> Result<(Arc<Database>, Arc<Watch>), StorageError> {
    let file = open_file(&**files, name, true)?;
    let watched = Watched::written(files, name, file);
    let (file, watch) = watched.map_err(|error| explain_io(files.place(), error))?;
    let database = Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(file)
        .map_err(|error| explain_open(&**files, name, error))?;
    Ok((Arc::new(database), watch))
}

/// What is done about a file that has no checksums of its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsummed {
    /// They are taken and stored beside it.
    Store,
    /// They are taken and kept in memory: the directory is only looked at.
    Take,
}

/// Opens a file for reading.
///
/// # Errors
/// [`StorageError::Unclean`] where it would have to be repaired.
pub(crate) fn open_read_only(files: &dyn Files, name: &str, unsummed: Unsummed) -> Result<Db, StorageError> {
    let stored = sums::stored(files, name);
    let known = stored.is_some();
    let opened = open_with(files, name, stored.unwrap_or_default());
    let (database, watch) = match opened {
        // It was closed cleanly, or it had no checksums.
        Err(StorageError::Unclean { .. }) if known => {
            return Err(StorageError::file(files, name, "what says how it was closed is damaged"));
        }
        opened => opened?,
    };
    if known {
        return Ok(Db::ReadOnly(database, watch));
    }
    let taken = match unsummed {
        Unsummed::Store => sums::adopt_and_store(files, name)?,
        Unsummed::Take => sums::adopt(files, name)?,
    };
    let Some(taken) = taken else {
        // Which of its pages make no sense only reading them tells.
        tracing::error!(name, "a segment without checksums is damaged: replace this member");
        watch.note_damaged();
        return Ok(Db::ReadOnly(database, watch));
    };
    open_with(files, name, taken).map(|(database, watch)| Db::ReadOnly(database, watch))
}

fn open_with(
    files: &dyn Files,
    name: &str,
    sums: Vec<u64>,
) -> Result<(Arc<ReadOnlyDatabase>, Arc<Watch>), StorageError> {
    let watched = Watched::read_only(open_file(files, name, false)?, sums);
    let (file, watch) = watched.map_err(|error| explain_io(files.place(), error))?;
    let database = Builder::new()
        .set_cache_size(OLDER_CACHE_BYTES)
        .open_read_only_with_backend(file)
        .map_err(|error| explain_open(files, name, error))?;
    Ok((Arc::new(database), watch))
}

/// Closes a file that may have been left by a killed process.
pub(crate) fn repair(files: &Arc<dyn Files>, number: u64) -> Result<(), StorageError> {
    let name = file_name(number);
    let (database, watch) = open_written(files, &name)?;
    close(&**files, number, database, &watch)
}

fn close(files: &dyn Files, number: u64, database: Arc<Database>, watch: &Watch) -> Result<(), StorageError> {
    // Nothing is written to it any more.
    watch.keep();
    // Nobody else holds it, or else the last one who does closes it.
    let Some(database) = Arc::into_inner(database) else { return Ok(()) };
    database.close().map_err(|error| explain_open(files, &file_name(number), error))
}

/// Makes the next segment: whole and last on the disk under its name, and marked as not born.
pub(crate) fn prepare(files: &Arc<dyn Files>, number: u64) -> Result<Segment, StorageError> {
    let error = match make(files, number) {
        Err(StorageError::Database(redb::Error::Io(error))) => explain_io(files.place(), error),
        other => return other,
    };
    Err(error)
}

/// Where there was no space for the next segment, what there is of it takes none either.
pub(crate) fn give_up(files: &dyn Files, number: u64) {
    // What cannot be removed now is removed by the next start, or written over.
    drop(files.remove(&format!("{}{NEW}", file_name(number))));
}

fn make(files: &Arc<dyn Files>, number: u64) -> Result<Segment, StorageError> {
    let explain = |error| explain_io(files.place(), error);
    let (name, new) = (file_name(number), format!("{}{NEW}", file_name(number)));
    let created = files.create(&new).map_err(explain)?;
    let (file, watch) = Watched::written(files, &name, created).map_err(explain)?;
    let database = Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(file)
        .map_err(|error| explain_open(&**files, &name, error))?;
    let transaction = begin(&database)?;
    {
        // Later code may rely on every table being there.
        transaction.open_table(ROWS)?;
        transaction.open_table(PEERS)?;
        transaction.open_table(encoding::MARKS)?;
        transaction.open_table(encoding::SKIPPED)?;
        transaction.open_table(encoding::SNAPSHOTS)?;
        transaction.open_table(encoding::FETCHED)?;
        let mut meta = transaction.open_table(META)?;
        // Its birth raises it where the log is at a level that lets it.
        meta.insert(name::FORMAT, encoding::number(Format::Second.number()).as_slice())?;
        let unborn = encoding::seal(name::UNBORN, &encoding::number(number));
        meta.insert(name::UNBORN, unborn.as_slice())?;
    }
    transaction.commit()?;
    files.rename(&new, &name).map_err(explain)?;
    files.sync().map_err(explain)?;
    Ok(Segment { number, database: Arc::new(database), watch })
}

/// A transaction in the safe mode (docs: decisions/0003).
pub(crate) fn begin(database: &Database) -> Result<WriteTransaction, StorageError> {
    let mut transaction = database.begin_write()?;
    transaction.set_two_phase_commit(true);
    Ok(transaction)
}

/// The segment that is written, or the one that will be.
#[derive(Clone)]
pub(crate) struct Segment {
    pub(crate) number: u64,
    pub(crate) database: Arc<Database>,
    pub(crate) watch: Arc<Watch>,
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Segment {}", self.number)
    }
}

/// An older segment, open or not.
#[derive(Debug)]
pub(crate) struct Older {
    pub(crate) summary: Summary,
    files: Arc<dyn Files>,
    open: Mutex<Option<Db>>,
}

impl Older {
    pub(crate) fn new(files: Arc<dyn Files>, summary: Summary, open: Option<Db>) -> Older {
        Older { summary, files, open: Mutex::new(open) }
    }

    fn state(&self) -> MutexGuard<'_, Option<Db>> {
        // A panic under this lock leaves a database that is open, or none.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The database; whoever holds it can read until they let go of it.
    fn database(&self, may_repair: bool) -> Result<Db, StorageError> {
        let mut open = self.state();
        if open.as_ref().is_some_and(Db::has_to_be_opened_anew) {
            *open = None;
        }
        if let Some(db) = &*open {
            return Ok(db.clone());
        }
        let files = &*self.files;
        let file = file_name(self.summary.number);
        let unsummed = if may_repair { Unsummed::Store } else { Unsummed::Take };
        let db = match open_read_only(files, &file, unsummed) {
            // It was not closed yet when its process was killed.
            Err(StorageError::Unclean { .. }) if may_repair => {
                repair(&self.files, self.summary.number)?;
                open_read_only(files, &file, unsummed)?
            }
            other => other?,
        };
        *open = Some(db.clone());
        Ok(db)
    }

    /// Lets go of a database that is only read; its readers keep it.
    fn let_go(&self) {
        let mut open = self.state();
        if matches!(*open, Some(Db::ReadOnly(..))) {
            *open = None;
        }
    }

    /// Closes it cleanly if it was written by this process and nobody reads in it; `false`: somebody does. Or
    /// repairs what a killed process left.
    pub(crate) fn settle(&self) -> Result<bool, StorageError> {
        let mut open = self.state();
        match open.take() {
            Some(Db::Written(database, watch)) if Arc::strong_count(&database) > 1 => {
                *open = Some(Db::Written(database, watch));
                Ok(false)
            }
            // Readers who come meanwhile wait for the lock.
            Some(Db::Written(database, watch)) => {
                close(&*self.files, self.summary.number, database, &watch).map(|()| true)
            }
            read_only @ Some(Db::ReadOnly(..)) => {
                *open = read_only;
                Ok(true)
            }
            None => match open_read_only(&*self.files, &file_name(self.summary.number), Unsummed::Store) {
                Ok(_) => Ok(true),
                Err(StorageError::Unclean { .. }) => repair(&self.files, self.summary.number).map(|()| true),
                Err(error) => Err(error),
            },
        }
    }
}

/// Older segments that were read in lately, the last one at the end.
#[derive(Debug, Default)]
struct Recent(Mutex<Vec<Weak<Older>>>);

impl Recent {
    fn touch(&self, older: &Arc<Older>) {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        recent.retain(|other| other.strong_count() > 0 && !std::ptr::eq(other.as_ptr(), Arc::as_ptr(older)));
        recent.push(Arc::downgrade(older));
        if recent.len() > OPEN {
            let oldest = recent.remove(0);
            if let Some(oldest) = oldest.upgrade() {
                oldest.let_go();
            }
        }
    }
}

/// The segments at one moment. Who holds it can go on reading what was there then: no file of it is removed.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// Before the files that it is one of: it is closed before their lock is let go.
    pub(crate) current: (u64, Db),
    /// Oldest first.
    pub(crate) older: Vec<Arc<Older>>,
    pub(crate) files: Arc<dyn Files>,
    /// Offline nothing is repaired.
    pub(crate) may_repair: bool,
    /// Older segments are read from their files, not from pages that others' reading left in memory.
    reads_anew: bool,
    recent: Arc<Recent>,
}

/// The layout now.
pub(crate) type Current = Arc<RwLock<Arc<Layout>>>;

impl Layout {
    pub(crate) fn new(
        files: Arc<dyn Files>,
        current: (u64, Db),
        older: &[Summary],
        may_repair: bool,
    ) -> Layout {
        let older = older.iter().map(|summary| Arc::new(Older::new(files.clone(), *summary, None))).collect();
        Layout { current, older, files, may_repair, reads_anew: false, recent: Arc::default() }
    }

    /// The same, for who wants to see what the disk has: each older segment that is opened through it is opened anew.
    pub(crate) fn read_anew(&self) -> Layout {
        Layout { reads_anew: true, ..self.clone() }
    }

    /// The database of an older segment.
    pub(crate) fn open(&self, older: &Arc<Older>) -> Result<Db, StorageError> {
        let db = older.database(self.may_repair)?;
        self.recent.touch(older);
        match db {
            Db::ReadOnly(..) if self.reads_anew => {
                open_read_only(&*self.files, &file_name(older.summary.number), Unsummed::Store)
            }
            db => Ok(db),
        }
    }

    /// The database of a segment.
    pub(crate) fn find(&self, number: u64) -> Result<Db, StorageError> {
        if number == self.current.0 {
            return Ok(self.current.1.clone());
        }
        match self.older.iter().find(|older| older.summary.number == number) {
            Some(older) => self.open(older),
            None => Err(StorageError::file(&*self.files, &file_name(number), "it is not listed")),
        }
    }
}

pub(crate) fn layout(current: &Current) -> Arc<Layout> {
    // The writer under this lock only puts another pointer in place.
    current.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// What stands in an open database.
pub(crate) fn summarize(number: u64, transaction: &ReadTransaction) -> Result<Summary, StorageError> {
    let rows = transaction.open_table(ROWS)?;
    let marks = transaction.open_table(encoding::MARKS)?;
    let mut summary = Summary { number, ..Summary::default() };
    // By their ends, and not as redb's first and last: a page that was lost is an empty one.
    for row in [rows.iter()?.next(), rows.iter()?.next_back()].into_iter().flatten() {
        summary.add_row(row?.0.value());
    }
    for mark in [marks.iter()?.next(), marks.iter()?.next_back()].into_iter().flatten() {
        let (first, place) = mark?;
        summary.add_mark(first.value(), place.value().0);
    }
    Ok(summary)
}

/// What a segment is.
pub(crate) enum Standing {
    /// It was prepared, and never written.
    Unborn,
    /// Format 1.
    Old,
    /// A member's, with its meta values under their names.
    Born(BTreeMap<String, Vec<u8>>),
}

/// Meta values as they are stored, by name.
pub(crate) fn values(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<BTreeMap<String, Vec<u8>>, StorageError> {
    let mut found = BTreeMap::new();
    for row in meta.iter()? {
        let (name, value) = row?;
        found.insert(name.value().to_owned(), value.value().to_vec());
    }
    Ok(found)
}

/// What a segment is; whatever is neither is damaged.
pub(crate) fn standing(
    files: &dyn Files,
    number: u64,
    transaction: &ReadTransaction,
) -> Result<Standing, StorageError> {
    let mut found = values(&transaction.open_table(META)?)?;
    let format =
        found.get(name::FORMAT).ok_or_else(|| StorageError::damaged("the format", "it is missing"))?;
    match encoding::read_number("the format version", format)? {
        // A segment of a later one has lists that this one did not have.
        encoding::OLD_FORMAT if !found.contains_key(name::SEGMENTS) && !found.contains_key(name::UNBORN) => {
            return Ok(Standing::Old);
        }
        number if Format::from_number(number).is_some() || number == encoding::OLD_FORMAT => {
            format_of(&found)?;
        }
        number => {
            let (dir, known) = (files.place().to_owned(), Format::NEWEST.number());
            return Err(StorageError::UnknownFormat { dir, found: number, known });
        }
    }
    if let Some(unborn) = found.get(name::UNBORN) {
        let own = encoding::read_number(name::UNBORN, encoding::unseal(name::UNBORN, unborn)?)?;
        if own != number || found.len() != 2 {
            return Err(StorageError::damaged("the mark of a new segment", "it does not fit"));
        }
        return Ok(Standing::Unborn);
    }
    if let Some(missing) = name::ALWAYS.iter().find(|name| !found.contains_key(**name)) {
        return Err(StorageError::damaged("what the member is", format!("`{missing}` is missing")));
    }
    for (name, value) in &mut found {
        if !name::ALWAYS.contains(&name.as_str()) && !name::SOMETIMES.contains(&name.as_str()) {
            return Err(StorageError::damaged("what the member is", format!("`{name}` is no known name")));
        }
        if name != name::FORMAT {
            *value = encoding::unseal(name, value)?.to_vec();
        }
    }
    Ok(Standing::Born(found))
}

/// The trim point that a transaction shows.
pub(crate) fn trim_through(transaction: &ReadTransaction) -> Result<Slot, StorageError> {
    let meta = transaction.open_table(META)?;
    let sealed = meta.get(name::TRIM_THROUGH)?;
    let sealed = sealed.ok_or_else(|| StorageError::damaged("the trim point", "it is missing"))?;
    let bytes = encoding::unseal(name::TRIM_THROUGH, sealed.value())?;
    Ok(Slot(encoding::read_number(name::TRIM_THROUGH, bytes)?))
}
