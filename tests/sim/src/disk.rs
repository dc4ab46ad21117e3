//! A member's disk: what is durable, what is under way, views of it, and what goes wrong with it.
//!
//! ```text
//!   Persist --> pending --start--> syncing --commit--> image --keep--> what a crash leaves
//!                                                        |
//!                                    while syncs are lost, a crash falls back to the image before
//! ```

use crate::oracle::{Violation, violation};
use crate::real::{RealDisk, Scrubbed, Unusable, settle};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use synod_paxos::message::ViewId;
use synod_paxos::system::SystemState;
use synod_paxos::{
    Applied, ClusterId, DurableState, Incarnation, MemberId, Row, Slot, Storage, Write, WriteBatch,
    WriteCounter, row,
};

/// Rows as a view saw them.
pub type Rows = Rc<BTreeMap<Slot, Row>>;

/// Everything that is on a disk.
#[derive(Clone, Debug)]
pub struct Image {
    /// All but the rows.
    pub state: DurableState,
    /// The rows.
    pub rows: Rows,
    /// Slots whose row does not fit its checksum, or is gone.
    pub damaged: BTreeSet<Slot>,
    /// Snapshots that a start could not read. Another start may: what was flipped may have been a checksum.
    pub unread: BTreeMap<Slot, Bytes>,
}

impl Image {
    /// The row of a slot is gone.
    pub(crate) fn lose(&mut self, slot: Slot) {
        Rc::make_mut(&mut self.rows).remove(&slot);
        self.damaged.insert(slot);
    }

    /// The storage engine shows a row.
    ///
    /// # Errors
    /// Where it passes its checksum and is another than what was written.
    pub(crate) fn show(&mut self, row: &Row, cluster: ClusterId) -> Result<(), Violation> {
        let was_damaged = self.damaged.contains(&row.slot);
        if !row.is_intact(cluster) {
            Rc::make_mut(&mut self.rows).insert(row.slot, row.clone());
            self.damaged.insert(row.slot);
            return Ok(());
        }
        match self.rows.get(&row.slot) {
            Some(held) if held == row => Ok(()),
            // What was flipped twice is whole again.
            _ if was_damaged => {
                Rc::make_mut(&mut self.rows).insert(row.slot, row.clone());
                self.damaged.remove(&row.slot);
                Ok(())
            }
            held => violation("a row is shown as it was written", format!("{row:?}, written was {held:?}")),
        }
    }
}

/// The durable image and the writes on their way to it.
#[derive(Debug)]
pub struct SimDisk {
    image: Image,
    /// Issued, not yet in a transaction.
    pub pending: VecDeque<WriteBatch>,
    /// In the transaction that is syncing now.
    pub syncing: Vec<WriteBatch>,
    views: BTreeMap<ViewId, Rows>,
    /// Rows made durable by the last commit, for the invariants.
    pub fresh: Vec<Row>,
    /// What a crash leaves while syncs are acknowledged and not kept.
    kept: Option<Image>,
    /// A copy that was put aside.
    copy: Option<Image>,
    /// The same on the real storage engine.
    real: Option<RealDisk>,
}

impl SimDisk {
    /// An empty volume, the storage engine on it.
    ///
    /// # Errors
    /// If the engine cannot make its files.
    pub fn with_files(member: MemberId) -> Result<SimDisk, Violation> {
        let real = RealDisk::new(member);
        let real = real.or_else(|error| violation("an empty volume takes a member", error.to_string()))?;
        let mut disk = SimDisk { real: Some(real), ..SimDisk::empty(member) };
        disk.image.state.incarnation = Incarnation(0);
        Ok(disk)
    }

    /// An empty volume.
    pub fn empty(member: MemberId) -> SimDisk {
        SimDisk {
            image: Image {
                state: DurableState::empty(member),
                rows: Rc::default(),
                damaged: BTreeSet::new(),
                unread: BTreeMap::new(),
            },
            pending: VecDeque::new(),
            syncing: Vec::new(),
            views: BTreeMap::new(),
            fresh: Vec::new(),
            kept: None,
            copy: None,
            real: None,
        }
    }

    /// What the disk shows, without its rows.
    pub fn state(&self) -> &DurableState {
        &self.image.state
    }

    /// The rows that the disk shows.
    pub fn rows(&self) -> &BTreeMap<Slot, Row> {
        &self.image.rows
    }

