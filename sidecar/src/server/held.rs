//! An answer that counts until its reader has taken it: a page that nobody reads stays in memory.

use crate::connections::Weight;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::OwnedSemaphorePermit;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::{Response, Status};

/// What is handed to the connection at once. It asks for more only when the reader takes more, so that the answer is held
/// as long as most of it is not taken.
const PIECE: usize = 16 << 10;

/// A place among the readers, on its way to the body of the answer.
#[derive(Clone)]
struct Place {
    _permit: Arc<OwnedSemaphorePermit>,
}

/// The answer of so many bytes, whose reader has this place until it has taken it.
pub(super) fn held<T>(answer: T, bytes: usize, place: OwnedSemaphorePermit) -> Response<T> {
    let mut response = Response::new(answer);
    response.extensions_mut().insert(Weight(bytes));
    response.extensions_mut().insert(Place { _permit: Arc::new(place) });
    response
}

/// The answer as the connection is to send it.
pub(super) fn in_pieces(mut response: http::Response<Body>) -> http::Response<Body> {
    match response.extensions_mut().remove::<Place>() {
        Some(place) => response.map(|body| Body::new(Pieces { body, left: Bytes::new(), _place: place })),
        None => response,
    }
}

struct Pieces {
    body: Body,
    /// Of the frame that is being handed over.
    left: Bytes,
    _place: Place,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.left.is_empty() {
            match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.left = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return other,
            }
        }
        let piece = self.left.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.left.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
