//! One member: the disk, the core's driver, the transport and the servers, put together.

use crate::checkpoints::{Checkpoints, Keeper, PeerCheckpointsService};
use crate::connections::{self, Accept, Budgets, Calls, Incoming, Known, Limits, Shares, Tally, Terms};
use crate::descriptors;
use crate::driver::{Driver, Fatal};
use crate::scrub::{self, Scrubber};
use crate::server::admin::{Access, AdminService, Renewal};
use crate::server::health::{self, Health};
use crate::server::listen::{self, Bound, ListenError};
use crate::server::observed::observed;
use crate::server::{
    self, Callers, CheckpointsService, ClusterService, ConsumersService, Guard, LogService, standard,
};
use crate::shared::Shared;
use crate::space::{Room, Space};
use crate::storage::{self, Opened, StorageError};
use crate::telemetry::Metrics;
use crate::tls::{Tls, TlsError};
use crate::transport::{Context, Dialer, Identity, PeerService, PeerSource};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use synod_paxos::status::MemberState;
use synod_paxos::{AdminCommand, ClusterId, ElectionSettings, MemberId};
use synod_proto::formerly::{self, Formerly};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tracing::Instrument;

/// The admin socket's name in the data directory.
pub const ADMIN_SOCKET: &str = "admin.sock";
/// The mode of the admin socket: only the sidecar's own user.
const ADMIN_MODE: u32 = 0o600;
/// How long handing leadership over may take before a stop.
const HAND_OVER: Duration = Duration::from_secs(10);
/// How long open calls may take to end once the process is going down.
const DRAIN: Duration = Duration::from_secs(5);
/// Between two looks at the free space: near a bound, and else.
const SPACE_PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How long handing leadership over to a member with space may take.
const SPACE_PATIENCE: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How long a peer may take to answer a ping: its answer waits behind the values that a slow link has not carried yet.
const PING_PATIENCE: Duration = Duration::from_secs(30);

/// How to run a member.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the log is kept.
    pub data_dir: PathBuf,
    /// Where applications connect.
    pub socket: PathBuf,
    /// The socket file's mode.
    pub socket_mode: u32,
    /// Users that may use the socket; none: whoever can open it.
    pub allowed_uids: Vec<u32>,
    /// Where peers connect.
    pub peer_listen: SocketAddr,
    /// Where the operator connects; none: only the socket in the data directory.
    pub admin_listen: Option<SocketAddr>,
    /// Health and metrics; none: not offered.
    pub health_listen: Option<SocketAddr>,
    /// The pod's name.
    pub name: String,
    /// Where peers can dial this member: host:port. Empty: where it listens.
    pub advertise: String,
    /// The address that peers are dialled from; none: the system chooses.
    pub dial_from: Option<IpAddr>,
    /// The peers' addresses.
    pub peers: PeerSource,
    /// Certificates; none: plaintext.
    pub tls_dir: Option<PathBuf>,
    /// Without certificates, let the admin port listen elsewhere than on loopback.
    pub insecure: bool,
    /// Refuse a disk of another cluster.
    pub cluster: Option<ClusterId>,
    /// Free bytes below which appends are refused.
    pub disk_reserve: u64,
    /// Election timing in place of the log's own, for a log that it does not let elect a leader.
    pub election: Option<ElectionSettings>,
    /// How the log is read again in the background.
    pub scrub: scrub::Options,
}

/// The member could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The disk.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The core.
    #[error(transparent)]
    Fatal(#[from] Fatal),
    /// A listener.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The admin port would be open to everybody.
    #[error(
        "the admin port would be open to everybody on {address}: give --tls-dir, listen on 127.0.0.1, \
         or say --insecure if the network is guarded otherwise"
    )]
    OpenAdmin {
        /// Where it would listen.
        address: SocketAddr,
    },
}

