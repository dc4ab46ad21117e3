//! Reading: views for the core, entries by index for clients. A row is where it was written last: the newest segment
//! that has its slot.

use super::StorageError;
use super::encoding::{self, MARKS, META, ROWS, SKIPPED, Summary, name};
use super::segment::{Current, Db, Layout, Older, in_file, layout, trim_through};
use bytes::Bytes;
use redb::{OwnedRange, ReadOnlyTable, ReadTransaction};
use std::iter::Peekable;
use std::sync::Arc;
use synod_paxos::value::entries_added;
use synod_paxos::{ClusterId, Genesis, Index, Row, Slot};

type RowTable = ReadOnlyTable<u64, &'static [u8]>;
type MarkTable = ReadOnlyTable<u64, (u64, u32, u64)>;

/// Rows as they were durable when the view was opened.
#[derive(Debug)]
pub struct View {
    rows: RowTable,
    /// Rows up to here are trimmed, whether they have been deleted yet or not.
    trim_through: Slot,
    /// Behind the table: its database is closed when the last who holds it lets go.
    layout: Arc<Layout>,
}

/// Rows of one segment from some slot on.
struct Source {
    number: u64,
    rows: Peekable<OwnedRange<u64, &'static [u8]>>,
    /// Behind what is read from it.
    _db: Db,
}

impl Source {
    fn new(number: u64, db: Db, table: &RowTable, from: u64) -> Result<Source, StorageError> {
        Ok(Source { number, rows: table.range_owned(from..)?.peekable(), _db: db })
    }

    /// The next row's slot.
    fn slot(&mut self) -> Result<Option<u64>, StorageError> {
        match self.rows.peek() {
            Some(Ok((slot, _))) => Ok(Some(slot.value())),
            Some(Err(_)) => match self.rows.next() {
                Some(Err(error)) => Err(error.into()),
                _ => Ok(None),
            },
            None => Ok(None),
        }
    }
}

impl View {
    pub(super) fn open(layout: Arc<Layout>) -> Result<View, StorageError> {
        let transaction = layout.current.1.begin_read()?;
        let trim_through = trim_through(&transaction)?;
        Ok(View { rows: transaction.open_table(ROWS)?, trim_through, layout })
    }

    /// Rows from `from` on, ascending: about `bytes` of values, one row at least if there is one. And
    /// whether the view holds no row behind these.
    ///
    /// # Errors
    /// If the disk cannot be read.
    pub fn read(&self, from: Slot, bytes: usize) -> Result<(Vec<Row>, bool), StorageError> {
        let mut rows = Vec::new();
        let mut taken = 0;
        let end = self.walk(from, |_, slot, stored| {
            let size = stored.len().saturating_sub(encoding::ROW_HEAD);
            if !rows.is_empty() && taken + size > bytes {
                return Ok(false);
            }
            taken += size;
            rows.push(encoding::read_row(slot, stored)?);
            Ok(true)
        })?;
        Ok((rows, end))
    }

