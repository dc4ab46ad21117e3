//! `dev`: a whole cluster on this machine, for whoever writes or tests an application, and its faults on command.

mod cluster;
mod control;
mod links;

use super::stop_signal;
use crate::telemetry::{LogFormat, start_logging};
use anyhow::Context;
use clap::{Args, Subcommand};
use cluster::Cluster;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The control socket's name in the directory.
const CONTROL: &str = "control.sock";
/// Between two looks for members that have ended by themselves.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, Args)]
#[command(subcommand_value_name = "FAULT", subcommand_help_heading = "Faults of a cluster that runs")]
pub(super) struct Options {
    #[command(subcommand)]
    fault: Option<Fault>,
    /// How many members.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=15))]
    replicas: u8,
    /// Keep the data here, and go on with what is there. Without it everything is forgotten at the end. For a fault:
    /// the directory of the cluster that runs.
    #[arg(long, env = "SYNOD_DEV_DIR", global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Serve /metrics and the probes of member N on this port + N of 127.0.0.1.
    #[arg(long, value_name = "PORT")]
    health_port: Option<u16>,
    /// Each member is a process of its own. This is always so; the option is there for scripts that say it.
    #[arg(long, hide = true)]
    processes: bool,
    /// What the members log: error, warn, info, debug, or a list of targets and levels.
    #[arg(long, env = "SYNOD_LOG", default_value = "warn", value_name = "FILTER")]
    log: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
enum Fault {
    /// End a member at once, as a machine ends that loses its power.
    Kill(Member),
    /// Start a member that was killed.
    Start(Member),
    /// Hold a member up: it does nothing until it is resumed.
    Pause(Member),
    /// Let a paused member go on.
    Resume(Member),
    /// Cut a member's links to all others.
    Cut(Member),
    /// Mend a member's links: neither cut nor slow.
    Heal(Member),
    /// Make a member's links slow.
    Slow {
        #[command(flatten)]
        member: Member,
        /// By how much each way, in milliseconds.
        #[arg(long, default_value_t = 100, value_name = "MS", value_parser = clap::value_parser!(u32).range(..=60_000))]
        by: u32,
    },
    /// Show the members and their faults, as JSON.
    Show,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Args)]
struct Member {
    /// The member's number, from 0.
    #[arg(value_name = "N")]
    number: usize,
}

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    match options.fault {
        Some(fault) => {
            let dir = options.dir.context("say which cluster: --dir DIR, as `synod dev` has told it")?;
            control::call(&dir.join(CONTROL), fault).await
        }
        None => serve(options).await,
    }
}

async fn serve(options: Options) -> anyhow::Result<()> {
    start_logging(LogFormat::Text, &options.log)?;
    let (dir, _temporary) = match &options.dir {
        Some(dir) => (std::path::absolute(dir)?, None),
        None => {
            let temporary = tempfile::Builder::new().prefix("synod-dev-").tempdir()?;
            (temporary.path().to_owned(), Some(temporary))
        }
    };
    std::fs::create_dir_all(&dir).with_context(|| format!("{} cannot be made", dir.display()))?;
    // First of all: a second cluster in the same directory is refused before it touches anything.
    let (listener, bound) = crate::server::listen::unix(&dir.join(CONTROL), 0o600).await?;
    let mut stop = std::pin::pin!(stop_signal());
    let cluster = Arc::new(Cluster::start(&dir, &options).await?);
    let serving = tokio::spawn(control::serve(listener, cluster.clone()));
    let outcome = tokio::select! {
        formed = cluster.form() => formed.map(|()| true),
        signal = &mut stop => signal.map(|()| false),
    };
    let outcome = match outcome {
        Ok(true) => {
            tell(&dir, options.replicas, options.dir.is_some());
            tokio::select! {
                never = look(&cluster) => match never {},
                signal = &mut stop => signal,
            }
        }
        ended => ended.map(drop),
    };
    bound.remove();
    serving.abort();
    cluster.stop().await;
    outcome
}

/// Tells of members that end by themselves; the others go on.
async fn look(cluster: &Cluster) -> std::convert::Infallible {
    loop {
        for (number, how) in cluster.ended().await {
            eprintln!(
                "member {number} ended ({how}); the others go on. To start it: synod dev start {number}"
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// How this program is called in a terminal: by its name where PATH leads to it, otherwise by its path.
fn program() -> String {
    let Ok(path) = std::env::current_exe() else { return "synod".to_owned() };
    let name = path.file_name().unwrap_or_default();
    let on_path = std::env::var_os("PATH").is_some_and(|folders| {
        std::env::split_paths(&folders)
            .any(|folder| folder.join(name).canonicalize().is_ok_and(|it| it == path))
    });
    if on_path { name.to_string_lossy().into_owned() } else { path.display().to_string() }
}

fn tell(dir: &Path, replicas: u8, kept: bool) {
    println!("A cluster of {replicas} runs. Its sockets:");
    for number in 0..replicas {
        println!("  {}", dir.join(format!("dev-{number}.sock")).display());
    }
    let synod = program();
    println!("\nTry, in another terminal:");
    println!("  export SYNOD_SOCKET={}", dir.join("dev-0.sock").display());
    println!("  {synod} append hello");
    println!("  {synod} tail -f");
    println!("\nHurt it (kill, start, pause, resume, cut, heal, slow):");
    println!("  export SYNOD_DEV_DIR={}", dir.display());
    println!("  {synod} dev kill 1");
    let end = if kept { "the data stays" } else { "the data goes with it" };
    println!("Ctrl-C ends the cluster; {end}.");
}
