//! `wait`, `probe` and `prestop`: for scripts and hooks.

use super::connect::{DataDir, Socket};
use super::seconds;
use anyhow::bail;
use clap::{Args, ValueEnum};
use std::time::Duration;
use synod_proto::admin::v1::PrepareStopRequest;
use tokio::time::{Instant, sleep, timeout, timeout_at};

const PAUSE: Duration = Duration::from_millis(100);
/// docs: operator-rules.md, "Pod".
const PRESTOP: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// The member is ready: recovered, configured, not fenced, caught up once since it started.
    Ready,
    /// The member knows a leader.
    Leader,
    /// The member answers.
    Socket,
}

#[derive(Clone, Debug, Args)]
pub(super) struct WaitOptions {
    #[command(flatten)]
    socket: Socket,
    /// For what.
    #[arg(long = "for", value_enum, default_value_t = What::Ready)]
    what: What,
    /// How long, in seconds.
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = seconds())]
    timeout: u64,
}

pub(super) async fn wait(options: WaitOptions) -> anyhow::Result<()> {
    let client = options.socket.client()?;
    let deadline = Instant::now() + Duration::from_secs(options.timeout);
    let mut last = "no member answers".to_owned();
    loop {
        match timeout_at(deadline, synod_client::wire::status(&client)).await {
            Ok(Ok(status)) => {
                last = match options.what {
                    What::Ready if !status.ready => format!("the member is not ready: {}", status.reason),
                    What::Leader if status.leader.is_none() => "no leader is known".to_owned(),
                    What::Ready | What::Leader | What::Socket => return Ok(()),
                };
            }
            Ok(Err(error)) => last = format!("no member answers: {error}"),
            Err(_) => {}
        }
        if Instant::now() + PAUSE >= deadline {
            bail!("gave up after {} s: {last}", options.timeout);
        }
        sleep(PAUSE).await;
    }
}

#[derive(Clone, Debug, Args)]
pub(super) struct ProbeOptions {
    #[command(flatten)]
    socket: Socket,
    /// Succeed only if the member is ready, too.
    #[arg(long)]
    ready: bool,
    /// How long an answer may take, in seconds.
    #[arg(long, default_value_t = 3, value_name = "SECONDS", value_parser = seconds())]
    timeout: u64,
}

pub(super) async fn probe(options: ProbeOptions) -> anyhow::Result<()> {
    let client = options.socket.client()?;
    let status =
        match timeout(Duration::from_secs(options.timeout), synod_client::wire::status(&client)).await {
            Ok(status) => status.map_err(|error| options.socket.explain(error))?,
            Err(_) => bail!("no answer within {} s", options.timeout),
        };
    if options.ready && !status.ready {
        bail!("not ready: {}", status.reason);
    }
    Ok(())
}

#[derive(Clone, Debug, Args)]
pub(super) struct PrestopOptions {
    #[command(flatten)]
    data_dir: DataDir,
}

/// Never fails: a pod that goes is not held up by a hook, and a leader that nobody relieved is replaced by
/// election.
pub(super) async fn prestop(options: PrestopOptions) -> anyhow::Result<()> {
    let mut local = options.data_dir.local()?;
    match timeout(PRESTOP, local.prepare_stop(PrepareStopRequest {})).await {
        Ok(Ok(_)) => eprintln!("this member does not lead, and leaves that to others for two minutes"),
        Ok(Err(status)) => {
            eprintln!("leadership was not handed over: {}", super::whole(&options.data_dir.explain(status)))
        }
        Err(_) => eprintln!("leadership was not handed over within {} s", PRESTOP.as_secs()),
    }
    Ok(())
}
