//! The gate between disk and network: what may only leave after a write is carried by the write itself.
//!
//! ```text
//!  Node --Output::Persist(WriteBatch)--> commit(batches, storage) --Ok--> Completed --Input::Persisted--> Node
//!            (gated messages inside)          one transaction                                |
//!                                                                              Output::Send(Outgoing)
//! ```
//!
//! [`WriteBatch`] gives its messages to nobody; [`commit`] is the only maker of [`Completed`], and it makes
//! one only after [`Storage::commit`] returned `Ok`.

use crate::genesis::Genesis;
use crate::io::AdminOutcome;
use crate::message::{Counters, Message};
use crate::row::Row;
use crate::types::{Ballot, ClusterId, Digest, Incarnation, MemberId, RequestId, Slot, WriteCounter};
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use core::time::Duration;

/// A part of a snapshot that is fetched from another member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotPart {
    /// The snapshot's slot.
    pub slot: Slot,
    /// Bytes of the whole snapshot.
    pub total: u64,
    /// Of the whole snapshot: xxh3, 128 bits.
    pub digest: u128,
    /// Where in it this part begins.
    pub offset: u64,
    /// The part.
    pub bytes: Bytes,
}

impl SnapshotPart {
    /// The first byte behind it.
    pub fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }

    /// Whether both are of the same snapshot.
    pub fn is_of_one_with(&self, other: &SnapshotPart) -> bool {
        (self.slot, self.total, self.digest) == (other.slot, other.total, other.digest)
    }

    /// Whether it is the one that `last` is followed by.
    pub fn follows(&self, last: &SnapshotPart) -> bool {
        self.is_of_one_with(last) && self.offset == last.end()
    }
}

/// One durable change. The meaning of each is [`DurableState::apply`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// No lower ballot is answered any more, in any slot.
    Promised(Ballot),
    /// A slot's row, in place of what stood there.
    Row(Row),
    /// Every slot up to it is chosen and its row stored.
    ChosenThrough(Slot),
    /// The encoded [`crate::system::SystemState`], with the position it stands at.
    System {
        /// Every slot up to it is applied in `state`.
        applied: Slot,
        /// The encoding.
        state: Bytes,
    },
    /// The system state at a mark: kept until the log is trimmed past it.
    Snapshot {
        /// The mark's slot.
        slot: Slot,
        /// The encoded system state there.
        state: Bytes,
    },
    /// Rows up to here are not needed any more, nor are snapshots below. It only rises, and no row at or below
    /// it follows: a storage may delete them when it suits.
    Trim {
        /// The slot of a mark whose snapshot is on this disk.
        through: Slot,
    },
    /// A part of a snapshot that is not whole yet, so that a restart goes on where it was. The first one takes the
    /// place of whatever was fetched before; each other one follows the last.
    SnapshotPart(SnapshotPart),
    /// A snapshot in place of the log up to its slot, in one step: it becomes the system state, and every row up to
    /// it goes, as do all parts that were fetched. What was promised, rows above it and the identity stay as they are
    /// (docs: protocol.md, "Snapshots", install).
    Install {
        /// The snapshot's slot.
        slot: Slot,
        /// The encoded system state there.
        state: Bytes,
    },
    /// The longest lease that was ever granted: how long a start waits before it promises anything.
    Lease(Duration),
    /// The cluster that this disk belongs to, in full.
    Genesis(Genesis),
    /// The cluster that this disk will belong to, when its genesis arrives.
    Joined {
        /// The cluster.
        cluster: ClusterId,
        /// Its genesis.
        digest: Digest,
    },
    /// Every listed member holds this genesis.
    GenesisConfirmed,
    /// The most that was seen of a peer's counters.
    Peer {
        /// Whose.
        member: MemberId,
        /// What was seen.
        counters: Counters,
    },
    /// A chosen entry removed this member, and its vote is not needed any more.
    Tombstone {
        /// The configuration without it.
        version: u64,
        /// That configuration's entry.
        slot: Slot,
    },
    /// This disk shows less than its peers remember; it takes no part any more.
    Fenced(String),
}

