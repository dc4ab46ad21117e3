//! What requests say: their query, their body. Whatever is not understood is refused, never passed over.

use super::problem::Problem;
use crate::shown;
use axum::body::Body;
use axum::http::HeaderMap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use schemars::JsonSchema;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;
use synod_paxos::{Digest, Time, limits};
use synod_proto::v1::consistency::Kind;
use synod_proto::v1::{Consistency, Linearizable, NewEntry, Reason, Sequential, StaleBounded};

/// Entries of one append.
pub(super) const ENTRIES: usize = 4_096;
/// A header of a request that begins so is one of the entry, which is the body.
pub(super) const ENTRY_HEADER: &str = "synod-header-";
/// How long a call may be told to take.
const LONGEST: u64 = 600_000;
/// How long it takes at most if it is not told.
const DEFAULT: Duration = Duration::from_secs(30);

/// The parameters behind the question mark.
#[derive(Debug)]
pub(super) struct Query(BTreeMap<String, String>);

impl Query {
    /// # Errors
    /// If a parameter is not one of `known`, comes twice, or cannot be decoded.
    pub(super) fn parse(text: Option<&str>, known: &[&str]) -> Result<Query, Problem> {
        let mut found = BTreeMap::new();
        for pair in text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let undecodable = || Problem::invalid(format!("{pair} is not percent-encoded UTF-8"));
            let name = decoded(name, true).ok_or_else(undecodable)?;
            let value = decoded(value, true).ok_or_else(undecodable)?;
            if !known.contains(&name.as_str()) {
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(Problem::invalid(format!(
                    "the parameter {name} is not known here; known: {known}"
                )));
            }
            if found.insert(name.clone(), value).is_some() {
                return Err(Problem::invalid(format!("the parameter {name} comes twice")));
            }
        }
        Ok(Query(found))
    }

    /// Whether a parameter is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// A number, if it is there.
    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, Problem> {
        let Some(value) = self.0.get(name) else { return Ok(None) };
        // The standard parser takes a plus sign.
        let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        let number = value.parse().ok().filter(|_| is_number);
        number.map(Some).ok_or_else(|| Problem::invalid(format!("{name} is no number from 0 to 2^64 - 1")))
    }

    /// A SHA-256 in hexadecimal, if it is there.
    pub(super) fn digest(&self, name: &str) -> Result<Option<Digest>, Problem> {
        let Some(value) = self.0.get(name) else { return Ok(None) };
        let digest = Digest::parse(value).map(Some);
        digest.ok_or_else(|| Problem::invalid(format!("{name} is no SHA-256 in 64 hexadecimal digits")))
    }

    /// A time, if it is there.
    pub(super) fn time(&self, name: &str) -> Result<Option<Time>, Problem> {
        let Some(value) = self.0.get(name) else { return Ok(None) };
        let time = shown::read_time(value);
        let message =
            || Problem::invalid(format!("{name} is no time of RFC 3339, such as 2026-12-01T09:30:00Z"));
        time.map(Some).ok_or_else(message)
    }

    /// A number from 1 to `most`.
    pub(super) fn bounded(&self, name: &str, default: u64, most: u64) -> Result<u64, Problem> {
        match self.number(name)? {
            None => Ok(default),
            Some(number) if (1..=most).contains(&number) => Ok(number),
            Some(_) => Err(Problem::invalid(format!("{name} goes from 1 to {most}"))),
        }
    }

    /// How long the call may take.
    pub(super) fn timeout(&self) -> Result<Duration, Problem> {
        let default = u64::try_from(DEFAULT.as_millis()).unwrap_or(LONGEST);
        Ok(Duration::from_millis(self.bounded("timeout_ms", default, LONGEST)?))
    }

    /// Yes or no; no where nothing is said.
    pub(super) fn flag(&self, name: &str) -> Result<bool, Problem> {
        match self.0.get(name).map(String::as_str) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(Problem::invalid(format!("{name} is true or false"))),
        }
    }

    /// How fresh the answer must be.
    pub(super) fn freshness(&self) -> Result<Consistency, Problem> {
        let (at_least, bound) = (self.number("at_least")?, self.number("max_staleness_ms")?);
        let kind = match self.0.get("consistency").map(String::as_str) {
            None | Some("linearizable") => Kind::Linearizable(Linearizable {}),
            Some("sequential") => Kind::Sequential(Sequential { at_least: at_least.unwrap_or_default() }),
            Some("stale-bounded") => {
                let max = bound.map(|bound| {
                    let bound = u32::try_from(bound)
                        .map_err(|_| Problem::invalid("max_staleness_ms goes up to 4294967295"))?;
                    Ok::<_, Problem>(synod_proto::duration(Duration::from_millis(bound.into())))
                });
                Kind::StaleBounded(StaleBounded { max: max.transpose()? })
            }
            Some(_) => {
                let message =
                    "this consistency is not known here: ask for linearizable, sequential or stale-bounded";
                return Err(Problem::new(Reason::Consistency, message));
            }
        };
        if at_least.is_some() && !matches!(kind, Kind::Sequential(_)) {
            return Err(Problem::invalid("at_least goes with consistency=sequential only"));
        }
        if bound.is_some() != matches!(kind, Kind::StaleBounded(_)) {
            let message = "max_staleness_ms goes with consistency=stale-bounded, which needs it";
            return Err(Problem::invalid(message));
        }
        Ok(Consistency { kind: Some(kind) })
    }
}

