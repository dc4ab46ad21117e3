//! What can go wrong, sorted by what an application may do about it.

use prost::Message;
use std::path::PathBuf;
use synod_proto::v1::Failure;
use tonic::{Code, Status};

/// The socket's path cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The environment names no socket.
    #[error("SYNOD_SOCKET is not set: in a pod the operator sets it; elsewhere name a member's socket")]
    NoVariable,
    /// No socket can have this path.
    #[error("{} is {length} bytes long: a socket path has between 1 and 107 bytes", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
}

/// A call failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message} ({reason})")]
pub struct CallError {
    /// The gRPC code.
    pub code: Code,
    /// A machine-readable word, for instance `no-leader`; `transport` where the call did not come through.
    pub reason: String,
    /// A sentence for a person.
    pub message: String,
    /// It is certain that nothing was appended.
    pub not_appended: bool,
    /// When to try again, if the member gave a hint: milliseconds.
    pub retry_after_ms: Option<u32>,
    /// The last index, where the reason is `expected-index` or `beyond-tail`; the last one applied here, where it is `behind`.
    pub tail: Option<u64>,
    /// The first index that can still be read, where the reason is `compacted`.
    pub first_index: Option<u64>,
    /// The index of the newest checkpoint, where the reason is `superseded`, or is `compacted` and there is one.
    pub checkpoint: Option<u64>,
}

impl CallError {
    pub(crate) fn from_failure(failure: Failure) -> CallError {
        CallError {
            code: Code::from_i32(i32::try_from(failure.code).unwrap_or(0)),
            reason: failure.reason,
            message: failure.message,
            not_appended: failure.not_appended,
            retry_after_ms: Some(failure.retry_after_ms).filter(|&ms| ms > 0),
            tail: failure.tail,
            first_index: failure.first_index,
            checkpoint: failure.checkpoint,
        }
    }

    /// What this side found; whether anything was appended it cannot tell.
    pub(crate) fn local(code: Code, reason: &str, message: &str) -> CallError {
        CallError {
            code,
            reason: reason.to_owned(),
            message: message.to_owned(),
            not_appended: false,
            retry_after_ms: None,
            tail: None,
            first_index: None,
            checkpoint: None,
        }
    }

    /// Whether a stream that was cut by this may be resumed.
    pub(crate) fn is_resumable(&self) -> bool {
        matches!(
            self.code,
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Aborted | Code::DeadlineExceeded
        ) || (self.code == Code::Internal && self.reason == "transport")
            || (self.code == Code::ResourceExhausted && self.reason == "backpressure")
    }
}

impl From<Status> for CallError {
    fn from(status: Status) -> CallError {
        if let Ok(failure) = Failure::decode(status.details())
            && !failure.reason.is_empty()
        {
            return CallError::from_failure(failure);
        }
        CallError::local(status.code(), "transport", &describe(&status))
    }
}

/// A status without details comes from the connection: its source tells more than its message.
fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

/// A checkpoint could not be saved or fetched.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The member refused, or could not be reached in time.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The state could not be read or written on this side.
    #[error("the state cannot be read or written: {0}")]
    Io(#[from] std::io::Error),
}

/// An append did not succeed, or nobody knows.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// It is certain that nothing was appended; where trying again could help, it was tried until the
    /// deadline.
    #[error("not appended: {0}")]
    Refused(CallError),
    /// The log's last index was not the expected one; nothing was appended.
    #[error("not appended: the last index is {tail}, not the expected one")]
    UnexpectedIndex {
        /// The last index.
        tail: u64,
    },
    /// It may or may not have been appended, now or a little later: the deadline passed while nobody could tell, or
    /// the session or key was forgotten meanwhile. Appending again may make a second entry; reading the log tells.
    #[error("outcome unknown: {0}")]
    Unknown(CallError),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// docs: socket-api.md, "Errors": a machine-readable reason travels in the status's details.
    #[test]
    fn a_failure_is_read_from_a_status() {
        let failure = Failure {
            code: 9,
            reason: "expected-index".to_owned(),
            message: "the last index is 7".to_owned(),
            not_appended: true,
            retry_after_ms: 0,
            tail: Some(7),
            first_index: None,
            expected_sequence: None,
            checkpoint: None,
        };
        let status = Status::with_details(Code::FailedPrecondition, "x", failure.encode_to_vec().into());
        let error = CallError::from(status);
        assert_eq!((error.code, error.tail, error.retry_after_ms), (Code::FailedPrecondition, Some(7), None));
        assert_eq!(error.to_string(), "the last index is 7 (expected-index)");
        assert!(error.not_appended && !error.is_resumable());
        let cut = CallError::from(Status::unavailable("gone"));
        assert_eq!((cut.reason.as_str(), cut.not_appended), ("transport", false));
        assert!(cut.is_resumable());
    }
}
