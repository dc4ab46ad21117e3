//! What applying a slot gives: the answers to its calls, and its effect.

use crate::codec::Writer;
use crate::configuration::{ChangeRefused, Configuration, OperationId};
use crate::limits;
use crate::sessions::IdentityRefused;
use crate::settings::{Settings, SettingsError};
use crate::system::Mark;
use crate::types::{Ballot, Index, SessionId, Slot, Time};
use crate::value::{CallError, Entry, Origin};
use alloc::string::String;
use alloc::vec::Vec;

/// What a call that was applied is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Its entries are in the log.
    Appended {
        /// The first entry's index.
        first: Index,
        /// The last entry's.
        last: Index,
        /// They were there before this call: it repeats an earlier one.
        repeat: bool,
    },
    /// A session is open.
    SessionOpened(SessionId),
    /// It is closed.
    SessionClosed,
    /// A cursor stands there, which was registered before.
    CursorSet(Index),
    /// A cursor is registered there, which was not before.
    CursorNew(Index),
    /// A cursor is gone.
    CursorRemoved,
    /// The settings in force now.
    SettingsChanged(Settings),
    /// The log knows of the checkpoint.
    CheckpointSaved,
}

/// Why a call that was applied changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallRefused {
    /// The last index was another than the expected one.
    #[error("the last index is {tail}, not the expected one: read on and decide again")]
    UnexpectedIndex {
        /// The last index.
        tail: Index,
    },
    /// The newest leadership is not the one that it goes by.
    #[error("another leadership is the newest, with the fencing epoch {epoch}: whoever leads now may append")]
    Fenced {
        /// The newest leadership's.
        epoch: Slot,
    },
    /// Its session or key does not let it in.
    #[error(transparent)]
    Identity(#[from] IdentityRefused),
    /// It is over the limits in force.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A settings change that has no effect.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A cursor or a checkpoint where the log is trimmed already.
    #[error("the log begins at index {first} now: what lies before it is gone")]
    Compacted {
        /// The first index.
        first: Index,
    },
    /// A cursor or a checkpoint beyond the log.
    #[error("the log ends at index {tail}: nothing can stand behind it")]
    BeyondTail {
        /// The last index.
        tail: Index,
    },
    /// Too many cursors.
    #[error("there are {} cursors already: remove one first", limits::CURSORS)]
    TooManyCursors,
    /// A cursor to move on that is not registered.
    #[error("no consumer is registered as {name:?}: register it first")]
    NoSuchCursor {
        /// Its name.
        name: String,
    },
}

/// What became of one call when its slot was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallOutcome {
    /// Who answers it.
    pub origin: Origin,
    /// The answer.
    pub result: Result<Reply, CallRefused>,
}

/// What applying one slot did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing that anyone sees.
    None,
    /// A leader may serve.
    LeaderStart(Ballot),
    /// Entries were added, or refused.
    Batch {
        /// The first added entry's index.
        first: Index,
        /// When they were proposed, where the log says so.
        time: Option<Time>,
        /// The added entries.
        entries: Vec<Entry>,
        /// Calls of the batch, by their place in it from 0, whose entries were not added.
        skipped: Vec<u32>,
        /// One for each call.
        calls: Vec<CallOutcome>,
    },
    /// A configuration entry was judged.
    Configuration {
        /// Whose.
        operation: OperationId,
        /// What it made, or why it made nothing.
        result: Result<Configuration, ChangeRefused>,
    },
    /// Every member takes a snapshot here.
    Mark,
    /// The log begins behind this mark now.
    Trim(Mark),
}

/// What the chain takes in of an outcome: enough that members that decided otherwise differ.
pub(super) fn note_outcome(result: &Result<Reply, CallRefused>, w: &mut Writer) {
    match result {
        Ok(Reply::Appended { first, last, repeat }) => {
            w.u8(0);
            w.u64(first.0);
            w.u64(last.0);
            w.bool(*repeat);
        }
        Ok(Reply::SessionOpened(session)) => {
            w.u8(1);
            w.u64(session.0);
        }
        Ok(Reply::CursorSet(index) | Reply::CursorNew(index)) => {
            w.u8(2);
            w.u64(index.0);
        }
        Ok(Reply::SessionClosed | Reply::CursorRemoved | Reply::CheckpointSaved) => w.u8(3),
        Ok(Reply::SettingsChanged(settings)) => {
            w.u8(4);
            w.u64(settings.version);
        }
        Err(CallRefused::UnexpectedIndex { tail }) => {
            w.u8(5);
            w.u64(tail.0);
        }
        Err(CallRefused::Identity(why)) => {
            w.u8(6);
            w.u8(match why {
                IdentityRefused::SessionExpired => 0,
                IdentityRefused::SequenceGap { .. } => 1,
                IdentityRefused::SequenceForgotten => 2,
                IdentityRefused::Reused => 3,
                IdentityRefused::KeyExpired => 4,
                IdentityRefused::TooManySessions => 5,
                IdentityRefused::TooManyKeys => 6,
            });
        }
        Err(CallRefused::Fenced { epoch }) => {
            w.u8(8);
            w.u64(epoch.0);
        }
        Err(
            CallRefused::Call(_)
            | CallRefused::Settings(_)
            | CallRefused::Compacted { .. }
            | CallRefused::BeyondTail { .. }
            | CallRefused::TooManyCursors
            | CallRefused::NoSuchCursor { .. },
        ) => w.u8(7),
    }
}
