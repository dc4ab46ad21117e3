//! The programs of docs/socket.md, "The first minute", as they stand there: each appends under a key and reads the log, twice.

use super::*;
use std::fs;

/// A block of code under a heading of the documentation.
fn block(heading: &str, language: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/socket.md");
    let text = fs::read_to_string(path).unwrap();
    let (_, section) = text.split_once(&format!("\n### {heading}\n")).expect("the heading is there");
    let section = section.split("\n### ").next().unwrap();
    let (_, block) = section.split_once(&format!("```{language}\n")).expect("the block is there");
    block.split_once("```").unwrap().0.to_owned()
}

async fn runs(command: &mut Command, cluster: &Cluster) -> String {
    command.env("SYNOD_SOCKET", &cluster.members[0].socket).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends").unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

/// Under its key it appends once, however often it is run.
async fn appends_once(mut command: impl FnMut() -> Command, cluster: &Cluster) {
    for _ in 0..2 {
        assert_eq!(runs(&mut command(), cluster).await, "appended at 1\n1 hello\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn python() {
    let cluster = Cluster::of(1).await;
    let generated = cluster.dir.path().join("generated");
    let interpreter = installed("python", &[&generated]).await;
    let program = cluster.dir.path().join("first.py");
    fs::write(&program, block("Python", "python")).unwrap();
    let command = || {
        let mut command = Command::new(&interpreter);
        command.arg(&program).env("PYTHONPATH", &generated);
        command
    };
    appends_once(command, &cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node() {
    let cluster = Cluster::of(1).await;
    let packages = installed("node", &[]).await;
    let dir = cluster.dir.path();
    fs::write(dir.join("first.js"), block("Node", "js")).unwrap();
    std::os::unix::fs::symlink(protos(), dir.join("protos")).unwrap();
    let command = || {
        let mut command = Command::new("node");
        command.arg("first.js").current_dir(dir).env("NODE_PATH", &packages);
        command
    };
    appends_once(command, &cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn go() {
    let cluster = Cluster::of(1).await;
    let source = cluster.dir.path().join("first.go");
    fs::write(&source, block("Go", "go")).unwrap();
    let program = installed("grpc-go", &[&cluster.dir.path().join("built"), &source]).await;
    appends_once(|| Command::new(&program), &cluster).await;
}

/// What stands before and after the lines of the documentation in a Java program.
const JAVA: [&str; 2] = [
    "import com.google.protobuf.*;\nimport com.google.rpc.ErrorInfo;\nimport io.grpc.*;\n\
     import io.grpc.protobuf.StatusProto;\nimport java.util.concurrent.TimeUnit;\nimport synod.v1.LogOuterClass.*;\n\n\
     public final class Client {\npublic static void main(String[] arguments) throws Exception {\n",
    "System.exit(0);\n}\n}\n",
];

#[tokio::test(flavor = "multi_thread")]
async fn java() {
    let cluster = Cluster::of(1).await;
    let source = cluster.dir.path().join("Client.java");
    fs::write(&source, [JAVA[0], &block("Java", "java"), JAVA[1]].concat()).unwrap();
    let classes = installed("grpc-java", &[&cluster.dir.path().join("built"), &source]).await;
    let command = || {
        let mut command = Command::new("java");
        command.arg("-cp").arg(&classes).arg("Client");
        command
    };
    appends_once(command, &cluster).await;
}

/// The program of the documentation is this crate's example, which `make programs` builds.
#[tokio::test(flavor = "multi_thread")]
async fn rust() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("client/examples/first_minute.rs");
    let source = fs::read_to_string(example).unwrap();
    assert_eq!(source.split_once("\n\n").unwrap().1, block("Rust", "rust"));
    let cluster = Cluster::of(1).await;
    let built = std::env::current_exe().unwrap();
    let program = built.ancestors().nth(2).unwrap().join("examples/first_minute");
    assert_eq!(runs(&mut Command::new(&program), &cluster).await, "appended at 1\n1 hello\n");
    assert_eq!(runs(&mut Command::new(&program), &cluster).await, "appended at 2\n1 hello\n2 hello\n");
}
