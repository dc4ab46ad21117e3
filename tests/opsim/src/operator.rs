//! One operator: its real reconcile, stopped at every call it makes, and the watches that feed it.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use futures::future::BoxFuture;
use http_body_util::BodyExt;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::DynamicObject;
use kube::client::Body;
use kube::runtime::watcher::Event;
use serde_json::Value;
use synod_operator::build::Kind;
use synod_operator::context::{Context, Outside, Settings};
use synod_operator::controller::look;
use synod_operator::error::Error;
use synod_operator::members::{Answer, Ask, MemberError, Members, Target};
use synod_operator::metrics::Metrics;
use synod_operator::names::LABEL_CLUSTER;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::api::{Change, Object, Objects, Request, Server};

/// Turns that a reconcile may take between two calls: more is no progress.
const TURNS: usize = 1_000;

/// What the operator calls.
#[derive(Debug)]
pub enum Call {
    /// The API server.
    Api(Request, oneshot::Sender<Result<(u16, Vec<u8>), String>>),
    /// A member.
    Ask {
        /// The pod it takes the member for.
        pod: String,
        /// Where it dials.
        ip: String,
        /// What it asks.
        ask: Ask,
        /// Gets the answer.
        reply: oneshot::Sender<Result<Answer, MemberError>>,
    },
}

type Queue = Arc<Mutex<VecDeque<Call>>>;

/// Time and ids, decided by the run.
#[derive(Debug, Default)]
pub struct Clock {
    /// Milliseconds.
    pub now: i64,
    /// Ids given out.
    pub ids: u64,
}

struct Given {
    clock: Arc<Mutex<Clock>>,
    queue: Queue,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Outside for Given {
    fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(lock(&self.clock).now).unwrap_or_default()
    }

    fn fresh_id(&self) -> Uuid {
        let mut clock = lock(&self.clock);
        clock.ids += 1;
        Uuid::from_u128(u128::from(clock.ids) << 64 | 0xc0de)
    }
}

impl Members for Given {
    fn ask<'a>(&'a self, target: &'a Target, ask: Ask) -> BoxFuture<'a, Result<Answer, MemberError>> {
        let (reply, answer) = oneshot::channel();
        let (pod, ip) = (target.pod.clone(), target.ip.clone());
        lock(&self.queue).push_back(Call::Ask { pod, ip, ask, reply });
        Box::pin(async move { answer.await.unwrap_or(Err(MemberError::Malformed("cut off".into()))) })
    }
}

fn client(queue: &Queue) -> Client {
    let queue = Arc::clone(queue);
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let queue = Arc::clone(&queue);
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let content = parts.headers.get("content-type").and_then(|v| v.to_str().ok());
            let request = Request {
                method: parts.method.to_string(),
                path: parts.uri.path().to_owned(),
                query: parts.uri.query().unwrap_or_default().to_owned(),
                content: content.unwrap_or_default().to_owned(),
                body: serde_json::from_slice(&body).unwrap_or(Value::Null),
            };
            let (reply, answer) = oneshot::channel();
            lock(&queue).push_back(Call::Api(request, reply));
            let (code, text) = answer.await??;
            let body = Body::from(text);
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(
                http::Response::builder().status(code).body(body)?,
            )
        }
    });
    Client::new(service, crate::api::NAMESPACE)
}

type Look = Pin<Box<dyn Future<Output = Result<Option<Duration>, Error>>>>;

/// What a look that is under way was read from.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What it read is not older than this, in milliseconds.
    pub since: i64,
    /// The cache it reads, if it reads one.
    pub stale: Option<Objects>,
}

/// What an operator came to when it was let go on.
#[derive(Debug)]
pub enum Turn {
    /// It calls somebody.
    Calls(Call),
    /// The reconcile ended; when the next one is due.
    Ends(Option<Duration>, Option<String>),
}

/// One operator process.
pub struct Operator {
    /// What it shares between reconciles.
    pub context: Arc<Context>,
    /// What it is looking at, if it is.
    pub seen: Option<Seen>,
    /// When the next reconcile is due, in milliseconds; none: only on a change.
    pub due: Option<i64>,
    /// It does nothing before: it is killed, or stands still.
    pub still_until: i64,
    /// Its watches tell nothing before, and begin anew then.
    pub deaf_until: Option<i64>,
    /// How late its watches are, in seconds.
    pub lag: i64,
    queue: Queue,
    look: Option<Look>,
    again: bool,
    told: usize,
    spoken: u64,
    uid: String,
}

impl Operator {
    /// A process that was just started.
    pub fn new(clock: &Arc<Mutex<Clock>>, server: &Server, now: i64) -> Operator {
        let queue = Queue::default();
        let given = || Arc::new(Given { clock: Arc::clone(clock), queue: Arc::clone(&queue) });
        let settings = Settings {
            sidecar_image: "sidecar:1".into(),
            cluster_domain: "cluster.local".into(),
            namespaces: Vec::new(),
            max_rollouts: 1,
        };
        let metrics = Arc::new(Metrics::new());
        let context = Context::with(client(&queue), settings, metrics, given(), given());
        let mut operator = Operator {
            context: Arc::new(context),
            seen: None,
            due: Some(now),
            still_until: now,
            deaf_until: None,
            lag: 0,
            queue,
            look: None,
            again: false,
            told: 0,
            spoken: 0,
            uid: String::new(),
        };
        operator.list(server);
        operator
    }

    /// Whether a reconcile is under way.
    pub fn is_busy(&self) -> bool {
        self.look.is_some()
    }

