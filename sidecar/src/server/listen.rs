//! Listeners: Unix sockets that appear ready or not at all, and TCP ports.

use crate::descriptors;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tokio::net::{TcpListener, UnixListener, UnixStream};

/// The kernel's bound on a socket path, in bytes (`sun_path` less its terminating zero).
pub const SOCKET_PATH_BYTES: usize = 107;
/// A listener cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The kernel cannot take the path.
    #[error(
        "{} is {} bytes long: a socket path has at most 107 bytes; choose a shorter --socket or --data-dir",
        path.display(),
        path.as_os_str().len()
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// A living process listens there.
    #[error("{} is in use by a running process: stop it, or choose another path", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Something else stands at the path.
    #[error("{} exists and is no socket: it was left as it is; choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot listen on {place}: {source}{}", about(place))]
    System {
        /// A path or an address.
        place: String,
        /// What the system said.
        source: io::Error,
    },
}

/// What to say of the place beside what the system said.
fn about(place: &str) -> &'static str {
    Path::new(place).parent().filter(|folder| folder.is_dir()).map_or("", synod_storage::inodes::advice)
}

fn system(place: impl ToString, source: io::Error) -> ListenError {
    ListenError::System { place: place.to_string(), source }
}

/// A file, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Inode(u64, u64);

impl Inode {
    fn of(path: &Path) -> io::Result<Inode> {
        std::fs::symlink_metadata(path).map(|found| Inode(found.dev(), found.ino()))
    }
}

/// A socket file that this process made.
#[derive(Debug)]
pub struct Bound {
    path: PathBuf,
    inode: Inode,
}

impl Bound {
    /// Removes the file, unless another one stands there by now. To be called while its listener is open: later the name
    /// may be anybody's.
    pub fn remove(&self) {
        if Inode::of(&self.path).is_ok_and(|inode| inode == self.inode) {
            // One that stays does no harm: the next start replaces it.
            drop(std::fs::remove_file(&self.path));
        }
    }
}

/// Listens on a Unix socket at `path`: bound under a name of its own, given its mode, then moved to its place, so that
/// nobody can connect before the mode stands. Only a socket that nobody listens on is replaced.
///
/// # Errors
/// See [`ListenError`].
pub async fn unix(path: &Path, mode: u32) -> Result<(UnixListener, Bound), ListenError> {
    if path.as_os_str().len() > SOCKET_PATH_BYTES {
        return Err(ListenError::PathTooLong { path: path.to_owned() });
    }
    let failed = |source| system(path.display(), source);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut stale = left_behind(path).await?;
    let mut bound = bind(path).await;
    // What a dead process left takes an inode, which may be the last one.
    if bound.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::StorageFull)
        && stale.take().is_some()
        && std::fs::remove_file(path).is_ok()
    {
        bound = bind(path).await;
    }
    let (listener, temporary) = bound.map_err(failed)?;
    let placed = std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(mode))
        .and_then(|()| Inode::of(&temporary))
        .and_then(|inode| place(&temporary, path, stale).map(|placed| placed.then_some(inode)));
    match placed {
        Ok(Some(inode)) => Ok((listener, Bound { path: path.to_owned(), inode })),
        failure => {
            // A file that stays does no harm.
            drop(std::fs::remove_file(&temporary));
            Err(failure.map_or_else(failed, |_| ListenError::InUse { path: path.to_owned() }))
        }
    }
}

/// The socket at `path` that a dead process left, if there is one.
async fn left_behind(path: &Path) -> Result<Option<Inode>, ListenError> {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(None) };
    if !found.file_type().is_socket() {
        return Err(ListenError::NotASocket { path: path.to_owned() });
    }
    // Without a descriptor nothing is known of who listens there.
    match descriptors::wait_in_task("a socket", || UnixStream::connect(path)).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Ok(Some(Inode(found.dev(), found.ino())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // A listener whose queue is full says this.
        Ok(_) => Err(ListenError::InUse { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(ListenError::InUse { path: path.to_owned() })
        }
        Err(error) => Err(system(path.display(), error)),
    }
}

/// A listener under a name beside `path` that nobody has.
async fn bind(path: &Path) -> io::Result<(UnixListener, PathBuf)> {
    loop {
        let [a, b, c, ..] = uuid::Uuid::new_v4().into_bytes();
        let temporary = path.with_file_name(format!(".{a:02x}{b:02x}{c:02x}"));
        let bind = || std::future::ready(UnixListener::bind(&temporary));
        match descriptors::wait_in_task("a socket", bind).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound.map(|listener| (listener, temporary)),
        }
    }
}

