//! Opening a data directory.

use crate::encoding::{
    self, Format, META, OLD_PEERS, PEERS, ROWS, SNAPSHOTS, Summary, name, peer_checksum, seal,
};
use crate::files::{DIRECTORY, Directory, Files, LEGACY, explain_io};
use crate::keeper::{Job, Keeper};
use crate::load::{Loaded, Rows, load};
use crate::read::LogReader;
use crate::rows::stored_format;
use crate::segment::{
    Db, Layout, Segment, Standing, Unsummed, begin, file_name, in_file, is_unfinished, open_read_only,
    open_written, parse_name, prepare, standing, summarize, values,
};
use crate::sums::{self, summed};
use crate::write::{Draft, RedbStorage, carry_member, put};
use crate::{Options, StorageError};
use redb::{ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata, WriteTransaction};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use synod_paxos::{ClusterId, DurableState, Genesis, Index, MemberId, Slot, Storage, SystemState, Write};

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
    open_with(dir, wanted, Options::default())
}

/// Opens the data directory `dir` for a member: of its snapshots the state has the slots only, however many there are.
///
/// # Errors
/// Those of [`open`].
pub fn open_member(dir: &Path, wanted: Option<ClusterId>) -> Result<Opened, StorageError> {
    open_for(Arc::new(Directory::open(dir)?), wanted, Options::default(), Rows::Start)
}

/// Opens the data directory `dir` with segments of another size.
///
/// # Errors
/// Those of [`open`].
pub fn open_with(dir: &Path, wanted: Option<ClusterId>, options: Options) -> Result<Opened, StorageError> {
    open_on(Arc::new(Directory::open(dir)?), wanted, options)
}

/// Opens a disk on files of the caller's: for tests of what a failing disk does.
///
/// # Errors
/// Those of [`open`].
pub fn open_on(
    files: Arc<dyn Files>,
    wanted: Option<ClusterId>,
    options: Options,
) -> Result<Opened, StorageError> {
    open_for(files, wanted, options, Rows::AboveApplied)
}

fn open_for(
    files: Arc<dyn Files>,
    wanted: Option<ClusterId>,
    options: Options,
    rows: Rows,
) -> Result<Opened, StorageError> {
    let found = find(&files, wanted)?;
    let segment = match found {
        Some(segment) => segment,
        None => prepare(&files, 1)?,
    };
    boot(&segment).map_err(|error| explain(&*files, error))?;
    assemble(files, segment, options, rows)
}

/// A failing disk, with what to do about it.
fn explain(files: &dyn Files, error: StorageError) -> StorageError {
    match error {
        StorageError::Database(redb::Error::Io(error)) => explain_io(files.place(), error),
        other => other,
    }
}

/// The numbers of the segments that are there, newest last; what a killed process left unfinished goes. A directory
/// of format 1 is taken over: its file becomes the first segment.
fn numbers(files: &Arc<dyn Files>, wanted: Option<ClusterId>) -> Result<Vec<u64>, StorageError> {
    let explain = |error| explain_io(files.place(), error);
    let names = files.list().map_err(explain)?;
    // Checksums of a file that is gone.
    for name in names.iter().filter(|name| summed(name).is_some_and(|of| !names.iter().any(|n| n == of))) {
        files.remove(name).map_err(explain)?;
    }
    for name in names.iter().filter(|name| is_unfinished(name)) {
        files.remove(name).map_err(explain)?;
    }
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| parse_name(name)).collect();
    numbers.sort_unstable();
    if !names.iter().any(|name| name == LEGACY) {
        return Ok(numbers);
    }
    if !numbers.is_empty() {
        return Err(StorageError::TwoFormats { dir: files.place().to_owned() });
    }
    // Its file is open while it is renamed: whoever else had it open would have been found.
    let (database, _) = open_written(files, LEGACY)?;
    let standing = standing(&**files, 1, &database.begin_read()?)?;
    if !matches!(standing, Standing::Old) {
        return Err(StorageError::file(&**files, LEGACY, "it is not of the format that has this file"));
    }
    check_cluster(&**files, values(&database.begin_read()?.open_table(META)?)?, wanted)?;
    files.rename(LEGACY, &file_name(1)).map_err(explain)?;
    files.sync().map_err(explain)?;
    Ok(vec![1])
}

