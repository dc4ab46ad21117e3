//! The redb storage against the core's own model of a disk, `DurableState::apply`.
#![allow(clippy::unwrap_used)]

mod medium;

use bytes::Bytes;
use medium::{old_state, write_old};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use synod_paxos::message::Counters;
use synod_paxos::value::{Append, Call, Fields, Operation, Origin, Value};
use synod_paxos::{
    Ballot, ClusterId, Digest, DurableState, Genesis, Incarnation, Index, MemberId, RequestId, Row, Slot,
    SnapshotPart, Storage, Write, WriteCounter, row,
};
use synod_sidecar::storage::{DIRECTORY, LEGACY, Mark, Opened, Options, StorageError, open, open_with};

const CLUSTER: ClusterId = ClusterId([7; 16]);

fn ballots() -> impl Strategy<Value = Ballot> {
    (1..9_u64, 1..4_u64).prop_map(|(round, member)| Ballot { round, member: MemberId(member) })
}

fn rows() -> impl Strategy<Value = Row> {
    (1..40_u64, ballots(), any::<bool>(), vec(any::<u8>(), 0..6_000)).prop_map(
        |(slot, ballot, chosen, value)| {
            let (slot, value) = (Slot(slot), Bytes::from(value));
            let checksum = row::checksum(CLUSTER, slot, ballot, &value);
            Row { slot, ballot, chosen, value, checksum }
        },
    )
}

fn writes() -> impl Strategy<Value = Write> {
    let counters = (1..9_u64, 1..99_u64).prop_map(|(incarnation, written)| Counters {
        incarnation: Incarnation(incarnation),
        written: WriteCounter(written),
    });
    prop_oneof![
        1 => ballots().prop_map(Write::Promised),
        6 => rows().prop_map(Write::Row),
        1 => (0..40_u64).prop_map(|slot| Write::ChosenThrough(Slot(slot))),
        1 => (0..40_u64, vec(any::<u8>(), 1..300))
            .prop_map(|(slot, state)| Write::System { applied: Slot(slot), state: state.into() }),
        1 => (0..40_u64, vec(any::<u8>(), 1..300))
            .prop_map(|(slot, state)| Write::Snapshot { slot: Slot(slot), state: state.into() }),
        1 => (0..40_u64).prop_map(|slot| Write::Trim { through: Slot(slot) }),
        1 => (0..40_u64, vec(any::<u8>(), 1..300))
            .prop_map(|(slot, state)| Write::Install { slot: Slot(slot), state: state.into() }),
        2 => (0..3_u64, 0..3_u64, vec(any::<u8>(), 1..300)).prop_map(|(slot, number, bytes)| {
            let bytes = Bytes::from(bytes);
            let (slot, offset) = (Slot(20 + slot * 10), number * 100);
            Write::SnapshotPart(SnapshotPart { slot, total: 900, digest: 3, offset, bytes })
        }),
        1 => (0..9_u64).prop_map(|seconds| Write::Lease(Duration::from_secs(seconds))),
        1 => Just(Write::Genesis(Genesis::new(CLUSTER, BTreeMap::from([(MemberId(1), "a".to_owned())])))),
        1 => Just(Write::Joined { cluster: CLUSTER, digest: Digest([9; 32]) }),
        1 => Just(Write::GenesisConfirmed),
        1 => (1..6_u64, counters)
            .prop_map(|(member, counters)| Write::Peer { member: MemberId(member), counters }),
        1 => (1..9_u64, 1..40_u64).prop_map(|(version, slot)| Write::Tombstone { version, slot: Slot(slot) }),
        1 => "[a-z ]{0,20}".prop_map(Write::Fenced),
    ]
}

/// Segments that are left with nearly every commit.
const SMALL: Options = Options { most_bytes: 16 << 10, least_bytes: 8 << 10, background: false };

fn all_rows(opened: &Opened) -> BTreeMap<Slot, Row> {
    let (rows, end) = opened.reader.view().unwrap().read(Slot(0), usize::MAX).unwrap();
    assert!(end && rows.is_sorted_by_key(|row| row.slot));
    rows.into_iter().map(|row| (row.slot, row)).collect()
}

