//! Looking at a data directory that no process holds, without changing a byte of it.

use crate::disk::{lists, open_on, trimmed_files};
use crate::encoding::{self, MARKS, ROW_HEAD, ROWS, SKIPPED, Summary};
use crate::files::{DIRECTORY, Directory, Files, LEGACY, explain_io};
use crate::load::{Loaded, Rows, load};
use crate::read::{LogReader, View};
use crate::rows::RowTable;
use crate::segment::{
    Db, Layout, Standing, Unsummed, file_name, in_file, open_read_only, parse_name, repair, standing,
    summarize,
};
use crate::sums::summed;
use crate::{Options, StorageError};
use bytes::Bytes;
use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata};
use std::path::Path;
use std::sync::{Arc, RwLock};
use synod_paxos::system::SystemState;
use synod_paxos::value::{Value, entries_added};
use synod_paxos::{ClusterId, DurableState, Index, Row, Slot};

/// A data directory opened for reading.
#[derive(Clone)]
pub struct Offline {
    layout: Arc<Layout>,
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

/// A file of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentFile {
    /// Its name in the directory of the log.
    pub file: String,
    /// Slots of the first and the last row in it; none: it has no row.
    pub slots: Option<(Slot, Slot)>,
    /// Its length.
    pub bytes: u64,
}

impl Offline {
    /// Opens `dir`. With `copy_to` its files are copied there first, and the copy is opened and repaired where its
    /// last process was killed; `dir` itself is never written to.
    ///
    /// # Errors
    /// See [`StorageError`]: in use, missing, not closed cleanly, or of another format.
    pub fn open(dir: &Path, copy_to: Option<&Path>) -> Result<Offline, StorageError> {
        let source = Directory::look(dir)?;
        let names = source.list().map_err(|error| explain_io(dir, error))?;
        if !names.iter().any(|name| name == LEGACY || parse_name(name).is_some()) {
            return Err(StorageError::Missing { dir: dir.to_owned() });
        }
        let Some(to) = copy_to else { return look(Arc::new(source), names) };
        copy(&source, &names, to)?;
        let copied = Directory::look(to)?;
        let names = copied.list().map_err(|error| explain_io(to, error))?;
        look(Arc::new(copied), names)
    }

