//! The history of a run as an outside checker reads it: one JSON object a line.

use crate::action::Operation;
use crate::client::Open;
use crate::oracle::Outcome;
use serde::Serialize;
use synod_paxos::Refusal;

/// One operation, from call to return.
#[derive(Debug, Serialize)]
pub struct Event {
    /// Who called: one call at a time.
    pub client: usize,
    /// append, read, read_stale, open_session, set_cursor, save_checkpoint or change_settings.
    pub op: &'static str,
    /// The payloads of an append, and the last index it demanded.
    pub input: serde_json::Value,
    /// The first and last index of an append; the last index of a read; why it was refused.
    pub output: serde_json::Value,
    /// ok: it took effect. failed: it certainly did not. unknown: nobody can tell.
    pub outcome: &'static str,
    /// Simulated nanoseconds.
    pub invoke_ns: u64,
    /// Simulated nanoseconds; of an unknown outcome, when the client gave up.
    pub return_ns: u64,
}

impl Event {
    /// What became of an operation at `now`.
    pub fn of(client: usize, open: &Open, outcome: &Outcome, now: u64) -> Event {
        let input = match &open.operation {
            Operation::Append { expected, identity, .. } => {
                let entries: Vec<String> =
                    open.entries.iter().map(|e| String::from_utf8_lossy(&e.payload).into_owned()).collect();
                serde_json::json!({ "entries": entries, "expected_index": expected, "identity": identity })
            }
            Operation::ReadStale { bound } => serde_json::json!({ "bound_ns": bound }),
            Operation::SetCursor { index } => serde_json::json!({ "index": index }),
            Operation::SaveCheckpoint { index } => serde_json::json!({ "index": index }),
            Operation::ChangeSettings { version, wanted } => {
                serde_json::json!({ "version": version, "settings": wanted })
            }
            Operation::Read | Operation::OpenSession => serde_json::Value::Null,
        };
        let (word, output) = match outcome {
            Outcome::Appended(first, last) => ("ok", serde_json::json!({ "first": first.0, "last": last.0 })),
            Outcome::Read(index) => ("ok", serde_json::json!({ "last_index": index.0 })),
            Outcome::Session(id) => ("ok", serde_json::json!({ "session": id })),
            Outcome::Checkpoint => ("ok", serde_json::Value::Null),
            Outcome::Settings(version) => ("ok", serde_json::json!({ "version": version })),
            Outcome::Cursor(index) => ("ok", serde_json::json!({ "index": index.0 })),
            Outcome::Refused(Refusal::Identity(why)) => {
                ("unknown", serde_json::json!({ "why": why.to_string() }))
            }
            Outcome::Refused(why) => ("failed", serde_json::json!({ "why": why.to_string() })),
            Outcome::Unknown => ("unknown", serde_json::Value::Null),
        };
        let op = match open.operation {
            Operation::Append { .. } => "append",
            Operation::Read => "read",
            Operation::ReadStale { .. } => "read_stale",
            Operation::OpenSession => "open_session",
            Operation::SetCursor { .. } => "set_cursor",
            Operation::SaveCheckpoint { .. } => "save_checkpoint",
            Operation::ChangeSettings { .. } => "change_settings",
        };
        Event { client, op, input, output, outcome: word, invoke_ns: open.begun, return_ns: now }
    }
}
