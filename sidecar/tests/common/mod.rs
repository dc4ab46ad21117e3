//! Real sidecar processes on loopback, for the integration tests.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod mounts;
pub mod narrow;
pub mod preload;

use std::fs::File;
use std::future::Future;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use synod_client::Client;
use synod_proto::v1::StatusResponse;
use synod_proto::v1::{MemberState, Role};

/// How long anything may take before a test gives up: generous, because nothing is timed here.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn binary() -> Command {
    of_program(Path::new(env!("CARGO_BIN_EXE_synod-sidecar")))
}

fn of_program(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SYNOD_")) {
        command.env_remove(name);
    }
    command
}

/// Runs a command to its end.
pub fn command(arguments: &[&str]) -> Output {
    binary().args(arguments).stdin(Stdio::null()).output().unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// An address that nobody else binds before its member does: of a loopback host of its own, since a port that is free on a
/// shared one may be another test's a moment later.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    // Not 127.0.0.1, from which connections are made.
    let number = 2 + NEXT.fetch_add(1, Ordering::Relaxed) % 250;
    let host = Ipv4Addr::new(127, high, low, u8::try_from(number).unwrap());
    TcpListener::bind((host, 0)).unwrap().local_addr().unwrap()
}

/// Awaits a condition; panics with what was last seen.
pub async fn until<T, E: std::fmt::Debug, F: Future<Output = Result<T, E>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let began = Instant::now();
    loop {
        match look().await {
            Ok(value) => return value,
            Err(seen) if began.elapsed() > PATIENCE => panic!("{what}: {seen:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(25)).await,
        }
    }
}

/// Its status, if a member is ready; what it answers, if not.
pub async fn is_ready(client: Client) -> Result<StatusResponse, String> {
    match synod_client::wire::status(&client).await {
        Ok(status) if status.ready => Ok(status),
        other => Err(format!("{other:?}")),
    }
}

/// Read when it is printed: most of what is awaited comes.
pub struct LastWords(Option<PathBuf>);

impl std::fmt::Debug for LastWords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let said = self.0.as_ref().and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
        let lines: Vec<&str> = said.lines().collect();
        write!(f, "it said last: {:#?}", &lines[lines.len().saturating_sub(40)..])
    }
}

/// One member's place and, while it runs, its process.
pub struct Member {
    pub name: String,
    pub data_dir: PathBuf,
    pub socket: PathBuf,
    pub peer: SocketAddr,
    /// Where peers reach it, if not where it listens.
    pub reached: Option<SocketAddr>,
    pub health: SocketAddr,
    pub peers_file: PathBuf,
    pub extra: Vec<String>,
    /// The sidecar of another version, in place of this one's.
    pub program: Option<PathBuf>,
    /// A program that runs the member, and its arguments.
    pub wrapper: Vec<String>,
    /// Where what it says is added, if not to the test's own output.
    pub said: Option<PathBuf>,
    /// How often it was started.
    pub starts: usize,
    child: Option<Child>,
}

impl Member {
    pub fn new(dir: &Path, name: &str) -> Member {
        Member {
            name: name.to_owned(),
            data_dir: dir.join(name),
            socket: dir.join(format!("{name}.sock")),
            peer: free_address(),
            reached: None,
            health: free_address(),
            peers_file: dir.join("peers"),
            extra: Vec::new(),
            program: None,
            wrapper: Vec::new(),
            said: None,
            starts: 0,
            child: None,
        }
    }

