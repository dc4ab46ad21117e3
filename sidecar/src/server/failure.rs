//! Why a call failed, in the words of docs: socket-api.md: a gRPC code, a reason for programs, a sentence for
//! people, and whether it is certain that nothing was appended.

use crate::driver::Unanswered;
use crate::space::NoRoom;
use crate::storage::StorageError;
use prost::Message;
use synod_paxos::configuration::ChangeRefused;
use synod_paxos::sessions::IdentityRefused;
use synod_paxos::settings::SettingsError;
use synod_paxos::value::CallError;
use synod_paxos::{CallRefused, Index, Refusal};
use synod_proto::v1::Failure;
use tonic::{Code, Status};

/// When a client should try again where a leader is missing.
const RETRY_LEADER_MS: u32 = 50;
/// When a client should try again where too much is waiting.
pub(super) const RETRY_BACKPRESSURE_MS: u32 = 20;

/// A failure with this reason; nothing was appended.
pub fn refused(code: Code, reason: &str, message: impl ToString) -> Failure {
    Failure {
        code: u32::try_from(i32::from(code)).unwrap_or_default(),
        reason: reason.to_owned(),
        message: message.to_string(),
        not_appended: true,
        retry_after_ms: 0,
        tail: None,
        first_index: None,
        expected_sequence: None,
        checkpoint: None,
    }
}

/// The status that carries a failure in its details.
pub fn status(failure: Failure) -> Status {
    let code = Code::from_i32(i32::try_from(failure.code).unwrap_or_default());
    let message = format!("{} ({})", failure.message, failure.reason);
    Status::with_details(code, message, failure.encode_to_vec().into())
}

/// This member is going down.
pub fn stopping() -> Failure {
    Failure {
        retry_after_ms: RETRY_LEADER_MS,
        ..refused(Code::Unavailable, "stopping", "this member is stopping: try again in a moment")
    }
}

/// No disk has space for more.
pub fn disk_full(why: NoRoom) -> Failure {
    let whose = match why {
        NoRoom::Own => "the disk of this member is",
        NoRoom::Leader => "the disk of the leader is",
        NoRoom::Quorum => "the disks of too many members are",
    };
    let message =
        format!("{whose} almost full, nothing was appended: make the volume larger or trim the log");
    refused(Code::ResourceExhausted, "disk-full", message)
}

/// The bounds of a call, as a failure.
fn call(error: &CallError) -> Failure {
    match error {
        CallError::Empty => refused(Code::InvalidArgument, "empty-call", error),
        CallError::Key { .. } | CallError::Sequence | CallError::Name(_) => {
            refused(Code::InvalidArgument, "invalid", error)
        }
        CallError::Settings(_) => refused(Code::InvalidArgument, "invalid-settings", error),
        CallError::EntryTooLarge { .. } => refused(Code::ResourceExhausted, "entry-too-large", error),
        CallError::CallTooLarge { .. } => refused(Code::ResourceExhausted, "call-too-large", error),
    }
}

fn change(error: &ChangeRefused) -> Failure {
    let (code, reason) = match error {
        ChangeRefused::VersionMoved { .. } => (Code::FailedPrecondition, "version-moved"),
        ChangeRefused::Pending { .. } => (Code::FailedPrecondition, "change-pending"),
        ChangeRefused::UnknownMember(_) => (Code::NotFound, "unknown-member"),
        ChangeRefused::UsedMember(_) => (Code::AlreadyExists, "used-member"),
        ChangeRefused::AlreadyVoter(_) => (Code::FailedPrecondition, "already-voter"),
        ChangeRefused::LastVoter(_) => (Code::FailedPrecondition, "last-voter"),
        ChangeRefused::Name(_) => (Code::InvalidArgument, "invalid-name"),
        ChangeRefused::TooMany => (Code::FailedPrecondition, "too-many-members"),
    };
    refused(code, reason, error)
}

fn identity(error: &IdentityRefused) -> Failure {
    let (code, reason) = match error {
        IdentityRefused::SessionExpired => (Code::FailedPrecondition, "session-expired"),
        IdentityRefused::SequenceGap { .. } => (Code::FailedPrecondition, "sequence-gap"),
        IdentityRefused::SequenceForgotten => (Code::FailedPrecondition, "sequence-forgotten"),
        IdentityRefused::Reused => (Code::AlreadyExists, "key-reused"),
        IdentityRefused::KeyExpired => (Code::FailedPrecondition, "key-expired"),
        IdentityRefused::TooManyKeys => (Code::ResourceExhausted, "too-many-keys"),
        IdentityRefused::TooManySessions => (Code::ResourceExhausted, "too-many-sessions"),
    };
    // This try was not appended; whether an earlier one was is forgotten.
    let unknown = matches!(
        error,
        IdentityRefused::SessionExpired | IdentityRefused::SequenceForgotten | IdentityRefused::KeyExpired
    );
    let expected_sequence = match error {
        IdentityRefused::SequenceGap { expected } => Some(*expected),
        _ => None,
    };
    Failure { not_appended: !unknown, expected_sequence, ..refused(code, reason, error) }
}

