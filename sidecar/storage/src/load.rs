//! Reading what a disk holds.

use crate::StorageError;
use crate::disk::lists;
use crate::encoding::{self, PEERS, SNAPSHOTS, name};
use crate::fetched;
use crate::read::View;
use crate::segment::{Layout, Standing, file_name, in_file, standing};
use bytes::Bytes;
use redb::ReadableTable;
use std::collections::BTreeMap;
use std::sync::Arc;
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
    /// Those above the applied position, and of the snapshots only their slots: each is empty.
    Start,
}

/// What a disk holds.
pub(crate) struct Loaded {
    pub(crate) state: DurableState,
    /// Snapshots that cannot be read: the state does not have them. A member goes on without them, it only does not
    /// serve them; a log that is copied elsewhere may begin with one.
    pub(crate) damaged: Vec<StorageError>,
}

/// Reads what a disk holds.
pub(crate) fn load(layout: &Layout, which: Rows) -> Result<Loaded, StorageError> {
    let number = layout.current.0;
    let mut loaded = in_file(&*layout.files, number, load_newest(layout, which == Rows::Start))?;
    let from = match which {
        Rows::AboveApplied | Rows::Start => loaded.state.applied,
        Rows::All => loaded.state.trim_through,
        Rows::None => return Ok(loaded),
    };
    let mut rows = BTreeMap::new();
    let view = View::open(Arc::new(layout.clone()))?;
    view.walk(from.next(), |row| {
        rows.insert(row.slot, row);
        Ok(true)
    })?;
    loaded.state.rows = rows;
    Ok(loaded)
}

/// All but the rows; the snapshots stand in any segment.
fn load_newest(layout: &Layout, lists_only: bool) -> Result<Loaded, StorageError> {
    let transaction = layout.current.1.begin_read()?;
    let Standing::Born(meta) = standing(&*layout.files, layout.current.0, &transaction)? else {
        return Err(StorageError::damaged("what the member is", "it is missing"));
    };
    let number = |name: &'static str| -> Result<u64, StorageError> {
        Ok(meta.get(name).map(|bytes| encoding::read_number(name, bytes)).transpose()?.unwrap_or(0))
    };
    let pair = |name: &'static str| -> Result<Option<(u64, u64)>, StorageError> {
        meta.get(name).map(|bytes| encoding::read_pair(name, bytes)).transpose()
    };
    let mut state = DurableState::empty(MemberId(number(name::MEMBER)?));
    state.incarnation = Incarnation(number(name::INCARNATION)?);
    state.written = WriteCounter(number(name::WRITTEN)?);
    if let Some((round, member)) = pair(name::PROMISED)? {
        state.promised = Ballot { round, member: MemberId(member) };
    }
    state.genesis = meta
        .get(name::GENESIS)
        .map(|bytes| {
            Genesis::decode(bytes.clone().into()).map_err(|e| StorageError::damaged("the genesis", e))
        })
        .transpose()?;
    state.joined = meta.get(name::JOINED).map(|bytes| encoding::read_joined(bytes)).transpose()?;
    state.genesis_confirmed = meta.contains_key(name::CONFIRMED);
    state.chosen_through = Slot(number(name::CHOSEN_THROUGH)?);
    state.applied = Slot(number(name::APPLIED)?);
    state.system = meta.get(name::SYSTEM).map(|state| Bytes::copy_from_slice(state)).unwrap_or_default();
    state.trim_through = Slot(number(name::TRIM_THROUGH)?);
    state.lease = Duration::from_nanos(number(name::LEASE)?);
    state.tombstone = pair(name::TOMBSTONE)?.map(|(version, slot)| (version, Slot(slot)));
    state.fenced = meta.get(name::FENCED).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    state.fetched = fetched::load(&transaction)?;
    for peer in transaction.open_table(PEERS)?.iter()? {
        let (member, counters) = peer?;
        let member = member.value();
        state.peers.insert(MemberId(member), encoding::counters(member, counters.value())?);
    }
    let mut damaged = Vec::new();
    for (slot, segment) in lists(&meta)?.2 {
        match snapshot(layout, slot, segment) {
            // One at a time: there may be many, and each as large as the state.
            Ok(snapshot) => {
                let kept = if lists_only { Bytes::new() } else { snapshot };
                state.snapshots.insert(Slot(slot), kept);
            }
            Err(error) if error.is_damage() => damaged.push(error),
            Err(error) => return Err(error),
        }
    }
    Ok(Loaded { state, damaged })
}

/// The encoded system state at a mark.
pub(crate) fn snapshot(layout: &Layout, slot: u64, segment: u64) -> Result<Bytes, StorageError> {
    let read = || {
        let db = layout.find(segment)?;
        let table = db.begin_read()?.open_table(SNAPSHOTS)?;
        let found = table.get(slot)?.ok_or_else(|| {
            let why = match db.is_damaged() {
                true => format!("that of slot {slot} fails its checksum"),
                false => format!("that of slot {slot} is missing in {}", file_name(segment)),
            };
            StorageError::damaged("a snapshot", why)
        })?;
        Ok(Bytes::copy_from_slice(encoding::unseal_snapshot(slot, found.value())?))
    };
    in_file(&*layout.files, segment, read())
}
