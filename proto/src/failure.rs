//! Failures in a status's details, as every gRPC library reads them.

use crate::times::{duration, span};
use crate::v1::{Failure, MemberState, Outcome, Reason};
use prost::Message;
use prost_types::Any;
use std::collections::HashMap;
use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::pb;

/// Whose reasons a google.rpc.ErrorInfo's are.
pub const DOMAIN: &str = "synod.dev";

/// Bytes of a failure's message. It is sent three times, in headers, where it may take three times its length; many gRPC
/// libraries take no more than 8 KiB of headers, and drop the whole status.
const MESSAGE_BYTES: usize = 1_024;

const NAME: &str = "synod.v1.Failure";
const PREFIX: &str = "type.googleapis.com";

fn any<M: Message>(name: &str, message: &M) -> Any {
    Any { type_url: format!("{PREFIX}/{name}"), value: message.encode_to_vec() }
}

/// The message of that name among the details.
fn found<M: Message + Default>(name: &str, details: &[Any]) -> Option<M> {
    let of_type = |any: &&Any| any.type_url.rsplit('/').next() == Some(name);
    M::decode(details.iter().find(of_type)?.value.as_slice()).ok()
}

/// A message with what callers said in it, at most so long as may be sent.
fn shortened(mut message: String) -> String {
    const CUT: &str = "...";
    if message.len() > MESSAGE_BYTES {
        let end = (0..=MESSAGE_BYTES - CUT.len()).rev().find(|end| message.is_char_boundary(*end));
        message.truncate(end.unwrap_or(0));
        message.push_str(CUT);
    }
    message
}

impl Failure {
    /// A failure with the code that goes with its reason, and a sentence that says what to do; of a longer one than 1,024
    /// bytes the rest is left out.
    pub fn new(reason: Reason, message: impl Into<String>) -> Failure {
        Failure {
            code: u32::try_from(i32::from(reason.code())).unwrap_or_default(),
            message: shortened(message.into()),
            reason: reason.into(),
            ..Failure::default()
        }
    }

    /// The same failure of an append: with what its reason tells of the outcome.
    #[must_use]
    pub fn of_append(mut self) -> Failure {
        self.outcome = self.reason().append_outcome().into();
        self
    }

    /// The same failure with a hint when to try again.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Failure {
        self.retry_after = Some(duration(after));
        self
    }

    /// When to try again at the earliest, where there is a hint.
    pub fn retry_hint(&self) -> Option<Duration> {
        self.retry_after.as_ref().and_then(span)
    }

    /// The status that carries the failure in its details.
    pub fn to_status(&self) -> Status {
        let code = Code::from_i32(i32::try_from(self.code).unwrap_or(i32::from(Code::Unknown)));
        let word = self.reason().word();
        let message = format!("{} ({word})", self.message);
        let info =
            pb::ErrorInfo { reason: word.to_owned(), domain: DOMAIN.to_owned(), metadata: self.metadata() };
        let mut details = vec![any("google.rpc.ErrorInfo", &info)];
        if let Some(after) = self.retry_after {
            details.push(any("google.rpc.RetryInfo", &pb::RetryInfo { retry_delay: Some(after) }));
        }
        details.push(any(NAME, self));
        let status = pb::Status { code: code.into(), message: message.clone(), details };
        Status::with_details(code, message, status.encode_to_vec().into())
    }

    /// The failure in a status's details; `None` where the status did not come from a member.
    pub fn from_status(status: &Status) -> Option<Failure> {
        if status.details().is_empty() {
            return None;
        }
        let details = pb::Status::decode(status.details()).ok()?.details;
        found(NAME, &details)
    }

    /// What programs without our messages can read, too.
    fn metadata(&self) -> HashMap<String, String> {
        let numbers = [
            ("tail", self.tail),
            ("first_index", self.first_index),
            ("expected_sequence", self.expected_sequence),
            ("checkpoint", self.checkpoint),
            ("next", self.next),
            ("fencing_epoch", self.fencing_epoch),
        ];
        let numbers = numbers.into_iter().filter_map(|(name, value)| Some((name, value?.to_string())));
        let outcome = (self.outcome() != Outcome::Unspecified).then(|| self.outcome().word().to_owned());
        let state = (self.state() != MemberState::Unspecified).then(|| {
            let word = self.state().as_str_name();
            word.strip_prefix("MEMBER_STATE_").unwrap_or(word).to_owned()
        });
        let words = [("outcome", outcome), ("state", state)];
        let words = words.into_iter().filter_map(|(name, value)| Some((name, value?)));
        numbers.chain(words).map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

impl Outcome {
    /// Its name for programs and people, without the prefix of the enum.
    pub fn word(self) -> &'static str {
        let name = self.as_str_name();
        name.strip_prefix("OUTCOME_").unwrap_or(name)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tonic_types::StatusExt;

    /// Found by random calls: a name of 5,000 bytes in a message took the status beyond what its caller's library reads.
    #[test]
    fn no_message_is_too_long_for_headers() {
        for message in ["x".repeat(5_000), "\u{1f980}".repeat(2_000), "\u{fc}".repeat(600)] {
            let failure = Failure::new(Reason::Invalid, message.clone()).of_append();
            assert!(failure.message.len() <= MESSAGE_BYTES && failure.message.ends_with("..."));
            assert!(message.starts_with(failure.message.trim_end_matches("...")));
            let status = failure.to_status();
            let sent = status.message().len() * 3 + status.details().len().div_ceil(3) * 4;
            assert!(sent < 7 << 10, "{sent} bytes");
            assert_eq!(Failure::from_status(&status), Some(failure));
        }
        let short = "y".repeat(MESSAGE_BYTES);
        assert_eq!(Failure::new(Reason::Invalid, short.clone()).message, short);
    }

    /// Fault S2: helpers of other languages read google.rpc.Status, and nothing else.
    #[test]
    fn the_details_are_a_google_rpc_status() {
        let mut failure = Failure::new(Reason::ExpectedIndex, "the last index is 7").of_append();
        failure.tail = Some(7);
        let failure = failure.retry_after(Duration::from_millis(50));
        let status = failure.to_status();
        assert_eq!(status.code(), Code::FailedPrecondition);
        let standard = status.get_error_details();
        let info = standard.error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("EXPECTED_INDEX", "synod.dev"));
        assert_eq!(info.metadata.get("tail").map(String::as_str), Some("7"));
        assert_eq!(info.metadata.get("outcome").map(String::as_str), Some("NOT_APPENDED"));
        assert_eq!(standard.retry_info().unwrap().retry_delay, Some(Duration::from_millis(50)));
        assert_eq!(Failure::from_status(&status), Some(failure));
        assert_eq!(Failure::from_status(&Status::unavailable("gone")), None);
    }
}
