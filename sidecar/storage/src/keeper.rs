//! What is done to files off the hot path: preparing the next segment, closing the last one, removing those that are
//! trimmed.

use crate::StorageError;
use crate::files::Files;
use crate::segment::{Older, Segment, file_name, give_up, prepare};
use crate::sums::sums_name;
use std::collections::BTreeSet;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Between two looks at files that somebody is reading in.
const RETRY: Duration = Duration::from_millis(200);
/// Between two looks at a segment that is being prepared.
const LOOK: Duration = Duration::from_millis(2);

/// One thing to do.
#[derive(Debug)]
pub(crate) enum Job {
    Prepare(u64),
    /// Close it, or repair what a killed process left.
    Settle(Arc<Older>),
    /// Remove it once nobody can read in it any more. It is not listed in the newest segment by then.
    Remove(Arc<Older>),
}

/// What the writer and the keeper tell each other.
#[derive(Debug, Default)]
struct House {
    next: Option<Segment>,
    /// The next segment was asked for.
    asked: bool,
    /// Segments that may not be closed cleanly.
    unsettled: BTreeSet<u64>,
    failed: Option<StorageError>,
}

type Shared = Arc<Mutex<House>>;

fn locked(house: &Shared) -> MutexGuard<'_, House> {
    // Each change under it is a single assignment.
    house.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The one who does it: a thread, or whoever calls [`Keeper::work`].
#[derive(Debug)]
pub(crate) struct Keeper {
    house: Shared,
    worker: Worker,
    jobs: Option<Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// The jobs that wait, in order.
#[derive(Debug)]
struct Worker {
    files: Arc<dyn Files>,
    house: Shared,
    waiting: Vec<Job>,
}

impl Keeper {
    /// Starts the thread where `background` asks for one; it ends with the keeper.
    pub(crate) fn start(files: Arc<dyn Files>, background: bool) -> Result<Keeper, StorageError> {
        let house = Shared::default();
        let worker = || Worker { files: files.clone(), house: house.clone(), waiting: Vec::new() };
        let (mut jobs, mut thread) = (None, None);
        if background {
            let (sender, receiver) = channel();
            let keeping = worker();
            let started =
                thread::Builder::new().name("synod-keeper".to_owned()).spawn(move || keeping.run(&receiver));
            thread = Some(started.map_err(|error| StorageError::Database(redb::Error::Io(error)))?);
            jobs = Some(sender);
        }
        Ok(Keeper { house: house.clone(), worker: worker(), jobs, thread })
    }

    pub(crate) fn post(&mut self, job: Job) {
        match &job {
            Job::Prepare(_) => locked(&self.house).asked = true,
            Job::Settle(older) => drop(locked(&self.house).unsettled.insert(older.summary.number)),
            Job::Remove(older) => drop(locked(&self.house).unsettled.remove(&older.summary.number)),
        }
        match &self.jobs {
            // It ends before its sender only when it has failed, and said so.
            Some(jobs) => drop(jobs.send(job)),
            None => self.worker.add(job),
        }
    }

    /// Does what waits, where no thread does it.
    pub(crate) fn work(&mut self) {
        self.worker.turn();
    }

    /// Why it ended, once.
    ///
    /// # Errors
    /// That.
    pub(crate) fn check(&self) -> Result<(), StorageError> {
        locked(&self.house).failed.take().map_or(Ok(()), Err)
    }

    /// The next segment, if it is ready.
    pub(crate) fn take_next(&self) -> Option<Segment> {
        let mut house = locked(&self.house);
        let next = house.next.take()?;
        house.asked = false;
        Some(next)
    }

    /// The next segment at once: the current one must not be written to any more. One that is being prepared meanwhile
    /// is waited for.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(crate) fn next_now(&mut self, number: u64) -> Result<Segment, StorageError> {
        loop {
            if let Some(next) = self.take_next() {
                return Ok(next);
            }
            self.check()?;
            if !self.is_asked() {
                return prepare(&self.worker.files, number);
            }
            match self.thread {
                Some(_) => thread::sleep(LOOK),
                None => self.work(),
            }
        }
    }

    /// Whether the next segment was asked for and has not been taken.
    pub(crate) fn is_asked(&self) -> bool {
        locked(&self.house).asked
    }

    /// All segments below `current` and up to this number are closed cleanly.
    pub(crate) fn closed_through(&self, current: u64) -> u64 {
        locked(&self.house).unsettled.first().copied().unwrap_or(current).min(current) - 1
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been told by its hook.
            drop(thread.join());
        }
    }
}

impl Worker {
    fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            let next = match self.waiting.is_empty() {
                true => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => jobs.recv_timeout(RETRY),
            };
            match next {
                Ok(job) => self.add(job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.turn();
                    return;
                }
            }
            self.turn();
            if locked(&self.house).failed.is_some() {
                return;
            }
        }
    }

    fn add(&mut self, job: Job) {
        if let Job::Remove(gone) = &job {
            let number = gone.summary.number;
            // Nobody needs it closed any more.
            self.waiting.retain(|job| !matches!(job, Job::Settle(older) if older.summary.number == number));
        }
        self.waiting.push(job);
    }

    /// Does each job that can be done now.
    fn turn(&mut self) {
        for job in std::mem::take(&mut self.waiting) {
            match self.attempt(job) {
                Ok(later) => self.waiting.extend(later),
                Err(error) => {
                    // Nothing is tried again on a disk that failed.
                    self.waiting.clear();
                    locked(&self.house).failed = Some(error);
                    return;
                }
            }
        }
    }

    /// Gives the job back if it must wait for a reader.
    fn attempt(&self, job: Job) -> Result<Option<Job>, StorageError> {
        match job {
            Job::Prepare(number) => match prepare(&self.files, number) {
                Ok(next) => locked(&self.house).next = Some(next),
                Err(StorageError::Full { .. }) => {
                    give_up(&*self.files, number);
                    tracing::warn!(
                        "no space for the next segment of the log: the one that is written grows on"
                    );
                    locked(&self.house).asked = false;
                }
                Err(error) => return Err(error),
            },
            Job::Settle(older) => {
                match older.settle() {
                    Ok(true) => drop(locked(&self.house).unsettled.remove(&older.summary.number)),
                    Ok(false) => return Ok(Some(Job::Settle(older))),
                    // It stays unsettled, and only its readers are told: nothing new depends on it.
                    Err(error) if error.is_damage() => {
                        tracing::error!(%error, "an older segment is damaged");
                    }
                    Err(error) => return Err(error),
                }
            }
            Job::Remove(older) => {
                let number = older.summary.number;
                // Every layout that knows it holds it, and no new one will.
                if Arc::strong_count(&older) > 1 {
                    return Ok(Some(Job::Remove(older)));
                }
                drop(older);
                self.remove(number)?;
            }
        }
        Ok(None)
    }

    /// A removal that a power cut undoes is repeated by the next start: it needs no sync.
    fn remove(&self, number: u64) -> Result<(), StorageError> {
        let file = file_name(number);
        for name in [sums_name(&file), file] {
            match self.files.remove(&name) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StorageError::Unusable { dir: self.files.place().to_owned(), error });
                }
                _ => {}
            }
        }
        Ok(())
    }
}
