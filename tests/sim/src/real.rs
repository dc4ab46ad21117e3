//! The real storage engine on files in memory, in step with a simulated disk ([`crate::disk`]).
//!
//! Every write goes to both. Whatever the engine shows must be what the model holds, or be told as damaged: the model's
//! rows become what the engine shows, and the invariants go by that. Power cuts tear the files themselves, and bytes
//! of them are flipped.

use crate::disk::Image as Model;
use crate::medium::{Disk, Image, Power};
use crate::oracle::{Violation, violation};
use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use synod_paxos::message::ViewId;
use synod_paxos::{Applied, ClusterId, DurableState, MemberId, Row, Slot, Storage, Write, WriteCounter};
use synod_storage::{Files, Mark, Opened, Options, Place, StorageError, View, create_on, open_on};

/// Segments that are left every few dozen commits.
const OPTIONS: Options = Options { most_bytes: 48 << 10, least_bytes: 6 << 10, background: false };
/// Bytes of one piece of a scrub.
const PIECE: u64 = 4 << 10;

/// What the engine shows of a disk at a start.
#[derive(Debug)]
pub struct Shown {
    /// What the core is given: of the rows those above the applied position.
    pub state: DurableState,
    /// All rows that are not trimmed.
    pub rows: Vec<Row>,
}

/// Slots of rows, and of snapshots, that a scrub finds damaged or missing.
pub type Scrubbed = (Vec<Slot>, Vec<Slot>);

/// Why a member cannot go on with what its files hold.
#[derive(Debug)]
pub enum Unusable {
    /// The engine says so, or its process ended over it.
    Damaged(String),
    /// The engine shows what was never written.
    Wrong(Violation),
}

impl From<StorageError> for Unusable {
    fn from(error: StorageError) -> Unusable {
        Unusable::Damaged(error.to_string())
    }
}

impl From<Violation> for Unusable {
    fn from(violation: Violation) -> Unusable {
        Unusable::Wrong(violation)
    }
}

/// The files of one member, and the engine on them while its process runs.
pub struct RealDisk {
    disk: Disk,
    power: Power,
    opened: Option<Opened>,
    views: BTreeMap<ViewId, View>,
    /// What a crash leaves while syncs are acknowledged and not kept.
    kept: Option<Image>,
    /// A copy that was put aside.
    copy: Option<Image>,
    /// Bytes that were flipped so far.
    pub flipped: u64,
    commits: u64,
}

impl Debug for RealDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RealDisk with {} bytes flipped", self.flipped)
    }
}

/// A panic of the database ends a member's process as an error does.
fn guarded<T>(work: impl FnOnce() -> Result<T, StorageError>) -> Result<T, Unusable> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(Unusable::from),
        Err(panic) => Err(Unusable::Damaged(crate::run::assertion(&*panic).evidence)),
    }
}

/// Opens files, and reads all rows that they show.
fn look(files: Arc<dyn Files>) -> Result<(Opened, Vec<Row>), Unusable> {
    guarded(|| {
        let opened = open_on(files, None, OPTIONS)?;
        let (rows, _) = opened.reader.view()?.read(Slot(0), usize::MAX)?;
        Ok((opened, rows))
    })
}

/// Some number that follows from another.
fn mixed(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) ^ number >> 31
}

impl RealDisk {
    /// The files of a member that was never started.
    ///
    /// # Errors
    /// If the engine cannot make them: a fault of its own.
    pub fn new(member: MemberId) -> Result<RealDisk, StorageError> {
        let disk = Disk::default();
        create_on(disk.files(), &DurableState::empty(member), OPTIONS)?;
        let mut image = disk.medium().image.clone();
        image.forget_nameless();
        Ok(RealDisk {
            disk: Disk::with(image.clone()),
            power: Power { synced: image, behind: Vec::new() },
            opened: None,
            views: BTreeMap::new(),
            kept: None,
            copy: None,
            flipped: 0,
            commits: 0,
        })
    }

