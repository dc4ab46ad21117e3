//! Serves the connections of a Unix socket: bounded in what their calls hold, and ended with the member.

use super::answers::{Given, PIECE};
use super::bodies::{Budgets, Counted, InHand, Refused, Weight};
use super::calls::{Observed, Seen};
use super::fair::Cut;
use super::table::{Activity, Open};
use super::wire::Wire;
use super::{Accept, Caller, Connection, Incoming};
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic::codegen::http::header::CONTENT_TYPE;
use tonic::codegen::http::request::Parts;
use tonic::codegen::http::{Request, Response, Version};
use tonic::service::Routes;
use tonic::transport::server::Connected;

/// Bytes that come and are not read, of one call and of one connection. The way is short: more would make nothing faster.
/// The transport lets small frames wait for half of the connection's window, each for 256 bytes: enough for [`STREAMS`]
/// small calls at once, and not a byte less.
const WINDOWS: (u32, u32) = (64 << 10, 512 * STREAMS);
/// Open calls of one connection.
const STREAMS: u32 = 1_024;
/// Bytes of a call's headers.
const HEADERS: u32 = 8 << 10;
/// Bytes of a request's head over HTTP/1.1, and how many headers: more is answered 431.
const HEAD: usize = 16 << 10;
const HEAD_LINES: usize = 64;
/// How long a head may take over HTTP/1.1, and an idle connection until the next one.
const HEAD_PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at what is held for too long.
const LOOK: Duration = Duration::from_millis(500);
/// How long an idle connection has to say goodbye at the end, and how long one may take nothing that nobody works for.
const GOODBYE: Duration = Duration::from_millis(200);
/// How long a connection may take at the end for what it was given.
const LAST_TAKING: Duration = Duration::from_millis(600);
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const PING_PATIENCE: Duration = Duration::from_secs(30);

/// Spawns the calls of a connection, each so that it can be ended from outside.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Option<Arc<Cut>>>>);

impl Calls {
    /// The next call that is spawned is ended by this one. The transport spawns a call before it begins another.
    fn next(&self, cut: Arc<Cut>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(cut);
    }

    /// Whether the call is to end that was not spawned. Over HTTP/1.1 none is: the connection carries it out, one at a
    /// time, and ends with it. To be polled after the connection.
    fn poll_cut(&self, context: &Context<'_>) -> Poll<()> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(cut) => cut.poll(context).map(|_| ()),
            None => Poll::Pending,
        }
    }

    /// Serves until the connection ends; `None`: until its call is to end.
    async fn serve<F: Future>(&self, mut serving: Pin<&mut F>) -> Option<F::Output> {
        std::future::poll_fn(|context| match serving.as_mut().poll(context) {
            Poll::Ready(served) => Poll::Ready(Some(served)),
            Poll::Pending => self.poll_cut(context).map(|()| None),
        })
        .await
    }
}

/// What a socket offers to requests that are no gRPC calls, over HTTP/1.1 and HTTP/2.
#[derive(Clone)]
pub struct Plain {
    /// Where they go.
    pub routes: Routes,
    /// Says a refusal.
    pub problem: fn(&Status) -> Response<Body>,
    /// Whether a request's body is taken as it comes, however long it is.
    pub flows: fn(&Parts) -> bool,
}