/// The segment that is written; none in an empty directory.
fn find(shared: &Arc<dyn Files>, wanted: Option<ClusterId>) -> Result<Option<Segment>, StorageError> {
    let mut numbers = numbers(shared, wanted)?;
    let files = &**shared;
    while let Some(number) = numbers.pop() {
        let file = file_name(number);
        let damaged = sums::damaged_blocks(files, &file).map_err(|error| explain_io(files.place(), error))?;
        if !damaged.is_empty() {
            return leave_damaged(shared, number, &damaged, wanted).map(Some);
        }
        let (database, watch) = open_written(shared, &file)?;
        let transaction = in_file(files, number, database.begin_read().map_err(StorageError::from))?;
        let meta = match in_file(files, number, standing(files, number, &transaction))? {
            Standing::Unborn => {
                drop((transaction, database));
                files.remove(&file).map_err(|error| explain_io(files.place(), error))?;
                continue;
            }
            Standing::Old if number == 1 && numbers.is_empty() => {
                let meta = values(&transaction.open_table(META)?)?;
                drop(transaction);
                check_cluster(files, meta, wanted)?;
                let segment = Segment { number, database, watch };
                upgrade(&segment).map_err(|error| explain(files, error))?;
                return Ok(Some(segment));
            }
            Standing::Old => return Err(StorageError::file(files, &file, "it is of an older format")),
            Standing::Born(meta) => meta,
        };
        check_cluster(files, meta, wanted)?;
        return Ok(Some(Segment { number, database, watch }));
    }
    Ok(None)
}

/// The newest segment was closed cleanly, and some blocks of it have changed since: it is only read from now on, and
/// the log goes on in the next one. What says what the member is must be whole; rows that are lost heal from peers.
fn leave_damaged(
    shared: &Arc<dyn Files>,
    number: u64,
    blocks: &[usize],
    wanted: Option<ClusterId>,
) -> Result<Segment, StorageError> {
    let files = &**shared;
    let file = file_name(number);
    tracing::error!(file, blocks = blocks.len(), "damaged on the disk: the log goes on in the next segment");
    let db = open_read_only(files, &file, Unsummed::Take)?;
    let before = in_file(files, number, db.begin_read().map_err(StorageError::from))?;
    let Standing::Born(meta) = in_file(files, number, standing(files, number, &before))? else {
        return Err(StorageError::file(files, &file, "it is damaged, and says nothing of a member"));
    };
    let level = meta.get(name::GENESIS).and_then(|genesis| Genesis::decode(genesis.clone().into()).ok());
    let level = level.map_or(1, |genesis| genesis.settings.format_level);
    let (closed, mut older, snapshots) = in_file(files, number, lists(&meta))?;
    check_cluster(files, meta, wanted)?;
    let left = in_file(files, number, left_of(number, &before, &older))?;
    older.push(left);
    let next = prepare(shared, number + 1)?;
    let transaction = begin(&next.database)?;
    let trim_through = crate::segment::trim_through(&before)?;
    let summary = Summary { number: next.number, ..Summary::default() };
    let format = Format::Second;
    let mut draft = Draft { summary, format, snapshots, older, trim_through };
    carry_member(&before, &transaction, &mut draft, level)?;
    draft.list(&mut transaction.open_table(META)?, closed)?;
    transaction.commit()?;
    Ok(next)
}

/// How many slots above and below a watermark may get another vote: see the core's window of slots.
pub(crate) fn window(transaction: &ReadTransaction) -> Result<u64, StorageError> {
    let meta = transaction.open_table(META)?;
    let genesis = meta.get(name::GENESIS)?.map(|sealed| sealed.value().to_vec());
    let alpha = match genesis {
        Some(sealed) => {
            Genesis::decode(encoding::unseal(name::GENESIS, &sealed)?.to_vec().into())
                .map_err(|error| StorageError::damaged("the genesis", error))?
                .alpha
        }
        None => 0,
    };
    Ok(2 * u64::from(alpha) + 64)
}

/// What stands in a segment that has damaged blocks, as far as it may: every slot in its span that no row is found of
/// may have had one (docs: decisions/0016).
pub(crate) fn left_of(
    number: u64,
    transaction: &ReadTransaction,
    older: &[Summary],
) -> Result<Summary, StorageError> {
    let mut summary = summarize(number, transaction)?;
    let rows = transaction.open_table(ROWS)?;
    let meta = transaction.open_table(META)?;
    let get = |name: &'static str| -> Result<u64, StorageError> {
        let sealed = meta.get(name)?;
        let sealed = sealed.ok_or_else(|| StorageError::damaged("what the member is", "it lacks a value"))?;
        encoding::read_number(name, encoding::unseal(name, sealed.value())?)
    };
    let chosen = get(name::CHOSEN_THROUGH)?;
    // Rows of these slots were never in an older segment: those of them that are not found are lost.
    let before = older.iter().map(|older| older.slots.1).max().unwrap_or(0).max(get(name::TRIM_THROUGH)?);
    let (mut found, mut own) = (0, 0);
    for row in rows.iter()? {
        let slot = row?.0.value();
        found += 1;
        own += u64::from(slot > before && slot <= chosen);
    }
    let lost = rows.len()?.saturating_sub(found);
    if lost > 0 {
        let window = window(transaction)?;
        // Rows that took the place of an older segment's may be among what is lost.
        let trimmed = get(name::TRIM_THROUGH)?;
        summary.add_row((before + 1).saturating_sub(window).max(trimmed + 1));
        summary.add_row(chosen.max(before + 1));
        if lost > chosen.saturating_sub(before).saturating_sub(own) {
            // Votes above the watermark, too: so far may they have gone.
            summary.add_row(chosen + window);
        }
    }
    Ok(summary)
}

