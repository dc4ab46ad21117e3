//! Who is asked, and what it knows: on the socket; status and history for the admin service, too.

use super::explained::Explained;
use super::{active, convert, failure};
use crate::driver::Facts;
use crate::shared::Shared;
use futures::Stream;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use synod_paxos::limits;
use synod_paxos::settings::Settings;
use synod_proto::v1::cluster_server::{Cluster, ClusterServer};
use synod_proto::v1::{
    self, HistoryRequest, HistoryResponse, Member, MembersRequest, MembersResponse, ServerInfoRequest,
    ServerInfoResponse, StatusRequest, StatusResponse, WatchRoleRequest, WatchRoleResponse,
};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

/// What a client may rely on beside the calls themselves: names are added, and never taken away.
const FEATURES: [&str; 10] = [
    "consumers",
    "checkpoints",
    "entry-time",
    "fence",
    "headers",
    "http",
    "log-name",
    "read-reverse",
    "subscribe-time",
    "watch-role",
];
/// The largest message that is read: questions have nothing in them.
const LARGEST_MESSAGE: usize = 4 << 10;
/// A stream on which nothing changed for so long says again what it said last.
const REPEAT: Duration = Duration::from_secs(10);

/// The service behind one member's socket.
#[derive(Clone)]
pub struct ClusterService {
    shared: Arc<Shared>,
}

impl ClusterService {
    /// The service, for a router.
    pub fn server(shared: Arc<Shared>) -> Explained<ClusterServer<ClusterService>> {
        let service = ClusterServer::new(ClusterService::new(shared.clone()));
        Explained::new(service.max_decoding_message_size(LARGEST_MESSAGE), shared)
    }

    /// The service itself, for callers in this process.
    pub(super) fn new(shared: Arc<Shared>) -> ClusterService {
        ClusterService { shared }
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

/// A member's role as an application goes by it.
fn role(facts: &Facts) -> WatchRoleResponse {
    WatchRoleResponse {
        role: convert::role(facts.role).into(),
        leads: facts.leads,
        fencing_epoch: facts.epoch.0,
        leader: facts.leader.map(|leader| leader.0),
    }
}

type Roles = Pin<Box<dyn Stream<Item = Result<WatchRoleResponse, Status>> + Send>>;

/// The role now, and each change.
struct Watching {
    shared: Arc<Shared>,
    facts: watch::Receiver<Facts>,
    last: Option<WatchRoleResponse>,
}

impl Watching {
    async fn next(&mut self) -> Result<WatchRoleResponse, Status> {
        loop {
            let now = role(&self.facts.borrow_and_update());
            active(&self.shared)?;
            // As long as it has applied no leadership it knows of no role, its own or another's: so it is at a start.
            let is_known = now.fencing_epoch > 0;
            if is_known && self.last != Some(now) {
                self.last = Some(now);
                return Ok(now);
            }
            tokio::select! {
                changed = self.facts.changed() => {
                    changed.map_err(|_| failure::status(failure::stopping()))?;
                }
                () = self.shared.stopped() => return Err(failure::status(failure::stopping())),
                () = tokio::time::sleep(REPEAT), if is_known => return Ok(now),
            }
        }
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    type WatchRoleStream = Roles;

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(status(&self.shared).await?))
    }

    async fn history(&self, _: Request<HistoryRequest>) -> Result<Response<HistoryResponse>, Status> {
        Ok(Response::new(history(&self.shared).await?))
    }

    async fn members(&self, _: Request<MembersRequest>) -> Result<Response<MembersResponse>, Status> {
        active(&self.shared)?;
        let report = self.shared.handle().status().await;
        let report = report.map_err(|error| failure::status(failure::unanswered(&error)))?;
        let leader = report.status.leader.map(|ballot| ballot.member);
        let connected =
            |member| report.status.peers.iter().any(|peer| peer.member == member && peer.connected);
        let members = report.configuration.iter().flat_map(|(configuration, _)| &configuration.members);
        let members = members.map(|(id, configured)| Member {
            member: id.0,
            name: configured.name.clone(),
            voter: configured.voter,
            leads: Some(*id) == leader,
            asked: *id == report.status.member,
            connected: *id == report.status.member || connected(*id),
        });
        Ok(Response::new(MembersResponse { members: members.collect() }))
    }

    async fn server_info(
        &self,
        _: Request<ServerInfoRequest>,
    ) -> Result<Response<ServerInfoResponse>, Status> {
        let facts = self.shared.handle().facts().borrow().clone();
        let limits = v1::ServerLimits {
            entry_bytes: limits::ENTRY_BYTES as u64,
            call_bytes: limits::BATCH_BYTES as u64,
            call_entries: limits::BATCH_ENTRIES as u64,
            headers: limits::HEADERS as u64,
            call_headers: limits::CALL_HEADERS as u64,
            header_name_bytes: limits::HEADER_NAME_BYTES as u64,
            header_value_bytes: limits::HEADER_VALUE_BYTES as u64,
            key_bytes: limits::KEY_BYTES as u64,
            name_bytes: limits::NAME_BYTES as u64,
            consumers: limits::CURSORS as u64,
            checkpoints: limits::CHECKPOINTS as u64,
        };
        Ok(Response::new(ServerInfoResponse {
            version: convert::VERSION.to_owned(),
            features: FEATURES.map(str::to_owned).into(),
            limits: Some(limits),
            reads_format_level: Settings::FORMAT_LEVEL,
            log: super::identity::name(&self.shared).unwrap_or_default(),
            state: convert::state(&facts.state).into(),
        }))
    }

    async fn watch_role(&self, _: Request<WatchRoleRequest>) -> Result<Response<Roles>, Status> {
        active(&self.shared)?;
        let facts = self.shared.handle().facts();
        let watching = Watching { shared: self.shared.clone(), facts, last: None };
        let roles = futures::stream::try_unfold(watching, |mut watching| async move {
            Ok(Some((watching.next().await?, watching)))
        });
        Ok(Response::new(Box::pin(roles)))
    }
}