/// A running member.
#[derive(Debug)]
pub struct Member {
    shared: Arc<Shared>,
    supervisor: JoinHandle<Result<(), StartError>>,
    tasks: Vec<JoinHandle<()>>,
    /// Those whose calls are let end.
    servers: Vec<JoinHandle<()>>,
    /// Socket files that this member made.
    bound: Vec<Bound>,
    config: Config,
    peer_address: SocketAddr,
}

/// What the listeners offer.
struct Services {
    admin: AdminService,
    guard: Guard,
    checkpoints: Checkpoints,
    shares: Shares,
    tally: Tally,
    calls: Calls,
}

async fn open_disk(config: &Config) -> Result<Opened, StorageError> {
    let (dir, cluster) = (config.data_dir.clone(), config.cluster);
    let opening = tokio::task::spawn_blocking(move || storage::open_member(&dir, cluster));
    opening.await.map_err(|e| StorageError::Damaged { what: "the data directory", why: e.to_string() })?
}

fn identity(config: &Config, disk: &Opened, peer_address: SocketAddr) -> Identity {
    let genesis = disk.state.genesis.as_ref().map(|genesis| (genesis.cluster, genesis.digest()));
    let advertise = &config.advertise;
    Identity {
        member: disk.state.member,
        incarnation: disk.state.incarnation,
        name: config.name.clone(),
        address: if advertise.is_empty() { peer_address.to_string() } else { advertise.clone() },
        cluster: genesis.or(disk.state.joined),
    }
}

impl Member {
    /// Opens the disk, starts the core, then the listeners.
    ///
    /// # Errors
    /// See [`StartError`]; nothing stays open.
    pub async fn start(config: Config) -> Result<Member, StartError> {
        let span = tracing::info_span!("member", name = config.name);
        Self::assemble(config).instrument(span).await
    }

    async fn assemble(config: Config) -> Result<Member, StartError> {
        let tls = config.tls_dir.as_deref().map(|dir| Tls::load(dir, &config.name)).transpose()?;
        if let Some(address) = config.admin_listen
            && tls.is_none()
            && !address.ip().is_loopback()
            && !config.insecure
        {
            return Err(StartError::OpenAdmin { address });
        }
        let shares = Shares::of(descriptors::for_connections(descriptors::raise()));
        let mut tasks = Vec::new();
        let health = Health::default();
        if let Some(address) = config.health_listen {
            let incoming = Incoming::new(listen::tcp(address).await?, shares.health, None, Known::default());
            tasks.push(tokio::spawn(health::serve(incoming, health.clone())));
        }
        let peer_listener = listen::tcp(config.peer_listen).await?;
        let peer_address = peer_listener
            .local_addr()
            .map_err(|source| ListenError::System { place: config.peer_listen.to_string(), source })?;
        let space = Space::new(&config.data_dir, config.disk_reserve);
        // What cannot be removed is found by the opening.
        drop(space.give_up_ballast());
        let disk = open_disk(&config).await?;
        let identity = identity(&config, &disk, peer_address);
        tracing::info!(
            member = %identity.member,
            incarnation = identity.incarnation.0,
            cluster = identity.cluster.map(|(cluster, _)| cluster.to_string()),
            dir = %config.data_dir.display(),
            "the disk is open"
        );
        let identity = watch::Sender::new(identity);
        let metrics = Arc::new(Metrics::default());
        let (driver, handle) = Driver::start(disk, identity.clone(), metrics.clone(), config.election)?;
        let shared = Arc::new(Shared::new(handle, identity, space.clone()));
        let context = Context::new(shared.clone(), tls.clone(), config.dial_from);
        let checkpoints =
            Checkpoints::open(context.clone(), metrics.clone(), &config.data_dir, config.disk_reserve);
        let (renewals, renewal_queue) = mpsc::channel(1);
        let supervisor = Supervisor {
            config: config.clone(),
            shared: shared.clone(),
            metrics: metrics.clone(),
            peer_address,
        };
        let supervisor = tokio::spawn(supervisor.run(driver, renewal_queue).in_current_span());
        let admin = AdminService::new(shared.clone(), renewals);
        let tally = metrics.sockets.clone();
        let calls = metrics.calls.clone();
        let services = Services {
            admin,
            guard: Guard::new(space, metrics.calls.clone()),
            checkpoints,
            shares,
            tally,
            calls,
        };
        let (servers, bound) = (Vec::new(), Vec::new());
        let mut member = Member { shared, supervisor, tasks, servers, bound, config, peer_address };
        if let Err(error) = member.listen(&context, peer_listener, &services).await {
            member.stop().await;
            return Err(error);
        }
        member.background(&context, services, metrics.clone());
        health.started(&context, &metrics);
        Ok(member)
    }