/// What the disk shows, all rows included.
fn shown(opened: &Opened) -> DurableState {
    let all = all_rows(opened);
    let above = all.range(opened.state.applied.next()..).map(|(slot, row)| (*slot, row.clone())).collect();
    assert_eq!(opened.state.rows, above, "a start loads the rows above the applied position");
    DurableState { rows: all, ..opened.state.clone() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Property: after any commits and restarts the disk holds what the model holds. Source: the meaning of
    /// each `Write` is `DurableState::apply` (docs: protocol.md, "Acceptor").
    #[test]
    fn a_disk_holds_what_the_model_holds(
        lives in vec(vec(vec(writes(), 0..8), 0..9), 1..4),
        background in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { most_bytes: 2 << 10, least_bytes: 1 << 10, background };
        let mut opened = open_with(dir.path(), None, options).unwrap();
        let mut model = DurableState::empty(opened.state.member);
        for commits in lives {
            prop_assert_eq!(shown(&opened), model.clone());
            for mut writes in commits {
                // The core never trims back, nor writes a row that is trimmed, nor a part that follows none.
                let mut trim = model.trim_through;
                let mut last = model.fetched.last().cloned();
                writes.retain_mut(|write| match write {
                    Write::SnapshotPart(part) => {
                        let standing = last.take().filter(|last| last.slot > trim);
                        match standing {
                            Some(last) if part.offset > 0 => {
                                (part.slot, part.offset) = (last.slot, last.end());
                            }
                            _ => part.offset = 0,
                        }
                        last = Some(part.clone());
                        true
                    }
                    Write::Row(row) => row.slot > trim,
                    Write::Trim { through: slot } | Write::Install { slot, .. } => {
                        let on = *slot > trim;
                        trim = trim.max(*slot);
                        if on && matches!(write, Write::Install { .. }) {
                            last = None;
                        }
                        on
                    }
                    _ => true,
                });
                model.written = model.written.next();
                opened.storage.commit(model.written, &mut writes.iter()).unwrap();
                writes.iter().for_each(|write| model.apply(write));
                prop_assert_eq!(all_rows(&opened), model.rows.clone());
                opened.storage.keep_house();
            }
            drop(opened);
            opened = open_with(dir.path(), None, options).unwrap();
            model.boot();
        }
        prop_assert_eq!(shown(&opened), model);
    }
}

fn batch(slot: u64, expected: Option<u64>, entries: &[&str]) -> Row {
    let (slot, ballot) = (Slot(slot), Ballot { round: 1, member: MemberId(1) });
    let origin = Origin { member: MemberId(1), incarnation: Incarnation(1), request: RequestId(1) };
    let entries = entries.iter().map(|entry| Bytes::copy_from_slice(entry.as_bytes())).collect();
    let call = |append| Call { origin, operation: Operation::Append(append) };
    let refused = Append { expected_index: Some(Index(99)), ..Append::plain(vec![Bytes::from("never")]) };
    let added = Append { expected_index: expected.map(Index), ..Append::plain(entries) };
    let calls = vec![call(refused), call(added)];
    let value = Value::Batch { ballot, advance: Duration::ZERO, fields: Fields::NONE, calls }.encode();
    let checksum = row::checksum(CLUSTER, slot, ballot, &value);
    Row { slot, ballot, chosen: true, value, checksum }
}

fn with_log(dir: &Path) -> Opened {
    let mut opened = open(dir, None).unwrap();
    let genesis = Genesis::new(CLUSTER, BTreeMap::from([(MemberId(1), "a".to_owned())]));
    let void = batch(4, None, &["void"]);
    let writes = [
        Write::Genesis(genesis),
        Write::Row(batch(2, None, &["one", "", "three"])),
        Write::Row(void),
        Write::Row(batch(5, Some(3), &["four"])),
    ];
    let mark = |first, slot, count| Mark { first: Index(first), slot: Slot(slot), count, skipped: vec![0] };
    opened.storage.add_marks([mark(1, 2, 3), mark(4, 5, 1)], Slot(5));
    let written = opened.state.written.next();
    opened.storage.commit(written, &mut writes.iter()).unwrap();
    assert_eq!(opened.storage.marked(), Slot(5));
    opened
}

/// docs: architecture.md, "A slot carries a batch": no-ops, configurations, refused calls and void batches
/// take no index.
#[test]
fn entries_are_read_by_index() {
    let dir = tempfile::tempdir().unwrap();
    let opened = with_log(dir.path());
    let read = |from: u64, through: u64, entries: usize| {
        let found = opened.reader.entries((Index(from), Index(through)), entries, 1 << 20).unwrap();
        found.iter().map(|entry| String::from_utf8(entry.entry.payload.to_vec()).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(read(1, 4, 99), ["one", "", "three", "four"]);
    assert_eq!(read(2, 3, 99), ["", "three"]);
    assert_eq!(read(3, 4, 1), ["three"]);
    assert_eq!(read(4, 4, 99), ["four"]);
}

/// docs: reliability.md, faults 4 and 6: a damaged row is told, never served.
#[test]
fn a_damaged_row_is_never_served() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = with_log(dir.path());
    let mut damaged = batch(5, Some(3), &["four"]);
    damaged.checksum ^= 1;
    opened.storage.commit(WriteCounter(9), &mut [Write::Row(damaged)].iter()).unwrap();
    assert_eq!(opened.reader.entries((Index(1), Index(3)), 99, 99).unwrap().len(), 3);
    let error = opened.reader.entries((Index(4), Index(4)), 99, 99).unwrap_err();
    assert!(matches!(error, StorageError::DamagedRow { slot: Slot(5) }), "{error}");
}

/// A view shows the rows of the moment it was opened (docs: protocol.md, "Acceptor").
#[test]
fn a_view_does_not_move() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = with_log(dir.path());
    let view = opened.reader.view().unwrap();
    opened.storage.commit(WriteCounter(9), &mut [Write::Row(batch(6, None, &["five"]))].iter()).unwrap();
    let slots = |rows: Vec<Row>| rows.iter().map(|row| row.slot.0).collect::<Vec<_>>();
    let (rows, end) = view.read(Slot(3), 1 << 20).unwrap();
    assert_eq!((slots(rows), end), (vec![4, 5], true));
    let (rows, end) = view.read(Slot(2), 1).unwrap();
    assert_eq!((slots(rows), end), (vec![2], false), "one row at least");
    let (rows, _) = opened.reader.view().unwrap().read(Slot(6), 1).unwrap();
    assert_eq!(slots(rows), [6]);
}

#[test]
fn a_directory_has_one_owner_and_one_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let opened = with_log(dir.path());
    let error = open(dir.path(), None).unwrap_err();
    assert!(matches!(error, StorageError::InUse { .. }), "{error}");
    let (member, written) = (opened.state.member, opened.state.written);
    drop(opened);
    let error = open(dir.path(), Some(ClusterId([8; 16]))).unwrap_err();
    assert!(matches!(error, StorageError::OtherCluster { .. }), "{error}");
    let opened = open(dir.path(), Some(CLUSTER)).unwrap();
    // The refused start changed nothing, and a boot is no write.
    assert_eq!((opened.state.member, opened.state.written), (member, written.next()));
}

