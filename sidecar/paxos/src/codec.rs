//! Little-endian reading and writing of what the core stores: values, system state, genesis.
//!
//! Peer messages travel as protobuf; what is stored or digested is written here, because its bytes must
//! be the same for ever and on every member.

use alloc::string::String;
use alloc::vec::Vec;
use bytes::{Buf, Bytes};

/// Why stored bytes could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end before the value does.
    #[error("cut short: {missing} more bytes were expected")]
    Short {
        /// At least this many bytes are missing.
        missing: usize,
    },
    /// Bytes are left over behind the value.
    #[error("{extra} bytes are left over behind the value")]
    TrailingBytes {
        /// How many.
        extra: usize,
    },
    /// A version, kind or tag that this program does not know.
    #[error("unknown {what} {found}: written by a newer version?")]
    Unknown {
        /// What was read.
        what: &'static str,
        /// Its number.
        found: u64,
    },
    /// A length or a number beyond its bounds.
    #[error("{what} of {found} is out of bounds")]
    OutOfBounds {
        /// What was read.
        what: &'static str,
        /// Its number.
        found: u64,
    },
    /// Rows out of order, or one twice: no program writes that.
    #[error("rows are out of order, or one stands there twice")]
    Disordered,
    /// A text that is not UTF-8.
    #[error("a name is not UTF-8")]
    NotText,
}

/// Reads from shared bytes; slices of them are shared, not copied.
#[derive(Debug)]
pub struct Reader {
    bytes: Bytes,
}

impl Reader {
    /// Starts at the first byte.
    pub fn new(bytes: Bytes) -> Reader {
        Reader { bytes }
    }

    fn need(&self, n: usize) -> Result<(), DecodeError> {
        match n.checked_sub(self.bytes.len()) {
            None | Some(0) => Ok(()),
            Some(missing) => Err(DecodeError::Short { missing }),
        }
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        self.need(1)?;
        Ok(self.bytes.get_u8())
    }

    /// A 32-bit number.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        self.need(4)?;
        Ok(self.bytes.get_u32_le())
    }

    /// A 64-bit number.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        self.need(8)?;
        Ok(self.bytes.get_u64_le())
    }

    /// A number of as many bytes as it needs, seven bits in each, the lowest first. There is one way to write each.
    pub fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            let out_of_bounds = DecodeError::OutOfBounds { what: "number", found: bits };
            if bits << shift >> shift != bits || byte == 0 && shift > 0 {
                return Err(out_of_bounds);
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(DecodeError::OutOfBounds { what: "number", found: number })
    }

    /// A position or a count that grows by small steps: nothing real comes near the bound, and what lies above it
    /// could overflow with the next step.
    pub fn position(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let found = self.u64()?;
        if found > 1 << 62 { Err(DecodeError::OutOfBounds { what, found }) } else { Ok(found) }
    }

    /// A byte that must be 0 or 1.
    pub fn bool(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(DecodeError::OutOfBounds { what: "flag", found: u64::from(found) }),
        }
    }

    /// Exactly `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        self.need(N)?;
        let mut array = [0; N];
        self.bytes.copy_to_slice(&mut array);
        Ok(array)
    }

    /// A length of at most `bound` items, each of at least `item_bytes` bytes: a length that the bytes
    /// cannot hold is refused before anything is allocated for it.
    pub fn length(
        &mut self,
        what: &'static str,
        bound: usize,
        item_bytes: usize,
    ) -> Result<usize, DecodeError> {
        let found = u64::from(self.u32()?);
        self.check_length(what, found, bound, item_bytes)
    }

    /// [`Reader::length`], written as [`Reader::varint`] reads.
    pub fn short_length(
        &mut self,
        what: &'static str,
        bound: usize,
        item_bytes: usize,
    ) -> Result<usize, DecodeError> {
        let found = self.varint()?;
        self.check_length(what, found, bound, item_bytes)
    }

    fn check_length(
        &self,
        what: &'static str,
        found: u64,
        bound: usize,
        item_bytes: usize,
    ) -> Result<usize, DecodeError> {
        let length = usize::try_from(found)
            .ok()
            .filter(|length| *length <= bound && length.saturating_mul(item_bytes) <= self.bytes.len());
        length.ok_or(DecodeError::OutOfBounds { what, found })
    }

    /// Bytes behind their length, at most `bound` of them.
    pub fn bytes(&mut self, what: &'static str, bound: usize) -> Result<Bytes, DecodeError> {
        let length = self.length(what, bound, 1)?;
        Ok(self.bytes.split_to(length))
    }

    /// Bytes behind their length, written as [`Reader::varint`] reads.
    pub fn short_bytes(&mut self, what: &'static str, bound: usize) -> Result<Bytes, DecodeError> {
        let length = self.short_length(what, bound, 1)?;
        Ok(self.bytes.split_to(length))
    }

    /// A text behind its length, written as [`Reader::varint`] reads.
    pub fn short_text(&mut self, what: &'static str, bound: usize) -> Result<String, DecodeError> {
        let bytes = self.short_bytes(what, bound)?;
        core::str::from_utf8(&bytes).map(String::from).map_err(|_| DecodeError::NotText)
    }

    /// Whether nothing is left.
    pub fn is_at_end(&self) -> bool {
        self.bytes.is_empty()
    }

    /// A text behind its length, at most `bound` bytes.
    pub fn text(&mut self, what: &'static str, bound: usize) -> Result<String, DecodeError> {
        let bytes = self.bytes(what, bound)?;
        core::str::from_utf8(&bytes).map(String::from).map_err(|_| DecodeError::NotText)
    }

    /// Ends the reading: nothing may be left.
    pub fn end(self) -> Result<(), DecodeError> {
        match self.bytes.len() {
            0 => Ok(()),
            extra => Err(DecodeError::TrailingBytes { extra }),
        }
    }
}

/// Writes what [`Reader`] reads.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty one with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Writer {
        Writer { bytes: Vec::with_capacity(capacity) }
    }

    /// One byte.
    pub fn u8(&mut self, n: u8) {
        self.bytes.push(n);
    }

    /// A 32-bit number.
    pub fn u32(&mut self, n: u32) {
        self.bytes.extend_from_slice(&n.to_le_bytes());
    }

    /// A 64-bit number.
    pub fn u64(&mut self, n: u64) {
        self.bytes.extend_from_slice(&n.to_le_bytes());
    }

    /// A number of as many bytes as it needs.
    pub fn varint(&mut self, mut n: u64) {
        while n > 0x7f {
            self.u8(n as u8 | 0x80);
            n >>= 7;
        }
        self.u8(n as u8);
    }

    /// 0 or 1.
    pub fn bool(&mut self, flag: bool) {
        self.u8(u8::from(flag));
    }

    /// Bytes without a length.
    pub fn array(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// A length. Lengths are bounded where values are made, far below 32 bits.
    pub fn length(&mut self, length: usize) {
        self.u32(u32::try_from(length).expect("lengths are bounded where values are made"));
    }

    /// Bytes behind their length.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.length(bytes.len());
        self.array(bytes);
    }

    /// Bytes behind their length, as short as it is.
    pub fn short_bytes(&mut self, bytes: &[u8]) {
        self.varint(bytes.len() as u64);
        self.array(bytes);
    }

    /// What was written.
    pub fn finish(self) -> Bytes {
        Bytes::from(self.bytes)
    }
}
