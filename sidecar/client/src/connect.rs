//! gRPC channels over a Unix socket.

use crate::error::ConnectError;
use crate::events::Herald;
use hyper_util::rt::TokioIo;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// The environment variable that names the socket; the operator sets it in every container.
pub const SOCKET_VARIABLE: &str = "SYNOD_SOCKET";

/// The kernel's bound on a socket path, in bytes (`sun_path` less its terminating zero).
const PATH_BYTES: usize = 107;
/// What one stream may have sent that nobody has taken.
const STREAM_WINDOW: u32 = 1 << 20;
/// The largest that HTTP/2 has: streams that nobody reads cannot use it up, so that they never hold up the others.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// A connection with calls under way on which nothing came for so long is asked whether the member is there.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long it may take to say so.
const KEEP_ALIVE_PATIENCE: Duration = Duration::from_secs(5);

/// The connections of one client. Appends and states have their own, so that no reader can hold them up.
#[derive(Clone, Debug)]
pub(crate) struct Channels {
    pub(crate) appends: Channel,
    pub(crate) calls: Channel,
    // Without the feature that needs it, it is never used, and so never connected.
    #[cfg_attr(not(feature = "checkpoints"), allow(dead_code))]
    pub(crate) states: Channel,
}

/// The connections to the socket at `path`; each is made with its first call.
///
/// # Errors
/// If no socket can have this path.
pub(crate) fn channels(path: &Path, herald: &Herald) -> Result<Channels, ConnectError> {
    let channel = || channel(path, herald);
    Ok(Channels { appends: channel()?, calls: channel()?, states: channel()? })
}

/// A channel to the socket at `path`, which connects with the first call and again when it breaks.
///
/// # Errors
/// If no socket can have this path.
pub(crate) fn channel(path: &Path, herald: &Herald) -> Result<Channel, ConnectError> {
    let length = path.as_os_str().len();
    if length == 0 || length > PATH_BYTES {
        return Err(ConnectError::Path { path: path.to_owned(), length });
    }
    // The address is a formality: HTTP/2 wants an authority, the connector dials the path.
    let endpoint = Endpoint::from_static("http://synod.socket")
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_PATIENCE)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let (path, herald): (PathBuf, _) = (path.to_owned(), herald.clone());
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let (path, herald) = (path.clone(), herald.clone());
        async move { herald.connect(&path).await.map(TokioIo::new) }
    })))
}
