//! The bodies of calls, counted while they are in memory (docs: reliability.md, "Bounds").

use super::fair::{Cut, Fair, Full, Held, Why};
use super::fields::{self, Fields, Shape};
use super::table::Work;
use bytes::Bytes;
use http_body::{Body, Frame};
use prometheus_client::metrics::counter::Counter;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, SemaphorePermit};
use tonic::Status;

/// Open calls of all connections together.
pub const CALLS: usize = 8_192;
/// Bytes of messages that have not come whole, of all connections together.
pub const INCOMING: usize = 48 << 20;
/// Bytes of answers that were not taken, of all connections together.
pub const OUTGOING: usize = 20 << 20;
/// How long a message may take to come whole.
const MESSAGE_PATIENCE: Duration = Duration::from_secs(10);
/// How long an answer may wait to be taken.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);
/// A message's mark and length.
const PREFIX: usize = 5;
/// What a message counts at most: a longer one is refused by the service that reads it.
const LARGEST: usize = 8 << 20;
/// The largest body of a request that is no gRPC call.
pub const PLAIN_BODY: usize = 4 << 20;
/// A body of unknown length counts in pieces of this size.
const PIECE: usize = 64 << 10;
/// Bytes of answers that were ended for others, and stay in memory until their connection ends.
const OUTGOING_ENDED: usize = 8 << 20;

/// Why a connection or a call is refused before a service sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no place for the connection.
    #[error(transparent)]
    Connection(#[from] super::Crowded),
    /// This user may not use the socket.
    #[error("user {0} may not use this socket: add it to the allowed ones")]
    User(u32),
    /// The system does not say who calls.
    #[error("the caller's user is not known, and only some may use this socket")]
    UnknownUser,
    /// This connection has more calls open than any other, and there is no place for more.
    #[error("{CALLS} calls are open at this member, most of them of this connection: end some, or try again")]
    Calls,
    /// This connection has sent more that is not whole than any other, and there is no memory for more.
    #[error(
        "too many large messages come through this connection at once: send fewer at a time, or try again"
    )]
    Incoming,
    /// A message did not come whole in time.
    #[error("the message did not come whole within {} s: send it again", MESSAGE_PATIENCE.as_secs())]
    Late,
    /// More of the answers was not taken than of any other connection.
    #[error(
        "too much of what this connection has asked for was not taken: take it, or ask for less at a time"
    )]
    Outgoing,
    /// A message has more entries or headers than any call may have.
    #[error("the message has more than 4,096 entries or 8,192 headers: send several calls")]
    Entries,
    /// The body of a request that is no gRPC call is too large.
    #[error("the body is larger than {} MiB: send several calls", PLAIN_BODY >> 20)]
    Body,
}

/// Says a refusal as the services say theirs.
pub type Explain = fn(Refused) -> Status;

/// What a member's sockets refused, and ended for others or because it took too long.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Connections that found no place.
    pub connections_refused: Counter,
    /// Connections without an open call that gave their place to another.
    pub connections_displaced: Counter,
    /// Connections that took nothing off the socket, while others needed what they held or the member stopped.
    pub connections_stalled: Counter,
    /// Calls that were ended for those of others.
    pub calls_ended: Counter,
    /// Calls that found no place.
    pub calls_refused: Counter,
    /// Messages that did not come whole in time, or gave way to others.
    pub messages_ended: Counter,
    /// Messages that there was no memory for.
    pub messages_refused: Counter,
    /// Answers that were not taken in time, or gave way to others.
    pub answers_ended: Counter,
    /// Answers that there was no memory for.
    pub answers_refused: Counter,
}

/// What the calls of a member's sockets hold in memory.
#[derive(Clone, Debug)]
pub struct Budgets {
    pub(super) calls: Arc<Fair>,
    pub(super) incoming: Arc<Fair>,
    pub(super) outgoing: Arc<Fair>,
    pub(super) explain: Explain,
    pub(super) tally: Tally,
    /// Connections so far, of all sockets.
    connections: Arc<AtomicU64>,
}

