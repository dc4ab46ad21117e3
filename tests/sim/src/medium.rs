//! A disk in memory under the real storage, that can be recorded, made to fail, and damaged: for the simulator's runs
//! on real files, and for the tests of the storage engine.

use redb::StorageBackend;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use synod_storage::Files;

/// What was asked of the disk. Files have a number for ever, and a name as long as their directory says so.
#[derive(Clone, Debug)]
pub enum Operation {
    /// An empty file gets a name.
    Create {
        /// Its number.
        file: usize,
        /// Its name.
        name: String,
    },
    /// A file gets another name, in place of one that has it.
    Rename {
        /// The old name.
        from: String,
        /// The new one.
        to: String,
    },
    /// A name goes.
    Remove {
        /// Which.
        name: String,
    },
    /// What was created, renamed and removed so far lasts.
    SyncDirectory,
    /// Bytes are written.
    Write {
        /// Where.
        file: usize,
        /// The first byte's place.
        offset: u64,
        /// What.
        data: Vec<u8>,
    },
    /// A file gets longer or shorter.
    SetLength {
        /// Which.
        file: usize,
        /// In bytes.
        length: u64,
    },
    /// What was written to a file so far lasts.
    Sync {
        /// Which.
        file: usize,
    },
}

/// What a disk holds: names, and the bytes of each file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// The number of each file.
    pub names: BTreeMap<String, usize>,
    /// Shared between images: a copy of one costs little.
    pub files: BTreeMap<usize, Arc<Vec<u8>>>,
}

impl Image {
    /// The bytes of a file, to be changed.
    pub fn bytes_mut(&mut self, file: usize) -> &mut Vec<u8> {
        Arc::make_mut(self.files.entry(file).or_default())
    }

    /// Forgets files without a name: a process that had them open is gone.
    pub fn forget_nameless(&mut self) {
        let names = &self.names;
        self.files.retain(|file, _| names.values().any(|named| named == file));
    }

    /// Does what was asked.
    pub fn apply(&mut self, operation: &Operation) {
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
                let bytes = self.bytes_mut(*file);
                // A write beyond a length that was lost stretches the file, as a file system does.
                bytes.resize(bytes.len().max(to), 0);
                bytes[from..to].copy_from_slice(data);
            }
            Operation::SetLength { file, length } => {
                self.bytes_mut(*file).resize(*length as usize, 0);
            }
            Operation::Sync { .. } | Operation::SyncDirectory => {}
        }
    }

    /// The bytes of the file with that name.
    pub fn named(&mut self, name: &str) -> &mut Vec<u8> {
        self.bytes_mut(self.names[name])
    }
}

/// What a disk holds, and how it behaves.
#[derive(Debug, Default)]
pub struct Medium {
    /// What it holds.
    pub image: Image,
    /// Everything that was asked, if it is recorded.
    pub recorded: Option<Vec<Operation>>,
    /// Operations that it was asked for.
    pub asked: usize,
    /// This operation and all behind it fail.
    pub fails_at: Option<usize>,
    /// There is no space for a file's growth.
    pub full: bool,
    /// There is no space for any write.
    pub spent: bool,
    /// Each sync takes so long.
    pub sync_takes: Duration,
    /// Syncs do not return.
    pub stands_still: bool,
    /// Syncs that wait for that to end.
    pub waiting: usize,
}

/// A disk in memory.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<Medium>>);

/// A file on it, open.
#[derive(Debug)]
struct Open {
    disk: Disk,
    file: usize,
}

impl Disk {
    /// A disk that holds `image`.
    pub fn with(image: Image) -> Disk {
        Disk(Arc::new(Mutex::new(Medium { image, ..Medium::default() })))
    }

    /// The same disk, for the storage.
    pub fn files(&self) -> Arc<dyn Files> {
        Arc::new(self.clone())
    }

    /// What a sync waits for.
    fn wait(&self) {
        let takes = self.medium().sync_takes;
        if !takes.is_zero() {
            std::thread::sleep(takes);
        }
        self.medium().waiting += 1;
        while self.medium().stands_still {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.medium().waiting -= 1;
    }

    /// What it holds, and how it behaves.
    pub fn medium(&self) -> MutexGuard<'_, Medium> {
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
#[derive(Debug, Default)]
pub struct Power {
    /// What lasts.
    pub synced: Image,
    /// What does not yet, in order.
    pub behind: Vec<Operation>,
}

impl Power {
    /// Follows one operation.
    pub fn ask(&mut self, operation: &Operation) {
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
    pub fn cuts(&self) -> Vec<(&'static str, Image)> {
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
