//! Who votes in which slot: configurations and their history (docs: protocol.md, "Configurations").

use crate::codec::{DecodeError, Reader, Writer};
use crate::genesis::Genesis;
use crate::limits;
use crate::names::{self, NameError};
use crate::types::{MemberId, Slot};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

/// What a member of a configuration is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfiguredMember {
    /// The name it was added under, for people; never an identity.
    pub name: String,
    /// A voter, or else a learner.
    pub voter: bool,
}

/// Names one membership operation, so that a repeat is answered with what happened.
pub type OperationId = [u8; 16];

/// Voters and learners in force from a slot on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// 1 for the genesis, +1 for each change.
    pub version: u64,
    /// The slot of the entry that made it; 0 for the genesis.
    pub slot: Slot,
    /// The first slot it governs: `slot + alpha`; 1 for the genesis.
    pub effective_from: Slot,
    /// All members.
    pub members: BTreeMap<MemberId, ConfiguredMember>,
    /// The operation that made it; zeros for the genesis.
    pub operation: OperationId,
    /// Who was in the configuration before and is not in this one.
    pub removed: Option<(MemberId, String)>,
}

impl Configuration {
    /// The voters, in order of their ids.
    pub fn voters(&self) -> impl Iterator<Item = MemberId> + '_ {
        self.members.iter().filter(|(_, m)| m.voter).map(|(&id, _)| id)
    }

    /// Whether `member` votes.
    pub fn is_voter(&self, member: MemberId) -> bool {
        self.members.get(&member).is_some_and(|m| m.voter)
    }

    /// How many voters make a quorum: a majority.
    pub fn quorum(&self) -> usize {
        self.voters().count() / 2 + usize::from(!planted!(QuorumMinusOne))
    }

    /// Whether the voters among `members` are a quorum. Learners and strangers do not count.
    pub fn has_quorum(&self, members: &BTreeSet<MemberId>) -> bool {
        let counted = |m: &ConfiguredMember| m.voter || planted!(LearnerVotes);
        self.members.iter().filter(|(id, m)| counted(m) && members.contains(id)).count() >= self.quorum()
    }
}

/// The change that a configuration entry asks for: one voter or learner at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new learner.
    AddLearner {
        /// Its id, never used before in this cluster.
        member: MemberId,
        /// Its name.
        name: String,
    },
    /// A learner becomes a voter.
    Promote {
        /// Which.
        member: MemberId,
    },
    /// A voter or learner leaves for good.
    Remove {
        /// Which.
        member: MemberId,
    },
}

impl Change {
    /// Whom it is about.
    pub fn member(&self) -> MemberId {
        match self {
            Change::AddLearner { member, .. } | Change::Promote { member } | Change::Remove { member } => {
                *member
            }
        }
    }
}

/// What a configuration entry carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigurationEntry {
    /// The version that the change was planned from.
    pub expected_version: u64,
    /// A repeat is answered with what happened.
    pub operation: OperationId,
    /// The change.
    pub change: Change,
}

impl ConfigurationEntry {
    /// Checks what is asked for before it is proposed: the rule for names.
    ///
    /// # Errors
    /// Where the name of a new member is refused.
    pub fn validate(&self) -> Result<(), ChangeRefused> {
        match &self.change {
            Change::AddLearner { name, .. } if !planted!(UndecodableProposed) => Ok(names::check(name)?),
            Change::AddLearner { .. } | Change::Promote { .. } | Change::Remove { .. } => Ok(()),
        }
    }
}

/// Why a configuration entry has no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeRefused {
    /// The base is not the latest configuration.
    #[error("the configuration is at version {actual} now: look at it again and ask anew")]
    VersionMoved {
        /// The latest version.
        actual: u64,
    },
    /// An earlier change does not govern yet.
    #[error("version {version} is chosen but not in force yet: ask again when it is")]
    Pending {
        /// The pending version.
        version: u64,
    },
    /// Nobody by that id.
    #[error("{0} is not a member of this cluster: `members` lists them")]
    UnknownMember(MemberId),
    /// An id is used once only.
    #[error("{0} is or was a member already; an id is used once: renew its disk")]
    UsedMember(MemberId),
    /// Promote of a voter.
    #[error("{0} is a voter already")]
    AlreadyVoter(MemberId),
    /// A cluster keeps one voter at least.
    #[error("{0} is the last voter: a cluster keeps at least one")]
    LastVoter(MemberId),
    /// A new member's name that breaks the rule for names.
    #[error("the member's name is refused: {0}")]
    Name(#[from] NameError),
    /// Too many members.
    #[error("a cluster has at most {} members", limits::MEMBERS)]
    TooMany,
}

