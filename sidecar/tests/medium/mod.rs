//! The disk in memory, and a disk of format 1.
#![allow(dead_code, unused_imports, clippy::unwrap_used, reason = "shared by tests that use a part each")]

use std::collections::BTreeMap;
use synod_paxos::message::Counters;
use synod_paxos::{ClusterId, DurableState, Genesis, Incarnation, MemberId, Row, Slot, WriteCounter};

pub(crate) use synod_sim::medium::{Disk, Image, Operation, Power};

/// What a disk of format 1 holds, besides `row`.
pub(crate) fn old_state(cluster: ClusterId, row: Row) -> DurableState {
    DurableState {
        incarnation: Incarnation(4),
        written: WriteCounter(9),
        genesis: Some(Genesis::new(cluster, BTreeMap::from([(MemberId(77), "a".to_owned())]))),
        trim_through: Slot(3),
        snapshots: BTreeMap::from([(Slot(3), "\u{1}state".into())]),
        peers: BTreeMap::from([(
            MemberId(5),
            Counters { incarnation: Incarnation(6), written: WriteCounter(7) },
        )]),
        rows: BTreeMap::from([(row.slot, row)]),
        ..DurableState::empty(MemberId(77))
    }
}

/// Writes [`old_state`] as format 1 did.
pub(crate) fn write_old(database: &redb::Database, state: &DurableState) {
    use redb::TableDefinition as Table;
    let transaction = database.begin_write().unwrap();
    {
        let meta: Table<'_, &str, &[u8]> = Table::new("meta");
        let rows: Table<'_, u64, &[u8]> = Table::new("rows");
        let snapshots: Table<'_, u64, &[u8]> = Table::new("snapshots");
        let skipped: Table<'_, u64, &[u8]> = Table::new("skipped");
        let peers: Table<'_, u64, (u64, u64)> = Table::new("peers");
        let marks: Table<'_, u64, (u64, u32, u64)> = Table::new("marks");
        transaction.open_table(marks).unwrap();
        transaction.open_table(skipped).unwrap();
        let mut meta = transaction.open_table(meta).unwrap();
        let numbers = [
            ("format", 1),
            ("member", state.member.0),
            ("incarnation", state.incarnation.0),
            ("written", state.written.0),
            ("trim_through", state.trim_through.0),
        ];
        for (name, value) in numbers {
            meta.insert(name, value.to_le_bytes().as_slice()).unwrap();
        }
        meta.insert("genesis", state.genesis.as_ref().unwrap().encode().as_ref()).unwrap();
        for (slot, snapshot) in &state.snapshots {
            transaction.open_table(snapshots).unwrap().insert(slot.0, snapshot.as_ref()).unwrap();
        }
        for (peer, counters) in &state.peers {
            let counters = (counters.incarnation.0, counters.written.0);
            transaction.open_table(peers).unwrap().insert(peer.0, counters).unwrap();
        }
        for row in state.rows.values() {
            let mut stored = [row.ballot.round.to_le_bytes(), row.ballot.member.0.to_le_bytes()].concat();
            stored.push(u8::from(row.chosen));
            stored.extend_from_slice(&row.checksum.to_le_bytes());
            stored.extend_from_slice(&row.value);
            transaction.open_table(rows).unwrap().insert(row.slot.0, stored.as_slice()).unwrap();
        }
    }
    transaction.commit().unwrap();
}
