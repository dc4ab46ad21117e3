//! Failures as `application/problem+json`, with the reasons that gRPC callers read.

use crate::server::failure;
use crate::server::observed::Why;
use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use schemars::JsonSchema;
use serde::Serialize;
use std::error::Error;
use std::time::Duration;
use synod_proto::v1::{Failure, MemberState, Outcome, Reason};
use tonic::{Code, Status};

/// The media type of a problem (RFC 9457).
pub(super) const MEDIA_TYPE: &str = "application/problem+json";

/// Why a request failed.
#[derive(Debug)]
pub(super) struct Problem {
    failure: Box<Failure>,
    /// Where the reason's own does not fit.
    status: Option<StatusCode>,
    /// The methods that there are, where the request's is none of them.
    allow: Option<String>,
}

/// A problem, as data.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Body9457 {
    /// The words of the HTTP status.
    title: String,
    /// The HTTP status.
    status: u16,
    /// A sentence for a person that says what to do.
    detail: String,
    /// Why, for programs: a word of the table of reasons.
    reason: String,
    /// Of a failed append only: `NOT_APPENDED` or `UNKNOWN`.
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<String>,
    /// What the member is, of `NOT_ACTIVE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    /// The last index, of `EXPECTED_INDEX` and `BEYOND_TAIL`; the last one applied at this member, of `BEHIND`.
    #[serde(skip_serializing_if = "Option::is_none")]
    tail: Option<u64>,
    /// The first index that can still be read, of `COMPACTED`.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_index: Option<u64>,
    /// The number that is due, of `SEQUENCE_GAP`.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_sequence: Option<u64>,
    /// The index of the newest checkpoint, of `SUPERSEDED`, and of `COMPACTED` where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<u64>,
    /// The index to go on from, of `SLOW_READER`.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<u64>,
    /// The newest leadership, of `FENCED`.
    #[serde(skip_serializing_if = "Option::is_none")]
    fencing_epoch: Option<u64>,
    /// When to try again at the earliest, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

/// The HTTP status that goes with a reason.
fn status_of(reason: Reason) -> StatusCode {
    match reason {
        Reason::ExpectedIndex => StatusCode::PRECONDITION_FAILED,
        Reason::Compacted => StatusCode::GONE,
        Reason::Stalled => StatusCode::REQUEST_TIMEOUT,
        Reason::EntryTooLarge | Reason::CallTooLarge | Reason::ChunkTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Reason::DiskFull => StatusCode::INSUFFICIENT_STORAGE,
        Reason::NotActive => StatusCode::SERVICE_UNAVAILABLE,
        other => match other.code() {
            Code::InvalidArgument => StatusCode::BAD_REQUEST,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted | Code::OutOfRange => {
                StatusCode::CONFLICT
            }
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        },
    }
}

impl Problem {
    pub(super) fn new(reason: Reason, message: impl ToString) -> Problem {
        Problem { failure: Box::new(failure::refused(reason, message)), status: None, allow: None }
    }

    /// A value of the request is not what it has to be.
    pub(super) fn invalid(message: impl ToString) -> Problem {
        Problem::new(Reason::Invalid, message)
    }

    pub(super) fn with_status(self, status: StatusCode) -> Problem {
        Problem { status: Some(status), ..self }
    }

    /// There is nothing at that path.
    pub(super) fn no_such_path(path: &str) -> Problem {
        let message = format!("there is nothing at {path}: /openapi.json lists what there is");
        Problem::invalid(message).with_status(StatusCode::NOT_FOUND)
    }

    /// The path takes other methods only.
    pub(super) fn no_such_method(allow: String) -> Problem {
        let problem = Problem::invalid(format!("this path takes {allow} only"));
        Problem { allow: Some(allow), ..problem.with_status(StatusCode::METHOD_NOT_ALLOWED) }
    }