/// All configurations since the genesis, in order of version; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigurationHistory {
    alpha: u64,
    all: Vec<Configuration>,
    /// Every id that was ever removed and the slot of the entry that did it.
    removed: BTreeMap<MemberId, Slot>,
}

impl ConfigurationHistory {
    /// The history of a new cluster.
    pub fn new(genesis: &Genesis) -> ConfigurationHistory {
        let members = genesis.members.iter();
        let members = members.map(|(&id, name)| (id, ConfiguredMember { name: name.clone(), voter: true }));
        let first = Configuration {
            version: 1,
            slot: Slot(0),
            effective_from: Slot(1),
            members: members.collect(),
            operation: [0; 16],
            removed: None,
        };
        ConfigurationHistory {
            alpha: u64::from(genesis.alpha),
            all: Vec::from([first]),
            removed: BTreeMap::new(),
        }
    }

    /// The window.
    pub fn alpha(&self) -> u64 {
        self.alpha
    }

    /// The newest, in force or not.
    pub fn latest(&self) -> &Configuration {
        self.all.last().expect("a history is never empty")
    }

    /// conf(slot): the newest that governs `slot`, as far as this history goes.
    pub fn at(&self, slot: Slot) -> &Configuration {
        let governing = self.all.iter().rev().find(|c| c.effective_from <= slot);
        governing.unwrap_or(&self.all[0])
    }

    /// Every configuration that governs a slot from `from` on: conf(from) and all after it.
    pub fn from(&self, from: Slot) -> impl Iterator<Item = &Configuration> {
        let version = self.at(from).version;
        self.all.iter().filter(move |c| c.version >= version)
    }

    /// All, oldest first.
    pub fn all(&self) -> &[Configuration] {
        &self.all
    }

    /// The slot of the entry that removed `member`, if one did.
    pub fn removed_in(&self, member: MemberId) -> Option<Slot> {
        self.removed.get(&member).copied()
    }

    /// Every removed id.
    pub fn removed(&self) -> &BTreeMap<MemberId, Slot> {
        &self.removed
    }

    /// The configuration that `operation` made, if it is in the history.
    pub fn made_by(&self, operation: &OperationId) -> Option<&Configuration> {
        self.all.iter().rev().find(|c| c.version > 1 && c.operation == *operation)
    }

    /// Judges `entry` chosen in `slot` and, if it is valid, adds what it makes.
    ///
    /// Validity is judged at apply, from replicated state: the base is the latest version and none is
    /// pending (docs: protocol.md, "Configurations"). `slot` is pending while `slot < effective_from`.
    ///
    /// # Errors
    /// Why the entry has no effect; the same on every member.
    pub fn apply(&mut self, slot: Slot, entry: &ConfigurationEntry) -> Result<&Configuration, ChangeRefused> {
        let next = self.judge(slot, entry)?;
        if let Some((member, _)) = &next.removed {
            self.removed.insert(*member, slot);
        }
        self.all.push(next);
        if self.all.len() > limits::HISTORY {
            self.all.remove(0);
        }
        Ok(self.latest())
    }

    /// A new cluster begins behind `slot` with these voters: whoever was a member before is removed, and what was
    /// pending never comes into force.
    pub(crate) fn recover(&mut self, slot: Slot, members: BTreeMap<MemberId, String>) -> &Configuration {
        let latest = self.latest();
        let old: Vec<MemberId> = latest.members.keys().copied().collect();
        let next = Configuration {
            version: latest.version + 1,
            slot,
            effective_from: slot.next(),
            members: members
                .into_iter()
                .map(|(id, name)| (id, ConfiguredMember { name, voter: true }))
                .collect(),
            operation: [0; 16],
            removed: None,
        };
        old.into_iter().for_each(|member| {
            self.removed.insert(member, slot);
        });
        self.all.push(next);
        // More of them no version can read back.
        if self.all.len() > limits::HISTORY {
            self.all.remove(0);
        }
        self.latest()
    }

