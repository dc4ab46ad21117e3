//! A quorum is lost for good: what the survivors' disks still tell becomes the beginning of a new cluster (docs:
//! protocol.md, "Quorum lost for good").
//!
//! Consensus cannot tell what the lost members had chosen. A person decides to go on without them, and attests
//! that they are destroyed; the entry that says so stands in the log behind everything that was kept.

use crate::genesis::Genesis;
use crate::limits;
use crate::names::{self, NameError};
use crate::row::{self, Row};
use crate::storage::DurableState;
use crate::system::SystemState;
use crate::types::{Ballot, ClusterId, Digest, Index, MemberId, Slot, WriteCounter};
use crate::value::{Checkpoint, Value};
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use sha2::{Digest as _, Sha256};
use xxhash_rust::xxh3::Xxh3;

/// Why the survivors cannot be recovered from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    /// No disk was given.
    #[error("name at least one surviving disk")]
    NoSurvivors,
    /// A disk without a log.
    #[error("the disk of {0} belongs to no cluster: it holds nothing to recover")]
    NoCluster(MemberId),
    /// Disks of two clusters.
    #[error("the disks of {one} and {other} belong to different clusters: give those of one cluster")]
    OtherCluster {
        /// One of them.
        one: MemberId,
        /// The other.
        other: MemberId,
    },
    /// A fenced disk lags behind what it once knew, or differs.
    #[error(
        "the disk of {0} is fenced, for it was restored from an older copy, or differs from the others: leave it out; \
         only where nothing better is left, take it with --fenced"
    )]
    Fenced(MemberId),
    /// The state behind which the log begins cannot be read.
    #[error("the snapshot at slot {0} that the log begins with is missing or damaged on every survivor")]
    NoSnapshot(Slot),
    /// A value that this program does not know.
    #[error(
        "slot {slot} holds an entry that this version does not know: use the version that wrote it, or a newer one. \
         If no version reads it, name it to leave it out: SHA-256 {digest}"
    )]
    Undecodable {
        /// Which.
        slot: Slot,
        /// Of the value's bytes.
        digest: Digest,
    },
    /// An entry to be left out that this program reads, or that is another.
    #[error(
        "slot {0} holds no entry that can be left out: only the named one may be, and only where it cannot be read"
    )]
    NotSkipped(Slot),
    /// A new member's name that breaks the rule for names.
    #[error("the new member's name is refused: {0}")]
    Name(#[from] NameError),
    /// The new members are none, too many, or old ones.
    #[error("the new cluster needs 1 to {} members with new ids", limits::MEMBERS)]
    Members,
}

/// A slot whose value is not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostSlot {
    /// Which.
    pub slot: Slot,
    /// A survivor knew it to be chosen: it may have been acknowledged.
    pub chosen: bool,
    /// Some survivor holds a value for it, behind the first hole.
    pub held: bool,
}

/// What would be kept and what lost: to be shown before anything is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    genesis: Genesis,
    /// The survivor whose log is the base.
    pub base: MemberId,
    /// The log begins behind this slot.
    pub trim_through: Slot,
    snapshot: bytes::Bytes,
    rows: Vec<Row>,
    promised: Ballot,
    /// Every slot up to it is kept.
    pub kept_through: Slot,
    /// Of those, the ones behind it were accepted by a survivor and may never have been chosen.
    pub chosen_through: Slot,
    /// The last index that is kept.
    pub last_index: Index,
    /// The application's checkpoints that the kept log names, by index: their files are copied beside the disk.
    pub checkpoints: Vec<Checkpoint>,
    /// Entries that no version reads and that are left out, as a person asked: their slots decide nothing.
    pub skipped: BTreeMap<Slot, Digest>,
    /// Slots behind the first hole, and the hole itself where something lies behind it.
    pub lost: Vec<LostSlot>,
    /// Voters of the newest configuration whose disks were not given: they must be destroyed.
    pub missing: Vec<MemberId>,
}

/// Looks at the survivors' disks, all rows included. Nothing is changed.
///
/// # Errors
/// See [`RecoveryError`].
pub fn plan(survivors: &[DurableState]) -> Result<Plan, RecoveryError> {
    plan_without(survivors, &BTreeMap::new())
}