fn segment(dir: &Path, number: u64) -> std::path::PathBuf {
    dir.join(DIRECTORY).join(format!("segment-{number:010}.redb"))
}

/// Numbers of the segments that are there.
fn segments(dir: &Path) -> Vec<u64> {
    (1..99).filter(|number| segment(dir, *number).exists()).collect()
}

#[test]
fn an_unknown_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), None).unwrap());
    let database = redb::Database::open(segment(dir.path(), 1)).unwrap();
    let transaction = database.begin_write().unwrap();
    let meta: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("meta");
    transaction.open_table(meta).unwrap().insert("format", 99_u64.to_le_bytes().as_slice()).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = open(dir.path(), None).unwrap_err();
    assert!(matches!(error, StorageError::UnknownFormat { found: 99, .. }), "{error}");
}

/// A directory whose segments are left every few commits, with a row of 3 kB a commit, a mark each, and a snapshot at
/// `snapshot`.
fn in_segments(dir: &Path, slots: u64, snapshot: u64) -> Opened {
    let mut opened = open_with(dir, None, SMALL).unwrap();
    let genesis = Genesis::new(CLUSTER, BTreeMap::from([(MemberId(1), "a".to_owned())]));
    opened.storage.commit(WriteCounter(1), &mut [Write::Genesis(genesis)].iter()).unwrap();
    for slot in 1..=slots {
        let mut writes = vec![Write::Row(batch(slot, Some(slot - 1), &[&"x".repeat(3_000)]))];
        if slot == snapshot {
            writes.push(Write::Snapshot { slot: Slot(slot), state: Bytes::from("snapshot") });
        }
        let mark = Mark { first: Index(slot), slot: Slot(slot), count: 1, skipped: vec![0] };
        opened.storage.add_marks([mark], Slot(slot));
        opened.storage.commit(WriteCounter(slot), &mut writes.iter()).unwrap();
        opened.storage.keep_house();
    }
    opened
}

/// docs: decisions/0009: a trim deletes whole files, those that nobody reads in, and none that holds a row, a mark or a
/// snapshot that is kept (docs: reliability.md, fault 37).
#[test]
fn a_trim_removes_whole_segments() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = in_segments(dir.path(), 60, 40);
    let before = segments(dir.path());
    assert!(before.len() > 6, "{before:?}");
    let view = opened.reader.view().unwrap();
    let trim = [Write::Trim { through: Slot(40) }, Write::ChosenThrough(Slot(60))];
    opened.storage.commit(WriteCounter(61), &mut trim.iter()).unwrap();
    opened.storage.keep_house();
    assert!(segments(dir.path()).starts_with(&before), "somebody reads in them");
    assert_eq!(view.read(Slot(0), usize::MAX).unwrap().0.len(), 60);
    drop(view);
    opened.storage.keep_house();
    let after = segments(dir.path());
    assert!(after.len() < before.len() / 2, "{after:?} of {before:?}");
    assert_eq!(all_rows(&opened).into_keys().collect::<Vec<_>>(), (41..=60).map(Slot).collect::<Vec<_>>());
    let entries = opened.reader.entries((Index(41), Index(60)), 99, 1 << 20).unwrap();
    assert_eq!(entries.len(), 20);
    drop(opened);
    let opened = open_with(dir.path(), None, SMALL).unwrap();
    assert_eq!(opened.state.snapshots.keys().collect::<Vec<_>>(), [&Slot(40)]);
    assert_eq!((opened.state.trim_through, all_rows(&opened).len()), (Slot(40), 20));
}

