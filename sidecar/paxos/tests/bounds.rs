//! Every field of every operation, change and genesis at its bounds, one below and one above: what is accepted is read
//! back as it was meant, applied, and read back from a snapshot; what is out of bounds is refused (docs:
//! decisions/0012).

use bytes::Bytes;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;
use synod_paxos::configuration::{Change, ConfigurationEntry};
use synod_paxos::settings::{ElectionSettings, Limits, Retention};
use synod_paxos::system::SystemState;
use synod_paxos::value::{
    Append, Call, Checkpoint, Entry, Fields, HeaderError, Identity, Operation, Origin, Value,
};
use synod_paxos::{
    Ballot, ClusterId, Digest, Genesis, Incarnation, Index, MemberId, RequestId, SessionId, Settings, Slot,
    Time, limits, names,
};

const BALLOT: Ballot = Ballot { round: u64::MAX, member: MemberId(u64::MAX) };

fn genesis() -> Genesis {
    let members = (1..=3).map(|m| (MemberId(m), format!("log-{m}"))).collect();
    Genesis::new(ClusterId([7; 16]), members)
}

fn call(operation: Operation) -> Call {
    let origin = Origin {
        member: MemberId(u64::MAX),
        incarnation: Incarnation(u64::MAX),
        request: RequestId(u64::MAX),
    };
    Call { origin, operation }
}

/// Reads a value back, applies it where a leader would have proposed it, and reads the state back.
fn goes_through(value: &Value) {
    let bytes = value.encode_checked().unwrap_or_else(|| panic!("not read back: {value:?}"));
    let mut state = SystemState::new(&genesis());
    state.apply(Slot(1), &bytes).unwrap_or_else(|error| panic!("{error}: {value:?}"));
    assert_eq!(SystemState::decode(state.encode()), Ok(state), "{value:?}");
}

fn goes_through_if_accepted(operation: Operation) -> bool {
    let call = call(operation);
    let accepted = call.validate().is_ok();
    if accepted {
        assert_eq!(Call::decode(call.encode()).as_ref(), Ok(&call));
        goes_through(&Value::Batch {
            ballot: BALLOT,
            advance: Duration::from_nanos(u64::MAX),
            fields: Fields::timed(Some(Time(u64::MAX))),
            calls: vec![call],
        });
    }
    accepted
}