fn check_cluster(
    files: &dyn Files,
    mut meta: BTreeMap<String, Vec<u8>>,
    wanted: Option<ClusterId>,
) -> Result<(), StorageError> {
    let found = match (meta.remove(name::GENESIS), meta.remove(name::JOINED)) {
        (Some(genesis), _) => {
            let genesis = Genesis::decode(genesis.into());
            Some(genesis.map_err(|e| StorageError::damaged("the genesis", e))?.cluster)
        }
        (None, Some(joined)) => Some(encoding::read_joined(&joined)?.0),
        (None, None) => None,
    };
    match (found, wanted) {
        (Some(found), Some(wanted)) if found != wanted => {
            Err(StorageError::OtherCluster { dir: files.place().to_owned(), found, wanted })
        }
        _ => Ok(()),
    }
}

/// Seals what format 1 kept bare, and lists its snapshots: one transaction.
fn upgrade(segment: &Segment) -> Result<(), StorageError> {
    let transaction = begin(&segment.database)?;
    {
        let mut meta = transaction.open_table(META)?;
        let found = values(&meta)?;
        for (name, value) in found.iter().filter(|(name, _)| name.as_str() != name::FORMAT) {
            meta.insert(name.as_str(), seal(name, value).as_slice())?;
        }
        let mut peers = transaction.open_table(PEERS)?;
        for row in transaction.open_table(OLD_PEERS)?.iter()? {
            let (member, counters) = row?;
            let (member, (incarnation, written)) = (member.value(), counters.value());
            peers.insert(member, (incarnation, written, peer_checksum(member, incarnation, written)))?;
        }
        let mut snapshots = BTreeMap::new();
        for row in transaction.open_table(SNAPSHOTS)?.iter()? {
            snapshots.insert(row?.0.value(), segment.number);
        }
        put(&mut meta, name::SNAPSHOTS, &encoding::catalog(&snapshots))?;
        fill(&mut meta)?;
    }
    transaction.delete_table(OLD_PEERS)?;
    Ok(transaction.commit()?)
}

/// What every born segment has, where it is missing.
fn fill(meta: &mut redb::Table<'_, &'static str, &'static [u8]>) -> Result<(), StorageError> {
    meta.insert(name::FORMAT, encoding::number(Format::Second.number()).as_slice())?;
    let zero = encoding::number(0);
    for name in name::ALWAYS {
        if meta.get(name)?.is_some() {
            continue;
        }
        match name {
            name::PROMISED => put(meta, name, &encoding::pair(0, 0))?,
            name::SEGMENTS => put(meta, name, &encoding::segments(0, &[]))?,
            name::SNAPSHOTS => put(meta, name, &[])?,
            _ => put(meta, name, &zero)?,
        }
    }
    Ok(())
}

/// Raises the incarnation; on an empty disk, mints the member id: that transaction is the birth of the first
/// segment. The write counter stays: a boot must not make up for a write that a restored copy lacks (docs:
/// protocol.md, "Identity and amnesia").
fn boot(segment: &Segment) -> Result<(), StorageError> {
    let transaction = begin(&segment.database)?;
    {
        let mut meta = transaction.open_table(META)?;
        if meta.remove(name::UNBORN)?.is_some() {
            put(&mut meta, name::MEMBER, &encoding::number(mint_member()?.0))?;
            fill(&mut meta)?;
        }
        let counter = name::INCARNATION;
        let before = match meta.get(counter)? {
            Some(sealed) => encoding::read_number(counter, encoding::unseal(counter, sealed.value())?)?,
            None => 0,
        };
        put(&mut meta, counter, &encoding::number(before + 1))?;
    }
    Ok(transaction.commit()?)
}

/// The lists in a segment's meta values: numbers up to which all are closed, the older segments, the snapshots.
pub(crate) type Lists = (u64, Vec<Summary>, BTreeMap<u64, u64>);

pub(crate) fn lists(meta: &BTreeMap<String, Vec<u8>>) -> Result<Lists, StorageError> {
    let get = |name: &str| meta.get(name).map(Vec::as_slice).unwrap_or_default();
    let (closed, older) = encoding::read_segments(get(name::SEGMENTS))?;
    Ok((closed, older, encoding::read_catalog(get(name::SNAPSHOTS))?))
}