/// What a disk holds, as the core sees it. Also the reference for what each [`Write`] means: a storage
/// engine is tested against it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DurableState {
    /// Whose disk it is.
    pub member: MemberId,
    /// The boot that reads it: raised durably before the core starts.
    pub incarnation: Incarnation,
    /// Writes so far of lives that took part; boots and the writes of a handshake do not count, or they could
    /// make up for writes that a restored copy lacks.
    pub written: WriteCounter,
    /// See [`Write::Promised`].
    pub promised: Ballot,
    /// See [`Write::Genesis`].
    pub genesis: Option<Genesis>,
    /// See [`Write::Joined`].
    pub joined: Option<(ClusterId, Digest)>,
    /// See [`Write::GenesisConfirmed`].
    pub genesis_confirmed: bool,
    /// See [`Write::ChosenThrough`].
    pub chosen_through: Slot,
    /// See [`Write::Trim`] and [`Write::Install`].
    pub trim_through: Slot,
    /// See [`Write::System`].
    pub applied: Slot,
    /// See [`Write::System`]; empty before the first.
    pub system: Bytes,
    /// See [`Write::Snapshot`].
    pub snapshots: BTreeMap<Slot, Bytes>,
    /// See [`Write::SnapshotPart`]: of one snapshot, from its first byte on, without a gap.
    pub fetched: Vec<SnapshotPart>,
    /// See [`Write::Lease`].
    pub lease: Duration,
    /// See [`Write::Row`]. For [`crate::Node::new`] rows above `applied` are enough.
    pub rows: BTreeMap<Slot, Row>,
    /// See [`Write::Peer`].
    pub peers: BTreeMap<MemberId, Counters>,
    /// See [`Write::Tombstone`].
    pub tombstone: Option<(u64, Slot)>,
    /// See [`Write::Fenced`].
    pub fenced: Option<String>,
}

impl DurableState {
    /// An empty disk whose member id was just minted, at its first boot.
    pub fn empty(member: MemberId) -> DurableState {
        DurableState {
            member,
            incarnation: Incarnation(1),
            written: WriteCounter(0),
            promised: Ballot::ZERO,
            genesis: None,
            joined: None,
            genesis_confirmed: false,
            chosen_through: Slot(0),
            trim_through: Slot(0),
            applied: Slot(0),
            system: Bytes::new(),
            snapshots: BTreeMap::new(),
            fetched: Vec::new(),
            lease: Duration::ZERO,
            rows: BTreeMap::new(),
            peers: BTreeMap::new(),
            tombstone: None,
            fenced: None,
        }
    }

    /// What every start does before the core reads the disk.
    pub fn boot(&mut self) {
        self.incarnation = self.incarnation.next();
    }

    /// Makes one change.
    pub fn apply(&mut self, write: &Write) {
        match write {
            Write::Promised(ballot) => self.promised = *ballot,
            Write::Row(row) => {
                self.rows.insert(row.slot, row.clone());
            }
            Write::ChosenThrough(slot) => self.chosen_through = *slot,
            Write::System { applied, state } => {
                self.applied = *applied;
                self.system = state.clone();
            }
            Write::Snapshot { slot, state } => {
                self.snapshots.insert(*slot, state.clone());
            }
            Write::Trim { through } => {
                self.trim_through = *through;
                self.rows.retain(|slot, _| slot > through);
                self.snapshots.retain(|slot, _| slot >= through);
                self.fetched.retain(|part| part.slot > *through);
            }
            Write::SnapshotPart(part) => {
                if part.offset == 0 {
                    self.fetched.clear();
                }
                self.fetched.push(part.clone());
            }
            Write::Install { slot, state } => {
                (self.applied, self.chosen_through, self.trim_through) = (*slot, *slot, *slot);
                self.system = state.clone();
                self.snapshots = BTreeMap::from([(*slot, state.clone())]);
                self.rows.retain(|row, _| row > slot);
                self.fetched.clear();
            }
            Write::Lease(longest) => self.lease = *longest,
            Write::Genesis(genesis) => self.genesis = Some(genesis.clone()),
            Write::Joined { cluster, digest } => self.joined = Some((*cluster, *digest)),
            Write::GenesisConfirmed => self.genesis_confirmed = true,
            Write::Peer { member, counters } => {
                self.peers.insert(*member, *counters);
            }
            Write::Tombstone { version, slot } => self.tombstone = Some((*version, *slot)),
            Write::Fenced(why) => self.fenced = Some(why.clone()),
        }
    }
}

