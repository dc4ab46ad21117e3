//! The space that is left on the disk, and what is refused where it is little (docs: reliability.md, fault 11).
//!
//! ```text
//!  free space    plenty | low        | full                  | spent
//!                       4 x reserve  reserve                 reserve / 2
//!  told                 a warning    an error                an error
//!  appends              taken        refused at every door   refused at every door
//!  peers' rows          taken        taken, from the reserve only while a quorum has no space either
//! ```
//! Besides, a part of the reserve is a file: when somebody else has filled the volume to the last byte, it is given
//! up, so that a start, reads and a trim go on.

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use synod_paxos::configuration::Configuration;
use synod_paxos::message::Message;
use synod_paxos::status::Status;
use synod_paxos::value::Value;
use synod_paxos::{MemberId, Row};
use synod_storage::inodes;

/// A warning is told where less is free than so many times the reserve.
const LOW: u64 = 4;
/// Of the reserve, one part of so many is the file.
const BALLAST_PARTS: u64 = 4;
/// With fewer inodes than this a warning is told.
const FEW_INODES: u64 = 16;
/// The file that is given up, in the data directory.
const BALLAST: &str = "reserve";

/// How much space is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Room {
    /// Enough.
    Plenty,
    /// Less than four times the reserve: time to make the volume larger or to trim.
    Low,
    /// Less than the reserve: appends are refused.
    Full,
    /// Less than half of the reserve: peers' rows are not taken either while they can do without.
    Spent,
}

impl Room {
    const ALL: [Room; 4] = [Room::Plenty, Room::Low, Room::Full, Room::Spent];

    /// What so many bytes are. Out of a state it takes an eighth more than into it, so that a disk on the border is
    /// told of once.
    fn of(free: u64, reserve: u64, before: Room) -> Room {
        let below = |bound: u64, room: Room| {
            free < if before >= room { bound.saturating_add(bound / 8) } else { bound }
        };
        match () {
            () if below(reserve / 2, Room::Spent) => Room::Spent,
            () if below(reserve, Room::Full) => Room::Full,
            () if below(reserve.saturating_mul(LOW), Room::Low) => Room::Low,
            () => Room::Plenty,
        }
    }
}

/// Why no append is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// This member's disk.
    Own,
    /// The disk of the member that leads.
    Leader,
    /// The disks of so many voters that no quorum has space.
    Quorum,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    reserve: u64,
    free: AtomicU64,
    room: AtomicU8,
    /// Whose disk stands in the way of appends, besides this one: 0 nobody's.
    others: AtomicU8,
    /// That few inodes are left was told.
    few_inodes: AtomicBool,
    /// Peers that said they are full.
    peers: Mutex<BTreeMap<MemberId, bool>>,
}

/// What is known of the space on this disk and on the peers'. Clones speak of the same.
#[derive(Clone, Debug)]
pub struct Space(Arc<Inner>);

impl Space {
    /// Of the disk of `dir`, on which `reserve` bytes are kept for what must go on.
    pub fn new(dir: &Path, reserve: u64) -> Space {
        Space(Arc::new(Inner {
            dir: dir.to_owned(),
            reserve,
            free: AtomicU64::new(u64::MAX),
            room: AtomicU8::new(Room::Plenty as u8),
            others: AtomicU8::new(0),
            few_inodes: AtomicBool::new(false),
            peers: Mutex::default(),
        }))
    }

    fn peers(&self) -> MutexGuard<'_, BTreeMap<MemberId, bool>> {
        // It guards single insertions.
        self.0.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much is left, as of the last look.
    pub fn room(&self) -> Room {
        Room::ALL[usize::from(self.0.room.load(Ordering::Relaxed)).min(Room::ALL.len() - 1)]
    }

    /// Bytes that are free, as of the last look.
    pub fn free(&self) -> u64 {
        self.0.free.load(Ordering::Relaxed)
    }

    /// Free bytes below which appends are refused.
    pub fn reserve(&self) -> u64 {
        self.0.reserve
    }

