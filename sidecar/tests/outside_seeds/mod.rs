//! Seeds of the fuzz targets: what a small cluster of real cores says and stores, and requests as clients make them.

use bytes::Bytes;
use prost::Message as _;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;
use synod_paxos::configuration::{Change, ConfigurationEntry};
use synod_paxos::settings::Settings;
use synod_paxos::system::SystemState;
use synod_paxos::value::{Append, Call, Entry, Fields, Identity, Operation, Origin, Value};
use synod_paxos::{
    AdminCommand, Ballot, ClusterId, DurableState, Genesis, Incarnation, Index, Input, Instant, MemberId,
    Node, Output, RequestId, SessionId, Slot, Storage, Time, Write, WriteBatch, WriteCounter,
};
use synod_proto::admin::v1 as admin;
use synod_proto::peer::v1 as peer;
use synod_proto::v1;

const CLUSTER: ClusterId = ClusterId([7; 16]);

/// A target, a file's name, and its bytes.
pub(crate) type Seed = (&'static str, String, Vec<u8>);

/// All seeds.
pub(crate) fn all() -> Vec<Seed> {
    let mut seeds = Vec::new();
    for (at, operation) in operations().into_iter().enumerate() {
        let call = call(operation);
        seeds.push(("call", format!("seed-{at:02}"), call.encode().to_vec()));
    }
    let mut state = SystemState::new(&genesis());
    for (slot, value) in (1..).zip(values()) {
        let bytes = value.encode();
        seeds.push(("value", format!("seed-{slot:02}"), bytes.to_vec()));
        if state.apply(Slot(slot), &bytes).is_ok() {
            seeds.push(("snapshot", format!("seed-{slot:02}"), state.encode().to_vec()));
        }
    }
    let single = Genesis::new(CLUSTER, BTreeMap::from([(MemberId(9), "alone".to_owned())]));
    let other = Genesis { alpha: 2, ..genesis() };
    for (at, genesis) in [genesis(), single, other].iter().enumerate() {
        seeds.push(("genesis", format!("seed-{at:02}"), genesis.encode().to_vec()));
    }
    let mut row = vec![1; 25];
    seeds.push(("stored_row", "seed-empty-value".into(), row.clone()));
    row.extend(Value::NoOp.encode());
    seeds.push(("stored_row", "seed-no-op".into(), row));
    for (name, length) in [("number", 8), ("pair", 16), ("joined", 48)] {
        seeds.push(("stored_row", format!("seed-{name}"), (1..=length).collect()));
    }
    for at in 0..24_u64 {
        // Any bytes make requests.
        let mix = |n: u64| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
        let bytes = (1..40 + at * 23).map(|n| mix(n ^ n.rotate_left(17) ^ (at << 32)));
        seeds.push(("accepted", format!("seed-{at:02}"), bytes.collect()));
    }
    seeds.extend(requests());
    seeds.extend(rare_messages(&state.encode()));
    seeds.extend(Talk::default().run());
    seeds
}

fn genesis() -> Genesis {
    Genesis::new(CLUSTER, (1..=3).map(|n| (MemberId(n), format!("log-{n}"))).collect())
}

fn call(operation: Operation) -> Call {
    let origin = Origin { member: MemberId(1), incarnation: Incarnation(2), request: RequestId(3) };
    Call { origin, operation }
}

fn operations() -> Vec<Operation> {
    let entries =
        [Bytes::from_static(b"one"), Bytes::new(), Bytes::from_static(b"three")].map(Entry::from).to_vec();
    let headers = [
        ("content-type", "text/plain"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let headed = Entry::new(Bytes::from_static(b"headed"), &headers).expect("within its bounds");
    let headed = Append { entries: vec![entries[0].clone(), headed], ..Append::plain(Vec::new()) };
    let append = |identity, expected| {
        Operation::Append(Append { identity, expected_index: expected, entries: entries.clone() })
    };
    let key = Bytes::from_static(b"a key");
    vec![
        append(Identity::None, None),
        append(Identity::None, Some(Index(4))),
        append(Identity::Session { session: SessionId(1), sequence: 1, acknowledged: 0 }, None),
        append(Identity::Key { key: key.clone(), minted_at: None }, None),
        append(Identity::Key { key, minted_at: Some(Index(1)) }, Some(Index(0))),
        Operation::OpenSession,
        Operation::CloseSession { session: SessionId(1) },
        Operation::SetCursor { name: "reader".into(), index: Index(2) },
        Operation::RemoveCursor { name: "reader".into() },
        Operation::ChangeSettings { expected_version: 1, settings: Settings::default() },
        Operation::AdvanceCursor { name: "reader".into(), index: Index(3) },
        Operation::LeaseCursor { name: "leased".into(), index: Index(1), expiry: Duration::from_secs(60) },
        Operation::SeekCursor { name: "reader".into(), index: Index(1) },
        Operation::FencedAppend { fence: Slot(2), append: headed.clone() },
        Operation::Append(headed),
    ]
}

fn values() -> Vec<Value> {
    let ballot = Ballot { round: 3, member: MemberId(1) };
    let change = |version, change| {
        Value::Configuration(ConfigurationEntry {
            expected_version: version,
            operation: [version as u8; 16],
            change,
        })
    };
    let mut values = vec![
        Value::NoOp,
        Value::LeaderStart { ballot },
        change(1, Change::AddLearner { member: MemberId(4), name: "log-4".into() }),
    ];
    for operation in operations() {
        values.push(Value::Batch {
            ballot,
            advance: Duration::from_millis(5),
            fields: Fields::NONE,
            calls: vec![call(operation)],
        });
    }
    let both: Vec<Call> = operations().into_iter().map(call).collect();
    for fields in [Fields::NONE, Fields::timed(Some(Time(1_900_000_000_000_000)))] {
        values.push(Value::Batch { ballot, advance: Duration::ZERO, fields, calls: both.clone() });
    }
    values.extend((0..64).map(|_| Value::NoOp));
    values.extend([
        change(2, Change::Promote { member: MemberId(4) }),
        change(3, Change::Remove { member: MemberId(3) }),
        Value::Mark,
        Value::Trim { through: Slot(3) },
        Value::Recovered { members: BTreeMap::from([(MemberId(7), "a".into()), (MemberId(8), "b".into())]) },
    ]);
    values.dedup();
    values
}

fn requests() -> Vec<Seed> {
    let append = v1::AppendRequest {
        entries: vec![Bytes::from_static(b"hello")],
        new_entries: Vec::new(),
        expected_index: Some(3),
        fence: Some(9),
        identity: Some(v1::append_request::Identity::Session(v1::SessionCall {
            session: 5,
            sequence: 2,
            acknowledged: 1,
        })),
    };
    let key = v1::IdempotencyKey { key: Bytes::from_static(b"k"), minted_at: Some(1) };
    let keyed =
        v1::AppendRequest { identity: Some(v1::append_request::Identity::Key(key)), ..append.clone() };
    let plain = v1::AppendRequest { identity: None, expected_index: None, fence: None, ..append.clone() };
    let new = v1::NewEntry { payload: Bytes::from_static(b"x"), headers: [("a".into(), "b".into())].into() };
    let headed = v1::AppendRequest { entries: Vec::new(), new_entries: vec![new], ..append.clone() };
    let stream = v1::AppendStreamRequest { tag: 1, append: Some(append.clone()), timeout_ms: 100 };
    let settings = v1::Settings {
        version: 1,
        election: Some(v1::Election { heartbeat_ms: 100, timeout_ms: 1_000 }),
        ..v1::Settings::default()
    };
    let change = admin::ChangeSettingsRequest {
        cluster_id: Bytes::copy_from_slice(&CLUSTER.0),
        expected_version: 1,
        settings: Some(settings),
    };
    let initialize = admin::InitializeRequest {
        cluster_id: Bytes::copy_from_slice(&CLUSTER.0),
        members: vec![admin::GenesisMember { member: 1, name: "log-1".into() }],
        alpha: 64,
        settings: Some(settings),
    };
    [
        ("append-in-session", append.encode_to_vec()),
        ("append-with-key", keyed.encode_to_vec()),
        ("append-plain", plain.encode_to_vec()),
        ("append-with-headers", headed.encode_to_vec()),
        ("append-stream", stream.encode_to_vec()),
        ("change-settings", change.encode_to_vec()),
        ("initialize", initialize.encode_to_vec()),
    ]
    .map(|(name, bytes)| ("socket_request", format!("seed-{name}"), bytes))
    .into()
}

/// Messages that the talk below has no occasion for.
fn rare_messages(state: &Bytes) -> Vec<Seed> {
    use peer::envelope::Message as Wire;
    let ballot = Some(v1::Ballot { round: 3, member: 1 });
    let value = Value::NoOp.encode();
    let row = peer::Row { slot: 2, ballot, chosen: true, value, checksum: 99 };
    let point = peer::ChainPoint { slot: 1_024, chain: Bytes::from_static(&[4; 16]) };
    [
        ("busy", Wire::Busy(peer::Busy { ballot, ..peer::Busy::default() })),
        ("promisemore", Wire::PromiseMore(peer::PromiseMore { ballot, view: 1, chunk: 2 })),
        ("alreadychosen", Wire::AlreadyChosen(peer::AlreadyChosen { ballot, trim_through: 4 })),
        ("learnrequest", Wire::LearnRequest(peer::LearnRequest { from: 1, through: 9, retries: 0 })),
        ("learned", Wire::Learned(peer::Learned { from: 2, rows: vec![row], ..peer::Learned::default() })),
        ("snapshotrequest", Wire::SnapshotRequest(peer::SnapshotRequest { slot: 5, offset: 64 })),
        (
            "snapshotchunk",
            Wire::SnapshotChunk(peer::SnapshotChunk {
                slot: 5,
                total: state.len() as u64,
                bytes: state.clone(),
                digest: Bytes::from_static(&[3; 16]),
                ..peer::SnapshotChunk::default()
            }),
        ),
        ("diverged", Wire::Diverged(peer::Diverged { at: Some(point), agreed: vec![1, 2] })),
        ("handover", Wire::HandOver(peer::HandOver { ballot })),
        ("retire", Wire::Retire(peer::Retire { version: 2, slot: 7 })),
    ]
    .map(|(name, message)| {
        let envelope = peer::Envelope {
            cluster_id: Bytes::copy_from_slice(&CLUSTER.0),
            from: 1,
            incarnation: 1,
            to: 2,
            written: 3,
            disk_full: false,
            message: Some(message),
        };
        let frame = peer::PeerFrame { frame: Some(peer::peer_frame::Frame::Envelope(envelope)) };
        ("peer_message", format!("seed-{name}"), frame.encode_to_vec())
    })
    .into()
}

/// Three members that elect, append, read, grow, restart and hand over; of each kind of message, the first.
#[derive(Default)]
struct Talk {
    now: u64,
    members: BTreeMap<MemberId, (Node, Disk, Vec<WriteBatch>)>,
    mail: Vec<synod_paxos::Incoming>,
    seeds: BTreeMap<String, Vec<u8>>,
}

struct Disk(DurableState);

impl Storage for Disk {
    type Error = Infallible;

    fn commit(
        &mut self,
        written: WriteCounter,
        writes: &mut dyn Iterator<Item = &Write>,
    ) -> Result<(), Infallible> {
        writes.for_each(|write| self.0.apply(write));
        self.0.written = written;
        Ok(())
    }
}

impl Talk {
    fn run(mut self) -> Vec<Seed> {
        for n in 1..=3 {
            let mut disk = DurableState::empty(MemberId(n));
            disk.genesis = Some(genesis());
            disk.genesis_confirmed = true;
            self.start(disk);
        }
        self.start(DurableState::empty(MemberId(4)));
        let digest = genesis().digest();
        self.admin(4, AdminCommand::Join { cluster: CLUSTER, digest });
        self.beats(3);
        self.now += 3_000;
        self.input(1, Input::Tick);
        self.beats(3);
        let change = Change::AddLearner { member: MemberId(4), name: "log-4".into() };
        let command =
            AdminCommand::Change { cluster: CLUSTER, expected_version: 1, operation: [1; 16], change };
        self.admin(1, command);
        for (n, operation) in operations().into_iter().enumerate() {
            let request = RequestId(n as u64 + 10);
            self.input(n as u64 % 3 + 1, Input::Call { request, operation });
            self.beats(1);
        }
        let consistency = synod_paxos::io::Consistency::Linearizable;
        self.input(2, Input::Read { request: RequestId(50), consistency });
        self.beats(8);
        self.admin(1, AdminCommand::TransferLeader { cluster: CLUSTER, to: Some(MemberId(2)) });
        self.beats(6);
        let seeds = self.seeds.into_iter();
        seeds.map(|(kind, bytes)| ("peer_message", format!("seed-{kind}"), bytes)).collect()
    }

    fn start(&mut self, disk: DurableState) {
        let id = disk.member;
        let node = Node::new(disk.clone(), Instant(0), id.0).expect("a readable disk");
        self.members.insert(id, (node, Disk(disk), Vec::new()));
        for other in self.members.keys().copied().filter(|other| *other != id).collect::<Vec<_>>() {
            self.input(id.0, Input::PeerConnected(other));
            self.input(other.0, Input::PeerConnected(id));
        }
    }

    fn admin(&mut self, at: u64, command: AdminCommand) {
        self.input(at, Input::Admin { request: RequestId(900), command });
    }

    /// Lets time pass, everything arrive, and everything become durable.
    fn beats(&mut self, count: usize) {
        for _ in 0..count {
            self.now += 100;
            for id in self.members.keys().copied().collect::<Vec<_>>() {
                self.input(id.0, Input::Tick);
            }
            self.settle();
        }
    }

    fn settle(&mut self) {
        loop {
            for id in self.members.keys().copied().collect::<Vec<_>>() {
                let (_, disk, writes) = self.members.get_mut(&id).expect("it was just listed");
                let Ok(completed) = synod_paxos::storage::commit(std::mem::take(writes), disk);
                if let Some(completed) = completed {
                    self.input(id.0, Input::Persisted(completed));
                }
            }
            let mail = std::mem::take(&mut self.mail);
            if mail.is_empty() && self.members.values().all(|(_, _, writes)| writes.is_empty()) {
                return;
            }
            for incoming in mail {
                self.input(incoming.to.0, Input::Message(incoming));
            }
        }
    }

    fn input(&mut self, id: u64, input: Input) {
        let now = Instant(self.now * 1_000_000);
        let mut answers = Vec::new();
        let (node, disk, writes) = self.members.get_mut(&MemberId(id)).expect("the talk has it");
        node.handle(now, input);
        while let Some(output) = node.poll_output(now) {
            match output {
                Output::Send(outgoing) => {
                    let envelope = synod_sidecar::transport::wire::encode(&outgoing);
                    let frame = peer::PeerFrame { frame: Some(peer::peer_frame::Frame::Envelope(envelope)) };
                    let kind = format!("{:?}", outgoing.message());
                    let kind = kind.split([' ', '{']).next().unwrap_or_default().to_lowercase();
                    self.seeds.entry(kind).or_insert_with(|| frame.encode_to_vec());
                    self.mail.push(outgoing.to_incoming());
                }
                Output::Persist(batch) => writes.push(batch),
                Output::ReadView { view, from, .. } => {
                    let rows = disk.0.rows.range(from..).map(|(_, row)| row.clone()).collect();
                    answers.push(Input::ViewRows { view, rows, end: true });
                }
                _ => {}
            }
        }
        answers.into_iter().for_each(|answer| self.input(id, answer));
    }
}
