//! The format level that each kind needs: of values, operations, changes and messages (docs: decisions/0013).
//!
//! A member of an older version cannot read a kind that came later. So a kind states here with which level it came, and
//! nothing is proposed or sent above the level that the log is at. The level rises by an entry in the log, once every
//! member says that it reads the next one.
//!
//! | level | since |
//! |---|---|
//! | 1 | the first version |
//! | 2 | stricter bounds on settings; drawn session numbers; keys that are forgotten by age only |
//! | 3 | fenced appends |
//! | 4 | headers beside entries, and the time at which entries were proposed; cursors that go back, and that expire |
//!
//! No function here has a catch-all: a new kind does not compile until it says its level.

use crate::configuration::Change;
use crate::message::Message;
use crate::settings::Settings;
use crate::value::{Operation, Value};

impl Operation {
    /// The level that the log must be at before this is proposed.
    pub fn level(&self) -> u32 {
        match self {
            Operation::Append(append) | Operation::FencedAppend { append, .. } if append.has_fields() => 4,
            Operation::Append(_)
            | Operation::OpenSession
            | Operation::CloseSession { .. }
            | Operation::SetCursor { .. }
            | Operation::AdvanceCursor { .. }
            | Operation::RemoveCursor { .. }
            | Operation::ChangeSettings { .. }
            | Operation::SaveCheckpoint(_) => 1,
            Operation::OpenSessionAs { .. } => 2,
            Operation::FencedAppend { .. } => 3,
            Operation::SeekCursor { .. } | Operation::LeaseCursor { .. } => 4,
        }
    }

    /// The level that a member must know to read it. An entry that raises the level is read by those who know the next.
    fn level_to_read(&self) -> u32 {
        match self {
            Operation::ChangeSettings { settings, .. } => self.level().max(settings.format_level),
            other => other.level(),
        }
    }
}

impl Change {
    /// The level that the log must be at before this is proposed.
    pub fn level(&self) -> u32 {
        match self {
            Change::AddLearner { .. } | Change::Promote { .. } | Change::Remove { .. } => 1,
        }
    }
}

impl Value {
    /// The level that the log must be at before this is proposed.
    pub fn level(&self) -> u32 {
        self.highest(Operation::level)
    }

    /// The level that a member must know to read it.
    pub fn level_to_read(&self) -> u32 {
        self.highest(Operation::level_to_read)
    }

    fn highest(&self, of: impl Fn(&Operation) -> u32) -> u32 {
        match self {
            Value::NoOp
            | Value::LeaderStart { .. }
            | Value::Mark
            | Value::Trim { .. }
            | Value::Recovered { .. } => 1,
            Value::Batch { fields, calls, .. } => {
                let calls = calls.iter().map(|call| of(&call.operation)).max().unwrap_or(1);
                if fields.is_empty() { calls } else { calls.max(Settings::TIMES) }
            }
            Value::Configuration(entry) => entry.change.level(),
        }
    }
}

impl Message {
    /// The level that the log must be at before this is sent. A new field of a known message needs none: who does not
    /// know it leaves it out.
    pub fn level(&self) -> u32 {
        match self {
            Message::Hello { .. }
            | Message::Welcome { .. }
            | Message::Canvass { .. }
            | Message::CanvassReply { .. }
            | Message::Prepare { .. }
            | Message::Promise { .. }
            | Message::PromiseMore { .. }
            | Message::Nack { .. }
            | Message::Busy { .. }
            | Message::Accept { .. }
            | Message::Accepted { .. }
            | Message::AlreadyChosen { .. }
            | Message::Heartbeat { .. }
            | Message::HeartbeatReply { .. }
            | Message::LearnRequest { .. }
            | Message::Learned { .. }
            | Message::SnapshotRequest { .. }
            | Message::SnapshotChunk { .. }
            | Message::Diverged { .. }
            | Message::Forward { .. }
            | Message::ForwardReply { .. }
            | Message::ReadPointRequest { .. }
            | Message::ReadPoint { .. }
            | Message::HandOver { .. }
            | Message::Retire { .. } => 1,
        }
    }
}
