//! Why a call failed: a reason for programs, which has one gRPC code on every call, and a sentence for people.

use crate::driver::Unanswered;
use crate::space::NoRoom;
use crate::storage::StorageError;
use std::time::Duration;
use synod_paxos::configuration::ChangeRefused;
use synod_paxos::sessions::IdentityRefused;
use synod_paxos::settings::SettingsError;
use synod_paxos::status::MemberState;
use synod_paxos::value::CallError;
use synod_paxos::{CallRefused, Index, Refusal};
use synod_proto::v1::{Failure, Reason};
use tonic::Status;

/// When a client should try again where a leader is missing.
const RETRY_LEADER: Duration = Duration::from_millis(50);
/// When a client should try again where too much is waiting.
pub(super) const RETRY_BACKPRESSURE: Duration = Duration::from_millis(20);

/// A failure with this reason.
pub fn refused(reason: Reason, message: impl ToString) -> Failure {
    Failure::new(reason, message.to_string())
}

/// The status that carries a failure in its details.
pub fn status(failure: Failure) -> Status {
    failure.to_status()
}

/// This member is going down.
pub fn stopping() -> Failure {
    refused(Reason::Stopping, "this member is stopping: try again in a moment").retry_after(RETRY_LEADER)
}

/// This member takes no part in a cluster.
pub fn not_active(state: &MemberState, why: &str) -> Failure {
    let state = super::convert::state(state).into();
    Failure { state, ..refused(Reason::NotActive, why) }
}

/// No disk has space for more.
pub fn disk_full(why: NoRoom) -> Failure {
    let whose = match why {
        NoRoom::Own => "the disk of this member is",
        NoRoom::Leader => "the disk of the leader is",
        NoRoom::Quorum => "the disks of too many members are",
    };
    let message = format!("{whose} almost full: make the volume larger or trim the log");
    refused(Reason::DiskFull, message)
}

/// The bounds of a call, as a failure.
fn call(error: &CallError) -> Failure {
    match error {
        CallError::Empty => refused(Reason::EmptyCall, error),
        CallError::Key { .. }
        | CallError::Sequence
        | CallError::Name(_)
        | CallError::Header(_)
        | CallError::Expiry => refused(Reason::Invalid, error),
        CallError::Settings(_) => refused(Reason::InvalidSettings, error),
        CallError::EntryTooLarge { .. } => refused(Reason::EntryTooLarge, error),
        CallError::CallTooLarge { .. } => refused(Reason::CallTooLarge, error),
    }
}

fn change(error: &ChangeRefused) -> Failure {
    let reason = match error {
        ChangeRefused::VersionMoved { .. } => Reason::VersionMoved,
        ChangeRefused::Pending { .. } => Reason::ChangePending,
        ChangeRefused::UnknownMember(_) => Reason::UnknownMember,
        ChangeRefused::UsedMember(_) => Reason::UsedMember,
        ChangeRefused::AlreadyVoter(_) => Reason::AlreadyVoter,
        ChangeRefused::LastVoter(_) => Reason::LastVoter,
        ChangeRefused::Name(_) => Reason::InvalidName,
        ChangeRefused::TooMany => Reason::TooManyMembers,
    };
    refused(reason, error)
}

fn identity(error: &IdentityRefused) -> Failure {
    let reason = match error {
        IdentityRefused::SessionExpired => Reason::SessionExpired,
        IdentityRefused::SequenceGap { .. } => Reason::SequenceGap,
        IdentityRefused::SequenceForgotten => Reason::SequenceForgotten,
        IdentityRefused::Reused => Reason::KeyReused,
        IdentityRefused::KeyExpired => Reason::KeyExpired,
        IdentityRefused::TooManyKeys => Reason::TooManyKeys,
        IdentityRefused::TooManySessions => Reason::TooManySessions,
    };
    let expected_sequence = match error {
        IdentityRefused::SequenceGap { expected } => Some(*expected),
        _ => None,
    };
    Failure { expected_sequence, ..refused(reason, error) }
}

