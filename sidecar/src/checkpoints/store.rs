//! The folder that holds this member's checkpoints.

use super::Error;
use super::file::{self, Bad, DAMAGED, Held, Name, PART, TEMPORARY, WHOLE, Writing, sync};
use crate::{descriptors, space};
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use synod_paxos::Index;
use synod_paxos::value::Checkpoint;
use tokio::sync::OwnedMutexGuard;

/// The folder's name in the data directory.
pub const FOLDER: &str = "checkpoints";
/// How long a part stays that nobody goes on with.
const PART_PATIENCE: Duration = Duration::from_secs(3_600);
/// How long a whole checkpoint stays that the log does not name yet: its entry may be under way.
const PENDING_PATIENCE: Duration = Duration::from_secs(3_600);

/// The right to write the file of one checkpoint; others wait. What writes holds it, too: a thread goes on where
/// whoever waited for it went away.
pub(super) type Claim = Arc<OwnedMutexGuard<()>>;

/// Files of checkpoints, and who writes which. Functions that touch files block.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    /// Free bytes that are left to the log.
    reserve: u64,
    claims: Mutex<HashMap<Name, Arc<tokio::sync::Mutex<()>>>>,
    next_temporary: AtomicU64,
    /// Since when a whole checkpoint was seen here that the log does not name.
    pending: Mutex<HashMap<Name, Instant>>,
    /// Whole checkpoints here that the log named when it was looked at last.
    named: Mutex<HashSet<Name>>,
}

