//! From a PaxosCluster as it was written to a [`Desired`] that later stages can trust. Pure.
//!
//! The API server has checked the schema and its rules already; what is checked here is what CEL cannot
//! see (raw parts of the template) and what an object stored before a rule existed may still hold.

use std::collections::BTreeSet;

use serde_json::Value;
use thiserror::Error;

use crate::crd::{PaxosCluster, PaxosClusterSpec, TlsMode};
use crate::names::{CLAIM, CONTAINER, ClusterName};
use crate::settings::{Retention, Settings};

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
}

impl Desired {
    /// Members that should vote.
    pub fn voters(&self) -> u32 {
        self.replicas.min(self.max_voters)
    }
}

/// Why a spec cannot be carried out, and what to do.
#[derive(Debug, Error, PartialEq, Eq)]
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

/// Checks a PaxosCluster. `image` is the operator's default for the sidecar, `domain` the DNS domain.
///
/// # Errors
/// The first thing that cannot be carried out, with what to do about it.
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
    let storage_bytes = parse_quantity(&spec.storage.size).filter(|b| *b > 0).ok_or(Invalid::Malformed {
        field: "storage.size",
        value: spec.storage.size.clone(),
        hint: "it must be a quantity above zero, such as 10Gi",
    })?;
    let heartbeat_ms = millis("election.heartbeat", &spec.election.heartbeat)?;
    let election_timeout_ms = millis("election.timeout", &spec.election.timeout)?;
    if heartbeat_ms < 20 || election_timeout_ms / 10 < heartbeat_ms || election_timeout_ms > 60_000 {
        return Err(Invalid::Election);
    }
    if spec.tls.mode == TlsMode::Provided && spec.tls.secret_name.is_none() {
        return Err(Invalid::NoSecret);
    }
    if let Some(template) = &spec.template {
        check_template(template).map_err(Invalid::Template)?;
    }
    Ok(Desired {
        replicas,
        max_voters,
        image: spec.image.clone().unwrap_or_else(|| image.to_owned()),
        storage_bytes,
        settings: Settings {
            heartbeat_ms,
            election_timeout_ms,
            leases: spec.reads.leases,
            clock_drift_percent: percent("reads.maxClockDrift", &spec.reads.max_clock_drift, 20)?,
            retention: retention(&spec)?,
        },
        deadline_seconds: spec.progress_deadline_seconds,
        name,
        spec,
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

/// What the template may not use. The server's dry run judges the rest.
fn check_template(template: &serde_json::Map<String, Value>) -> Result<(), String> {
    if template.contains_key("volumeClaimTemplates") {
        return Err(
            "volumeClaimTemplates is refused: the members' volumes come from spec.storage; remove it".into(),
        );
    }
    for (map, what) in [("labels", "label"), ("annotations", "annotation")] {
        let keys = template.get("metadata").and_then(|m| m.get(map)).and_then(Value::as_object);
        if let Some(key) = keys.into_iter().flatten().map(|(k, _)| k).find(|k| k.starts_with("synod.dev/")) {
            return Err(format!("the {what} '{key}' is reserved (synod.dev/*): remove it"));
        }
    }
    let spec =
        template.get("spec").and_then(Value::as_object).ok_or("it has no spec: add one with containers")?;
    if spec.contains_key("volumeClaimTemplates") {
        return Err(
            "volumeClaimTemplates is refused: the members' volumes come from spec.storage; remove it".into(),
        );
    }
    if spec.get("hostNetwork").and_then(Value::as_bool) == Some(true) {
        return Err("hostNetwork is refused: members find each other by pod addresses; remove it".into());
    }
    for volume in objects(spec, "volumes") {
        let name = text(volume, "name");
        if name == CLAIM || name.starts_with("synod-") {
            return Err(format!("the volume name '{name}' is reserved (data, synod-*): rename the volume"));
        }
    }
    if objects(spec, "containers").next().is_none() {
        return Err("spec.containers is empty: name at least one container, or leave the template out".into());
    }
    let mut seen = BTreeSet::new();
    for container in objects(spec, "containers").chain(objects(spec, "initContainers")) {
        check_container(container, &mut seen)?;
    }
    Ok(())
}

fn check_container(
    container: &serde_json::Map<String, Value>,
    seen: &mut BTreeSet<String>,
) -> Result<(), String> {
    let name = text(container, "name");
    if name == CONTAINER {
        return Err(format!("the container name '{name}' is reserved for the sidecar: rename the container"));
    }
    if !seen.insert(name.to_owned()) {
        return Err(format!("two containers are called '{name}': rename one"));
    }
    for variable in objects(container, "env") {
        let key = text(variable, "name");
        if key.starts_with("SYNOD_") {
            return Err(format!("container '{name}': the variable '{key}' is reserved (SYNOD_*): remove it"));
        }
    }
    for mount in objects(container, "volumeMounts") {
        let path = text(mount, "mountPath").trim_end_matches('/');
        if path == "/run/synod" || path.starts_with("/run/synod/") || path == "/var/run/synod" {
            return Err(format!(
                "container '{name}': the path '{path}' is reserved for the socket: mount elsewhere"
            ));
        }
    }
    Ok(())
}

fn objects<'a>(
    parent: &'a serde_json::Map<String, Value>,
    key: &str,
) -> impl Iterator<Item = &'a serde_json::Map<String, Value>> {
    parent.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object)
}

