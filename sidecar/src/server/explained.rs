//! What the transport refuses by itself is answered in our own words.
//!
//! The transport looks at a message's length before it reads the message, so that a large one costs no memory, and
//! ends a call whose deadline has passed; but its own answers carry no reason that a program could tell from others.

use super::identity::LogName;
use super::{deadline, failure};
use crate::shared::Shared;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use synod_proto::v1::{Failure, Outcome, Reason};
use tokio::time::{Instant, Sleep};
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::{Code, Status};

/// The answer in our words, where the transport gave one: ours always have details.
pub(super) fn explain(status: &Status) -> Option<Status> {
    if !status.details().is_empty() {
        return None;
    }
    let (reason, message) = match status.code() {
        Code::OutOfRange => {
            let message = "the message is larger than any call can be (1 MiB of payload and 4,096 entries): \
                           send several calls";
            (Reason::CallTooLarge, message.to_owned())
        }
        Code::Internal => (Reason::Malformed, format!("the call cannot be read: {}", status.message())),
        _ => return None,
    };
    Some(failure::status(failure::refused(reason, message)))
}

/// A service whose refusals by the transport are explained.
#[derive(Clone, Debug)]
pub struct Explained<S> {
    service: S,
    /// Named in every answer.
    log: LogName,
}

impl<S> Explained<S> {
    pub(super) fn new(service: S, shared: Arc<Shared>) -> Explained<S> {
        Explained { service, log: LogName::new(shared) }
    }
}

impl<S: NamedService> NamedService for Explained<S> {
    const NAME: &'static str = S::NAME;
}

type Answer = Result<http::Response<Body>, Infallible>;

/// An answer on its way. The transport would end the call at its deadline with CANCELLED and no word: this comes first,
/// since it is asked before the transport looks at its own clock, which was started later.
pub struct Answering<F> {
    /// None: the call was refused before.
    answer: Option<Pin<Box<F>>>,
    refused: Option<Failure>,
    log: LogName,
    deadline: Option<Pin<Box<Sleep>>>,
    is_append: bool,
}

fn explained(answer: Answer, is_append: bool) -> Answer {
    let response = answer?;
    let Some(status) = Status::from_header_map(response.headers()) else { return Ok(response) };
    let explained = explain(&status);
    let is_ours = explained.is_none();
    let status = explained.unwrap_or(status);
    match Failure::from_status(&status) {
        // The codec does not know whose message it reads.
        Some(failure) if is_append && failure.outcome() == Outcome::Unspecified => {
            Ok(failure.of_append().to_status().into_http())
        }
        _ if is_ours => Ok(response),
        _ => Ok(status.into_http()),
    }
}

impl<F: Future<Output = Answer>> Answering<F> {
    fn new(
        answer: Option<F>,
        refused: Option<Failure>,
        log: LogName,
        deadline: Option<Instant>,
        is_append: bool,
    ) -> Answering<F> {
        let deadline = deadline.map(|at| Box::pin(tokio::time::sleep_until(at)));
        Answering { answer: answer.map(Box::pin), refused, log, deadline, is_append }
    }

    fn answer(&mut self, context: &mut Context<'_>) -> Poll<Answer> {
        let of_append = |failure: Failure| if self.is_append { failure.of_append() } else { failure };
        if let Some(failure) = self.refused.take() {
            return Poll::Ready(Ok(of_append(failure).to_status().into_http()));
        }
        if let Some(Poll::Ready(answer)) = self.answer.as_mut().map(|answer| answer.as_mut().poll(context)) {
            return Poll::Ready(explained(answer, self.is_append));
        }
        let Some(deadline) = self.deadline.as_mut() else { return Poll::Pending };
        if deadline.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        let failure = if self.is_append {
            let message = "the deadline passed, and whether it was appended is not known";
            failure::refused(Reason::OutcomeUnknown, message)
        } else {
            failure::refused(Reason::Deadline, "the deadline passed before this member had an answer")
        };
        Poll::Ready(Ok(of_append(failure).to_status().into_http()))
    }
}

impl<F: Future<Output = Answer>> Future for Answering<F> {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        let answer = self.answer(context);
        answer.map(|answer| {
            answer.map(|mut response| {
                self.log.put(response.headers_mut());
                response
            })
        })
    }
}

impl<S, B> Service<http::Request<B>> for Explained<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>, Error = Infallible>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answering<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let is_append = request.uri().path().ends_with("Log/Append");
        let deadline = deadline::last(request.headers());
        let refused = self.log.refuses(request.headers());
        let answer = refused.is_none().then(|| self.service.call(request));
        Answering::new(answer, refused, self.log.clone(), deadline, is_append)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    async fn asked(path: &str) -> Failure {
        let mut headers = http::HeaderMap::new();
        headers.insert("grpc-timeout", http::HeaderValue::from_static("1m"));
        let never = std::future::pending::<Answer>();
        let (last, is_append) = (deadline::last(&headers), path.ends_with("Log/Append"));
        let response = Answering::new(Some(never), None, LogName::none(), last, is_append).await.unwrap();
        Failure::from_status(&Status::from_header_map(response.headers()).unwrap()).unwrap()
    }

    /// Fault S13: tight deadlines ended as bare CANCELLED.
    #[tokio::test]
    async fn a_deadline_is_told_in_our_words() {
        let append = asked("/synod.v1.Log/Append").await;
        assert_eq!((append.reason(), append.outcome()), (Reason::OutcomeUnknown, Outcome::Unknown));
        let tail = asked("/synod.v1.Log/Tail").await;
        assert_eq!((tail.reason(), tail.outcome()), (Reason::Deadline, Outcome::Unspecified));
    }
}