    /// What a start reads, its own boot counted.
    ///
    /// # Errors
    /// If the storage engine cannot open the files, or shows what was not written.
    pub fn boot(&mut self, cluster: ClusterId) -> Result<DurableState, Unusable> {
        self.image.state.boot();
        if let Some(real) = &mut self.real {
            let shown = real.boot()?;
            settle(&mut self.image, &shown, cluster)?;
            return Ok(shown.state);
        }
        let mut state = self.image.state.clone();
        state.rows = self.image.rows.range(state.applied.next()..).map(|(s, r)| (*s, r.clone())).collect();
        Ok(state)
    }

    /// The process died. Of the transaction under way the first `kept` batches are there, the last row of these
    /// not whole if it is `torn`; on files, it is there or not, as the engine finds it. Returns how many batches were
    /// lost.
    ///
    /// # Errors
    /// Where the storage engine does not find what must be there.
    pub fn crash(&mut self, kept: usize, torn: bool) -> Result<usize, Violation> {
        self.views.clear();
        self.fresh.clear();
        let mut syncing = std::mem::take(&mut self.syncing);
        let mut real = self.real.take();
        let (kept, torn) = match &mut real {
            Some(real) => (self.crash_files(real, &syncing, kept)?, false),
            None => (kept, torn),
        };
        let lost = self.pending.len() + syncing.len().saturating_sub(kept);
        self.pending.clear();
        syncing.truncate(kept);
        let last = syncing.iter().flat_map(WriteBatch::writes).filter_map(|write| match write {
            Write::Row(row) => Some(row.slot),
            _ => None,
        });
        let last = last.last().filter(|_| torn);
        // Durable, but nobody was told: the messages behind it are lost with the process. The model alone cannot fail.
        drop(self.commit_all(syncing));
        self.real = real;
        if let Some(slot) = last {
            self.damage(slot);
            self.fresh.retain(|row| row.slot != slot);
        }
        if let Some(image) = self.kept.take() {
            self.image = image;
        }
        Ok(lost)
    }

    /// How many of the batches in the transaction under way the files hold afterwards: all or none.
    fn crash_files(
        &self,
        real: &mut RealDisk,
        syncing: &[WriteBatch],
        chance: usize,
    ) -> Result<usize, Violation> {
        let writes: Vec<&Write> = syncing.iter().flat_map(WriteBatch::writes).collect();
        let under_way = syncing.last().map(|last| (last.written(), writes.as_slice()));
        let chance = self.image.state.written.0.wrapping_mul(31).wrapping_add(chance as u64);
        let there = real.crash(&self.image.state, under_way, chance)?;
        Ok(if there { syncing.len() } else { 0 })
    }

    /// Makes a transaction durable.
    ///
    /// # Errors
    /// If the storage engine cannot.
    pub fn commit_all(
        &mut self,
        batches: Vec<WriteBatch>,
    ) -> Result<Option<synod_paxos::Completed>, Unusable> {
        synod_paxos::storage::commit(batches, self)
    }

    /// One bit of the files changes, which follows from `chance`. Returns whether there are files.
    pub fn flip_byte(&mut self, chance: u64) -> bool {
        self.real.as_mut().is_some_and(|real| real.flip(chance))
    }

    /// Bits of its files were flipped: any row may be damaged, or nothing.
    pub fn is_rotten(&self) -> bool {
        self.real.as_ref().is_some_and(|real| real.flipped > 0)
    }

    /// A slot was applied, and the log is at that format level.
    pub fn applied(&mut self, applied: &Applied, level: u32) {
        if let Some(real) = &mut self.real {
            real.applied(applied, level);
        }
    }

    /// The snapshot at a slot, where it can be read.
    ///
    /// # Errors
    /// Where another one is shown.
    pub fn snapshot(&self, slot: Slot) -> Result<Option<bytes::Bytes>, Violation> {
        let held = self.image.state.snapshots.get(&slot);
        let Some(real) = &self.real else { return Ok(held.cloned()) };
        let shown = real.snapshot(slot);
        match (&shown, held) {
            (Some(shown), Some(held)) if shown != held => {
                violation("a snapshot is shown as it was written", format!("that of {slot:?}"))
            }
            _ => Ok(shown),
        }
    }

