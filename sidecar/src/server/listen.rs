//! Listeners: Unix sockets that appear ready or not at all, and bounded connections.

use super::CONNECTIONS;
use futures::Stream;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::server::Connected;

/// The kernel's bound on a socket path, in bytes (`sun_path` less its terminating zero).
pub const SOCKET_PATH_BYTES: usize = 107;
/// After a failed accept: the cause, too many open files for instance, may pass.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

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
    #[error("cannot listen on {place}: {source}")]
    System {
        /// A path or an address.
        place: String,
        /// What the system said.
        source: io::Error,
    },
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
        if UnixStream::connect(path).await.is_ok() {
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
    let listener = UnixListener::bind(&temporary).map_err(failed)?;
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
    std::fs::rename(&temporary, path).map_err(failed)?;
    Ok(listener)
}

/// Listens on a TCP address.
///
/// # Errors
/// See [`ListenError`].
pub async fn tcp(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| system(address, source))
}

/// A connection that counts until it is closed.
#[derive(Debug)]
pub struct Counted<S> {
    stream: S,
    _permit: OwnedSemaphorePermit,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl<S: Connected> Connected for Counted<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> S::ConnectInfo {
        self.stream.connect_info()
    }
}

/// What a listener gives connections from.
pub trait Accept: Send + 'static {
    /// A connection.
    type Stream: Send;
    /// The next one.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.accept().await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Connections, [`CONNECTIONS`] at a time; a failed accept never ends the listener (docs: reliability.md,
/// fault 55).
pub fn connections<L: Accept>(listener: L) -> impl Stream<Item = io::Result<Counted<L::Stream>>> {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    futures::stream::unfold((listener, permits), |(listener, permits)| async move {
        loop {
            let permit = permits.clone().acquire_owned().await.ok()?;
            match listener.next().await {
                Ok(stream) => return Some((Ok(Counted { stream, _permit: permit }), (listener, permits))),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}