    /// Shows each row from `from` on, ascending, with the number of its segment, until `each` has enough: then
    /// `false`. An older segment is opened when its first slot is reached.
    pub(super) fn walk(
        &self,
        from: Slot,
        mut each: impl FnMut(u64, u64, &[u8]) -> Result<bool, StorageError>,
    ) -> Result<bool, StorageError> {
        let from = from.max(self.trim_through.next()).0;
        let (layout, files) = (&*self.layout, &*self.layout.files);
        let mut waiting: Vec<&Arc<Older>> =
            layout.older.iter().filter(|older| older.summary.slots.1 >= from).collect();
        // The lowest at the end.
        waiting.sort_by_key(|older| std::cmp::Reverse(older.summary.slots.0));
        let (number, db) = layout.current.clone();
        let mut open = vec![in_file(files, number, Source::new(number, db, &self.rows, from))?];
        loop {
            let mut lowest: Option<u64> = None;
            for source in &mut open {
                let number = source.number;
                if let Some(slot) = in_file(files, number, source.slot())? {
                    lowest = Some(lowest.map_or(slot, |lowest| lowest.min(slot)));
                }
            }
            if let Some(older) = waiting.last()
                && lowest.is_none_or(|lowest| older.summary.slots.0 <= lowest)
            {
                let number = older.summary.number;
                open.push(in_file(files, number, self.source(older, from))?);
                waiting.pop();
                continue;
            }
            let Some(lowest) = lowest else { return Ok(true) };
            // Ascending by number: the last one that has the slot has its newest row.
            open.sort_by_key(|source| source.number);
            let mut newest = None;
            for source in &mut open {
                if source.slot()? == Some(lowest) {
                    newest = source.rows.next().transpose()?.map(|(_, row)| (source.number, row));
                }
            }
            if let Some((number, row)) = newest
                && !in_file(files, number, each(number, lowest, row.value()))?
            {
                return Ok(false);
            }
            open.retain_mut(|source| source.rows.peek().is_some());
        }
    }

    fn source(&self, older: &Arc<Older>, from: u64) -> Result<Source, StorageError> {
        let db = self.layout.open(older)?;
        let table = db.begin_read()?.open_table(ROWS)?;
        Source::new(older.summary.number, db, &table, from)
    }
}

/// Reads what is durable. Blocking: not for the runtime's own threads.
#[derive(Clone, Debug)]
pub struct LogReader {
    pub(super) layout: Current,
}

/// The tables of one segment.
struct Tables {
    summary: Summary,
    rows: RowTable,
    marks: MarkTable,
    skipped: RowTable,
    /// Behind what is read from it.
    _db: Db,
}

/// One moment of the log, for reading by index: the newest segment first, older ones opened when they are needed.
struct Moment {
    open: Vec<Tables>,
    layout: Arc<Layout>,
    cluster: Option<ClusterId>,
}

/// A mark: first index, slot, count, and the calls that it skips.
type Found = (Index, u64, u32, Vec<u32>);

impl Moment {
    fn new(layout: Arc<Layout>) -> Result<Moment, StorageError> {
        let (number, db) = layout.current.clone();
        let transaction = db.begin_read()?;
        let cluster = in_file(&*layout.files, number, cluster(&transaction))?;
        // It grows: whatever is asked may stand in it.
        let summary = Summary { number, slots: (0, u64::MAX), marks: (0, u64::MAX), ..Summary::default() };
        let newest = tables(summary, db, &transaction)?;
        Ok(Moment { open: vec![newest], layout, cluster })
    }

    /// The place in `open` of a segment.
    fn find(&mut self, older: &Arc<Older>) -> Result<usize, StorageError> {
        let number = older.summary.number;
        if let Some(at) = self.open.iter().position(|tables| tables.summary.number == number) {
            return Ok(at);
        }
        let db = self.layout.open(older)?;
        let transaction = db.begin_read()?;
        let tables = in_file(&*self.layout.files, number, tables(older.summary, db, &transaction))?;
        self.open.push(tables);
        Ok(self.open.len() - 1)
    }

    /// Places in `open` of the segments that may hold something, the newest first, until `look` has found it.
    fn search<T>(
        &mut self,
        may: impl Fn(&Summary) -> bool,
        look: impl Fn(&Tables) -> Result<Option<T>, StorageError>,
    ) -> Result<Option<(usize, T)>, StorageError> {
        let layout = self.layout.clone();
        let newest = std::iter::once(None);
        for older in newest.chain(layout.older.iter().rev().filter(|older| may(&older.summary)).map(Some)) {
            let at = older.map_or(Ok(0), |older| self.find(older))?;
            let number = self.open[at].summary.number;
            if let Some(found) = in_file(&*layout.files, number, look(&self.open[at]))? {
                return Ok(Some((at, found)));
            }
        }
        Ok(None)
    }

