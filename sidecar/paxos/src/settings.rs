//! What every member must judge alike and a person may change: replicated, versioned, changed by a log entry
//! (docs: protocol.md, "Sessions": limits are part of the replicated configuration, never a flag).

use crate::codec::{DecodeError, Reader, Writer};
use crate::limits;
use core::time::Duration;

/// The longest span that settings may name: 100 years. In nanoseconds it takes less than 64 bits.
const LONGEST_SPAN: Duration = Duration::from_secs(100 * 365 * 24 * 3_600);

/// A disk that takes 20 ms for a sync still lets a leader speak in time, and ten heartbeats are time enough for an
/// election and the entry that changes these settings back.
const SHORTEST_HEARTBEAT: Duration = Duration::from_millis(20);
/// Nobody leads for up to two timeouts after a leader is lost.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Election timing; replicated, so that no two members judge by different settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElectionSettings {
    /// How often a leader speaks; at least 20 ms. Default 100 ms.
    pub heartbeat: Duration,
    /// How long silence is borne, and how long a lease lasts; 10 heartbeats to 60 s. Default 1 s.
    pub timeout: Duration,
}

impl Default for ElectionSettings {
    fn default() -> Self {
        ElectionSettings { heartbeat: Duration::from_millis(100), timeout: Duration::from_secs(1) }
    }
}

/// Bounds that decide what an entry means. They lie within [`limits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// An entry's payload. Default and most: [`limits::ENTRY_BYTES`].
    pub entry_bytes: u32,
    /// A call's payload. Default and most: [`limits::BATCH_BYTES`].
    pub call_bytes: u32,
    /// Sessions, their remembered calls and idempotency keys, together. Default 100,000.
    pub session_rows: u32,
    /// A session that was not used for so long, in log time, is expired. Default 1 h.
    pub session_idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            entry_bytes: limits::ENTRY_BYTES as u32,
            call_bytes: limits::BATCH_BYTES as u32,
            session_rows: 100_000,
            session_idle: Duration::from_secs(3_600),
        }
    }
}

/// What the log keeps. What is beyond any of the bounds set may be trimmed; without a bound nothing is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// The newest so many entries.
    pub entries: Option<u64>,
    /// The newest so many bytes of payload.
    pub bytes: Option<u64>,
    /// What is younger, in log time.
    pub age: Option<Duration>,
}

/// The settings in force after an applied slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// 1 for the genesis, +1 for each change.
    pub version: u64,
    /// Election timing.
    pub election: ElectionSettings,
    /// Leaders read locally under a lease. Default: no, since leases trust clocks' rates.
    pub leases: bool,
    /// How far the rates of two members' clocks may differ, in hundredths; leases are counted shorter by it.
    /// Default 5, at most 20.
    pub clock_drift_percent: u32,
    /// Bounds on entries, calls and sessions.
    pub limits: Limits,
    /// What the log keeps.
    pub retention: Retention,
    /// How many slots lie between two points at which members compare their chains. Default 1,024.
    pub chain_interval: u32,
    /// The format that entries may use; it never falls.
    pub format_level: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            version: 1,
            election: ElectionSettings::default(),
            leases: false,
            clock_drift_percent: 5,
            limits: Limits::default(),
            retention: Retention::default(),
            chain_interval: 1_024,
            format_level: Settings::FORMAT_LEVEL,
        }
    }
}

/// Why settings are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Election timing that a slow disk or link does not survive, or that leaves the log without a leader for too long.
    #[error(
        "a heartbeat must be at least 20 ms, and the election timeout between ten heartbeats and 60 s: with less a slow \
         disk or link costs the leader, again and again; with more nobody leads for minutes after a failure"
    )]
    Election,
    /// A limit of zero or above what any version of this program bears.
    #[error(
        "entries may have 1 to {} bytes, calls at least as many and at most {}; the session table 16 to {} rows; \
         sessions 1 s to 100 years of idle time",
        limits::ENTRY_BYTES,
        limits::BATCH_BYTES,
        limits::SESSION_ROWS
    )]
    Limits,
    /// A retention that is stored as none.
    #[error(
        "a retention keeps fewer than 2^64 - 1 entries and bytes, and what is younger than 100 years at most"
    )]
    Retention,
    /// A drift that no lease survives.
    #[error("clocks may differ by 0 to 20 hundredths of their rates")]
    ClockDrift,
    /// The interval of the chain comparison.
    #[error("chains are compared every 1 to 1,048,576 slots")]
    ChainInterval,
    /// The base is not the version in force.
    #[error("the settings are at version {actual} now: look at them again and ask anew")]
    VersionMoved {
        /// The version in force.
        actual: u64,
    },
    /// A level that falls, or rises by more than one, or that this program cannot read.
    #[error("the format level is {actual} and rises by one at a time, when every member can read it")]
    FormatLevel {
        /// The level in force.
        actual: u32,
    },
}

impl Settings {
    /// The newest format level that this program reads.
    pub const FORMAT_LEVEL: u32 = 4;
    /// The level from which on entries have times.
    pub const TIMES: u32 = 4;

    /// Checks settings that are asked for. What passes is read back by every member as it was meant.
    ///
    /// # Errors
    /// The first bound that does not hold.
    pub fn validate(&self) -> Result<(), SettingsError> {
        let ElectionSettings { heartbeat, timeout } = self.election;
        if heartbeat < SHORTEST_HEARTBEAT || timeout < heartbeat * 10 || timeout > LONGEST_TIMEOUT {
            return Err(SettingsError::Election);
        }
        self.validate_but_election()
    }

