//! Server-sent events: what a stream of messages says, and why it ends.

use super::problem::Problem;
use axum::body::Body;
use axum::http::{HeaderValue, Response, header};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use std::convert::Infallible;
use tonic::Status;

/// The answer whose events are the messages; it ends with the event `failure`, whose data is the problem.
pub(super) fn answer<T: 'static>(
    messages: impl Stream<Item = Result<T, Status>> + Send + Unpin + 'static,
    text: fn(T) -> Bytes,
) -> Response<Body> {
    let mut response = Response::new(Body::from_stream(events(messages, text)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn events<T: 'static>(
    messages: impl Stream<Item = Result<T, Status>> + Send + Unpin + 'static,
    text: fn(T) -> Bytes,
) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    futures::stream::unfold(Some(messages), move |messages| async move {
        let mut messages = messages?;
        Some(match messages.next().await? {
            Ok(message) => (Ok(text(message)), Some(messages)),
            Err(status) => {
                let problem = Problem::from(status).line();
                (Ok(Bytes::from(format!("event: failure\ndata: {problem}\n\n"))), None)
            }
        })
    })
}
