//! The members of a dev cluster: processes of their own, each at a loopback address of its own.

use super::links::{Links, MEMBER_PORT, PROXY_PORT};
use super::{Fault, Options};
use crate::member::ADMIN_SOCKET;
use anyhow::{Context, bail};
use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;
use synod_client::wire::channel;
use synod_client::{Client, MemberState, Status};
use synod_proto::admin::v1::admin_client::AdminClient;
use synod_proto::admin::v1::{GenesisMember, InitializeRequest};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(10);

/// One member, running or not.
#[derive(Debug, Default)]
struct Member {
    child: Option<Child>,
    is_paused: bool,
}

/// A cluster of processes.
#[derive(Debug)]
pub(super) struct Cluster {
    dir: PathBuf,
    health_port: Option<u16>,
    log: String,
    members: Vec<Mutex<Member>>,
    links: Links,
}

/// A member, as `synod dev show` tells of it.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    number: usize,
    socket: PathBuf,
    /// running, paused or stopped.
    state: &'static str,
    is_cut: bool,
    slow_ms: u128,
}

/// What was asked for cannot be done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// There is no such member.
    #[error("there is no member {number}: the members are 0 to {last}")]
    NoMember {
        /// The number that was asked for.
        number: usize,
        /// The highest one.
        last: usize,
    },
    /// The member is in another state.
    #[error("member {number} {is}")]
    State {
        /// The member.
        number: usize,
        /// What it is.
        is: &'static str,
    },
    /// The system refused.
    #[error("member {number}: {source}")]
    System {
        /// The member.
        number: usize,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Member {
    fn signal(&self, number: usize, signal: Signal) -> Result<(), Refused> {
        let child = self.child.as_ref().and_then(Child::id);
        let process = child.and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let process = process.ok_or(Refused::State { number, is: "does not run" })?;
        kill_process(process, signal).map_err(|error| Refused::System { number, source: error.into() })
    }
}

impl Cluster {
    /// Starts the members.
    pub(super) async fn start(dir: &Path, options: &Options) -> anyhow::Result<Cluster> {
        let count = usize::from(options.replicas);
        let cluster = Cluster {
            dir: dir.to_owned(),
            health_port: options.health_port,
            log: options.log.clone(),
            members: (0..count).map(|_| Mutex::default()).collect(),
            links: Links::open(options.replicas).await.context("no loopback addresses can be had")?,
        };
        for number in 0..count {
            let mut member = cluster.members[number].lock().await;
            member.child =
                Some(cluster.spawn(number).with_context(|| format!("member {number} cannot start"))?);
        }
        Ok(cluster)
    }

    fn socket(&self, number: usize) -> PathBuf {
        self.dir.join(format!("dev-{number}.sock"))
    }

    fn data_dir(&self, number: usize) -> PathBuf {
        self.dir.join(format!("dev-{number}"))
    }

    fn spawn(&self, number: usize) -> std::io::Result<Child> {
        let hosts = self.links.hosts();
        let mut command = Command::new(std::env::current_exe()?);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SYNOD_")) {
            command.env_remove(name);
        }
        command.arg("run").args(["--name", &format!("dev-{number}")]);
        command.arg("--data-dir").arg(self.data_dir(number)).arg("--socket").arg(self.socket(number));
        command.arg(format!("--peer-listen={}:{MEMBER_PORT}", hosts[number]));
        command.arg(format!("--advertise={}:{PROXY_PORT}", hosts[number]));
        command.arg(format!("--dial-from={}", hosts[number]));
        for (_, host) in hosts.iter().enumerate().filter(|(other, _)| *other != number) {
            command.arg(format!("--peer={host}:{PROXY_PORT}"));
        }
        if let Some((port, number)) = self.health_port.zip(u16::try_from(number).ok()) {
            let port = port.saturating_add(number);
            command.arg(format!("--health-listen={}:{port}", Ipv4Addr::LOCALHOST));
        }
        command.args(["--disk-reserve", &(16_u64 << 20).to_string(), "--log", &self.log]);
        command.arg(format!("--end-with={}", std::process::id()));
        // Ctrl-C is this process's alone: it ends the members in order.
        command.process_group(0).kill_on_drop(true).stdin(std::process::Stdio::null()).spawn()
    }

    fn member(&self, number: usize) -> Result<&Mutex<Member>, Refused> {
        let last = self.members.len() - 1;
        self.members.get(number).ok_or(Refused::NoMember { number, last })
    }

    /// Carries a fault out.
    pub(super) async fn hurt(&self, fault: Fault) -> Result<(), Refused> {
        match fault {
            Fault::Kill(super::Member { number }) => {
                let mut member = self.member(number)?.lock().await;
                let mut child = member.child.take().ok_or(Refused::State { number, is: "does not run" })?;
                member.is_paused = false;
                child.kill().await.map_err(|source| Refused::System { number, source })
            }
            Fault::Start(super::Member { number }) => {
                let mut member = self.member(number)?.lock().await;
                if member.child.is_some() {
                    return Err(Refused::State { number, is: "runs already" });
                }
                member.child = Some(self.spawn(number).map_err(|source| Refused::System { number, source })?);
                Ok(())
            }
            Fault::Pause(super::Member { number }) => {
                let mut member = self.member(number)?.lock().await;
                member.signal(number, Signal::STOP)?;
                member.is_paused = true;
                Ok(())
            }
            Fault::Resume(super::Member { number }) => {
                let mut member = self.member(number)?.lock().await;
                member.signal(number, Signal::CONT)?;
                member.is_paused = false;
                Ok(())
            }
            Fault::Cut(super::Member { number }) => {
                self.member(number)?;
                self.links.change(number, |link| link.is_cut = true);
                Ok(())
            }
            Fault::Heal(super::Member { number }) => {
                self.member(number)?;
                self.links.change(number, |link| *link = super::links::Link::default());
                Ok(())
            }
            Fault::Slow { member: super::Member { number }, by } => {
                self.member(number)?;
                self.links.change(number, |link| link.delay = Duration::from_millis(u64::from(by)));
                Ok(())
            }
            Fault::Show => Ok(()),
        }
    }

    /// The members as they are.
    pub(super) async fn show(&self) -> Vec<Shown> {
        let mut shown = Vec::new();
        for (number, link) in self.links.now().into_iter().enumerate() {
            let member = self.members[number].lock().await;
            let state = match &member.child {
                None => "stopped",
                Some(_) if member.is_paused => "paused",
                Some(_) => "running",
            };
            let (is_cut, slow_ms) = (link.is_cut, link.delay.as_millis());
            shown.push(Shown { number, socket: self.socket(number), state, is_cut, slow_ms });
        }
        shown
    }

    /// Those that have ended by themselves since the last look, and how.
    pub(super) async fn ended(&self) -> Vec<(usize, ExitStatus)> {
        let mut ended = Vec::new();
        for (number, member) in self.members.iter().enumerate() {
            let mut member = member.lock().await;
            if let Some(Ok(Some(how))) = member.child.as_mut().map(Child::try_wait) {
                *member = Member::default();
                ended.push((number, how));
            }
        }
        ended
    }

    /// What a member answers, once it does.
    async fn status(&self, number: usize, deadline: Instant) -> anyhow::Result<Status> {
        let client = Client::connect(self.socket(number))?;
        loop {
            if let Ok(status) = client.status().await {
                return Ok(status);
            }
            if let Some((number, how)) = self.ended().await.first() {
                bail!("member {number} ended ({how}): see what it said");
            }
            if Instant::now() > deadline {
                bail!("member {number} does not answer within {} s", PATIENCE.as_secs());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Initialises empty members; waits until all are ready.
    pub(super) async fn form(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut founders = Vec::new();
        let mut empty = 0;
        for number in 0..self.members.len() {
            let status = self.status(number, deadline).await?;
            empty += usize::from(status.state == MemberState::Uninitialized);
            founders.push(GenesisMember { member: status.member, name: format!("dev-{number}") });
        }
        let kept = founders.len() - empty;
        if kept > 0 && empty > 0 {
            bail!("this directory holds a cluster of {kept} replicas: ask for as many");
        }
        if kept == 0 {
            let cluster_id = Bytes::copy_from_slice(uuid::Uuid::new_v4().as_bytes());
            let request = InitializeRequest { cluster_id, members: founders, ..InitializeRequest::default() };
            for number in 0..self.members.len() {
                let channel = channel(&self.data_dir(number).join(ADMIN_SOCKET))?;
                AdminClient::new(channel).initialize(request.clone()).await?;
            }
        }
        for number in 0..self.members.len() {
            while !self.status(number, deadline).await?.ready {
                if Instant::now() > deadline {
                    bail!("the cluster did not find a leader within {} s; see the log", PATIENCE.as_secs());
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    /// Ends all members, and waits for them.
    pub(super) async fn stop(&self) {
        for (number, member) in self.members.iter().enumerate() {
            let member = member.lock().await;
            for signal in [Signal::CONT, Signal::TERM] {
                // One that does not run any more needs no word.
                drop(member.signal(number, signal));
            }
        }
        for member in &self.members {
            if let Some(child) = &mut member.lock().await.child {
                // How it ended does not matter any more.
                drop(child.wait().await);
            }
        }
    }
}
