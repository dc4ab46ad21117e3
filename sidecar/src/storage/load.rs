//! Reading what a disk holds.

use super::StorageError;
use super::encoding::{self, META, PEERS, ROWS, SNAPSHOTS, name};
use bytes::Bytes;
use redb::{ReadTransaction, ReadableTable};
use std::collections::BTreeMap;
use std::time::Duration;
use synod_paxos::{Ballot, DurableState, Genesis, Incarnation, MemberId, Slot, WriteCounter};

/// Which rows to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Those above the applied position: what a start needs.
    AboveApplied,
    /// All that are not trimmed: what somebody who looks at a disk wants.
    All,
    /// None.
    None,
}

/// What a disk holds.
pub(super) fn load(transaction: &ReadTransaction, which: Rows) -> Result<DurableState, StorageError> {
    let meta = transaction.open_table(META)?;
    let get = |name: &'static str| -> Result<Option<Bytes>, StorageError> {
        Ok(meta.get(name)?.map(|value| Bytes::copy_from_slice(value.value())))
    };
    let number = |name: &'static str| -> Result<u64, StorageError> {
        Ok(get(name)?.map(|bytes| encoding::read_number(name, &bytes)).transpose()?.unwrap_or(0))
    };
    let pair = |name: &'static str| -> Result<Option<(u64, u64)>, StorageError> {
        get(name)?.map(|bytes| encoding::read_pair(name, &bytes)).transpose()
    };
    let mut state = DurableState::empty(MemberId(number(name::MEMBER)?));
    state.incarnation = Incarnation(number(name::INCARNATION)?);
    state.written = WriteCounter(number(name::WRITTEN)?);
    if let Some((round, member)) = pair(name::PROMISED)? {
        state.promised = Ballot { round, member: MemberId(member) };
    }
    state.genesis = get(name::GENESIS)?
        .map(|bytes| Genesis::decode(bytes).map_err(|e| StorageError::damaged("the genesis", e)))
        .transpose()?;
    state.joined = get(name::JOINED)?.map(|bytes| encoding::read_joined(&bytes)).transpose()?;
    state.genesis_confirmed = get(name::CONFIRMED)?.is_some();
    state.chosen_through = Slot(number(name::CHOSEN_THROUGH)?);
    state.applied = Slot(number(name::APPLIED)?);
    state.system = get(name::SYSTEM)?.unwrap_or_default();
    state.trim_through = Slot(number(name::TRIM_THROUGH)?);
    state.lease = Duration::from_nanos(number(name::LEASE)?);
    for snapshot in transaction.open_table(SNAPSHOTS)?.iter()? {
        let (slot, system) = snapshot?;
        state.snapshots.insert(Slot(slot.value()), Bytes::copy_from_slice(system.value()));
    }
    state.tombstone = pair(name::TOMBSTONE)?.map(|(version, slot)| (version, Slot(slot)));
    state.fenced = get(name::FENCED)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    for peer in transaction.open_table(PEERS)?.iter()? {
        let (member, counters) = peer?;
        state.peers.insert(MemberId(member.value()), encoding::counters(counters.value()));
    }
    let from = match which {
        Rows::AboveApplied => state.applied,
        Rows::All => state.trim_through,
        Rows::None => return Ok(state),
    };
    let mut rows = BTreeMap::new();
    for row in transaction.open_table(ROWS)?.range(from.0 + 1..)? {
        let (slot, value) = row?;
        let row = encoding::read_row(slot.value(), value.value())?;
        rows.insert(row.slot, row);
    }
    state.rows = rows;
    Ok(state)
}