/// Moves a socket to its place, where nothing may stand but the stale one. `false`: another one stands there.
fn place(temporary: &Path, path: &Path, stale: Option<Inode>) -> io::Result<bool> {
    let rename = |flags| renameat_with(CWD, temporary, CWD, path, flags);
    if let Some(stale) = stale {
        match rename(RenameFlags::EXCHANGE) {
            Ok(()) if Inode::of(temporary)? == stale => {
                return std::fs::remove_file(temporary).map(|()| true);
            }
            // It has a listener of a moment ago.
            Ok(()) => return rename(RenameFlags::EXCHANGE).map(|()| false).map_err(io::Error::from),
            Err(Errno::NOENT) => {}
            Err(Errno::INVAL | Errno::NOSYS) => return std::fs::rename(temporary, path).map(|()| true),
            Err(error) => return Err(error.into()),
        }
    }
    match rename(RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        // The file system cannot: nothing stood there a moment ago.
        Err(Errno::INVAL | Errno::NOSYS) => std::fs::rename(temporary, path).map(|()| true),
        Err(error) => Err(error.into()),
    }
}

/// Listens on a TCP address. `[::]` takes both families; where the host has no IPv6 it means every IPv4 address.
///
/// # Errors
/// See [`ListenError`].
pub async fn tcp(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let bound = descriptors::wait_in_task("a listener", || TcpListener::bind(address)).await;
    match bound {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && lacks_ipv6(&error) => {
            let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            let bound = descriptors::wait_in_task("a listener", || TcpListener::bind(address)).await;
            bound.map_err(|source| system(address, source))
        }
        bound => bound.map_err(|source| system(address, source)),
    }
}

/// Whether the kernel has no IPv6 (EAFNOSUPPORT), or the network namespace no address of it (EADDRNOTAVAIL).
fn lacks_ipv6(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(97 | 99))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(dir: &tempfile::TempDir) -> PathBuf {
        dir.path().join("a.sock")
    }

    fn names(dir: &tempfile::TempDir) -> Vec<String> {
        let entries = std::fs::read_dir(dir.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = socket(&dir);
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (listener, bound) = unix(&path, 0o600).await.unwrap();
        assert_eq!(names(&dir), ["a.sock"]);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(unix(&path, 0o600).await, Err(ListenError::InUse { .. })));
        drop(listener);
        bound.remove();
        assert!(names(&dir).is_empty());
    }

    /// Connections that nobody accepts fill the queue: the listener is busy and lives.
    #[tokio::test]
    async fn a_busy_socket_is_not_taken_for_a_stale_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = socket(&dir);
        let address = rustix::net::SocketAddrUnix::new(&path).unwrap();
        let listener =
            rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None);
        let listener = listener.unwrap();
        rustix::net::bind(&listener, &address).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) = UnixStream::connect(&path).await {
            waiting.push(stream);
        }
        assert!(matches!(unix(&path, 0o600).await, Err(ListenError::InUse { .. })));
        assert_eq!(names(&dir), ["a.sock"]);
    }

    #[tokio::test]
    async fn files_of_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = socket(&dir);
        for name in ["a.new", "b"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let (_listener, bound) = unix(&path, 0o600).await.unwrap();
        assert_eq!(names(&dir), ["a.new", "a.sock", "b"]);
        // Another has moved its own into the place.
        std::fs::rename(dir.path().join("b"), &path).unwrap();
        bound.remove();
        assert_eq!(names(&dir), ["a.new", "a.sock"]);
        assert!(matches!(unix(&path, 0o600).await, Err(ListenError::NotASocket { .. })));
    }

    /// Another process listens there since it was looked at.
    #[test]
    fn a_newer_listener_keeps_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let (path, temporary) = (socket(&dir), dir.path().join("t"));
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let stale = Inode::of(&path).unwrap();
        let _other = std::os::unix::net::UnixListener::bind(dir.path().join("o")).unwrap();
        std::fs::rename(dir.path().join("o"), &path).unwrap();
        let live = Inode::of(&path).unwrap();
        let _own = std::os::unix::net::UnixListener::bind(&temporary).unwrap();
        assert_ne!(stale, live);
        for judged in [Some(stale), None] {
            assert!(!place(&temporary, &path, judged).unwrap());
            assert_eq!(Inode::of(&path).unwrap(), live);
        }
    }
}
