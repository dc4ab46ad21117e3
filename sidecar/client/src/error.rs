//! What can go wrong, sorted by what an application may do about it.

use std::path::PathBuf;
use std::time::Duration;
use synod_proto::v1::{Failure, Outcome, Reason};
use tonic::{Code, Status};

/// The socket's path cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
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
#[error("{message} ({})", reason.word())]
#[non_exhaustive]
pub struct CallError {
    /// Why, for programs; [`Reason::Transport`] where the call did not come through.
    pub reason: Reason,
    /// A sentence for a person.
    pub message: String,
    /// What is known of an append; [`Outcome::Unspecified`] where the call was another.
    pub outcome: Outcome,
    /// When to try again at the earliest, if the member gave a hint.
    pub retry_after: Option<Duration>,
    /// The last index, of [`Reason::ExpectedIndex`] and [`Reason::BeyondTail`]; the last one applied at the member, of
    /// [`Reason::Behind`].
    pub tail: Option<u64>,
    /// The first index that can still be read, of [`Reason::Compacted`].
    pub first_index: Option<u64>,
    /// The index of the newest checkpoint, of [`Reason::Superseded`], and of [`Reason::Compacted`] where there is one.
    pub checkpoint: Option<u64>,
    /// The gRPC code: all that is known where the connection failed.
    pub(crate) code: Code,
}

impl CallError {
    pub(crate) fn from_failure(failure: Failure) -> CallError {
        CallError {
            reason: failure.reason(),
            outcome: failure.outcome(),
            retry_after: failure.retry_hint(),
            code: Code::from_i32(i32::try_from(failure.code).unwrap_or(0)),
            message: failure.message,
            tail: failure.tail,
            first_index: failure.first_index,
            checkpoint: failure.checkpoint,
        }
    }

    /// What this side found.
    pub(crate) fn local(reason: Reason, message: impl Into<String>) -> CallError {
        CallError::from_failure(Failure::new(reason, message))
    }

    /// The same of an append.
    pub(crate) fn of_append(self, outcome: Outcome) -> CallError {
        CallError { outcome, ..self }
    }

    /// The error of a call that ended with this status.
    pub(crate) fn from_status(status: &Status) -> CallError {
        if let Some(failure) = Failure::from_status(status) {
            return CallError::from_failure(failure);
        }
        let error = CallError::local(Reason::Transport, describe(status));
        match status.code() {
            // The transport's own clock: it says CANCELLED.
            Code::DeadlineExceeded | Code::Cancelled if is_timeout(status) => {
                CallError::local(Reason::Deadline, "no answer came before the deadline")
            }
            code => CallError { code, ..error },
        }
    }

    /// Whether a stream that was cut by this may be resumed, and a call that does no harm twice be tried again.
    pub(crate) fn is_resumable(&self) -> bool {
        match self.reason {
            // Whoever was let go for taking nothing goes on where it stopped.
            Reason::Backpressure | Reason::SlowReader => true,
            Reason::Transport => matches!(
                self.code,
                Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal | Code::DeadlineExceeded
            ),
            _ => matches!(self.code, Code::Unavailable | Code::Aborted | Code::DeadlineExceeded),
        }
    }
}

/// The error of a call that ended with this status: not a `From`, which would show the transport's type to everybody.
pub(crate) fn failed(status: Status) -> CallError {
    CallError::from_status(&status)
}

fn is_timeout(status: &Status) -> bool {
    let first = std::error::Error::source(status);
    let mut chain = std::iter::successors(first, |error| error.source());
    status.code() == Code::DeadlineExceeded || chain.any(|error| error.is::<tonic::TimeoutExpired>())
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
#[cfg(feature = "checkpoints")]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The member refused, or could not be reached in time.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The state could not be read or written on this side.
    #[error("the state cannot be read or written: {0}")]
    Io(#[from] std::io::Error),
}

/// What an unknown outcome means, where the error does not say it itself.
fn unless_said(error: &CallError) -> &'static str {
    match error.reason {
        Reason::OutcomeUnknown => "",
        _ => "it may or may not have been appended: ",
    }
}

/// An append did not succeed, or nobody knows. There is no other end of an append, and there will be none.
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
    #[error("{}{}", unless_said(.0), .0)]
    Unknown(CallError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_read_from_a_status() {
        let failure = Failure { tail: Some(7), ..Failure::new(Reason::ExpectedIndex, "the last index is 7") };
        let error = CallError::from_status(&failure.of_append().to_status());
        assert_eq!((error.reason, error.tail, error.retry_after), (Reason::ExpectedIndex, Some(7), None));
        assert_eq!(error.to_string(), "the last index is 7 (EXPECTED_INDEX)");
        assert!(error.outcome == Outcome::NotAppended && !error.is_resumable());
        let cut = CallError::from_status(&Status::unavailable("gone"));
        assert_eq!((cut.reason, cut.outcome), (Reason::Transport, Outcome::Unspecified));
        assert!(cut.is_resumable());
    }
}