impl Store {
    /// The folder in `data_dir`. What the last process left half without a name is removed.
    pub(super) fn open(data_dir: &Path, reserve: u64) -> Store {
        let dir = data_dir.join(FOLDER);
        for (path, _) in files(&dir).into_iter().filter(|(path, _)| has_kind(path, TEMPORARY)) {
            if let Err(error) = file::remove(&path) {
                tracing::warn!(%error, path = %path.display(), "a leftover cannot be removed");
            }
        }
        // What the last process renamed it may not have synced; from here on whatever is seen is counted on.
        if dir.is_dir()
            && let Err(error) = sync(data_dir).and_then(|()| sync(&dir))
        {
            tracing::error!(%error, dir = %dir.display(), "the folder of checkpoints cannot be synced");
        }
        let (claims, pending, named) = (Mutex::default(), Mutex::default(), Mutex::default());
        Store { dir, reserve, claims, next_temporary: AtomicU64::new(1), pending, named }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the folder, if it is not there.
    fn folder(&self) -> io::Result<()> {
        if !self.dir.is_dir() {
            fs::create_dir_all(&self.dir)?;
            self.dir.parent().map_or(Ok(()), sync)?;
        }
        Ok(())
    }

    fn path(&self, name: &Name, kind: &str) -> PathBuf {
        self.dir.join(name.file(kind))
    }

    /// Waits until nobody else writes this checkpoint.
    pub(super) async fn claim(&self, name: Name) -> Claim {
        let lock = {
            // Nothing can panic under this lock: it guards single insertions and removals.
            let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
            claims.retain(|_, lock| Arc::strong_count(lock) > 1);
            claims.entry(name).or_default().clone()
        };
        Arc::new(lock.lock_owned().await)
    }

    fn is_claimed(&self, name: &Name) -> bool {
        let claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        claims.get(name).is_some_and(|lock| Arc::strong_count(lock) > 1)
    }

    /// Whether the whole file is here; its blocks are judged as they are read.
    pub(super) fn has(&self, checkpoint: &Checkpoint) -> bool {
        self.path(&Name::of(checkpoint), WHOLE).is_file()
    }

    /// The whole checkpoint.
    pub(super) fn held(&self, checkpoint: &Checkpoint) -> Result<Held, Bad> {
        let name = Name::of(checkpoint);
        Held::open(&self.path(&name, WHOLE), &name)
    }

    /// Moves a damaged file aside: it is never read again, and a good copy can take its place. `held` is how it was
    /// read; false: it was aside already.
    pub(super) fn condemn(
        &self,
        checkpoint: &Checkpoint,
        held: Option<&Held>,
        bad: &Bad,
    ) -> io::Result<bool> {
        let name = Name::of(checkpoint);
        let path = self.path(&name, WHOLE);
        // Another reader may have found it first: a good copy may be in its place already.
        if held.is_some_and(|held| !held.is_at(&path)) {
            return Ok(false);
        }
        tracing::error!(path = %path.display(), %bad, "a checkpoint is damaged: it is fetched again from a peer");
        match fs::rename(&path, self.path(&name, DAMAGED)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// How many of a checkpoint's bytes stand here.
    pub(super) fn standing(&self, checkpoint: &Checkpoint) -> u64 {
        let name = Name::of(checkpoint);
        if self.has(checkpoint) {
            return checkpoint.length;
        }
        let part = fs::metadata(self.path(&name, PART));
        part.map_or(0, |part| part.len().min(checkpoint.length))
    }

    /// Begins the file of a checkpoint that is claimed, or goes on with its part.
    pub(super) fn resume(&self, checkpoint: &Checkpoint, claim: Claim) -> Result<Writing, Error> {
        let path = self.path(&Name::of(checkpoint), PART);
        let begin = self.folder().and_then(|()| Writing::resume(path, checkpoint.length, claim));
        let writing = begin.map_err(|error| self.failed(error))?;
        if let Err(error) = self.room_for(checkpoint.length - writing.length()) {
            writing.discard();
            return Err(error);
        }
        Ok(writing)
    }

    /// Begins the file of a checkpoint whose digest nobody knows yet.
    pub(super) fn begin(&self) -> Result<Writing, Error> {
        let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("{number}.{TEMPORARY}"));
        let begin = self.folder().and_then(|()| Writing::temporary(path));
        begin.map_err(|error| self.failed(error))
    }

    /// Whether so many bytes more leave the log what is reserved for it.
    pub(super) fn room_for(&self, bytes: u64) -> Result<(), Error> {
        let Some(free) = space::free(&self.dir) else { return Ok(()) };
        let free = free.saturating_sub(self.reserve);
        if bytes > free { Err(Error::Full { needed: bytes, free }) } else { Ok(()) }
    }

    /// Names what the system said.
    pub(super) fn failed(&self, source: io::Error) -> Error {
        if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
            return Error::Full { needed: 0, free: 0 };
        }
        Error::Disk { dir: self.dir.clone(), source }
    }

    /// Removes what is of no use any more, where the log names `named`; gives those that have been here for long
    /// without a name: they may go once it is certain that the log does not name them.
    ///
    /// A whole checkpoint at or behind the newest named index stays that the log has not named yet: this member may
    /// have told another that it has it, and the entry that names it may be under way, or not applied here yet. One
    /// that the log named and names no more, since another state was saved at its index, goes at once; if it is saved
    /// again, [`Store::expect`] says so.
    pub(super) fn sweep(&self, named: &[Checkpoint]) -> Vec<Name> {
        let newest = named.last().map_or(Index(0), |newest| newest.index);
        let is_named = |name: &Name| named.iter().any(|checkpoint| Name::of(checkpoint) == *name);
        let mut seen = HashMap::new();
        let mut before = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        for (path, modified) in files(&self.dir) {
            let Some(file) = path.file_name().and_then(|file| file.to_str()) else { continue };
            let Some((name, kind)) = Name::parse(file) else { continue };
            if self.is_claimed(&name) {
                continue;
            }
            let superseded = !is_named(&name) && (name.index < newest || before.contains(&name));
            let gone = match kind {
                WHOLE if superseded => true,
                WHOLE => {
                    if !is_named(&name) {
                        let since = pending.get(&name).copied().unwrap_or_else(Instant::now);
                        seen.insert(name, since);
                    }
                    false
                }
                PART => superseded || self.path(&name, WHOLE).is_file() || is_old(modified),
                DAMAGED => !is_named(&name) || self.path(&name, WHOLE).is_file(),
                _ => false,
            };
            if gone {
                self.remove(&path);
            }
        }
        *before = named.iter().map(Name::of).collect();
        *pending = seen;
        pending
            .iter()
            .filter(|(_, since)| since.elapsed() > PENDING_PATIENCE)
            .map(|(name, _)| *name)
            .collect()
    }

    /// Somebody counts on this checkpoint again: an entry that names it may come.
    pub(super) fn expect(&self, checkpoint: &Checkpoint) {
        self.named.lock().unwrap_or_else(PoisonError::into_inner).remove(&Name::of(checkpoint));
    }

    /// Removes a whole checkpoint that the log certainly does not name.
    pub(super) fn forget(&self, name: &Name) {
        if !self.is_claimed(name) {
            self.remove(&self.path(name, WHOLE));
        }
    }

    fn remove(&self, path: &Path) {
        match file::remove(path) {
            Ok(()) => tracing::info!(path = %path.display(), "a checkpoint that is not needed was removed"),
            Err(error) => tracing::warn!(%error, path = %path.display(), "a checkpoint cannot be removed"),
        }
    }
}

fn has_kind(path: &Path, kind: &str) -> bool {
    path.extension().is_some_and(|found| *found == *OsString::from(kind))
}

fn is_old(modified: Option<SystemTime>) -> bool {
    let age = modified.and_then(|modified| modified.elapsed().ok());
    age.is_some_and(|age| age > PART_PATIENCE)
}

/// The files of a folder and when they were written last; a folder that is not there holds none.
fn files(dir: &Path) -> Vec<(PathBuf, Option<SystemTime>)> {
    let Ok(entries) = descriptors::wait("the checkpoints", || fs::read_dir(dir)) else { return Vec::new() };
    let file = |entry: fs::DirEntry| {
        let modified = entry.metadata().and_then(|metadata| metadata.modified()).ok();
        (entry.path(), modified)
    };
    entries.flatten().map(file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use synod_paxos::Digest;

    fn save(store: &Store, index: u64, bytes: &[u8]) -> Checkpoint {
        let mut writing = store.begin().unwrap();
        writing.push(bytes).unwrap();
        writing.finish(store.dir(), Index(index)).unwrap()
    }

    fn kept(store: &Store) -> Vec<String> {
        let mut names: Vec<_> = files(store.dir())
            .iter()
            .map(|(path, _)| path.file_name().unwrap().to_str().unwrap().into())
            .collect();
        names.sort();
        names
    }

    /// A state that is saved again at its index takes the place of the last one, at once.
    #[test]
    fn what_the_log_names_no_more_goes_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 0);
        for round in 0..20_u8 {
            let saved = save(&store, 1, &[round; 100]);
            store.sweep(&[saved]);
            assert_eq!(kept(&store), [Name::of(&saved).file(WHOLE)], "round {round}");
        }
        // One that is saved once more is counted on again, until the log has named it.
        let (one, other) = (save(&store, 1, b"one"), save(&store, 1, b"other"));
        store.sweep(&[one]);
        store.expect(&one);
        store.sweep(&[other]);
        assert!(store.has(&one) && store.has(&other));
        store.sweep(&[one]);
        assert!(store.has(&one) && !store.has(&other));
    }

