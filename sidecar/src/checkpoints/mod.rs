//! Checkpoints of the application: its state at an index, streamed in and out, kept beside the log in
//! `DIR/checkpoints` by every member (docs: protocol.md, "Snapshots, checkpoints, trim"; decisions/0010).
//!
//! ```text
//!  application --Save--> file --Hold--> peers pull it --a quorum has it--> SaveCheckpoint in the log
//!                          ^                                                     |
//!  application <--Fetch----+------Read---- any member that has it <--keeper------+ members that lack it
//! ```
//! The log is not trimmed past the newest checkpoint that it names, so that entry may only stand in it once a quorum
//! has the state on disk. A state lies in a file of its own, never in memory as a whole, and is checked by its digest
//! before it gets its name, and block by block whenever it is read.

mod file;
mod keeper;
mod offline;
mod peer;
mod pull;
mod save;
mod store;

pub use keeper::Keeper;
pub use offline::{Standing, copy, look};
pub use peer::PeerCheckpointsService;
pub use save::Saving;
pub use store::FOLDER;

use crate::driver::{Application, Unanswered};
use crate::pace::Pace;
use crate::shared::Shared;
use crate::telemetry::Metrics;
use crate::transport::Context;
use bytes::Bytes;
use file::{Bad, Held};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::Store;
use synod_paxos::value::Checkpoint;
use synod_paxos::{Digest, Index, MemberId};
use synod_proto::v1;
use tokio::sync::{Notify, Semaphore};

/// A message's largest part of a state, in bytes.
pub const CHUNK_BYTES: usize = 1 << 20;
/// States that one member takes in at a time.
const SAVES: usize = 8;
/// What one member gives its peers, in all: bytes a second (docs: decisions/0010).
const PEER_RATE: u64 = 128 << 20;

/// Why a checkpoint cannot be saved, fetched or pulled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk has no space for it.
    #[error(
        "the disk of this member has no space for the checkpoint: make the volume larger, or save a smaller state"
    )]
    Full {
        /// Bytes that were to be written; 0: the system said so.
        needed: u64,
        /// Bytes that were free beside what is reserved for the log.
        free: u64,
    },
    /// The system refused.
    #[error("{} cannot be used for checkpoints: {source}", dir.display())]
    Disk {
        /// The folder.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What came is not what was announced.
    #[error(
        "what came is not the state that was announced (its SHA-256 or its length differs): send it again"
    )]
    Mismatch,
    /// A part was announced that does not stand here.
    #[error("{standing} bytes of this state stand here: go on behind them")]
    Offset {
        /// How many.
        standing: u64,
    },
    /// The index is beyond what this member has applied.
    #[error("the log ends at index {tail} here: a state can hold entries up to that one only")]
    BeyondTail {
        /// The last index applied here.
        tail: Index,
    },
    /// What follows the index is trimmed.
    #[error("the log begins at index {first} now: nobody could go on from a state at an earlier index")]
    Compacted {
        /// The first index.
        first: Index,
    },
    /// A newer one is there.
    #[error("there is a checkpoint at index {newest} already: an older one is of no use")]
    Superseded {
        /// The newest index.
        newest: Index,
    },
    /// Too many at a time.
    #[error("{SAVES} checkpoints are being saved here already: try again later")]
    Busy,
    /// No such checkpoint is known.
    #[error("the log names no such checkpoint: look at the list")]
    Unknown,
    /// It is not known here yet.
    #[error("this member has not caught up since it started: try again in a moment, or fetch elsewhere")]
    Behind,
    /// Nobody who can be reached has it.
    #[error("no member that can be reached has the checkpoint whole: {0}")]
    NobodyHasIt(String),
    /// The core did not answer, or refused.
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
    /// This member belongs to no cluster.
    #[error("this member belongs to no cluster")]
    NotActive,
    /// The process goes down.
    #[error("this member is stopping: try again in a moment")]
    Stopping,
}

/// A checkpoint as a message names it; `None`: it names none.
pub(crate) fn named(wire: Option<v1::Checkpoint>) -> Option<Checkpoint> {
    let v1::Checkpoint { index, length, digest } = wire?;
    Some(Checkpoint { index: Index(index), length, digest: Digest(digest.as_ref().try_into().ok()?) })
}

/// The same, on its way out.
pub(crate) fn out(checkpoint: &Checkpoint) -> v1::Checkpoint {
    let Checkpoint { index, length, digest } = checkpoint;
    v1::Checkpoint { index: index.0, length: *length, digest: Bytes::copy_from_slice(&digest.0) }
}

struct Inner {
    shared: Arc<Shared>,
    context: Context,
    metrics: Arc<Metrics>,
    store: Store,
    saves: Arc<Semaphore>,
    pace: Pace,
    /// Something is to be fetched or looked at again.
    wake: Notify,
}

