//! The admin service: what the operator, and the tools beside the sidecar, ask of one member.
//!
//! It is offered in two places: on a Unix socket in the data directory, which only the sidecar's own user can
//! open, and on the admin port, where only this cluster's operator gets in. Every call passes one check.

use super::{cluster, convert, deadline, failure};
use crate::connections::Caller;
use crate::shared::Shared;
use crate::tls::{Holder, Tls};
use crate::transport::wire;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use synod_paxos::configuration::Change;
use synod_paxos::settings::SettingsError;
use synod_paxos::system::Reply;
use synod_paxos::value::Operation;
use synod_paxos::{AdminCommand, AdminOutcome, ClusterId, Genesis, MemberId, Refusal};
use synod_proto::admin::v1::admin_server::{Admin, AdminServer};
use synod_proto::admin::v1::local_server::{Local, LocalServer};
use synod_proto::admin::v1::{
    ChangeRequest, ChangeResponse, ChangeSettingsRequest, ChangeSettingsResponse, InitializeRequest,
    InitializeResponse, JoinRequest, JoinResponse, PrepareStopRequest, PrepareStopResponse, RenewRequest,
    RenewResponse, TransferLeaderRequest, TransferLeaderResponse,
};
use synod_proto::v1::{HistoryRequest, HistoryResponse, Reason, StatusRequest, StatusResponse};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status};

/// The sidecar's patience with its own preStop hook (docs: operator-rules.md, "Pod").
const PREPARE_STOP: Duration = Duration::from_secs(10);

/// Who may call.
#[derive(Clone, Debug)]
pub enum Access {
    /// Whoever can open the listener: the file's mode, or the loopback address, is the guard.
    Listener,
    /// The operator, told by its certificate.
    Operator(Box<Tls>),
}

impl Access {
    /// The one check; it denies unless it knows better.
    fn check(&self, request: &Request<()>) -> Result<(), Status> {
        let caller = Caller::of(request.extensions())?;
        let admit = || caller.admit().map_err(super::crowded);
        let Access::Operator(tls) = self else { return admit() };
        match tls.holder(caller.certificates()) {
            Holder::Operator => admit(),
            Holder::Member | Holder::Stranger => {
                let message = "the admin service is for this cluster's operator only";
                Err(failure::status(failure::refused(Reason::NotTheOperator, message)))
            }
        }
    }
}

/// A wish to give up this disk's identity.
#[derive(Debug)]
pub struct Renewal {
    /// The id that is given up: a guard against renewing the wrong disk.
    pub member: MemberId,
    /// Gets the new id, or why not.
    pub reply: oneshot::Sender<Result<MemberId, String>>,
}

/// The service of one member.
#[derive(Clone)]
pub struct AdminService {
    shared: Arc<Shared>,
    renewals: mpsc::Sender<Renewal>,
}

/// The check as an interceptor.
#[derive(Clone, Debug)]
pub struct Gate(Access);

impl tonic::service::Interceptor for Gate {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        self.0.check(&request)?;
        Ok(request)
    }
}

impl AdminService {
    /// A service that hands renewals to the member's supervisor.
    pub fn new(shared: Arc<Shared>, renewals: mpsc::Sender<Renewal>) -> AdminService {
        AdminService { shared, renewals }
    }

    /// For a router, behind the check.
    pub fn server(&self, access: Access) -> InterceptedService<AdminServer<AdminService>, Gate> {
        AdminServer::with_interceptor(self.clone(), Gate(access))
    }

    /// The calls that only the commands in the sidecar's own container need.
    pub fn local_server(&self) -> LocalServer<AdminService> {
        LocalServer::new(self.clone())
    }

    async fn ask(&self, command: AdminCommand, deadline: Instant) -> Result<AdminOutcome, Status> {
        let outcome = self.shared.handle().admin(command, deadline).await;
        outcome.map_err(|error| failure::status(failure::unanswered(&error)))
    }

    async fn change(
        &self,
        request: Request<ChangeRequest>,
        change: impl FnOnce(MemberId, String) -> Change,
    ) -> Result<Response<ChangeResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let ChangeRequest { cluster_id, expected_version, operation_id, member, name } = request.into_inner();
        let command = AdminCommand::Change {
            cluster: cluster_id_of(&cluster_id)?,
            expected_version,
            operation: operation_id
                .as_ref()
                .try_into()
                .map_err(|_| invalid("an operation id has 16 bytes"))?,
            change: change(MemberId(member), name),
        };
        match self.ask(command, deadline).await? {
            AdminOutcome::Changed { configuration, in_force, retired } => Ok(Response::new(ChangeResponse {
                configuration: Some(convert::configuration(&configuration)),
                in_force,
                retired,
            })),
            other => Err(unexpected(&other)),
        }
    }
}

fn invalid(message: &str) -> Status {
    failure::status(failure::refused(Reason::Invalid, message))
}

fn cluster_id_of(bytes: &[u8]) -> Result<ClusterId, Status> {
    wire::cluster(bytes).map_err(|_| invalid("a cluster id has 16 bytes"))
}

fn unexpected(outcome: &AdminOutcome) -> Status {
    tracing::error!(?outcome, "the core gave an answer of another kind");
    failure::status(failure::refused(Reason::Internal, "the core gave an answer of another kind"))
}

