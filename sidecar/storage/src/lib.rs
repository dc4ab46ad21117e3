//! The disk: redb behind the core's [`synod_paxos::Storage`].
//!
//! ```text
//!  log/LOCK                     held by the process that has the directory open
//!  log/segment-0000000041.redb  read only; removed when all in it is trimmed
//!  log/segment-0000000042.redb  read only
//!  log/segment-0000000043.redb  every commit is one transaction here
//!
//!  rows   slot        -> ballot, chosen, checksum, value     one row a slot, keys ascending
//!  meta   name        -> identity, promise, watermarks, system state, genesis ... of the newest segment only
//!  counters   member  -> the most that was seen of them      of the newest segment only
//!  marks  first index -> slot, count                         which slots added entries to the log
//!  skipped    slot    -> places of calls in the batch           whose entries were not added
//!  snapshots  slot    -> system state                           at marks, from the trim on
//!  fetched    offset  -> a part of a snapshot                   while it is fetched; of the newest segment only
//! ```
//! Each commit is one transaction with redb's two-phase commit (docs: decisions/0003). After a failed commit
//! nothing is tried again on the same handle: the process ends (docs: protocol.md, "Integrity"). Why the log is in
//! segments: docs: decisions/0009; the layout in full: docs/storage.md.

mod check;
pub mod descriptors;
mod disk;
mod encoding;
mod fetched;
mod files;
pub mod inodes;
mod keeper;
mod load;
mod offline;
mod read;
mod rows;
mod scrub;
mod segment;
mod sums;
mod write;

pub use check::check_stored;
pub use disk::{
    Mark, Opened, create, create_on, mint_member, move_aside, open, open_member, open_on, open_with,
};
pub use files::{DIRECTORY, Files, LEGACY};
pub use load::Rows;
pub use offline::{Checked, Offline, SegmentFile};
pub use read::{LogReader, View};
pub use scrub::{Place, Scrubbed};
pub use write::RedbStorage;

use std::path::PathBuf;

/// How a log is cut into files.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// A segment that holds so much is left for the next one, in bytes, whatever else is kept.
    pub most_bytes: u64,
    /// No segment is left while it holds less, in bytes. Between the two, an eighth of what is kept.
    pub least_bytes: u64,
    /// Whether a thread prepares, closes and removes files; else [`RedbStorage::keep_house`] does.
    pub background: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { most_bytes: 60 << 20, least_bytes: 15 << 20, background: true }
    }
}

/// Why the disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// Another process holds the directory.
    #[error("{} is in use by another process: a data directory belongs to one sidecar at a time", dir.display())]
    InUse {
        /// The data directory.
        dir: PathBuf,
    },
    /// A member lives there already.
    #[error("{} holds a member already: name an empty directory", dir.display())]
    NotEmpty {
        /// The data directory.
        dir: PathBuf,
    },
    /// Nothing to look at.
    #[error("{} holds no member: no file of a log is there", dir.display())]
    Missing {
        /// The data directory.
        dir: PathBuf,
    },
    /// Its last process was killed, and looking must not repair it.
    #[error(
        "{} was not closed cleanly: start and stop the member once, or look at a copy with --copy-to", dir.display()
    )]
    Unclean {
        /// The data directory.
        dir: PathBuf,
    },
    /// The system does not let it be read or written.
    #[error("{} cannot be used: {error}{}", dir.display(), advice(error))]
    Unusable {
        /// The data directory.
        dir: PathBuf,
        /// What the system said; part of the message, so no source of it.
        error: std::io::Error,
    },
    /// No space is left.
    #[error(
        "the disk of {} is full: make the volume larger or free space, then start again{}", dir.display(),
        inodes::advice(dir)
    )]
    Full {
        /// The data directory.
        dir: PathBuf,
    },
    /// Written by another version.
    #[error("{} has format {found}, this program knows format {known}: use the version that wrote it or a newer one", dir.display())]
    UnknownFormat {
        /// The data directory.
        dir: PathBuf,
        /// What the disk says.
        found: u64,
        /// What this program writes.
        known: u64,
    },
    /// Written by an older version, and looking must not change it.
    #[error(
        "{} was written by an older version: start the member once with this one, or look at a copy with --copy-to",
        dir.display()
    )]
    OldFormat {
        /// The data directory.
        dir: PathBuf,
    },
    /// An older version was started on a directory that this one had taken over.
    #[error(
        "{} holds a log in {DIRECTORY}/ and one in {LEGACY}: an older version made the second after the first was \
         taken over from it; move {LEGACY} away, whatever it holds is another member",
        dir.display()
    )]
    TwoFormats {
        /// The data directory.
        dir: PathBuf,
    },
    /// One file of the log cannot be read.
    #[error(
        "{} cannot be read: {why}; `synod-sidecar verify {}` tells what else is damaged; restore the volume, or remove \
         this member and give it an empty one", file.display(), dir.display()
    )]
    File {
        /// The data directory.
        dir: PathBuf,
        /// The file in it.
        file: PathBuf,
        /// How it shows.
        why: String,
    },
    /// The disk belongs to another cluster than the one that was asked for.
    #[error("{} belongs to cluster {found}, not to {wanted}: use an empty directory or the right one", dir.display())]
    OtherCluster {
        /// The data directory.
        dir: PathBuf,
        /// The disk's cluster.
        found: synod_paxos::ClusterId,
        /// What was asked for.
        wanted: synod_paxos::ClusterId,
    },
    /// What stands on the disk cannot be read.
    #[error(
        "{what} on the disk cannot be read: {why}; restore the volume, or remove this member and give it an empty one"
    )]
    Damaged {
        /// Which part.
        what: &'static str,
        /// How it shows.
        why: String,
    },
    /// One row cannot be read, or is not there: a peer's is as good.
    #[error("the row of slot {slot} is damaged on this disk: peers are asked for it")]
    DamagedRow {
        /// Which.
        slot: synod_paxos::Slot,
    },
    /// The database failed.
    #[error("the database failed: {0}")]
    Database(#[from] redb::Error),
}

impl StorageError {
    /// What is on the disk makes no sense; else it could not be looked at.
    pub fn is_damage(&self) -> bool {
        match self {
            StorageError::File { .. } | StorageError::Damaged { .. } | StorageError::DamagedRow { .. } => {
                true
            }
            StorageError::Database(error) => matches!(error, redb::Error::Corrupted(_)),
            _ => false,
        }
    }

    fn damaged(what: &'static str, why: impl ToString) -> StorageError {
        StorageError::Damaged { what, why: why.to_string() }
    }

    fn file(files: &dyn Files, name: &str, why: impl ToString) -> StorageError {
        let dir = files.place().to_owned();
        let file = if name == LEGACY { dir.join(name) } else { dir.join(DIRECTORY).join(name) };
        StorageError::File { dir, file, why: why.to_string() }
    }
}

macro_rules! from_redb {
    ($($error:ty),*) => {
        $(impl From<$error> for StorageError {
            fn from(error: $error) -> Self {
                StorageError::Database(error.into())
            }
        })*
    };
}

from_redb!(redb::StorageError, redb::TableError, redb::TransactionError, redb::CommitError);

/// What a person can do where a directory cannot be used.
fn advice(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => "; give it to the user that the sidecar runs as",
        std::io::ErrorKind::ReadOnlyFilesystem => "; mount its volume for writing",
        std::io::ErrorKind::NotADirectory => "; name a directory",
        _ if files::is_shortage(error) => {
            "; nothing is said of what is on the disk: raise what the process may have (`ulimit -n`, memory)"
        }
        _ => "",
    }
}
