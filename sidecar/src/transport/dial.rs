//! The outgoing side: one task an address, which keeps three streams to whoever is there.

use super::link::{Frames, Lanes, Link};
use super::{
    CONNECTION_WINDOW, Contact, Context, GreetingError, Identity, PeerSource, STREAM_WINDOW, check_greeting,
};
use crate::driver::Command;
use crate::tls::Tls;
use futures::{Stream, StreamExt};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use std::collections::btree_map::Entry;
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use synod_paxos::MemberId;
use synod_proto::formerly::{self, Under};
use synod_proto::peer::v1::peer_client::PeerClient;
use synod_proto::peer::v1::{Greeting, PeerFrame, peer_frame::Frame};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use tracing::Instrument;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Between two looks at an address that led to this member itself, or to one that is connected already.
const OWN_PAUSE: Duration = Duration::from_secs(10);
const CONNECT_PATIENCE: Duration = Duration::from_secs(1);
/// A connection on which nothing came for an election timeout is dialled anew; TCP's own retransmission is
/// never awaited (docs: operator-rules.md, "Network").
const PING_EVERY: Duration = Duration::from_millis(500);
const PING_PATIENCE: Duration = Duration::from_secs(1);
/// The same on a connection that carries values: a ping waits there behind what a slow link has not carried yet. Whether
/// the peer is gone tells the control stream's connection.
pub(super) const BULKY_PING_PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at the list of peers.
const LIST_PAUSE: Duration = Duration::from_secs(1);
/// Different reasons that are told while a peer is out of reach.
const REASONS: usize = 8;
/// Addresses that were only heard from peers, beside the list.
const HEARD_ADDRESSES: usize = 64;
/// How long such an address is dialled in vain before it is forgotten.
const HEARD_PATIENCE: Duration = Duration::from_secs(60);

static NEXT_LINK: AtomicU64 = AtomicU64::new(1);

