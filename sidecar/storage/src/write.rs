//! The one writer: each commit is one transaction in one file, the newest segment.

use crate::disk::{self, Mark};
use crate::encoding::{
    self, Format, MARKS, META, PEERS, ROW_HEAD, ROWS, SKIPPED, SNAPSHOTS, Summary, name, peer_checksum, seal,
};
use crate::fetched;
use crate::files::explain_io;
use crate::keeper::{Job, Keeper};
use crate::rows::format_of;
use crate::segment::{Current, Db, Layout, Older, Segment, begin, layout, values};
use crate::{Options, StorageError};
use bytes::Bytes;
use redb::{
    ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table, WriteTransaction,
};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use synod_paxos::{Ballot, Slot, Storage, Write, WriteCounter};

/// One part of so many of the least segment: what is not trimmed of a segment that is left may be copied into the next
/// one if it is no more. Then the file can go.
const CARRY_PARTS: u64 = 16;
/// So far a new file is written at once, in bytes: that says nothing of what it holds.
const EMPTY_FILE: u64 = 1_500_000;
/// Of all that is kept, one part of so many may be trimmed and not removed yet.
const PARTS: u64 = 8;

/// The one writer of a data directory.
#[derive(Debug)]
pub struct RedbStorage {
    pub(crate) keeper: Keeper,
    pub(crate) current: Segment,
    pub(crate) layout: Current,
    pub(crate) options: Options,
    /// What stands in the current segment, and what the others are known to hold.
    pub(crate) draft: Draft,
    pub(crate) marks: Vec<Mark>,
    /// All marks up to here are in `marks` or durable.
    pub(crate) noted: Slot,
    /// All marks up to here are durable.
    pub(crate) marked: Slot,
    /// Little of the current segment is not trimmed: the next one is to take its place early.
    pub(crate) leave: bool,
    /// When the next segment is asked for again, in bytes of the current one.
    pub(crate) ask_at: u64,
    /// The log's format level, as far as it is known here.
    pub(crate) level: u32,
}

/// What a transaction changes in what the writer knows.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) summary: Summary,
    /// The current segment's.
    pub(crate) format: Format,
    /// Slot of each snapshot -> number of its segment.
    pub(crate) snapshots: BTreeMap<u64, u64>,
    pub(crate) older: Vec<Summary>,
    pub(crate) trim_through: Slot,
}

/// Of each kind that replaces what stood before, the last one.
#[derive(Default)]
struct Last<'a> {
    promised: Option<Ballot>,
    chosen_through: Option<Slot>,
    system: Option<(Slot, &'a Bytes)>,
}

type Meta<'t> = Table<'t, &'static str, &'static [u8]>;

/// Puts a sealed value.
pub(crate) fn put(meta: &mut Meta<'_>, name: &str, value: &[u8]) -> Result<(), StorageError> {
    meta.insert(name, seal(name, value).as_slice())?;
    Ok(())
}

