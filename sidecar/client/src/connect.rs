//! A gRPC channel over a Unix socket.

use crate::error::ConnectError;
use hyper_util::rt::TokioIo;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// The environment variable that names the socket; the operator sets it in every container.
pub const SOCKET_VARIABLE: &str = "SYNOD_SOCKET";

/// The kernel's bound on a socket path, in bytes (`sun_path` less its terminating zero).
const PATH_BYTES: usize = 107;

/// A channel to the socket at `path`, which connects with the first call and again when it breaks.
///
/// # Errors
/// If no socket can have this path.
pub fn channel(path: &Path) -> Result<Channel, ConnectError> {
    let length = path.as_os_str().len();
    if length == 0 || length > PATH_BYTES {
        return Err(ConnectError::Path { path: path.to_owned(), length });
    }
    // The address is a formality: HTTP/2 wants an authority, the connector dials the path.
    let endpoint = Endpoint::from_static("http://synod.socket")
        .connect_timeout(Duration::from_secs(5))
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20);
    let path: PathBuf = path.to_owned();
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    })))
}