    /// docs: decisions/0010: what a peer may have counted stays until it is certain that the log does not name it.
    #[tokio::test]
    async fn what_may_have_been_counted_stays() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 0);
        let old = save(&store, 1, b"old");
        let named = save(&store, 5, b"named");
        let (same, newer) = (save(&store, 5, b"at the same index"), save(&store, 9, b"newer"));
        let file = |checkpoint: &Checkpoint, kind| Name::of(checkpoint).file(kind);
        // Where the log names nothing yet, nothing is old.
        assert!(store.sweep(&[]).is_empty() && kept(&store).len() == 4);
        assert!(store.sweep(&[named]).is_empty());
        let mut expected = [&named, &same, &newer].map(|checkpoint| file(checkpoint, WHOLE));
        expected.sort();
        assert_eq!(kept(&store), expected);
        assert!(!store.has(&old) && store.has(&newer));
        // Parts: of what is whole, of what is old, of what may still come; and one that somebody writes.
        let part =
            |index, digest| Checkpoint { index: Index(index), length: 9, digest: Digest([digest; 32]) };
        let (late, coming, written) = (part(2, 1), part(9, 2), part(3, 3));
        for checkpoint in [&named, &late, &coming, &written] {
            fs::write(store.dir().join(file(checkpoint, PART)), b"some").unwrap();
        }
        fs::write(store.dir().join(file(&named, DAMAGED)), b"bad").unwrap();
        let claim = store.claim(Name::of(&written)).await;
        store.sweep(&[named]);
        assert_eq!(kept(&store).len(), 5);
        assert_eq!((store.standing(&coming), store.standing(&written), store.standing(&late)), (4, 4, 0));
        drop(claim);
        store.sweep(&[named, newer]);
        let mut expected = vec![file(&named, WHOLE), file(&newer, WHOLE), file(&coming, PART)];
        expected.sort();
        assert_eq!(kept(&store), expected);
    }
}