/// This member's checkpoints; clones share them.
#[derive(Clone)]
pub struct Checkpoints(Arc<Inner>);

/// A checkpoint of the list.
#[derive(Clone, Copy, Debug)]
pub struct Listed {
    /// As the log names it.
    pub checkpoint: Checkpoint,
    /// It is on this disk.
    pub here: bool,
}

impl Checkpoints {
    /// Opens the folder in `data_dir`. Below `reserve` free bytes the log takes no appends; what is taken in here leaves
    /// twice as many, so that it stops first. Blocks for a moment.
    pub fn open(context: Context, metrics: Arc<Metrics>, data_dir: &Path, reserve: u64) -> Checkpoints {
        Checkpoints(Arc::new(Inner {
            shared: context.shared.clone(),
            context,
            metrics,
            store: Store::open(data_dir, reserve.saturating_mul(2)),
            saves: Arc::new(Semaphore::new(SAVES)),
            pace: Pace::new(PEER_RATE),
            wake: Notify::new(),
        }))
    }

    /// The member behind it.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    fn me(&self) -> MemberId {
        self.0.shared.identity().borrow().member
    }

    async fn application(&self) -> Result<Application, Error> {
        Ok(self.0.shared.handle().application().await?)
    }

    /// What the log names, as far as it is applied here: ascending by index.
    ///
    /// # Errors
    /// If the core has stopped.
    pub async fn list(&self) -> Result<Vec<Listed>, Error> {
        let named = self.application().await?.checkpoints;
        let listed =
            named.into_iter().map(|checkpoint| Listed { checkpoint, here: self.0.store.has(&checkpoint) });
        Ok(listed.collect())
    }

    /// The checkpoint that the log names at `index`, or the newest; with a digest only that one.
    ///
    /// # Errors
    /// [`Error::Unknown`] where there is none.
    pub async fn named(&self, index: Option<Index>, digest: Option<Digest>) -> Result<Checkpoint, Error> {
        let named = self.application().await?.checkpoints;
        let found = match index {
            Some(index) => named.iter().find(|checkpoint| checkpoint.index == index),
            None => named.last(),
        };
        let found = found.filter(|found| digest.is_none_or(|digest| found.digest == digest));
        found.copied().ok_or(Error::Unknown)
    }

    /// How many of a state's bytes stand here.
    pub fn standing(&self, checkpoint: &Checkpoint) -> u64 {
        self.0.store.standing(checkpoint)
    }

    /// The checkpoint on this disk; `None`: it is not here, or damaged.
    async fn open_here(&self, checkpoint: Checkpoint) -> Option<Local> {
        let this = self.clone();
        match blocking(move || this.held(&checkpoint)).await {
            Ok(held) => Some(Local { checkpoints: self.clone(), checkpoint, held: Arc::new(held?) }),
            Err(error) => {
                tracing::warn!(%error, index = checkpoint.index.0, "a checkpoint cannot be read");
                None
            }
        }
    }

    /// Blocks. A file that is damaged is moved aside, and the keeper told.
    fn held(&self, checkpoint: &Checkpoint) -> io::Result<Option<Held>> {
        match self.0.store.held(checkpoint) {
            Ok(held) => Ok(Some(held).filter(|held| held.length() == checkpoint.length)),
            Err(Bad::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(bad) if bad.is_damage() => self.condemn(checkpoint, None, &bad).map(|()| None),
            Err(bad) => Err(io::Error::other(bad)),
        }
    }

    /// Blocks.
    fn condemn(&self, checkpoint: &Checkpoint, held: Option<&Held>, bad: &Bad) -> io::Result<()> {
        if self.0.store.condemn(checkpoint, held, bad)? {
            self.0.metrics.checkpoints_damaged.inc();
        }
        self.0.wake.notify_one();
        Ok(())
    }
}

/// A checkpoint on this disk, open.
#[derive(Clone)]
struct Local {
    checkpoints: Checkpoints,
    checkpoint: Checkpoint,
    held: Arc<Held>,
}

impl Local {
    /// The bytes from `offset` to the end of their block, checked; `None`: they are damaged, or cannot be read.
    async fn read(&self, offset: u64) -> Option<Bytes> {
        let this = self.clone();
        let reading = blocking(move || match this.held.read(offset) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(bad) if bad.is_damage() => {
                this.checkpoints.condemn(&this.checkpoint, Some(&this.held), &bad).map(|()| None)
            }
            Err(bad) => Err(io::Error::other(bad)),
        });
        reading.await.unwrap_or_else(|error| {
            tracing::warn!(%error, index = self.checkpoint.index.0, "a checkpoint cannot be read");
            None
        })
    }
}

impl std::fmt::Debug for Checkpoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Checkpoints").field(&self.0.store).finish()
    }
}

/// Runs what blocks on a thread that may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // Only a runtime that goes down cancels it, and with it whoever waits here.
        Err(_) => std::future::pending().await,
    }
}
