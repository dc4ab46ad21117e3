//! An entry as people and programs see it in JSON: one shape over HTTP, on the command line and in an export.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;
use synod_paxos::Time;
use synod_paxos::value::Logged;
use synod_proto::v1;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// One entry of the log.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "Entry")]
pub(crate) struct ShownEntry {
    /// Its position: from 1, without gaps.
    pub(crate) index: u64,
    /// What was appended, where it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// What was appended, where it is not UTF-8: in base64, with padding.
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    /// When it was proposed (RFC 3339, UTC), never before the entry in front of it; not there where it was appended below
    /// format level 4.
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    /// What was said beside it, by name; not there where nothing was.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
}

impl ShownEntry {
    pub(crate) fn new(
        index: u64,
        payload: &[u8],
        time: Option<Time>,
        headers: BTreeMap<String, String>,
    ) -> ShownEntry {
        let (text, base64) = match std::str::from_utf8(payload) {
            Ok(text) => (Some(text.to_owned()), None),
            Err(_) => (None, Some(STANDARD.encode(payload))),
        };
        ShownEntry { index, text, base64, time: time.and_then(written), headers }
    }

    /// An entry that was read from a disk.
    pub(crate) fn logged(index: u64, logged: &Logged) -> ShownEntry {
        ShownEntry::new(index, &logged.entry.payload, logged.time, logged.entry.headers())
    }
}

impl From<v1::Entry> for ShownEntry {
    fn from(wire: v1::Entry) -> ShownEntry {
        let v1::Entry { index, payload, time, headers } = wire;
        let time = time.and_then(|time| synod_proto::micros(&time)).map(Time);
        ShownEntry::new(index, &payload, time, headers)
    }
}

/// A time as RFC 3339 has it.
fn written(time: Time) -> Option<String> {
    let nanos = i128::from(time.0) * 1_000;
    OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()?.format(&Rfc3339).ok()
}

/// Reads what RFC 3339 has; a part of a microsecond counts up to the next.
pub(crate) fn read_time(text: &str) -> Option<Time> {
    let nanos = OffsetDateTime::parse(text, &Rfc3339).ok()?.unix_timestamp_nanos();
    let micros = u128::try_from(nanos).ok()?.div_ceil(1_000);
    Some(Time(u64::try_from(micros).unwrap_or(u64::MAX)).min(Time::LATEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (micros, text) in [
            (1, "1970-01-01T00:00:00.000001Z"),
            (1_764_590_147_123_456, "2025-12-01T11:55:47.123456Z"),
            (1_764_590_147_000_000, "2025-12-01T11:55:47Z"),
            (Time::LATEST.0, "9999-12-31T23:59:59.999999Z"),
        ] {
            assert_eq!(written(Time(micros)).as_deref(), Some(text));
            assert_eq!(read_time(text), Some(Time(micros)));
        }
        assert_eq!(read_time("2025-12-01T13:55:47.1234551+02:00"), Some(Time(1_764_590_147_123_456)));
        for bad in ["", "2025-12-01", "2025-12-01T11:55:47", "1969-12-31T23:59:59Z", "1764590147"] {
            assert_eq!(read_time(bad), None, "{bad}");
        }
    }
}
