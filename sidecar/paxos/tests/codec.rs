//! Properties of the stored formats: what is written is read back the same, and no bytes make a decoder panic
//! (docs: reliability.md, fault 53).

use bytes::Bytes;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;
use synod_paxos::configuration::{Change, ConfigurationEntry};
use synod_paxos::settings::{Limits, Retention};
use synod_paxos::system::SystemState;
use synod_paxos::value::{Append, Call, Checkpoint, Entry, Fields, Identity, Operation, Origin, Value};
use synod_paxos::{
    Ballot, ClusterId, Digest, Genesis, Incarnation, Index, MemberId, RequestId, SessionId, Settings, Slot,
    Time, limits, row,
};

fn ballot() -> impl Strategy<Value = Ballot> {
    (any::<u64>(), any::<u64>()).prop_map(|(round, member)| Ballot { round, member: MemberId(member) })
}

fn identity() -> impl Strategy<Value = Identity> {
    let key = prop::collection::vec(any::<u8>(), 1..limits::KEY_BYTES);
    prop_oneof![
        Just(Identity::None),
        (any::<u64>(), 1..u64::MAX, any::<u64>()).prop_map(|(session, sequence, acknowledged)| {
            Identity::Session { session: SessionId(session), sequence, acknowledged }
        }),
        (key, prop::option::of(any::<u64>()))
            .prop_map(|(key, minted)| Identity::Key { key: key.into(), minted_at: minted.map(Index) }),
    ]
}

fn settings() -> impl Strategy<Value = Settings> {
    (any::<u64>(), any::<bool>(), prop::option::of(0..u64::MAX), 16..1_000_000_u32).prop_map(
        |(version, leases, entries, session_rows)| Settings {
            version,
            leases,
            limits: Limits { session_rows, ..Limits::default() },
            retention: Retention { entries, bytes: entries, age: entries.map(Duration::from_nanos) },
            ..Settings::default()
        },
    )
}

fn entry() -> impl Strategy<Value = Entry> {
    let headers = prop::collection::btree_map("[a-z0-9-]{1,20}", ".{0,20}", 0..4);
    let payload = prop::collection::vec(any::<u8>(), 0..40);
    let entry = |payload: Vec<u8>, headers| Entry::new(payload.into(), &headers).expect("within its bounds");
    prop_oneof![
        payload.clone().prop_map(|payload| Bytes::from(payload).into()),
        (payload, headers).prop_map(move |(payload, headers)| entry(payload, headers)),
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    let append = || {
        let entries = prop::collection::vec(entry(), 1..6);
        (identity(), prop::option::of(any::<u64>()), entries).prop_map(|(identity, expected, entries)| {
            Append { identity, expected_index: expected.map(Index), entries }
        })
    };
    prop_oneof![
        4 => append().prop_map(Operation::Append),
        2 => (any::<u64>(), append())
            .prop_map(|(fence, append)| Operation::FencedAppend { fence: Slot(fence), append }),
        1 => Just(Operation::OpenSession),
        1 => any::<u64>().prop_map(|id| Operation::CloseSession { session: SessionId(id) }),
        1 => ("[a-z0-9-]{1,40}", any::<u64>())
            .prop_map(|(name, index)| Operation::SetCursor { name, index: Index(index) }),
        1 => ("[a-z0-9-]{1,40}", any::<u64>())
            .prop_map(|(name, index)| Operation::AdvanceCursor { name, index: Index(index) }),
        1 => ("[a-z0-9-]{1,40}", any::<u64>())
            .prop_map(|(name, index)| Operation::SeekCursor { name, index: Index(index) }),
        1 => ("[a-z]", 0..4_u64, 0..40_u64).prop_map(|(name, index, seconds)| Operation::LeaseCursor {
            name,
            index: Index(index),
            expiry: Duration::from_secs(seconds),
        }),
        1 => "[a-z0-9-]{1,40}".prop_map(|name| Operation::RemoveCursor { name }),
        1 => (any::<[u64; 2]>(), any::<[u8; 32]>()).prop_map(|([index, length], digest)| {
            Operation::SaveCheckpoint(Checkpoint { index: Index(index), length, digest: Digest(digest) })
        }),
        1 => (any::<u64>(), settings()).prop_map(|(expected_version, settings)| {
            Operation::ChangeSettings { expected_version, settings }
        }),
    ]
}

fn call() -> impl Strategy<Value = Call> {
    (any::<[u64; 3]>(), operation()).prop_map(|([m, i, r], operation)| Call {
        origin: Origin { member: MemberId(m), incarnation: Incarnation(i), request: RequestId(r) },
        operation,
    })
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<u64>(), "[a-z0-9-]{0,40}")
            .prop_map(|(m, name)| Change::AddLearner { member: MemberId(m), name }),
        any::<u64>().prop_map(|m| Change::Promote { member: MemberId(m) }),
        any::<u64>().prop_map(|m| Change::Remove { member: MemberId(m) }),
    ]
}

