//! docs: protocol.md, "Sessions: exactly once": decided at apply, from replicated state.

#[path = "protocol/planted.rs"]
mod planted;

use bytes::Bytes;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;
use synod_paxos::sessions::IdentityRefused;
use synod_paxos::settings::{Limits, SettingsError};
use synod_paxos::system::{CallRefused, Effect, Reply};
use synod_paxos::value::{Append, Call, CallError, Entry, Fields, Identity, Operation, Origin, Value};
use synod_paxos::{
    Ballot, ClusterId, Genesis, Incarnation, Index, MemberId, RequestId, SessionId, Settings, Slot,
    SystemState,
};

const BALLOT: Ballot = Ballot { round: 1, member: MemberId(1) };

fn state(limits: Limits) -> SystemState {
    state_at(Settings::FORMAT_LEVEL, limits)
}

fn state_at(level: u32, limits: Limits) -> SystemState {
    planted::plant();
    let mut genesis = Genesis::new(ClusterId([1; 16]), [(MemberId(1), "log-0".to_owned())].into());
    genesis.settings.limits = limits;
    genesis.settings.format_level = level;
    SystemState::new(&genesis)
}

/// Applies one batch with one call; the answer and the entries it added.
fn apply(
    state: &mut SystemState,
    advance: Duration,
    operation: Operation,
) -> (Result<Reply, CallRefused>, Vec<Entry>) {
    let origin = Origin { member: MemberId(1), incarnation: Incarnation(1), request: RequestId(1) };
    let value = Value::Batch {
        ballot: BALLOT,
        advance,
        fields: Fields::NONE,
        calls: vec![Call { origin, operation }],
    };
    let slot = state.applied.next();
    match state.apply(slot, &value.encode()) {
        Ok(Effect::Batch { entries, mut calls, .. }) => (calls.remove(0).result, entries),
        other => panic!("a batch is applied as one: {other:?}"),
    }
}

fn call(state: &mut SystemState, operation: Operation) -> (Result<Reply, CallRefused>, usize) {
    let (reply, entries) = apply(state, Duration::ZERO, operation);
    (reply, entries.len())
}

fn open(state: &mut SystemState) -> SessionId {
    match call(state, Operation::OpenSession).0 {
        Ok(Reply::SessionOpened(session)) => session,
        other => panic!("{other:?}"),
    }
}

fn append(identity: Identity, expected_index: Option<u64>, text: &str) -> Operation {
    let entries = vec![Bytes::from(text.to_owned()).into()];
    Operation::Append(Append { identity, expected_index: expected_index.map(Index), entries })
}

fn numbered(session: SessionId, sequence: u64) -> Identity {
    Identity::Session { session, sequence, acknowledged: 0 }
}

fn keyed(key: &str, minted_at: Option<u64>) -> Identity {
    Identity::Key { key: Bytes::from(key.to_owned()), minted_at: minted_at.map(Index) }
}

fn at(index: u64, repeat: bool) -> Result<Reply, CallRefused> {
    Ok(Reply::Appended { first: Index(index), last: Index(index), repeat })
}

fn refused(why: IdentityRefused) -> Result<Reply, CallRefused> {
    Err(CallRefused::Identity(why))
}

/// reliability.md, fault 39: a retry gets the same index, and one entry.
#[test]
fn a_repeat_is_answered_with_what_happened() {
    let mut state = state(Limits::default());
    let session = open(&mut state);
    assert_eq!(call(&mut state, append(numbered(session, 1), None, "a")), (at(1, false), 1));
    assert_eq!(call(&mut state, append(numbered(session, 2), None, "b")), (at(2, false), 1));
    assert_eq!(call(&mut state, append(numbered(session, 1), None, "a")), (at(1, true), 0));
    assert_eq!(call(&mut state, append(numbered(session, 2), None, "b")), (at(2, true), 0));
    assert_eq!(call(&mut state, append(keyed("k", None), None, "c")), (at(3, false), 1));
    assert_eq!(call(&mut state, append(keyed("k", None), None, "c")), (at(3, true), 0));
}

