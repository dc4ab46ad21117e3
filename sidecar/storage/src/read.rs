//! Reading: views for the core, entries by index for clients. A row is where it was written last: the newest segment
//! that has its slot.

use crate::StorageError;
use crate::encoding::{self, MARKS, META, SKIPPED, Summary, name};
use crate::rows::{RowTable, RowsFrom};
use crate::segment::{Current, Db, Layout, Older, in_file, layout, trim_through};
use bytes::Bytes;
use redb::{ReadOnlyTable, ReadTransaction};
use std::iter::Peekable;
use std::sync::Arc;
use synod_paxos::value::{Logged, entries_added};
use synod_paxos::{ClusterId, Genesis, Index, Row, Slot};

type SkippedTable = ReadOnlyTable<u64, &'static [u8]>;
type MarkTable = ReadOnlyTable<u64, (u64, u32, u64)>;

/// Rows as they were durable when the view was opened.
pub struct View {
    rows: RowTable,
    /// Rows up to here are trimmed, whether they have been deleted yet or not.
    trim_through: Slot,
    /// Behind the table: its database is closed when the last who holds it lets go.
    layout: Arc<Layout>,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "View of segments through {}", self.layout.current.0)
    }
}

/// Rows of one segment from some slot on. In a segment with damaged blocks each slot that it may have held has a row:
/// one that is not found is shown as damaged, since an older segment may have what it took the place of.
struct Source {
    number: u64,
    /// Behind what is read from it; none: it cannot be opened.
    open: Option<(Peekable<RowsFrom>, Db)>,
    /// The first slot that was not shown, and the last that may stand in it, where that is known.
    next: u64,
    last: Option<u64>,
}

impl Source {
    fn new(summary: &Summary, db: Db, table: &RowTable, from: u64) -> Result<Source, StorageError> {
        let rows = table.from(from)?.peekable();
        let last = (summary.slots.1 < u64::MAX).then_some(summary.slots.1);
        Ok(Source { number: summary.number, open: Some((rows, db)), next: from.max(summary.slots.0), last })
    }

    /// A segment that cannot be opened.
    fn lost(summary: &Summary, from: u64) -> Source {
        let next = from.max(summary.slots.0);
        Source { number: summary.number, open: None, next, last: Some(summary.slots.1) }
    }

    /// The next row's slot.
    fn slot(&mut self) -> Result<Option<u64>, StorageError> {
        let last = self.last;
        let absent = |next: u64| last.is_some_and(|last| next <= last).then_some(next);
        let Some((rows, db)) = &mut self.open else { return Ok(absent(self.next)) };
        let found = match rows.peek() {
            Some(Ok(row)) => Some(row.slot.0),
            Some(Err(_)) => match rows.next() {
                Some(Err(error)) if !error.is_damage() => return Err(error),
                _ => {
                    self.open = None;
                    return Ok(absent(self.next));
                }
            },
            None => None,
        };
        let gap = found.is_none_or(|found| self.next < found);
        // Asked after the row was looked for: so the block that it would be in has been read.
        Ok(if gap && db.is_damaged() { absent(self.next).or(found) } else { found })
    }

    /// The row that [`Source::slot`] named.
    fn take(&mut self, slot: u64) -> Result<Row, StorageError> {
        self.next = slot + 1;
        let found = self
            .open
            .as_mut()
            .and_then(|(rows, _)| rows.next_if(|row| row.as_ref().is_ok_and(|row| row.slot.0 == slot)));
        found.unwrap_or_else(|| Ok(encoding::damaged_row(slot)))
    }
}

impl View {
    pub(crate) fn open(layout: Arc<Layout>) -> Result<View, StorageError> {
        let transaction = layout.current.1.begin_read()?;
        let trim_through = trim_through(&transaction)?;
        Ok(View { rows: RowTable::open(&transaction)?, trim_through, layout })
    }

