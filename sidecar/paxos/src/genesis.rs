//! The first configuration: what `Initialize` hands to every founding member.

use crate::codec::{DecodeError, Reader, Writer};
use crate::limits;
use crate::names::{self, NameError};
use crate::settings::{Settings, SettingsError};
use crate::types::{ClusterId, Digest, MemberId};
use alloc::collections::BTreeMap;
use alloc::string::String;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

/// (cluster id, members, alpha, and the first settings: format level, limits, election timing); docs: protocol.md, "Configurations".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Genesis {
    /// The new cluster's.
    pub cluster: ClusterId,
    /// The founding voters and their names. Between 1 and [`limits::MEMBERS`].
    pub members: BTreeMap<MemberId, String>,
    /// A configuration entry chosen in slot i governs from slot i + alpha on.
    pub alpha: u32,
    /// The settings in force until a log entry changes them: format level, limits, election timing.
    pub settings: Settings,
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
    /// Settings beyond their bounds.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A member's name that breaks the rule for names.
    #[error("a member's name is refused: {0}")]
    Name(#[from] NameError),
}

impl Genesis {
    /// The default window.
    pub const DEFAULT_ALPHA: u32 = 64;

    /// A genesis with the default window and timing.
    pub fn new(cluster: ClusterId, members: BTreeMap<MemberId, String>) -> Genesis {
        Genesis { cluster, members, alpha: Self::DEFAULT_ALPHA, settings: Settings::default() }
    }

    /// Checks a genesis that is asked for: every bound, and the rule for names.
    ///
    /// # Errors
    /// The first bound that does not hold.
    pub fn validate(&self) -> Result<(), GenesisError> {
        self.check_readable()?;
        self.members.values().try_for_each(|name| names::check(name))?;
        Ok(self.settings.validate()?)
    }

    /// The bounds of every version: within them a genesis is read back.
    fn check_readable(&self) -> Result<(), GenesisError> {
        let count = self.members.len();
        if count == 0 || count > limits::MEMBERS || self.members.contains_key(&MemberId::NONE) {
            return Err(GenesisError::Members);
        }
        if let Some(name) = self.members.values().find(|name| name.len() > limits::NAME_BYTES) {
            return Err(NameError::TooLong { bytes: name.len() }.into());
        }
        if !limits::ALPHA.contains(&self.alpha) {
            return Err(GenesisError::Alpha);
        }
        Ok(self.settings.check_readable()?)
    }

    /// Whether both found the same cluster. The first format level is left out: the program that takes the request
    /// chooses it, and a repeat may come to a newer one.
    pub(crate) fn founds_the_same(&self, other: &Genesis) -> bool {
        let settings = Settings { format_level: other.settings.format_level, ..self.settings };
        Genesis { settings, ..self.clone() } == *other
    }

    /// The bytes that are stored, sent and digested.
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(128 + self.members.len() * 40);
        self.settings.write(&mut w);
        w.array(&self.cluster.0);
        w.u32(self.alpha);
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
        let settings = Settings::read(&mut r)?;
        let cluster = ClusterId(r.array()?);
        let alpha = r.u32()?;
        let count = r.length("members", limits::MEMBERS, 12)?;
        let mut members = BTreeMap::new();
        for _ in 0..count {
            let member = MemberId(r.u64()?);
            members.insert(member, r.text("name", limits::NAME_BYTES)?);
        }
        r.end()?;
        let genesis = Genesis { cluster, members, alpha, settings };
        if genesis.members.len() != count || genesis.check_readable().is_err() {
            return Err(DecodeError::OutOfBounds { what: "genesis", found: count as u64 });
        }
        Ok(genesis)
    }

    /// What is compared in every handshake.
    pub fn digest(&self) -> Digest {
        Digest(Sha256::digest(self.encode()).into())
    }
}
