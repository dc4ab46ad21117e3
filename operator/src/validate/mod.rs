//! From a PaxosCluster as it was written to a [`Desired`] that later stages can trust. Pure.
//!
//! The API server has checked the schema and its rules already; what is checked here is what CEL cannot
//! see (raw parts of the template) and what an object stored before a rule existed may still hold.

mod template;

use serde_json::Value;
use thiserror::Error;

use crate::crd::{PaxosCluster, PaxosClusterSpec, TlsMode};
use crate::names::ClusterName;
use crate::settings::{Retention, Settings};

/// The smallest volume that holds a log and the reserve of its disk.
const MIN_STORAGE: u64 = 64 << 20;

/// What the user asked for, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// Where it lives.
    pub name: ClusterName,
    /// The spec as written.
    pub spec: PaxosClusterSpec,
    /// Members wanted, 0 to 15.
    pub replicas: u32,
    /// Most members that vote, odd.
    pub max_voters: u32,
    /// Image of the sidecar.
    pub image: String,
    /// Size of each volume in bytes.
    pub storage_bytes: u64,
    /// What the log's settings shall be.
    pub settings: Settings,
    /// Seconds a step may take before the cluster is reported as stalled.
    pub deadline_seconds: i64,
    /// How long the node of a bound volume must have been gone before its member is replaced, in
    /// milliseconds.
    pub replace_after_ms: u64,
    /// Parts of the spec that cannot be carried out: told, and left as they stand. Everything else goes on.
    pub faults: Vec<Fault>,
}

/// A part of the spec that cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which.
    pub part: Part,
    /// Why, and what to do.
    pub why: Invalid,
}

/// A part of the spec that can be at fault alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `template`: the pods stay as they are.
    Template,
    /// `election`, `reads`, `retention`: the log's settings stay as they are.
    Settings,
    /// `storage`: no volume is changed and none given up.
    Storage,
    /// `tls`.
    Tls,
}

impl Desired {
    /// Members that should vote.
    pub fn voters(&self) -> u32 {
        self.replicas.min(self.max_voters)
    }

    /// Whether a part of the spec is at fault.
    pub fn is_at_fault(&self, part: Part) -> bool {
        self.faults.iter().any(|f| f.part == part)
    }

    /// Whether the pods hold containers of the user's.
    pub fn has_application(&self) -> bool {
        let spec = self.spec.template.as_ref().and_then(|t| t.get("spec")).and_then(Value::as_object);
        spec.is_some_and(|spec| objects(spec, "containers").next().is_some())
    }
}

/// Why a spec cannot be carried out, and what to do.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Invalid {
    /// The object lacks what the API server always sets.
    #[error("the object has no {0}: it does not come from an API server")]
    NoMetadata(&'static str),
    /// A number is out of bounds.
    #[error("spec.{field} is {value}: it must be between {low} and {high}; edit the PaxosCluster")]
    OutOfBounds {
        /// The field.
        field: &'static str,
        /// Its value.
        value: i64,
        /// Smallest value.
        low: i64,
        /// Greatest value.
        high: i64,
    },
    /// A text does not parse.
    #[error("spec.{field} is '{value}': {hint}; edit the PaxosCluster")]
    Malformed {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it should look like.
        hint: &'static str,
    },
    /// Election timing that a slow disk or link does not survive, or that leaves a log without a leader for too long.
    #[error(
        "spec.election.heartbeat must be at least 20ms, and spec.election.timeout between ten heartbeats and 60s; \
         edit the PaxosCluster"
    )]
    Election,
    /// The template uses what is reserved or refused.
    #[error("spec.template: {0}")]
    Template(String),
    /// `Provided` without a Secret.
    #[error("spec.tls.mode Provided needs spec.tls.secretName; name the Secret that holds the pairs")]
    NoSecret,
}