    /// Opens the files and reads all that they show.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn boot(&mut self) -> Result<Shown, Unusable> {
        self.disk.medium().recorded = Some(Vec::new());
        let files = self.disk.files();
        let (opened, rows) = look(files)?;
        let state = opened.state.clone();
        self.opened = Some(opened);
        self.follow();
        Ok(Shown { state, rows })
    }

    /// Makes writes durable.
    ///
    /// # Errors
    /// If the engine cannot.
    pub fn commit(&mut self, written: WriteCounter, writes: &[&Write]) -> Result<(), Unusable> {
        let Some(opened) = &mut self.opened else { return Ok(()) };
        self.commits += 1;
        let tidy = self.commits.is_multiple_of(5);
        let done = guarded(|| {
            opened.storage.commit(written, &mut writes.iter().copied())?;
            if tidy {
                opened.storage.keep_house();
            }
            Ok(())
        });
        self.follow();
        done
    }

    /// Notes what an applied slot added, as the driver does.
    pub fn applied(&mut self, applied: &Applied, level: u32) {
        let Some(opened) = &mut self.opened else { return };
        let count = u32::try_from(applied.entries.len()).unwrap_or(u32::MAX);
        let mark = Mark { first: applied.first, slot: applied.slot, count, skipped: applied.skipped.clone() };
        opened.storage.add_marks((count > 0).then_some(mark), applied.slot);
        opened.storage.note_level(level);
    }

    /// Takes note of what the engine asked of its files.
    fn follow(&mut self) {
        let mut medium = self.disk.medium();
        for operation in medium.recorded.iter_mut().flat_map(std::mem::take) {
            self.power.ask(&operation);
        }
    }

    /// The process died while `writes` were on their way, and maybe power went with it: of what was not synced any part
    /// may be there. Returns whether the writes are.
    ///
    /// # Errors
    /// If the files cannot be opened afterwards although nothing of them was flipped: the engine's fault.
    pub fn crash(
        &mut self,
        before: &DurableState,
        under_way: Option<(WriteCounter, &[&Write])>,
        chance: u64,
    ) -> Result<bool, Violation> {
        let mut power =
            Power { synced: self.power.synced.clone(), behind: std::mem::take(&mut self.power.behind) };
        if let (Some((written, writes)), Some(opened)) = (under_way, &mut self.opened) {
            // Where a flipped bit ends it, the files hold as much of it as they do.
            drop(guarded(|| opened.storage.commit(written, &mut writes.iter().copied())));
            let asked = self.disk.medium().recorded.take().unwrap_or_default();
            // The last place of all: the process died when it was done, and nobody was told.
            let place = usize::try_from(chance % (asked.len() as u64 + 1)).unwrap_or(0);
            asked[..place].iter().for_each(|operation| power.ask(operation));
        }
        self.views.clear();
        let cuts = power.cuts();
        let (_, mut image) = cuts[usize::try_from(mixed(chance) % cuts.len() as u64).unwrap_or(0)].clone();
        image.forget_nameless();
        // What the engine does when it is dropped goes to files that are no more.
        let disk = Disk::with(image.clone());
        self.disk = disk;
        drop(guarded(|| {
            drop(self.opened.take());
            Ok(())
        }));
        self.power = Power { synced: image, behind: Vec::new() };
        let there = match under_way {
            Some((written, writes)) => self.holds(before, written, writes)?,
            None => false,
        };
        if let Some(kept) = self.kept.take() {
            self.replace(kept);
        }
        Ok(there)
    }

    /// Whether a start on the files as they are would show `writes`; else it shows the state `before`, no more and no
    /// less.
    fn holds(
        &self,
        before: &DurableState,
        written: WriteCounter,
        writes: &[&Write],
    ) -> Result<bool, Violation> {
        let scratch = Disk::with(self.power.synced.clone());
        let (shown, rows) = match look(scratch.files()) {
            Ok((opened, rows)) => (opened.state, rows),
            Err(_) if self.flipped > 0 => return Ok(false),
            Err(why) => return violation("a disk that only lost power opens", format!("{why:?}")),
        };
        let mut after = before.clone();
        writes.iter().for_each(|write| after.apply(write));
        after.written = written;
        let is = |state: &DurableState| {
            let held = DurableState { incarnation: shown.incarnation, ..state.clone() };
            with_lists_of(&held, &shown) == held
        };
        match (is(&after), is(before)) {
            // Writes of a handshake are not counted: where they are rows alone, the rows tell.
            (true, true) => {
                let there = |row: &Row| {
                    rows.binary_search_by_key(&row.slot, |row| row.slot).is_ok_and(|at| rows[at] == *row)
                };
                Ok(writes.iter().all(|write| !matches!(write, Write::Row(row) if !there(row))))
            }
            (true, false) => Ok(true),
            (false, true) => Ok(false),
            _ => violation("a commit is there as a whole or not at all", differences(before, &shown)),
        }
    }

    fn replace(&mut self, image: Image) {
        self.disk = Disk::with(image.clone());
        self.power = Power { synced: image, behind: Vec::new() };
    }

    /// From now on syncs are acknowledged and not kept.
    pub fn lose_syncs(&mut self) {
        self.kept.get_or_insert_with(|| self.power.synced.clone());
    }

    /// Syncs are kept again, and with them those before.
    pub fn keep_syncs(&mut self) {
        self.kept = None;
    }

    /// Puts a copy aside.
    pub fn put_copy_aside(&mut self) {
        self.copy = Some(self.power.synced.clone());
    }

    /// The files are what the copy was.
    pub fn restore(&mut self) {
        if let Some(copy) = self.copy.clone() {
            self.kept = None;
            self.replace(copy);
        }
    }

    /// One bit of what was ever written changes: in which file, and where, follows from `chance`.
    pub fn flip(&mut self, chance: u64) -> bool {
        let names: Vec<usize> = self.power.synced.names.values().copied().collect();
        let Some(file) = names.get(usize::try_from(chance % names.len().max(1) as u64).unwrap_or(0)) else {
            return false;
        };
        let found = self.power.synced.files.get(file).and_then(|bytes| {
            let from = usize::try_from(mixed(chance) % bytes.len().max(1) as u64).unwrap_or(0);
            let written = |place: &usize| bytes[*place] != 0;
            (from..bytes.len()).find(written).or_else(|| (0..from).find(written))
        });
        let Some(place) = found else { return false };
        let bit = 1 << (mixed(chance ^ 1) % 8);
        self.power.synced.bytes_mut(*file)[place] ^= bit;
        if let Some(byte) = self.disk.medium().image.bytes_mut(*file).get_mut(place) {
            *byte ^= bit;
        }
        self.flipped += 1;
        true
    }

    /// Opens a view of what is durable now.
    pub fn open(&mut self, view: ViewId) {
        if let Some(opened) = &self.opened
            && let Ok(opened) = guarded(|| opened.reader.view())
        {
            self.views.insert(view, opened);
        }
    }

    /// Closes a view.
    pub fn close(&mut self, view: ViewId) {
        self.views.remove(&view);
    }

    /// Rows of a view from `from` on: about `bytes` of them, one at least; and whether the view ends with them. None:
    /// the engine cannot tell now.
    pub fn read(&self, view: ViewId, from: Slot, bytes: usize) -> Option<(Vec<Row>, bool)> {
        let view = self.views.get(&view)?;
        guarded(|| view.read(from, bytes)).ok()
    }

    /// The snapshot at a slot, where it can be read.
    pub fn snapshot(&self, slot: Slot) -> Option<bytes::Bytes> {
        let opened = self.opened.as_ref()?;
        guarded(|| opened.reader.snapshot(slot)).ok()
    }

    /// Slots whose rows a scrub of everything finds damaged or missing; and of snapshots.
    ///
    /// # Errors
    /// If the newest segment cannot be read.
    pub fn scrub(&self) -> Result<Scrubbed, Unusable> {
        let (mut rows, mut snapshots, mut place) = (Vec::new(), Vec::new(), Some(Place::default()));
        while let (Some(from), Some(opened)) = (place, &self.opened) {
            let found = guarded(|| opened.reader.scrub(from, PIECE))?;
            rows.extend(found.damaged);
            snapshots.extend(found.snapshots);
            place = found.next;
        }
        Ok((rows, snapshots))
    }
}

