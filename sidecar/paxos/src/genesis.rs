//! The first configuration: what `Initialize` hands to every founding member.

use crate::codec::{DecodeError, Reader, Writer};
use crate::limits;
use crate::types::{ClusterId, Digest, MemberId};
use alloc::collections::BTreeMap;
use alloc::string::String;
use bytes::Bytes;
use core::time::Duration;
use sha2::{Digest as _, Sha256};

/// Election timing; replicated, so that no two members judge by different clocks' settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElectionSettings {
    /// How often a leader speaks. Default 100 ms.
    pub heartbeat: Duration,
    /// How long silence is borne; at least 5 heartbeats. Default 1 s.
    pub timeout: Duration,
}

impl Default for ElectionSettings {
    fn default() -> Self {
        ElectionSettings { heartbeat: Duration::from_millis(100), timeout: Duration::from_secs(1) }
    }
}

/// (cluster id, members, alpha, format level, election settings); docs: protocol.md, "Configurations".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Genesis {
    /// The new cluster's.
    pub cluster: ClusterId,
    /// The founding voters and their names. Between 1 and [`limits::MEMBERS`].
    pub members: BTreeMap<MemberId, String>,
    /// A configuration entry chosen in slot i governs from slot i + alpha on.
    pub alpha: u32,
    /// The format that every member must be able to read.
    pub format_level: u32,
    /// Election timing.
    pub election: ElectionSettings,
}

/// Why a genesis is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GenesisError {
    /// No member, too many, or the id 0.
    #[error("a cluster needs between 1 and {} members, each with an id other than 0", limits::MEMBERS)]
    Members,
    /// Alpha out of its range.
    #[error("alpha must lie between {} and {}", limits::ALPHA.start(), limits::ALPHA.end())]
    Alpha,
    /// A heartbeat of zero or a timeout under five heartbeats.
    #[error("the election timeout must be at least five heartbeats, and a heartbeat at least 1 ms")]
    Election,
    /// A name too long.
    #[error("a member's name must be at most {} bytes", limits::NAME_BYTES)]
    Name,
}

impl Genesis {
    /// The format level of this program.
    pub const FORMAT_LEVEL: u32 = 1;
    /// The default window.
    pub const DEFAULT_ALPHA: u32 = 64;

    /// A genesis with the default window and timing.
    pub fn new(cluster: ClusterId, members: BTreeMap<MemberId, String>) -> Genesis {
        Genesis {
            cluster,
            members,
            alpha: Self::DEFAULT_ALPHA,
            format_level: Self::FORMAT_LEVEL,
            election: ElectionSettings::default(),
        }
    }

    /// Checks the bounds.
    ///
    /// # Errors
    /// The first bound that does not hold.
    pub fn validate(&self) -> Result<(), GenesisError> {
        let count = self.members.len();
        if count == 0 || count > limits::MEMBERS || self.members.contains_key(&MemberId::NONE) {
            return Err(GenesisError::Members);
        }
        if self.members.values().any(|name| name.len() > limits::NAME_BYTES) {
            return Err(GenesisError::Name);
        }
        if !limits::ALPHA.contains(&self.alpha) {
            return Err(GenesisError::Alpha);
        }
        let ElectionSettings { heartbeat, timeout } = self.election;
        let bounds = Duration::from_millis(1)..=Duration::from_secs(3_600);
        if !bounds.contains(&heartbeat) || !bounds.contains(&timeout) || timeout < heartbeat * 5 {
            return Err(GenesisError::Election);
        }
        Ok(())
    }

    /// The bytes that are stored, sent and digested.
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(64 + self.members.len() * 40);
        w.u32(self.format_level);
        w.array(&self.cluster.0);
        w.u32(self.alpha);
        w.u64(nanos(self.election.heartbeat));
        w.u64(nanos(self.election.timeout));
        w.length(self.members.len());
        for (member, name) in &self.members {
            w.u64(member.0);
            w.bytes(name.as_bytes());
        }
        w.finish()
    }

    /// Reads what [`Genesis::encode`] wrote.
    ///
    /// # Errors
    /// Where the bytes are not a genesis, or one beyond the bounds.
    pub fn decode(bytes: Bytes) -> Result<Genesis, DecodeError> {
        let mut r = Reader::new(bytes);
        let format_level = r.u32()?;
        if format_level != Self::FORMAT_LEVEL {
            return Err(DecodeError::Unknown { what: "format level", found: u64::from(format_level) });
        }
        let cluster = ClusterId(r.array()?);
        let alpha = r.u32()?;
        let heartbeat = Duration::from_nanos(r.u64()?);
        let timeout = Duration::from_nanos(r.u64()?);
        let count = r.length("members", limits::MEMBERS, 12)?;
        let mut members = BTreeMap::new();
        for _ in 0..count {
            let member = MemberId(r.u64()?);
            members.insert(member, r.text("name", limits::NAME_BYTES)?);
        }
        r.end()?;
        let genesis = Genesis {
            cluster,
            members,
            alpha,
            format_level,
            election: ElectionSettings { heartbeat, timeout },
        };
        if genesis.members.len() != count || genesis.validate().is_err() {
            return Err(DecodeError::OutOfBounds { what: "genesis", found: count as u64 });
        }
        Ok(genesis)
    }

    /// What is compared in every handshake.
    pub fn digest(&self) -> Digest {
        Digest(Sha256::digest(self.encode()).into())
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