impl Draft {
    fn write(
        &mut self,
        transaction: &WriteTransaction,
        written: WriteCounter,
        writes: &mut dyn Iterator<Item = &Write>,
    ) -> Result<(), StorageError> {
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
                    encoding::write_row(self.format, row, space.as_mut());
                    self.summary.add_row(row.slot.0);
                    self.summary.bytes += (ROW_HEAD + row.value.len()) as u64;
                }
                Write::Promised(ballot) => last.promised = Some(*ballot),
                Write::ChosenThrough(slot) => last.chosen_through = Some(*slot),
                Write::System { applied, state } => last.system = Some((*applied, state)),
                Write::Snapshot { slot, state } => self.snapshot(transaction, *slot, state)?,
                Write::Trim { through } => {
                    self.trim_through = *through;
                    self.snapshots.retain(|slot, _| *slot >= through.0);
                    // The other segments' go with their files.
                    transaction.open_table(SNAPSHOTS)?.retain_in(..through.0, |_, _| false)?;
                    fetched::trim(transaction, *through)?;
                }
                Write::SnapshotPart(part) => {
                    fetched::put(transaction, part)?;
                    self.summary.bytes += part.bytes.len() as u64;
                }
                Write::Install { slot, state } => {
                    self.trim_through = *slot;
                    self.snapshots.clear();
                    transaction.open_table(SNAPSHOTS)?.retain(|_, _| false)?;
                    fetched::clear(transaction)?;
                    self.snapshot(transaction, *slot, state)?;
                    last.chosen_through = Some(*slot);
                    last.system = Some((*slot, state));
                }
                Write::Lease(longest) => {
                    let nanos = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX);
                    put(&mut meta, name::LEASE, &encoding::number(nanos))?;
                }
                Write::Genesis(genesis) => {
                    put(&mut meta, name::GENESIS, &genesis.encode())?;
                    self.raise(&mut meta, genesis.settings.format_level)?;
                }
                Write::Joined { cluster, digest } => {
                    put(&mut meta, name::JOINED, &encoding::joined(*cluster, *digest))?;
                }
                Write::GenesisConfirmed => put(&mut meta, name::CONFIRMED, &[])?,
                Write::Peer { member, counters } => {
                    let (incarnation, written) = (counters.incarnation.0, counters.written.0);
                    let row = (incarnation, written, peer_checksum(member.0, incarnation, written));
                    transaction.open_table(PEERS)?.insert(member.0, row)?;
                }
                Write::Tombstone { version, slot } => {
                    put(&mut meta, name::TOMBSTONE, &encoding::pair(*version, slot.0))?;
                }
                Write::Fenced(why) => put(&mut meta, name::FENCED, why.as_bytes())?,
            }
        }
        if let Some(ballot) = last.promised {
            put(&mut meta, name::PROMISED, &encoding::pair(ballot.round, ballot.member.0))?;
        }
        if let Some(slot) = last.chosen_through {
            put(&mut meta, name::CHOSEN_THROUGH, &encoding::number(slot.0))?;
        }
        if let Some((applied, state)) = last.system {
            put(&mut meta, name::APPLIED, &encoding::number(applied.0))?;
            put(&mut meta, name::SYSTEM, state)?;
        }
        put(&mut meta, name::WRITTEN, &encoding::number(written.0))
    }

    /// Lets a segment without rows have the format of the log's level.
    fn raise(&mut self, meta: &mut Meta<'_>, level: u32) -> Result<(), StorageError> {
        let wanted = Format::at_level(level);
        if wanted <= self.format || self.summary.slots.1 > 0 {
            return Ok(());
        }
        let number = encoding::number(wanted.number());
        meta.insert(name::FORMAT, number.as_slice())?;
        put(meta, name::LAYOUT, &number)?;
        self.format = wanted;
        Ok(())
    }

    fn snapshot(
        &mut self,
        transaction: &WriteTransaction,
        slot: Slot,
        state: &Bytes,
    ) -> Result<(), StorageError> {
        let sealed = encoding::seal_snapshot(slot.0, state);
        transaction.open_table(SNAPSHOTS)?.insert(slot.0, sealed.as_slice())?;
        self.snapshots.insert(slot.0, self.summary.number);
        Ok(())
    }

    fn mark(&mut self, transaction: &WriteTransaction, new: &[Mark]) -> Result<(), StorageError> {
        if new.is_empty() {
            return Ok(());
        }
        let mut marks = transaction.open_table(MARKS)?;
        let mut skipped = transaction.open_table(SKIPPED)?;
        // What was noted of slots that are gone is of no use.
        for mark in new.iter().filter(|mark| mark.slot > self.trim_through) {
            let (first, slot, count) = (mark.first.0, mark.slot.0, mark.count);
            let places = encoding::places(&mark.skipped);
            let checksum = encoding::mark_checksum(first, slot, count, &places);
            marks.insert(first, (slot, count, checksum))?;
            if !mark.skipped.is_empty() {
                skipped.insert(mark.slot.0, places.as_slice())?;
            }
            self.summary.add_mark(first, slot);
        }
        Ok(())
    }

    /// Forgets the segments in which nothing is left that anybody needs.
    fn drop_trimmed(&mut self) {
        let Draft { snapshots, trim_through, older, .. } = self;
        older.retain(|summary| {
            !summary.is_trimmed(trim_through.0) || snapshots.values().any(|number| *number == summary.number)
        });
    }

    /// Lists what the older segments and the snapshots are.
    pub(crate) fn list(&self, meta: &mut Meta<'_>, closed: u64) -> Result<(), StorageError> {
        put(meta, name::SEGMENTS, &encoding::segments(closed, &self.older))?;
        put(meta, name::SNAPSHOTS, &encoding::catalog(&self.snapshots))
    }
}

