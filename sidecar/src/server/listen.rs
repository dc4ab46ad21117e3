//! Listeners: Unix sockets that appear ready or not at all, and TCP ports.

use crate::descriptors;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
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

/// Listens on a Unix socket at `path`: bound under a temporary name, given its mode, then renamed, so that
/// nobody can connect before the mode stands. A file that a dead process left is replaced.
///
/// # Errors
/// See [`ListenError`].
pub async fn unix(path: &Path, mode: u32) -> Result<UnixListener, ListenError> {
    let temporary = path.with_extension("new");
    for path in [path, &temporary] {
        if path.as_os_str().len() > SOCKET_PATH_BYTES {
            return Err(ListenError::PathTooLong { path: path.to_owned() });
        }
    }
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(ListenError::NotASocket { path: path.to_owned() });
        }
        // Without a descriptor nothing is known of who listens there.
        if descriptors::wait_in_task("a socket", || UnixStream::connect(path)).await.is_ok() {
            return Err(ListenError::InUse { path: path.to_owned() });
        }
    }
    let failed = |source| system(path.display(), source);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let bind =
        || descriptors::wait_in_task("a socket", || std::future::ready(UnixListener::bind(&temporary)));
    let listener = match bind().await {
        // What a dead process left takes an inode, which may be the last one.
        Err(error) if error.kind() == io::ErrorKind::StorageFull && std::fs::remove_file(path).is_ok() => {
            bind().await
        }
        bound => bound,
    };
    let listener = listener.map_err(failed)?;
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
    std::fs::rename(&temporary, path).map_err(failed)?;
    Ok(listener)
}

/// Listens on a TCP address.
///
/// # Errors
/// See [`ListenError`].
pub async fn tcp(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let bound = descriptors::wait_in_task("a listener", || TcpListener::bind(address)).await;
    bound.map_err(|source| system(address, source))
}