/// Why a connection could not be made, or ended.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("{0}")]
    Connect(#[from] tonic::transport::Error),
    #[error("{0}")]
    Call(Box<Status>),
    #[error("the peer {0}")]
    Greeting(#[from] GreetingError),
    #[error("the peer's streams greet as different members")]
    Mixed,
    #[error("this is the member itself")]
    Own,
    #[error("another address leads to the same member")]
    Linked,
}

impl From<Status> for DialError {
    fn from(status: Status) -> Self {
        DialError::Call(Box::new(status))
    }
}

/// Keeps a task for every address on the list, and for those that were heard from peers.
pub struct Dialer {
    context: Context,
    source: PeerSource,
    tasks: HashMap<String, JoinHandle<()>>,
}

impl Dialer {
    /// A dialler for the addresses of `source`.
    pub fn new(context: Context, source: PeerSource) -> Dialer {
        Dialer { context, source, tasks: HashMap::new() }
    }

    /// Runs until it is dropped or the process goes down.
    pub async fn run(mut self) {
        let mut contacts = self.context.contacts.subscribe();
        let mut listed = HashSet::new();
        let mut look = tokio::time::interval(LIST_PAUSE);
        let shared = self.context.shared.clone();
        loop {
            tokio::select! {
                () = shared.closed() => return,
                _ = look.tick() => {
                    if let Some(addresses) = self.source.changed() {
                        tracing::info!(count = addresses.len(), "the list of peers was read");
                        listed = addresses;
                    }
                    self.tasks.retain(|address, task| {
                        let keep = !task.is_finished();
                        if !keep && listed.contains(address) {
                            tracing::error!(address, "a dialling task ended; it is started again");
                        }
                        keep
                    });
                    for address in &listed {
                        self.start(address, None);
                    }
                }
                contact = contacts.recv() => match contact {
                    Ok(contact) if !self.context.linked().contains_key(&contact.member) => {
                        for address in &contact.addresses {
                            if self.tasks.len() < listed.len() + HEARD_ADDRESSES {
                                self.start(address, Some(HEARD_PATIENCE));
                            }
                        }
                    }
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                },
            }
        }
    }

    fn start(&mut self, address: &str, patience: Option<Duration>) {
        if !self.tasks.contains_key(address) {
            let task =
                tokio::spawn(keep(self.context.clone(), address.to_owned(), patience).in_current_span());
            self.tasks.insert(address.to_owned(), task);
        }
    }
}

impl Drop for Dialer {
    fn drop(&mut self) {
        self.tasks.values().for_each(JoinHandle::abort);
    }
}

/// Dials an address again and again; gives up after `patience` in vain.
async fn keep(context: Context, address: String, patience: Option<Duration>) {
    let mut contacts = context.contacts.subscribe();
    let mut pause = FIRST_PAUSE;
    let mut told = HashSet::new();
    let mut reached = Instant::now();
    loop {
        let began = Instant::now();
        let ended = connect(&context, &address, patience.is_none()).await;
        let wait = match ended {
            Ok(()) => {
                reached = Instant::now();
                told.clear();
                if began.elapsed() > LONGEST_PAUSE {
                    pause = FIRST_PAUSE;
                }
                pause
            }
            Err(DialError::Own) => OWN_PAUSE,
            Err(DialError::Linked) => {
                reached = Instant::now();
                OWN_PAUSE
            }
            Err(error) => {
                let why = describe(&error);
                // The same reason again and again is told once, until the peer was reached.
                if !told.contains(&why) && told.len() < REASONS {
                    tracing::info!(address, why, "a peer cannot be reached; trying on");
                    told.insert(why);
                }
                pause
            }
        };
        // In vain, or needless: whoever is there will be heard again.
        if patience.is_some_and(|patience| reached.elapsed() > patience) {
            return;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
        let wait = jittered(wait);
        let wake = tokio::time::sleep(wait);
        tokio::pin!(wake);
        loop {
            tokio::select! {
                () = &mut wake => break,
                contact = contacts.recv() => match contact {
                    Ok(Contact { member, addresses })
                        if addresses.contains(&address) && !context.linked().contains_key(&member) =>
                    {
                        pause = FIRST_PAUSE;
                        break;
                    }
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                },
            }
        }
    }
}

/// Between half and all of `span`, so that members that start together do not dial in step.
fn jittered(span: Duration) -> Duration {
    let random = crate::clock::seed().unwrap_or(0) % 512;
    span * (512 + u32::try_from(random).unwrap_or(0)) / 1_024
}

fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}

fn endpoint(tls: Option<&Tls>, address: &str) -> Result<Endpoint, tonic::transport::Error> {
    // The connector below secures the connection: tonic is not to do it again.
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_PATIENCE * 2)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    match (tls, Uri::try_from(format!("https://{address}"))) {
        (Some(_), Ok(origin)) => Ok(endpoint.origin(origin)),
        _ => Ok(endpoint),
    }
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// A new connection to the host at `address`, secured with the certificates in force. An address that is `listed` is
/// a member's: what comes from there goes first.
pub(super) async fn connect_to(
    context: &Context,
    address: &str,
    listed: bool,
    ping_patience: Duration,
) -> Result<Channel, tonic::transport::Error> {
    let (tls, known) = (context.tls.clone(), context.known.clone());
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.set_local_address(context.dial_from);
    let connector = tower::service_fn(move |uri: Uri| {
        let (tcp, tls, known) = (tcp.clone(), tls.clone(), known.clone());
        async move {
            let stream = tower::ServiceExt::oneshot(tcp, uri).await.map_err(io::Error::other)?.into_inner();
            if listed && let Ok(remote) = stream.peer_addr() {
                known.add(remote.ip());
            }
            let stream: Box<dyn Duplex> = match tls {
                Some(tls) => Box::new(tls.connect(stream).await?),
                None => Box::new(stream),
            };
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    let endpoint = endpoint(context.tls.as_ref(), address)?.keep_alive_timeout(ping_patience);
    endpoint.connect_with_connector(connector).await
}

/// The greeting, and whatever is queued once the peer has greeted: one that does not know the service swallows nothing.
fn outgoing(greeting: Greeting, greeted: oneshot::Receiver<Frames>) -> impl Stream<Item = PeerFrame> {
    let first = PeerFrame { frame: Some(Frame::Greeting(greeting)) };
    let rest = futures::stream::once(greeted).flat_map(|frames| {
        futures::stream::unfold(frames.ok(), |frames| async move {
            let mut frames = frames?;
            let frame = frames.next().await?;
            Some((frame, Some(frames)))
        })
    });
    futures::stream::iter([first]).chain(rest)
}

#[derive(Clone, Copy)]
enum Which {
    Control,
    Data,
    Bulk,
}

/// A stream that the peer has greeted on.
struct Opened {
    greeting: Option<Greeting>,
    answers: Streaming<Greeting>,
    /// Takes what is queued for the peer.
    greeted: oneshot::Sender<Frames>,
}

/// Opens one stream on a connection of its own, so that neither HTTP/2 nor TCP makes one wait for another.
async fn greet(
    context: &Context,
    (address, listed): (&str, bool),
    which: Which,
    own: &Identity,
    is_former: bool,
) -> Result<Opened, DialError> {
    let ping_patience = match which {
        Which::Control => PING_PATIENCE,
        Which::Data | Which::Bulk => BULKY_PING_PATIENCE,
    };
    let channel = connect_to(context, address, listed, ping_patience).await?;
    let mut client = PeerClient::new(Under::<formerly::Peer>::new(channel, is_former));
    let (greeted, queued) = oneshot::channel();
    let frames = outgoing(own.greeting(), queued);
    let opening = async {
        let answers = match which {
            Which::Control => client.control(frames).await,
            Which::Data => client.data(frames).await,
            Which::Bulk => client.bulk(frames).await,
        };
        let mut answers = answers?.into_inner();
        let greeting = answers.message().await?;
        Ok::<_, Status>(Opened { greeting, answers, greeted })
    };
    let opened = tokio::time::timeout(CONNECT_PATIENCE * 2, opening).await;
    Ok(opened.map_err(|_| Status::deadline_exceeded("the peer did not greet in time"))??)
}

/// Opens a stream; a peer of the version before knows the service by its former name (docs/decisions/0027-packages.md).
async fn open(
    context: &Context,
    place: (&str, bool),
    which: Which,
    own: &Identity,
    frames: Frames,
) -> Result<(MemberId, String, Streaming<Greeting>), DialError> {
    let opened = match greet(context, place, which, own, false).await {
        Err(DialError::Call(status)) if status.code() == Code::Unimplemented => {
            greet(context, place, which, own, true).await
        }
        opened => opened,
    };
    let Opened { greeting, answers, greeted } = opened?;
    let greeting = greeting.ok_or(GreetingError::Malformed)?;
    let member = check_greeting(own, &greeting)?;
    // A stream that has ended meanwhile says so by its answers.
    drop(greeted.send(frames));
    Ok((member, greeting.name, answers))
}

/// The right to be the one connection to a member, where several addresses lead to it.
struct Claim<'a> {
    context: &'a Context,
    member: MemberId,
}

impl Claim<'_> {
    fn take<'a>(context: &'a Context, member: MemberId, address: &str) -> Option<Claim<'a>> {
        // Lazily: a claim that is made and not handed out would, when dropped, give up the one that
        // stands, and wait for ever for the lock that this statement still holds.
        let taken = match context.linked().entry(member) {
            Entry::Vacant(entry) => {
                entry.insert(address.to_owned());
                true
            }
            Entry::Occupied(_) => false,
        };
        taken.then(|| Claim { context, member })
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.context.linked().remove(&self.member);
    }
}

