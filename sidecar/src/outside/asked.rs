//! Requests with any content, made from any bytes: what a caller could put into each field.

use bytes::{Buf, Bytes};
use std::collections::BTreeMap;
use std::time::Duration;
use synod_paxos::configuration::{Change, ConfigurationEntry};
use synod_paxos::settings::{ElectionSettings, Limits, Retention};
use synod_paxos::system::SystemState;
use synod_paxos::value::{Append, Call, Checkpoint, Entry, Fields, Identity, Operation, Origin, Value};
use synod_paxos::{
    Ballot, ClusterId, Digest, Genesis, Incarnation, Index, MemberId, RequestId, SessionId, Settings, Time,
};

/// Requests that are made of what is left of some bytes; behind their end everything is zero.
pub(super) struct Asked(Bytes);

/// At most so many values are made of one input.
const VALUES: usize = 16;

impl Asked {
    /// Reads the first byte, which only says that there is something.
    pub(super) fn read(bytes: &[u8]) -> Option<Asked> {
        (!bytes.is_empty()).then(|| Asked(Bytes::copy_from_slice(bytes)))
    }

    fn byte(&mut self) -> u8 {
        if self.0.has_remaining() { self.0.get_u8() } else { 0 }
    }

    /// A number: small, near the largest of 32 or 64 bits, or any.
    fn number(&mut self) -> u64 {
        let small = u64::from(self.byte());
        match self.byte() % 4 {
            0 => small,
            1 => u64::MAX - small,
            2 => u64::from(u32::MAX) - small,
            _ => (0..8).fold(0, |number, _| number << 8 | u64::from(self.byte())),
        }
    }

    fn short(&mut self) -> u32 {
        u32::try_from(self.number()).unwrap_or(u32::MAX)
    }

    fn maybe(&mut self) -> Option<u64> {
        (self.byte() % 2 == 1).then(|| self.number())
    }

    /// A name of up to 260 bytes or so.
    fn name(&mut self) -> String {
        let wanted = usize::from(self.byte()) + usize::from(self.byte() % 8);
        let taken = wanted.min(self.0.remaining());
        let mut name = String::from_utf8_lossy(&self.0.split_to(taken)).into_owned();
        while name.len() < wanted {
            name.push('x');
        }
        name
    }

    fn settings(&mut self, base: Settings) -> Settings {
        let (span, bound) = (Duration::from_nanos, Duration::from_millis);
        let mut settings = base;
        match self.byte() % 10 {
            0 => {
                let (heartbeat, timeout) = (span(self.number()), bound(self.number()));
                settings.election = ElectionSettings { heartbeat, timeout };
            }
            1 => settings.limits = Limits { session_idle: bound(self.number()), ..base.limits },
            2 => settings.limits = Limits { session_rows: self.short(), ..base.limits },
            3 => {
                settings.limits =
                    Limits { entry_bytes: self.short(), call_bytes: self.short(), ..base.limits }
            }
            4 => settings.clock_drift_percent = self.short(),
            5 => settings.chain_interval = self.short(),
            6 => settings.format_level = self.short(),
            7 => settings.version = self.number(),
            _ => {
                let (entries, bytes, age) = (self.maybe(), self.maybe(), self.maybe().map(bound));
                settings.retention = Retention { entries, bytes, age };
            }
        }
        settings
    }

    pub(super) fn genesis(&mut self) -> Genesis {
        let mut members = BTreeMap::from([(MemberId(1), "log-0".to_owned())]);
        if self.byte() % 4 == 1 {
            members.insert(MemberId(self.number()), self.name());
        }
        let mut genesis = Genesis::new(ClusterId([7; 16]), members);
        if self.byte() % 4 == 1 {
            genesis.settings = self.settings(genesis.settings);
        }
        genesis
    }

    /// An entry: one in four has headers.
    fn entry(&mut self) -> Entry {
        let payload = Bytes::from(self.name());
        let count = if self.byte().is_multiple_of(4) { self.byte() % 40 } else { 0 };
        let headers = (0..count).map(|_| (self.name(), self.name())).collect();
        // What is refused never comes as far as the core.
        Entry::new(payload, &headers).unwrap_or_default()
    }

    fn append(&mut self) -> Append {
        let identity = match self.byte() % 3 {
            0 => Identity::None,
            1 => Identity::Session {
                session: SessionId(self.number()),
                sequence: self.number(),
                acknowledged: self.number(),
            },
            _ => Identity::Key { key: self.name().into(), minted_at: self.maybe().map(Index) },
        };
        let entries = (0..self.byte() % 5).map(|_| self.entry()).collect();
        Append { identity, expected_index: self.maybe().map(Index), entries }
    }

    fn operation(&mut self, settings: Settings) -> Operation {
        match self.byte() % 11 {
            0 if self.byte().is_multiple_of(2) => Operation::OpenSession,
            0 => Operation::OpenSessionAs { session: SessionId(self.number()) },
            1 => Operation::CloseSession { session: SessionId(self.number()) },
            2 => Operation::SetCursor { name: self.name(), index: Index(self.number()) },
            3 => Operation::AdvanceCursor { name: self.name(), index: Index(self.number()) },
            9 => Operation::SeekCursor { name: self.name(), index: Index(self.number()) },
            10 => Operation::LeaseCursor {
                name: self.name(),
                index: Index(self.number()),
                expiry: Duration::from_millis(self.number()),
            },
            4 => Operation::RemoveCursor { name: self.name() },
            5 => {
                let (expected_version, settings) = (self.number(), self.settings(settings));
                Operation::ChangeSettings { expected_version, settings }
            }
            6 => Operation::SaveCheckpoint(Checkpoint {
                index: Index(self.number()),
                length: self.number(),
                digest: Digest([self.byte(); 32]),
            }),
            _ => Operation::Append(self.append()),
        }
    }

    fn change(&mut self) -> Change {
        let member = MemberId(self.number());
        match self.byte() % 3 {
            0 => Change::AddLearner { member, name: self.name() },
            1 => Change::Promote { member },
            _ => Change::Remove { member },
        }
    }

    /// Values of what is accepted, as long as there are bytes: changes and batches of calls.
    pub(super) fn values(&mut self, state: &SystemState) -> Vec<Value> {
        let mut values = Vec::new();
        while self.0.has_remaining() && values.len() < VALUES {
            if self.byte().is_multiple_of(4) {
                let (expected_version, operation) = (self.number(), [self.byte(); 16]);
                let entry = ConfigurationEntry { expected_version, operation, change: self.change() };
                values.extend(entry.validate().is_ok().then(|| Value::Configuration(entry)));
                continue;
            }
            let origin = Origin {
                member: MemberId(self.number()),
                incarnation: Incarnation(self.number()),
                request: RequestId(self.number()),
            };
            let calls =
                (0..self.byte() % 4).map(|_| Call { origin, operation: self.operation(state.settings) });
            let calls = calls.filter(|call| call.validate().is_ok()).collect();
            let ballot = Ballot { round: u64::MAX, member: MemberId(u64::MAX) };
            let fields = Fields::timed(self.maybe().map(Time));
            let advance = Duration::from_nanos(self.number());
            values.push(Value::Batch { ballot, advance, fields, calls });
        }
        values
    }
}
