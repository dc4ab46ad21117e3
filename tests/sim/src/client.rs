//! Simulated applications: each does one operation after the other at one member, and gives up after a while.

use crate::action::{Identity, Operation};
use crate::coverage::Rule;
use crate::faults::Fault;
use crate::history::Event;
use crate::oracle::{Outcome, Violation};
use crate::world::{Effect, World};
use bytes::Bytes;
use std::time::Duration;
use synod_paxos::sessions::IdentityRefused;
use synod_paxos::value::{self, Append, Entry};
use synod_paxos::{
    Consistency, Digest, Index, Input, MemberId, Refusal, RequestId, SessionId, Settings, limits,
};

/// An operation that is not answered.
#[derive(Clone, Debug)]
pub struct Open {
    /// At which member.
    pub at: MemberId,
    /// Its name there.
    pub request: RequestId,
    /// What.
    pub operation: Operation,
    /// What it appends, if it does.
    pub entries: Vec<Entry>,
    /// When it began.
    pub begun: u64,
    /// The highest index that any answer given before it began had shown.
    pub floor: Index,
    /// How often it was sent.
    pub tries: u32,
}

impl Open {
    fn input(&self, client: usize, drawn: bool) -> Input {
        let request = self.request;
        let operation = match &self.operation {
            Operation::Append { number, expected, identity, .. } => {
                let identity = match identity {
                    None => value::Identity::None,
                    Some(Identity::Session { session, sequence }) => value::Identity::Session {
                        session: SessionId(*session),
                        sequence: *sequence,
                        acknowledged: sequence - 1,
                    },
                    Some(Identity::Key { minted }) => value::Identity::Key {
                        key: payload(client, *number, 0),
                        minted_at: Some(Index(*minted)),
                    },
                };
                let entries = self.entries.clone();
                value::Operation::Append(Append { identity, expected_index: expected.map(Index), entries })
            }
            // As a driver does: from level 2 on its number is drawn.
            Operation::OpenSession if drawn => {
                let number = self.request.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                value::Operation::OpenSessionAs { session: SessionId(number) }
            }
            Operation::OpenSession => value::Operation::OpenSession,
            Operation::SetCursor { index } => {
                // Some have the longest name that there may be.
                let long = if client % 3 == 1 { limits::NAME_BYTES } else { 0 };
                value::Operation::SetCursor { name: format!("{client:0>long$}"), index: Index(*index) }
            }
            Operation::SaveCheckpoint { index } => value::Operation::SaveCheckpoint(value::Checkpoint {
                index: Index(*index),
                length: *index,
                digest: Digest([0; 32]),
            }),
            Operation::ChangeSettings { version, wanted } => {
                value::Operation::ChangeSettings { expected_version: *version, settings: wanted.settings() }
            }
            Operation::Read => return Input::Read { request, consistency: Consistency::Linearizable },
            Operation::ReadStale { bound } => {
                let consistency = Consistency::StaleBounded(Duration::from_nanos(*bound));
                return Input::Read { request, consistency };
            }
        };
        Input::Call { request, operation }
    }

    /// Whether it may be sent again without a risk.
    fn has_identity(&self) -> bool {
        matches!(self.operation, Operation::Append { identity: Some(_), .. })
    }
}

/// What an operation appends; every third append has headers beside some of its entries, where the log takes them.
fn entries(client: usize, operation: &Operation, padding: usize, level: u32) -> Vec<Entry> {
    let Operation::Append { number, entries, .. } = operation else { return Vec::new() };
    let entry = |part| {
        let payload = padded(payload(client, *number, part), padding);
        let headers = if level >= Settings::TIMES && number % 3 == 1 { part % 3 + part / 3 % 2 } else { 0 };
        let header = |n| (format!("header-{n}"), format!("{client}-{number}-{part}"));
        Entry::new(payload, &(0..headers).map(header).collect()).expect("headers within their bounds")
    };
    (0..*entries).map(entry).collect()
}

/// One application.
#[derive(Debug, Default)]
pub struct Client {
    /// The operation under way.
    pub open: Option<Open>,
    /// An append with an identity whose outcome is not known yet: it is sent again until it is.
    pub unresolved: Option<Open>,
    /// The last index it has seen.
    pub seen: Index,
    /// Its session, and the number of the session's last call.
    pub session: Option<(u64, u64)>,
    /// Where its cursor stands for certain.
    pub cursor: Option<Index>,
}