impl Budgets {
    /// Nothing is held yet.
    pub fn new(explain: Explain, tally: &Tally) -> Budgets {
        let calls = (&tally.calls_ended, &tally.calls_refused);
        let incoming = (&tally.messages_ended, &tally.messages_refused);
        let outgoing = (&tally.answers_ended, &tally.answers_refused);
        Budgets {
            calls: Fair::new((CALLS, CALLS / 4), None, calls),
            incoming: Fair::new((INCOMING, INCOMING), Some(MESSAGE_PATIENCE), incoming),
            outgoing: Fair::new((OUTGOING, OUTGOING_ENDED), Some(ANSWER_PATIENCE), outgoing),
            explain,
            tally: tally.clone(),
            connections: Arc::default(),
        }
    }

    /// A number for a connection that no other one has.
    pub(super) fn connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed)
    }

    /// Ends what is held for too long; to be called now and then.
    pub(super) fn expire(&self) {
        for fair in [&self.calls, &self.incoming, &self.outgoing] {
            fair.expire();
        }
    }
}

/// What an answer takes that is in memory before its reader takes any of it, and until all is taken: in the extensions of
/// a response.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Bytes.
    pub bytes: usize,
    /// A place among the readers.
    pub place: Option<Arc<OwnedSemaphorePermit>>,
}

