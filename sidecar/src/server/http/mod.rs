//! HTTP and JSON on the socket, for whoever has no gRPC library. Each request is carried out by the service that carries
//! out the gRPC call: the same bounds, the same reasons (docs: socket.md, "With curl").

mod checkpoints;
mod consumers;
mod entries;
mod events;
mod input;
mod openapi;
mod problem;
mod role;
mod routes;

use super::cluster::ClusterService;
use super::identity::LogName;
use super::{CheckpointsService, ConsumersService, Guard, LogService, cluster, failure};
use crate::checkpoints::Checkpoints;
use crate::connections::{PLAIN_BODY, Plain, Weight};
use crate::shared::Shared;
use crate::spans::Trace;
use crate::views;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Response, header};
use axum::response::IntoResponse;
use problem::Problem;
use routes::{Call, Route};
use schemars::JsonSchema;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use synod_proto::v1::Reason;
use tonic::Status;
use tonic::service::Routes;

/// What every request is carried out by.
#[derive(Clone)]
struct Api {
    log: LogService,
    consumers: ConsumersService,
    checkpoints: CheckpointsService,
    cluster: ClusterService,
    shared: Arc<Shared>,
}

/// A request, taken apart.
struct Asked {
    /// The name at the end of the path, where there is one.
    name: String,
    query: input::Query,
    headers: HeaderMap,
    /// The trace that it is in.
    trace: Option<Trace>,
    body: Body,
}

pub(super) use routes::call_name;

type Answer = Result<Response<Body>, Problem>;

/// What a member offers beside gRPC.
pub fn plain(shared: &Arc<Shared>, guard: &Guard, kept: &Checkpoints) -> Plain {
    let api = Api {
        log: LogService::new(shared.clone(), guard.clone()),
        consumers: ConsumersService::new(shared.clone(), guard.clone()),
        checkpoints: CheckpointsService::new(kept.clone()),
        cluster: ClusterService::new(shared.clone()),
        shared: shared.clone(),
    };
    let router = Router::new().fallback(serve).with_state(api);
    Plain { routes: Routes::from(router), problem: refusal, flows }
}

fn refusal(status: &Status) -> Response<tonic::body::Body> {
    Problem::from(status).into_response().map(tonic::body::Body::new)
}

/// Whether a request's body is taken as it comes, and never in memory as a whole.
fn flows(request: &Parts) -> bool {
    routes::find(&request.method, request.uri.path())
        .is_ok_and(|(route, _)| route.call == Call::SaveCheckpoint)
}

async fn serve(State(api): State<Api>, request: Request) -> Response<Body> {
    let log = LogName::new(api.shared.clone());
    let mut response = answer(&api, &log, request).await.unwrap_or_else(Problem::into_response);
    log.put(response.headers_mut());
    response
}

async fn answer(api: &Api, log: &LogName, request: Request) -> Answer {
    let (parts, body) = request.into_parts();
    let found = understood(&parts);
    let call = found.as_ref().ok().map(|(route, ..)| route.call);
    let takes_body = matches!(call, Some(Call::Append | Call::SaveCheckpoint));
    let body = if takes_body { body } else { input::discarded(body).await };
    let (route, name, query) = found?;
    if let Some(failure) = log.refuses(&parts.headers) {
        let problem = Problem::from(failure::status(failure));
        return Err(if route.call == Call::Append { problem.of_append() } else { problem });
    }
    let trace = parts.extensions.get().cloned();
    let asked = Asked { name, query, headers: parts.headers, trace, body };
    match route.call {
        Call::Append => entries::append(api, asked).await,
        Call::Read => entries::read(api, asked).await,
        Call::Follow => entries::follow(api, asked).await,
        Call::Tail => entries::tail(api, asked).await,
        Call::Status => status(api).await,
        Call::Info => info(api).await,
        Call::Role => role::watch(api).await,
        Call::ListConsumers => consumers::list(api, asked).await,
        Call::GetConsumer => consumers::get(api, asked).await,
        Call::RegisterConsumer => consumers::register(api, asked).await,
        Call::AdvanceConsumer => consumers::advance(api, asked).await,
        Call::SeekConsumer => consumers::seek(api, asked).await,
        Call::RemoveConsumer => consumers::remove(api, asked).await,
        Call::ListCheckpoints => checkpoints::list(api, asked).await,
        Call::FetchCheckpoint | Call::FetchNewestCheckpoint => checkpoints::fetch(api, asked).await,
        Call::SaveCheckpoint => checkpoints::save(api, asked).await,
        Call::ResumeCheckpoint => checkpoints::resume(api, asked).await,
        Call::Openapi => json(&openapi::document()),
    }
}

/// What is asked for: the route, the name in the path, and the parameters.
fn understood(parts: &Parts) -> Result<(&'static Route, String, input::Query), Problem> {
    let (route, name) = routes::find(&parts.method, parts.uri.path())?;
    let query = input::Query::parse(parts.uri.query(), &route.parameters());
    let query = query.map_err(|problem| match route.call {
        Call::Append => problem.of_append(),
        _ => problem,
    })?;
    if let Some((missing, _, meaning)) = route.missing(&query) {
        return Err(Problem::invalid(format!("{missing} is missing: {meaning}")));
    }
    Ok((route, name, query))
}

impl Api {
    /// The first index that can be read here.
    fn first_index(&self) -> u64 {
        self.shared.handle().first_index().0
    }
}

/// A request to a service, with its deadline.
fn request<T>(message: T, timeout: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(timeout);
    request
}

/// The same request, in a trace.
fn in_trace<T>(mut request: tonic::Request<T>, trace: Option<Trace>) -> tonic::Request<T> {
    if let Some(trace) = trace {
        request.extensions_mut().insert(trace);
    }
    request
}

fn json(answer: &impl Serialize) -> Answer {
    let text = serde_json::to_vec(answer).map_err(|error| Problem::new(Reason::Internal, error))?;
    let weight = Weight { bytes: text.len(), place: None };
    let mut response = Response::new(Body::from(text));
    response.extensions_mut().insert(weight);
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}

async fn status(api: &Api) -> Answer {
    let status = cluster::status(&api.shared).await?;
    json(&views::status(&status).map_err(|error| Problem::new(Reason::Internal, error))?)
}

/// Versions and bounds.
#[derive(Debug, Serialize, JsonSchema)]
struct Info {
    /// The member's version.
    version: String,
    /// The versions of this interface.
    api: Vec<String>,
    /// Bytes of one entry at most; unknown while the member knows no cluster.
    entry_bytes: Option<u32>,
    /// Bytes of the entries of one append at most; unknown while the member knows no cluster.
    call_bytes: Option<u32>,
    /// Entries of one append at most.
    call_entries: usize,
    /// Bytes of a request's body at most.
    body_bytes: usize,
}

async fn info(api: &Api) -> Answer {
    let status = cluster::status(&api.shared).await?;
    let limits = status.settings.and_then(|settings| settings.limits);
    json(&Info {
        version: status.version,
        api: vec!["v1".to_owned()],
        entry_bytes: limits.map(|limits| limits.entry_bytes),
        call_bytes: limits.map(|limits| limits.call_bytes),
        call_entries: input::ENTRIES,
        body_bytes: PLAIN_BODY,
    })
}