    /// Rows from `from` on, ascending: about `bytes` of values, one row at least if there is one. And
    /// whether the view holds no row behind these.
    ///
    /// # Errors
    /// If the disk cannot be read.
    pub fn read(&self, from: Slot, bytes: usize) -> Result<(Vec<Row>, bool), StorageError> {
        let mut rows = Vec::new();
        let mut taken = 0;
        let end = self.walk(from, |row| {
            let size = row.value.len();
            if !rows.is_empty() && taken + size > bytes {
                return Ok(false);
            }
            taken += size;
            rows.push(row);
            Ok(true)
        })?;
        Ok((rows, end))
    }

    /// Shows each row from `from` on, ascending, until `each` has enough: then `false`. An older segment is opened when its first slot is reached.
    pub(crate) fn walk(
        &self,
        from: Slot,
        mut each: impl FnMut(Row) -> Result<bool, StorageError>,
    ) -> Result<bool, StorageError> {
        let from = from.max(self.trim_through.next()).0;
        let (layout, files) = (&*self.layout, &*self.layout.files);
        let mut waiting: Vec<&Arc<Older>> =
            layout.older.iter().filter(|older| older.summary.slots.1 >= from).collect();
        // The lowest at the end.
        waiting.sort_by_key(|older| std::cmp::Reverse(older.summary.slots.0));
        let (number, db) = layout.current.clone();
        let current = Summary { number, slots: (0, u64::MAX), ..Summary::default() };
        let mut open = vec![in_file(files, number, Source::new(&current, db, &self.rows, from))?];
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
                open.push(match in_file(files, number, self.source(older, from)) {
                    Err(error) if error.is_damage() => {
                        tracing::error!(%error, "its rows are asked of peers");
                        Source::lost(&older.summary, from)
                    }
                    source => source?,
                });
                waiting.pop();
                continue;
            }
            let Some(lowest) = lowest else { return Ok(true) };
            // Ascending by number: the last one that has the slot has its newest row.
            open.sort_by_key(|source| source.number);
            let mut newest = None;
            for source in &mut open {
                if source.slot()? == Some(lowest) {
                    newest = Some((source.number, source.take(lowest)?));
                }
            }
            if let Some((number, row)) = newest {
                let row =
                    if self.may_be_replaced(number, lowest)? { encoding::damaged_row(lowest) } else { row };
                if !in_file(files, number, each(row))? {
                    return Ok(false);
                }
            }
            let mut left = Vec::new();
            for mut source in open {
                if source.slot()?.is_some() {
                    left.push(source);
                }
            }
            open = left;
        }
    }

    /// Whether a row of an older segment may have another in the newest one that is lost there.
    fn may_be_replaced(&self, number: u64, slot: u64) -> Result<bool, StorageError> {
        let (current, db) = &self.layout.current;
        if number == *current || !db.is_damaged() {
            return Ok(false);
        }
        let before = self.layout.older.iter().map(|older| older.summary.slots.1).max().unwrap_or(0);
        Ok(slot + crate::disk::window(&db.begin_read()?)? > before)
    }

    fn source(&self, older: &Arc<Older>, from: u64) -> Result<Source, StorageError> {
        let db = self.layout.open(older)?;
        let table = RowTable::open(&db.begin_read()?)?;
        Source::new(&older.summary, db, &table, from)
    }
}

/// Reads what is durable. Blocking: not for the runtime's own threads.
#[derive(Clone, Debug)]
pub struct LogReader {
    pub(crate) layout: Current,
}

/// The tables of one segment.
struct Tables {
    summary: Summary,
    rows: RowTable,
    marks: MarkTable,
    skipped: SkippedTable,
    /// Behind what is read from it.
    db: Db,
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