/// What an answer holds until it is counted: in the extensions of a response.
#[derive(Clone, Debug)]
pub struct InHand(pub Arc<SemaphorePermit<'static>>);

/// A request's body: what has come of a message counts until all of it is there.
pub(super) struct Counted<B> {
    body: B,
    budgets: Budgets,
    connection: u64,
    cut: Arc<Cut>,
    /// Whose fields count.
    shape: &'static Shape,
    message: Message,
    /// Until the one message of a call has come: it is not waited for without end.
    first: Option<Held>,
    held: Option<Held>,
    /// Of a body without messages in it.
    pieces: Vec<Held>,
    /// Whether the call waits for this, or for the member.
    work: Option<Work>,
    ended: bool,
}

/// Where in a message the next byte is.
enum Message {
    /// There are none: the body is one whole, of which so many bytes have come.
    Plain(usize),
    /// There are none, and what comes is taken at once.
    Flow,
    Prefix([u8; PREFIX], usize),
    /// Bytes that are to come, and the fields, if they can be seen.
    Payload(usize, Option<Fields>),
}

impl<B> Counted<B> {
    /// The body of a call at `path`.
    pub(super) fn new(
        body: B,
        budgets: &Budgets,
        connection: u64,
        path: &str,
    ) -> Result<Counted<B>, Refused> {
        let cut = Arc::<Cut>::default();
        // The messages of a stream come whenever there is something to say.
        let is_stream = path.ends_with("/AppendStream") || path.ends_with("/Save");
        let first = match is_stream {
            true => None,
            false => Some(budgets.incoming.take(connection, PREFIX, &cut).map_err(|Full| Refused::Incoming)?),
        };
        Ok(Counted {
            body,
            budgets: budgets.clone(),
            connection,
            cut,
            shape: match path.rsplit('/').next() {
                Some("AppendStream") => &fields::TAGGED_APPEND,
                Some("Append") => &fields::APPEND,
                _ => &fields::ANY,
            },
            message: Message::Prefix([0; PREFIX], 0),
            first,
            held: None,
            pieces: Vec::new(),
            work: None,
            ended: false,
        })
    }

    /// The body of a request that is no gRPC call.
    pub(super) fn plain(body: B, budgets: &Budgets, connection: u64) -> Result<Counted<B>, Refused>
    where
        B: Body,
    {
        let cut = Arc::<Cut>::default();
        let first = match body.is_end_stream() {
            true => None,
            false => Some(budgets.incoming.take(connection, PREFIX, &cut).map_err(|Full| Refused::Incoming)?),
        };
        Ok(Counted {
            body,
            budgets: budgets.clone(),
            connection,
            cut,
            shape: &fields::ANY,
            message: Message::Plain(0),
            first,
            held: None,
            pieces: Vec::new(),
            work: None,
            ended: false,
        })
    }

    /// The body of a request that is taken as it comes, and for which its service does not wait for ever.
    pub(super) fn flowing(body: B, budgets: &Budgets, connection: u64) -> Counted<B> {
        Counted {
            body,
            budgets: budgets.clone(),
            connection,
            cut: Arc::default(),
            shape: &fields::ANY,
            message: Message::Flow,
            first: None,
            held: None,
            pieces: Vec::new(),
            work: None,
            ended: false,
        }
    }

    /// The same of a call that the member is at work for once this has come.
    pub(super) fn working(mut self, work: Work) -> Counted<B> {
        self.work = Some(work);
        self
    }

    fn count_plain(&mut self, seen: usize) -> Result<(), Refused> {
        // A client that is answered while it sends may take that for a broken connection: what is a little too much is
        // taken, and left.
        if seen > 2 * PLAIN_BODY {
            return Err(Refused::Body);
        }
        while self.pieces.len() * PIECE < seen.min(PLAIN_BODY) {
            let piece = self.budgets.incoming.take(self.connection, PIECE, &self.cut);
            self.pieces.push(piece.map_err(|Full| Refused::Incoming)?);
        }
        self.message = Message::Plain(seen);
        Ok(())
    }

    /// Whether a body without messages in it is larger than it may be.
    fn is_too_large(&self) -> bool {
        matches!(self.message, Message::Plain(seen) if seen > PLAIN_BODY)
    }

    /// It holds nothing any more.
    fn release(&mut self) {
        (self.first, self.held) = (None, None);
        self.pieces.clear();
    }

    /// Looks at what has come.
    fn count(&mut self, mut bytes: &[u8]) -> Result<(), Refused> {
        while let Some((byte, rest)) = bytes.split_first() {
            match &mut self.message {
                Message::Plain(seen) => {
                    let seen = *seen + bytes.len();
                    return self.count_plain(seen);
                }
                Message::Flow => return Ok(()),
                Message::Prefix(prefix, seen) => {
                    prefix[*seen] = *byte;
                    bytes = rest;
                    *seen += 1;
                    if *seen == PREFIX {
                        let [compressed, length @ ..] = *prefix;
                        let length = u32::from_be_bytes(length) as usize;
                        let held =
                            self.budgets.incoming.take(self.connection, length.min(LARGEST), &self.cut);
                        self.held = Some(held.map_err(|Full| Refused::Incoming)?);
                        let fields = (compressed == 0).then(|| Fields::new(self.shape));
                        self.message = Message::Payload(length, fields);
                    }
                }
                Message::Payload(left, fields) => {
                    let (now, rest) = bytes.split_at(bytes.len().min(*left));
                    if let Some(fields) = fields {
                        fields.take(now).map_err(|_| Refused::Entries)?;
                    }
                    *left -= now.len();
                    bytes = rest;
                }
            }
            if matches!(self.message, Message::Payload(0, _)) {
                self.message = Message::Prefix([0; PREFIX], 0);
                (self.first, self.held) = (None, None);
            }
        }
        Ok(())
    }

    fn refuse(&mut self, why: Refused) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.ended = true;
        self.release();
        Poll::Ready(Some(Err((self.budgets.explain)(why))))
    }
}

impl<B> Body for Counted<B>
where
    B: Body<Data = Bytes, Error: std::error::Error + Send + Sync + 'static> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(why) = self.cut.poll(context) {
            return self.refuse(match why {
                Why::Crowded => Refused::Incoming,
                Why::Late => Refused::Late,
            });
        }
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Some(work) = self.work.as_ref().filter(|_| self.first.is_some()) {
            work.set(polled.is_ready());
        }
        let frame = match polled {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(Some(Err(error))) => {
                return Poll::Ready(Some(Err(Status::from_error(Box::new(error)))));
            }
            Poll::Ready(None) if self.is_too_large() => return self.refuse(Refused::Body),
            Poll::Ready(None) => {
                self.ended = true;
                self.release();
                return Poll::Ready(None);
            }
        };
        let counted = frame.data_ref().cloned().map_or(Ok(()), |bytes| self.count(&bytes));
        match counted {
            Ok(()) if self.is_too_large() => Poll::Ready(Some(Ok(Frame::data(Bytes::new())))),
            Ok(()) => Poll::Ready(Some(Ok(frame))),
            Err(why) => self.refuse(why),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || (self.body.is_end_stream() && !self.is_too_large())
    }
}
