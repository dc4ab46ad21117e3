//! `synod-sidecar run`.

use super::connect::{parse_cluster, parse_name};
use super::stop_signal;
use crate::member::{Config, Member, StartError};
use crate::scrub;
use crate::spans;
use crate::telemetry::{LogFormat, start_logging};
use crate::tls::TlsError;
use crate::transport::PeerSource;
use anyhow::Context;
use clap::Args;
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use synod_paxos::{ElectionSettings, Settings};

/// Free space below which appends are refused: 64 MiB.
const DISK_RESERVE: u64 = 64 << 20;
/// How long a new pod waits for its certificate: the kubelet's view of a Secret may lag behind.
const CERTIFICATE_PATIENCE: u32 = 120;

#[derive(Clone, Debug, Args)]
pub(super) struct Options {
    /// Where the log is kept. An empty directory becomes a new member.
    #[arg(long, env = "SYNOD_DATA_DIR", default_value = "/data", value_name = "DIR")]
    data_dir: PathBuf,
    /// Where applications connect; at most 107 bytes.
    #[arg(long, env = "SYNOD_SOCKET", default_value = "/run/synod/synod.sock", value_name = "PATH")]
    socket: PathBuf,
    /// The socket file's mode, in octal.
    #[arg(long, env = "SYNOD_SOCKET_MODE", default_value = "0660", value_parser = parse_mode, value_name = "MODE")]
    socket_mode: u32,
    /// User ids that may use the socket; without any, whoever can open it.
    #[arg(long, env = "SYNOD_ALLOWED_UIDS", value_delimiter = ',', value_name = "UID")]
    allowed_uids: Vec<u32>,
    /// Where peers connect.
    #[arg(long, env = "SYNOD_PEER_LISTEN", default_value = "127.0.0.1:7400", value_name = "ADDRESS")]
    peer_listen: SocketAddr,
    /// Where the operator connects. Without it, admin calls come only through the socket in the data directory.
    #[arg(long, env = "SYNOD_ADMIN_LISTEN", value_name = "ADDRESS")]
    admin_listen: Option<SocketAddr>,
    /// Where /startupz, /readyz, /livez and /metrics are.
    #[arg(long, env = "SYNOD_HEALTH_LISTEN", value_name = "ADDRESS")]
    health_listen: Option<SocketAddr>,
    /// This member's name, for people and for its certificate: the pod's name.
    #[arg(long, env = "SYNOD_NAME", default_value = "synod", value_parser = parse_name, value_name = "NAME")]
    name: String,
    /// Where peers can dial this member; by default where it listens.
    #[arg(
        long,
        env = "SYNOD_ADVERTISE",
        default_value = "",
        hide_default_value = true,
        value_name = "HOST:PORT"
    )]
    advertise: String,
    /// Dial peers from this address of the host, where it has several.
    #[arg(long, env = "SYNOD_DIAL_FROM", value_name = "ADDRESS")]
    dial_from: Option<IpAddr>,
    /// A file with the peers' addresses, one a line; read again when it changes.
    #[arg(long, env = "SYNOD_PEERS_FILE", value_name = "FILE")]
    peers_file: Option<PathBuf>,
    /// A peer's address; may be given several times. The own one does no harm.
    #[arg(long = "peer", env = "SYNOD_PEERS", value_delimiter = ',', value_name = "HOST:PORT")]
    peers: Vec<String>,
    /// Certificates: ca.crt, NAME.crt, NAME.key. Without it traffic between members is not encrypted.
    #[arg(long, env = "SYNOD_TLS_DIR", value_name = "DIR")]
    tls_dir: Option<PathBuf>,
    /// Without certificates, let the admin port listen elsewhere than on loopback: anyone who reaches it
    /// can change the cluster.
    #[arg(long, env = "SYNOD_INSECURE")]
    insecure: bool,
    /// Refuse to start on a disk of another cluster.
    #[arg(long, env = "SYNOD_CLUSTER_ID", value_parser = parse_cluster, value_name = "UUID")]
    cluster_id: Option<synod_paxos::ClusterId>,
    /// Refuse appends while less than this many bytes are free on the disk.
    #[arg(long, env = "SYNOD_DISK_RESERVE", default_value_t = DISK_RESERVE, value_name = "BYTES")]
    disk_reserve: u64,
    /// Go by this election timing in place of the log's own, in milliseconds: for a log whose own does not let anyone lead.
    /// Give it to every member, change the settings, and start the members without it (docs/settings.md).
    #[arg(long, env = "SYNOD_ELECTION_OVERRIDE", value_parser = parse_election, value_name = "HEARTBEAT:TIMEOUT")]
    election_override: Option<ElectionSettings>,
    /// Read the whole log again every so many seconds, to find and heal what is damaged.
    #[arg(long, env = "SYNOD_SCRUB_EVERY", default_value_t = 21_600, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    scrub_every: u64,
    /// How fast it is read, in MiB a second.
    #[arg(long, env = "SYNOD_SCRUB_RATE", default_value_t = 16, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    scrub_rate: u64,
    /// Stop when the process with this number ends, which must be the one that started this member.
    #[arg(long, value_name = "PID")]
    end_with: Option<i32>,
    /// Send spans of traced calls to the collector there, by OTLP over gRPC without TLS. A call is traced where its caller
    /// traces it (docs/tracing.md).
    #[arg(long, env = "SYNOD_OTLP_ENDPOINT", value_name = "http://HOST:4317")]
    otlp_endpoint: Option<String>,
    /// How log lines look.
    #[arg(long, env = "SYNOD_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// What is logged: error, warn, info, debug, or a list of targets and levels.
    #[arg(long, env = "SYNOD_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
}

