//! What goes with each reason: its code, and what an append that fails with it has come to.

use crate::v1::{Outcome, Reason};
use tonic::Code;

impl Reason {
    /// Its name for programs and people: `NO_LEADER`, for instance.
    pub fn word(self) -> &'static str {
        let name = self.as_str_name();
        name.strip_prefix("REASON_").unwrap_or(name)
    }

    /// The one gRPC code that it comes with.
    pub fn code(self) -> Code {
        use Reason as R;
        match self {
            R::Unspecified => Code::Unknown,
            R::NoLeader | R::OutcomeUnknown | R::Stopping | R::Behind | R::NoSource => Code::Unavailable,
            R::DiskUnavailable | R::NotTransferred | R::Transport => Code::Unavailable,
            R::Deadline | R::Stalled => Code::DeadlineExceeded,
            R::ExpectedIndex | R::SessionExpired | R::SequenceGap | R::SequenceForgotten => {
                Code::FailedPrecondition
            }
            R::KeyExpired | R::NotActive | R::Superseded | R::FormatLevel | R::Fenced => {
                Code::FailedPrecondition
            }
            R::NotEveryMember | R::VersionMoved | R::ChangePending => Code::FailedPrecondition,
            R::AlreadyVoter | R::LastVoter | R::TooManyMembers | R::NotCaughtUp => Code::FailedPrecondition,
            R::NotLeader | R::OtherCluster | R::OtherLog | R::OtherGenesis | R::NotRenewable => {
                Code::FailedPrecondition
            }
            R::KeyReused | R::UsedMember => Code::AlreadyExists,
            R::TooManyKeys | R::TooManySessions | R::TooManyConsumers => Code::ResourceExhausted,
            R::ChunkTooLarge | R::Backpressure | R::DiskFull | R::EntryTooLarge => Code::ResourceExhausted,
            R::CallTooLarge | R::Subscribers | R::Connections | R::SlowReader => Code::ResourceExhausted,
            R::Compacted | R::BeyondTail => Code::OutOfRange,
            R::UnknownConsumer | R::NoCheckpoint | R::UnknownMember => Code::NotFound,
            R::Mismatch | R::Offset => Code::Aborted,
            R::Disk | R::Unreadable | R::Internal => Code::Internal,
            R::EmptyCall | R::Invalid | R::Malformed | R::Index | R::Consistency => Code::InvalidArgument,
            R::Tag | R::InvalidName | R::NotListed | R::InvalidGenesis => Code::InvalidArgument,
            R::InvalidSettings => Code::InvalidArgument,
            R::Uid | R::NotTheOperator => Code::PermissionDenied,
            R::Damaged | R::OutOfOrder => Code::DataLoss,
        }
    }

    /// What an append that fails with it has come to: unknown unless it is certain that nothing was appended.
    pub fn append_outcome(self) -> Outcome {
        use Reason as R;
        match self {
            R::Unspecified | R::OutcomeUnknown | R::Deadline | R::Stopping => Outcome::Unknown,
            R::Internal | R::Transport | R::Stalled => Outcome::Unknown,
            // This try was not appended; whether an earlier one was is forgotten.
            R::SessionExpired | R::SequenceForgotten | R::KeyExpired => Outcome::Unknown,
            _ => Outcome::NotAppended,
        }
    }
}