/// "Lookup comes before `expected_index`"; "rows keep ... the outcome, refusals included".
#[test]
fn a_repeat_is_found_before_its_condition_is_judged() {
    let mut state = state(Limits::default());
    let session = open(&mut state);
    assert_eq!(call(&mut state, append(numbered(session, 1), Some(0), "a")), (at(1, false), 1));
    assert_eq!(call(&mut state, append(numbered(session, 1), Some(0), "a")), (at(1, true), 0));
    let unexpected = Err(CallRefused::UnexpectedIndex { tail: Index(1) });
    assert_eq!(call(&mut state, append(numbered(session, 2), Some(7), "b")).0, unexpected.clone());
    let _ = call(&mut state, append(Identity::None, None, "x"));
    assert_eq!(call(&mut state, append(numbered(session, 2), Some(7), "b")).0, unexpected);
}

/// "a sequence above last + 1 is refused"; "an unknown session is expired"; "rows keep the payload's digest".
#[test]
fn what_cannot_be_told_is_refused() {
    let mut state = state(Limits::default());
    let session = open(&mut state);
    let gap = refused(IdentityRefused::SequenceGap { expected: 1 });
    assert_eq!(call(&mut state, append(numbered(session, 2), None, "b")), (gap, 0));
    let expired = refused(IdentityRefused::SessionExpired);
    assert_eq!(call(&mut state, append(numbered(SessionId(99), 1), None, "b")), (expired.clone(), 0));
    let _ = call(&mut state, append(numbered(session, 1), None, "a"));
    let reused = refused(IdentityRefused::Reused);
    assert_eq!(call(&mut state, append(numbered(session, 1), None, "other")), (reused.clone(), 0));
    assert_eq!(call(&mut state, append(numbered(session, 1), Some(0), "a")), (reused.clone(), 0));
    let _ = call(&mut state, append(keyed("k", None), None, "c"));
    assert_eq!(call(&mut state, append(keyed("k", None), None, "other")), (reused, 0));
    assert_eq!(call(&mut state, Operation::CloseSession { session }).0, Ok(Reply::SessionClosed));
    assert_eq!(call(&mut state, append(numbered(session, 1), None, "a")), (expired, 0));
}

/// The client says which answers it has; what it may still ask for is kept, in any order.
#[test]
fn pipelined_calls_are_remembered_until_they_are_acknowledged() {
    let mut state = state(Limits::default());
    let session = open(&mut state);
    for sequence in 1..=5 {
        let _ = call(&mut state, append(numbered(session, sequence), None, "x"));
    }
    assert_eq!(call(&mut state, append(numbered(session, 3), None, "x")).0, at(3, true));
    let acknowledging = Identity::Session { session, sequence: 6, acknowledged: 4 };
    assert_eq!(call(&mut state, append(acknowledging, None, "x")).0, at(6, false));
    let forgotten = refused(IdentityRefused::SequenceForgotten);
    assert_eq!(call(&mut state, append(numbered(session, 4), None, "x")), (forgotten, 0));
    assert_eq!(call(&mut state, append(numbered(session, 5), None, "x")).0, at(5, true));
}

/// Expiry is by log time, which only batches move; a call keeps its session alive.
#[test]
fn idle_sessions_expire_by_log_time() {
    let limits = Limits { session_idle: Duration::from_secs(10), ..Limits::default() };
    let mut state = state(limits);
    let (idle, used) = (open(&mut state), open(&mut state));
    let _ = apply(&mut state, Duration::from_secs(6), append(numbered(used, 1), None, "a"));
    assert_eq!(state.log_time, Duration::from_secs(6));
    let _ = apply(&mut state, Duration::from_secs(6), append(Identity::None, None, "b"));
    let expired = refused(IdentityRefused::SessionExpired);
    assert_eq!(call(&mut state, append(numbered(idle, 1), None, "c")), (expired, 0));
    assert_eq!(call(&mut state, append(numbered(used, 1), None, "a")).0, at(1, true));
}

