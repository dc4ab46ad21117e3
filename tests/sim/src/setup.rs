//! What a run begins with.

use crate::action::Wanted;
use serde::{Deserialize, Serialize};
use synod_paxos::{ClusterId, Genesis, MemberId};

/// What a run begins with: the first line of an event file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// Where it came from.
    pub seed: u64,
    /// The founding members.
    pub founders: Vec<u64>,
    /// The window of slots between a configuration entry and its effect.
    pub alpha: u32,
    /// The first settings.
    #[serde(flatten)]
    pub settings: Wanted,
    /// Simulated applications.
    pub clients: usize,
    /// Bytes that fill every entry up.
    #[serde(default)]
    pub padding: usize,
    /// The members go by bounds in bytes that are so many times smaller.
    #[serde(default = "one")]
    pub divisor: usize,
    /// The members' disks hold the real storage engine, on files in memory.
    #[serde(default)]
    pub files: bool,
}

fn one() -> usize {
    1
}

impl Setup {
    /// What `Initialize` gives to the founders.
    pub(crate) fn genesis(&self) -> Genesis {
        let mut cluster = [0; 16];
        cluster[..8].copy_from_slice(&self.seed.to_le_bytes());
        let members = self.founders.iter().map(|id| (MemberId(*id), format!("m{id}"))).collect();
        let mut genesis = Genesis::new(ClusterId(cluster), members);
        genesis.alpha = self.alpha;
        genesis.settings = self.settings.settings();
        genesis
    }
}