/// The core's refusal.
pub fn refusal(refusal: &Refusal) -> Failure {
    let plain = |reason| refused(reason, refusal);
    match refusal {
        Refusal::NoLeader => plain(Reason::NoLeader).retry_after(RETRY_LEADER),
        Refusal::NotConfirmed => plain(Reason::Deadline).retry_after(RETRY_LEADER),
        Refusal::OutcomeUnknown => plain(Reason::OutcomeUnknown),
        Refusal::UnexpectedIndex { tail } => Failure { tail: Some(tail.0), ..plain(Reason::ExpectedIndex) },
        Refusal::Fenced { epoch } => Failure { fencing_epoch: Some(epoch.0), ..plain(Reason::Fenced) },
        Refusal::Backpressure => plain(Reason::Backpressure).retry_after(RETRY_BACKPRESSURE),
        Refusal::Call(error) => call(error),
        Refusal::Identity(error) => identity(error),
        Refusal::Settings(SettingsError::VersionMoved { .. }) => plain(Reason::VersionMoved),
        Refusal::Settings(_) => plain(Reason::InvalidSettings),
        Refusal::Cursor(CallRefused::Compacted { first }) => compacted(*first, None),
        Refusal::Cursor(CallRefused::BeyondTail { tail }) => {
            Failure { tail: Some(tail.0), ..plain(Reason::BeyondTail) }
        }
        Refusal::Cursor(CallRefused::NoSuchCursor { .. }) => plain(Reason::UnknownConsumer),
        Refusal::Cursor(_) => plain(Reason::TooManyConsumers),
        Refusal::NotActive(_) => plain(Reason::NotActive),
        Refusal::Change(error) => change(error),
        Refusal::NotCaughtUp { .. } => plain(Reason::NotCaughtUp),
        Refusal::NotLeader { .. } => plain(Reason::NotLeader),
        Refusal::OtherCluster { .. } => plain(Reason::OtherCluster),
        Refusal::OtherGenesis => plain(Reason::OtherGenesis),
        Refusal::NotListed(_) => plain(Reason::NotListed),
        Refusal::Genesis(_) => plain(Reason::InvalidGenesis),
        Refusal::FormatLevel { .. } => plain(Reason::FormatLevel),
        Refusal::NotEveryMember { .. } => plain(Reason::NotEveryMember),
        Refusal::Unreadable => plain(Reason::Unreadable),
        Refusal::NotTransferred => plain(Reason::NotTransferred),
    }
}

/// A request that the core did not carry out. A stopping core may have proposed what it did not answer.
pub fn unanswered(error: &Unanswered) -> Failure {
    match error {
        Unanswered::Refused(inner) => refusal(inner),
        Unanswered::Deadline => {
            refused(Reason::Deadline, "the deadline passed before this member had an answer")
        }
        Unanswered::Behind { applied } => {
            let failure = refused(Reason::Behind, error).retry_after(RETRY_LEADER);
            Failure { tail: Some(applied.0), ..failure }
        }
        Unanswered::Stopping => stopping(),
    }
}

/// The core's refusal of an append.
pub fn refusal_of_append(inner: &Refusal) -> Failure {
    match inner {
        Refusal::OutcomeUnknown => {
            let message = "whether it was appended is not known: under a key or in a session try it again, otherwise read \
                           the log first";
            refused(Reason::OutcomeUnknown, message)
        }
        inner => refusal(inner),
    }
    .of_append()
}

/// The same of an append.
pub fn unanswered_append(error: &Unanswered) -> Failure {
    match error {
        // It was handed to the core, which may have proposed it.
        Unanswered::Deadline => {
            let message = "the deadline passed, and whether it was appended is not known";
            refused(Reason::OutcomeUnknown, message)
        }
        Unanswered::Refused(inner) => refusal_of_append(inner),
        error => unanswered(error),
    }
    .of_append()
}

/// What was asked for is not in the log any more; `checkpoint` is the newest one's index.
pub fn compacted(first: Index, checkpoint: Option<Index>) -> Failure {
    let begins = format!("the log begins at index {first} now, what was before is trimmed");
    let message = match checkpoint {
        Some(index) => format!("{begins}: begin with the checkpoint at index {index}, read on behind it"),
        None => format!("{begins}: read from there"),
    };
    let checkpoint = checkpoint.map(|index| index.0);
    Failure { first_index: Some(first.0), checkpoint, ..refused(Reason::Compacted, message) }
}

/// The log could not be read.
pub fn storage(error: &StorageError) -> Failure {
    match error {
        error if error.is_damage() => refused(Reason::Damaged, error),
        // It says nothing of what is on the disk: another member, or this one in a moment, can tell.
        error => refused(Reason::DiskUnavailable, error).retry_after(RETRY_LEADER),
    }
}