    /// The mark that index `wanted` lies in, or what is as good.
    fn locate(&mut self, wanted: Index) -> Result<Found, StorageError> {
        let found = match self.mark(wanted) {
            Err(error) if error.is_damage() => None,
            found => found?,
        };
        let found = match found {
            None => self.derived_mark(wanted)?,
            found => found,
        };
        found.ok_or_else(|| StorageError::damaged("the log", format!("entry {wanted} has no slot")))
    }

    /// The entries that a mark's slot added.
    fn added(&mut self, (_, slot, count, skipped): &Found) -> Result<Vec<Logged>, StorageError> {
        let slot = *slot;
        let cluster = self.cluster;
        let read = |tables: &Tables| {
            let row = match tables.rows.get(slot)? {
                Some(row) => row,
                // What an older segment has may be what was replaced by what is lost here.
                None if tables.db.is_damaged() => return Err(StorageError::DamagedRow { slot: Slot(slot) }),
                None => return Ok(None),
            };
            if !cluster.is_some_and(|cluster| row.is_intact(cluster)) {
                return Err(StorageError::DamagedRow { slot: Slot(slot) });
            }
            let added = entries_added(row.value, skipped);
            let added = added.map_err(|e| StorageError::damaged("a value", e))?;
            if added.len() as u64 != u64::from(*count) {
                let why = format!("slot {slot} holds {} entries, not {count}", added.len());
                return Err(StorageError::damaged("the log", why));
            }
            Ok(Some(added))
        };
        let found = self.search(|summary| (summary.slots.0..=summary.slots.1).contains(&slot), read);
        let found = match found {
            // A file that cannot be read: its rows are as good elsewhere.
            Err(StorageError::File { .. }) => return Err(StorageError::DamagedRow { slot: Slot(slot) }),
            found => found?,
        };
        match found {
            Some((_, added)) => Ok(added),
            None => Err(StorageError::DamagedRow { slot: Slot(slot) }),
        }
    }

    /// The mark that index `wanted` lies in, found by its neighbours where its own is lost: the slots between theirs
    /// added the entries between theirs. Only where no call among them can have been refused, and no entry is in doubt.
    fn derived_mark(&mut self, wanted: Index) -> Result<Option<Found>, StorageError> {
        let (mut below, mut above): (Option<Found>, Option<Found>) = (None, None);
        let layout = self.layout.clone();
        for older in std::iter::once(None).chain(layout.older.iter().map(Some)) {
            let at = match older.map_or(Ok(0), |older| self.find(older)) {
                Err(error) if error.is_damage() => continue,
                at => at?,
            };
            let tables = &self.open[at];
            for mark in tables.marks.range(..=wanted.0)?.rev().take(1) {
                let (first, place) = mark?;
                below = below.max_by_first(tables.mark(first.value(), place.value()).ok());
            }
            for mark in tables.marks.range(wanted.0 + 1..)?.take(1) {
                let (first, place) = mark?;
                above = above.min_by_first(tables.mark(first.value(), place.value()).ok());
            }
        }
        if below.is_none() && trim_through(&self.layout.current.1.begin_read()?)? == Slot(0) {
            // Before the first entry of a log that was never trimmed.
            below = Some((Index(1), 0, 0, Vec::new()));
        }
        let (Some(below), Some(above)) = (below, above) else { return Ok(None) };
        let mut next = below.0.plus(u64::from(below.2));
        let mut found = None;
        for slot in below.1 + 1..above.1 {
            // Whether it added one, its batch tells.
            let count = self.batch(slot)?.map_or(0, |added| added.len() as u64);
            if count > 0 && wanted >= next && wanted < next.plus(count) {
                found = Some((next, slot, u32::try_from(count).unwrap_or(u32::MAX), Vec::new()));
            }
            next = next.plus(count);
        }
        Ok(found.filter(|_| next == above.0))
    }

