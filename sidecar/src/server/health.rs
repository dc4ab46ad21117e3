//! The health port: /startupz, /readyz, /livez and /metrics.

use super::convert;
use crate::connections::{Connection, Incoming, Tally};
use crate::descriptors;
use crate::driver::Report;
use crate::shared::Shared;
use crate::space::{Room, Space};
use crate::telemetry::Metrics;
use crate::tls::{Tls, Validity};
use crate::transport::Context;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use synod_paxos::status::{MemberState, Role};
use tokio::net::{TcpListener, TcpStream};

/// How long the driver's loop may take for a turn before the member counts as hung.
const LOOP_PATIENCE: Duration = Duration::from_secs(5);

/// What the port tells about. It listens before the disk is open: recovery may take long.
#[derive(Clone, Debug, Default)]
pub struct Health {
    running: Arc<OnceLock<Running>>,
}

#[derive(Debug)]
struct Running {
    shared: Arc<Shared>,
    dropped: Arc<AtomicU64>,
    tls: Option<Tls>,
    /// What counts by itself.
    counted: Registry,
}

impl Health {
    /// The disk is recovered and the socket open.
    pub(crate) fn started(&self, context: &Context, metrics: &Metrics) {
        let Context { shared, tls, dropped, .. } = context.clone();
        // Told once; a second telling would change nothing.
        let counted = counted(metrics);
        drop(self.running.set(Running { shared, dropped, tls, counted }));
    }

    async fn report(&self) -> Option<Report> {
        let running = self.running.get()?;
        let handle = running.shared.handle();
        tokio::time::timeout(LOOP_PATIENCE, handle.status()).await.ok()?.ok()
    }
}

impl Listener for Incoming<TcpListener> {
    type Io = Connection<TcpStream>;
    type Addr = ();

    async fn accept(&mut self) -> (Connection<TcpStream>, ()) {
        (self.next().await, ())
    }

    fn local_addr(&self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A connection is for one request: none stays open, and one that asks nothing is closed.
async fn close(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Serves until the process ends.
pub async fn serve(listener: Incoming<TcpListener>, health: Health) {
    let router = Router::new()
        .route("/startupz", get(startup))
        .route("/readyz", get(ready))
        .route("/livez", get(live))
        .route("/metrics", get(metrics))
        .with_state(health);
    let router = router.layer(axum::extract::DefaultBodyLimit::max(0)).layer(map_response(close));
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the health port ended");
    }
}

fn say(ok: bool, text: impl Into<String>) -> Response {
    let code = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, format!("{}\n", text.into())).into_response()
}

/// Storage recovered and the socket open; not whether there is a quorum.
async fn startup(State(health): State<Health>) -> Response {
    match health.running.get() {
        Some(_) => say(true, "started"),
        None => say(false, "the disk is being recovered"),
    }
}

async fn ready(State(health): State<Health>) -> Response {
    match health.report().await {
        Some(report) => match convert::readiness(&report.status) {
            Ok(()) => say(true, "ready"),
            Err(why) => say(false, why),
        },
        None => say(false, "not started, or stopping"),
    }
}

/// The loop turns, nothing more; before the start there is no loop that could hang.
async fn live(State(health): State<Health>) -> Response {
    match health.running.get() {
        Some(running) if !running.shared.is_stopping() => match health.report().await {
            Some(_) => say(true, "alive"),
            None => say(false, "the loop does not turn"),
        },
        _ => say(true, "alive"),
    }
}

async fn metrics(State(health): State<Health>) -> Response {
    let (Some(running), Some(report)) = (health.running.get(), health.report().await) else {
        return say(false, "not started, or stopping");
    };
    let mut text = String::new();
    let told = encode_registry(&mut text, &running.counted)
        .and_then(|()| encode_registry(&mut text, &looked_at(running, &report)))
        .and_then(|()| encode_eof(&mut text));
    match told {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => say(false, error.to_string()),
    }
}

fn counter(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let counter = Counter::<u64>::default();
    counter.inc_by(value);
    registry.register(name, help, counter);
}

/// What counts while the member runs: registered once.
fn counted(metrics: &Metrics) -> Registry {
    let mut registry = Registry::with_prefix("synod");
    let calls = &metrics.calls;
    registry.register("calls", "Calls that have ended, by call and reason; OK: done", calls.answered.clone());
    registry.register(
        "call_seconds",
        "Time until a call was answered; of a stream, until it began",
        calls.seconds.clone(),
    );
    registry.register("calls_open", "Calls that have not ended", calls.open.clone());
    registry.register("append_calls", "Append calls taken from clients", metrics.append_calls.clone());
    registry.register("append_entries", "Entries of append calls", metrics.append_entries.clone());
    registry.register("appended", "Append calls answered with indexes", metrics.appended.clone());
    registry.register(
        "append_repeats",
        "Append calls that an earlier try had appended",
        metrics.append_repeats.clone(),
    );
    registry.register("append_refused", "Append calls refused for certain", metrics.append_refused.clone());
    registry.register("append_unknown", "Append calls with unknown outcome", metrics.append_unknown.clone());
    registry.register("turns", "Turns of the driver's loop", metrics.turns.clone());
    registry.register("commit_batches", "Write batches of the core", metrics.commit_batches.clone());
    registry.register("commit_seconds", "Time of a disk transaction", metrics.commit_seconds.clone());
    rows(&mut registry, metrics);
    checkpoints(&mut registry, metrics);
    sockets(&mut registry, &metrics.sockets);
    let version = Family::<[(&str, &str); 1], Gauge>::default();
    version.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))]).set(1);
    registry.register("build_info", "1, with the version of this program", version);
    registry
}