/// From level 2 on a key is forgotten by age only. A full table refuses new keys and sessions first, and nothing is
/// appended for them.
#[test]
fn a_key_is_never_forgotten_within_its_horizon() {
    let limits = Limits { session_rows: 16, session_idle: Duration::from_secs(10), ..Limits::default() };
    let mut state = state(limits);
    assert_eq!(call(&mut state, append(keyed("first", None), None, "a")).0, at(1, false));
    // Sessions without end, and keys: each takes a row, as long as there is one.
    for _ in 0..7 {
        open(&mut state);
    }
    for n in 0..8 {
        assert!(call(&mut state, append(keyed(&n.to_string(), None), None, "b")).0.is_ok());
    }
    let full = refused(IdentityRefused::TooManySessions);
    for _ in 0..40 {
        assert_eq!(call(&mut state, Operation::OpenSession).0, full);
    }
    let tail = state.last_index.0;
    let refusal = refused(IdentityRefused::TooManyKeys);
    assert_eq!(call(&mut state, append(keyed("late", None), None, "c")), (refusal, 0));
    let _ = apply(&mut state, Duration::from_secs(10), append(keyed("0", None), None, "b"));
    assert_eq!(call(&mut state, append(keyed("first", None), None, "a")), (at(1, true), 0));
    let decoded = SystemState::decode(state.encode());
    assert_eq!(decoded.as_ref(), Ok(&state), "ages are part of the state");
    // Idle sessions have expired a moment later, and keys are old enough to give way.
    for n in 0..16 {
        let key = format!("new {n}");
        let (reply, added) = apply(&mut state, Duration::from_secs(1), append(keyed(&key, None), None, "d"));
        assert_eq!((reply, added.len()), (at(tail + 1 + n, false), 1));
    }
    let expired = refused(IdentityRefused::KeyExpired);
    assert_eq!(call(&mut state, append(keyed("first", Some(0)), None, "a")), (expired, 0));
}

/// Level 1 decides as the version before does, and keys from then count from when the level rises.
#[test]
fn keys_have_ages_from_level_2_on() {
    let limits = Limits { session_rows: 16, session_idle: Duration::from_secs(10), ..Limits::default() };
    let mut state = state_at(1, limits);
    let key = |n: u64| append(keyed(&n.to_string(), None), None, "a");
    for n in 0..17 {
        assert_eq!(call(&mut state, key(n)).0, at(n + 1, false));
    }
    assert_eq!(call(&mut state, key(0)).0, at(18, false), "it was forgotten at once");
    let decoded = SystemState::decode(state.encode());
    assert_eq!(decoded.as_ref(), Ok(&state));
    let settings = Settings { format_level: 2, ..state.settings };
    let raise = Operation::ChangeSettings { expected_version: state.settings.version, settings };
    let (raised, _) = apply(&mut state, Duration::from_secs(90), raise);
    assert!(raised.is_ok());
    assert_eq!(call(&mut state, key(99)).0, refused(IdentityRefused::TooManyKeys));
    assert_eq!(call(&mut state, key(16)).0, at(17, true));
    let decoded = SystemState::decode(state.encode());
    assert_eq!(decoded.as_ref(), Ok(&state));
}

/// A session's number is drawn by its member: nobody who sees one knows another.
#[test]
fn a_session_has_the_number_that_was_drawn_for_it() {
    let mut state = state(Limits::default());
    let drawn = SessionId(0xfeed_f00d_dead_beef);
    let operation = || Operation::OpenSessionAs { session: drawn };
    assert_eq!(call(&mut state, operation()).0, Ok(Reply::SessionOpened(drawn)));
    assert_eq!(call(&mut state, operation()).0, refused(IdentityRefused::TooManySessions));
    assert_eq!(call(&mut state, append(numbered(drawn, 1), None, "a")).0, at(1, false));
    assert_eq!(
        call(&mut state, append(numbered(SessionId(1), 1), None, "a")).0,
        refused(IdentityRefused::SessionExpired)
    );
    let decoded = SystemState::decode(state.encode());
    assert_eq!(decoded.as_ref(), Ok(&state));
}

