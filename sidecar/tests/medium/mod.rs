//! A disk in memory under redb, that can be recorded, made to fail, and damaged.
#![allow(dead_code, reason = "shared by tests that use a part each")]

use redb::StorageBackend;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What redb asked of the disk.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Write { offset: u64, data: Vec<u8> },
    SetLength(u64),
    Sync,
}

pub(crate) fn apply(image: &mut Vec<u8>, operation: &Operation) {
    match operation {
        Operation::Write { offset, data } => {
            let (from, to) = (*offset as usize, *offset as usize + data.len());
            image[from..to].copy_from_slice(data);
        }
        Operation::SetLength(length) => image.resize(*length as usize, 0),
        Operation::Sync => {}
    }
}

#[derive(Debug, Default)]
pub(crate) struct Medium {
    pub(crate) image: Vec<u8>,
    /// Everything that was asked, if it is recorded.
    pub(crate) recorded: Option<Vec<Operation>>,
    pub(crate) asked: usize,
    /// This operation and all behind it fail.
    pub(crate) fails_at: Option<usize>,
}

/// A disk in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk(Arc<Mutex<Medium>>);

impl Disk {
    /// A disk that holds `image`.
    pub(crate) fn with(image: Vec<u8>) -> Disk {
        Disk(Arc::new(Mutex::new(Medium { image, ..Medium::default() })))
    }

    /// What it holds, and how it behaves.
    pub(crate) fn medium(&self) -> MutexGuard<'_, Medium> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, operation: Operation) -> io::Result<()> {
        let mut medium = self.medium();
        let number = medium.asked;
        medium.asked += 1;
        if medium.fails_at.is_some_and(|at| number >= at) {
            return Err(io::Error::other("the disk fails"));
        }
        apply(&mut medium.image, &operation);
        if let Some(recorded) = &mut medium.recorded {
            recorded.push(operation);
        }
        Ok(())
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.medium().image.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let medium = self.medium();
        let from = offset as usize;
        let found = medium.image.get(from..from + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.ask(Operation::SetLength(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.ask(Operation::Sync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.ask(Operation::Write { offset, data: data.to_vec() })
    }
}