    async fn listen(
        &mut self,
        context: &Context,
        peer_listener: TcpListener,
        services: &Services,
    ) -> Result<(), StartError> {
        let Services { admin, guard, checkpoints, shares, tally, calls } = services;
        let secured =
            |listener, limits| Incoming::new(listener, limits, context.tls.clone(), context.known.clone());
        let streams = PeerService::server(context.clone());
        let transfers = PeerCheckpointsService::server(checkpoints.clone());
        let peer = server()
            .add_service(Formerly::<_, formerly::Peer>::new(streams.clone()))
            .add_service(Formerly::<_, formerly::PeerCheckpoints>::new(transfers.clone()))
            .add_service(streams)
            .add_service(transfers);
        let shared = self.shared.clone();
        let incoming = secured(peer_listener, shares.peer);
        self.tasks.push(serve(peer, incoming, async move { shared.closed().await }));
        if let Some(address) = self.config.admin_listen {
            let access = match &context.tls {
                Some(tls) => Access::Operator(Box::new(tls.clone())),
                None => Access::Listener,
            };
            let admin = admin.server(access);
            let router =
                server().add_service(Formerly::<_, formerly::Admin>::new(admin.clone())).add_service(admin);
            let shared = self.shared.clone();
            let stopped = async move { shared.stopped().await };
            let incoming = secured(listen::tcp(address).await?, shares.admin);
            self.servers.push(serve(router, incoming, stopped));
        }
        let (reporter, health) = tonic_health::server::health_reporter();
        self.tasks.push(tokio::spawn(standard::report(reporter, self.shared.clone()).in_current_span()));
        let clients = |callers: &Callers| {
            let log = LogService::server(self.shared.clone(), guard.clone());
            let consumers = ConsumersService::server(self.shared.clone(), guard.clone());
            let checkpoints = CheckpointsService::server(checkpoints.clone());
            let cluster = ClusterService::server(self.shared.clone());
            let routes = Routes::new(InterceptedService::new(log, callers.clone()))
                .add_service(InterceptedService::new(consumers, callers.clone()))
                .add_service(InterceptedService::new(checkpoints, callers.clone()))
                .add_service(InterceptedService::new(cluster, callers.clone()))
                .add_service(InterceptedService::new(health.clone(), callers.clone()));
            match standard::reflection() {
                Some(shown) => routes.add_service(InterceptedService::new(shown, callers.clone())),
                None => routes,
            }
        };
        // Only the sidecar's own user can open the file.
        let anyone = Callers::new(&[]);
        let own = admin.server(Access::Listener);
        let router = clients(&anyone)
            .add_service(Formerly::<_, formerly::Admin>::new(own.clone()))
            .add_service(own)
            .add_service(InterceptedService::new(admin.local_server(), anyone));
        let applications = clients(&Callers::new(&self.config.allowed_uids));
        let path = self.config.data_dir.join(ADMIN_SOCKET);
        let budgets = Budgets::new(server::explain, tally);
        let terms = |allowed: &[u32], plain| {
            let (budgets, allowed) = (budgets.clone(), allowed.to_vec());
            Terms { budgets, allowed, plain, observed: observed(calls) }
        };
        self.serve_unix(router, (path, ADMIN_MODE), shares.admin_socket, terms(&[], None)).await?;
        // Last: an application that can connect can be served.
        let place = (self.config.socket.clone(), self.config.socket_mode);
        let plain = server::http::plain(&self.shared, guard, checkpoints);
        let terms = terms(&self.config.allowed_uids, Some(plain));
        self.serve_unix(applications, place, shares.socket, terms).await
    }