fn parse_mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| "a mode has up to four octal digits, for instance 0660".to_owned())
}

/// A heartbeat and an election timeout within the bounds of settings.
fn parse_election(text: &str) -> Result<ElectionSettings, String> {
    let (heartbeat, timeout) =
        text.split_once(':').ok_or("write it as HEARTBEAT:TIMEOUT, such as 100:1000")?;
    let span =
        |text: &str| text.parse().map(Duration::from_millis).map_err(|_| format!("{text} is no number"));
    let election = ElectionSettings { heartbeat: span(heartbeat)?, timeout: span(timeout)? };
    let settings = Settings { election, ..Settings::default() };
    settings.validate().map(|()| election).map_err(|why| why.to_string())
}

impl Options {
    fn config(self) -> Config {
        Config {
            data_dir: self.data_dir,
            socket: self.socket,
            socket_mode: self.socket_mode,
            allowed_uids: self.allowed_uids,
            peer_listen: self.peer_listen,
            admin_listen: self.admin_listen,
            health_listen: self.health_listen,
            name: self.name,
            advertise: self.advertise,
            dial_from: self.dial_from,
            peers: PeerSource::new(self.peers, self.peers_file),
            tls_dir: self.tls_dir,
            insecure: self.insecure,
            cluster: self.cluster_id,
            disk_reserve: self.disk_reserve,
            election: self.election_override,
            scrub: scrub::Options {
                every: Duration::from_secs(self.scrub_every),
                rate: self.scrub_rate << 20,
            },
        }
    }
}

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    start_logging(options.log_format, &options.log)?;
    if let Some(parent) = options.end_with {
        end_with(parent)?;
    }
    let exporting = match &options.otlp_endpoint {
        Some(endpoint) => Some(spans::export(endpoint, &options.name).context("cannot send spans")?),
        None => None,
    };
    let config = options.config();
    let mut stop = std::pin::pin!(stop_signal());
    let starting = start(&config);
    let mut member = tokio::select! {
        member = starting => member?,
        signal = &mut stop => return signal,
    };
    tracing::info!(socket = %config.socket.display(), peers = %member.peer_address(), "serving");
    tokio::select! {
        failed = member.failed() => {
            // The disk or the core: what is open must not be used any more.
            failed?;
            anyhow::bail!("the member ended by itself");
        }
        signal = &mut stop => signal?,
    }
    tracing::info!("stopping");
    member.hand_over().await;
    member.stop().await;
    if let Some(exporting) = exporting {
        exporting.end().await;
    }
    Ok(())
}

/// Has this process told to stop when its parent ends.
fn end_with(parent: i32) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::TERM)).context("cannot watch the parent process")?;
    // It may have ended before.
    anyhow::ensure!(
        getppid().is_some_and(|id| id.as_raw_nonzero().get() == parent),
        "process {parent} is not the one that started this member, or has ended"
    );
    Ok(())
}

async fn start(config: &Config) -> Result<Member, StartError> {
    for attempt in 0..CERTIFICATE_PATIENCE {
        match Member::start(config.clone()).await {
            Err(StartError::Tls(error @ TlsError::File { .. })) => {
                if attempt == 0 {
                    tracing::warn!(%error, "waiting for the certificate");
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            other => return other,
        }
    }
    Member::start(config.clone()).await
}