/// docs: decisions/0009: a log that is trimmed and then quiet gives its space back, though its rows stood in the file
/// that is written.
#[test]
fn what_is_left_of_a_trimmed_segment_is_carried_into_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { most_bytes: 1 << 30, least_bytes: 1 << 20, background: false };
    let mut opened = open_with(dir.path(), None, options).unwrap();
    let rows: Vec<Write> =
        (1..=2_000).map(|slot| Write::Row(batch(slot, None, &["x".repeat(999).as_str()]))).collect();
    opened.storage.commit(WriteCounter(1), &mut rows.iter()).unwrap();
    let through = Slot(1_990);
    let trim = [Write::Snapshot { slot: through, state: Bytes::from("s") }, Write::Trim { through }];
    opened.storage.commit(WriteCounter(2), &mut trim.iter()).unwrap();
    opened.storage.keep_house();
    let kept = all_rows(&opened);
    opened.storage.commit(WriteCounter(3), &mut [Write::ChosenThrough(Slot(2_000))].iter()).unwrap();
    opened.storage.keep_house();
    assert_eq!(segments(dir.path()), [2]);
    assert_eq!((kept.len(), all_rows(&opened)), (10, kept));
    drop(opened);
    let opened = open_with(dir.path(), None, options).unwrap();
    assert_eq!((opened.state.trim_through, all_rows(&opened).len()), (through, 10));
    assert_eq!(opened.state.snapshots.len(), 1);
}

/// Entries are found by index wherever their marks and rows stand, after a restart too.
#[test]
fn entries_are_read_across_segments() {
    let dir = tempfile::tempdir().unwrap();
    drop(in_segments(dir.path(), 50, 1));
    let opened = open_with(dir.path(), None, SMALL).unwrap();
    for from in 1..=50 {
        let found = opened.reader.entries((Index(from), Index(50)), 99, 1 << 20).unwrap();
        assert_eq!(found.len() as u64, 51 - from);
    }
    let view = opened.reader.view().unwrap();
    let (rows, end) = view.read(Slot(13), 10_000).unwrap();
    assert_eq!((rows.first().unwrap().slot, rows.len(), end), (Slot(13), 3, false));
}

/// A listed file that is gone is told by its name; one that is only prepared is none of the log.
#[test]
fn a_lost_segment_is_named() {
    let dir = tempfile::tempdir().unwrap();
    drop(in_segments(dir.path(), 30, 1));
    std::fs::write(segment(dir.path(), 98).with_extension("redb.new"), "half").unwrap();
    drop(open_with(dir.path(), None, SMALL).unwrap());
    std::fs::remove_file(segment(dir.path(), 2)).unwrap();
    let error = open_with(dir.path(), None, SMALL).unwrap_err();
    assert!(error.to_string().contains("segment-0000000002.redb cannot be read: it is missing"), "{error}");
}

/// A directory of format 1, as its last version left it.
fn of_format_1(dir: &Path) -> DurableState {
    let state = old_state(CLUSTER, batch(4, None, &["four"]));
    write_old(&redb::Database::create(dir.join(LEGACY)).unwrap(), &state);
    state
}

/// docs: storage.md, "Format 1": its file becomes the first segment, with all that it says.
#[test]
fn a_directory_of_format_1_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = of_format_1(dir.path());
    let refused = open(dir.path(), Some(ClusterId([8; 16]))).unwrap_err();
    assert!(matches!(refused, StorageError::OtherCluster { .. }), "{refused}");
    assert!(dir.path().join(LEGACY).exists(), "nothing was changed");
    for _ in 0..3 {
        let opened = open(dir.path(), Some(CLUSTER)).unwrap();
        state.boot();
        assert_eq!(shown(&opened), state);
        assert!(!dir.path().join(LEGACY).exists() && segments(dir.path()) == [1]);
    }
    // An older version, started here by mistake, would make a member of its own beside it.
    of_format_1(dir.path());
    let error = open(dir.path(), None).unwrap_err();
    assert!(matches!(error, StorageError::TwoFormats { .. }), "{error}");
}
