//! A message that is too large to be read is answered in our own words.
//!
//! The transport looks at a message's length before it reads the message, so that a large one costs no memory;
//! but its own answer carries no reason that a program could tell from others.

use super::failure;
use futures::FutureExt;
use futures::future::Map;
use std::convert::Infallible;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::{Code, Status};

/// The answer in our words, where the transport refused a message for its length.
pub(super) fn explain(status: &Status) -> Option<Status> {
    let refused = status.code() == Code::OutOfRange
        && status.details().is_empty()
        && status.message().contains("message length too large");
    refused.then(|| {
        let message = "the message is larger than any call can be (1 MiB of payload and 4,096 entries): send \
                       several calls";
        failure::status(failure::refused(Code::ResourceExhausted, "call-too-large", message))
    })
}

/// A service whose refusals of large messages are explained.
#[derive(Clone, Debug)]
pub struct Explained<S>(S);

impl<S> Explained<S> {
    pub(super) fn new(service: S) -> Explained<S> {
        Explained(service)
    }
}

impl<S: NamedService> NamedService for Explained<S> {
    const NAME: &'static str = S::NAME;
}

type Answer = Result<http::Response<Body>, Infallible>;

fn explained(answer: Answer) -> Answer {
    let response = answer?;
    match Status::from_header_map(response.headers()).and_then(|status| explain(&status)) {
        Some(status) => Ok(status.into_http()),
        None => Ok(response),
    }
}

impl<S, B> Service<http::Request<B>> for Explained<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>, Error = Infallible>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Map<S::Future, fn(Answer) -> Answer>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        self.0.call(request).map(explained)
    }
}