/// Begins a segment with all that the one before says of the member: each value of it must be whole.
pub(crate) fn carry_member(
    before: &ReadTransaction,
    transaction: &WriteTransaction,
    draft: &mut Draft,
    level: u32,
) -> Result<(), StorageError> {
    let mut meta = transaction.open_table(META)?;
    meta.remove(name::UNBORN)?;
    let found = values(&before.open_table(META)?)?;
    if let Some(missing) = name::ALWAYS.iter().find(|name| !found.contains_key(**name)) {
        return Err(StorageError::damaged("what the member is", format!("`{missing}` is missing")));
    }
    for (name, value) in &found {
        meta.insert(name.as_str(), value.as_slice())?;
    }
    draft.format = format_of(&found)?;
    draft.raise(&mut meta, level)?;
    let mut peers = transaction.open_table(PEERS)?;
    let stored = before.open_table(PEERS)?;
    let mut carried = 0;
    for row in stored.iter()? {
        let (member, counters) = row?;
        peers.insert(member.value(), counters.value())?;
        carried += 1;
    }
    if carried != stored.len()? || found.len() as u64 != before.open_table(META)?.len()? {
        // A page of it was lost: what the member has promised may be older than what it said.
        return Err(StorageError::damaged("what the member is", "some of it is missing"));
    }
    fetched::carry(before, transaction)
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

    /// The log is at this format level: segments from now on have the format that goes with it.
    pub fn note_level(&mut self, level: u32) {
        self.level = self.level.max(level);
    }

    /// The current segment is to be left early: for little of it is needed, or its format is not the log's.
    fn leaves(&self) -> bool {
        self.leave || self.draft.format < Format::at_level(self.level)
    }

    /// Does what the background would do, where [`Options::background`] is off.
    pub fn keep_house(&mut self) {
        self.keeper.work();
    }

    /// How large a segment may become now, in bytes: a part of what is kept, so that little of it is trimmed and
    /// still there.
    fn room(&self) -> u64 {
        let kept = self.draft.older.iter().map(|summary| summary.bytes).sum::<u64>();
        (kept / PARTS).clamp(self.options.least_bytes, self.options.most_bytes)
    }

    /// About what the current segment holds, in bytes.
    fn size(&self) -> u64 {
        match self.current.watch.bytes() {
            ..EMPTY_FILE => self.draft.summary.bytes,
            used => used,
        }
    }

    /// The next segment, if it is time and it is ready.
    fn take_next(&mut self) -> Result<Option<Segment>, StorageError> {
        if self.current.watch.is_damaged() {
            return self.keeper.next_now(self.current.number + 1).map(Some);
        }
        if !self.leaves() && self.size() < self.room() {
            return Ok(None);
        }
        Ok(self.keeper.take_next())
    }

    /// Asks for the next segment in time.
    fn ask(&mut self) {
        let size = self.size();
        let wanted = self.leaves() || size >= self.room() / 2;
        if wanted && size >= self.ask_at && !self.keeper.is_asked() {
            // Where there is no space for it, not with every commit.
            self.ask_at = size + self.options.least_bytes / 16;
            self.keeper.post(Job::Prepare(self.current.number + 1));
        }
    }

    /// Whether what is not trimmed of the current segment is little enough to be carried.
    fn is_little_left(&self) -> Result<bool, StorageError> {
        let (summary, trim) = (&self.draft.summary, self.draft.trim_through.0);
        if summary.slots.0 > trim {
            return Ok(false);
        }
        let transaction = self.current.database.begin_read()?;
        let (mut left, most) = (0, self.options.least_bytes / CARRY_PARTS);
        for row in transaction.open_table(ROWS)?.range(trim + 1..)? {
            left += row?.1.value().len() as u64 + 64;
            if left > most {
                return Ok(false);
            }
        }
        let snapshots = transaction.open_table(SNAPSHOTS)?;
        for (slot, _) in self.draft.snapshots.iter().filter(|(_, number)| **number == summary.number) {
            left += snapshots.get(slot)?.map_or(0, |state| state.value().len() as u64);
        }
        Ok(left <= most)
    }

    /// Begins the next segment with all that the current one says of the member; of its rows only where they are
    /// few. `draft` speaks of the next one afterwards.
    fn bear(
        &self,
        transaction: &WriteTransaction,
        draft: &mut Draft,
        number: u64,
    ) -> Result<(), StorageError> {
        let damaged = self.current.watch.is_damaged();
        let carry = !damaged && self.is_little_left()?;
        let before = self.current.database.begin_read()?;
        let left = Summary { bytes: self.size(), ..draft.summary };
        draft.summary = Summary { number, ..Summary::default() };
        let format = draft.format;
        carry_member(&before, transaction, draft, self.level)?;
        if damaged {
            // Its rows are read where they are, and what was lost of them heals from peers.
            let mut kept = disk::left_of(left.number, &before, &draft.older)?;
            if left.slots != (0, 0) {
                // What this process wrote there it knows exactly.
                kept.add_row(left.slots.0);
                kept.add_row(left.slots.1);
            }
            draft.older.push(Summary { bytes: left.bytes, ..kept });
            return Ok(());
        }
        if !carry {
            draft.older.push(left);
            return Ok(());
        }
        let trim = draft.trim_through.0;
        let mut rows = transaction.open_table(ROWS)?;
        for row in before.open_table(ROWS)?.range(trim + 1..)? {
            let (slot, stored) = row?;
            let (slot, stored) = (slot.value(), stored.value());
            rows.insert(slot, encoding::convert_row(format, draft.format, slot, stored).as_slice())?;
            draft.summary.add_row(slot);
        }
        let (mut marks, mut skipped) = (transaction.open_table(MARKS)?, transaction.open_table(SKIPPED)?);
        for mark in before.open_table(MARKS)?.iter()?.rev() {
            let (first, place) = mark?;
            if place.value().0 <= trim {
                break;
            }
            marks.insert(first.value(), place.value())?;
            draft.summary.add_mark(first.value(), place.value().0);
        }
        for row in before.open_table(SKIPPED)?.range(trim + 1..)? {
            let (slot, places) = row?;
            skipped.insert(slot.value(), places.value())?;
        }
        let (mut snapshots, stored) = (transaction.open_table(SNAPSHOTS)?, before.open_table(SNAPSHOTS)?);
        for (slot, segment) in draft.snapshots.iter_mut().filter(|(_, segment)| **segment == left.number) {
            if let Some(state) = stored.get(slot)? {
                snapshots.insert(slot, state.value())?;
                *segment = number;
            }
        }
        Ok(())
    }

    /// The transaction is durable: readers see it, and what it left behind is taken care of.
    fn adopt(&mut self, draft: Draft, next: Option<Segment>) {
        let same = next.is_none() && draft.older.len() == self.draft.older.len();
        self.draft = draft;
        if self.draft.format == Format::Third {
            next.as_ref().unwrap_or(&self.current).watch.keep();
        }
        if same {
            return;
        }
        let rolled = next.is_some();
        let before = layout(&self.layout);
        let mut after = Layout::clone(&before);
        if let Some(next) = next {
            let summary = match self.draft.older.last() {
                Some(last) if last.number == self.current.number => *last,
                // Carried over, and gone.
                _ => Summary { number: self.current.number, ..Summary::default() },
            };
            let db = Db::Written(self.current.database.clone(), self.current.watch.clone());
            after.older.push(Arc::new(Older::new(before.files.clone(), summary, Some(db))));
            after.current = (next.number, Db::Written(next.database.clone(), next.watch.clone()));
            self.current = next;
            (self.leave, self.ask_at) = (false, 0);
        }
        let kept = |older: &Older| self.draft.older.iter().any(|s| s.number == older.summary.number);
        let (kept, gone): (Vec<_>, Vec<_>) = after.older.into_iter().partition(|older| kept(older));
        let left = kept.last().filter(|older| older.summary.number + 1 == after.current.0 && rolled).cloned();
        after.older = kept;
        *self.layout.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(after);
        drop(before);
        if let Some(left) = left {
            self.keeper.post(Job::Settle(left));
        }
        gone.into_iter().for_each(|older| self.keeper.post(Job::Remove(older)));
    }
}