    /// All entries of a slot's batch.
    fn batch(&mut self, slot: u64) -> Result<Option<Vec<Logged>>, StorageError> {
        let cluster = self.cluster;
        let read = |tables: &Tables| {
            let row = match tables.rows.get(slot)? {
                Some(row) if cluster.is_some_and(|cluster| row.is_intact(cluster)) => row,
                None if !tables.db.is_damaged() => return Ok(None),
                _ => return Err(StorageError::DamagedRow { slot: Slot(slot) }),
            };
            Ok(Some(entries_added(row.value, &[]).map_err(|e| StorageError::damaged("a value", e))?))
        };
        let found = self.search(|summary| (summary.slots.0..=summary.slots.1).contains(&slot), read);
        match found {
            Err(StorageError::File { .. }) => Err(StorageError::DamagedRow { slot: Slot(slot) }),
            found => Ok(found?.map(|(_, added)| added)),
        }
    }
}

/// The nearer of two marks.
trait Nearer: Sized {
    fn max_by_first(self, other: Self) -> Self;
    fn min_by_first(self, other: Self) -> Self;
}

impl Nearer for Option<Found> {
    fn max_by_first(self, other: Self) -> Self {
        self.into_iter().chain(other).max_by_key(|mark| mark.0)
    }

    fn min_by_first(self, other: Self) -> Self {
        self.into_iter().chain(other).min_by_key(|mark| mark.0)
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
        rows: RowTable::open(transaction)?,
        marks: transaction.open_table(MARKS)?,
        skipped: transaction.open_table(SKIPPED)?,
        db,
    })
}

impl LogReader {
    pub(crate) fn new(layout: Current) -> LogReader {
        LogReader { layout }
    }

    /// The first index of the next mark behind `from` that can be read; none: there is none.
    pub(crate) fn behind(&self, from: Index) -> Result<Option<Index>, StorageError> {
        let mut moment = Moment::new(layout(&self.layout))?;
        let layout = moment.layout.clone();
        let mut nearest: Option<u64> = None;
        for older in std::iter::once(None).chain(layout.older.iter().map(Some)) {
            let at = match older.map_or(Ok(0), |older| moment.find(older)) {
                Err(error) if error.is_damage() => continue,
                at => at?,
            };
            if let Some(mark) = moment.open[at].marks.range(from.0 + 1..)?.next() {
                let first = mark?.0.value();
                nearest = Some(nearest.map_or(first, |nearest| nearest.min(first)));
            }
        }
        Ok(nearest.map(Index))
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
    /// If the disk cannot be read, or the row of the first entry is damaged or missing: [`StorageError::DamagedRow`].
    pub fn entries(
        &self,
        (from, through): (Index, Index),
        entries: usize,
        bytes: usize,
    ) -> Result<Vec<Logged>, StorageError> {
        let mut moment = Moment::new(layout(&self.layout))?;
        let (mut found, mut taken) = (Vec::new(), 0);
        let mut next = from;
        while next <= through {
            let read = moment.locate(next).and_then(|mark| Ok((moment.added(&mark)?, mark)));
            let (added, mark) = match read {
                // What can be read is given before it is said what cannot.
                Err(_) if !found.is_empty() => return Ok(found),
                read => read?,
            };
            for (offset, entry) in (0..).zip(added) {
                let index = mark.0.plus(offset);
                if index < from {
                    continue;
                }
                if index > through || found.len() >= entries || taken >= bytes {
                    return Ok(found);
                }
                taken += entry.entry.size();
                found.push(entry);
            }
            next = mark.0.plus(u64::from(mark.2));
        }
        Ok(found)
    }
}

pub(crate) fn cluster(transaction: &ReadTransaction) -> Result<Option<ClusterId>, StorageError> {
    let meta = transaction.open_table(META)?;
    let Some(sealed) = meta.get(name::GENESIS)? else { return Ok(None) };
    let genesis = encoding::unseal(name::GENESIS, sealed.value())?;
    let genesis = Genesis::decode(Bytes::copy_from_slice(genesis));
    Ok(Some(genesis.map_err(|e| StorageError::damaged("the genesis", e))?.cluster))
}