/// A payload that stands once in a run.
pub fn payload(client: usize, number: u64, part: usize) -> Bytes {
    Bytes::from(format!("c{client}-{number}-{part}"))
}

/// The payload, filled up with so many bytes.
fn padded(payload: Bytes, padding: usize) -> Bytes {
    if padding == 0 {
        return payload;
    }
    let mut filled = Vec::with_capacity(payload.len() + padding);
    filled.extend_from_slice(&payload);
    filled.resize(payload.len() + padding, b'.');
    Bytes::from(filled)
}

/// Whether an answer settles what became of an append with an identity.
fn is_settled(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Refused(refusal) => {
            matches!(refusal, Refusal::UnexpectedIndex { .. } | Refusal::Identity(_) | Refusal::Call(_))
        }
        Outcome::Unknown => false,
        Outcome::Appended(..)
        | Outcome::Read(_)
        | Outcome::Session(_)
        | Outcome::Cursor(_)
        | Outcome::Checkpoint
        | Outcome::Settings(_) => true,
    }
}

impl World {
    /// A client without an open operation begins one, or sends one again. Returns whether it did.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn call(
        &mut self,
        client: usize,
        at: MemberId,
        request: RequestId,
        operation: &Operation,
    ) -> Result<bool, Violation> {
        let Some(state) = self.clients.get_mut(client).filter(|c| c.open.is_none()) else {
            return Ok(false);
        };
        if self.members.get(&at).is_none_or(|m| m.node.is_none()) {
            return Ok(false);
        }
        let system = self.members.get(&at).and_then(|m| m.node.as_ref()?.system());
        let level = system.map_or(1, |system| system.settings.format_level);
        let mut open = match state.unresolved.take() {
            // Sent again: it began when it was sent first.
            Some(earlier) if earlier.operation == *operation => earlier,
            earlier => {
                state.unresolved = earlier;
                let (floor, begun) = (self.oracle.floor(), self.now);
                let entries = entries(client, operation, self.padding, level);
                let operation = operation.clone();
                Open { at, request, operation, entries, begun, floor, tries: 0 }
            }
        };
        (open.at, open.request) = (at, request);
        open.tries += 1;
        if open.entries.iter().any(Entry::has_fields) {
            self.coverage.rule(Rule::HeadersSent);
        }
        let input = open.input(client, level >= 2);
        self.trace.step(self.now, 5, client as u64, request.0);
        self.trace.line(self.now, || {
            format!("client {client} at {at:?} {request:?}, try {}: {operation:?}", open.tries)
        });
        if matches!(operation, Operation::SetCursor { .. }) {
            // It may move before its client hears so.
            self.clients[client].cursor = None;
        }
        self.clients[client].open = Some(open);
        self.input(at, input)?;
        Ok(true)
    }

    /// A client gives up. Returns whether it was still waiting.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn cancel(&mut self, client: usize, request: RequestId) -> Result<bool, Violation> {
        let Some(client_state) = self.clients.get_mut(client) else { return Ok(false) };
        let Some(open) = client_state.open.as_ref().filter(|open| open.request == request) else {
            return Ok(false);
        };
        let at = open.at;
        self.coverage.fault(Fault::ClientTimeout);
        self.input(at, Input::Cancel(request))?;
        // A member that answers nothing even to this is one that has nothing to say any more.
        if self.clients[client].open.as_ref().is_some_and(|open| open.request == request) {
            self.close(client, &Outcome::Unknown)?;
        }
        Ok(true)
    }

    pub(crate) fn answer(
        &mut self,
        id: MemberId,
        request: RequestId,
        outcome: &Outcome,
    ) -> Result<(), Violation> {
        let waits = |c: &Client| c.open.as_ref().is_some_and(|o| o.request == request && o.at == id);
        match self.clients.iter().position(waits) {
            Some(client) => self.close(client, outcome),
            None => Ok(()),
        }
    }

    /// The operation of `client` came to `outcome`.
    pub(crate) fn close(&mut self, client: usize, outcome: &Outcome) -> Result<(), Violation> {
        let Some(open) = self.clients[client].open.take() else { return Ok(()) };
        self.trace.step(self.now, 4, client as u64, open.request.0);
        self.trace.line(self.now, || format!("client {client} {:?} gets {outcome:?}", open.request));
        self.count_answer(outcome, &open);
        self.effects.push(Effect::Answered(client));
        if open.has_identity() && !is_settled(outcome) {
            // An earlier try may have been appended, whatever became of this one.
            self.clients[client].unresolved = Some(open);
            return Ok(());
        }
        if open.tries > 1 && matches!(outcome, Outcome::Appended(..)) {
            self.coverage.rule(Rule::RetryAnswered);
        }
        self.note_answer(client, &open, outcome);
        self.oracle.answered(&open, outcome, self.now)?;
        if matches!(outcome, Outcome::Appended(..)) {
            self.last_append_served = self.last_append_served.max(Some(open.begun));
        }
        if let Some(history) = &mut self.history {
            history.push(Event::of(client, &open, outcome, self.now));
        }
        Ok(())
    }

    /// What a client learns from an answer.
    fn note_answer(&mut self, client: usize, open: &Open, outcome: &Outcome) {
        let state = &mut self.clients[client];
        let seen = match outcome {
            Outcome::Appended(_, last) => *last,
            Outcome::Read(index) => *index,
            Outcome::Refused(Refusal::UnexpectedIndex { tail }) => *tail,
            Outcome::Session(id) => {
                state.session = Some((*id, 0));
                Index(0)
            }
            Outcome::Cursor(index) => {
                state.cursor = Some(*index);
                Index(0)
            }
            Outcome::Checkpoint | Outcome::Settings(_) | Outcome::Refused(_) | Outcome::Unknown => Index(0),
        };
        state.seen = state.seen.max(seen);
        if let Operation::Append { identity: Some(Identity::Session { sequence, .. }), .. } = open.operation {
            match outcome {
                Outcome::Refused(Refusal::Identity(_)) => state.session = None,
                _ => {
                    if let Some((_, last)) = &mut state.session {
                        *last = (*last).max(sequence);
                    }
                }
            }
        }
    }

    /// Whether it asks for a higher format level than the log began at.
    fn raises(&self, operation: &Operation) -> bool {
        let began = self.genesis.settings.format_level;
        matches!(operation, Operation::ChangeSettings { wanted, .. } if wanted.format_level > began)
    }

    fn count_answer(&mut self, outcome: &Outcome, open: &Open) {
        let read = matches!(open.operation, Operation::Read | Operation::ReadStale { .. });
        self.coverage.rule(match outcome {
            Outcome::Appended(..) => Rule::AppendAcknowledged,
            Outcome::Read(_) if open.operation == Operation::Read => Rule::ReadAnswered,
            Outcome::Read(_) => Rule::StaleReadAnswered,
            Outcome::Session(_) => Rule::SessionOpened,
            Outcome::Cursor(_) => Rule::CursorSet,
            Outcome::Checkpoint => Rule::CheckpointSaved,
            Outcome::Settings(_) if self.raises(&open.operation) => Rule::LevelRaised,
            Outcome::Settings(_) => Rule::SettingsChanged,
            Outcome::Refused(Refusal::NotEveryMember { .. }) => Rule::LevelHeldBack,
            Outcome::Refused(Refusal::Settings(_)) => Rule::SettingsMoved,
            Outcome::Refused(Refusal::Call(_)) => Rule::OutOfBounds,
            Outcome::Refused(_) | Outcome::Unknown if read => Rule::ReadRefused,
            Outcome::Refused(Refusal::UnexpectedIndex { .. }) => Rule::AppendUnexpected,
            Outcome::Refused(Refusal::NotActive(_)) => Rule::AppendNotActive,
            Outcome::Refused(Refusal::Identity(why)) => match why {
                IdentityRefused::KeyExpired => Rule::KeyExpired,
                IdentityRefused::TooManySessions => Rule::SessionsFull,
                _ => Rule::SessionGone,
            },
            Outcome::Refused(Refusal::Cursor(_)) => Rule::CursorRefused,
            Outcome::Refused(_) => Rule::AppendNoLeader,
            Outcome::Unknown => Rule::AppendUnknown,
        });
    }
}
