//! A member's disk: what is durable, what is under way, and views of it.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::rc::Rc;
use synod_paxos::message::ViewId;
use synod_paxos::{DurableState, MemberId, Row, Slot, Storage, Write, WriteBatch, WriteCounter};

/// Rows as a view saw them.
pub type Image = Rc<BTreeMap<Slot, Row>>;

/// The durable image and the writes on their way to it.
#[derive(Debug)]
pub struct SimDisk {
    durable: DurableState,
    rows: Image,
    /// Issued, not yet in a transaction.
    pub pending: VecDeque<WriteBatch>,
    /// In the transaction that is syncing now.
    pub syncing: Vec<WriteBatch>,
    views: BTreeMap<ViewId, Image>,
    /// Rows made durable by the last commit, for the invariants.
    pub fresh: Vec<Row>,
}

impl SimDisk {
    /// An empty volume.
    pub fn empty(member: MemberId) -> SimDisk {
        SimDisk {
            durable: DurableState::empty(member),
            rows: Rc::default(),
            pending: VecDeque::new(),
            syncing: Vec::new(),
            views: BTreeMap::new(),
            fresh: Vec::new(),
        }
    }

    /// What the disk holds.
    pub fn durable(&self) -> &DurableState {
        &self.durable
    }

    /// What a start reads, its own boot counted.
    pub fn boot(&mut self) -> DurableState {
        self.durable.boot();
        let mut state = self.durable.clone();
        state.rows = self.rows.range(state.applied.next()..).map(|(s, r)| (*s, r.clone())).collect();
        state
    }

    /// The process died: what was not synced is gone; the transaction under way is there wholly or not at all.
    /// Returns how many batches were lost.
    pub fn crash(&mut self, syncing_survives: bool) -> usize {
        self.views.clear();
        let syncing = std::mem::take(&mut self.syncing);
        let mut lost = self.pending.len();
        self.pending.clear();
        if syncing_survives {
            // Durable, but nobody was told: the messages behind it are lost with the process.
            let _ = self.commit_all(syncing);
        } else {
            lost += syncing.len();
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

    /// Opens a view of what is durable now.
    pub fn open(&mut self, view: ViewId) {
        self.views.insert(view, Rc::clone(&self.rows));
    }

    /// Closes a view.
    pub fn close(&mut self, view: ViewId) {
        self.views.remove(&view);
    }

    /// Rows of a view from `from` on: at most `bytes`, one at least; and whether the view ends with them.
    pub fn read(&self, view: ViewId, from: Slot, bytes: usize) -> Option<(Vec<Row>, bool)> {
        let image = self.views.get(&view)?;
        let (mut rows, mut size) = (Vec::new(), 0);
        let mut range = image.range(from..);
        for (_, row) in range.by_ref() {
            size += row.value.len();
            if !rows.is_empty() && size > bytes {
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
                    Rc::make_mut(&mut self.rows).insert(row.slot, row.clone());
                    self.fresh.push(row.clone());
                }
                other => {
                    if let Write::Trim { through } | Write::Install { slot: through, .. } = other {
                        Rc::make_mut(&mut self.rows).retain(|slot, _| slot > through);
                    }
                    self.durable.apply(other);
                }
            }
        }
        self.durable.written = written;
        Ok(())
    }
}