/// "A free idempotency key is remembered within the table's limits; if it carries the index seen when it was
/// minted, a retry below the eviction horizon answers `key expired`" (reliability.md, fault 40).
#[test]
fn an_evicted_key_is_refused_where_it_was_minted_before() {
    // At level 1 keys give way at any age.
    let mut state = state_at(1, Limits { session_rows: 16, ..Limits::default() });
    assert_eq!(call(&mut state, append(keyed("first", Some(0)), None, "a")).0, at(1, false));
    for n in 0..16 {
        let _ = call(&mut state, append(keyed(&n.to_string(), None), None, "b"));
    }
    assert_eq!(state.sessions.rows(), 16);
    let expired = refused(IdentityRefused::KeyExpired);
    assert_eq!(call(&mut state, append(keyed("first", Some(0)), None, "a")), (expired, 0));
    // A key minted behind the horizon was not used before.
    let tail = state.last_index.0;
    assert_eq!(call(&mut state, append(keyed("new", Some(tail)), None, "c")), (at(tail + 1, false), 1));
}

/// Limits that decide what an entry means are judged at apply, and changed by an entry.
#[test]
fn limits_and_settings_are_replicated() {
    let mut state = state(Limits::default());
    let settings = Settings {
        limits: Limits { entry_bytes: 2, call_bytes: 4, ..Limits::default() },
        leases: false,
        ..state.settings
    };
    let change = |expected_version| Operation::ChangeSettings { expected_version, settings };
    let changed = call(&mut state, change(1)).0;
    assert_eq!(changed, Ok(Reply::SettingsChanged(Settings { version: 2, ..settings })));
    let moved = Err(CallRefused::Settings(SettingsError::VersionMoved { actual: 2 }));
    assert_eq!(call(&mut state, change(1)).0, moved);
    let large = CallRefused::Call(CallError::EntryTooLarge { bytes: 3, limit: 2 });
    assert_eq!(call(&mut state, append(Identity::None, None, "abc")), (Err(large), 0));
    assert_eq!(call(&mut state, append(Identity::None, None, "ab")), (at(1, false), 1));
    // "The format level rises only through the log", by one, and to what this program reads.
    let higher = Settings { format_level: Settings::FORMAT_LEVEL + 1, ..settings };
    let change = Operation::ChangeSettings { expected_version: 2, settings: higher };
    let origin = Origin { member: MemberId(1), incarnation: Incarnation(1), request: RequestId(1) };
    let value = Value::Batch {
        ballot: BALLOT,
        advance: Duration::ZERO,
        fields: Fields::NONE,
        calls: vec![Call { origin, operation: change }],
    };
    let slot = state.applied.next();
    assert!(state.apply(slot, &value.encode()).is_err(), "unknown to this program: the member halts");
}

/// What one simulated client does next.
#[derive(Clone, Debug)]
enum Act {
    Open,
    /// The next call of a session, or a repeat of its `back`-th last.
    Call {
        client: usize,
        back: u64,
        acknowledge: bool,
    },
    /// A call under one of a few keys, minted when the log was so long.
    Key {
        key: u8,
        fresh: bool,
    },
    Pass {
        seconds: u64,
    },
    /// The state goes through a snapshot.
    Snapshot,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        1 => Just(Act::Open),
        6 => (0..4_usize, 0..4_u64, any::<bool>())
            .prop_map(|(client, back, acknowledge)| Act::Call { client, back, acknowledge }),
        4 => (0..40_u8, any::<bool>()).prop_map(|(key, fresh)| Act::Key { key, fresh }),
        1 => (0..8_u64).prop_map(|seconds| Act::Pass { seconds }),
        1 => Just(Act::Snapshot),
    ]
}

