//! Real sidecar processes on loopback.

use anyhow::{Context, bail};
use clap::Args;
use std::fs;
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use synod_client::Client;
use synod_proto::v1::Role;
use synod_proto::v1::StatusResponse;
use tokio::time::{Instant, sleep};

/// What is started, and where.
#[derive(Clone, Debug, Args)]
pub(crate) struct Place {
    /// The sidecar's program.
    #[arg(long, env = "SYNOD_SIDECAR", value_name = "PATH")]
    sidecar: PathBuf,
    /// Make the members' directories in here; by default where temporary files go. Bytes written are counted for real
    /// disks only.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Place {
    /// The sidecar's program, which is the command, too.
    pub(crate) fn program(&self) -> &Path {
        &self.sidecar
    }
}

/// A directory that goes when it is let go of.
pub(crate) fn directory(within: Option<&Path>) -> std::io::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("synod-bench-");
    within.map_or_else(|| builder.tempdir(), |within| builder.tempdir_in(within))
}

/// A number of what the system says of a process; 0 where it does not say.
fn number(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Bytes that a process had written to disks, by what stands for it in `/proc`.
pub(crate) fn written(process: &str) -> u64 {
    number(&fs::read_to_string(format!("/proc/{process}/io")).unwrap_or_default(), "write_bytes:")
}

/// How long a step that is not measured may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
pub(crate) const PAUSE: Duration = Duration::from_millis(20);

/// One member's place and its process, which ends with it.
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) id: u64,
    peer: SocketAddr,
    process: Child,
}

/// What the system has counted of a process since its start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// User and system time, in seconds.
    pub(crate) cpu: f64,
    /// Bytes that it had written to the disk.
    pub(crate) written: u64,
    /// The most that was resident, in bytes.
    pub(crate) resident: u64,
    /// What is resident now, in bytes.
    pub(crate) resident_now: u64,
}