/// Every listed segment must be there; those below the newest that are not listed are trimmed, and are named.
pub(crate) fn trimmed_files(
    files: &dyn Files,
    older: &[Summary],
    newest: u64,
) -> Result<Vec<String>, StorageError> {
    let names = files.list().map_err(|error| explain_io(files.place(), error))?;
    for summary in older {
        let name = file_name(summary.number);
        if !names.contains(&name) {
            return Err(StorageError::file(files, &name, "it is missing"));
        }
    }
    let listed = |number| older.iter().any(|summary| summary.number == number);
    let gone = names.into_iter().filter(|name| parse_name(name).is_some_and(|n| n < newest && !listed(n)));
    Ok(gone.collect())
}

fn assemble(
    files: Arc<dyn Files>,
    segment: Segment,
    options: Options,
    rows: Rows,
) -> Result<Opened, StorageError> {
    let number = segment.number;
    let transaction = segment.database.begin_read()?;
    let Standing::Born(meta) = in_file(&*files, number, standing(&*files, number, &transaction))? else {
        return Err(StorageError::file(&*files, &file_name(number), "it is of no member after its start"));
    };
    let (closed, older, snapshots) = in_file(&*files, number, lists(&meta))?;
    let format = in_file(&*files, number, transaction.open_table(META).map_err(Into::into))?;
    let format = in_file(&*files, number, stored_format(&format))?;
    for name in trimmed_files(&*files, &older, number)? {
        files.remove(&name).map_err(|error| explain_io(files.place(), error))?;
    }
    let summary = in_file(&*files, number, summarize(number, &transaction))?;
    drop(transaction);
    if format == Format::Third {
        segment.watch.keep();
    }
    let db = Db::Written(segment.database.clone(), segment.watch.clone());
    let layout = Layout::new(files.clone(), (number, db), &older, true);
    let Loaded { state, damaged } = load(&layout, rows)?;
    for error in damaged {
        tracing::warn!(%error, "a snapshot is not served any more; the log is trimmed past it as before");
    }
    let mut keeper = Keeper::start(files, options.background)?;
    for older in layout.older.iter().filter(|older| older.summary.number > closed) {
        keeper.post(Job::Settle(older.clone()));
    }
    let layout = Arc::new(RwLock::new(Arc::new(layout)));
    let draft = Draft { summary, format, snapshots, older, trim_through: state.trim_through };
    let level = state.genesis.as_ref().map_or(1, |genesis| genesis.settings.format_level);
    Ok(Opened {
        reader: LogReader::new(layout.clone()),
        storage: RedbStorage {
            keeper,
            current: segment,
            layout,
            options,
            draft,
            marks: Vec::new(),
            noted: state.applied,
            marked: state.applied,
            leave: false,
            ask_at: 0,
            level,
        },
        state,
    })
}

/// Moves the log of `member` aside, in one step: the directory is empty then. Its new place is returned.
///
/// # Errors
/// If it cannot be renamed.
pub fn move_aside(dir: &Path, member: MemberId) -> Result<PathBuf, StorageError> {
    let aside = dir.join(format!("{DIRECTORY}.{member}"));
    std::fs::rename(dir.join(DIRECTORY), &aside).map_err(|error| explain_io(dir, error))?;
    Ok(aside)
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

/// Whether a member lives in `dir`.
fn is_empty(files: &dyn Files) -> Result<bool, StorageError> {
    let names = files.list().map_err(|error| explain_io(files.place(), error))?;
    Ok(!names.iter().any(|name| name == LEGACY || parse_name(name).is_some()))
}

/// Writes a whole state into an empty data directory: the disk of a member that was never started. Rows go in
/// many transactions; the last one makes the directory a member's.
///
/// # Errors
/// If the directory holds a member already, or cannot be written to.
pub fn create(dir: &Path, state: &DurableState) -> Result<(), StorageError> {
    create_on(Arc::new(Directory::open(dir)?), state, Options::default())
}

/// The same on files of the caller's.
///
/// # Errors
/// Those of [`create`].
pub fn create_on(files: Arc<dyn Files>, state: &DurableState, options: Options) -> Result<(), StorageError> {
    if !is_empty(&*files)? {
        return Err(StorageError::NotEmpty { dir: files.place().to_owned() });
    }
    let opened = open_on(files, None, options)?;
    let mut storage = opened.storage;
    if let Ok(system) = SystemState::decode(state.system.clone()) {
        storage.note_level(system.settings.format_level);
    }
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
    storage.become_member(state.member)
}

impl RedbStorage {
    /// Gives a disk that was never started its member id.
    fn become_member(&self, member: MemberId) -> Result<(), StorageError> {
        let transaction: WriteTransaction = begin(&self.current.database)?;
        {
            let mut meta = transaction.open_table(META)?;
            put(&mut meta, name::MEMBER, &encoding::number(member.0))?;
            put(&mut meta, name::INCARNATION, &encoding::number(0))?;
        }
        Ok(transaction.commit()?)
    }
}
