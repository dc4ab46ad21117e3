//! The replicated settings, as far as the custom resource speaks of them: what every member goes by from the
//! log entry on that sets it, and never by a ConfigMap read at different times by different members.
//!
//! docs: operator-rules.md, rule 10.

use crate::crd::FirstSettings;

/// Settings as values that can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `spec.election.heartbeat`, in milliseconds.
    pub heartbeat_ms: u32,
    /// `spec.election.timeout`, in milliseconds; at least ten heartbeats.
    pub election_timeout_ms: u32,
    /// `spec.reads.leases`.
    pub leases: bool,
    /// `spec.reads.maxClockDrift`, in percent.
    pub clock_drift_percent: u32,
    /// `spec.retention`.
    pub retention: Retention,
}

/// How much of the log is kept; `None`: no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// The newest so many entries.
    pub entries: Option<u64>,
    /// The newest so many bytes of entries.
    pub bytes: Option<u64>,
    /// What is younger than so many milliseconds.
    pub age_ms: Option<u64>,
}

impl From<Settings> for FirstSettings {
    fn from(settings: Settings) -> FirstSettings {
        FirstSettings {
            heartbeat_ms: settings.heartbeat_ms,
            election_timeout_ms: settings.election_timeout_ms,
            leases: settings.leases,
            clock_drift_percent: settings.clock_drift_percent,
            max_entries: settings.retention.entries,
            max_bytes: settings.retention.bytes,
            max_age_ms: settings.retention.age_ms,
        }
    }
}

impl From<&FirstSettings> for Settings {
    fn from(first: &FirstSettings) -> Settings {
        Settings {
            heartbeat_ms: first.heartbeat_ms,
            election_timeout_ms: first.election_timeout_ms,
            leases: first.leases,
            clock_drift_percent: first.clock_drift_percent,
            retention: Retention {
                entries: first.max_entries,
                bytes: first.max_bytes,
                age_ms: first.max_age_ms,
            },
        }
    }
}

/// Settings in force, as a member has applied them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InForce {
    /// A change names the version it was planned from.
    pub version: u64,
    /// The values.
    pub values: Settings,
}