/// Undoes percent-encoding.
pub(super) fn decoded(text: &str, plus_is_space: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(rest.next())?, digit(rest.next())?);
                u8::try_from(high * 16 + low).ok()?
            }
            b'+' if plus_is_space => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// The whole body; it is counted and bounded while it comes.
pub(super) async fn whole(body: Body) -> Result<Bytes, Problem> {
    let mut parts = body.into_data_stream();
    let mut whole = BytesMut::new();
    while let Some(part) = parts.next().await {
        whole.extend_from_slice(&part.map_err(|error| Problem::of_body(&error))?);
    }
    Ok(whole.freeze())
}

/// Takes a body that nobody asked for, so that whoever sends it hears the answer.
pub(super) async fn discarded(body: Body) -> Body {
    let mut parts = body.into_data_stream();
    while let Some(Ok(_)) = parts.next().await {}
    Body::empty()
}

/// The call's name, by which a repeat is told from another call.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<Bytes>, Problem> {
    let mut keys = headers.get_all("idempotency-key").iter();
    let Some(key) = keys.next() else { return Ok(None) };
    if keys.next().is_some() {
        return Err(Problem::invalid("the header Idempotency-Key comes twice"));
    }
    let key = key.as_bytes();
    // The quotes of a structured field (RFC 8941) are not part of it.
    let key = key.strip_prefix(b"\"").and_then(|key| key.strip_suffix(b"\"")).unwrap_or(key);
    if !(1..=64).contains(&key.len()) {
        return Err(Problem::invalid("the header Idempotency-Key has 1 to 64 bytes"));
    }
    Ok(Some(Bytes::copy_from_slice(key)))
}

/// Whether the body is JSON: `application/json`, with or without parameters.
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}

/// What to append.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Many {
    /// 1 to 4,096 entries; all or none are appended, at neighbouring indexes.
    #[schemars(with = "Vec<One>", length(min = 1, max = 4_096))]
    entries: Bounded,
}

/// One entry: a text, or any bytes.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct One {
    /// UTF-8; one of both.
    text: Option<String>,
    /// Base64, with padding; one of both.
    base64: Option<String>,
    /// What is said beside it, by name.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    headers: Headers,
}

/// Headers by name, each once, up to their bound; what is beyond costs no memory.
#[derive(Debug, Default, Serialize)]
struct Headers(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Headers, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Headers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Headers, A::Error> {
                let mut headers = BTreeMap::new();
                while let Some((name, value)) = pairs.next_entry::<String, String>()? {
                    if headers.len() == limits::HEADERS {
                        let most = limits::HEADERS;
                        return Err(A::Error::custom(format_args!("an entry has at most {most} headers")));
                    }
                    if headers.contains_key(&name) {
                        return Err(A::Error::custom(format_args!("the header {name:?} stands there twice")));
                    }
                    headers.insert(name, value);
                }
                Ok(Headers(headers))
            }
        }
        from.deserialize_map(Pairs)
    }
}

