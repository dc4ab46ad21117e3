//! The generated gRPC clients and messages on this crate's connection, for who needs a call as it is: tests, tools, and
//! calls that the SDK has no words for. With the feature `wire`.
//!
//! What is here shows types of tonic and of the generated messages. They change with their versions, so a minor version
//! of this crate may break who uses it; nothing else of this crate shows them.

use crate::error::failed;
use crate::events::Herald;
use crate::retry::TRY;
use crate::{CallError, Client, ConnectError};
use std::path::Path;
use synod_proto::v1::cluster_client::ClusterClient;
use synod_proto::v1::{HistoryRequest, HistoryResponse, StatusRequest, StatusResponse};
use tonic::transport::Channel;
use tonic::{Request, Status};

/// A channel to the socket at `path`, which connects with the first call and again when it breaks.
///
/// # Errors
/// If no socket can have this path.
pub fn channel(path: &Path) -> Result<Channel, ConnectError> {
    crate::connect::channel(path, &Herald::new())
}

/// The error of a call that ended with this status.
pub fn error(status: &Status) -> CallError {
    CallError::from_status(status)
}

/// One try, which may take ten seconds.
fn once<Q>(request: Q) -> Request<Q> {
    let mut request = Request::new(request);
    request.set_timeout(TRY);
    request
}

/// All that a member says of itself, in one try.
///
/// # Errors
/// See [`CallError`].
pub async fn status(client: &Client) -> Result<StatusResponse, CallError> {
    let answer = ClusterClient::new(client.channels.calls.clone()).status(once(StatusRequest {})).await;
    answer.map(tonic::Response::into_inner).map_err(failed)
}

/// Configurations and leaderships so far, in one try.
///
/// # Errors
/// See [`CallError`].
pub async fn history(client: &Client) -> Result<HistoryResponse, CallError> {
    let answer = ClusterClient::new(client.channels.calls.clone()).history(once(HistoryRequest {})).await;
    answer.map(tonic::Response::into_inner).map_err(failed)
}