    fn run(&self) -> Command {
        let mut command = match self.wrapper.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(env!("CARGO_BIN_EXE_synod-sidecar"));
                command
            }
            None => self.program.as_deref().map_or_else(binary, of_program),
        };
        command
            .arg("run")
            .arg("--data-dir")
            .arg(&self.data_dir)
            .arg("--socket")
            .arg(&self.socket)
            .arg("--peer-listen")
            .arg(self.peer.to_string())
            .arg("--health-listen")
            .arg(self.health.to_string())
            .arg("--peers-file")
            .arg(&self.peers_file)
            .args(["--name", &self.name, "--log", "warn"])
            .env("SYNOD_DISK_RESERVE", "0")
            .args(self.reached.iter().flat_map(|address| ["--advertise".to_owned(), address.to_string()]))
            .args(&self.extra);
        command
    }

    pub fn start(&mut self) {
        let mut command = self.run();
        command.stdin(Stdio::null());
        if !self.wrapper.is_empty() {
            command.stderr(Stdio::piped());
        }
        if let Some(path) = &self.said {
            command.stderr(File::options().append(true).create(true).open(path).unwrap());
        }
        self.child = Some(command.spawn().unwrap());
        self.starts += 1;
    }

    /// The process id.
    pub fn process(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// The most memory that its process ever had resident, in bytes; 0 once it has ended.
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kibibytes.unwrap_or_default() << 10
    }

    /// Waits for the end of a wrapped member: its exit code and what it said.
    pub fn end(&mut self) -> (Option<i32>, String) {
        let output = self.child.take().unwrap().wait_with_output().unwrap();
        (output.status.code(), stderr(&output))
    }

    /// For starts that fail: waits for the end.
    pub fn run_to_end(&self) -> Output {
        self.run().stdin(Stdio::null()).output().unwrap()
    }

    /// Whether its process has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some())
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // One that has ended by itself is only waited for.
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// SIGTERM; the exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        let mut child = self.child.take()?;
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        child.wait().unwrap().code()
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.socket).unwrap()
    }

    pub async fn answers(&self) -> StatusResponse {
        until("the member answers", || async {
            synod_client::wire::status(&self.client())
                .await
                .map_err(|error| (&self.name, error, self.last_words()))
        })
        .await
    }

    /// What it said last, to be shown by a test that fails.
    pub fn last_words(&self) -> LastWords {
        LastWords(self.said.clone())
    }

    pub async fn ready(&self) -> StatusResponse {
        let look =
            || async { is_ready(self.client()).await.map_err(|error| format!("{}: {error}", self.name)) };
        until("the member is ready", look).await
    }

    /// Awaits a condition at a member that is started whenever it has ended, as a kubelet does: one that met a full disk
    /// may end a moment after there is space again.
    pub async fn kept_running<T, F: Future<Output = Result<T, String>>>(
        &mut self,
        what: &str,
        mut look: impl FnMut(Client) -> F,
    ) -> T {
        until(what, || {
            if self.has_ended() {
                self.start();
            }
            let (looked, name, last_words) = (look(self.client()), self.name.clone(), self.last_words());
            async move { looked.await.map_err(|error| (name, error, last_words)) }
        })
        .await
    }

    pub fn admin(&self, arguments: &[&str]) -> Output {
        let dir = self.data_dir.to_str().unwrap();
        let (command, rest) = arguments.split_first().unwrap();
        binary().args(["admin", command, "--data-dir", dir]).args(rest).output().unwrap()
    }

    /// All that the health port tells.
    pub fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.health).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    /// One of the numbers on the health port.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.metrics();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is missing: {text}")).parse().unwrap()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn id(member: u64) -> String {
    format!("{member:016x}")
}

/// A cluster of processes in a temporary directory.
pub struct Cluster {
    /// Before the directory, so that the processes end before it goes.
    pub members: Vec<Member>,
    pub dir: tempfile::TempDir,
    pub cluster_id: uuid::Uuid,
}

impl Cluster {
    /// Starts `count` members that know each other's addresses, and initialises nothing.
    pub async fn empty(count: usize) -> Cluster {
        Cluster::prepared(count, |_| {}).await
    }

    /// The same, each member made ready before it starts.
    pub async fn prepared(count: usize, mut prepare: impl FnMut(&mut Member)) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = Cluster { dir, members: Vec::new(), cluster_id: uuid::Uuid::new_v4() };
        for _ in 0..count {
            cluster.add_prepared(&mut prepare).await;
        }
        cluster
    }

    /// Starts one more member; its address goes into the peers file, which the others read again.
    pub async fn add(&mut self) -> usize {
        self.add_prepared(|_| {}).await
    }

    async fn add_prepared(&mut self, prepare: impl FnOnce(&mut Member)) -> usize {
        let number = self.members.len();
        let mut member = Member::new(self.dir.path(), &format!("n{number}"));
        prepare(&mut member);
        self.members.push(Member::new(self.dir.path(), "unused"));
        std::mem::swap(&mut self.members[number], &mut member);
        let addresses: String =
            self.members.iter().map(|m| format!("{}\n", m.reached.unwrap_or(m.peer))).collect();
        std::fs::write(self.dir.path().join("peers"), addresses).unwrap();
        self.members[number].start();
        self.members[number].answers().await;
        number
    }

    /// Starts and initialises.
    pub async fn of(count: usize) -> Cluster {
        let cluster = Cluster::empty(count).await;
        cluster.form().await;
        cluster
    }

    /// Initialises, and waits until all are ready.
    pub async fn form(&self) {
        self.initialize().await;
        for member in &self.members {
            member.ready().await;
        }
    }

    /// Tells a member with an empty disk which cluster it will belong to, as another member has it.
    pub async fn let_join(&self, new: usize, other: usize) {
        let of_cluster = self.members[other].answers().await;
        let digest: String = of_cluster.genesis_digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let cluster_id = format!("--cluster-id={}", self.cluster_id);
        let output = self.members[new].admin(&["join", &cluster_id, &format!("--genesis-digest={digest}")]);
        assert!(output.status.success(), "{}", stderr(&output));
    }

    pub async fn initialize(&self) {
        let mut arguments = vec!["initialize".to_owned(), format!("--cluster-id={}", self.cluster_id)];
        for member in &self.members {
            let status = member.answers().await;
            assert_eq!(status.state(), MemberState::Uninitialized);
            arguments.push(format!("--member={}={}", id(status.member), member.name));
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        for member in &self.members {
            let output = member.admin(&arguments);
            assert!(output.status.success(), "{}", stderr(&output));
        }
    }

    /// The number of the member that leads.
    pub async fn leader(&self) -> usize {
        until("a member leads", || async {
            for (number, member) in self.members.iter().enumerate() {
                match synod_client::wire::status(&member.client()).await {
                    Ok(status) if status.role() == Role::Leader => return Ok(number),
                    _ => {}
                }
            }
            Err("none leads")
        })
        .await
    }
}