/// Connects, and stays until the connection ends. `Ok`: it stood.
async fn connect(context: &Context, address: &str, listed: bool) -> Result<(), DialError> {
    let mut identity = context.identity();
    let own = identity.borrow_and_update().clone();
    // Each connection resolves the name again, and uses the certificates of its moment.
    let place = (address, listed);
    let (dropped, space) = (context.dropped.clone(), context.shared.space().clone());
    let (link, Lanes { control, data, bulk }) =
        Link::new(NEXT_LINK.fetch_add(1, Ordering::Relaxed), dropped, space);
    let (member, name, mut control) = open(context, place, Which::Control, &own, control).await?;
    if member == own.member {
        return Err(DialError::Own);
    }
    let _claim = Claim::take(context, member, address).ok_or(DialError::Linked)?;
    let (on_data, _, mut data) = open(context, place, Which::Data, &own, data).await?;
    let (on_bulk, _, mut bulk) = open(context, place, Which::Bulk, &own, bulk).await?;
    if on_data != member || on_bulk != member {
        return Err(DialError::Mixed);
    }
    let handle = context.handle();
    let id = link.id();
    tracing::info!(address, %member, name, "connected to a peer");
    handle.tell(Command::LinkUp(member, link));
    let why = tokio::select! {
        end = control.message() => end_of(end),
        end = data.message() => end_of(end),
        end = bulk.message() => end_of(end),
        () = other_member(&mut identity, own.member) => "this member was renewed".to_owned(),
        () = context.shared.closed() => "stopping".to_owned(),
    };
    handle.tell(Command::LinkDown(member, id));
    tracing::info!(address, %member, why, "the connection to a peer ended");
    Ok(())
}

fn end_of(end: Result<Option<Greeting>, Status>) -> String {
    match end {
        Ok(Some(_)) => "the peer greeted twice".to_owned(),
        Ok(None) => "the peer closed it".to_owned(),
        Err(status) => status.message().to_owned(),
    }
}

async fn other_member(identity: &mut tokio::sync::watch::Receiver<Identity>, own: MemberId) {
    // Where the sender is gone, the process is going down: another arm tells.
    if identity.wait_for(|identity| identity.member != own).await.is_err() {
        std::future::pending::<()>().await;
    }
}