fn time() -> impl Strategy<Value = Option<Time>> {
    prop::option::of(prop_oneof![0..Time::LATEST.0, any::<u64>()].prop_map(Time))
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::NoOp),
        ballot().prop_map(|ballot| Value::LeaderStart { ballot }),
        (ballot(), any::<u64>(), time(), prop::collection::vec(call(), 0..4)).prop_map(
            |(ballot, nanos, time, calls)| {
                Value::Batch {
                    ballot,
                    advance: Duration::from_nanos(nanos),
                    fields: Fields::timed(time),
                    calls,
                }
            }
        ),
        Just(Value::Mark),
        any::<u64>().prop_map(|slot| Value::Trim { through: Slot(slot) }),
        (any::<u64>(), any::<[u8; 16]>(), change()).prop_map(|(expected_version, operation, change)| {
            Value::Configuration(ConfigurationEntry { expected_version, operation, change })
        }),
    ]
}

fn genesis() -> Genesis {
    let members = (1..=3).map(|m| (MemberId(m), format!("log-{m}"))).collect();
    Genesis::new(ClusterId([7; 16]), members)
}

proptest! {
    #[test]
    fn values_are_read_back(value in value()) {
        prop_assert_eq!(Value::decode(value.encode()), Ok(value));
    }

    #[test]
    fn no_bytes_make_the_value_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Value::decode(Bytes::from(bytes));
    }

    #[test]
    fn a_flipped_or_cut_value_is_refused_or_another(value in value(), at in any::<prop::sample::Index>(), cut: bool) {
        let mut bytes = value.encode().to_vec();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= 0x40 }
        prop_assert_ne!(Value::decode(Bytes::from(bytes)), Ok(value));
    }

    #[test]
    fn no_bytes_make_the_state_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() { *first = 1 }
        let _ = SystemState::decode(Bytes::from(bytes.clone()));
        let _ = Genesis::decode(Bytes::from(bytes));
    }

    #[test]
    fn system_state_is_read_back_at_any_point(values in prop::collection::vec(value(), 0..20)) {
        let mut state = SystemState::new(&genesis());
        for (slot, value) in (1..).zip(&values) {
            state.apply(Slot(slot), &value.encode()).expect("values of this program decode");
        }
        prop_assert_eq!(SystemState::decode(state.encode()), Ok(state));
    }

    /// A checksum covers cluster, slot, ballot and value: a row of another place does not pass for this one
    /// (docs: reliability.md, fault 6).
    #[test]
    fn checksums_tell_places_apart(value in prop::collection::vec(any::<u8>(), 0..50), slot: u64, ballot in ballot()) {
        let sum = |cluster: u8, slot: u64, ballot: Ballot| row::checksum(ClusterId([cluster; 16]), Slot(slot), ballot, &value);
        let here = sum(1, slot, ballot);
        prop_assert_ne!(here, sum(2, slot, ballot));
        prop_assert_ne!(here, sum(1, slot ^ 1, ballot));
        prop_assert_ne!(here, sum(1, slot, Ballot { round: ballot.round ^ 1, ..ballot }));
    }
}

