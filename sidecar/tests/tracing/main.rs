//! Spans of calls at a real OpenTelemetry Collector: whoever traces a call finds the member's part of it in its own trace.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

use common::{Cluster, Member, free_address, until};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use synod_client::wire::channel;
use synod_proto::v1::append_request::Identity;
use synod_proto::v1::log_client::LogClient;
use synod_proto::v1::subscribe_request::{End, Start};
use synod_proto::v1::{AppendRequest, Entry, IdempotencyKey, SubscribeRequest, TailRequest};
use tokio::process::{Child, Command};
use tonic::Request;
use tonic::transport::Channel;

/// A trace of the caller's, and the caller's span.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// A collector, and the file that it writes spans to, a JSON object a line.
struct Collector {
    _process: Child,
    address: SocketAddr,
    file: PathBuf,
}

impl Collector {
    async fn start(dir: &Path) -> Collector {
        let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tracing/build");
        let built = Command::new(build).stderr(Stdio::inherit()).output().await.unwrap();
        assert!(built.status.success());
        let (address, file) = (free_address(), dir.join("spans.json"));
        let settings = serde_json::json!({
            "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": address}}}},
            "exporters": {"file": {"path": file, "flush_interval": "50ms"}},
            "service": {
                "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "error"}},
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["file"]}},
            },
        });
        let mut command = Command::new(String::from_utf8(built.stdout).unwrap().trim());
        command.arg("--config").arg(format!("yaml:{settings}")).stdin(Stdio::null()).kill_on_drop(true);
        let process = command.spawn().unwrap();
        until("the collector listens", || tokio::net::TcpStream::connect(address)).await;
        Collector { _process: process, address, file }
    }

    /// The spans that came so far, by name.
    fn spans(&self) -> BTreeMap<String, Value> {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let mut spans = BTreeMap::new();
        // The last line may be on its way.
        for batch in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            for resource in batch["resourceSpans"].as_array().unwrap() {
                for scope in resource["scopeSpans"].as_array().unwrap() {
                    for span in scope["spans"].as_array().unwrap() {
                        let mut span = span.clone();
                        span["resource"] = resource["resource"].clone();
                        spans.insert(span["name"].as_str().unwrap().to_owned(), span);
                    }
                }
            }
        }
        spans
    }

    async fn has(&self, names: &[&str]) -> BTreeMap<String, Value> {
        until("the collector has the spans", || async {
            let spans = self.spans();
            if names.iter().all(|name| spans.contains_key(*name)) { Ok(spans) } else { Err(spans) }
        })
        .await
    }
}

fn attributes(of: &Value) -> BTreeMap<&str, &str> {
    let attributes = of["attributes"].as_array().unwrap().iter();
    attributes.map(|a| (a["key"].as_str().unwrap(), a["value"]["stringValue"].as_str().unwrap())).collect()
}

fn traced<T>(message: T, flags: &str) -> Request<T> {
    in_trace(message, TRACE, flags)
}

fn in_trace<T>(message: T, trace: &str, flags: &str) -> Request<T> {
    let mut request = Request::new(message);
    let parent = format!("00-{trace}-{CALLER}-{flags}").parse().unwrap();
    request.metadata_mut().insert("traceparent", parent);
    request
}

fn log(member: &Member) -> LogClient<Channel> {
    LogClient::new(channel(&member.socket).unwrap())
}

/// A member that sends its spans there.
async fn sending_to(collector: SocketAddr) -> Cluster {
    let endpoint = format!("--otlp-endpoint=http://{collector}");
    let cluster = Cluster::prepared(1, |member| member.extra.push(endpoint.clone())).await;
    cluster.form().await;
    cluster
}