/// Judges what the engine shows at a start against what was acknowledged, and makes the model what is shown.
///
/// # Errors
/// Where something is shown that was never written, or is missing and nothing says so.
pub fn settle(model: &mut Model, shown: &Shown, cluster: ClusterId) -> Result<(), Violation> {
    let (state, held) = (&shown.state, &model.state);
    let same = with_lists_of(held, state);
    if same != *held {
        return violation("a start finds what was acknowledged", differences(held, &same));
    }
    let mut written = std::mem::take(&mut model.unread);
    written.extend(held.snapshots.clone());
    let other = state.snapshots.iter().find(|(slot, bytes)| written.remove(slot).as_ref() != Some(*bytes));
    if let Some((slot, _)) = other {
        return violation("a snapshot is shown as it was written", format!("that of {slot:?}"));
    }
    model.unread = written;
    model.state.snapshots = state.snapshots.clone();
    model.state.fetched = state.fetched.clone();
    let trim = model.state.trim_through;
    let found: BTreeMap<Slot, &Row> = shown.rows.iter().map(|row| (row.slot, row)).collect();
    let missing: Vec<Slot> =
        model.rows.keys().copied().filter(|slot| *slot > trim && !found.contains_key(slot)).collect();
    for slot in missing {
        // The core finds what is missing of the prefix that is known to be chosen.
        if slot > model.state.chosen_through {
            return violation("no vote is gone without a trace", format!("the row of {slot:?}"));
        }
        model.lose(slot);
    }
    for row in found.values() {
        model.show(row, cluster)?;
    }
    Ok(())
}

/// What is shown, with the rows and snapshots that are held: those are judged apart. A snapshot that cannot be read is
/// not listed, and parts of one that is fetched are fetched again.
fn with_lists_of(held: &DurableState, shown: &DurableState) -> DurableState {
    DurableState {
        rows: held.rows.clone(),
        snapshots: held.snapshots.clone(),
        fetched: held.fetched.clone(),
        ..shown.clone()
    }
}

fn differences(held: &DurableState, shown: &DurableState) -> String {
    let text = |state: &DurableState| {
        format!(
            "{:?} {:?} {:?} {:?} {:?} chosen {:?} trim {:?} applied {:?} {} bytes of state, lease {:?}, peers {:?}, {:?} {:?}",
            state.member,
            state.incarnation,
            state.written,
            state.promised,
            state.genesis_confirmed,
            state.chosen_through,
            state.trim_through,
            state.applied,
            state.system.len(),
            state.lease,
            state.peers,
            state.tombstone,
            state.fenced,
        )
    };
    format!("acknowledged {}; shown {}", text(held), text(shown))
}
