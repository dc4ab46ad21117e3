//! The threads that touch the disk: one writes, one reads views.
//!
//! While one transaction syncs, everything that arrives queues and goes into the next one (docs:
//! architecture.md, "synod-sidecar"). Views have a thread of their own, so that they never wait behind a sync.

use crate::storage::{LogReader, Mark, RedbStorage, StorageError, View};
use crate::telemetry::Metrics;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};
use synod_paxos::message::ViewId;
use synod_paxos::{Completed, Row, Slot, WriteBatch, storage};

/// Values in one transaction, in bytes: what is above waits for the next one.
const TRANSACTION_BYTES: usize = 16 << 20;
/// A view that could not be read says so after this long: it is asked again at once.
const AGAIN: Duration = Duration::from_millis(50);

/// What the writer is handed.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) batch: WriteBatch,
    pub(super) marks: Vec<Mark>,
    /// Every slot up to it that added entries has its mark here or in an earlier job.
    pub(super) noted: Slot,
    /// The log's format level.
    pub(super) level: u32,
}

/// What a thread answers.
#[derive(Debug)]
pub(crate) enum Done {
    /// And the slot up to which all marks are durable.
    Persisted(Completed, Slot),
    ViewRows {
        view: ViewId,
        rows: Vec<Row>,
        end: bool,
    },
    /// A snapshot that was to be read; none: it cannot be, and whether damage is why.
    Snapshot {
        slot: Slot,
        state: Option<Bytes>,
        damaged: bool,
    },
    Failed(StorageError),
}

/// What the reader is asked.
#[derive(Debug)]
pub(super) enum ViewJob {
    Open(ViewId, View),
    Read { view: ViewId, from: Slot, bytes: usize },
    Close(ViewId),
    Snapshot { slot: Slot, reader: LogReader },
}

/// Starts the writer; it ends when its sender is dropped, after the last job, or with the first error.
pub(super) fn start_writer(
    mut storage: RedbStorage,
    metrics: Arc<Metrics>,
    answer: impl Fn(Done) + Send + 'static,
) -> io::Result<(Sender<Job>, thread::JoinHandle<()>)> {
    let (sender, jobs) = channel();
    let thread = thread::Builder::new().name("synod-disk".to_owned()).spawn(move || {
        while let Some(batches) = next_group(&jobs, &mut storage) {
            let began = Instant::now();
            metrics.commit_batches.inc_by(batches.len() as u64);
            match storage::commit(batches, &mut storage) {
                Ok(Some(completed)) => {
                    metrics.commit_seconds.observe(began.elapsed().as_secs_f64());
                    answer(Done::Persisted(completed, storage.marked()));
                }
                Ok(None) => {}
                Err(error) => {
                    answer(Done::Failed(error));
                    return;
                }
            }
        }
    })?;
    Ok((sender, thread))
}

/// Everything that is queued, up to the bound; none when there will be no more.
fn next_group(jobs: &Receiver<Job>, storage: &mut RedbStorage) -> Option<Vec<WriteBatch>> {
    let mut batches = Vec::new();
    let mut bytes = 0;
    let mut next = jobs.recv().ok();
    while let Some(Job { batch, marks, noted, level }) = next {
        storage.add_marks(marks, noted);
        storage.note_level(level);
        bytes += batch.value_bytes();
        batches.push(batch);
        next = if bytes < TRANSACTION_BYTES { jobs.try_recv().ok() } else { None };
    }
    (!batches.is_empty()).then_some(batches)
}

/// Starts the reader; it ends when its sender is dropped.
pub(super) fn start_viewer(
    answer: impl Fn(Done) + Send + 'static,
) -> io::Result<(Sender<ViewJob>, thread::JoinHandle<()>)> {
    let (sender, jobs) = channel();
    let thread = thread::Builder::new().name("synod-views".to_owned()).spawn(move || {
        let mut views: BTreeMap<ViewId, View> = BTreeMap::new();
        for job in jobs {
            match job {
                ViewJob::Open(id, view) => drop(views.insert(id, view)),
                ViewJob::Close(id) => drop(views.remove(&id)),
                ViewJob::Snapshot { slot, reader } => {
                    let read = reader.snapshot(slot);
                    if let Err(error) = &read {
                        tracing::error!(%error, slot = slot.0, "a peer wants a snapshot that cannot be read now");
                    }
                    let damaged = read.as_ref().is_err_and(StorageError::is_damage);
                    answer(Done::Snapshot { slot, state: read.ok(), damaged });
                }
                ViewJob::Read { view: id, from, bytes } => {
                    // Damaged rows are shown as such. What cannot be looked at now is asked for again, here or elsewhere:
                    // no member ends over what only a peer wants to read.
                    let (rows, end) = match views.get(&id).map(|view| view.read(from, bytes)) {
                        Some(Ok(read)) => read,
                        Some(Err(error)) => {
                            tracing::error!(%error, from = from.0, "a peer wants rows that cannot be read now");
                            thread::sleep(AGAIN);
                            (Vec::new(), false)
                        }
                        None => (Vec::new(), false),
                    };
                    answer(Done::ViewRows { view: id, rows, end });
                }
            }
        }
    })?;
    Ok((sender, thread))
}
