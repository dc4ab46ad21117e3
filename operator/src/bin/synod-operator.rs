//! The operator: watches PaxosClusters and runs them.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use kube::{Client, Config};
use synod_operator::context::{Context, Settings};
use synod_operator::election::{Elector, PERIOD, Standing};
use synod_operator::metrics::Metrics;
use synod_operator::{controller, http, manifests};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

/// Runs PaxosClusters: replicated logs whose members live in the pods of a StatefulSet.
///
/// In a cluster it is started by its Deployment and finds the API server by itself; outside it uses
/// your kubeconfig.
#[derive(Parser)]
#[command(name = "synod-operator", version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    /// Image of the sidecar for clusters whose spec names none
    #[arg(long, env = "SYNOD_SIDECAR_IMAGE", default_value = manifests::SIDECAR_IMAGE)]
    sidecar_image: String,

    /// DNS domain of the Kubernetes cluster
    #[arg(long, env = "SYNOD_CLUSTER_DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,

    /// Namespaces to watch, separated by commas; none: all namespaces
    #[arg(long, env = "SYNOD_WATCH_NAMESPACES", value_delimiter = ',')]
    watch_namespaces: Vec<String>,

    /// Clusters that are rolled at once because this version makes their pods otherwise than the one before
    #[arg(long, env = "SYNOD_MAX_ROLLOUTS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    max_rollouts: u16,

    /// Address of /healthz, /readyz and /metrics
    #[arg(long, env = "SYNOD_HTTP_LISTEN", default_value = "[::]:8080")]
    http_listen: SocketAddr,

    /// Namespace of the lease by which one operator of several is chosen
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    lease_namespace: String,

    /// Name of the lease
    #[arg(long, env = "SYNOD_LEASE_NAME", default_value = "synod-operator")]
    lease_name: String,

    /// Name of this process in the lease; default: the pod's name and a random part
    #[arg(long, env = "SYNOD_IDENTITY")]
    identity: Option<String>,

    /// How log lines are written
    #[arg(long, env = "SYNOD_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    log_format: LogFormat,
}

#[derive(Subcommand)]
enum Command {
    /// Print the CustomResourceDefinition as YAML, and end
    Crd,
    /// Print everything an installation needs as YAML, and end
    Install,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// One JSON object a line
    Json,
    /// For people
    Text,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match &arguments.command {
        Some(Command::Crd) => return print(&manifests::crd()),
        Some(Command::Install) => return print(&manifests::install()),
        None => {}
    }
    logging(arguments.log_format);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "the runtime cannot be started");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            error!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn print(text: &str) -> ExitCode {
    use std::io::Write;
    // A closed pipe is how `head` says that it has enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn logging(format: LogFormat) {
    let filter =
        EnvFilter::try_from_env("SYNOD_LOG").unwrap_or_else(|_| EnvFilter::new("info,kube_client=warn"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Json => {
            builder.json().flatten_event(true).with_current_span(true).with_span_list(false).init()
        }
        LogFormat::Text => builder.init(),
    }
}

/// Runs until SIGTERM, SIGINT or the loss of the lease.
async fn run(arguments: Arguments) -> Result<(), String> {
    let client = connect().await?;
    let metrics = Arc::new(Metrics::new());
    let (stop, stopping) = watch::channel(false);
    let (ready, is_ready) = watch::channel(false);
    let server =
        tokio::spawn(http::serve(arguments.http_listen, Arc::clone(&metrics), is_ready, stopping.clone()));
    let settings = Settings {
        sidecar_image: arguments.sidecar_image,
        cluster_domain: arguments.cluster_domain,
        max_rollouts: usize::from(arguments.max_rollouts),
        namespaces: arguments.watch_namespaces.into_iter().filter(|n| !n.is_empty()).collect(),
    };
    info!(version = env!("CARGO_PKG_VERSION"), image = settings.sidecar_image, namespaces = ?settings.namespaces, "starts");
    let identity = arguments.identity.unwrap_or_else(identity);
    let mut elector =
        Elector::new(client.clone(), &arguments.lease_namespace, &arguments.lease_name, identity);
    let mut terminated = signal(SignalKind::terminate()).map_err(|e| format!("no signal handler: {e}"))?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(|e| format!("no signal handler: {e}"))?;
    let mut controllers = None;
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let verdict = loop {
        tokio::select! {
            _ = terminated.recv() => break Ok(()),
            _ = interrupted.recv() => break Ok(()),
            _ = tick.tick() => {}
        }
        let standing = elector.attempt().await;
        if elector.was_heard() {
            ready.send_replace(true);
        }
        metrics.leading(standing == Standing::Leader);
        match (standing, &controllers) {
            (Standing::Leader, None) => {
                info!("holds the lease and acts");
                let ctx = Arc::new(Context::new(client.clone(), settings.clone(), Arc::clone(&metrics)));
                controllers = Some(tokio::spawn(controller::run(ctx, stopping.clone())));
            }
            (Standing::Follower, Some(_)) => {
                // Steps may be under way: ending the process is the one way to be sure that none goes on.
                break Err("lost the lease: ends, and starts again as a follower".to_owned());
            }
            _ => {}
        }
        if server.is_finished() {
            break Err(format!(
                "{} cannot be listened on: choose another --http-listen",
                arguments.http_listen
            ));
        }
    };
    stop.send_replace(true);
    if verdict.is_ok() {
        info!("stops");
        if let Some(controllers) = controllers {
            // A reconcile under way is let finish; what it does not get done the next operator does.
            let _ = tokio::time::timeout(Duration::from_secs(10), controllers).await;
        }
        elector.release().await;
    }
    verdict
}

async fn connect() -> Result<Client, String> {
    let mut config = Config::infer().await.map_err(|e| {
        format!("no way to the API server ({e}): run in a pod with a service account, or set KUBECONFIG")
    })?;
    // A refused eviction (429) is an answer to act on, not to repeat behind our back; what fails is tried
    // again by the controller, from fresh reads.
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(5));
    Client::try_from(config).map_err(|e| format!("the API server cannot be used: {e}"))
}

/// The pod's name and a random part: a restarted container is not its predecessor.
fn identity() -> String {
    let host = std::env::var("POD_NAME").unwrap_or_else(|_| "synod-operator".into());
    let random = uuid::Uuid::new_v4().simple().to_string();
    format!("{host}_{}", &random[..8])
}
