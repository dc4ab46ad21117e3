//! The redb storage against the core's own model of a disk, `DurableState::apply`.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use synod_paxos::message::Counters;
use synod_paxos::value::{Append, Call, Operation, Origin, Value};
use synod_paxos::{
    Ballot, ClusterId, Digest, DurableState, Genesis, Incarnation, Index, MemberId, RequestId, Row, Slot,
    Storage, Write, WriteCounter, row,
};
use synod_sidecar::storage::{FILE, Mark, Opened, StorageError, open};

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
        ballots().prop_map(Write::Promised),
        rows().prop_map(Write::Row),
        rows().prop_map(Write::Row),
        (0..40_u64).prop_map(|slot| Write::ChosenThrough(Slot(slot))),
        (0..40_u64, vec(any::<u8>(), 1..300))
            .prop_map(|(slot, state)| Write::System { applied: Slot(slot), state: state.into() }),
        (0..40_u64, vec(any::<u8>(), 1..300))
            .prop_map(|(slot, state)| Write::Snapshot { slot: Slot(slot), state: state.into() }),
        (0..40_u64).prop_map(|slot| Write::Trim { through: Slot(slot) }),
        (0..40_u64, vec(any::<u8>(), 1..300))
            .prop_map(|(slot, state)| Write::Install { slot: Slot(slot), state: state.into() }),
        (0..9_u64).prop_map(|seconds| Write::Lease(Duration::from_secs(seconds))),
        Just(Write::Genesis(Genesis::new(CLUSTER, BTreeMap::from([(MemberId(1), "a".to_owned())])))),
        Just(Write::Joined { cluster: CLUSTER, digest: Digest([9; 32]) }),
        Just(Write::GenesisConfirmed),
        (1..6_u64, counters)
            .prop_map(|(member, counters)| Write::Peer { member: MemberId(member), counters }),
        (1..9_u64, 1..40_u64).prop_map(|(version, slot)| Write::Tombstone { version, slot: Slot(slot) }),
        "[a-z ]{0,20}".prop_map(Write::Fenced),
    ]
}

/// What the disk shows, all rows included.
fn shown(opened: &Opened) -> DurableState {
    let (rows, end) = opened.reader.view().unwrap().read(Slot(0), usize::MAX).unwrap();
    assert!(end);
    let all: BTreeMap<Slot, Row> = rows.into_iter().map(|row| (row.slot, row)).collect();
    let above = all.range(opened.state.applied.next()..).map(|(slot, row)| (*slot, row.clone())).collect();
    assert_eq!(opened.state.rows, above, "a start loads the rows above the applied position");
    DurableState { rows: all, ..opened.state.clone() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Property: after any commits and restarts the disk holds what the model holds. Source: the meaning of
    /// each `Write` is `DurableState::apply` (docs: protocol.md, "Acceptor").
    #[test]
    fn a_disk_holds_what_the_model_holds(lives in vec(vec(vec(writes(), 0..8), 0..5), 1..4)) {
        let dir = tempfile::tempdir().unwrap();
        let mut opened = open(dir.path(), None).unwrap();
        let mut model = DurableState::empty(opened.state.member);
        for commits in lives {
            prop_assert_eq!(shown(&opened), model.clone());
            for mut writes in commits {
                // The core never trims back, nor writes a row that is trimmed.
                let mut trim = model.trim_through;
                writes.retain(|write| match write {
                    Write::Row(row) => row.slot > trim,
                    Write::Trim { through: slot } | Write::Install { slot, .. } => {
                        let on = *slot > trim;
                        trim = trim.max(*slot);
                        on
                    }
                    _ => true,
                });
                model.written = model.written.next();
                opened.storage.commit(model.written, &mut writes.iter()).unwrap();
                writes.iter().for_each(|write| model.apply(write));
            }
            drop(opened);
            opened = open(dir.path(), None).unwrap();
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
    let value = Value::Batch { ballot, advance: Duration::ZERO, calls }.encode();
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
        found.iter().map(|entry| String::from_utf8(entry.to_vec()).unwrap()).collect::<Vec<_>>()
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
    assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
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

#[test]
fn an_unknown_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), None).unwrap());
    let database = redb::Database::open(dir.path().join(FILE)).unwrap();
    let transaction = database.begin_write().unwrap();
    let meta: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("meta");
    transaction.open_table(meta).unwrap().insert("format", 99_u64.to_le_bytes().as_slice()).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = open(dir.path(), None).unwrap_err();
    assert!(matches!(error, StorageError::UnknownFormat { found: 99, .. }), "{error}");
}

/// Rows that a data directory's table holds, trimmed ones that are not deleted yet included.
fn stored_rows(dir: &Path) -> u64 {
    use redb::{ReadableDatabase, ReadableTableMetadata};
    let database = redb::Database::open(dir.join(FILE)).unwrap();
    let rows: redb::TableDefinition<'_, u64, &[u8]> = redb::TableDefinition::new("rows");
    database.begin_read().unwrap().open_table(rows).unwrap().len().unwrap()
}

/// A trim deletes a bounded number of rows with each commit, goes on after a restart, and shows none of them
/// from the first moment (docs: decisions/0006; reliability.md, fault 37).
#[test]
fn trimmed_rows_go_in_bounded_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = open(dir.path(), None).unwrap();
    let rows: Vec<Write> = (1..=2_000).map(|slot| Write::Row(batch(slot, None, &["x"]))).collect();
    opened.storage.commit(WriteCounter(1), &mut rows.iter()).unwrap();
    let through = Slot(1_900);
    let trim = [Write::Snapshot { slot: through, state: Bytes::from("s") }, Write::Trim { through }];
    opened.storage.commit(WriteCounter(2), &mut trim.iter()).unwrap();
    let shown = |opened: &Opened| opened.reader.view().unwrap().read(Slot(0), usize::MAX).unwrap().0.len();
    assert_eq!(shown(&opened), 100);
    let mut left = Vec::new();
    for write in 3..7 {
        drop(opened);
        left.push(stored_rows(dir.path()));
        opened = open(dir.path(), None).unwrap();
        assert_eq!((opened.state.trim_through, shown(&opened)), (through, 100));
        let next = [Write::ChosenThrough(Slot(2_000))];
        opened.storage.commit(WriteCounter(write), &mut next.iter()).unwrap();
    }
    drop(opened);
    left.push(stored_rows(dir.path()));
    assert_eq!(left, [1_488, 976, 464, 100, 100]);
}
