//! The answers of calls, counted until they have left (docs: reliability.md, "Bounds").

use super::bodies::{Budgets, Refused, Weight};
use super::calls::Seen;
use super::fair::{Cut, Full, Held};
use super::table::{Open, Work};
use super::wire::Wire;
use bytes::Bytes;
use http_body::{Body, Frame};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::codegen::http::HeaderMap;

/// Answers up to this size are not worth counting.
const SMALL: usize = 256;
/// What goes to the transport at a time: it sets aside one more for each call.
pub(super) const PIECE: usize = 16 << 10;

/// What a piece of an answer holds until it was written to the socket, or given up by the transport.
#[derive(Clone, Debug, Default)]
struct Rights {
    /// The place among the open calls.
    _call: Option<Arc<Held>>,
    /// All of an answer that was whole before it was given.
    whole: Option<Arc<(Held, Weight)>>,
    /// The part that the piece is of.
    part: Option<Arc<Held>>,
}

/// A piece of an answer: a copy, since a slice would keep all of the part in memory.
struct Piece {
    bytes: Box<[u8]>,
    _rights: Rights,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// An answer's body: each part counts until the last piece of it has left.
///
/// The transport takes pieces before it can send them. Each holds what it counts for, so that nothing is forgotten that is
/// in memory, and is small, so that little is left with the transport when the call is ended.
pub(super) struct Given<B> {
    /// None: there is no memory for it.
    body: Option<B>,
    budgets: Budgets,
    connection: u64,
    /// Ends the call.
    cut: Arc<Cut>,
    wire: Arc<Wire>,
    rights: Rights,
    /// What is left of a part.
    rest: Option<Bytes>,
    ended: bool,
    /// It is no gRPC call's: there is no place for a status behind it.
    is_plain: bool,
    /// Until the answer has ended.
    seen: Option<Seen>,
    /// Whether the answer waits for its service, or for the caller.
    work: Option<Work>,
    _open: Option<Open>,
}

impl<B> Given<B> {
    pub(super) fn new(
        body: B,
        budgets: &Budgets,
        connection: u64,
        (cut, wire): (Arc<Cut>, Arc<Wire>),
        call: Option<Held>,
        open: Option<Open>,
    ) -> Given<B> {
        let budgets = budgets.clone();
        Given {
            body: Some(body),
            budgets,
            connection,
            cut,
            wire,
            rights: Rights { _call: call.map(Arc::new), ..Rights::default() },
            rest: None,
            ended: false,
            is_plain: false,
            seen: None,
            work: None,
            _open: open,
        }
    }

    /// The same of an answer that is in memory as a whole, where it says so.
    pub(super) fn weighing(mut self, weight: Option<Weight>) -> Given<B> {
        if let Some(weight) = weight {
            match self.budgets.outgoing.take(self.connection, weight.bytes, &self.cut) {
                Ok(held) => self.rights.whole = Some(Arc::new((held, weight))),
                Err(Full) => self.body = None,
            }
        }
        self
    }

    /// The same of a request that is no gRPC call.
    pub(super) fn plain(mut self, is_plain: bool) -> Given<B> {
        self.is_plain = is_plain;
        self
    }

    /// The same of a call that is counted when it ends.
    pub(super) fn seen(mut self, seen: Seen) -> Given<B> {
        self.seen = Some(seen);
        self
    }

    /// The same of a call that the member may be at work for.
    pub(super) fn working(mut self, work: Work) -> Given<B> {
        self.work = Some(work);
        self
    }

    fn works(&self, works: bool) {
        if let Some(work) = &self.work {
            work.set(works);
        }
    }

    /// The next piece of what is left of a part.
    fn piece(&mut self) -> Option<Bytes> {
        let rest = self.rest.as_mut()?;
        let piece = rest.split_to(rest.len().min(PIECE));
        let piece = Piece { bytes: Box::from(&*piece), _rights: self.rights.clone() };
        if self.rest.as_ref().is_some_and(Bytes::is_empty) {
            (self.rest, self.rights.part) = (None, None);
        }
        self.wire.piece();
        Some(Bytes::from_owner(piece))
    }

    fn end(&mut self, trailers: &HeaderMap) {
        if let Some(seen) = &mut self.seen {
            seen.trailers(trailers);
        }
    }

    /// The status in place of what cannot be given.
    fn refuse(&mut self) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.ended = true;
        let status = (self.budgets.explain)(Refused::Outgoing);
        if self.is_plain {
            return Poll::Ready(Some(Err(status)));
        }
        let mut trailers = HeaderMap::new();
        let added = status.add_header(&mut trailers);
        self.end(&trailers);
        Poll::Ready(Some(match added {
            Ok(()) => Ok(Frame::trailers(trailers)),
            Err(_) => Err(status),
        }))
    }
}

impl<B: Body<Data = Bytes, Error = Status> + Unpin> Body for Given<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(piece) = self.piece() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let Some(body) = &mut self.body else { return self.refuse() };
        let polled = Pin::new(body).poll_frame(context);
        self.works(polled.is_pending());
        let frame = match polled {
            Poll::Ready(Some(Ok(frame))) => frame,
            other => {
                if matches!(other, Poll::Ready(None)) {
                    self.end(&HeaderMap::new());
                }
                return other;
            }
        };
        if let Some(trailers) = frame.trailers_ref() {
            self.end(trailers);
        } else if self.body.as_ref().is_some_and(Body::is_end_stream) {
            // An answer without trailers may not be asked whether there is more.
            self.end(&HeaderMap::new());
        }
        let bytes = match frame.into_data() {
            Ok(bytes) => bytes,
            Err(frame) => return Poll::Ready(Some(Ok(frame))),
        };
        if bytes.len() > SMALL && self.rights.whole.is_none() {
            let Ok(held) = self.budgets.outgoing.take(self.connection, bytes.len(), &self.cut) else {
                return self.refuse();
            };
            self.rights.part = Some(Arc::new(held));
        }
        self.rest = Some(bytes);
        let piece = self.piece().unwrap_or_default();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_none() && (self.ended || self.body.as_ref().is_some_and(Body::is_end_stream))
    }
}
