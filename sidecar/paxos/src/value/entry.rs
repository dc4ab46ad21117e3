//! An entry: its payload, and what is said beside it.

use super::fields::Fields;
use crate::codec::{DecodeError, Reader, Writer};
use crate::limits;
use crate::types::Time;
use alloc::collections::BTreeMap;
use alloc::string::String;
use bytes::Bytes;

/// The tag of an entry's headers.
const HEADERS: u8 = 1;
/// The tag of a batch's time.
const TIME: u8 = 1;

/// The header that names the caller's span. Whoever repeats an append does so in another span: it is no other append.
pub const TRACE: &str = "traceparent";

/// An entry as it is appended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// What the application keeps.
    pub payload: Bytes,
    fields: Fields,
}

/// An entry as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// When it was proposed, never before the entry in front of it; none: before the format level that has times.
    pub time: Option<Time>,
    /// What was appended.
    pub entry: Entry,
}

/// Why headers are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// More than an entry may have.
    #[error("an entry has at most {} headers, not {found}", limits::HEADERS)]
    TooMany {
        /// How many.
        found: usize,
    },
    /// A name out of its bounds.
    #[error(
        "the name of a header has 1 to {} bytes, each of a-z, 0-9 and '-': {name:?} has not",
        limits::HEADER_NAME_BYTES
    )]
    Name {
        /// The name, or its beginning.
        name: String,
    },
    /// A value out of its bounds.
    #[error(
        "the value of a header has at most {} bytes: that of {name:?} has {bytes}",
        limits::HEADER_VALUE_BYTES
    )]
    Value {
        /// The header's name.
        name: String,
        /// The bytes of its value.
        bytes: usize,
    },
}

impl From<Bytes> for Entry {
    fn from(payload: Bytes) -> Entry {
        Entry { payload, fields: Fields::NONE }
    }
}

impl Entry {
    /// An entry with headers: pairs of a name and a value.
    ///
    /// # Errors
    /// The first bound that they break.
    pub fn new(payload: Bytes, headers: &BTreeMap<String, String>) -> Result<Entry, HeaderError> {
        if headers.is_empty() {
            return Ok(payload.into());
        }
        if headers.len() > limits::HEADERS {
            return Err(HeaderError::TooMany { found: headers.len() });
        }
        for (name, value) in headers {
            if !is_name(name) {
                let name = name.chars().take(limits::HEADER_NAME_BYTES).collect();
                return Err(HeaderError::Name { name });
            }
            if value.len() > limits::HEADER_VALUE_BYTES {
                return Err(HeaderError::Value { name: name.clone(), bytes: value.len() });
            }
        }
        Ok(Entry { payload, fields: Fields::one(HEADERS, &written(headers)) })
    }

    /// What stands beside the payload, but for what tells no append from another.
    pub(super) fn compared(&self) -> Fields {
        let mut headers = self.headers();
        if headers.remove(TRACE).is_none() {
            return self.fields.clone();
        }
        let headers = (!headers.is_empty()).then(|| written(&headers));
        self.fields.with(HEADERS, headers.as_deref())
    }

    /// Its headers, by name.
    pub fn headers(&self) -> BTreeMap<String, String> {
        // Where they were read they were checked.
        self.fields.get(HEADERS).and_then(|bytes| read_headers(bytes).ok()).unwrap_or_default()
    }

    /// What counts against the bound of an entry: its payload, and what stands beside it as it is stored.
    pub fn size(&self) -> usize {
        self.payload.len() + self.fields.len()
    }

    /// Whether anything stands beside the payload.
    pub fn has_fields(&self) -> bool {
        !self.fields.is_empty()
    }

    pub(super) fn fields(&self) -> &Fields {
        &self.fields
    }

    pub(super) fn read(r: &mut Reader, with_fields: bool) -> Result<Entry, DecodeError> {
        let payload = r.bytes("entry", limits::ENTRY_BYTES)?;
        if !with_fields {
            return Ok(payload.into());
        }
        let fields = Fields::read(r, limits::ENTRY_BYTES)?;
        if let Some(bytes) = fields.get(HEADERS) {
            read_headers(bytes)?;
        }
        Ok(Entry { payload, fields })
    }
}

/// Whether a header may have this name.
fn is_name(name: &str) -> bool {
    (1..=limits::HEADER_NAME_BYTES).contains(&name.len())
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

fn written(headers: &BTreeMap<String, String>) -> Bytes {
    let mut w = Writer::default();
    for (name, value) in headers {
        w.short_bytes(name.as_bytes());
        w.short_bytes(value.as_bytes());
    }
    w.finish()
}

/// There is one encoding for each set of headers: by name, each once.
fn read_headers(bytes: Bytes) -> Result<BTreeMap<String, String>, DecodeError> {
    let mut r = Reader::new(bytes);
    let mut headers = BTreeMap::new();
    while !r.is_at_end() {
        let name = r.short_text("header's name", limits::HEADER_NAME_BYTES)?;
        let behind = headers.last_key_value().is_none_or(|(last, _)| name > *last);
        if !is_name(&name) || !behind || headers.len() == limits::HEADERS {
            return Err(DecodeError::OutOfBounds { what: "header", found: headers.len() as u64 });
        }
        headers.insert(name, r.short_text("header's value", limits::HEADER_VALUE_BYTES)?);
    }
    match headers.is_empty() {
        true => Err(DecodeError::OutOfBounds { what: "headers", found: 0 }),
        false => Ok(headers),
    }
}

impl Fields {
    /// What stands beside a batch whose entries are of this time; none where the log has no times yet.
    pub fn timed(time: Option<Time>) -> Fields {
        let Some(time) = time.filter(|time| *time > Time(0)) else { return Fields::NONE };
        let mut w = Writer::default();
        w.varint(time.min(Time::LATEST).0);
        Fields::one(TIME, &w.finish())
    }
}

/// The time that stands beside a batch.
pub(super) fn time_of(fields: &Fields) -> Option<Time> {
    fields.get(TIME).and_then(|bytes| read_time(bytes).ok())
}

/// Fields of a batch; the time is one that a calendar knows.
pub(super) fn read_batch_fields(r: &mut Reader) -> Result<Fields, DecodeError> {
    let fields = Fields::read(r, limits::BATCH_FIELDS_BYTES)?;
    match fields.get(TIME) {
        Some(bytes) => read_time(bytes).map(|_| fields),
        // It is the first field, and all that this encoding is for.
        None => Err(DecodeError::OutOfBounds { what: "fields of a batch", found: 0 }),
    }
}

fn read_time(bytes: Bytes) -> Result<Time, DecodeError> {
    let mut r = Reader::new(bytes);
    let found = r.varint()?;
    r.end()?;
    match found {
        1.. if found <= Time::LATEST.0 => Ok(Time(found)),
        _ => Err(DecodeError::OutOfBounds { what: "time", found }),
    }
}