    /// Why no append may be taken now, if none may.
    pub fn refuses(&self) -> Option<NoRoom> {
        if self.room() >= Room::Full {
            return Some(NoRoom::Own);
        }
        match self.0.others.load(Ordering::Relaxed) {
            0 => None,
            1 => Some(NoRoom::Leader),
            _ => Some(NoRoom::Quorum),
        }
    }

    /// Looks at the disk, and tells of a change once.
    pub fn look(&self) {
        let Some(free) = free(&self.0.dir) else { return };
        self.0.free.store(free, Ordering::Relaxed);
        let before = self.room();
        let now = Room::of(free, self.0.reserve, before);
        self.0.room.store(now as u8, Ordering::Relaxed);
        if now != before {
            tell(before, now, free, &self.0);
        }
        let few = inodes::left(&self.0.dir).is_some_and(|left| left < FEW_INODES);
        if few != self.0.few_inodes.swap(few, Ordering::Relaxed) && few {
            let dir = self.0.dir.display();
            tracing::warn!(%dir, "few inodes are left on the disk: the log needs two for each of its segments");
        }
    }

    /// Whether a look now and then is enough: free space is far from every bound.
    pub fn is_far(&self) -> bool {
        self.free() > self.0.reserve.saturating_mul(4 * LOW)
    }

    /// A peer's word on its own disk.
    pub(crate) fn heard(&self, peer: MemberId, full: bool) {
        let mut peers = self.peers();
        if full || peers.contains_key(&peer) {
            peers.insert(peer, full);
        }
    }

    /// Whether some peer's disk is full.
    pub(crate) fn is_any_peer_full(&self) -> bool {
        self.peers().values().any(|full| *full)
    }

    /// Judges whether the cluster as a whole can take appends; and names, where this member leads and its own disk
    /// alone stands in the way, a voter that could lead instead.
    pub(crate) fn judge(&self, status: &Status, configuration: Option<&Configuration>) -> Option<MemberId> {
        let peers = self.peers().clone();
        let is_full = |member: MemberId| match member == status.member {
            true => self.room() >= Room::Full,
            false => peers.get(&member).copied().unwrap_or(false),
        };
        let leads = status.leader.map(|ballot| ballot.member);
        let with_room: Vec<MemberId> = configuration
            .into_iter()
            .flat_map(|configuration| configuration.voters())
            .filter(|voter| !is_full(*voter))
            .collect();
        let others = match configuration {
            Some(configuration) if with_room.len() < configuration.quorum() => 2,
            _ if leads.is_some_and(is_full) => 1,
            _ => 0,
        };
        self.0.others.store(others, Ordering::Relaxed);
        let stuck = others == 1 && leads == Some(status.member);
        let can_lead = |voter: &MemberId| {
            let peer = status.peers.iter().find(|peer| peer.member == *voter);
            peer.is_some_and(|peer| peer.connected && peer.caught_up)
        };
        with_room.into_iter().find(can_lead).filter(|_| stuck)
    }

    /// Whether a peer's message is dropped, as if it had been lost: it would store entries here, the reserve is half
    /// used up, and a quorum of others has space to keep them.
    pub(crate) fn sheds(&self, message: &Message) -> bool {
        if self.room() < Room::Spent || self.0.others.load(Ordering::Relaxed) == 2 {
            return false;
        }
        match message {
            Message::Accept { value, .. } => has_entries(value),
            Message::Learned { rows, .. } => rows.iter().any(|Row { value, .. }| has_entries(value)),
            _ => false,
        }
    }

    fn ballast(&self) -> (PathBuf, u64) {
        (self.0.dir.join(BALLAST), self.0.reserve / BALLAST_PARTS)
    }