proptest! {
    /// Property: a call with an identity adds its entries at most once; every later answer to it is the first
    /// one or an explicit refusal; the table stays within its bounds. Source: docs: protocol.md, "Sessions".
    #[test]
    fn a_call_with_an_identity_is_appended_at_most_once(acts in prop::collection::vec(act(), 1..300)) {
        let mut state = state(Limits { session_rows: 16, session_idle: Duration::from_secs(9), ..Limits::default() });
        let mut sessions: Vec<(SessionId, u64)> = Vec::new();
        let mut minted: BTreeMap<u8, Index> = BTreeMap::new();
        let mut first: BTreeMap<String, Index> = BTreeMap::new();
        let mut advance = Duration::ZERO;
        for act in acts {
            let (identity, text) = match act {
                Act::Open => {
                    if let (Ok(Reply::SessionOpened(id)), _) = apply(&mut state, advance, Operation::OpenSession) {
                        sessions.push((id, 0));
                    }
                    continue;
                }
                Act::Pass { seconds } => {
                    advance = Duration::from_secs(seconds);
                    continue;
                }
                Act::Snapshot => {
                    state = SystemState::decode(state.encode()).unwrap();
                    continue;
                }
                Act::Call { client, back, acknowledge } => {
                    let Some((session, last)) = sessions.iter_mut().rev().nth(client) else { continue };
                    let sequence = (*last + 1).saturating_sub(back).max(1);
                    *last = (*last).max(sequence);
                    let acknowledged = if acknowledge { sequence.saturating_sub(2) } else { 0 };
                    let text = format!("{session:?}/{sequence}");
                    (Identity::Session { session: *session, sequence, acknowledged }, text)
                }
                Act::Key { key, fresh } => {
                    if fresh {
                        // Each key is minted once, with the last index seen then.
                        minted.entry(key).or_insert(state.last_index);
                    }
                    let Some(at) = minted.get(&key) else { continue };
                    (Identity::Key { key: Bytes::from(vec![key]), minted_at: Some(*at) }, format!("key {key}"))
                }
            };
            let operation = append(identity, None, &text);
            let (reply, entries) = apply(&mut state, std::mem::take(&mut advance), operation);
            match reply {
                Ok(Reply::Appended { first: index, repeat, .. }) => {
                    prop_assert_eq!(entries.is_empty(), repeat);
                    let held = first.entry(text).or_insert(index);
                    prop_assert_eq!(*held, index, "appended twice");
                    prop_assert!(repeat || index == state.last_index);
                }
                Ok(other) => prop_assert!(false, "{:?}", other),
                Err(_) => prop_assert!(entries.is_empty()),
            }
            prop_assert!(state.sessions.rows() <= 2 * 16);
        }
        prop_assert_eq!(SystemState::decode(state.encode()), Ok(state));
    }
}

/// Void behind a higher LeaderStart: a session's call that was told "not appended" may be sent again.
#[test]
fn a_void_batch_leaves_no_row_behind() {
    let mut state = state(Limits::default());
    let session = open(&mut state);
    let leader = Ballot { round: 2, member: MemberId(1) };
    let slot = state.applied.next();
    state.apply(slot, &Value::LeaderStart { ballot: leader }.encode()).unwrap();
    let origin = Origin { member: MemberId(1), incarnation: Incarnation(1), request: RequestId(1) };
    let call = Call { origin, operation: append(numbered(session, 1), None, "a") };
    let batch = |ballot| Value::Batch {
        ballot,
        advance: Duration::ZERO,
        fields: Fields::NONE,
        calls: vec![call.clone()],
    };
    assert_eq!(state.apply(Slot(slot.0 + 1), &batch(BALLOT).encode()), Ok(Effect::None));
    let Ok(Effect::Batch { calls, .. }) = state.apply(Slot(slot.0 + 2), &batch(leader).encode()) else {
        panic!("the new leader's batch counts");
    };
    assert_eq!(calls[0].result, at(1, false));
}