/// The same, where entries that cannot be read are left out: each is named by its slot and the SHA-256 of its value, so
/// that nothing else is left out by mistake.
///
/// # Errors
/// See [`RecoveryError`].
pub fn plan_without(
    survivors: &[DurableState],
    skipped: &BTreeMap<Slot, Digest>,
) -> Result<Plan, RecoveryError> {
    let genesis = common_genesis(survivors)?;
    let cluster = genesis.cluster;
    // The base knows the most to be chosen; between equals the one whose log begins first.
    let best = |disk: &&DurableState| (disk.chosen_through, core::cmp::Reverse(disk.trim_through));
    let base = survivors.iter().max_by_key(best).ok_or(RecoveryError::NoSurvivors)?;
    let trim_through = base.trim_through;
    let (snapshot, mut state) = starting_state(&genesis, survivors, trim_through)?;
    let mut kept: Vec<Row> = Vec::new();
    let top = survivors.iter().filter_map(|disk| disk.rows.keys().next_back()).max();
    let top = top.copied().unwrap_or(trim_through).max(base.chosen_through);
    let mut slot = trim_through.next();
    while slot <= top {
        let Some(mut row) = best_row(survivors, cluster, slot) else { break };
        match (Value::decode(row.value.clone()), skipped.get(&slot)) {
            (Ok(_), None) => {}
            (Err(_), Some(named)) if *named == digest(&row.value) => row.value = Value::NoOp.encode(),
            (_, Some(_)) => return Err(RecoveryError::NotSkipped(slot)),
            (Err(_), None) => return Err(RecoveryError::Undecodable { slot, digest: digest(&row.value) }),
        }
        state
            .apply(slot, &row.value)
            .map_err(|_| RecoveryError::Undecodable { slot, digest: digest(&row.value) })?;
        kept.push(row);
        slot = slot.next();
    }
    let kept_through = slot.previous();
    if let Some(beyond) = skipped.keys().find(|slot| **slot <= trim_through || **slot > kept_through) {
        return Err(RecoveryError::NotSkipped(*beyond));
    }
    let mut lost = Vec::new();
    while slot <= top {
        let chosen = survivors.iter().any(|disk| disk.chosen_through >= slot);
        let held = best_row(survivors, cluster, slot).is_some();
        lost.push(LostSlot { slot, chosen, held });
        slot = slot.next();
    }
    let given = |member: &MemberId| survivors.iter().any(|disk| disk.member == *member);
    Ok(Plan {
        base: base.member,
        trim_through,
        snapshot,
        promised: survivors.iter().map(|disk| disk.promised).max().unwrap_or(Ballot::ZERO),
        kept_through,
        chosen_through: base.chosen_through.min(kept_through),
        last_index: state.last_index,
        checkpoints: state.checkpoints.clone(),
        skipped: skipped.clone(),
        lost,
        missing: state.configurations.latest().voters().filter(|voter| !given(voter)).collect(),
        rows: kept,
        genesis,
    })
}

impl Plan {
    /// Disks of a new cluster whose log goes on where this plan's ends. `members` have ids that were never used.
    ///
    /// # Errors
    /// If the ids are not new or their count is out of bounds.
    pub fn found(
        &self,
        cluster: ClusterId,
        members: &BTreeMap<MemberId, String>,
    ) -> Result<Vec<DurableState>, RecoveryError> {
        let genesis = Genesis { cluster, ..self.genesis.clone() };
        let used = |member: &MemberId| genesis.members.contains_key(member) || *member == MemberId::NONE;
        if members.is_empty() || members.len() > limits::MEMBERS || members.keys().any(used) {
            return Err(RecoveryError::Members);
        }
        members.values().try_for_each(|name| names::check(name))?;
        let slot = self.kept_through.next();
        let recovered = Value::Recovered { members: members.clone() }.encode();
        let mut rows = BTreeMap::new();
        let kept = self.rows.iter().map(|row| (row.slot, row.ballot, row.value.clone()));
        for (slot, ballot, value) in kept.chain([(slot, self.promised, recovered)]) {
            let checksum = row::checksum(cluster, slot, ballot, &value);
            rows.insert(slot, Row { slot, ballot, chosen: true, value, checksum });
        }
        let disk = |member: &MemberId| {
            let mut disk = DurableState::empty(*member);
            disk.written = WriteCounter(1);
            disk.promised = self.promised;
            disk.genesis = Some(genesis.clone());
            disk.genesis_confirmed = true;
            disk.chosen_through = slot;
            disk.trim_through = self.trim_through;
            if self.trim_through > Slot(0) {
                disk.applied = self.trim_through;
                disk.system = self.snapshot.clone();
                disk.snapshots.insert(self.trim_through, self.snapshot.clone());
            }
            disk.rows = rows.clone();
            disk
        };
        Ok(members.keys().map(disk).collect())
    }

