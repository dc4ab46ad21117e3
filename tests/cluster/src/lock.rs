//! A lock that ends with its process, however that ends.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::error::{At, Error, Result};

/// An exclusive lock on a file, held until dropped. The file stays: removing it would let two
/// processes hold a lock of the same name.
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits until the lock is free.
    ///
    /// # Errors
    /// If the file cannot be made or locked.
    pub(crate) fn wait(path: &Path) -> Result<Self> {
        let file = open(path)?;
        flock(&file, FlockOperation::LockExclusive).map_err(std::io::Error::from).at("lock", path)?;
        Ok(Lock { _file: file })
    }

    /// Takes the lock, or says who holds it. `what` names the thing that is locked.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the holder's process id if it is held; otherwise as [`Lock::wait`].
    pub(crate) fn take(path: &Path, what: &str) -> Result<Self> {
        let mut file = open(path)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            return Err(Error::Invalid(format!(
                "{what} is being started or removed by process {}; wait for it, or end it",
                holder.trim()
            )));
        }
        file.set_len(0).at("write", path)?;
        file.rewind().at("write", path)?;
        write!(file, "{}", std::process::id()).at("write", path)?;
        Ok(Lock { _file: file })
    }
}

fn open(path: &Path) -> Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).at("create", parent)?;
    }
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).at("open", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_taker_is_told_who_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let held = Lock::take(&path, "cluster `demo`").unwrap();
        let refused = Lock::take(&path, "cluster `demo`").err().unwrap().to_string();
        assert!(refused.contains(&std::process::id().to_string()), "{refused}");
        drop(held);
        assert!(Lock::take(&path, "cluster `demo`").is_ok());
    }
}