/// The core's refusal.
pub fn refusal(refusal: &Refusal) -> Failure {
    let plain = |code, reason| refused(code, reason, refusal);
    match refusal {
        Refusal::NoLeader => {
            Failure { retry_after_ms: RETRY_LEADER_MS, ..plain(Code::Unavailable, "no-leader") }
        }
        Refusal::OutcomeUnknown => {
            Failure { not_appended: false, ..plain(Code::Unavailable, "outcome-unknown") }
        }
        Refusal::UnexpectedIndex { tail } => {
            Failure { tail: Some(tail.0), ..plain(Code::FailedPrecondition, "expected-index") }
        }
        Refusal::Backpressure => Failure {
            retry_after_ms: RETRY_BACKPRESSURE_MS,
            ..plain(Code::ResourceExhausted, "backpressure")
        },
        Refusal::Call(error) => call(error),
        Refusal::Identity(error) => identity(error),
        Refusal::Settings(SettingsError::VersionMoved { .. }) => {
            plain(Code::FailedPrecondition, "version-moved")
        }
        Refusal::Settings(_) => plain(Code::InvalidArgument, "invalid-settings"),
        Refusal::Cursor(CallRefused::Compacted { first }) => compacted(*first, None),
        Refusal::Cursor(CallRefused::BeyondTail { tail }) => {
            Failure { tail: Some(tail.0), ..plain(Code::OutOfRange, "beyond-tail") }
        }
        Refusal::Cursor(CallRefused::NoSuchCursor { .. }) => plain(Code::NotFound, "unknown-consumer"),
        Refusal::Cursor(_) => plain(Code::ResourceExhausted, "too-many-consumers"),
        Refusal::NotActive(_) => plain(Code::FailedPrecondition, "not-active"),
        Refusal::Change(error) => change(error),
        Refusal::NotCaughtUp { .. } => plain(Code::FailedPrecondition, "not-caught-up"),
        Refusal::NotLeader { .. } => plain(Code::FailedPrecondition, "not-leader"),
        Refusal::OtherCluster { .. } => plain(Code::FailedPrecondition, "other-cluster"),
        Refusal::OtherGenesis => plain(Code::FailedPrecondition, "other-genesis"),
        Refusal::NotListed(_) => plain(Code::InvalidArgument, "not-listed"),
        Refusal::Genesis(_) => plain(Code::InvalidArgument, "invalid-genesis"),
        Refusal::FormatLevel { .. } => plain(Code::FailedPrecondition, "format-level"),
        Refusal::NotEveryMember { .. } => plain(Code::FailedPrecondition, "not-every-member"),
        Refusal::Unreadable => plain(Code::Internal, "unreadable"),
        Refusal::NotTransferred => plain(Code::Unavailable, "not-transferred"),
    }
}

/// A request that the core did not carry out. A stopping core may have proposed what it did not answer.
pub fn unanswered(error: &Unanswered) -> Failure {
    match error {
        Unanswered::Refused(inner) => refusal(inner),
        Unanswered::Deadline => Failure {
            not_appended: false,
            ..refused(
                Code::DeadlineExceeded,
                "outcome-unknown",
                "the deadline passed; the outcome is unknown",
            )
        },
        Unanswered::Behind { applied } => Failure {
            tail: Some(applied.0),
            retry_after_ms: RETRY_LEADER_MS,
            ..refused(Code::Unavailable, "behind", error)
        },
        Unanswered::Stopping => Failure { not_appended: false, ..stopping() },
    }
}

/// What was asked for is not in the log any more; `checkpoint` is the newest one's index.
pub fn compacted(first: Index, checkpoint: Option<Index>) -> Failure {
    let begins = format!("the log begins at index {first} now, what was before is trimmed");
    let message = match checkpoint {
        Some(index) => format!("{begins}: begin with the checkpoint at index {index}, read on behind it"),
        None => format!("{begins}: read from there"),
    };
    let checkpoint = checkpoint.map(|index| index.0);
    Failure { first_index: Some(first.0), checkpoint, ..refused(Code::OutOfRange, "compacted", message) }
}

/// The log could not be read.
pub fn storage(error: &StorageError) -> Failure {
    match error {
        error if error.is_damage() => refused(Code::DataLoss, "damaged", error),
        // It says nothing of what is on the disk: another member, or this one in a moment, can tell.
        error => Failure {
            retry_after_ms: RETRY_LEADER_MS,
            ..refused(Code::Unavailable, "disk-unavailable", error)
        },
    }
}