fn text<'a>(parent: &'a serde_json::Map<String, Value>, key: &str) -> &'a str {
    parent.get(key).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(change: impl FnOnce(&mut PaxosClusterSpec)) -> Result<Desired, Invalid> {
        let mut spec = PaxosClusterSpec::default();
        change(&mut spec);
        let mut cluster = PaxosCluster::new("demo", spec);
        cluster.metadata.namespace = Some("ns".into());
        cluster.metadata.uid = Some("u".into());
        validate(&cluster, "default:1", "cluster.local")
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

    #[test]
    fn what_is_reserved_is_refused_by_name() {
        let app = json!({ "name": "app", "image": "a" });
        let cases = [
            (json!({}), "no spec"),
            (json!({ "spec": { "containers": [] } }), "containers is empty"),
            (json!({ "spec": { "hostNetwork": true, "containers": [app] } }), "hostNetwork"),
            (json!({ "spec": { "containers": [{ "name": "synod", "image": "a" }] } }), "'synod' is reserved"),
            (
                json!({ "spec": { "containers": [app], "initContainers": [{ "name": "synod" }] } }),
                "'synod' is reserved",
            ),
            (json!({ "spec": { "containers": [app, app] } }), "two containers"),
            (json!({ "spec": { "containers": [app], "volumes": [{ "name": "synod-x" }] } }), "volume name"),
            (json!({ "spec": { "containers": [app], "volumes": [{ "name": "data" }] } }), "volume name"),
            (
                json!({ "spec": { "containers": [{ "name": "a", "env": [{ "name": "SYNOD_X" }] }] } }),
                "SYNOD_X",
            ),
            (
                json!({ "spec": { "containers": [{ "name": "a", "volumeMounts": [{ "mountPath": "/run/synod/" }] }] } }),
                "/run/synod",
            ),
            (
                json!({ "metadata": { "labels": { "synod.dev/x": "1" } }, "spec": { "containers": [app] } }),
                "synod.dev/x",
            ),
            (json!({ "volumeClaimTemplates": [], "spec": { "containers": [app] } }), "volumeClaimTemplates"),
        ];
        for (template, word) in cases {
            let refusal = check(|s| s.template = template.as_object().cloned()).unwrap_err();
            assert!(matches!(refusal, Invalid::Template(_)), "{template}");
            assert!(refusal.to_string().contains(word), "{refusal}");
        }
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
