//! A disk in memory under the storage, that can be recorded, made to fail, and damaged.
#![allow(dead_code, clippy::unwrap_used, reason = "shared by tests that use a part each")]

use redb::StorageBackend;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use synod_paxos::message::Counters;
use synod_paxos::{ClusterId, DurableState, Genesis, Incarnation, MemberId, Row, Slot, WriteCounter};
use synod_sidecar::storage::Files;

/// What a disk of format 1 holds, besides `row`.
pub(crate) fn old_state(cluster: ClusterId, row: Row) -> DurableState {
    DurableState {
        incarnation: Incarnation(4),
        written: WriteCounter(9),
        genesis: Some(Genesis::new(cluster, BTreeMap::from([(MemberId(77), "a".to_owned())]))),
        trim_through: Slot(3),
        snapshots: BTreeMap::from([(Slot(3), "state".into())]),
        peers: BTreeMap::from([(
            MemberId(5),
            Counters { incarnation: Incarnation(6), written: WriteCounter(7) },
        )]),
        rows: BTreeMap::from([(row.slot, row)]),
        ..DurableState::empty(MemberId(77))
    }
}

/// Writes [`old_state`] as format 1 did.
pub(crate) fn write_old(database: &redb::Database, state: &DurableState) {
    use redb::TableDefinition as Table;
    let transaction = database.begin_write().unwrap();
    {
        let meta: Table<'_, &str, &[u8]> = Table::new("meta");
        let rows: Table<'_, u64, &[u8]> = Table::new("rows");
        let snapshots: Table<'_, u64, &[u8]> = Table::new("snapshots");
        let skipped: Table<'_, u64, &[u8]> = Table::new("skipped");
        let peers: Table<'_, u64, (u64, u64)> = Table::new("peers");
        let marks: Table<'_, u64, (u64, u32, u64)> = Table::new("marks");
        transaction.open_table(marks).unwrap();
        transaction.open_table(skipped).unwrap();
        let mut meta = transaction.open_table(meta).unwrap();
        let numbers = [
            ("format", 1),
            ("member", state.member.0),
            ("incarnation", state.incarnation.0),
            ("written", state.written.0),
            ("trim_through", state.trim_through.0),
        ];
        for (name, value) in numbers {
            meta.insert(name, value.to_le_bytes().as_slice()).unwrap();
        }
        meta.insert("genesis", state.genesis.as_ref().unwrap().encode().as_ref()).unwrap();
        for (slot, snapshot) in &state.snapshots {
            transaction.open_table(snapshots).unwrap().insert(slot.0, snapshot.as_ref()).unwrap();
        }
        for (peer, counters) in &state.peers {
            let counters = (counters.incarnation.0, counters.written.0);
            transaction.open_table(peers).unwrap().insert(peer.0, counters).unwrap();
        }
        for row in state.rows.values() {
            let mut stored = [row.ballot.round.to_le_bytes(), row.ballot.member.0.to_le_bytes()].concat();
            stored.push(u8::from(row.chosen));
            stored.extend_from_slice(&row.checksum.to_le_bytes());
            stored.extend_from_slice(&row.value);
            transaction.open_table(rows).unwrap().insert(row.slot.0, stored.as_slice()).unwrap();
        }
    }
    transaction.commit().unwrap();
}

/// What was asked of the disk. Files have a number for ever, and a name as long as their directory says so.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Create { file: usize, name: String },
    Rename { from: String, to: String },
    Remove { name: String },
    SyncDirectory,
    Write { file: usize, offset: u64, data: Vec<u8> },
    SetLength { file: usize, length: u64 },
    Sync { file: usize },
}

/// What a disk holds: names, and the bytes of each file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) names: BTreeMap<String, usize>,
    pub(crate) files: BTreeMap<usize, Vec<u8>>,
}