/// What waits for a write.
#[derive(Debug)]
pub(crate) enum Gated {
    /// A message that may leave then.
    Send(MemberId, Message),
    /// A promise whose rows are read from a view opened then, and no earlier.
    Promise {
        /// The candidate.
        to: MemberId,
        /// What was promised.
        ballot: Ballot,
        /// First slot reported.
        from: Slot,
        /// The chosen prefix when it was made: each of its rows is on disk before the promise is.
        chosen: Slot,
    },
    /// The candidate's promise to itself.
    OwnPromise(Ballot),
    /// The leader's own vote.
    OwnVote(Ballot, Slot),
    /// A mark's snapshot is on disk.
    Snapshot(Slot),
    /// The length of lease that may be granted from then on.
    Lease(Duration),
    /// The answer to an administrator whose call is on disk then.
    Admin(RequestId, AdminOutcome),
}

/// Changes that become durable together, and the messages that wait for it.
#[must_use = "a write that is not committed holds back every message behind it"]
#[derive(Debug)]
pub struct WriteBatch {
    pub(crate) sequence: u64,
    pub(crate) written: WriteCounter,
    pub(crate) writes: Vec<Write>,
    pub(crate) gated: Vec<Gated>,
}

impl WriteBatch {
    /// The changes, in order.
    pub fn writes(&self) -> &[Write] {
        &self.writes
    }

    /// The write counter once this is durable.
    pub fn written(&self) -> WriteCounter {
        self.written
    }

    /// About how many bytes of values it carries.
    pub fn value_bytes(&self) -> usize {
        let values = self.writes.iter().map(|write| match write {
            Write::Row(row) => row.value.len(),
            Write::SnapshotPart(part) => part.bytes.len(),
            _ => 0,
        });
        values.sum()
    }
}

/// What a storage engine does.
pub trait Storage {
    /// Why a write failed. A failed write or sync ends the process; nothing is retried on the same handle
    /// (docs: protocol.md, "Integrity").
    type Error;

    /// Makes all of `writes` and the write counter durable in one transaction, synced before it returns.
    /// Without writes there is nothing to do: what came before is durable already.
    ///
    /// # Errors
    /// Nothing may be assumed of the disk then.
    fn commit(
        &mut self,
        written: WriteCounter,
        writes: &mut dyn Iterator<Item = &Write>,
    ) -> Result<(), Self::Error>;
}

/// Proof that writes are durable; releases the messages behind them when it reaches the core.
#[must_use = "messages leave only when the core is told that their write is durable"]
#[derive(Debug)]
pub struct Completed {
    pub(crate) through: u64,
    pub(crate) written: WriteCounter,
    pub(crate) gated: Vec<Gated>,
}

/// Writes `batches` as one transaction: group commit. They must be given in the order in which the core gave
/// them, without a gap.
///
/// # Errors
/// Those of the storage; the messages behind the writes are lost with them.
///
/// # Panics
/// If batches are out of order: a driver's fault that could otherwise lose a promise.
pub fn commit<S: Storage>(batches: Vec<WriteBatch>, storage: &mut S) -> Result<Option<Completed>, S::Error> {
    let Some(last) = batches.last() else { return Ok(None) };
    let (through, written) = (last.sequence, last.written);
    for pair in batches.windows(2) {
        assert!(pair[0].sequence + 1 == pair[1].sequence, "write batches out of order: {pair:?}");
    }
    storage.commit(written, &mut batches.iter().flat_map(|batch| batch.writes.iter()))?;
    let gated = batches.into_iter().flat_map(|batch| batch.gated).collect();
    Ok(Some(Completed { through, written, gated }))
}