impl Storage for RedbStorage {
    type Error = StorageError;

    fn commit(
        &mut self,
        written: WriteCounter,
        writes: &mut dyn Iterator<Item = &Write>,
    ) -> Result<(), StorageError> {
        self.keeper.check()?;
        let next = self.take_next()?;
        let transaction = begin(&next.as_ref().unwrap_or(&self.current).database)?;
        let mut draft = self.draft.clone();
        if let Some(next) = &next {
            self.bear(&transaction, &mut draft, next.number)?;
        }
        draft.raise(&mut transaction.open_table(META)?, self.level)?;
        draft.write(&transaction, written, writes)?;
        draft.mark(&transaction, &std::mem::take(&mut self.marks))?;
        let trims = draft.trim_through != self.draft.trim_through;
        if trims {
            let trim_through = encoding::number(draft.trim_through.0);
            put(&mut transaction.open_table(META)?, name::TRIM_THROUGH, &trim_through)?;
        }
        if trims {
            draft.drop_trimmed();
        }
        let lists = next.is_some()
            || draft.older.len() != self.draft.older.len()
            || draft.snapshots != self.draft.snapshots;
        if lists {
            let closed = self.keeper.closed_through(self.current.number);
            draft.list(&mut transaction.open_table(META)?, closed)?;
        }
        transaction.commit().map_err(|error| match StorageError::from(error) {
            StorageError::Database(redb::Error::Io(error)) => {
                explain_io(layout(&self.layout).files.place(), error)
            }
            other => other,
        })?;
        self.adopt(draft, next);
        self.marked = self.noted;
        let damaged = self.current.watch.is_damaged();
        if trims && !damaged && self.size() > self.options.least_bytes / 2 {
            self.leave = self.is_little_left()?;
        }
        self.ask();
        Ok(())
    }
}