    /// The request's body did not come as it has to. What this member refused says so by itself.
    pub(super) fn of_body(error: &(dyn Error + 'static)) -> Problem {
        let mut cause = Some(error);
        while let Some(error) = cause {
            let refused = error.downcast_ref::<Status>().and_then(Failure::from_status);
            if let Some(failure) = refused {
                return Problem { failure: Box::new(failure), status: None, allow: None };
            }
            cause = error.source();
        }
        Problem::new(Reason::Malformed, format!("the body cannot be read: {error}"))
    }

    /// Whether what was asked for is trimmed.
    pub(super) fn is_compacted(&self) -> bool {
        self.failure.reason() == Reason::Compacted
    }

    /// The same problem of an append: it says what came of it.
    pub(super) fn of_append(mut self) -> Problem {
        if self.failure.outcome() == Outcome::Unspecified {
            self.failure = Box::new(self.failure.of_append());
        }
        self
    }

    /// The problem as JSON on one line, where an answer has begun already.
    pub(super) fn line(&self) -> String {
        serde_json::to_string(&self.body(self.status())).unwrap_or_default()
    }

    fn status(&self) -> StatusCode {
        self.status.unwrap_or_else(|| status_of(self.failure.reason()))
    }

    fn body(&self, status: StatusCode) -> Body9457 {
        let failure = &*self.failure;
        let state = (failure.state() != MemberState::Unspecified).then(|| {
            let word = failure.state().as_str_name();
            word.strip_prefix("MEMBER_STATE_").unwrap_or(word).to_owned()
        });
        let outcome = failure.outcome();
        Body9457 {
            title: status.canonical_reason().unwrap_or_default().to_owned(),
            status: status.as_u16(),
            detail: failure.message.clone(),
            reason: failure.reason().word().to_owned(),
            outcome: (outcome != Outcome::Unspecified).then(|| outcome.word().to_owned()),
            state,
            tail: failure.tail,
            first_index: failure.first_index,
            expected_sequence: failure.expected_sequence,
            checkpoint: failure.checkpoint,
            next: failure.next,
            fencing_epoch: failure.fencing_epoch,
            retry_after_ms: failure.retry_hint().map(millis),
        }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

impl From<Status> for Problem {
    fn from(status: Status) -> Problem {
        Problem::from(&status)
    }
}

impl From<&Status> for Problem {
    fn from(status: &Status) -> Problem {
        let failure = Failure::from_status(status);
        let failure = failure.unwrap_or_else(|| failure::refused(Reason::Internal, status.message()));
        Problem { failure: Box::new(failure), status: None, allow: None }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response<Body> {
        let status = self.status();
        let mut response = Response::new(Body::from(self.line()));
        *response.status_mut() = status;
        response.extensions_mut().insert(Why(self.failure.reason()));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if let Some(hint) = self.failure.retry_hint() {
            // The header knows whole seconds only.
            headers.insert(header::RETRY_AFTER, HeaderValue::from(millis(hint).div_ceil(1_000)));
        }
        if let Some(allow) = self.allow.and_then(|allow| HeaderValue::from_str(&allow).ok()) {
            headers.insert(header::ALLOW, allow);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use prost::Message;

    #[test]
    fn a_problem_has_the_words_of_the_failure() {
        let mut failure = failure::refused(Reason::ExpectedIndex, "the last index is 7").of_append();
        failure.tail = Some(7);
        let failure = failure.retry_after(Duration::from_millis(50));
        let response = Problem::from(failure.to_status()).into_response();
        assert_eq!(response.status(), StatusCode::PRECONDITION_FAILED);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        let problem = Problem::from(failure.to_status());
        let body: serde_json::Value = serde_json::from_str(&problem.line()).unwrap();
        let expected = serde_json::json!({
            "title": "Precondition Failed", "status": 412, "detail": "the last index is 7",
            "reason": "EXPECTED_INDEX", "outcome": "NOT_APPENDED", "tail": 7, "retry_after_ms": 50,
        });
        assert_eq!(body, expected);
    }

    /// Whatever a failure can say over gRPC it says over HTTP, under the same name.
    #[test]
    fn a_problem_has_every_detail_of_a_failure() {
        let failure = Failure {
            tail: Some(1),
            first_index: Some(2),
            expected_sequence: Some(3),
            checkpoint: Some(4),
            next: Some(5),
            fencing_epoch: Some(6),
            state: MemberState::Fenced.into(),
            outcome: Outcome::Unknown.into(),
            ..failure::refused(Reason::Fenced, "a later leadership has begun")
        };
        let problem = Problem::from(failure.retry_after(Duration::from_millis(7)).to_status());
        let body: serde_json::Value = serde_json::from_str(&problem.line()).unwrap();
        let set = prost_types::FileDescriptorSet::decode(synod_proto::DESCRIPTORS).unwrap();
        let messages =
            set.file.iter().filter(|file| file.package() == "synod.v1").flat_map(|file| &file.message_type);
        let described = messages.into_iter().find(|message| message.name() == "Failure").unwrap();
        for field in &described.field {
            let name = match field.name() {
                // HTTP has a status of its own.
                "code" => "status",
                "message" => "detail",
                "retry_after" => "retry_after_ms",
                same => same,
            };
            assert!(body.get(name).is_some(), "{name} is missing in {body}");
        }
    }
}