/// Checks a PaxosCluster. `image` is the operator's default for the sidecar, `domain` the DNS domain. What is
/// wrong with one part of the spec is a fault of that part: a bad template must not keep a lost disk from being
/// replaced.
///
/// # Errors
/// Where nothing can be carried out at all, with what to do about it.
pub fn validate(cluster: &PaxosCluster, image: &str, domain: &str) -> Result<Desired, Invalid> {
    let meta = &cluster.metadata;
    let spec = cluster.spec.clone();
    let name = ClusterName {
        namespace: meta.namespace.clone().ok_or(Invalid::NoMetadata("namespace"))?,
        name: meta.name.clone().ok_or(Invalid::NoMetadata("name"))?,
        uid: meta.uid.clone().ok_or(Invalid::NoMetadata("uid"))?,
        domain: domain.to_owned(),
    };
    let replicas = bounded("replicas", spec.replicas.into(), 0, 15)?;
    let max_voters = bounded("maxVoters", spec.max_voters.into(), 1, 15)?;
    let mut faults = Vec::new();
    let mut fault = |part, why| faults.push(Fault { part, why });
    let storage_bytes = storage_bytes(&spec).unwrap_or_else(|why| {
        fault(Part::Storage, why);
        0
    });
    let replace_after_ms = replace_after(&spec).unwrap_or_else(|why| {
        fault(Part::Storage, why);
        u64::MAX
    });
    let settings = settings(&spec).unwrap_or_else(|why| {
        fault(Part::Settings, why);
        Settings {
            heartbeat_ms: 100,
            election_timeout_ms: 1000,
            leases: false,
            clock_drift_percent: 5,
            retention: Retention::default(),
        }
    });
    if spec.tls.mode == TlsMode::Provided && spec.tls.secret_name.is_none() {
        fault(Part::Tls, Invalid::NoSecret);
    }
    if let Some(template) = &spec.template {
        let mut secrets = vec![name.tls_secret(), name.ca_secret()];
        secrets.extend(spec.tls.secret_name.clone());
        if let Err(why) = template::check(template, &name, &secrets) {
            fault(Part::Template, Invalid::Template(why));
        }
    }
    Ok(Desired {
        replicas,
        max_voters,
        image: spec.image.clone().unwrap_or_else(|| image.to_owned()),
        storage_bytes,
        settings,
        deadline_seconds: spec.progress_deadline_seconds,
        replace_after_ms,
        faults,
        name,
        spec,
    })
}

fn storage_bytes(spec: &PaxosClusterSpec) -> Result<u64, Invalid> {
    parse_quantity(&spec.storage.size).filter(|b| *b >= MIN_STORAGE).ok_or_else(|| Invalid::Malformed {
        field: "storage.size",
        value: spec.storage.size.clone(),
        hint: "it must be a quantity of at least 64Mi, such as 10Gi",
    })
}

fn settings(spec: &PaxosClusterSpec) -> Result<Settings, Invalid> {
    let heartbeat_ms = millis("election.heartbeat", &spec.election.heartbeat)?;
    let election_timeout_ms = millis("election.timeout", &spec.election.timeout)?;
    if heartbeat_ms < 20 || election_timeout_ms / 10 < heartbeat_ms || election_timeout_ms > 60_000 {
        return Err(Invalid::Election);
    }
    Ok(Settings {
        heartbeat_ms,
        election_timeout_ms,
        leases: spec.reads.leases,
        clock_drift_percent: percent("reads.maxClockDrift", &spec.reads.max_clock_drift, 20)?,
        retention: retention(spec)?,
    })
}

fn replace_after(spec: &PaxosClusterSpec) -> Result<u64, Invalid> {
    let text = &spec.storage.replace_lost.after;
    age(text).ok_or_else(|| Invalid::Malformed {
        field: "storage.replaceLost.after",
        value: text.clone(),
        hint: "it must be a duration in s, m or h, such as 5m",
    })
}

fn bounded(field: &'static str, value: i64, low: u32, high: u32) -> Result<u32, Invalid> {
    let range = i64::from(low)..=i64::from(high);
    match u32::try_from(value) {
        Ok(v) if range.contains(&value) => Ok(v),
        _ => Err(Invalid::OutOfBounds { field, value, low: low.into(), high: high.into() }),
    }
}

fn percent(field: &'static str, text: &str, high: u32) -> Result<u32, Invalid> {
    let number = text.strip_suffix('%').and_then(|n| n.parse::<u32>().ok());
    number.filter(|n| *n <= high).ok_or(Invalid::Malformed {
        field,
        value: text.to_owned(),
        hint: "it must be a whole percentage from 0% to 20%, such as 5%",
    })
}

