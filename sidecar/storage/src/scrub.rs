//! Reading everything again, a piece at a time, to find what is damaged before somebody needs it (docs: storage.md,
//! "The scrubber").

use crate::StorageError;
use crate::encoding::{self, MARKS, META, ROW_HEAD, SKIPPED, name};
use crate::load::snapshot;
use crate::read::{LogReader, View, cluster};
use crate::segment::{Layout, file_name, in_file, layout, trim_through};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use synod_paxos::{Slot, SystemState};

/// What a mark takes on the disk, its key included.
const MARK_BYTES: u64 = 28;

/// Where a scrub goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At the row of this slot.
    Row(Slot),
    /// At the marks of this segment, or of the next one that there is.
    Marks(u64),
    /// At the snapshot of this slot, or of the next one that there is.
    Snapshots(u64),
}

impl Default for Place {
    fn default() -> Place {
        Place::Row(Slot(0))
    }
}

/// What one piece of a scrub found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Rows read.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Slots whose row fails its checksum, or is missing below what is known on disk to be chosen.
    pub damaged: Vec<Slot>,
    /// Slots of snapshots that cannot be read.
    pub snapshots: Vec<Slot>,
    /// What no peer can give, in words.
    pub broken: Vec<String>,
    /// Where the next piece begins; none: everything was read.
    pub next: Option<Place>,
}

impl LogReader {
    /// The snapshot at a slot.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn snapshot(&self, slot: Slot) -> Result<Bytes, StorageError> {
        let layout = layout(&self.layout);
        match listed(&layout)?.get(&slot.0) {
            Some(segment) => snapshot(&layout, slot.0, *segment),
            None => Err(StorageError::damaged("a snapshot", format!("that of slot {slot} is not listed"))),
        }
    }

    /// Reads rows that are in use from `from` on, about `bytes` of them, or the marks of one segment, or one
    /// snapshot.
    ///
    /// A row that was written again later is not read: nobody is given it.
    ///
    /// # Errors
    /// If the newest segment cannot be read; other damages are in the result.
    pub fn scrub(&self, from: Place, bytes: u64) -> Result<Scrubbed, StorageError> {
        let layout = Arc::new(layout(&self.layout).read_anew());
        match from {
            Place::Row(slot) => scrub_rows(layout, slot, bytes),
            Place::Marks(segment) => scrub_marks(&layout, segment),
            Place::Snapshots(slot) => scrub_snapshot(&layout, slot),
        }
    }
}

fn scrub_rows(layout: Arc<Layout>, from: Slot, most: u64) -> Result<Scrubbed, StorageError> {
    let (number, db) = layout.current.clone();
    let read = || {
        let transaction = db.begin_read()?;
        let meta = transaction.open_table(META)?;
        let sealed = meta.get(name::CHOSEN_THROUGH)?;
        let sealed = sealed.ok_or_else(|| StorageError::damaged("the watermark", "it is missing"))?;
        let chosen = encoding::unseal(name::CHOSEN_THROUGH, sealed.value())?;
        let chosen = encoding::read_number(name::CHOSEN_THROUGH, chosen)?;
        Ok((cluster(&transaction)?, trim_through(&transaction)?, chosen))
    };
    let (cluster, trim, chosen) = in_file(&*layout.files, number, read())?;
    // Before the view: what is known to be chosen on disk has its rows in it.
    let view = View::open(layout.clone())?;
    let mut found = Scrubbed::default();
    let mut next = from.max(trim.next()).0;
    let walked = view.walk(Slot(next), |row| {
        if found.bytes >= most {
            return Ok(false);
        }
        let slot = row.slot.0;
        found.damaged.extend((next..slot.min(chosen + 1)).map(Slot));
        next = slot + 1;
        found.rows += 1;
        found.bytes += (ROW_HEAD + row.value.len()) as u64;
        if !cluster.is_some_and(|cluster| row.is_intact(cluster)) {
            found.damaged.push(row.slot);
        }
        Ok(true)
    });
    match walked {
        Ok(true) => {
            found.damaged.extend((next..=chosen).map(Slot));
            found.next = Some(Place::Marks(0));
        }
        Ok(false) => found.next = Some(Place::Row(Slot(next))),
        Err(StorageError::File { file, why, .. }) => {
            found.broken.push(format!("{}: {why}", file.display()));
            // What lies behind the file that cannot be read.
            let behind = layout.older.iter().map(|older| older.summary.slots.1).find(|last| *last >= next);
            found.next = Some(behind.map_or(Place::Marks(0), |last| Place::Row(Slot(last + 1))));
        }
        Err(error) => return Err(error),
    }
    Ok(found)
}

fn scrub_marks(layout: &Layout, from: u64) -> Result<Scrubbed, StorageError> {
    let mut found = Scrubbed::default();
    let numbers = layout.older.iter().map(|older| older.summary.number).chain([layout.current.0]);
    let number = numbers.into_iter().find(|number| *number >= from).unwrap_or(layout.current.0);
    found.next = Some(match number {
        newest if newest == layout.current.0 => Place::Snapshots(0),
        older => Place::Marks(older + 1),
    });
    let read = || {
        let transaction = layout.find(number)?.begin_read()?;
        let (marks, skipped) = (transaction.open_table(MARKS)?, transaction.open_table(SKIPPED)?);
        let (mut damaged, mut bytes) = (Vec::new(), 0);
        for mark in marks.range(0..)? {
            let (first, place) = mark?;
            bytes += MARK_BYTES;
            let places = skipped.get(place.value().0)?;
            let places = places.as_ref().map(|places| places.value());
            if let Err(error) = encoding::read_mark(first.value(), place.value(), places) {
                damaged.push(format!("{}: {error}", file_name(number)));
            }
        }
        Ok((damaged, bytes))
    };
    match in_file(&*layout.files, number, read()) {
        // Marks that are lost are found by their neighbours, where those tell.
        Ok((damaged, bytes)) => (found.broken, found.bytes) = (damaged, bytes),
        Err(StorageError::File { file, why, .. }) => {
            found.broken.push(format!("{}: {why}", file.display()));
        }
        Err(error) => return Err(error),
    }
    Ok(found)
}

/// The segment of each snapshot, by slot.
fn listed(layout: &Layout) -> Result<BTreeMap<u64, u64>, StorageError> {
    let (number, db) = &layout.current;
    let read = || {
        let meta = db.begin_read()?.open_table(META)?;
        let sealed = meta.get(name::SNAPSHOTS)?;
        let listed =
            sealed.map(|sealed| encoding::read_catalog(encoding::unseal(name::SNAPSHOTS, sealed.value())?));
        Ok(listed.transpose()?.unwrap_or_default())
    };
    in_file(&*layout.files, *number, read())
}

fn scrub_snapshot(layout: &Layout, from: u64) -> Result<Scrubbed, StorageError> {
    let mut found = Scrubbed::default();
    let listed = listed(layout)?;
    let mut listed = listed.range(from..);
    let Some((slot, segment)) = listed.next() else { return Ok(found) };
    found.next = listed.next().map(|(next, _)| Place::Snapshots(*next));
    let intact = match snapshot(layout, *slot, *segment) {
        Ok(state) => {
            found.bytes = state.len() as u64;
            // Those of earlier versions stand without a checksum.
            SystemState::decode(state).is_ok()
        }
        Err(error) if error.is_damage() => false,
        Err(error) => return Err(error),
    };
    if !intact {
        found.snapshots.push(Slot(*slot));
    }
    Ok(found)
}