    /// Rows and snapshots that a scrub of the files finds damaged or missing; none: there are no files.
    ///
    /// # Errors
    /// If the newest file cannot be read.
    pub fn scrub(&mut self) -> Option<Result<Scrubbed, Unusable>> {
        let found = self.real.as_ref()?.scrub();
        if let Ok((rows, _)) = &found {
            for slot in rows {
                // One that was found before is not to become whole again.
                if self.image.damaged.insert(*slot)
                    && let Some(row) = Rc::make_mut(&mut self.image.rows).get_mut(slot)
                {
                    // Not as it was written, whichever way.
                    row.checksum = !row.checksum;
                }
            }
        }
        Some(found)
    }

    /// The last bytes of a row change. Returns whether there is such a row.
    pub fn damage(&mut self, slot: Slot) -> bool {
        let Some(row) = Rc::make_mut(&mut self.image.rows).get_mut(&slot) else { return false };
        row.checksum = !row.checksum;
        self.image.damaged.insert(slot);
        true
    }

    /// The bit that says whether a row is chosen changes. What is stored covers it, as the storage engine's format does.
    /// Returns whether there is such a row.
    pub fn flip_flag(&mut self, slot: Slot) -> bool {
        let Some(row) = Rc::make_mut(&mut self.image.rows).get_mut(&slot) else { return false };
        let before = row.checksum;
        let stored = row::cover(row.checksum, u8::from(row.chosen));
        (row.chosen, row.checksum) = row::uncover(stored, u8::from(!row.chosen));
        if row.checksum != before {
            self.image.damaged.insert(slot);
        }
        true
    }

    /// The row of a slot that the disk says is chosen is gone. Returns whether there was one.
    pub fn lose(&mut self, slot: Slot) -> bool {
        let known = slot <= self.image.state.chosen_through;
        let lost = known && Rc::make_mut(&mut self.image.rows).remove(&slot).is_some();
        if lost {
            self.image.damaged.insert(slot);
        }
        lost
    }

    /// The row of `slot` lies over the one of `over` as well. Returns whether both are there.
    pub fn misdirect(&mut self, slot: Slot, over: Slot) -> bool {
        let Some(row) = self.image.rows.get(&slot).filter(|_| slot != over).cloned() else { return false };
        let rows = Rc::make_mut(&mut self.image.rows);
        // The engine takes the slot from the place, the rest from the bytes.
        let done = rows.get_mut(&over).map(|held| *held = Row { slot: over, ..row }).is_some();
        if done {
            self.image.damaged.insert(over);
        }
        done
    }

    /// Slots whose row does not fit its checksum, or is gone.
    pub fn damaged(&self) -> &BTreeSet<Slot> {
        &self.image.damaged
    }

    /// The stored state becomes another, whole by every checksum. Returns whether there is one.
    pub fn diverge(&mut self) -> bool {
        let state = &mut self.image.state;
        let Ok(mut system) = SystemState::decode(state.system.clone()) else { return false };
        system.chain = !system.chain;
        state.system = system.encode();
        true
    }

    /// From now on syncs are acknowledged and not kept.
    pub fn lose_syncs(&mut self) {
        if let Some(real) = &mut self.real {
            real.lose_syncs();
        }
        self.kept.get_or_insert_with(|| self.image.clone());
    }

    /// Syncs are kept again, and with them those before.
    pub fn keep_syncs(&mut self) {
        if let Some(real) = &mut self.real {
            real.keep_syncs();
        }
        self.kept = None;
    }

    /// What a crash would leave, if that is less than what the disk shows.
    pub fn kept(&self) -> Option<&DurableState> {
        self.kept.as_ref().map(|image| &image.state)
    }

    /// Puts a copy aside.
    pub fn put_copy_aside(&mut self) {
        if let Some(real) = &mut self.real {
            real.put_copy_aside();
        }
        self.copy = Some(self.image.clone());
    }

    /// The copy that was put aside.
    pub fn copy(&self) -> Option<&DurableState> {
        self.copy.as_ref().map(|image| &image.state)
    }

    /// The disk is what the copy was. Returns whether there is one.
    pub fn restore(&mut self) -> bool {
        match &self.copy {
            Some(copy) => {
                if let Some(real) = &mut self.real {
                    real.restore();
                }
                self.image = copy.clone();
                self.kept = None;
                true
            }
            None => false,
        }
    }

