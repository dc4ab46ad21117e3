//! Counts the fields of a message (protobuf) before it is decoded.
//!
//! An entry without a payload takes two bytes on the wire and dozens in memory. No message that is taken has as many
//! fields as would matter; one that does is refused while its bytes come.

/// Fields of the largest call, with room for what later versions add.
const MOST: u32 = 4_096 + 1_024;

/// More fields than a message may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooMany;

/// Follows the bytes of one message.
#[derive(Debug)]
pub(super) struct Fields {
    /// The field whose own fields count, too.
    nested: Option<u64>,
    count: u32,
    at: At,
}

#[derive(Debug)]
enum At {
    Tag(Integer),
    /// The integer that is a field's value.
    Value(Integer),
    /// The length of the value of this field.
    Length(Integer, u64),
    Skip(u64),
    /// What is no message is left to the decoder.
    Broken,
}

#[derive(Debug, Default)]
struct Integer {
    value: u64,
    shift: u32,
}

impl Integer {
    /// `Some` with the last byte. An integer that is too long has no value.
    fn take(&mut self, byte: u8) -> Option<Option<u64>> {
        if self.shift > 63 {
            return Some(None);
        }
        self.value |= u64::from(byte & 0x7f) << self.shift;
        self.shift += 7;
        (byte & 0x80 == 0).then_some(Some(self.value))
    }
}

fn tag() -> At {
    At::Tag(Integer::default())
}

impl Fields {
    /// Of a message whose field of this number is a message, too.
    pub(super) fn new(nested: Option<u64>) -> Fields {
        Fields { nested, count: 0, at: tag() }
    }

    pub(super) fn take(&mut self, mut bytes: &[u8]) -> Result<(), TooMany> {
        while let Some((byte, rest)) = bytes.split_first() {
            match &mut self.at {
                At::Broken => return Ok(()),
                At::Skip(left) => {
                    let skipped = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= skipped as u64;
                    bytes = &bytes[skipped..];
                    if *left == 0 {
                        self.at = tag();
                    }
                    continue;
                }
                At::Tag(integer) => {
                    if let Some(tag) = integer.take(*byte) {
                        self.begin(tag)?;
                    }
                }
                At::Value(integer) => {
                    if integer.take(*byte).is_some() {
                        self.at = tag();
                    }
                }
                At::Length(integer, field) => {
                    let field = *field;
                    match integer.take(*byte) {
                        // The fields of a nested message follow like those around it.
                        Some(Some(_)) if Some(field) == self.nested => self.at = tag(),
                        Some(Some(0)) => self.at = tag(),
                        Some(Some(length)) => self.at = At::Skip(length),
                        Some(None) => self.at = At::Broken,
                        None => {}
                    }
                }
            }
            bytes = rest;
        }
        Ok(())
    }

    fn begin(&mut self, tag: Option<u64>) -> Result<(), TooMany> {
        self.count += 1;
        if self.count > MOST {
            return Err(TooMany);
        }
        self.at = match tag.map(|tag| (tag & 7, tag >> 3)) {
            Some((0, _)) => At::Value(Integer::default()),
            Some((1, _)) => At::Skip(8),
            Some((2, field)) => At::Length(Integer::default(), field),
            Some((5, _)) => At::Skip(4),
            _ => At::Broken,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message;
    use synod_proto::v1::{AppendRequest, AppendStreamRequest};

    fn append(entries: usize, bytes: usize) -> AppendRequest {
        let entries = vec![vec![0xff; bytes].into(); entries];
        AppendRequest { entries, expected_index: Some(u64::MAX), ..AppendRequest::default() }
    }

    fn count(nested: Option<u64>, bytes: &[u8], piece: usize) -> Result<u32, TooMany> {
        let mut fields = Fields::new(nested);
        bytes.chunks(piece).try_for_each(|piece| fields.take(piece))?;
        Ok(fields.count)
    }

    #[test]
    fn the_largest_calls_pass_and_larger_ones_do_not() {
        for (entries, bytes, passes) in [(1, 1 << 20, true), (4_096, 256, true), (6_000, 0, false)] {
            let append = append(entries, bytes);
            let alone = append.encode_to_vec();
            let tagged = AppendStreamRequest { tag: 7, append: Some(append), timeout_ms: 9 }.encode_to_vec();
            for piece in [1, 1_000, usize::MAX] {
                assert_eq!(count(None, &alone, piece).is_ok(), passes);
                assert_eq!(count(Some(2), &tagged, piece).is_ok(), passes);
            }
        }
    }

    proptest! {
        #[test]
        fn a_message_has_as_many_fields_as_it_has(entries in 0..99_usize, bytes in 0..300_usize, piece in 1..99_usize) {
            let append = append(entries, bytes);
            let fields = u32::try_from(entries).unwrap() + 1;
            prop_assert_eq!(count(None, &append.encode_to_vec(), piece), Ok(fields));
            let tagged = AppendStreamRequest { tag: 7, append: Some(append), timeout_ms: 9 };
            prop_assert_eq!(count(Some(2), &tagged.encode_to_vec(), piece), Ok(fields + 3));
        }

        #[test]
        fn garbage_ends_nothing(bytes in prop::collection::vec(any::<u8>(), 0..3_000), piece in 1..99_usize) {
            prop_assert_eq!(count(Some(2), &bytes, piece), count(Some(2), &bytes, usize::MAX));
        }
    }
}