fn retention(spec: &PaxosClusterSpec) -> Result<Retention, Invalid> {
    let Some(wanted) = &spec.retention else { return Ok(Retention::default()) };
    let malformed = |field, value: &str, hint| Invalid::Malformed { field, value: value.to_owned(), hint };
    let entries = wanted.max_entries.map(|count| match u64::try_from(count) {
        Ok(count @ 1..) => Ok(count),
        _ => Err(malformed("retention.maxEntries", &count.to_string(), "it must be 1 or more")),
    });
    let bytes = wanted.max_bytes.as_deref().map(|text| {
        let hint = "it must be a quantity above zero, such as 5Gi";
        parse_quantity(text).filter(|n| *n > 0).ok_or_else(|| malformed("retention.maxBytes", text, hint))
    });
    let age_ms = wanted.max_age.as_deref().map(|text| {
        let hint = "it must be a duration above zero in ms, s, m or h, such as 168h";
        age(text).filter(|n| *n > 0).ok_or_else(|| malformed("retention.maxAge", text, hint))
    });
    Ok(Retention { entries: entries.transpose()?, bytes: bytes.transpose()?, age_ms: age_ms.transpose()? })
}

/// A duration of one number and one unit, in milliseconds.
fn age(text: &str) -> Option<u64> {
    let units = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
    let (number, unit) = units.iter().find_map(|(unit, ms)| Some((text.strip_suffix(unit)?, *ms)))?;
    number.parse::<u64>().ok()?.checked_mul(unit)
}

fn millis(field: &'static str, text: &str) -> Result<u32, Invalid> {
    let parsed = match text.strip_suffix("ms") {
        Some(n) => n.parse::<u32>().ok(),
        None => text.strip_suffix('s').and_then(|n| n.parse::<u32>().ok()).and_then(|n| n.checked_mul(1000)),
    };
    parsed.filter(|ms| *ms > 0).ok_or(Invalid::Malformed {
        field,
        value: text.to_owned(),
        hint: "it must be a duration above zero in ms or s, such as 100ms",
    })
}

/// A Kubernetes quantity as a whole number, rounded up; `None` where it is none or does not fit.
/// Suffixes as in the Kubernetes API: n, u, m, k, M, G, T, P, E, Ki to Ei, and decimal exponents.
pub fn parse_quantity(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '+')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let number = number.strip_prefix('+').unwrap_or(number);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || fraction.len() > 9 {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let (numerator, denominator) = scale(suffix)?;
    let denominator = denominator * 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let scaled = digits.checked_mul(numerator)?;
    u64::try_from(scaled.div_ceil(denominator)).ok()
}

/// A suffix as a fraction.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    const K: u128 = 1024;
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (K, 1),
        "Mi" => (K.pow(2), 1),
        "Gi" => (K.pow(3), 1),
        "Ti" => (K.pow(4), 1),
        "Pi" => (K.pow(5), 1),
        "Ei" => (K.pow(6), 1),
        other => {
            let exponent: i32 = other.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10u128.checked_pow(exponent.unsigned_abs())?;
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    })
}

pub(crate) fn objects<'a>(
    parent: &'a serde_json::Map<String, Value>,
    key: &str,
) -> impl Iterator<Item = &'a serde_json::Map<String, Value>> {
    parent.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object)
}