    /// Opens a view of what is durable now.
    pub fn open(&mut self, view: ViewId) {
        self.views.insert(view, Rc::clone(&self.image.rows));
        if let Some(real) = &mut self.real {
            real.open(view);
        }
    }

    /// Closes a view.
    pub fn close(&mut self, view: ViewId) {
        self.views.remove(&view);
        if let Some(real) = &mut self.real {
            real.close(view);
        }
    }

    /// Rows of a view from `from` on: at most `bytes` and `count`, one at least; and whether the view ends with
    /// them.
    ///
    /// # Errors
    /// Where the storage engine shows other rows than those that were durable then.
    pub fn read(
        &mut self,
        view: ViewId,
        (from, bytes, count): (Slot, usize, usize),
        cluster: ClusterId,
    ) -> Result<Option<(Vec<Row>, bool)>, Violation> {
        let Some(image) = self.views.get(&view).cloned() else { return Ok(None) };
        if self.real.is_some() {
            return self.read_files(view, (from, bytes, count), &image, cluster).map(Some);
        }
        let (mut rows, mut size) = (Vec::new(), 0);
        for row in image.range(from..).map(|(_, row)| row) {
            size += row.value.len();
            if !rows.is_empty() && (size > bytes || rows.len() >= count) {
                return Ok(Some((rows, false)));
            }
            rows.push(row.clone());
        }
        Ok(Some((rows, true)))
    }

    fn read_files(
        &mut self,
        view: ViewId,
        (from, bytes, count): (Slot, usize, usize),
        image: &BTreeMap<Slot, Row>,
        cluster: ClusterId,
    ) -> Result<(Vec<Row>, bool), Violation> {
        let shown = self.real.as_ref().and_then(|real| real.read(view, from, bytes));
        // The driver asks again for what cannot be read now.
        let Some((mut rows, mut end)) = shown else { return Ok((Vec::new(), false)) };
        let mut next = from;
        for row in &rows {
            self.check_skipped(image, next..row.slot)?;
            next = row.slot.next();
            let held = image.get(&row.slot);
            let intact = row.is_intact(cluster);
            if intact && held.is_some_and(|held| held.is_intact(cluster) && held != row) {
                let evidence = format!("{row:?}, written was {held:?}");
                return violation("a row is shown as it was written", evidence);
            }
            if !intact && self.image.rows.get(&row.slot) == held {
                self.image.show(row, cluster)?;
            }
        }
        if end {
            self.check_skipped(image, next..Slot(u64::MAX))?;
        }
        if rows.len() > count.max(1) {
            rows.truncate(count.max(1));
            end = false;
        }
        Ok((rows, end))
    }

    /// No row of a view lies between two that the engine shows, unless it is known to be lost.
    fn check_skipped(
        &self,
        image: &BTreeMap<Slot, Row>,
        between: std::ops::Range<Slot>,
    ) -> Result<(), Violation> {
        let chosen = self.image.state.chosen_through;
        let missing = image.range(between).map(|(slot, _)| *slot).find(|slot| *slot > chosen);
        match missing {
            Some(slot) => violation("no vote is gone without a trace", format!("the row of {slot:?}")),
            None => Ok(()),
        }
    }
}

impl Storage for SimDisk {
    type Error = Unusable;

    fn commit(
        &mut self,
        written: WriteCounter,
        writes: &mut dyn Iterator<Item = &Write>,
    ) -> Result<(), Unusable> {
        self.fresh.clear();
        let writes: Vec<&Write> = writes.collect();
        if let Some(real) = &mut self.real {
            real.commit(written, &writes)?;
        }
        for write in writes {
            match write {
                Write::Row(row) => {
                    Rc::make_mut(&mut self.image.rows).insert(row.slot, row.clone());
                    self.image.damaged.remove(&row.slot);
                    self.fresh.push(row.clone());
                }
                other => {
                    if let Write::Trim { through } | Write::Install { slot: through, .. } = other {
                        Rc::make_mut(&mut self.image.rows).retain(|slot, _| slot > through);
                        self.image.damaged.retain(|slot| slot > through);
                    }
                    self.image.state.apply(other);
                }
            }
        }
        self.image.state.written = written;
        Ok(())
    }
}
