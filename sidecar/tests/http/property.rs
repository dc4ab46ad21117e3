//! Requests made from the OpenAPI document, by schemathesis: what it allows, what lies at its bounds, what it forbids, and
//! one after the other. No answer may be outside of the document, a fault of the member's, or missing.

use super::*;
use tokio::io::copy_bidirectional;
use tokio::net::TcpListener;

/// Requests of each kind at most.
const EXAMPLES: &str = "40";
/// What is judged: how each is done is schemathesis', but the first, which is in checks.py.
const CHECKS: &str = "says_why,status_code_conformance,content_type_conformance,response_headers_conformance,\
                      response_schema_conformance,negative_data_rejection,unsupported_method,allow_header_conformance";

/// An address of loopback that leads to the socket: the tester speaks to no Unix socket.
async fn led_to(socket: &Path) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, socket) = (listener.local_addr().unwrap(), socket.to_owned());
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let socket = socket.clone();
            tokio::spawn(async move {
                let mut to = UnixStream::connect(socket).await.unwrap();
                // How it ends is the tester's business.
                drop(copy_bidirectional(&mut from, &mut to).await);
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_answered_outside_of_the_document() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/http");
    let installed = Command::new(here.join("schemathesis")).stderr(Stdio::inherit()).output().await.unwrap();
    assert!(installed.status.success());
    let program = String::from_utf8(installed.stdout).unwrap();
    let cluster = Cluster::of(1).await;
    let address = led_to(&cluster.members[0].socket).await;
    let mut tester = Command::new(program.trim());
    tester.arg("run").arg(format!("http://{address}/openapi.json")).args(["--checks", CHECKS]);
    // Streams do not end: events_go_on_across_a_killed_leader, roles_come_as_events and bad_input have them.
    for stream in ["/v1/entries/stream", "/v1/role"] {
        tester.args(["--exclude-path", stream]);
    }
    tester.args(["--phases", "coverage,fuzzing,stateful"]);
    tester.args(["--max-examples", EXAMPLES, "--request-timeout", "60", "--seed", "1", "--no-color"]);
    tester.env("SCHEMATHESIS_HOOKS", "checks").env("PYTHONPATH", &here).env("PYTHONDONTWRITEBYTECODE", "1");
    let output = tester.current_dir(cluster.dir.path()).kill_on_drop(true).output().await.unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    let passed =
        told.lines().find_map(|line| line.trim().split_once(" generated, ")?.1.split_once(" passed"));
    let passed: usize = passed.unwrap_or_else(|| panic!("{told}")).0.parse().unwrap();
    println!("{passed} requests");
    assert!(passed > 300, "{told}");
    done(&cluster.members[0].socket, "/v1/tail", &[]).await;
}