/// Numbers around the bounds of every width, and around `bounds`.
fn around(bounds: &[u64]) -> Vec<u64> {
    let all = bounds.iter().copied().chain([0, 1, u64::from(u32::MAX), 1 << 62, u64::MAX]);
    let mut all: Vec<u64> = all.flat_map(|n| [n.saturating_sub(1), n, n.saturating_add(1)]).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Names around the bounds, in one and in several bytes a character.
fn odd_names() -> Vec<(String, bool)> {
    let bound = limits::NAME_BYTES;
    let mut all = vec![(String::new(), false), ("a".into(), true), ("Zoë's 名".into(), true)];
    all.extend([bound - 1, bound].map(|n| ("x".repeat(n), true)));
    all.extend([bound + 1, bound + 2, 65_536].map(|n| ("x".repeat(n), false)));
    // 84 characters of three bytes are 252, one more two-byte character is over.
    all.extend([("名".repeat(84), true), (format!("{}x", "名".repeat(84)), true)]);
    all.extend([(format!("{}é", "名".repeat(84)), false)]);
    all.extend(["\n", "a\nb", "a\r", "\t", "\0", "\u{7f}", "\u{85}"].map(|name| (name.into(), false)));
    all
}

#[test]
fn names_are_under_one_rule_everywhere() {
    for (name, good) in odd_names() {
        assert_eq!(names::check(&name).is_ok(), good, "{name:?}");
        let index = Index(0);
        assert_eq!(
            goes_through_if_accepted(Operation::SetCursor { name: name.clone(), index }),
            good,
            "{name:?}"
        );
        // Registered before the rule, a consumer can still be moved on and removed.
        goes_through_if_accepted(Operation::AdvanceCursor { name: name.clone(), index });
        goes_through_if_accepted(Operation::RemoveCursor { name: name.clone() });
        let change = Change::AddLearner { member: MemberId(9), name: name.clone() };
        let entry = ConfigurationEntry { expected_version: 1, operation: [1; 16], change };
        assert_eq!(entry.validate().is_ok(), good, "{name:?}");
        if good {
            goes_through(&Value::Configuration(entry));
        }
        let mut founding = genesis();
        founding.members.insert(MemberId(9), name.clone());
        assert_eq!(founding.validate().is_ok(), good, "{name:?}");
        if good {
            assert_eq!(Genesis::decode(founding.encode()), Ok(founding));
        }
    }
}

#[test]
fn changes_go_through_with_any_numbers() {
    for number in around(&[]) {
        let member = MemberId(number);
        for change in [
            Change::AddLearner { member, name: "n".into() },
            Change::Promote { member },
            Change::Remove { member },
        ] {
            for expected_version in [0, 1, number] {
                let operation = [0xff; 16];
                goes_through(&Value::Configuration(ConfigurationEntry {
                    expected_version,
                    operation,
                    change: change.clone(),
                }));
            }
        }
        goes_through(&Value::Trim { through: Slot(number) });
        goes_through(&Value::LeaderStart { ballot: Ballot { round: number, member } });
    }
}

#[test]
fn appends_are_bounded_in_each_field() {
    let append = |identity, expected: Option<u64>, sizes: &[usize]| {
        let entries = sizes.iter().map(|n| Bytes::from(vec![7; *n]).into()).collect();
        goes_through_if_accepted(Operation::Append(Append {
            identity,
            expected_index: expected.map(Index),
            entries,
        }))
    };
    let most = limits::ENTRY_BYTES;
    for (sizes, good) in [
        (vec![], false),
        (vec![0], true),
        (vec![most - 1], true),
        (vec![most], true),
        (vec![most + 1], false),
        (vec![most - 1, 1], true),
        (vec![most - 1, 2], false),
        (vec![0; limits::BATCH_ENTRIES - 1], true),
        (vec![0; limits::BATCH_ENTRIES], true),
        (vec![0; limits::BATCH_ENTRIES + 1], false),
    ] {
        assert_eq!(append(Identity::None, None, &sizes), good, "{} entries", sizes.len());
    }
    let bound = limits::KEY_BYTES;
    for (bytes, good) in [(0, false), (1, true), (bound - 1, true), (bound, true), (bound + 1, false)] {
        for minted_at in [None, Some(Index(0)), Some(Index(u64::MAX))] {
            let key = Bytes::from(vec![0xfe; bytes]);
            assert_eq!(append(Identity::Key { key, minted_at }, None, &[1]), good, "a key of {bytes} bytes");
        }
    }
    for number in around(&[]) {
        let session = SessionId(number);
        for (sequence, acknowledged) in [(number, 0), (1, number)] {
            let identity = Identity::Session { session, sequence, acknowledged };
            assert_eq!(append(identity, Some(number), &[1]), sequence > 0);
        }
    }
}

/// Whether an entry with these headers and so many bytes of payload is taken; what is taken goes through.
fn takes(headers: BTreeMap<String, String>, payload: usize) -> Result<bool, HeaderError> {
    let entry = Entry::new(vec![7; payload].into(), &headers)?;
    assert_eq!(entry.headers(), headers);
    let append = Append { entries: vec![Bytes::from("plain").into(), entry], ..Append::plain(Vec::new()) };
    let fenced = Operation::FencedAppend { fence: Slot(0), append: append.clone() };
    let taken = goes_through_if_accepted(Operation::Append(append));
    assert_eq!(goes_through_if_accepted(fenced), taken);
    Ok(taken)
}

#[test]
fn headers_are_bounded_in_each_field() {
    let one = |name: String, value: String| takes(BTreeMap::from([(name, value)]), 1);
    let bound = limits::HEADER_NAME_BYTES;
    for (bytes, good) in
        [(0, false), (1, true), (bound - 1, true), (bound, true), (bound + 1, false), (300, false)]
    {
        assert_eq!(one("a".repeat(bytes), String::new()) == Ok(true), good, "a name of {bytes} bytes");
    }
    for (name, good) in
        [("az-09", true), ("A", false), ("a_b", false), ("a b", false), ("é", false), ("a\n", false)]
    {
        assert_eq!(one(name.into(), "v".into()) == Ok(true), good, "{name:?}");
    }
    let bound = limits::HEADER_VALUE_BYTES;
    for (bytes, good) in
        [(0, true), (1, true), (bound - 1, true), (bound, true), (bound + 1, false), (1 << 20, false)]
    {
        assert_eq!(one("a".into(), "v".repeat(bytes)) == Ok(true), good, "a value of {bytes} bytes");
    }
    assert_eq!(one("a".into(), "\0\n\u{7f}grün".into()), Ok(true), "any text");
    let many = |count: usize| (0..count).map(|n| (format!("h{n}"), String::new())).collect();
    let bound = limits::HEADERS;
    for (count, good) in [(1, true), (bound - 1, true), (bound, true), (bound + 1, false), (5_000, false)] {
        assert_eq!(takes(many(count), 0) == Ok(true), good, "{count} headers");
    }
    // Headers count as they are stored, with everything around them; the other entry has five bytes.
    let headers = || BTreeMap::from([("a".to_owned(), "v".repeat(1_000))]);
    let beside = Entry::new(Bytes::new(), &headers()).unwrap().size();
    assert!((1_001..1_020).contains(&beside), "{beside}");
    for (payload, good) in [(0, true), (1, false)] {
        assert_eq!(takes(headers(), limits::ENTRY_BYTES - 5 - beside + payload), Ok(good));
    }
}

#[test]
fn any_time_goes_through_within_the_calendar() {
    for number in around(&[Time::LATEST.0]) {
        let fields = Fields::timed(Some(Time(number)));
        let value = Value::Batch { ballot: BALLOT, advance: Duration::ZERO, fields, calls: Vec::new() };
        goes_through(&value);
        let kept = (number > 0).then(|| Time(number).min(Time::LATEST));
        assert_eq!(value.time(), kept);
    }
}

#[test]
fn cursors_sessions_and_checkpoints_take_any_number() {
    for number in around(&[]) {
        let (index, name) = (Index(number), || "c".to_owned());
        assert!(goes_through_if_accepted(Operation::SetCursor { name: name(), index }));
        assert!(goes_through_if_accepted(Operation::AdvanceCursor { name: name(), index }));
        assert!(goes_through_if_accepted(Operation::SeekCursor { name: name(), index }));
        let lease = |expiry| Operation::LeaseCursor { name: name(), index, expiry };
        let bounds = limits::CURSOR_EXPIRY;
        let nanosecond = Duration::from_nanos(1);
        for (expiry, good) in [
            (Duration::ZERO, true),
            (*bounds.start(), true),
            (*bounds.start() - nanosecond, false),
            (*bounds.end(), true),
            (*bounds.end() + nanosecond, false),
            (Duration::MAX, false),
        ] {
            assert_eq!(goes_through_if_accepted(lease(expiry)), good, "{expiry:?}");
        }
        assert!(goes_through_if_accepted(Operation::OpenSessionAs { session: SessionId(number) }));
        assert!(goes_through_if_accepted(Operation::CloseSession { session: SessionId(number) }));
        let checkpoint = Checkpoint { index, length: number, digest: Digest([0xff; 32]) };
        assert!(goes_through_if_accepted(Operation::SaveCheckpoint(checkpoint)));
    }
    assert!(goes_through_if_accepted(Operation::OpenSession));
    assert!(goes_through_if_accepted(Operation::RemoveCursor { name: "c".into() }));
}

/// One setting after the other is put on every number around its bounds.
#[test]
fn settings_are_bounded_in_each_field() {
    let change = |expected_version, settings: Settings| {
        let founding = Genesis { settings, ..genesis() };
        let founds = founding.validate().is_ok();
        if founds {
            assert_eq!(Genesis::decode(founding.encode()), Ok(founding));
        }
        let accepted = goes_through_if_accepted(Operation::ChangeSettings { expected_version, settings });
        assert_eq!(founds, accepted, "{settings:?}");
        accepted
    };
    let now = Settings::default();
    let years = 100 * 365 * 24 * 3_600 * 1_000_000_000_u64;
    let bounds = [
        1_000_000,
        1_000_000_000,
        3_600_000_000_000,
        years,
        limits::ENTRY_BYTES as u64,
        16,
        limits::SESSION_ROWS as u64,
        20,
        1 << 20,
    ];
    let mut accepted = 0;
    for number in around(&bounds) {
        let (span, short) = (Duration::from_nanos(number), u32::try_from(number).ok());
        let mut wanted = vec![
            Settings { version: number, ..now },
            Settings { election: ElectionSettings { heartbeat: span, ..now.election }, ..now },
            Settings { election: ElectionSettings { timeout: span, ..now.election }, ..now },
            Settings { limits: Limits { session_idle: span, ..now.limits }, ..now },
            Settings { retention: Retention { entries: Some(number), ..now.retention }, ..now },
            Settings { retention: Retention { bytes: Some(number), ..now.retention }, ..now },
            Settings { retention: Retention { age: Some(span), ..now.retention }, ..now },
        ];
        wanted.extend(short.into_iter().flat_map(|n| {
            [
                Settings { clock_drift_percent: n, ..now },
                Settings { limits: Limits { entry_bytes: n, ..now.limits }, ..now },
                Settings { limits: Limits { entry_bytes: 1, call_bytes: n, ..now.limits }, ..now },
                Settings { limits: Limits { session_rows: n, ..now.limits }, ..now },
                Settings { chain_interval: n, ..now },
                Settings { format_level: n, ..now },
            ]
        }));
        accepted += wanted.into_iter().filter(|settings| change(1, *settings)).count();
        change(number, now);
    }
    assert!(accepted > 100, "most numbers are within some bound: {accepted}");
    // Spans that take more than 64 bits of nanoseconds, as a request of whole milliseconds can name them.
    let age = Some(Duration::from_millis(u64::MAX));
    assert!(!change(1, Settings { retention: Retention { age, ..now.retention }, ..now }));
    let session_idle = Duration::from_millis(u64::MAX);
    assert!(!change(1, Settings { limits: Limits { session_idle, ..now.limits }, ..now }));
}

#[test]
fn a_full_batch_with_the_longest_names_goes_through() {
    let name = "x".repeat(limits::NAME_BYTES);
    let mut calls = vec![call(Operation::Append(Append::plain(vec![vec![7; limits::BATCH_BYTES].into()])))];
    calls.resize(
        limits::BATCH_ENTRIES,
        call(Operation::SetCursor { name: name.clone(), index: Index(u64::MAX) }),
    );
    goes_through(&Value::Batch {
        ballot: BALLOT,
        advance: Duration::ZERO,
        fields: Fields::timed(Some(Time::LATEST)),
        calls,
    });
    let member = |n| (MemberId(n), name.clone());
    goes_through(&Value::Recovered { members: (1..=limits::MEMBERS as u64).map(member).collect() });
}

proptest! {
    #[test]
    fn any_name_that_is_accepted_goes_through(name in ".{0,260}") {
        let index = Index(0);
        prop_assert_eq!(goes_through_if_accepted(Operation::SetCursor { name: name.clone(), index }), names::check(&name).is_ok());
    }
}
