//! The files of a data directory: what the storage asks of a file system, and the real one.

use crate::StorageError;
use crate::descriptors;
use redb::StorageBackend;
use std::fmt::Debug;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Where a data directory keeps its log. One rename of it moves all that a member is aside.
pub const DIRECTORY: &str = "log";
/// The one file of format 1, beside [`DIRECTORY`].
pub const LEGACY: &str = "synod.redb";
/// Held as long as the directory is open.
const LOCK: &str = "LOCK";

/// A flat directory of files, held by one process. Names are those of segments, and [`LEGACY`].
///
/// A created, renamed or removed file is so for certain only after [`Files::sync`].
pub trait Files: Debug + Send + Sync {
    /// For messages.
    fn place(&self) -> &Path;
    /// Every file's name.
    ///
    /// # Errors
    /// If the directory cannot be read.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens a file that is there, for reading only unless `write`.
    ///
    /// # Errors
    /// If it is not there or may not be opened.
    fn open(&self, name: &str, write: bool) -> io::Result<Box<dyn StorageBackend>>;
    /// Makes an empty file, in place of one of that name.
    ///
    /// # Errors
    /// If it cannot be made.
    fn create(&self, name: &str) -> io::Result<Box<dyn StorageBackend>>;
    /// Renames a file, in place of one of the new name.
    ///
    /// # Errors
    /// If it cannot be renamed.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file; one that is open stays readable to those who hold it.
    ///
    /// # Errors
    /// If it cannot be removed.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes what was created, renamed and removed so far last.
    ///
    /// # Errors
    /// If the disk fails.
    fn sync(&self) -> io::Result<()>;
}

/// A data directory on the real file system.
#[derive(Debug)]
pub(crate) struct Directory {
    dir: PathBuf,
    /// Locked; closing it lets go.
    _lock: Option<File>,
}

impl Directory {
    /// Makes `dir` and its [`DIRECTORY`] where they are missing, and takes the lock.
    pub(crate) fn open(dir: &Path) -> Result<Directory, StorageError> {
        let explain = |error| explain_io(dir, error);
        let log = dir.join(DIRECTORY);
        std::fs::create_dir_all(&log).map_err(explain)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let lock = descriptors::wait("the lock", || options.open(log.join(LOCK))).map_err(explain)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StorageError::InUse { dir: dir.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(explain(error)),
        }
        let directory = Directory { dir: dir.to_owned(), _lock: Some(lock) };
        // What is made in them must not be in a directory that a power cut forgets.
        directory.sync().map_err(explain)?;
        Ok(directory)
    }

    /// For looking only: nothing is made, and a process that holds the directory is found.
    pub(crate) fn look(dir: &Path) -> Result<Directory, StorageError> {
        let lock = match File::open(dir.join(DIRECTORY).join(LOCK)) {
            Ok(lock) => lock,
            // A copy of the segments has none, and nobody can hold it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Directory { dir: dir.to_owned(), _lock: None });
            }
            Err(error) => return Err(explain_io(dir, error)),
        };
        match lock.try_lock_shared() {
            Ok(()) => Ok(Directory { dir: dir.to_owned(), _lock: Some(lock) }),
            Err(TryLockError::WouldBlock) => Err(StorageError::InUse { dir: dir.to_owned() }),
            Err(TryLockError::Error(error)) => Err(explain_io(dir, error)),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        if name == LEGACY { self.dir.join(LEGACY) } else { self.dir.join(DIRECTORY).join(name) }
    }
}

impl Files for Directory {
    fn place(&self) -> &Path {
        &self.dir
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        match descriptors::wait("the directory", || std::fs::read_dir(self.dir.join(DIRECTORY))) {
            Ok(entries) => {
                for entry in entries {
                    // A name that is no text is none of ours.
                    names.extend(entry?.file_name().into_string());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        if self.path(LEGACY).try_exists()? {
            names.push(LEGACY.to_owned());
        }
        Ok(names)
    }

    fn open(&self, name: &str, write: bool) -> io::Result<Box<dyn StorageBackend>> {
        let path = self.path(name);
        let file = descriptors::wait(name, || OpenOptions::new().read(true).write(write).open(&path))?;
        if name == LEGACY {
            // Who runs a version that knows only this file holds its lock, not ours.
            file.try_lock().map_err(|error| match error {
                TryLockError::WouldBlock => io::Error::from(io::ErrorKind::WouldBlock),
                TryLockError::Error(error) => error,
            })?;
        }
        Ok(Box::new(Stored(file)))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn StorageBackend>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let path = self.path(name);
        Ok(Box::new(Stored(descriptors::wait(name, || options.open(&path))?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path(name))
    }

    fn sync(&self) -> io::Result<()> {
        let open = |path: &Path| descriptors::wait("the directory", || File::open(path));
        open(&self.dir.join(DIRECTORY))?.sync_all()?;
        open(&self.dir)?.sync_all()
    }
}

/// A file without a lock of its own: the directory has one.
#[derive(Debug)]
struct Stored(File);

impl StorageBackend for Stored {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }
}

/// What the system said, as what the user can do.
pub(crate) fn explain_io(dir: &Path, error: io::Error) -> StorageError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            StorageError::Full { dir: dir.to_owned() }
        }
        io::ErrorKind::WouldBlock => StorageError::InUse { dir: dir.to_owned() },
        _ => StorageError::Unusable { dir: dir.to_owned(), error },
    }
}

/// Whether the system had too little of something for a moment: that says nothing of what is on the disk.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    const ENOMEM: i32 = 12;
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(error.raw_os_error(), Some(ENOMEM | ENFILE | EMFILE))
}