/// What a socket's connections are served by.
pub struct Terms {
    /// What calls may hold.
    pub budgets: Budgets,
    /// The users that may call; none: all may.
    pub allowed: Vec<u32>,
    /// What it offers beside gRPC.
    pub plain: Option<Plain>,
    /// How its calls are counted.
    pub observed: Observed,
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Calls {
    fn execute(&self, call: F) {
        let cut = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        tokio::spawn(async move {
            let mut call = pin!(call);
            std::future::poll_fn(|context| match &cut {
                Some(cut) if cut.poll(context).is_ready() => Poll::Ready(()),
                _ => call.as_mut().poll(context),
            })
            .await;
        });
    }
}

/// The calls of one connection, on their way to the services.
#[derive(Clone)]
struct Entrance {
    routes: Routes,
    plain: Option<Plain>,
    budgets: Budgets,
    calls: Calls,
    caller: Caller,
    connection: u64,
    wire: Arc<Wire>,
    activity: Arc<Activity>,
    /// Users that may call; none: all.
    allowed: Arc<[u32]>,
    observed: Observed,
    /// It has a place among those that stay.
    admitted: Arc<AtomicBool>,
    /// The connection is to end: it has none.
    refused: Arc<Notify>,
}

type Answer = Result<Response<Given<Body>>, Infallible>;

impl Entrance {
    /// Whether the connection may stay: looked at with its first call, so that a refusal can be told.
    fn admit(&self) -> Result<(), Refused> {
        if self.admitted.load(Ordering::Relaxed) {
            return Ok(());
        }
        match self.caller.uid() {
            _ if self.allowed.is_empty() => {}
            Some(uid) if self.allowed.contains(&uid) => {}
            Some(uid) => return Err(Refused::User(uid)),
            None => return Err(Refused::UnknownUser),
        }
        self.caller.admit()?;
        self.admitted.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The connection stays until this has been said.
    fn refuse(&self, why: Refused, (open, mut seen): (Open, Seen), plain: Option<&Plain>) -> Ready<Answer> {
        let status = (self.budgets.explain)(why);
        let answer = match plain {
            Some(plain) => (plain.problem)(&status),
            None => status.into_http(),
        };
        seen.answered(answer.headers(), answer.extensions());
        let (budgets, connection) = (&self.budgets, self.connection);
        ready(Ok(answer.map(|body| {
            let ends = (Arc::default(), self.wire.clone());
            let given = Given::new(body, budgets, connection, ends, None, Some(open));
            given.plain(plain.is_some()).seen(seen)
        })))
    }

    /// Where the request goes if it is no gRPC call.
    fn plain(&self, request: &Request<hyper::body::Incoming>) -> Option<Plain> {
        let kind = request.headers().get(CONTENT_TYPE).map_or(&b""[..], |kind| kind.as_bytes());
        let is_call = request.version() == Version::HTTP_2 && kind.starts_with(b"application/grpc");
        self.plain.clone().filter(|_| !is_call)
    }
}

impl hyper::service::Service<Request<hyper::body::Incoming>> for Entrance {
    type Response = Response<Given<Body>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn call(&self, request: Request<hyper::body::Incoming>) -> Self::Future {
        let cut = Cut::of(&self.wire);
        self.calls.next(cut.clone());
        let open = self.activity.open();
        let plain = self.plain(&request);
        let (mut parts, body) = request.into_parts();
        let seen = self.observed.begin(&mut parts, plain.is_some());
        if let Err(why) = self.admit() {
            self.budgets.tally.connections_refused.inc();
            self.refused.notify_one();
            return Box::pin(self.refuse(why, (open, seen), plain.as_ref()));
        }
        let Ok(call) = self.budgets.calls.take(self.connection, 1, &cut) else {
            return Box::pin(self.refuse(Refused::Calls, (open, seen), plain.as_ref()));
        };
        parts.extensions.insert(self.caller.clone());
        let counted = match &plain {
            Some(plain) if (plain.flows)(&parts) => {
                Ok(Counted::flowing(body, &self.budgets, self.connection))
            }
            Some(_) => Counted::plain(body, &self.budgets, self.connection),
            None => Counted::new(body, &self.budgets, self.connection, parts.uri.path()),
        };
        let work = self.activity.work();
        let body = match counted {
            Ok(body) => body.working(work.clone()),
            Err(why) => return Box::pin(self.refuse(why, (open, seen), plain.as_ref())),
        };
        let is_plain = plain.is_some();
        let mut routes = plain.map_or_else(|| self.routes.clone(), |plain| plain.routes);
        let answering = routes.call(Request::from_parts(parts, body));
        let (budgets, connection, wire) = (self.budgets.clone(), self.connection, self.wire.clone());
        Box::pin(async move {
            let mut seen = seen;
            let mut answer = answering.await?;
            seen.answered(answer.headers(), answer.extensions());
            let weight = answer.extensions_mut().remove::<Weight>();
            let in_hand = answer.extensions_mut().remove::<InHand>();
            let answer = answer.map(|body| {
                let given = Given::new(body, &budgets, connection, (cut, wire), Some(call), Some(open));
                given.plain(is_plain).weighing(weight).seen(seen).working(work)
            });
            // It is counted from here on.
            drop(in_hand);
            Ok(answer)
        })
    }
}

fn builder(calls: Calls, takes_plain: bool) -> auto::Builder<Calls> {
    let mut builder = auto::Builder::new(calls);
    if !takes_plain {
        builder = builder.http2_only();
    }
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_headers(HEAD_LINES)
        .max_buf_size(HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADERS)
        .max_send_buf_size(PIECE)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(PING_PATIENCE);
    builder
}

/// What all connections of a socket share.
#[derive(Clone)]
struct Socket {
    routes: Routes,
    plain: Option<Plain>,
    budgets: Budgets,
    allowed: Arc<[u32]>,
    observed: Observed,
    end: watch::Receiver<bool>,
}

impl Socket {
    /// Serves one connection until it ends, or until it has nothing to lose when the member ends.
    async fn serve<S>(self, connection: Connection<S>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Socket { routes, plain, budgets, allowed, observed, mut end } = self;
        let (calls, tally) = (Calls::default(), budgets.tally.clone());
        let (admitted, refused) = (Arc::<AtomicBool>::default(), Arc::<Notify>::default());
        let (activity, wire) = (connection.activity(), Arc::<Wire>::default());
        let connection_id = budgets.connection();
        let builder = builder(calls.clone(), plain.is_some());
        let entrance = Entrance {
            routes,
            plain,
            budgets,
            allowed,
            calls: calls.clone(),
            caller: connection.connect_info(),
            connection: connection_id,
            wire: wire.clone(),
            activity: activity.clone(),
            observed,
            admitted: admitted.clone(),
            refused: refused.clone(),
        };
        let mut serving = pin!(builder.serve_connection(TokioIo::new(connection), entrance));
        tokio::select! {
            served = calls.serve(serving.as_mut()) => {
                if let Some(Err(error)) = served {
                    tracing::debug!(%error, "a connection failed");
                }
                return;
            }
            // One that has not said who it is has nothing to lose.
            _ = end.wait_for(|end| *end) => if !admitted.load(Ordering::Relaxed) { return },
            () = refused.notified() => {}
            () = activity.displaced() => drop(tally.connections_displaced.inc()),
            () = wire.stalled() => {
                tally.connections_stalled.inc();
                return;
            }
        }
        serving.as_mut().graceful_shutdown();
        tokio::select! {
            // How it ends does not matter any more.
            _ = calls.serve(serving.as_mut()) => {}
            () = wire.stalled() => {}
            () = is_left(&activity, &wire) => {}
        }
    }
}

/// Resolves once nobody waits for a connection that is to end but whoever it belongs to, and that is too long.
async fn is_left(activity: &Activity, wire: &Wire) {
    let (mut pieces, mut last) = (wire.pieces(), Instant::now() + LAST_TAKING);
    loop {
        tokio::time::sleep(GOODBYE).await;
        let before = std::mem::replace(&mut pieces, wire.pieces());
        if activity.is_idle() {
            return;
        }
        if !activity.waits_for_callers() {
            last = Instant::now() + LAST_TAKING;
        } else if pieces == before || Instant::now() >= last {
            return;
        }
    }
}

/// Serves a socket until `end`, and then until open calls have ended.
pub async fn serve<L: Accept>(
    routes: Routes,
    mut incoming: Incoming<L>,
    Terms { budgets, allowed, plain, observed }: Terms,
    end: impl Future<Output = ()> + Send,
) {
    let (ending, ended) = watch::channel(false);
    let (routes, allowed) = (routes.prepare(), allowed.into());
    let socket = Socket { routes, plain, budgets, allowed, observed, end: ended };
    let mut connections = JoinSet::new();
    let mut look = tokio::time::interval(LOOK);
    let mut end = pin!(end);
    loop {
        tokio::select! {
            () = &mut end => break,
            connection = incoming.next() => drop(connections.spawn(socket.clone().serve(connection))),
            Some(_) = connections.join_next() => {}
            _ = look.tick() => socket.budgets.expire(),
        }
    }
    drop(incoming);
    ending.send_replace(true);
    while !connections.is_empty() {
        tokio::select! {
            _ = connections.join_next() => {}
            _ = look.tick() => socket.budgets.expire(),
        }
    }
}
