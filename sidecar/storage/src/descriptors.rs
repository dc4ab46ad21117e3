//! Open files: how many this process may have, and what to do when there are none left.
//!
//! Connections get a share that is known at the start, the rest is for the disk. Where a file cannot be opened for
//! want of a descriptor all the same, the caller waits: the shortage passes, and a member that ended over it would
//! leave its cluster for nothing.

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit, setrlimit};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Descriptors kept back for the disk, outgoing connections and the runtime, where the limit allows it.
const KEPT_BACK: u64 = 192;
/// Between two attempts to open a file while there are no descriptors.
pub const PAUSE: Duration = Duration::from_millis(50);

/// Opened files that had to wait for a descriptor.
static WAITED: AtomicU64 = AtomicU64::new(0);

/// Raises the soft limit of open files to the hard one; returns the limit in force.
pub fn raise() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let wanted = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
        match setrlimit(Resource::Nofile, wanted) {
            Ok(()) => limit.current = limit.maximum,
            Err(error) => tracing::warn!(%error, "the limit of open files cannot be raised"),
        }
    }
    // None: unlimited.
    limit.current.unwrap_or(u64::MAX)
}

/// The limit of open files in force.
pub fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// How many of `limit` descriptors connections may have.
pub fn for_connections(limit: u64) -> usize {
    usize::try_from(limit - KEPT_BACK.min(limit / 2)).unwrap_or(usize::MAX)
}

/// Whether an operation failed because this process or the machine has no descriptor left.
pub fn is_shortage(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    code == Some(Errno::MFILE.raw_os_error()) || code == Some(Errno::NFILE.raw_os_error())
}

/// Times that something had to wait for a descriptor since the process started.
pub fn waited() -> u64 {
    WAITED.load(Ordering::Relaxed)
}

/// Counts a wait for a descriptor.
pub fn count_wait() {
    WAITED.fetch_add(1, Ordering::Relaxed);
}

/// Runs `open` until it does not fail for want of a descriptor. Blocks its thread meanwhile.
///
/// # Errors
/// Whatever else `open` returns.
pub fn wait<T>(what: &str, mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut waited = false;
    loop {
        match told(what, open(), &mut waited) {
            Some(opened) => return opened,
            None => std::thread::sleep(PAUSE),
        }
    }
}

/// Tells of a wait when it begins and when it is over. None: there was no descriptor.
pub fn told<T>(what: &str, opened: io::Result<T>, waited: &mut bool) -> Option<io::Result<T>> {
    let is_short = opened.as_ref().is_err_and(is_shortage);
    if is_short && !*waited {
        count_wait();
        let limit = limit();
        tracing::warn!(
            what,
            limit,
            "no descriptor is left: waiting; close connections or raise the limit of open files"
        );
    } else if !is_short && *waited {
        tracing::warn!(what, "a descriptor was free again");
    }
    *waited = is_short;
    (!is_short).then_some(opened)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_waited_out_and_nothing_else_is() {
        let mut answers = vec![
            Ok(7),
            Err(io::Error::from_raw_os_error(Errno::NFILE.raw_os_error())),
            Err(io::Error::from_raw_os_error(Errno::MFILE.raw_os_error())),
        ];
        assert_eq!(wait("a file", || answers.pop().expect("no more attempts")).ok(), Some(7));
        let missing = wait("a file", || Err::<(), _>(io::Error::from(io::ErrorKind::NotFound)));
        assert_eq!(missing.map_err(|error| error.kind()), Err(io::ErrorKind::NotFound));
    }

    #[test]
    fn the_disk_keeps_a_part_of_any_limit() {
        for (limit, connections) in [(0, 0), (64, 32), (256, 128), (1_024, 832), (65_536, 65_344)] {
            assert_eq!(for_connections(limit), connections, "{limit}");
        }
    }
}