/// Entries up to their bound; what is beyond costs no memory.
#[derive(Debug, Serialize)]
struct Bounded {
    entries: Vec<One>,
    is_too_long: bool,
}

impl<'de> Deserialize<'de> for Bounded {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Bounded, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Bounded;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of entries")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Bounded, A::Error> {
                let mut entries = Vec::new();
                while entries.len() < ENTRIES {
                    match list.next_element()? {
                        Some(entry) => entries.push(entry),
                        None => return Ok(Bounded { entries, is_too_long: false }),
                    }
                }
                let mut is_too_long = false;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    is_too_long = true;
                }
                Ok(Bounded { entries, is_too_long })
            }
        }
        from.deserialize_seq(Entries)
    }
}

/// The headers of the entry that is the body: those of the request whose names begin so.
pub(super) fn entry_headers(headers: &HeaderMap) -> Result<BTreeMap<String, String>, Problem> {
    let mut found = BTreeMap::new();
    for (name, value) in headers {
        let Some(name) = name.as_str().strip_prefix(ENTRY_HEADER) else { continue };
        let value = std::str::from_utf8(value.as_bytes())
            .map_err(|_| Problem::invalid(format!("the header {ENTRY_HEADER}{name} is not UTF-8")))?;
        if found.insert(name.to_owned(), value.to_owned()).is_some() {
            return Err(Problem::invalid(format!("the header {ENTRY_HEADER}{name} comes twice")));
        }
    }
    Ok(found)
}

/// The entries in a JSON body.
pub(super) fn entries(body: &[u8]) -> Result<Vec<NewEntry>, Problem> {
    let many: Many = serde_json::from_slice(body).map_err(|error| {
        let message = format!(
            "the body is not {{\"entries\": [{{\"text\": ...}} or {{\"base64\": ...}}, ...]}}: {error}; to append a JSON \
             text as one entry send it as application/octet-stream"
        );
        Problem::new(Reason::Malformed, message)
    })?;
    let Bounded { entries, is_too_long } = many.entries;
    if is_too_long {
        let message = "the call has more than 4,096 entries: send several calls";
        return Err(Problem::new(Reason::CallTooLarge, message));
    }
    let new = |(place, One { text, base64, headers: Headers(headers) }): (usize, One)| {
        let payload = match (text, base64) {
            (Some(text), None) => Bytes::from(text),
            (None, Some(text)) => STANDARD.decode(text).map(Bytes::from).map_err(|error| {
                Problem::new(Reason::Malformed, format!("entry {} is not base64: {error}", place + 1))
            })?,
            _ => {
                let message = format!("entry {} has not one of text and base64: give one of both", place + 1);
                return Err(Problem::new(Reason::Malformed, message));
            }
        };
        Ok(NewEntry { payload, headers })
    };
    entries.into_iter().enumerate().map(new).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn percent_encoding_is_undone() {
        assert_eq!(decoded("a%2Fb+c", true).as_deref(), Some("a/b c"));
        assert_eq!(decoded("a+b", false).as_deref(), Some("a+b"));
        for bad in ["%", "%2", "%zz", "%+1", "%ff"] {
            assert_eq!(decoded(bad, true), None, "{bad}");
        }
    }

    #[test]
    fn numbers_are_digits() {
        let number = |text| Query::parse(Some(text), &["n"]).unwrap().number("n");
        assert_eq!(number("n=18446744073709551615").unwrap(), Some(u64::MAX));
        for bad in ["n=", "n", "n=+1", "n=-1", "n=1.0", "n=18446744073709551616", "n=0x1"] {
            assert!(number(bad).is_err(), "{bad}");
        }
        for bad in ["m=1", "n=1&n=2", "n=%ff"] {
            assert!(Query::parse(Some(bad), &["n"]).is_err(), "{bad}");
        }
    }
}