    /// Checks settings that are asked for in the place of `now`. Election timing from before the bounds may stay.
    ///
    /// # Errors
    /// The first bound that does not hold.
    pub fn validate_change(&self, now: &Settings) -> Result<(), SettingsError> {
        if self.election == now.election { self.validate_but_election() } else { self.validate() }
    }

    fn validate_but_election(&self) -> Result<(), SettingsError> {
        self.check_readable()?;
        // The largest number of each is stored for "no bound", and spans are stored in nanoseconds.
        let Retention { entries, bytes, age } = self.retention;
        let counts = [entries, bytes].into_iter().flatten();
        if counts.max() == Some(u64::MAX) || age.is_some_and(|age| age > LONGEST_SPAN) {
            return Err(SettingsError::Retention);
        }
        if self.limits.session_idle > LONGEST_SPAN {
            return Err(SettingsError::Limits);
        }
        Ok(())
    }

    /// The bounds of every version: within them settings are read back, and decided alike by every version.
    pub(crate) fn check_readable(&self) -> Result<(), SettingsError> {
        let ElectionSettings { heartbeat, timeout } = self.election;
        let spans = Duration::from_millis(1)..=Duration::from_secs(3_600);
        if !spans.contains(&heartbeat) || !spans.contains(&timeout) || timeout < heartbeat * 5 {
            return Err(SettingsError::Election);
        }
        let Limits { entry_bytes, call_bytes, session_rows, session_idle } = self.limits;
        let fits = (1..=limits::ENTRY_BYTES as u32).contains(&entry_bytes)
            && (entry_bytes..=limits::BATCH_BYTES as u32).contains(&call_bytes)
            && (16..=limits::SESSION_ROWS as u32).contains(&session_rows)
            && session_idle >= Duration::from_secs(1);
        if !fits {
            return Err(SettingsError::Limits);
        }
        if self.clock_drift_percent > 20 {
            return Err(SettingsError::ClockDrift);
        }
        if !(1..=1 << 20).contains(&self.chain_interval) {
            return Err(SettingsError::ChainInterval);
        }
        if !(1..=Settings::FORMAT_LEVEL).contains(&self.format_level) {
            return Err(SettingsError::FormatLevel { actual: Settings::FORMAT_LEVEL });
        }
        Ok(())
    }

    /// Judges `next` as the successor of these settings and adopts it under the next version. Decided at
    /// apply: two changes from one base cannot both take effect.
    ///
    /// # Errors
    /// Why nothing changes; the same on every member.
    pub fn change(&mut self, expected_version: u64, next: Settings) -> Result<Settings, SettingsError> {
        if expected_version != self.version {
            return Err(SettingsError::VersionMoved { actual: self.version });
        }
        // Level 1 decides as the version before does.
        if self.format_level >= 2 {
            next.validate_change(self)?;
        } else {
            next.check_readable()?;
        }
        if next.format_level != self.format_level && next.format_level != self.format_level + 1 {
            return Err(SettingsError::FormatLevel { actual: self.format_level });
        }
        *self = Settings { version: self.version + 1, ..next };
        Ok(*self)
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        w.u64(self.version);
        w.u32(self.format_level);
        w.u64(nanos(self.election.heartbeat));
        w.u64(nanos(self.election.timeout));
        w.bool(self.leases);
        w.u32(self.clock_drift_percent);
        w.u32(self.limits.entry_bytes);
        w.u32(self.limits.call_bytes);
        w.u32(self.limits.session_rows);
        w.u64(nanos(self.limits.session_idle));
        w.u64(self.retention.entries.unwrap_or(u64::MAX));
        w.u64(self.retention.bytes.unwrap_or(u64::MAX));
        w.u64(self.retention.age.map_or(u64::MAX, nanos));
        w.u32(self.chain_interval);
    }

    pub(crate) fn read(r: &mut Reader) -> Result<Settings, DecodeError> {
        let bound = |n: u64| (n != u64::MAX).then_some(n);
        let version = r.u64()?;
        let format_level = r.u32()?;
        if format_level == 0 || format_level > Self::FORMAT_LEVEL {
            return Err(DecodeError::Unknown { what: "format level", found: u64::from(format_level) });
        }
        let heartbeat = Duration::from_nanos(r.u64()?);
        let timeout = Duration::from_nanos(r.u64()?);
        let settings = Settings {
            version,
            format_level,
            election: ElectionSettings { heartbeat, timeout },
            leases: r.bool()?,
            clock_drift_percent: r.u32()?,
            limits: Limits {
                entry_bytes: r.u32()?,
                call_bytes: r.u32()?,
                session_rows: r.u32()?,
                session_idle: Duration::from_nanos(r.u64()?),
            },
            retention: Retention {
                entries: bound(r.u64()?),
                bytes: bound(r.u64()?),
                age: bound(r.u64()?).map(Duration::from_nanos),
            },
            chain_interval: r.u32()?,
        };
        match settings.check_readable() {
            Ok(()) => Ok(settings),
            Err(_) => Err(DecodeError::OutOfBounds { what: "settings", found: version }),
        }
    }
}

pub(crate) fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