    /// Begins a reconcile.
    pub fn begin(&mut self, seen: Seen) {
        let context = Arc::clone(&self.context);
        self.look = Some(Box::pin(async move { look(&context, crate::api::NAMESPACE, "demo").await }));
        (self.seen, self.due, self.again) = (Some(seen), None, false);
    }

    /// Lets the reconcile go on to its next call, or to its end.
    pub async fn go_on(&mut self) -> Turn {
        for _ in 0..TURNS {
            let Some(look) = self.look.as_mut() else { return Turn::Ends(None, None) };
            let call = lock(&self.queue).pop_front();
            if let Some(call) = call {
                return Turn::Calls(call);
            }
            if let Poll::Ready(result) = futures::poll!(look.as_mut()) {
                return self.end(result);
            }
            tokio::task::yield_now().await;
        }
        Turn::Ends(None, Some("the reconcile waits for nothing".into()))
    }

    /// A call that was not made yet comes again.
    pub fn give_back(&mut self, call: Call) {
        lock(&self.queue).push_front(call);
    }

    fn end(&mut self, result: Result<Option<Duration>, Error>) -> Turn {
        (self.look, self.seen) = (None, None);
        let why = result.as_ref().err().map(ToString::to_string);
        let pause = synod_operator::controller::next_look(
            &self.context,
            crate::api::NAMESPACE,
            "demo",
            &self.uid,
            &result,
        );
        Turn::Ends(if self.again { Some(Duration::ZERO) } else { pause }, why)
    }

    /// A watch begins: whole lists of everything.
    pub fn list(&mut self, server: &Server) {
        for (kind, _) in KINDS {
            self.hear(*kind, &Event::Init);
        }
        for (path, object) in server.all() {
            if let Some(kind) = kind_of(path) {
                self.hear(kind, &Event::InitApply(metadata(object)));
                self.wake(path, object);
            }
        }
        for (kind, _) in KINDS {
            self.hear(*kind, &Event::InitDone);
        }
        self.told = server.changes.len();
        self.deaf_until = None;
    }

    /// The watches tell what happened, as late as they are; whether anything was told.
    pub fn listen(&mut self, server: &Server, now: i64) {
        match self.deaf_until {
            Some(until) if now < until => return,
            Some(_) => {
                self.list(server);
                self.due = Some(now);
                return;
            }
            None => {}
        }
        while let Some(change) = server.changes.get(self.told) {
            if now / 1000 - change.at < self.lag {
                return;
            }
            self.told += 1;
            let Change { path, object, gone, .. } = change;
            let Some(kind) = kind_of(path) else { continue };
            let news = metadata(object);
            self.hear(kind, &if *gone { Event::Delete(news) } else { Event::Apply(news) });
            if self.wake(path, object) {
                self.due = Some(self.due.map_or(now, |due| due.min(now)));
                self.again |= self.look.is_some();
            }
        }
    }

    /// An old event comes once more.
    pub fn replay(&mut self, server: &Server, back: usize) {
        let Some(change) = self.told.checked_sub(back + 1).and_then(|at| server.changes.get(at)) else {
            return;
        };
        if let Some(kind) = kind_of(&change.path).filter(|_| !change.gone) {
            self.hear(kind, &Event::Apply(metadata(&change.object)));
        }
    }

    /// Whether an object makes the cluster be looked at. Of a PaxosCluster only what people say does.
    fn wake(&mut self, path: &str, object: &Object) -> bool {
        if path != crate::api::CLUSTER {
            return object["metadata"]["labels"][LABEL_CLUSTER] == "demo";
        }
        self.uid = crate::world::uid(object);
        let spoken = synod_operator::controller::said(&metadata(object));
        let news = spoken != self.spoken;
        self.spoken = spoken;
        news
    }

    fn hear(&self, kind: Watched, event: &Event<DynamicObject>) {
        if let Some(kind) = kind.noted {
            self.context.watched.note(kind, "", event);
        }
        if let Some(plural) = kind.counted {
            let own = |object: &DynamicObject| {
                let name = match plural {
                    "paxosclusters" => object.metadata.name.clone()?,
                    _ => object.metadata.labels.as_ref()?.get(LABEL_CLUSTER)?.clone(),
                };
                Some((crate::api::NAMESPACE.to_owned(), name))
            };
            self.context.watched.count(plural, "", event, own);
        }
    }
}

/// What is done with the news of a kind, as in the controller.
#[derive(Clone, Copy)]
struct Watched {
    noted: Option<Kind>,
    counted: Option<&'static str>,
}

const KINDS: &[(Watched, &str)] = &[
    (Watched { noted: None, counted: Some("paxosclusters") }, "/paxosclusters/"),
    (Watched { noted: Some(Kind::StatefulSet), counted: Some("statefulsets") }, "/statefulsets/"),
    (Watched { noted: None, counted: Some("pods") }, "/pods/"),
    (Watched { noted: None, counted: Some("claims") }, "/persistentvolumeclaims/"),
    (Watched { noted: Some(Kind::PodDisruptionBudget), counted: Some("budgets") }, "/poddisruptionbudgets/"),
    (Watched { noted: Some(Kind::Service), counted: None }, "/services/"),
    (Watched { noted: Some(Kind::ConfigMap), counted: None }, "/configmaps/"),
    (Watched { noted: Some(Kind::NetworkPolicy), counted: None }, "/networkpolicies/"),
];

fn kind_of(path: &str) -> Option<Watched> {
    KINDS.iter().find(|(_, part)| path.contains(part)).map(|(kind, _)| *kind)
}

fn metadata(object: &Object) -> DynamicObject {
    DynamicObject { types: None, metadata: object.metadata().clone(), data: Value::Null }
}
