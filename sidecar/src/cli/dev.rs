//! `dev`: a whole cluster in one process, for whoever writes an application.

use super::stop_signal;
use crate::driver::Unanswered;
use crate::member::{ADMIN_SOCKET, Config, Member};
use crate::telemetry::{LogFormat, start_logging};
use crate::transport::PeerSource;
use anyhow::{Context, bail};
use clap::Args;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use synod_paxos::status::MemberState;
use synod_paxos::{AdminCommand, ClusterId, Genesis, MemberId};
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, Args)]
pub(super) struct Options {
    /// How many members.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=15))]
    replicas: u8,
    /// Keep the data here, and go on with what is there. Without it everything is forgotten at the end.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Serve /metrics and the probes of member N on this port + N of 127.0.0.1.
    #[arg(long, value_name = "PORT")]
    health_port: Option<u16>,
    /// What is logged: error, warn, info, debug, or a list of targets and levels.
    #[arg(long, env = "SYNOD_LOG", default_value = "warn", value_name = "FILTER")]
    log: String,
}

fn config(dir: &Path, ordinal: u8, peers: Vec<String>, health_port: Option<u16>) -> Config {
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let name = format!("dev-{ordinal}");
    Config {
        data_dir: dir.join(&name),
        socket: dir.join(format!("{name}.sock")),
        socket_mode: 0o660,
        allowed_uids: Vec::new(),
        peer_listen: loopback(0),
        admin_listen: None,
        health_listen: health_port.map(|port| loopback(port.saturating_add(u16::from(ordinal)))),
        name,
        advertise: String::new(),
        peers: PeerSource::new(peers, None),
        tls_dir: None,
        insecure: false,
        cluster: None,
        disk_reserve: 16 << 20,
        election: None,
        scrub: crate::scrub::Options::default(),
    }
}

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    start_logging(LogFormat::Text, &options.log)?;
    let (dir, _temporary) = match &options.dir {
        Some(dir) => (std::path::absolute(dir)?, None),
        None => {
            let temporary = tempfile::Builder::new().prefix("synod-dev-").tempdir()?;
            (temporary.path().to_owned(), Some(temporary))
        }
    };
    let mut members = Vec::new();
    let mut addresses = Vec::new();
    for ordinal in 0..options.replicas {
        // Those that started before are dialled; they dial back whoever has greeted them.
        let config = config(&dir, ordinal, addresses.clone(), options.health_port);
        let member = Member::start(config).await.with_context(|| format!("member {ordinal} cannot start"))?;
        addresses.push(member.peer_address().to_string());
        members.push(member);
    }
    let mut stop = std::pin::pin!(stop_signal());
    tokio::select! {
        formed = form(&members) => formed?,
        signal = &mut stop => return signal,
    }
    tell(&dir, options.replicas, options.dir.is_some());
    let failures = members.iter_mut().map(|member| Box::pin(member.failed()));
    let failed = tokio::select! {
        (result, _, _) = futures::future::select_all(failures) => Some(result),
        signal = &mut stop => {
            signal?;
            None
        }
    };
    for member in members {
        member.stop().await;
    }
    match failed {
        Some(Err(error)) => Err(error.into()),
        Some(Ok(())) => bail!("a member ended by itself"),
        None => Ok(()),
    }
}

/// Initialises empty members; waits until all are ready.
async fn form(members: &[Member]) -> anyhow::Result<()> {
    let mut ids = BTreeMap::new();
    let mut empty = 0;
    for member in members {
        let report = member.shared().handle().status().await?;
        empty += usize::from(report.status.state == MemberState::Uninitialized);
        ids.insert(report.status.member, member.shared().identity().borrow().name.clone());
    }
    if empty == members.len() {
        initialize(members, ids).await?;
    } else if empty > 0 {
        bail!("this directory holds a cluster of {} replicas: ask for as many", members.len() - empty);
    }
    let deadline = Instant::now() + PATIENCE;
    for member in members {
        while !member.shared().handle().status().await?.status.caught_up_once {
            if Instant::now() > deadline {
                bail!("the cluster did not find a leader within {} s; see the log", PATIENCE.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

async fn initialize(members: &[Member], ids: BTreeMap<MemberId, String>) -> Result<(), Unanswered> {
    let genesis = Genesis::new(ClusterId(uuid::Uuid::new_v4().into_bytes()), ids);
    for member in members {
        let command = AdminCommand::Initialize(genesis.clone());
        member.shared().handle().admin(command, Instant::now() + PATIENCE).await?;
    }
    Ok(())
}

fn tell(dir: &Path, replicas: u8, kept: bool) {
    let first = dir.join("dev-0.sock");
    println!("A cluster of {replicas} runs. Its sockets:");
    for ordinal in 0..replicas {
        println!("  {}", dir.join(format!("dev-{ordinal}.sock")).display());
    }
    println!("\nTry, in another terminal:");
    println!("  export SYNOD_SOCKET={}", first.display());
    println!("  synod-sidecar append hello");
    println!("  synod-sidecar tail -f");
    println!("  synod-sidecar members");
    println!(
        "\nEach member's admin socket is DIR/{ADMIN_SOCKET} in its data directory, {}.",
        dir.join("dev-N").display()
    );
    let end = if kept { "the data stays" } else { "the data goes with it" };
    println!("Ctrl-C ends the cluster; {end}.");
}