async fn curl(member: &Member, path: &str, arguments: &[&str]) {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--unix-socket"]).arg(&member.socket).args(arguments);
    let done = curl.arg(format!("http://synod{path}")).stdout(Stdio::null()).status().await.unwrap();
    assert!(done.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_in_their_callers_traces() {
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::start(dir.path()).await;
    let mut cluster = sending_to(collector.address).await;
    let member = &cluster.members[0];
    let append = |expected_index| AppendRequest {
        entries: vec!["traced".into()],
        expected_index,
        ..AppendRequest::default()
    };
    log(member).append(traced(append(Some(9)), "01")).await.unwrap_err();
    let refused = collector.has(&["Log.Append"]).await.remove("Log.Append").unwrap();
    assert_eq!((&refused["traceId"], &refused["parentSpanId"]), (&TRACE.into(), &CALLER.into()));
    // SERVER; ERROR.
    assert_eq!((refused["kind"].as_u64(), refused["status"]["code"].as_u64()), (Some(2), Some(2)));
    assert_eq!(attributes(&refused)["synod.reason"], "EXPECTED_INDEX");
    assert_eq!(attributes(&refused["resource"])["service.name"], "synod-sidecar");
    assert_eq!(attributes(&refused["resource"])["service.instance.id"], "n0");
    // Neither a call that is not traced nor one that its caller left out makes a span; over HTTP it is the same.
    log(member).tail(TailRequest::default()).await.unwrap();
    log(member).tail(traced(TailRequest::default(), "00")).await.unwrap();
    let parent = format!("traceparent: 00-{TRACE}-{CALLER}-01");
    curl(member, "/v1/status", &[]).await;
    curl(member, "/v1/entries", &["-H", &parent, "-d", "traced"]).await;
    // What was not sent yet is sent at the end.
    log(member).append(traced(append(None), "01")).await.unwrap();
    assert_eq!(cluster.members[0].terminate(), Some(0));
    let spans = collector.has(&["POST /v1/entries"]).await;
    let names: Vec<_> = spans.keys().collect();
    assert_eq!(names, ["Log.Append", "POST /v1/entries"]);
    for span in spans.values() {
        assert_eq!((&span["traceId"], &span["parentSpanId"]), (&TRACE.into(), &CALLER.into()));
        assert_eq!((attributes(span)["synod.reason"], span["status"]["code"].as_u64()), ("OK", Some(1)));
    }
}

/// From the caller into the entry, and from there to whoever subscribes, in a trace of its own or in none.
#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_through_the_log_to_subscribers() {
    const OTHER: &str = "0af7651916cd43dd8448eb211c80319c";
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::start(dir.path()).await;
    let mut cluster = sending_to(collector.address).await;
    let member = &cluster.members[0];
    let keyed = || AppendRequest {
        entries: vec!["traced".into()],
        identity: Some(Identity::Key(IdempotencyKey { key: "k".into(), minted_at: None })),
        ..AppendRequest::default()
    };
    let first = log(member).append(traced(keyed(), "01")).await.unwrap().into_inner();
    // Who tries again does so in another span, or in none: it is the same append.
    for request in [in_trace(keyed(), OTHER, "01"), Request::new(keyed())] {
        let again = log(member).append(request).await.unwrap().into_inner();
        assert_eq!((again.repeated, again.first_index), (true, first.first_index));
    }
    // What nobody traces has no header.
    log(member).append(traced(AppendRequest { identity: None, ..keyed() }, "00")).await.unwrap();
    let parent = format!("traceparent: 00-{TRACE}-{CALLER}-01");
    curl(member, "/v1/entries", &["-H", &parent, "-d", "over HTTP"]).await;
    let whole = SubscribeRequest { start: Some(Start::From(1)), end: Some(End::Until(3)) };
    let mut stream = log(member).subscribe(in_trace(whole, OTHER, "01")).await.unwrap().into_inner();
    let mut entries: Vec<Entry> = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        entries.extend(message.entries);
    }
    let parents: Vec<_> = entries.iter().map(|entry| entry.headers.get("traceparent")).collect();
    assert_eq!(cluster.members[0].terminate(), Some(0));
    let names = ["Log.Append", "POST /v1/entries", "Log.Subscribe", "Log.Subscribe (one entry)"];
    let spans = collector.has(&names).await;
    let named = |span: &Value| format!("00-{TRACE}-{}-01", span["spanId"].as_str().unwrap());
    let over_http = named(&spans["POST /v1/entries"]);
    assert_eq!(parents[1..], [None, Some(&over_http)]);
    assert!(parents[0].unwrap().starts_with(&format!("00-{TRACE}-")), "{parents:?}");
    assert!(parents[0].unwrap().ends_with("-01") && *parents[0].unwrap() != over_http, "{parents:?}");
    // The last one that was given out is the one that came over HTTP.
    let given = &spans["Log.Subscribe (one entry)"];
    assert_eq!(
        (&given["traceId"], &given["parentSpanId"]),
        (&TRACE.into(), &spans["POST /v1/entries"]["spanId"])
    );
    let (link, call) = (&given["links"][0], &spans["Log.Subscribe"]);
    assert_eq!((&link["traceId"], &link["spanId"]), (&call["traceId"], &call["spanId"]));
    assert_eq!(call["traceId"], OTHER);
}

/// A collector that is not there costs no call, and no time at the end that a kubelet would notice.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_collector_costs_no_call() {
    let mut cluster = sending_to(free_address()).await;
    for _ in 0..10 {
        let append = AppendRequest { entries: vec!["traced".into()], ..AppendRequest::default() };
        log(&cluster.members[0]).append(traced(append, "01")).await.unwrap();
    }
    assert_eq!(cluster.members[0].terminate(), Some(0));
}