/// A fenced append is refused once a later leadership has started; one that stands already is answered first.
#[test]
fn a_fence_holds_back_who_leads_no_more() {
    let mut state = state(Limits::default());
    let start = |state: &mut SystemState, round: u64| {
        let ballot = Ballot { round, member: MemberId(1) };
        let slot = state.applied.next();
        state.apply(slot, &Value::LeaderStart { ballot }.encode()).unwrap();
        slot
    };
    // Rounds above the ballot that the batches here have would void them.
    let first = start(&mut state, 0);
    let fenced = |fence: Slot, key: &str, text: &str| match append(keyed(key, None), None, text) {
        Operation::Append(append) => Operation::FencedAppend { fence, append },
        other => panic!("{other:?}"),
    };
    assert_eq!(call(&mut state, fenced(first, "1", "a")), (at(1, false), 1));
    // A fence of a leadership that a recovery has taken away, or a wrong number, lets nobody pass.
    let later = Slot(first.0 + 1_000);
    assert_eq!(call(&mut state, fenced(later, "3", "z")), (Err(CallRefused::Fenced { epoch: first }), 0));
    let second = start(&mut state, 0);
    let refused = Err(CallRefused::Fenced { epoch: second });
    assert_eq!(call(&mut state, fenced(first, "2", "b")), (refused, 0));
    assert_eq!(call(&mut state, fenced(first, "1", "a")).0, at(1, true), "it is in the log already");
    assert_eq!(call(&mut state, fenced(second, "2", "b")), (at(2, false), 1), "the refusal used nothing up");
    assert_eq!(call(&mut state, append(Identity::None, None, "c")).0, at(3, false), "no fence, no bound");
}

/// Other headers under the same key are another content.
#[test]
fn headers_tell_another_append_from_a_repeat() {
    let mut state = state(Limits::default());
    let with = |header: Option<&str>| {
        let headers = header.iter().map(|value| ("a".to_owned(), (*value).to_owned())).collect();
        let entries = vec![Entry::new("x".into(), &headers).unwrap()];
        Operation::Append(Append { identity: keyed("k", None), expected_index: None, entries })
    };
    assert_eq!(call(&mut state, with(Some("1"))), (at(1, false), 1));
    assert_eq!(call(&mut state, with(Some("1"))), (at(1, true), 0));
    for other in [None, Some("2")] {
        let reused = Err(CallRefused::Identity(synod_paxos::sessions::IdentityRefused::Reused));
        assert_eq!(call(&mut state, with(other)), (reused, 0));
    }
}

/// docs: tracing.md: whoever repeats an append does so in another span.
#[test]
fn a_trace_tells_no_append_from_another() {
    let mut state = state(Limits::default());
    let with = |key: &str, headers: &[(&str, &str)]| {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let entries = vec![Entry::new("x".into(), &headers).unwrap()];
        Operation::Append(Append { identity: keyed(key, None), expected_index: None, entries })
    };
    assert_eq!(call(&mut state, with("k", &[("traceparent", "1")])), (at(1, false), 1));
    for same in [&[][..], &[("traceparent", "2")]] {
        assert_eq!(call(&mut state, with("k", same)), (at(1, true), 0));
    }
    assert_eq!(
        call(&mut state, with("l", &[("a", "1"), ("traceparent", "1"), ("z", "")])),
        (at(2, false), 1)
    );
    assert_eq!(call(&mut state, with("l", &[("a", "1"), ("z", "")])), (at(2, true), 0));
    for other in [&[("a", "1")][..], &[("a", "2"), ("traceparent", "1"), ("z", "")], &[("traceparent", "1")]]
    {
        let reused = Err(CallRefused::Identity(synod_paxos::sessions::IdentityRefused::Reused));
        assert_eq!(call(&mut state, with("l", other)), (reused, 0));
    }
}

