//! A member's disk: what is durable, what is under way, views of it, and what goes wrong with it.
//!
//! ```text
//!   Persist --> pending --start--> syncing --commit--> image --keep--> what a crash leaves
//!                                                        |
//!                                    while syncs are lost, a crash falls back to the image before
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::rc::Rc;
use synod_paxos::message::ViewId;
use synod_paxos::system::SystemState;
use synod_paxos::{DurableState, MemberId, Row, Slot, Storage, Write, WriteBatch, WriteCounter, row};

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
}

impl SimDisk {
    /// An empty volume.
    pub fn empty(member: MemberId) -> SimDisk {
        SimDisk {
            image: Image {
                state: DurableState::empty(member),
                rows: Rc::default(),
                damaged: BTreeSet::new(),
            },
            pending: VecDeque::new(),
            syncing: Vec::new(),
            views: BTreeMap::new(),
            fresh: Vec::new(),
            kept: None,
            copy: None,
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
    pub fn boot(&mut self) -> DurableState {
        self.image.state.boot();
        let mut state = self.image.state.clone();
        state.rows = self.image.rows.range(state.applied.next()..).map(|(s, r)| (*s, r.clone())).collect();
        state
    }

    /// The process died. Of the transaction under way the first `kept` batches are there, the last row of these
    /// not whole if it is `torn`. Returns how many batches were lost.
    pub fn crash(&mut self, kept: usize, torn: bool) -> usize {
        self.views.clear();
        self.fresh.clear();
        let mut syncing = std::mem::take(&mut self.syncing);
        let lost = self.pending.len() + syncing.len().saturating_sub(kept);
        self.pending.clear();
        syncing.truncate(kept);
        let last = syncing.iter().flat_map(WriteBatch::writes).filter_map(|write| match write {
            Write::Row(row) => Some(row.slot),
            _ => None,
        });
        let last = last.last().filter(|_| torn);
        // Durable, but nobody was told: the messages behind it are lost with the process.
        let _ = self.commit_all(syncing);
        if let Some(slot) = last {
            self.damage(slot);
            self.fresh.retain(|row| row.slot != slot);
        }
        if let Some(image) = self.kept.take() {
            self.image = image;
        }
        lost
    }

    /// Makes a transaction durable.
    pub fn commit_all(&mut self, batches: Vec<WriteBatch>) -> Option<synod_paxos::Completed> {
        match synod_paxos::storage::commit(batches, self) {
            Ok(completed) => completed,
            Err(never) => match never {},
        }
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
        self.kept.get_or_insert_with(|| self.image.clone());
    }

    /// Syncs are kept again, and with them those before.
    pub fn keep_syncs(&mut self) {
        self.kept = None;
    }

    /// What a crash would leave, if that is less than what the disk shows.
    pub fn kept(&self) -> Option<&DurableState> {
        self.kept.as_ref().map(|image| &image.state)
    }

    /// Puts a copy aside.
    pub fn put_copy_aside(&mut self) {
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
    }

    /// Closes a view.
    pub fn close(&mut self, view: ViewId) {
        self.views.remove(&view);
    }

    /// Rows of a view from `from` on: at most `bytes` and `count`, one at least; and whether the view ends with
    /// them.
    pub fn read(&self, view: ViewId, from: Slot, bytes: usize, count: usize) -> Option<(Vec<Row>, bool)> {
        let image = self.views.get(&view)?;
        let (mut rows, mut size) = (Vec::new(), 0);
        for row in image.range(from..).map(|(_, row)| row) {
            size += row.value.len();
            if !rows.is_empty() && (size > bytes || rows.len() >= count) {
                return Some((rows, false));
            }
            rows.push(row.clone());
        }
        Some((rows, true))
    }
}

impl Storage for SimDisk {
    type Error = Infallible;

    fn commit(
        &mut self,
        written: WriteCounter,
        writes: &mut dyn Iterator<Item = &Write>,
    ) -> Result<(), Infallible> {
        self.fresh.clear();
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