pub(super) fn genesis(request: InitializeRequest) -> Result<Genesis, Status> {
    let cluster = cluster_id_of(&request.cluster_id)?;
    let count = request.members.len();
    let members: BTreeMap<MemberId, String> =
        request.members.into_iter().map(|listed| (MemberId(listed.member), listed.name)).collect();
    if members.len() != count {
        return Err(invalid("the list names a member twice"));
    }
    let mut genesis = Genesis::new(cluster, members);
    if request.alpha != 0 {
        genesis.alpha = request.alpha;
    }
    if let Some(wanted) = &request.settings {
        genesis.settings = convert::changed_settings(genesis.settings, wanted);
    }
    Ok(genesis)
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(cluster::status(&self.shared).await?))
    }

    async fn history(&self, _: Request<HistoryRequest>) -> Result<Response<HistoryResponse>, Status> {
        Ok(Response::new(cluster::history(&self.shared).await?))
    }

    async fn initialize(
        &self,
        request: Request<InitializeRequest>,
    ) -> Result<Response<InitializeResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let command = AdminCommand::Initialize(genesis(request.into_inner())?);
        match self.ask(command, deadline).await? {
            AdminOutcome::Initialized(digest) => Ok(Response::new(InitializeResponse {
                genesis_digest: bytes::Bytes::copy_from_slice(&digest.0),
            })),
            other => Err(unexpected(&other)),
        }
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let JoinRequest { cluster_id, genesis_digest } = request.into_inner();
        let command = AdminCommand::Join {
            cluster: cluster_id_of(&cluster_id)?,
            digest: wire::digest(&genesis_digest).map_err(|_| invalid("a genesis digest has 32 bytes"))?,
        };
        match self.ask(command, deadline).await? {
            AdminOutcome::Joined => Ok(Response::new(JoinResponse {})),
            other => Err(unexpected(&other)),
        }
    }

    async fn add_learner(&self, request: Request<ChangeRequest>) -> Result<Response<ChangeResponse>, Status> {
        self.change(request, |member, name| Change::AddLearner { member, name }).await
    }

    async fn promote(&self, request: Request<ChangeRequest>) -> Result<Response<ChangeResponse>, Status> {
        self.change(request, |member, _| Change::Promote { member }).await
    }

    async fn remove_member(
        &self,
        request: Request<ChangeRequest>,
    ) -> Result<Response<ChangeResponse>, Status> {
        self.change(request, |member, _| Change::Remove { member }).await
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let TransferLeaderRequest { cluster_id, to } = request.into_inner();
        let command =
            AdminCommand::TransferLeader { cluster: cluster_id_of(&cluster_id)?, to: to.map(MemberId) };
        match self.ask(command, deadline).await? {
            AdminOutcome::Transferred(leader) => {
                Ok(Response::new(TransferLeaderResponse { leader: leader.0 }))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn change_settings(
        &self,
        request: Request<ChangeSettingsRequest>,
    ) -> Result<Response<ChangeSettingsResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let ChangeSettingsRequest { cluster_id, expected_version, settings } = request.into_inner();
        let handle = self.shared.handle();
        let failed = |error| failure::status(failure::unanswered(&error));
        let seen = handle.status().await.map_err(failed)?.status;
        let cluster = cluster_id_of(&cluster_id)?;
        let (Some(actual), Some(base)) = (seen.cluster, seen.settings) else {
            let message = "this member knows no settings yet: it belongs to no cluster, or waits for the log";
            return Err(failure::status(failure::refused(Reason::NotActive, message)));
        };
        if cluster != actual {
            return Err(failed(Refusal::OtherCluster { actual }.into()));
        }
        // What stays as it is was read at the expected version, or else the log refuses the change.
        if base.version != expected_version {
            let moved = SettingsError::VersionMoved { actual: base.version };
            return Err(failed(Refusal::Settings(moved).into()));
        }
        let settings = convert::changed_settings(base, &settings.unwrap_or_default());
        settings.validate_change(&base).map_err(|why| failed(Refusal::Settings(why).into()))?;
        let operation = Operation::ChangeSettings { expected_version, settings };
        match handle.call_and_wait(operation, Some(deadline)).await.map_err(failed)? {
            Reply::SettingsChanged(settings) => {
                let settings = Some(convert::settings(&settings));
                Ok(Response::new(ChangeSettingsResponse { settings }))
            }
            other => unreachable!("the core changed settings with {other:?}"),
        }
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        let member = MemberId(request.into_inner().member);
        let (reply, answer) = oneshot::channel();
        let stopping = || failure::status(failure::stopping());
        self.renewals.send(Renewal { member, reply }).await.map_err(|_| stopping())?;
        match answer.await.map_err(|_| stopping())? {
            Ok(member) => Ok(Response::new(RenewResponse { member: member.0 })),
            Err(why) => Err(failure::status(failure::refused(Reason::NotRenewable, why))),
        }
    }
}

#[tonic::async_trait]
impl Local for AdminService {
    async fn prepare_stop(
        &self,
        _: Request<PrepareStopRequest>,
    ) -> Result<Response<PrepareStopResponse>, Status> {
        match self.ask(AdminCommand::PrepareStop, Instant::now() + PREPARE_STOP).await? {
            AdminOutcome::StopPrepared => Ok(Response::new(PrepareStopResponse {})),
            other => Err(unexpected(&other)),
        }
    }
}