impl Member {
    /// Starts a process on what is in its directory.
    fn start(sidecar: &Path, dir: &Path, name: &str, peer: SocketAddr) -> anyhow::Result<Member> {
        let (socket, data) = (dir.join(format!("{name}.sock")), dir.join(name));
        let mut command = Command::new(sidecar);
        for (variable, _) in std::env::vars().filter(|(variable, _)| variable.starts_with("SYNOD_")) {
            command.env_remove(variable);
        }
        command.arg("run").arg("--data-dir").arg(&data).arg("--socket").arg(&socket);
        command.args(["--peer-listen", &peer.to_string(), "--name", name]);
        command.arg("--peers-file").arg(dir.join("peers"));
        let log = std::env::var("SYNOD_LOG").unwrap_or_else(|_| "warn".to_owned());
        command.args(["--log", &log]).stdin(Stdio::null());
        let process = command.spawn().with_context(|| format!("{} cannot be started", sidecar.display()))?;
        Ok(Member { name: name.to_owned(), dir: data, socket, id: 0, peer, process })
    }

    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.socket)?)
    }

    pub(crate) async fn status(&self) -> anyhow::Result<StatusResponse> {
        Ok(synod_client::wire::status(&self.client()?).await?)
    }

    /// What its process has used so far; zeros where the system does not say.
    pub(crate) fn usage(&self) -> Usage {
        let read = |file: &str| {
            fs::read_to_string(format!("/proc/{}/{file}", self.process.id())).unwrap_or_default()
        };
        let (stat, status) = (read("stat"), read("status"));
        // Behind the name in brackets, which may hold spaces: utime and stime are the 12th and 13th, in ticks of 10 ms.
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
        let ticks: u64 =
            fields.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
        Usage {
            cpu: ticks as f64 / 100.0,
            written: written(&self.process.id().to_string()),
            resident: number(&status, "VmHWM:") << 10,
            resident_now: number(&status, "VmRSS:") << 10,
        }
    }

    /// Tells it to stop, and waits until it has or `patience` is over: whether it has.
    pub(crate) fn terminate(&mut self, patience: Duration) -> bool {
        let told = Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status();
        let until = std::time::Instant::now() + patience;
        while told.as_ref().is_ok_and(|told| told.success()) && std::time::Instant::now() < until {
            if matches!(self.process.try_wait(), Ok(Some(_))) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    }

    fn end(&mut self) {
        // It may have ended by itself.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.end();
    }
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn hex(id: u64) -> String {
    format!("{id:016x}")
}

/// Looks again and again until there is something.
async fn until<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> anyhow::Result<T> {
    let began = Instant::now();
    loop {
        if let Some(found) = look().await {
            return Ok(found);
        }
        if began.elapsed() > PATIENCE {
            bail!("{what}: not within {} s", PATIENCE.as_secs());
        }
        sleep(PAUSE).await;
    }
}

/// A cluster of processes, in a directory that goes with it.
pub(crate) struct Cluster {
    /// Before the directory, so that the processes end before it goes.
    pub(crate) members: Vec<Member>,
    dir: tempfile::TempDir,
    sidecar: PathBuf,
    id: uuid::Uuid,
    started: usize,
}

impl Cluster {
    /// Starts and forms a cluster of three.
    pub(crate) async fn start(place: &Place) -> anyhow::Result<Cluster> {
        let dir = directory(place.dir.as_deref())?;
        let (members, id) = (Vec::new(), uuid::Uuid::new_v4());
        let mut cluster = Cluster { members, dir, sidecar: place.sidecar.clone(), id, started: 0 };
        for _ in 0..3 {
            cluster.add().await?;
        }
        let mut arguments = vec!["initialize".to_owned(), format!("--cluster-id={id}")];
        let members = &cluster.members;
        arguments.extend(members.iter().map(|m| format!("--member={}={}", hex(m.id), m.name)));
        for member in 0..cluster.members.len() {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            cluster.admin(member, &arguments)?;
        }
        cluster.leader().await?;
        Ok(cluster)
    }

    /// Starts one more member on an empty directory.
    pub(crate) async fn add(&mut self) -> anyhow::Result<usize> {
        let name = format!("n{}", self.started);
        self.started += 1;
        let mut member = Member::start(&self.sidecar, self.dir.path(), &name, free_address()?)?;
        let peers = self.members.iter().chain([&member]).map(|m| format!("{}\n", m.peer)).collect::<String>();
        fs::write(self.dir.path().join("peers"), peers)?;
        member.id = until("the member starts", || async { member.status().await.ok() }).await?.member;
        self.members.push(member);
        Ok(self.members.len() - 1)
    }

    /// Kills these members' processes, then starts others on what is in their directories; gives the moment between.
    pub(crate) fn restart(&mut self, members: Range<usize>) -> anyhow::Result<Instant> {
        let members = &mut self.members[members];
        members.iter_mut().for_each(Member::end);
        let began = Instant::now();
        for member in members {
            let id = member.id;
            *member = Member::start(&self.sidecar, self.dir.path(), &member.name, member.peer)?;
            member.id = id;
        }
        Ok(began)
    }

    /// Runs an admin command beside a member.
    pub(crate) fn admin(&self, member: usize, arguments: &[&str]) -> anyhow::Result<Output> {
        let (command, rest) = arguments.split_first().context("no command")?;
        let dir = &self.members[member].dir;
        let mut process = Command::new(&self.sidecar);
        process.args(["admin", command, "--data-dir"]).arg(dir).args(rest).stdin(Stdio::null());
        let output = tokio::task::block_in_place(|| process.output())?;
        if !output.status.success() {
            bail!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(output)
    }

    /// Which member leads.
    pub(crate) async fn leader(&self) -> anyhow::Result<usize> {
        until("a member leads", || async {
            for (number, member) in self.members.iter().enumerate() {
                if member.status().await.is_ok_and(|status| status.role() == Role::Leader) {
                    return Some(number);
                }
            }
            None
        })
        .await
    }

    /// Waits until every member has on its disk what the leader knows to be chosen.
    pub(crate) async fn level(&self) -> anyhow::Result<()> {
        let through = self.members[self.leader().await?].status().await?.chosen_through;
        for member in &self.members {
            until("a follower has it on its disk", || async {
                member.status().await.is_ok_and(|status| status.durable_through >= through).then_some(())
            })
            .await?;
        }
        Ok(())
    }

    /// Lets an empty member into the cluster: from here on it catches up.
    pub(crate) async fn join(&self, new: usize, leader: usize) -> anyhow::Result<()> {
        let digest = self.members[leader].status().await?.genesis_digest;
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let cluster = format!("--cluster-id={}", self.id);
        self.admin(new, &["join", &cluster, &format!("--genesis-digest={digest}")])?;
        let (id, name) = (hex(self.members[new].id), &self.members[new].name);
        self.admin(leader, &["add-learner", "--member", &id, "--name", name])?;
        Ok(())
    }

    /// Removes the newest member and its data.
    pub(crate) async fn remove_last(&mut self, leader: usize) -> anyhow::Result<()> {
        let Some(mut last) = self.members.pop() else { return Ok(()) };
        self.admin(leader, &["remove", "--member", &hex(last.id)])?;
        last.end();
        fs::remove_dir_all(&last.dir)?;
        Ok(())
    }
}