/// docs: socket.md, "Consumers": one that nothing was heard of for its expiry is gone, and holds nothing back.
#[test]
fn a_cursor_expires_unless_its_owner_is_heard_of() {
    let mut state = state(Limits::default());
    for text in ["a", "b", "c"] {
        call(&mut state, append(Identity::None, None, text)).0.unwrap();
    }
    let name = || "reader".to_owned();
    let lease = |seconds| Operation::LeaseCursor {
        name: name(),
        index: Index(1),
        expiry: Duration::from_secs(seconds),
    };
    let pass = |state: &mut SystemState, seconds| {
        apply(state, Duration::from_secs(seconds), append(Identity::None, None, "later")).0.unwrap();
        state.cursors.contains_key("reader")
    };
    assert_eq!(call(&mut state, lease(60)).0, Ok(Reply::CursorNew(Index(1))));
    assert!(pass(&mut state, 59));
    // Each of these is a word of its owner.
    for heard in [
        Operation::AdvanceCursor { name: name(), index: Index(2) },
        Operation::SeekCursor { name: name(), index: Index(1) },
        Operation::SetCursor { name: name(), index: Index(0) },
        lease(60),
    ] {
        assert_eq!(call(&mut state, heard).0.map(|reply| matches!(reply, Reply::CursorSet(_))), Ok(true));
        assert!(pass(&mut state, 59));
        state = SystemState::decode(state.encode()).unwrap();
    }
    assert_eq!(state.trim_limit(), Index(1));
    assert!(!pass(&mut state, 1));
    assert!(state.cursor_expiry.is_empty());
    assert_eq!(state.trim_limit(), Index(u64::MAX));
    // One that is registered without an expiry stays, and so does one whose expiry was taken away.
    assert_eq!(call(&mut state, lease(60)).0, Ok(Reply::CursorNew(Index(1))));
    assert!(call(&mut state, lease(0)).0.is_ok());
    assert!(pass(&mut state, 1_000_000));
    // One that was removed and registered anew has no expiry from before.
    assert!(call(&mut state, lease(60)).0.is_ok());
    assert!(call(&mut state, Operation::RemoveCursor { name: name() }).0.is_ok());
    assert!(call(&mut state, Operation::SetCursor { name: name(), index: Index(1) }).0.is_ok());
    assert!(pass(&mut state, 1_000_000));
}

/// docs: socket.md, "Consumers": only `Seek` takes a position back, and not further than the log goes.
#[test]
fn a_cursor_is_put_anywhere_in_the_log() {
    let mut state = state(Limits::default());
    for text in ["a", "b", "c"] {
        call(&mut state, append(Identity::None, None, text)).0.unwrap();
    }
    let seek = |index| Operation::SeekCursor { name: "reader".into(), index: Index(index) };
    let unknown = CallRefused::NoSuchCursor { name: "reader".into() };
    assert_eq!(call(&mut state, seek(1)).0, Err(unknown));
    call(&mut state, Operation::SetCursor { name: "reader".into(), index: Index(3) }).0.unwrap();
    for index in [0, 3, 1] {
        assert_eq!(call(&mut state, seek(index)).0, Ok(Reply::CursorSet(Index(index))));
        assert_eq!(state.cursors["reader"], Index(index));
    }
    assert_eq!(call(&mut state, seek(4)).0, Err(CallRefused::BeyondTail { tail: Index(3) }));
    let slot = state.applied.next();
    call(&mut state, Operation::SetCursor { name: "reader".into(), index: Index(3) }).0.unwrap();
    state.apply(Slot(slot.0 + 1), &Value::Mark.encode()).unwrap();
    state.apply(Slot(slot.0 + 2), &Value::Trim { through: Slot(slot.0 + 1) }.encode()).unwrap();
    assert_eq!(call(&mut state, seek(2)).0, Err(CallRefused::Compacted { first: Index(4) }));
    assert_eq!(state.cursors["reader"], Index(3));
}
