//! For the tools and tests beside this crate only: the messages as they are. Not part of the interface.
#![allow(missing_docs)]

use crate::retry::TRY;
use crate::{CallError, Client};
use synod_proto::v1::cluster_client::ClusterClient;
use synod_proto::v1::{HistoryRequest, HistoryResponse, StatusRequest, StatusResponse};
use tonic::Request;
use tonic::transport::Channel;

pub use crate::connect::channel;

pub(crate) fn cluster(client: &Client) -> ClusterClient<Channel> {
    ClusterClient::new(client.channels.calls.clone())
}

/// One try, which may take ten seconds.
fn once<Q>(request: Q) -> Request<Q> {
    let mut request = Request::new(request);
    request.set_timeout(TRY);
    request
}

pub async fn status(client: &Client) -> Result<StatusResponse, CallError> {
    Ok(cluster(client).status(once(StatusRequest {})).await?.into_inner())
}

pub async fn history(client: &Client) -> Result<HistoryResponse, CallError> {
    Ok(cluster(client).history(once(HistoryRequest {})).await?.into_inner())
}