    async fn serve_unix(
        &mut self,
        routes: Routes,
        (path, mode): (PathBuf, u32),
        limits: Limits,
        terms: Terms,
    ) -> Result<(), StartError> {
        let (listener, bound) = listen::unix(&path, mode).await?;
        self.bound.push(bound);
        let shared = self.shared.clone();
        let incoming = Incoming::new(listener, limits, None, Known::default());
        self.servers.push(tokio::spawn(async move {
            connections::serve(routes, incoming, terms, shared.stopped()).await;
        }));
        Ok(())
    }

    fn background(&mut self, context: &Context, services: Services, metrics: Arc<Metrics>) {
        let Services { checkpoints, guard: _, admin: _, shares: _, tally: _, calls: _ } = services;
        let keeper = Keeper::new(checkpoints);
        self.tasks.push(tokio::spawn(keeper.run().in_current_span()));
        let scrubber = Scrubber {
            shared: self.shared.clone(),
            metrics,
            data_dir: self.config.data_dir.clone(),
            options: self.config.scrub,
        };
        self.tasks.push(tokio::spawn(scrubber.run().in_current_span()));
        if let Some(tls) = context.tls.clone() {
            let shared = self.shared.clone();
            let end = async move { shared.closed().await };
            self.tasks.push(tokio::spawn(tls.keep_current(end).in_current_span()));
        }
        let dialer = Dialer::new(context.clone(), self.config.peers.clone());
        self.tasks.push(tokio::spawn(dialer.run().in_current_span()));
        self.shared.space().look();
        self.tasks.push(tokio::spawn(watch_space(self.shared.clone()).in_current_span()));
    }

    /// The running core.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Where peers can dial this member.
    pub fn peer_address(&self) -> SocketAddr {
        self.peer_address
    }

    /// Resolves only when the member fails.
    ///
    /// # Errors
    /// Why it failed.
    pub async fn failed(&mut self) -> Result<(), StartError> {
        match (&mut self.supervisor).await {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Hands leadership over, if this member leads, and leaves the next election to others: a stop that is announced
    /// costs writers no election timeout. Takes an election timeout at most, and never more than [`HAND_OVER`].
    pub async fn hand_over(&self) {
        let deadline = tokio::time::Instant::now() + HAND_OVER;
        match self.shared.handle().admin(AdminCommand::PrepareStop, deadline).await {
            Ok(_) => tracing::info!("this member does not lead"),
            Err(error) => {
                tracing::warn!(%error, "leadership was not handed over: the others will elect a leader")
            }
        }
    }

    /// Takes no new calls, lets open ones end for a few seconds, stops the core and closes the disk.
    pub async fn stop(mut self) {
        // While the listeners are open: nobody else can have the names meanwhile.
        self.bound.iter().for_each(Bound::remove);
        self.shared.stop();
        let draining = async {
            for server in &mut self.servers {
                // A server that failed has said so in the log.
                drop(server.await);
            }
        };
        if tokio::time::timeout(DRAIN, draining).await.is_err() {
            tracing::warn!("some calls did not end in time");
        }
        self.shared.close();
        self.shared.handle().stop();
        if !self.supervisor.is_finished() {
            // Its outcome is of no use any more.
            drop((&mut self.supervisor).await);
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.shared.close();
        self.shared.handle().stop();
        self.tasks.iter().chain(&self.servers).for_each(JoinHandle::abort);
    }
}

/// Looks at the disk again and again, and keeps what the peers say of theirs in view: where only the leader's is full,
/// another leads (docs: reliability.md, fault 11).
async fn watch_space(shared: Arc<Shared>) {
    let space = shared.space();
    let mut was_full = false;
    loop {
        space.look();
        let is_far = space.keep_ballast() && space.is_far();
        tokio::time::sleep(if is_far { SPACE_PAUSES.1 } else { SPACE_PAUSES.0 }).await;
        let is_full = space.room() >= Room::Full || space.is_any_peer_full();
        if !is_full && !was_full {
            continue;
        }
        was_full = is_full;
        let Ok(report) = shared.handle().status().await else { continue };
        let configuration = report.configuration.as_ref().map(|(configuration, _)| configuration);
        let (Some(to), Some(cluster)) = (space.judge(&report.status, configuration), report.status.cluster)
        else {
            continue;
        };
        tracing::warn!(%to, "this disk is full: a member with space is to lead");
        let command = AdminCommand::TransferLeader { cluster, to: Some(to) };
        let deadline = tokio::time::Instant::now() + SPACE_PATIENCE;
        if let Err(error) = shared.handle().admin(command, deadline).await {
            tracing::info!(%error, "leadership was not handed over");
        }
    }
}

fn serve<L: Accept>(
    router: Router,
    incoming: Incoming<L>,
    end: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        if let Err(error) = router.serve_with_incoming_shutdown(incoming.stream(), end).await {
            tracing::error!(%error, "a listener ended");
        }
    })
}

fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(PING_PATIENCE))
        .initial_stream_window_size(2 << 20)
        .initial_connection_window_size(4 << 20)
        .max_concurrent_streams(4_096)
}