    /// What the disk holds, without snapshots that are damaged: a member goes on without them.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn state(&self, rows: Rows) -> Result<DurableState, StorageError> {
        Ok(load(&self.layout, rows)?.state)
    }

    /// What the disk holds, for a log that is to begin with one of its snapshots.
    ///
    /// # Errors
    /// If it cannot be read, or a snapshot is damaged.
    pub fn whole_state(&self, rows: Rows) -> Result<DurableState, StorageError> {
        let Loaded { state, damaged } = load(&self.layout, rows)?;
        damaged.into_iter().next().map_or(Ok(state), Err)
    }

    /// The files of the log, oldest first.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn segments(&self) -> Result<Vec<SegmentFile>, StorageError> {
        let files = &*self.layout.files;
        let transaction = self.layout.current.1.begin_read()?;
        let newest = summarize(self.layout.current.0, &transaction)?;
        let summaries = self.layout.older.iter().map(|older| older.summary).chain([newest]);
        summaries
            .map(|Summary { number, slots, .. }| {
                let file = file_name(number);
                let length = files.open(&file, false).and_then(|file| file.len());
                let bytes = length.map_err(|error| explain_io(files.place(), error))?;
                let slots = (slots.1 > 0).then_some((Slot(slots.0), Slot(slots.1)));
                Ok(SegmentFile { file, slots, bytes })
            })
            .collect()
    }

    /// How many rows the segments hold, those included that are trimmed and not deleted yet, and those that were
    /// written again later.
    ///
    /// # Errors
    /// If the disk cannot be read.
    pub fn row_count(&self) -> Result<u64, StorageError> {
        let mut count = 0;
        self.each_segment(|_, transaction| {
            count += transaction.open_table(ROWS)?.len()?;
            Ok(())
        })?;
        Ok(count)
    }

    fn each_segment(
        &self,
        mut each: impl FnMut(u64, &ReadTransaction) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        self.numbers().try_for_each(|number| self.in_segment(number, |transaction| each(number, transaction)))
    }

    /// Numbers of the segments, oldest first.
    fn numbers(&self) -> impl Iterator<Item = u64> {
        let older = self.layout.older.iter().map(|older| older.summary.number);
        older.chain([self.layout.current.0])
    }

    fn in_segment(
        &self,
        number: u64,
        read: impl FnOnce(&ReadTransaction) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let db = self.layout.find(number)?;
        let transaction = db.begin_read().map_err(StorageError::from);
        in_file(&*self.layout.files, number, transaction.and_then(|transaction| read(&transaction)))
    }

    /// Entries by index.
    pub fn reader(&self) -> LogReader {
        LogReader::new(Arc::new(RwLock::new(self.layout.clone())))
    }

    /// First and last index whose entries stand on this disk with their marks.
    ///
    /// # Errors
    /// If the disk cannot be read.
    pub fn span(&self) -> Result<Option<(Index, Index)>, StorageError> {
        let trim_through = self.state(Rows::None)?.trim_through;
        let mut span: Option<(u64, u64)> = None;
        self.each_segment(|_, transaction| {
            let marks = transaction.open_table(MARKS)?;
            for mark in marks.iter()? {
                let (first, place) = mark?;
                if place.value().0 > trim_through.0 {
                    let first = first.value();
                    span = Some(span.map_or((first, 0), |(before, last)| (before.min(first), last)));
                    break;
                }
            }
            // Not redb's last: a page that was lost is an empty one.
            if let (Some(last), Some(span)) = (marks.iter()?.next_back(), &mut span) {
                let (first, place) = last?;
                span.1 = span.1.max(first.value() + u64::from(place.value().1) - 1);
            }
            Ok(())
        })?;
        Ok(span.map(|(first, last)| (Index(first), Index(last))))
    }

    /// Reads every row, mark and snapshot. `step` is told of each row.
    ///
    /// # Errors
    /// If the newest segment cannot be read; other damages are found, counted and named.
    pub fn check(&self, mut step: impl FnMut()) -> Result<Checked, StorageError> {
        let mut checked = Checked::default();
        let state = match load(&self.layout, Rows::None) {
            Ok(Loaded { state, damaged }) => {
                damaged.into_iter().try_for_each(|error| note(Err(error), &mut checked))?;
                state
            }
            Err(StorageError::File { file, why, .. }) => {
                checked.damaged.push(format!("{}: {why}", file.display()));
                return Ok(checked);
            }
            Err(error) => return Err(error),
        };
        if !state.system.is_empty()
            && let Err(error) = SystemState::decode(state.system.clone())
        {
            checked.damaged.push(format!("the system state: {error}"));
        }
        let cluster = state.genesis.as_ref().map(|genesis| genesis.cluster);
        for (slot, state) in &state.snapshots {
            checked.snapshots += 1;
            check_snapshot(*slot, state, &mut checked);
        }
        for number in self.numbers() {
            let read = self.in_segment(number, |transaction| {
                let damaged = check_rows(cluster, transaction, state.trim_through, &mut step, &mut checked)?;
                for (slot, why) in damaged {
                    // A row that was healed stands in a newer segment; nobody reads this one any more.
                    if !self.is_replaced(slot, number)? {
                        checked.damaged.push(format!("slot {slot} in {}: {why}", file_name(number)));
                    }
                }
                check_marks(transaction, state.trim_through, &file_name(number), &mut checked)
            });
            note(read, &mut checked)?;
        }
        let rows = self.check_shown(cluster, &mut checked);
        note(rows, &mut checked)?;
        let entries = self.check_entries(&mut checked);
        note(entries, &mut checked)?;
        Ok(checked)
    }

    /// Rows as somebody is given them: what is lost with a damaged block stands elsewhere, or is named.
    fn check_shown(&self, cluster: Option<ClusterId>, checked: &mut Checked) -> Result<(), StorageError> {
        let named = !checked.damaged.is_empty();
        self.view()?.walk(Slot(0), |row| {
            let intact = cluster.is_some_and(|cluster| row.is_intact(cluster));
            if !intact && !named {
                checked.damaged.push(format!("slot {}: its row is lost", row.slot));
            }
            Ok(true)
        })?;
        Ok(())
    }

    /// Whether a segment behind `number` has a row of `slot`.
    fn is_replaced(&self, slot: u64, number: u64) -> Result<bool, StorageError> {
        for newer in self.numbers().filter(|newer| *newer > number) {
            if self.layout.find(newer)?.begin_read()?.open_table(ROWS)?.get(slot)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Every index that is not trimmed has its entry.
    fn check_entries(&self, checked: &mut Checked) -> Result<(), StorageError> {
        let Some((first, last)) = self.span()? else { return Ok(()) };
        let reader = self.reader();
        let mut next = first;
        while next <= last {
            match reader.entries((next, last), 4_096, 4 << 20) {
                Ok(found) => {
                    checked.entries += found.len() as u64;
                    next = next.plus(found.len() as u64);
                }
                Err(error) if error.is_damage() => {
                    // Its row is named already, where that is what is damaged.
                    if checked.damaged.is_empty() {
                        checked.damaged.push(error.to_string());
                    }
                    next = reader.behind(next)?.unwrap_or(last.next());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// A view of every row that is not trimmed.
    ///
    /// # Errors
    /// If the disk cannot be read.
    pub fn view(&self) -> Result<View, StorageError> {
        View::open(self.layout.clone())
    }
}

/// Opens all segments of a directory for reading.
fn look(files: Arc<dyn Files>, names: Vec<String>) -> Result<Offline, StorageError> {
    let place = || files.place().to_owned();
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| parse_name(name)).collect();
    if names.iter().any(|name| name == LEGACY) {
        return Err(match numbers.is_empty() {
            true => StorageError::OldFormat { dir: place() },
            false => StorageError::TwoFormats { dir: place() },
        });
    }
    numbers.sort_unstable();
    while let Some(number) = numbers.pop() {
        let db: Db = open_read_only(&*files, &file_name(number), Unsummed::Take)?;
        let transaction = in_file(&*files, number, db.begin_read().map_err(Into::into))?;
        let meta = match in_file(&*files, number, standing(&*files, number, &transaction))? {
            Standing::Unborn => continue,
            Standing::Old => return Err(StorageError::OldFormat { dir: place() }),
            Standing::Born(meta) => meta,
        };
        let (_, older, _) = in_file(&*files, number, lists(&meta))?;
        trimmed_files(&*files, &older, number)?;
        drop(transaction);
        return Ok(Offline { layout: Arc::new(Layout::new(files.clone(), (number, db), &older, false)) });
    }
    Err(StorageError::Missing { dir: place() })
}

/// Names a file that cannot be read, once.
fn note(read: Result<(), StorageError>, checked: &mut Checked) -> Result<(), StorageError> {
    let Err(StorageError::File { file, why, .. }) = read else { return read };
    let told = format!("{}: {why}", file.display());
    if !checked.damaged.contains(&told) {
        checked.damaged.push(told);
    }
    Ok(())
}

fn check_rows(
    cluster: Option<ClusterId>,
    transaction: &ReadTransaction,
    trim_through: Slot,
    step: &mut impl FnMut(),
    checked: &mut Checked,
) -> Result<Vec<(u64, String)>, StorageError> {
    let mut damaged = Vec::new();
    for row in RowTable::open(transaction)?.from(trim_through.0 + 1)? {
        let row = row?;
        step();
        checked.rows += 1;
        checked.bytes += (ROW_HEAD + row.value.len()) as u64;
        let slot = row.slot.0;
        if let Err(why) = check_row(cluster, row) {
            damaged.push((slot, why));
        }
    }
    Ok(damaged)
}

fn check_snapshot(slot: Slot, state: &Bytes, checked: &mut Checked) {
    match SystemState::decode(state.clone()) {
        Ok(decoded) if decoded.applied == slot => {}
        Ok(_) => checked.damaged.push(format!("snapshot {slot}: of another slot")),
        Err(error) => checked.damaged.push(format!("snapshot {slot}: {error}")),
    }
}

/// Each mark passes its checksum, and fits its row where that stands in the same segment.
fn check_marks(
    transaction: &ReadTransaction,
    trim_through: Slot,
    file: &str,
    checked: &mut Checked,
) -> Result<(), StorageError> {
    let (marks, rows) = (transaction.open_table(MARKS)?, RowTable::open(transaction)?);
    let skipped = transaction.open_table(SKIPPED)?;
    for mark in marks.iter()? {
        let (first, place) = mark?;
        let (first, (slot, count, _)) = (first.value(), place.value());
        if slot <= trim_through.0 {
            continue;
        }
        let places = skipped.get(slot)?;
        let places = match encoding::read_mark(first, place.value(), places.as_ref().map(|p| p.value())) {
            Ok(places) => places,
            Err(error) => {
                checked.damaged.push(format!("index {first} in {file}: {error}"));
                continue;
            }
        };
        let Some(row) = rows.get(slot)? else { continue };
        let added = entries_added(row.value, &places).ok();
        if added.is_some_and(|added| added.len() as u64 != u64::from(count)) {
            checked
                .damaged
                .push(format!("index {first} in {file}: slot {slot} does not hold its {count} entries"));
        }
    }
    Ok(())
}

fn check_row(cluster: Option<ClusterId>, row: Row) -> Result<(), String> {
    if !cluster.is_some_and(|cluster| row.is_intact(cluster)) {
        return Err("fails its checksum".to_owned());
    }
    Value::decode(row.value).map(|_| ()).map_err(|error| error.to_string())
}

/// Copies a log into an empty directory, and lets redb repair the copy; one of format 1 is taken over there.
fn copy(source: &Directory, names: &[String], to: &Path) -> Result<(), StorageError> {
    let unwritable = |error| explain_io(to, error);
    let there = Directory::look(to)?.list().map_err(unwritable)?;
    if there.iter().any(|name| name == LEGACY || parse_name(name).is_some()) {
        return Err(StorageError::NotEmpty { dir: to.to_owned() });
    }
    let target = Directory::open(to)?;
    let is_ours = |name: &str| {
        name == LEGACY || parse_name(name).is_some() || summed(name).is_some_and(|n| parse_name(n).is_some())
    };
    for name in names.iter().filter(|name| is_ours(name)) {
        let place = |dir: &Path| match name == LEGACY {
            true => dir.join(name),
            false => dir.join(DIRECTORY).join(name),
        };
        std::fs::copy(place(source.place()), place(to)).map_err(unwritable)?;
    }
    let target: Arc<dyn Files> = Arc::new(target);
    for number in names.iter().filter_map(|name| parse_name(name)) {
        match repair(&target, number) {
            // It is looked at as it is.
            Err(error) if error.is_damage() => tracing::warn!(%error, "a segment cannot be repaired"),
            repaired => repaired?,
        }
    }
    if names.iter().any(|name| name == LEGACY) {
        // A start of the copy: its number of starts is one higher than the original's.
        drop(open_on(target, None, Options::default())?);
    }
    Ok(())
}