/// What is the case at a scrape: read from the core and the system then.
fn looked_at(running: &Running, report: &Report) -> Registry {
    let mut registry = Registry::with_prefix("synod");
    let mut gauge = |name: &str, help: &str, value: u64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    };
    let status = &report.status;
    gauge("last_index", "The last index applied here", status.last_index.0);
    gauge("applied_slot", "Every slot up to it is applied here", status.applied.0);
    gauge("chosen_through", "Every slot up to it is known chosen here", status.chosen_through.0);
    gauge("durable_through", "Every slot up to it is on this disk", status.durable_through.0);
    gauge("fencing_epoch", "The slot of the newest applied LeaderStart", status.fencing_epoch.0);
    gauge("is_leader", "Whether this member leads", u64::from(status.role == Role::Leader));
    gauge("has_leader", "Whether this member knows a leader", u64::from(status.leader.is_some()));
    gauge("ready", "Whether this member is ready", u64::from(convert::readiness(status).is_ok()));
    gauge("incarnation", "Starts of this member", status.incarnation.0);
    gauge(
        "leases",
        "Whether leaders may read under a lease",
        u64::from(status.settings.is_some_and(|s| s.leases)),
    );
    gauge("has_lease", "Whether this leader reads without a round now", u64::from(status.lease));
    gauge("settings_version", "Version of the settings in force", status.settings.map_or(0, |s| s.version));
    gauge(
        "session_rows",
        "Sessions, their answers and keys that the log remembers",
        status.session_rows as u64,
    );
    gauge("waiting_appends", "Appends taken and not answered", status.waiting_appends as u64);
    let connected = status.peers.iter().filter(|peer| peer.connected).count();
    gauge("peers_connected", "Peers with a connection", connected as u64);
    gauge("first_index", "The first index that can be read here", running.shared.handle().first_index().0);
    let waiting = status.damaged.len() as u64;
    gauge("rows_unhealed", "Damaged rows of this disk that wait for a peer's", waiting);
    counter(
        &mut registry,
        "messages_dropped",
        "Messages to peers dropped at full queues",
        running.dropped.load(Ordering::Relaxed),
    );
    counter(
        &mut registry,
        "reads_under_lease",
        "Read points that this leader gave without a round",
        status.reads_under_lease,
    );
    counter(
        &mut registry,
        "messages_unknown",
        "Messages of peers of a kind that this version does not know",
        running.shared.unknown_messages(),
    );
    state(&mut registry, &status.state);
    disk(&mut registry, running.shared.space());
    descriptors(&mut registry);
    if let Some(tls) = &running.tls {
        certificates(&mut registry, tls.validity());
    }
    registry
}

fn certificates(registry: &mut Registry, validity: Validity) {
    let Validity { expires, ca_expires, loads, is_stale } = validity;
    let mut gauge = |name: &str, help: &str, value: i64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    gauge("certificate_expires_seconds", "Seconds until this member's certificate expires", expires);
    gauge(
        "ca_certificate_expires_seconds",
        "Seconds until the last authority of the bundle expires",
        ca_expires,
    );
    gauge(
        "certificate_stale",
        "Whether the certificate files cannot be used and older ones stay in use",
        i64::from(is_stale),
    );
    counter(registry, "certificate_reloads", "Renewed certificate files taken over while running", loads);
}

