//! Stock gRPC clients, as their documentation shows them and with their default options, against real members: each
//! appends, reads a refusal, and follows the log across a killed leader.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod documented;

use common::{Cluster, PATIENCE, until};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Whether refusals carry a `google.rpc.Status` in their details: their reason is then read as each library does it.
const DETAILS: bool = true;
/// The reason of an append whose condition does not hold.
const REASON: &str = "EXPECTED_INDEX";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stock")
}

fn protos() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/proto")
}

/// Runs one of the folder's scripts that install a library; what it prints.
async fn installed(script: &str, arguments: &[&Path]) -> PathBuf {
    let output = Command::new(folder().join(script)).args(arguments).stderr(Stdio::inherit()).output().await;
    let output = output.unwrap();
    assert!(output.status.success(), "{script} failed");
    String::from_utf8(output.stdout).unwrap().trim().into()
}

/// A client program: commands go in, answers come out, a line each.
struct Program {
    _child: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Program {
    fn start(command: &mut Command) -> Program {
        if DETAILS {
            command.arg("--details");
        }
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let (commands, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Program { _child: child, commands, answers: BufReader::new(answers).lines() }
    }

    async fn tell(&mut self, command: &str) {
        self.commands.write_all(format!("{command}\n").as_bytes()).await.unwrap();
    }

    async fn answer(&mut self) -> String {
        let line = tokio::time::timeout(PATIENCE, self.answers.next_line()).await;
        line.expect("the client answers").unwrap().expect("the client runs")
    }

    async fn ask(&mut self, command: &str) -> String {
        self.tell(command).await;
        self.answer().await
    }
}

/// A cluster of three, its leader, and a member that follows.
async fn cluster() -> (Cluster, usize, usize) {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    (cluster, leader, (leader + 1) % 3)
}

fn target(path: &Path) -> String {
    format!("unix://{}", path.display())
}

/// What every program has to do: `writer` and `reader` are two runs of it at a member that follows.
async fn works(mut cluster: Cluster, leader: usize, mut writer: Program, mut reader: Program) {
    assert_eq!(writer.ask("append first").await, "appended 1");
    let reason = if DETAILS { REASON } else { "" };
    let refused = writer.ask("refused").await;
    assert_eq!(refused.trim_end(), format!("refused FAILED_PRECONDITION {reason}").trim_end());
    reader.tell("subscribe 1").await;
    assert_eq!(reader.answer().await, "entry 1 first");
    for number in 2..=20 {
        if number == 10 {
            cluster.members[leader].kill();
        }
        assert_eq!(writer.ask(&format!("append entry-{number}")).await, format!("appended {number}"));
        assert_eq!(reader.answer().await, format!("entry {number} entry-{number}"));
    }
}

async fn python(script: &str) {
    let (cluster, leader, follower) = cluster().await;
    let generated = cluster.dir.path().join("generated");
    let interpreter = installed("python", &[&generated]).await;
    let start = || {
        let mut command = Command::new(&interpreter);
        command.arg(folder().join(script)).arg(target(&cluster.members[follower].socket));
        Program::start(command.env("PYTHONPATH", &generated).env("PYTHONUNBUFFERED", "1"))
    };
    let (writer, reader) = (start(), start());
    works(cluster, leader, writer, reader).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python_grpcio() {
    python("client.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python_grpc_aio() {
    python("client_aio.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_grpc_js() {
    let (cluster, leader, follower) = cluster().await;
    let packages = installed("node", &[]).await;
    let start = || {
        let mut command = Command::new("node");
        command.arg(folder().join("client.js")).arg(target(&cluster.members[follower].socket)).arg(protos());
        Program::start(command.env("NODE_PATH", &packages))
    };
    let (writer, reader) = (start(), start());
    works(cluster, leader, writer, reader).await;
}

/// A client program that is built into a folder of the test's own, of which the script says how it is run.
async fn built(script: &str, command: impl Fn(&Path) -> Command) {
    let (cluster, leader, follower) = cluster().await;
    let place = installed(script, &[&cluster.dir.path().join("client")]).await;
    let start = || {
        let mut command = command(&place);
        Program::start(command.arg(target(&cluster.members[follower].socket)))
    };
    let (writer, reader) = (start(), start());
    works(cluster, leader, writer, reader).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn go_grpc_go() {
    built("grpc-go", |program| Command::new(program)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn java_grpc_java() {
    built("grpc-java", |classes| {
        let mut java = Command::new("java");
        java.arg("-cp").arg(classes).arg("Client");
        java
    })
    .await;
}

/// One call with grpcurl, which is grpc-go: what it prints, or the error.
async fn grpcurl(program: &Path, socket: &Path, method: &str, request: &str) -> Result<String, String> {
    let output = grpcurl_command(program, socket, method, request).output().await.unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

fn grpcurl_command(program: &Path, socket: &Path, method: &str, request: &str) -> Command {
    let mut command = Command::new(program);
    command.args(["-plaintext", "-unix", "-import-path"]).arg(protos());
    command.args(["-proto", "synod/v1/log.proto", "-d", request]).arg(socket);
    command.arg(format!("synod.v1.Log/{method}")).kill_on_drop(true);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn go_grpcurl() {
    let (mut cluster, leader, follower) = cluster().await;
    let program = installed("go", &[]).await;
    let socket = cluster.members[follower].socket.clone();
    let refused = grpcurl(&program, &socket, "Append", r#"{"entries": ["aGk="], "expected_index": 1000000}"#);
    let refused = refused.await.unwrap_err();
    assert!(refused.contains("FailedPrecondition"), "{refused}");
    assert!(!DETAILS || refused.contains(REASON), "{refused}");
    let mut following = grpcurl_command(&program, &socket, "Subscribe", r#"{"from": 1}"#);
    let mut following = following.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    for number in 1..=10 {
        if number == 5 {
            cluster.members[leader].kill();
        }
        // The key, which is the entry, makes it one append however often it is tried.
        let request = format!(r#"{{"entries": ["aGk{number:x}"], "key": {{"key": "aGk{number:x}"}}}}"#);
        let appended = until("grpcurl appends", || grpcurl(&program, &socket, "Append", &request)).await;
        assert!(appended.contains(&format!(r#""firstIndex": "{number}""#)), "{appended}");
        let index = loop {
            let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
            if let Some((_, index)) = line.split_once(r#""index": "#) {
                break index.to_owned();
            }
        };
        assert_eq!(index, format!(r#""{number}","#));
    }
}