/// Owns the driver's task, and puts a new core in its place when the disk is renewed.
struct Supervisor {
    config: Config,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    peer_address: SocketAddr,
}

impl Supervisor {
    async fn run(self, driver: Driver, mut renewals: mpsc::Receiver<Renewal>) -> Result<(), StartError> {
        let mut running = tokio::spawn(driver.run().in_current_span());
        loop {
            tokio::select! {
                ended = &mut running => return finish(ended),
                Some(Renewal { member, reply }) = renewals.recv() => {
                    if let Err(why) = self.may_renew(member).await {
                        drop(reply.send(Err(why)));
                        continue;
                    }
                    self.shared.handle().stop();
                    finish((&mut running).await)?;
                    let (driver, fresh) = self.renew(member).await?;
                    running = tokio::spawn(driver.run().in_current_span());
                    drop(reply.send(Ok(fresh)));
                }
            }
        }
    }

    /// Only an identity that has no vote any more, or never had one, may be given up.
    async fn may_renew(&self, member: MemberId) -> Result<(), String> {
        let report = self.shared.handle().status().await.map_err(|e| e.to_string())?;
        let own = report.status.member;
        if member != own {
            return Err(format!(
                "this disk belongs to member {own}, not to {member}: look at its status again"
            ));
        }
        match report.status.state {
            // One that waits for the other founders, or for the log, has promised nothing yet.
            MemberState::Removed | MemberState::Uninitialized | MemberState::Joining => Ok(()),
            _ => Err(format!("member {own} takes part in its cluster: remove it first, then renew its disk")),
        }
    }

    /// Moves the log aside and starts on an empty one.
    async fn renew(&self, old: MemberId) -> Result<(Driver, MemberId), StartError> {
        let aside = storage::move_aside(&self.config.data_dir, old)?;
        let config = Config { cluster: None, ..self.config.clone() };
        let disk = open_disk(&config).await?;
        let identity = identity(&self.config, &disk, self.peer_address);
        let member = identity.member;
        tracing::info!(%old, new = %member, aside = %aside.display(), "the disk was renewed");
        let (driver, handle) = {
            let (identity, metrics) = (self.shared.identity_sender(), self.metrics.clone());
            Driver::start(disk, identity, metrics, self.config.election)?
        };
        self.shared.replace(handle, identity);
        Ok((driver, member))
    }
}

fn finish(ended: Result<Result<(), Fatal>, tokio::task::JoinError>) -> Result<(), StartError> {
    match ended {
        Ok(result) => Ok(result?),
        // A safety assertion failed: the member must not go on.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
