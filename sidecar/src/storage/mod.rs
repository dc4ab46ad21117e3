//! The disk: redb behind the core's [`synod_paxos::Storage`].
//!
//! ```text
//!  rows   slot        -> ballot, chosen, checksum, value     one row a slot, keys ascending
//!  meta   name        -> identity, promise, watermarks, system state, genesis ...
//!  peers  member      -> the most that was seen of its counters
//!  marks  first index -> slot, count                         which slots added entries to the log
//!  skipped    slot    -> places of calls in the batch           whose entries were not added
//!  snapshots  slot    -> system state                           at marks, from the trim on
//! ```
//! Each commit is one transaction with redb's two-phase commit (docs: decisions/0003). After a failed commit
//! nothing is tried again on the same handle: the process ends (docs: protocol.md, "Integrity").

mod check;
mod disk;
mod encoding;
mod load;
mod offline;
mod read;
mod trim;

pub(crate) use check::check_stored;

pub use disk::{Disk, Mark, Opened, RedbStorage, create, mint_member, open, open_on};
pub use load::Rows;
pub use offline::{Checked, Offline};
pub use read::{LogReader, View};

use std::path::PathBuf;

/// The database's file in a data directory.
pub const FILE: &str = "synod.redb";

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
    #[error("{} holds no member: {FILE} is missing", dir.display())]
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
    /// It cannot be written to.
    #[error("{} cannot be written to: {source}; give it to the user that the sidecar runs as", dir.display())]
    Unwritable {
        /// The data directory.
        dir: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No space is left.
    #[error("the disk of {} is full: make the volume larger or free space, then start again", dir.display())]
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
    /// The database failed.
    #[error("the database failed: {0}")]
    Database(#[from] redb::Error),
}

impl StorageError {
    fn damaged(what: &'static str, why: impl ToString) -> StorageError {
        StorageError::Damaged { what, why: why.to_string() }
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