pub(crate) fn text<'a>(parent: &'a serde_json::Map<String, Value>, key: &str) -> &'a str {
    parent.get(key).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut PaxosClusterSpec)) -> Result<Desired, Invalid> {
        let mut spec = PaxosClusterSpec::default();
        change(&mut spec);
        let mut cluster = PaxosCluster::new("demo", spec);
        cluster.metadata.namespace = Some("ns".into());
        cluster.metadata.uid = Some("u".into());
        let desired = validate(&cluster, "default:1", "cluster.local")?;
        match desired.faults.first() {
            Some(fault) => Err(fault.why.clone()),
            None => Ok(desired),
        }
    }

    #[test]
    fn the_defaults_are_valid_and_take_the_operators_image() {
        let desired = check(|_| {}).unwrap();
        assert_eq!((desired.replicas, desired.voters(), desired.image.as_str()), (3, 3, "default:1"));
        let settings = desired.settings;
        assert_eq!((settings.heartbeat_ms, settings.election_timeout_ms), (100, 1000));
        assert!(!settings.leases && settings.retention == Retention::default());
        assert_eq!(settings.clock_drift_percent, 5);
        assert_eq!(desired.storage_bytes, 10 << 30);
    }

    #[test]
    fn bad_numbers_say_what_to_do() {
        for bad in [-1, 16] {
            let why = check(|s| s.replicas = bad).unwrap_err().to_string();
            assert!(why.contains("between 0 and 15"), "{why}");
        }
        assert!(check(|s| s.storage.size = "0".into()).is_err());
        assert!(check(|s| s.storage.size = "10Xi".into()).is_err());
        assert!(check(|s| s.storage.size = "63Mi".into()).is_err());
        assert!(check(|s| s.storage.size = "64Mi".into()).is_ok());
        assert!(check(|s| s.storage.replace_lost.after = "soon".into()).is_err());
        for (heartbeat, timeout, good) in [
            ("100ms", "999ms", false),
            ("100ms", "1s", true),
            ("19ms", "1s", false),
            ("20ms", "200ms", true),
            ("20ms", "199ms", false),
            ("6s", "60s", true),
            ("6s", "60001ms", false),
        ] {
            let checked =
                check(|s| (s.election.heartbeat, s.election.timeout) = (heartbeat.into(), timeout.into()));
            assert_eq!(checked.err(), (!good).then_some(Invalid::Election), "{heartbeat} {timeout}");
        }
        for bad in ["21%", "5", "-1%", "%"] {
            assert!(check(|s| s.reads.max_clock_drift = bad.into()).is_err(), "{bad}");
        }
        assert_eq!(check(|s| s.tls.mode = TlsMode::Provided), Err(Invalid::NoSecret));
    }

    #[test]
    fn retention_is_read_in_its_units() {
        let wanted = |max_entries, max_bytes: Option<&str>, max_age: Option<&str>| {
            check(|s| {
                s.retention = Some(crate::crd::Retention {
                    max_entries,
                    max_bytes: max_bytes.map(str::to_owned),
                    max_age: max_age.map(str::to_owned),
                });
            })
        };
        let read = wanted(Some(7), Some("1Ki"), Some("2h")).unwrap().settings.retention;
        assert_eq!(read, Retention { entries: Some(7), bytes: Some(1024), age_ms: Some(7_200_000) });
        for (text, ms) in [("5ms", 5), ("5s", 5_000), ("5m", 300_000)] {
            assert_eq!(wanted(None, None, Some(text)).unwrap().settings.retention.age_ms, Some(ms));
        }
        for bad in
            [wanted(Some(0), None, None), wanted(None, Some("0"), None), wanted(None, None, Some("0s"))]
        {
            assert!(bad.unwrap_err().to_string().contains("spec.retention"));
        }
    }

    /// O8: what is wrong with one part keeps no other from being carried out.
    #[test]
    fn a_fault_of_one_part_leaves_the_rest_as_it_is_asked_for() {
        let mut spec = PaxosClusterSpec { replicas: 5, ..PaxosClusterSpec::default() };
        spec.template = serde_json::json!({ "spec": { "hostNetwork": true } }).as_object().cloned();
        spec.election.timeout = "99999s".into();
        spec.storage.size = "1Ki".into();
        let mut cluster = PaxosCluster::new("demo", spec);
        cluster.metadata.namespace = Some("ns".into());
        cluster.metadata.uid = Some("u".into());
        let desired = validate(&cluster, "default:1", "cluster.local").unwrap();
        assert_eq!(desired.replicas, 5);
        let parts: Vec<Part> = desired.faults.iter().map(|f| f.part).collect();
        assert_eq!(parts, [Part::Storage, Part::Settings, Part::Template]);
        assert!(desired.is_at_fault(Part::Template) && !desired.is_at_fault(Part::Tls));
    }

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        let cases = [
            ("1", Some(1)),
            ("10Gi", Some(10 << 30)),
            ("1.5Gi", Some(3 << 29)),
            ("1e3", Some(1000)),
            ("2E", Some(2_000_000_000_000_000_000)),
            ("500m", Some(1)),
            ("0.5", Some(1)),
            ("+7k", Some(7000)),
            ("", None),
            ("Gi", None),
            ("-1", None),
            ("1.2.3", None),
            ("1Zi", None),
            ("99999Ei", None),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_quantity(text), bytes, "{text}");
        }
    }
}