    /// Changes with whatever would be kept, lost or destroyed: whoever names it has seen this very plan.
    pub fn fingerprint(&self) -> u64 {
        let mut hash = Xxh3::new();
        hash.update(&self.genesis.digest().0);
        hash.update(&self.snapshot);
        let mut number = |number: u64| hash.update(&number.to_le_bytes());
        [self.base.0, self.trim_through.0, self.kept_through.0, self.promised.round, self.promised.member.0]
            .into_iter()
            .for_each(&mut number);
        for row in &self.rows {
            [row.slot.0, row.ballot.round, row.checksum].into_iter().for_each(&mut number);
        }
        self.lost
            .iter()
            .for_each(|lost| number(lost.slot.0 << 2 | u64::from(lost.chosen) << 1 | u64::from(lost.held)));
        self.missing.iter().for_each(|member| number(member.0));
        self.skipped.iter().for_each(|(slot, _)| number(slot.0));
        hash.digest()
    }

    /// The digest of the genesis that the new cluster's members hold.
    pub fn genesis_digest(&self, cluster: ClusterId) -> Digest {
        Genesis { cluster, ..self.genesis.clone() }.digest()
    }
}

fn common_genesis(survivors: &[DurableState]) -> Result<Genesis, RecoveryError> {
    let mut common: Option<(MemberId, &Genesis)> = None;
    for disk in survivors {
        if disk.fenced.is_some() {
            return Err(RecoveryError::Fenced(disk.member));
        }
        let genesis = disk.genesis.as_ref().ok_or(RecoveryError::NoCluster(disk.member))?;
        match common {
            Some((one, held)) if held != genesis => {
                return Err(RecoveryError::OtherCluster { one, other: disk.member });
            }
            _ => common = Some((disk.member, genesis)),
        }
    }
    common.map(|(_, genesis)| genesis.clone()).ok_or(RecoveryError::NoSurvivors)
}

fn starting_state(
    genesis: &Genesis,
    survivors: &[DurableState],
    trim_through: Slot,
) -> Result<(bytes::Bytes, SystemState), RecoveryError> {
    if trim_through == Slot(0) {
        return Ok((bytes::Bytes::new(), SystemState::new(genesis)));
    }
    let held = survivors.iter().filter_map(|disk| disk.snapshots.get(&trim_through));
    held.filter_map(|bytes| Some((bytes.clone(), SystemState::decode(bytes.clone()).ok()?)))
        .find(|(_, state)| state.applied == trim_through)
        .ok_or(RecoveryError::NoSnapshot(trim_through))
}

fn digest(value: &[u8]) -> Digest {
    Digest(Sha256::digest(value).into())
}

/// The value that is kept in a slot: one known chosen, else the one accepted under the highest ballot.
fn best_row(survivors: &[DurableState], cluster: ClusterId, slot: Slot) -> Option<Row> {
    let rows = survivors.iter().filter_map(|disk| {
        let row = disk.rows.get(&slot).filter(|row| row.is_intact(cluster))?;
        Some(((row.chosen || disk.chosen_through >= slot, row.ballot), row))
    });
    let ((chosen, _), row) = rows.max_by_key(|(rank, _)| *rank)?;
    // Whoever knows the slot to be chosen has lost its row: an older vote need not be what was chosen.
    let lost = survivors.iter().any(|disk| disk.chosen_through >= slot && disk.trim_through < slot);
    (chosen || !lost).then(|| row.clone())
}
