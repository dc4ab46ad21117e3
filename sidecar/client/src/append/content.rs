//! What an append holds.

use bytes::Bytes;
use std::collections::BTreeMap;
use synod_proto::v1;

/// An entry that is appended: a payload, and headers beside it.
///
/// ```
/// # use synod_client::NewEntry;
/// let entry = NewEntry::new("4711: 3 screws").header("content-type", "text/plain");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewEntry {
    /// What the application keeps.
    pub payload: Bytes,
    /// What is said beside it: at most 32 headers, a name of 1 to 64 bytes of a-z, 0-9 and '-', a value of at most 1 KiB;
    /// all of it counts against the entry's 1 MiB.
    pub headers: BTreeMap<String, String>,
}

impl NewEntry {
    /// An entry without headers.
    pub fn new(payload: impl Into<Bytes>) -> NewEntry {
        NewEntry { payload: payload.into(), headers: BTreeMap::new() }
    }

    /// The same with one header more, or in the place of the one of that name.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> NewEntry {
        self.headers.insert(name.into(), value.into());
        self
    }
}

/// The entries of one append, as a request holds them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    /// Where none has a header: every version of a member takes these.
    pub(super) payloads: Vec<Bytes>,
    /// Where one has.
    pub(super) entries: Vec<v1::NewEntry>,
}

impl From<Vec<Bytes>> for Content {
    fn from(payloads: Vec<Bytes>) -> Content {
        Content { payloads, entries: Vec::new() }
    }
}

impl From<Vec<NewEntry>> for Content {
    fn from(entries: Vec<NewEntry>) -> Content {
        if entries.iter().all(|entry| entry.headers.is_empty()) {
            return entries.into_iter().map(|entry| entry.payload).collect::<Vec<Bytes>>().into();
        }
        let entry = |NewEntry { payload, headers }| v1::NewEntry { payload, headers };
        Content { payloads: Vec::new(), entries: entries.into_iter().map(entry).collect() }
    }
}

impl Content {
    /// What it takes while it is under way, about.
    pub(super) fn bytes(&self) -> usize {
        let header = |(name, value): (&String, &String)| name.len() + value.len() + 16;
        let entry =
            |entry: &v1::NewEntry| entry.payload.len() + entry.headers.iter().map(header).sum::<usize>() + 64;
        let payloads: usize = self.payloads.iter().map(|payload| payload.len() + 64).sum();
        payloads + self.entries.iter().map(entry).sum::<usize>()
    }
}