    /// Gives the file up where the disk has less free than it holds, or no inode for another file. Returns whether it was there.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn give_up_ballast(&self) -> io::Result<bool> {
        let (path, size) = self.ballast();
        let has_space = free(&self.0.dir).is_none_or(|free| free >= size);
        if has_space && inodes::left(&self.0.dir) != Some(0) {
            return Ok(false);
        }
        match std::fs::remove_file(&path) {
            Ok(()) => {
                tracing::warn!(bytes = size, "the disk is full: what was kept in reserve is given up");
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Puts the file there again once there is space for it beside the rest of the reserve. `false`: it is missing,
    /// and may be made later.
    pub fn keep_ballast(&self) -> bool {
        let (path, size) = self.ballast();
        if size == 0 || path.metadata().is_ok_and(|found| found.len() == size) {
            return true;
        }
        if self.free() < self.0.reserve.saturating_mul(2) {
            return false;
        }
        let made = allocate(&path, size);
        if made.is_err() {
            // A file without its space is of no use.
            drop(std::fs::remove_file(&path));
        }
        // On a file system that cannot give it space, free space is all there is.
        made.map_or_else(|error| error.kind() == io::ErrorKind::Unsupported, |()| true)
    }
}

/// Bytes that are free on the disk of `dir`; none: nobody can tell.
pub(crate) fn free(dir: &Path) -> Option<u64> {
    let space = statvfs(dir).ok()?;
    Some(space.f_bavail.saturating_mul(space.f_frsize))
}

fn allocate(path: &Path, size: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    match fallocate(&file, FallocateFlags::empty(), 0, size) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Err(io::ErrorKind::Unsupported.into()),
        Err(error) => Err(error.into()),
    }
}

/// Whether a value carries what clients append: what trims, marks and configures is needed on a full disk, too.
fn has_entries(value: &bytes::Bytes) -> bool {
    match Value::decode(value.clone()) {
        Ok(Value::Batch { calls, .. }) => calls.iter().any(|call| call.operation.as_append().is_some()),
        // What cannot be read is the core's to judge.
        Ok(_) | Err(_) => false,
    }
}

fn tell(before: Room, now: Room, free: u64, inner: &Inner) {
    let Inner { dir, reserve, .. } = inner;
    let dir = dir.display();
    match now {
        Room::Plenty => tracing::info!(%dir, free, "the disk has space again"),
        Room::Low if before < Room::Low => tracing::warn!(
            %dir, free, reserve, "the disk is getting full: make the volume larger or keep less of the log"
        ),
        Room::Low => tracing::info!(%dir, free, "the disk has space again: appends are taken"),
        Room::Full if before < Room::Full => {
            tracing::error!(%dir, free, reserve, "the disk is almost full: appends are refused");
        }
        Room::Full => tracing::info!(%dir, free, "the disk has some space again: peers' entries are taken"),
        Room::Spent => tracing::error!(
            %dir, free, reserve, "half of the reserve is used up: entries are not taken from peers either"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_border_is_crossed_once() {
        let mut room = Room::Plenty;
        let mut seen = Vec::new();
        for free in [900, 399, 400, 449, 99, 110, 49, 56, 57, 100, 112, 113, 440, 450, 451] {
            let now = Room::of(free, 100, room);
            if now != room {
                seen.push((free, now));
            }
            room = now;
        }
        let expected = [
            (399, Room::Low),
            (99, Room::Full),
            (49, Room::Spent),
            (56, Room::Full),
            (112, Room::Low),
            (450, Room::Plenty),
        ];
        assert_eq!(seen, expected);
        assert_eq!(Room::of(0, 0, Room::Plenty), Room::Plenty);
    }

    #[test]
    fn the_ballast_is_there_only_where_there_is_space() {
        let dir = tempfile::tempdir().unwrap();
        let space = Space::new(dir.path(), 4 << 20);
        let path = dir.path().join(BALLAST);
        space.look();
        assert!(space.keep_ballast());
        assert_eq!(path.metadata().unwrap().len(), 1 << 20);
        assert!(!space.give_up_ballast().unwrap() && path.exists());
        let huge = Space::new(dir.path(), u64::MAX);
        huge.look();
        assert_eq!((huge.room(), huge.refuses()), (Room::Spent, Some(NoRoom::Own)));
        assert!(huge.give_up_ballast().unwrap() && !path.exists());
        assert!(!huge.keep_ballast() && !path.exists() && !huge.give_up_ballast().unwrap());
    }
}