fn sockets(registry: &mut Registry, tally: &Tally) {
    let Tally {
        connections_refused,
        connections_displaced,
        connections_stalled,
        calls_ended,
        calls_refused,
        messages_ended,
        messages_refused,
        answers_ended,
        answers_refused,
    } = tally;
    let counters = [
        ("socket_connections_refused", "Connections to the sockets without a place", connections_refused),
        (
            "socket_connections_displaced",
            "Idle connections that gave their place away",
            connections_displaced,
        ),
        (
            "socket_connections_stalled",
            "Connections that were closed because nothing was taken off them",
            connections_stalled,
        ),
        ("socket_calls_ended", "Calls that gave way to those of other connections", calls_ended),
        ("socket_calls_refused", "Calls without a place", calls_refused),
        ("socket_messages_ended", "Messages that were late or gave way to others", messages_ended),
        ("socket_messages_refused", "Messages without memory", messages_refused),
        ("socket_answers_ended", "Answers that were not taken in time or gave way", answers_ended),
        ("socket_answers_refused", "Answers without memory", answers_refused),
    ];
    for (name, help, counter) in counters {
        registry.register(name, help, counter.clone());
    }
}

fn descriptors(registry: &mut Registry) {
    let gauge = Gauge::<i64>::default();
    gauge.set(i64::try_from(descriptors::limit()).unwrap_or(i64::MAX));
    registry.register("open_files_limit", "Open files that this process may have", gauge);
    counter(
        registry,
        "descriptor_waits",
        "Times that a file or a connection had to wait for a descriptor",
        descriptors::waited(),
    );
}

fn disk(registry: &mut Registry, space: &Space) {
    let mut gauge = |name: &str, help: &str, value: u64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    };
    gauge("disk_free_bytes", "Bytes that are free on the disk", space.free());
    gauge("disk_reserve_bytes", "Free bytes below which appends are refused", space.reserve());
    gauge(
        "disk_low",
        "Whether less than four times the reserve is free",
        u64::from(space.room() >= Room::Low),
    );
    gauge(
        "disk_full",
        "Whether appends are refused because of this disk",
        u64::from(space.room() >= Room::Full),
    );
    let refused = u64::from(space.refuses().is_some());
    gauge("appends_refused_disk_full", "Whether appends are refused here because of any disk", refused);
}

/// 1 for the state that it is in, 0 for each other.
fn state(registry: &mut Registry, state: &MemberState) {
    let states = Family::<[(&str, &str); 1], Gauge>::default();
    let now = convert::state(state);
    for name in ["UNINITIALIZED", "JOINING", "RECOVERING", "ACTIVE", "FENCED", "REMOVED", "HALTED"] {
        let is_now = now.as_str_name().strip_prefix("MEMBER_STATE_") == Some(name);
        states.get_or_create(&[("state", name)]).set(i64::from(is_now));
    }
    registry.register("member_state", "1 for the state that this member is in", states);
}

fn rows(registry: &mut Registry, metrics: &Metrics) {
    let mut counter = |name: &str, help: &str, counter: &Counter| {
        registry.register(name, help, counter.clone());
    };
    counter("rows_damaged", "Rows of this disk found damaged or missing", &metrics.rows_damaged);
    counter("rows_healed", "Damaged rows that were written again", &metrics.rows_healed);
    let unreadable = "Proposals that got no vote because this version cannot read them";
    counter("proposals_unreadable", unreadable, &metrics.proposals_unreadable);
    let healed = "Damaged snapshots that were written again";
    counter("snapshots_healed", healed, &metrics.snapshots_healed);
    counter("scrub_passes", "Passes of the scrubber through the whole log", &metrics.scrub_passes);
    counter("scrub_rows", "Rows that the scrubber read", &metrics.scrub_rows);
    counter("scrub_bytes", "Bytes that the scrubber read", &metrics.scrub_bytes);
    counter("scrub_broken", "What the scrubber found that peers cannot heal", &metrics.scrub_broken);
    registry.register("scrub_slot", "The slot that the scrubber has come to", metrics.scrub_slot.clone());
}

fn checkpoints(registry: &mut Registry, metrics: &Metrics) {
    registry.register(
        "checkpoints_missing",
        "Checkpoints that the log names and this disk lacks",
        metrics.checkpoints_missing.clone(),
    );
    registry.register(
        "checkpoints_saved",
        "Checkpoints saved through this member",
        metrics.checkpoints_saved.clone(),
    );
    registry.register(
        "checkpoints_damaged",
        "Checkpoints that failed a checksum on this disk",
        metrics.checkpoints_damaged.clone(),
    );
    registry.register(
        "checkpoint_bytes_given",
        "Bytes of checkpoints that peers got from this member",
        metrics.checkpoint_bytes_given.clone(),
    );
    registry.register(
        "checkpoint_bytes_taken",
        "Bytes of checkpoints that this member got from its peers",
        metrics.checkpoint_bytes_taken.clone(),
    );
}