    /// The mark that index `wanted` lies in.
    fn mark(&mut self, wanted: Index) -> Result<Option<Found>, StorageError> {
        let found = self.search(
            |summary| summary.marks.0 <= wanted.0 && summary.marks.1 != 0,
            |tables| match tables.marks.range(..=wanted.0)?.next_back().transpose()? {
                Some((first, place)) => {
                    let found = tables.mark(first.value(), place.value())?;
                    Ok((found.0.plus(u64::from(found.2)) > wanted).then_some(found))
                }
                None => Ok(None),
            },
        )?;
        Ok(found.map(|(_, found)| found))
    }

    /// The entries that a mark's slot added.
    fn added(&mut self, (_, slot, count, skipped): &Found) -> Result<Vec<Bytes>, StorageError> {
        let slot = *slot;
        let cluster = self.cluster;
        let read = |tables: &Tables| {
            let Some(row) = tables.rows.get(slot)? else { return Ok(None) };
            let row = encoding::read_row(slot, row.value())?;
            if !cluster.is_some_and(|cluster| row.is_intact(cluster)) {
                return Err(StorageError::damaged("a row", format!("slot {slot} fails its checksum")));
            }
            let added = entries_added(row.value, skipped);
            let added = added.map_err(|e| StorageError::damaged("a value", e))?;
            if added.len() as u64 != u64::from(*count) {
                let why = format!("slot {slot} holds {} entries, not {count}", added.len());
                return Err(StorageError::damaged("the log", why));
            }
            Ok(Some(added))
        };
        let found = self.search(|summary| (summary.slots.0..=summary.slots.1).contains(&slot), read)?;
        match found {
            Some((_, added)) => Ok(added),
            None => Err(StorageError::damaged("the log", format!("slot {slot} is missing"))),
        }
    }
}

impl Tables {
    fn mark(&self, first: u64, place: (u64, u32, u64)) -> Result<Found, StorageError> {
        let places = self.skipped.get(place.0)?;
        let skipped = encoding::read_mark(first, place, places.as_ref().map(|places| places.value()))?;
        Ok((Index(first), place.0, place.1, skipped))
    }
}

fn tables(summary: Summary, db: Db, transaction: &ReadTransaction) -> Result<Tables, StorageError> {
    Ok(Tables {
        summary,
        rows: transaction.open_table(ROWS)?,
        marks: transaction.open_table(MARKS)?,
        skipped: transaction.open_table(SKIPPED)?,
        _db: db,
    })
}

impl LogReader {
    pub(super) fn new(layout: Current) -> LogReader {
        LogReader { layout }
    }

    /// A view of the rows as they are durable now.
    ///
    /// # Errors
    /// If the disk cannot be read.
    pub fn view(&self) -> Result<View, StorageError> {
        View::open(layout(&self.layout))
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
        let mut moment = Moment::new(layout(&self.layout))?;
        let (mut found, mut taken) = (Vec::new(), 0);
        let mut next = from;
        while next <= through {
            let Some(mark) = moment.mark(next)? else {
                return Err(StorageError::damaged("the log", format!("entry {next} has no slot")));
            };
            for (offset, entry) in (0..).zip(moment.added(&mark)?) {
                let index = mark.0.plus(offset);
                if index < from {
                    continue;
                }
                if index > through || found.len() >= entries || taken >= bytes {
                    return Ok(found);
                }
                taken += entry.len();
                found.push(entry);
            }
            next = mark.0.plus(u64::from(mark.2));
        }
        Ok(found)
    }
}

pub(super) fn cluster(transaction: &ReadTransaction) -> Result<Option<ClusterId>, StorageError> {
    let meta = transaction.open_table(META)?;
    let Some(sealed) = meta.get(name::GENESIS)? else { return Ok(None) };
    let genesis = encoding::unseal(name::GENESIS, sealed.value())?;
    let genesis = Genesis::decode(Bytes::copy_from_slice(genesis));
    Ok(Some(genesis.map_err(|e| StorageError::damaged("the genesis", e))?.cluster))
}