#[test]
fn an_empty_entry_is_valid_and_a_large_one_is_not() {
    let call = |entries: Vec<Bytes>| Call {
        origin: Origin { member: MemberId(1), incarnation: Incarnation(1), request: RequestId(1) },
        operation: Operation::Append(Append::plain(entries)),
    };
    assert_eq!(call(vec![Bytes::new()]).validate(), Ok(()));
    assert!(call(Vec::new()).validate().is_err());
    assert_eq!(call(vec![Bytes::from(vec![0; limits::ENTRY_BYTES])]).validate(), Ok(()));
    assert!(call(vec![Bytes::from(vec![0; limits::ENTRY_BYTES + 1])]).validate().is_err());
    assert!(
        call(vec![Bytes::from(vec![0; limits::ENTRY_BYTES]), Bytes::from_static(b"x")]).validate().is_err()
    );
    assert!(call(vec![Bytes::new(); limits::BATCH_ENTRIES + 1]).validate().is_err());
}

#[test]
fn genesis_is_read_back_and_bounded() {
    let good = genesis();
    assert_eq!(Genesis::decode(good.encode()), Ok(good.clone()));
    assert_eq!(good.digest(), good.digest());
    for bad in [
        Genesis { members: BTreeMap::new(), ..good.clone() },
        Genesis { members: [(MemberId(0), String::new())].into(), ..good.clone() },
        Genesis { alpha: 0, ..good.clone() },
        Genesis { members: [(MemberId(1), "x".repeat(254))].into(), ..good.clone() },
    ] {
        assert!(bad.validate().is_err(), "{bad:?}");
        assert!(Genesis::decode(bad.encode()).is_err(), "{bad:?}");
    }
}

fn plain(entries: Vec<Entry>) -> Call {
    let origin =
        Origin { member: MemberId(u64::MAX), incarnation: Incarnation(40), request: RequestId(70_000) };
    Call { origin, operation: Operation::Append(Append { entries, ..Append::plain(Vec::new()) }) }
}

/// docs: decisions/0040: an entry without headers costs at most 3 % more for its time.
#[test]
fn a_time_costs_next_to_nothing() {
    let now = Some(Time(1_900_000_000_000_000));
    for (bytes, calls) in [(0, 1), (0, 64), (16, 1), (100, 1), (256, 1), (256, 64), (65_536, 1)] {
        let calls = vec![plain(vec![Bytes::from(vec![7; bytes]).into()]); calls];
        let batch = |round, advance, fields| {
            let ballot = Ballot { round, member: MemberId(u64::MAX) };
            Value::Batch { ballot, advance, fields, calls: calls.clone() }.encode().len()
        };
        for (round, advance) in [(1, Duration::from_micros(80)), (1 << 20, Duration::from_secs(3_600))] {
            let (before, after) =
                (batch(round, advance, Fields::NONE), batch(round, advance, Fields::timed(now)));
            assert!(after * 100 <= before * 103, "{bytes} bytes: {before} before, {after} with a time");
        }
    }
}

/// A field of a later version is kept and passed by; it counts, and tells another content from a repeat.
#[test]
fn an_unknown_field_is_kept() {
    let headers = BTreeMap::from([("a".to_owned(), String::new())]);
    let known = plain(vec![Bytes::from("x").into(), Entry::new(Bytes::from("y"), &headers).unwrap()]);
    let mut bytes = known.encode().to_vec();
    let tag = bytes.len() - 5;
    assert_eq!(&bytes[tag - 1..], [5, 1, 3, 1, b'a', 0], "the fields of the last entry");
    bytes[tag] = 9;
    let unknown = Call::decode(bytes.clone().into()).unwrap();
    assert_eq!(unknown.encode(), bytes);
    let append = |call: &Call| call.operation.as_append().unwrap().clone();
    let entry = append(&unknown).entries[1].clone();
    assert!(entry.headers().is_empty() && entry.has_fields());
    assert_eq!((entry.size(), unknown.operation.level()), (6, 4));
    let digests = [
        append(&known),
        append(&unknown),
        append(&plain(vec!["x".into(), "y".into()].into_iter().map(Bytes::into).collect())),
    ];
    let digests: std::collections::BTreeSet<u128> = digests.iter().map(Append::digest).collect();
    assert_eq!(digests.len(), 3);
}
