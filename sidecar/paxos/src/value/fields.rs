//! Optional fields of a batch and of an entry: each a tag, a length and bytes.
//!
//! A field that came with a later version is kept as it is and passed by, so that the next one needs no new encoding:
//! it may stand beside any entry from the format level of the first on, if it decides nothing that members must decide
//! alike (docs: decisions/0040). Its bytes count, and tell another content from a repeat (but for a trace), in every
//! version.

use crate::codec::{DecodeError, Reader, Writer};
use bytes::Bytes;

/// Fields in ascending order of their tags; empty where there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(Bytes);

impl Fields {
    /// None.
    pub const NONE: Fields = Fields(Bytes::new());

    /// One field.
    pub(super) fn one(tag: u8, bytes: &[u8]) -> Fields {
        let mut w = Writer::with_capacity(bytes.len() + 4);
        w.u8(tag);
        w.short_bytes(bytes);
        Fields(w.finish())
    }

    /// How many bytes they take.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The field with this tag.
    pub(super) fn get(&self, wanted: u8) -> Option<Bytes> {
        let mut r = Reader::new(self.0.clone());
        while !r.is_at_end() {
            // Where they were read they were checked.
            let (tag, bytes) = read_field(&mut r).ok()?;
            if tag == wanted {
                return Some(bytes);
            }
        }
        None
    }

    /// The same fields, but for another one with this tag, or none.
    pub(super) fn with(&self, tag: u8, bytes: Option<&[u8]>) -> Fields {
        let mut w = Writer::with_capacity(self.0.len());
        let mut field = |tag: u8, bytes: &[u8]| {
            w.u8(tag);
            w.short_bytes(bytes);
        };
        let mut r = Reader::new(self.0.clone());
        let mut new = bytes;
        while !r.is_at_end() {
            // Where they were read they were checked.
            let Ok((found, held)) = read_field(&mut r) else { break };
            if found >= tag
                && let Some(new) = new.take()
            {
                field(tag, new);
            }
            if found != tag {
                field(found, &held);
            }
        }
        if let Some(new) = new {
            field(tag, new);
        }
        Fields(w.finish())
    }

    pub(super) fn write(&self, w: &mut Writer) {
        w.short_bytes(&self.0);
    }

    /// Reads fields of at most `bound` bytes; each tag stands there once, in ascending order.
    pub(super) fn read(r: &mut Reader, bound: usize) -> Result<Fields, DecodeError> {
        let fields = Fields(r.short_bytes("optional fields", bound)?);
        let mut inner = Reader::new(fields.0.clone());
        let mut last = 0;
        while !inner.is_at_end() {
            let (tag, _) = read_field(&mut inner)?;
            if tag <= last {
                return Err(DecodeError::OutOfBounds { what: "order of fields", found: u64::from(tag) });
            }
            last = tag;
        }
        Ok(fields)
    }

    /// Their bytes, for a digest.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

fn read_field(r: &mut Reader) -> Result<(u8, Bytes), DecodeError> {
    Ok((r.u8()?, r.short_bytes("optional field", usize::MAX)?))
}