    /// What `entry` would make in `slot`.
    ///
    /// # Errors
    /// Why it would have no effect.
    pub fn judge(&self, slot: Slot, entry: &ConfigurationEntry) -> Result<Configuration, ChangeRefused> {
        let latest = self.latest();
        if entry.expected_version != latest.version && !planted!(InvalidBaseApplied) {
            return Err(ChangeRefused::VersionMoved { actual: latest.version });
        }
        if slot < latest.effective_from {
            return Err(ChangeRefused::Pending { version: latest.version });
        }
        let mut members = latest.members.clone();
        let mut removed = None;
        match &entry.change {
            Change::AddLearner { member, name } => {
                if members.contains_key(member)
                    || self.removed.contains_key(member)
                    || *member == MemberId::NONE
                {
                    return Err(ChangeRefused::UsedMember(*member));
                }
                if members.len() >= limits::MEMBERS {
                    return Err(ChangeRefused::TooMany);
                }
                members.insert(*member, ConfiguredMember { name: name.clone(), voter: false });
            }
            Change::Promote { member } => {
                let configured = members.get_mut(member).ok_or(ChangeRefused::UnknownMember(*member))?;
                if configured.voter {
                    return Err(ChangeRefused::AlreadyVoter(*member));
                }
                configured.voter = true;
            }
            Change::Remove { member } => {
                let gone = members.remove(member).ok_or(ChangeRefused::UnknownMember(*member))?;
                if !members.values().any(|m| m.voter) {
                    return Err(ChangeRefused::LastVoter(*member));
                }
                removed = Some((*member, gone.name));
            }
        }
        Ok(Configuration {
            version: latest.version + 1,
            slot,
            effective_from: slot.plus(self.alpha - u64::from(planted!(GovernsEarly))),
            members,
            operation: entry.operation,
            removed,
        })
    }

    /// The bug that the mutation tests plant: a snapshot at `slot` without what is chosen and not in force.
    pub(crate) fn forget_pending(&mut self, slot: Slot) {
        while self.all.len() > 1 && self.latest().effective_from > slot.next() {
            self.all.pop();
        }
    }

    pub(crate) fn encode(&self, w: &mut Writer) {
        w.u64(self.alpha);
        w.length(self.all.len());
        for c in &self.all {
            w.u64(c.version);
            w.u64(c.slot.0);
            w.u64(c.effective_from.0);
            w.array(&c.operation);
            w.length(c.members.len());
            for (id, m) in &c.members {
                w.u64(id.0);
                w.bool(m.voter);
                w.bytes(m.name.as_bytes());
            }
            w.bool(c.removed.is_some());
            if let Some((id, name)) = &c.removed {
                w.u64(id.0);
                w.bytes(name.as_bytes());
            }
        }
        w.length(self.removed.len());
        for (id, slot) in &self.removed {
            w.u64(id.0);
            w.u64(slot.0);
        }
    }

    pub(crate) fn decode(r: &mut Reader) -> Result<ConfigurationHistory, DecodeError> {
        let alpha = r.u64()?;
        let count = r.length("configurations", limits::HISTORY, 40)?;
        let mut all = Vec::with_capacity(count);
        for _ in 0..count {
            let (version, slot, effective_from) = (r.u64()?, Slot(r.u64()?), Slot(r.u64()?));
            let operation = r.array()?;
            let mut members = BTreeMap::new();
            for _ in 0..r.length("members", limits::MEMBERS, 13)? {
                let id = MemberId(r.u64()?);
                let voter = r.bool()?;
                members.insert(id, ConfiguredMember { name: r.text("name", limits::NAME_BYTES)?, voter });
            }
            let removed = if r.bool()? {
                Some((MemberId(r.u64()?), r.text("name", limits::NAME_BYTES)?))
            } else {
                None
            };
            all.push(Configuration { version, slot, effective_from, members, operation, removed });
        }
        if all.is_empty() {
            return Err(DecodeError::OutOfBounds { what: "configurations", found: 0 });
        }
        let mut removed = BTreeMap::new();
        for _ in 0..r.length("removed members", usize::MAX, 16)? {
            removed.insert(MemberId(r.u64()?), Slot(r.u64()?));
        }
        Ok(ConfigurationHistory { alpha, all, removed })
    }
}
