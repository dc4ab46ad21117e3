//! Status and history, on the socket and for the admin service.

use super::{convert, failure};
use crate::shared::Shared;
use std::sync::Arc;
use synod_proto::v1::cluster_server::{Cluster, ClusterServer};
use synod_proto::v1::{HistoryRequest, HistoryResponse, StatusRequest, StatusResponse};
use tonic::{Request, Response, Status};

/// The service behind one member's socket.
#[derive(Clone)]
pub struct ClusterService {
    shared: Arc<Shared>,
}

impl ClusterService {
    /// The service, for a router.
    pub fn server(shared: Arc<Shared>) -> ClusterServer<ClusterService> {
        ClusterServer::new(ClusterService { shared })
    }
}

pub(super) async fn status(shared: &Shared) -> Result<StatusResponse, Status> {
    let report = shared.handle().status().await;
    let report = report.map_err(|error| failure::status(failure::unanswered(&error)))?;
    let identity = shared.identity().borrow().clone();
    Ok(convert::status(&report, &identity, shared.space()))
}

pub(super) async fn history(shared: &Shared) -> Result<HistoryResponse, Status> {
    let history = shared.handle().history().await;
    let history = history.map_err(|error| failure::status(failure::unanswered(&error)))?;
    Ok(convert::history(&history))
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(status(&self.shared).await?))
    }

    async fn history(&self, _: Request<HistoryRequest>) -> Result<Response<HistoryResponse>, Status> {
        Ok(Response::new(history(&self.shared).await?))
    }
}