impl Image {
    pub(crate) fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Create { file, name } => {
                // Its bytes may have been synced before its name.
                self.files.entry(*file).or_default();
                self.names.insert(name.clone(), *file);
            }
            Operation::Rename { from, to } => {
                // One whose creation was lost has no name to lose.
                if let Some(file) = self.names.remove(from) {
                    self.names.insert(to.clone(), file);
                }
            }
            Operation::Remove { name } => drop(self.names.remove(name)),
            Operation::Write { file, offset, data } => {
                let (from, to) = (*offset as usize, *offset as usize + data.len());
                let bytes = self.files.entry(*file).or_default();
                // A write beyond a length that was lost stretches the file, as a file system does.
                bytes.resize(bytes.len().max(to), 0);
                bytes[from..to].copy_from_slice(data);
            }
            Operation::SetLength { file, length } => {
                self.files.entry(*file).or_default().resize(*length as usize, 0);
            }
            Operation::Sync { .. } | Operation::SyncDirectory => {}
        }
    }

    /// The bytes of the file with that name.
    pub(crate) fn named(&mut self, name: &str) -> &mut Vec<u8> {
        self.files.entry(self.names[name]).or_default()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Medium {
    pub(crate) image: Image,
    /// Everything that was asked, if it is recorded.
    pub(crate) recorded: Option<Vec<Operation>>,
    pub(crate) asked: usize,
    /// This operation and all behind it fail.
    pub(crate) fails_at: Option<usize>,
    /// There is no space for a file's growth.
    pub(crate) full: bool,
    /// There is no space for any write.
    pub(crate) spent: bool,
    /// Each sync takes so long.
    pub(crate) sync_takes: Duration,
    /// Syncs do not return.
    pub(crate) stands_still: bool,
    /// Syncs that wait for that to end.
    pub(crate) waiting: usize,
}

/// A disk in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk(Arc<Mutex<Medium>>);

/// A file on it, open.
#[derive(Debug)]
struct Open {
    disk: Disk,
    file: usize,
}

impl Disk {
    /// A disk that holds `image`.
    pub(crate) fn with(image: Image) -> Disk {
        Disk(Arc::new(Mutex::new(Medium { image, ..Medium::default() })))
    }

    /// The same disk, for the storage.
    pub(crate) fn files(&self) -> Arc<dyn Files> {
        Arc::new(self.clone())
    }

    /// What a sync waits for.
    fn wait(&self) {
        let takes = self.medium().sync_takes;
        std::thread::sleep(takes);
        self.medium().waiting += 1;
        while self.medium().stands_still {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.medium().waiting -= 1;
    }

    /// What it holds, and how it behaves.
    pub(crate) fn medium(&self) -> MutexGuard<'_, Medium> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, operation: Operation) -> io::Result<()> {
        if matches!(operation, Operation::Sync { .. }) {
            self.wait();
        }
        let mut medium = self.medium();
        let number = medium.asked;
        medium.asked += 1;
        if medium.fails_at.is_some_and(|at| number >= at) {
            return Err(io::Error::other("the disk fails"));
        }
        if medium.full
            && let Operation::SetLength { file, length } = &operation
            && *length > medium.image.files[file].len() as u64
        {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if medium.spent && matches!(operation, Operation::Write { .. } | Operation::Create { .. }) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        medium.image.apply(&operation);
        if let Some(recorded) = &mut medium.recorded {
            recorded.push(operation);
        }
        Ok(())
    }
}

impl Files for Disk {
    fn place(&self) -> &Path {
        Path::new("(a disk in memory)")
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.medium().image.names.keys().cloned().collect())
    }

    fn open(&self, name: &str, _write: bool) -> io::Result<Box<dyn StorageBackend>> {
        let file = self.medium().image.names.get(name).copied().ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Open { disk: self.clone(), file }))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn StorageBackend>> {
        let file = self.medium().image.files.keys().last().map_or(0, |last| last + 1);
        self.ask(Operation::Create { file, name: name.to_owned() })?;
        Ok(Box::new(Open { disk: self.clone(), file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.ask(Operation::Rename { from: from.to_owned(), to: to.to_owned() })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.ask(Operation::Remove { name: name.to_owned() })
    }

    fn sync(&self) -> io::Result<()> {
        self.ask(Operation::SyncDirectory)
    }
}

impl StorageBackend for Open {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.medium().image.files[&self.file].len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let medium = self.disk.medium();
        let from = offset as usize;
        let found = medium.image.files[&self.file].get(from..from + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.disk.ask(Operation::SetLength { file: self.file, length })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.ask(Operation::Sync { file: self.file })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.ask(Operation::Write { file: self.file, offset, data: data.to_vec() })
    }
}

fn is_of_directory(operation: &Operation) -> bool {
    matches!(operation, Operation::Create { .. } | Operation::Rename { .. } | Operation::Remove { .. })
}

/// What is on the disk for certain, and what was asked for behind that.
#[derive(Default)]
pub(crate) struct Power {
    pub(crate) synced: Image,
    pub(crate) behind: Vec<Operation>,
}

impl Power {
    pub(crate) fn ask(&mut self, operation: &Operation) {
        let lasts = |behind: &Operation| match (operation, behind) {
            (Operation::SyncDirectory, behind) => is_of_directory(behind),
            (
                Operation::Sync { file },
                Operation::Write { file: other, .. } | Operation::SetLength { file: other, .. },
            ) => file == other,
            _ => false,
        };
        if matches!(operation, Operation::Sync { .. } | Operation::SyncDirectory) {
            for operation in self.behind.extract_if(.., |behind| lasts(behind)) {
                self.synced.apply(&operation);
            }
        } else {
            self.behind.push(operation.clone());
        }
    }

    /// The images that a cut may leave: all that is synced, and of what is behind any.
    pub(crate) fn cuts(&self) -> Vec<(&'static str, Image)> {
        let with = |operations: &mut dyn Iterator<Item = &Operation>| {
            let mut image = self.synced.clone();
            operations.for_each(|operation| image.apply(operation));
            image
        };
        let behind = &self.behind;
        let mut images = vec![("lost", self.synced.clone())];
        if let Some((last, before)) = behind.split_last() {
            images.push(("kept", with(&mut behind.iter())));
            if let Operation::Write { file, offset, data } = last {
                let half =
                    Operation::Write { file: *file, offset: *offset, data: data[..data.len() / 2].to_vec() };
                images.push(("torn", with(&mut before.iter().chain([&half]))));
            }
            if behind.len() > 1 {
                images.push(("reordered, the last alone", with(&mut [last].into_iter())));
                images.push(("reordered, every second", with(&mut behind.iter().skip(1).step_by(2))));
            }
            if behind.iter().any(is_of_directory) && !behind.iter().all(is_of_directory) {
                let names = with(&mut behind.iter().filter(|behind| is_of_directory(behind)));
                images.push(("reordered, names alone", names));
                let bytes = with(&mut behind.iter().filter(|behind| !is_of_directory(behind)));
                images.push(("reordered, bytes alone", bytes));
            }
        }
        images
    }
}
