//! Counts the fields of a message (protobuf) before it is decoded.
//!
//! An entry without a payload takes two bytes on the wire and dozens in memory. No message that is taken has as many
//! fields as would matter; one that does is refused while its bytes come.

/// A message whose fields are counted: how many it may have, and which of them are messages that are counted, too.
#[derive(Debug)]
pub(super) struct Shape {
    most: u32,
    nested: &'static [(u64, &'static Shape)],
}

/// Any message: as many fields as the largest call has entries, with room for what later versions add.
pub(super) const ANY: Shape = Shape { most: 4_096 + 1_024, nested: &[] };
/// Entries with headers: each a payload, and the headers of the largest call.
const NEW_ENTRIES: Shape = Shape { most: 4_096 + 8_192 + 1_024, nested: &[] };
/// An append.
pub(super) const APPEND: Shape = Shape { most: ANY.most, nested: &[(8, &NEW_ENTRIES)] };
/// An append of a stream.
pub(super) const TAGGED_APPEND: Shape = Shape { most: ANY.most, nested: &[(2, &APPEND)] };

/// More fields than a message may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooMany;

/// Follows the bytes of one message.
#[derive(Debug)]
pub(super) struct Fields {
    /// The messages that the next byte is in, the innermost last: where it ends, and its shape.
    within: Vec<(u64, &'static Shape)>,
    /// Fields so far, for each depth.
    counts: Vec<u32>,
    /// Bytes so far.
    place: u64,
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
    /// Of a message of this shape.
    pub(super) fn new(shape: &'static Shape) -> Fields {
        Fields { within: vec![(u64::MAX, shape)], counts: Vec::new(), place: 0, at: tag() }
    }

    pub(super) fn take(&mut self, mut bytes: &[u8]) -> Result<(), TooMany> {
        while let Some((byte, rest)) = bytes.split_first() {
            match &mut self.at {
                At::Broken => return Ok(()),
                At::Skip(left) => {
                    let skipped = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= skipped as u64;
                    self.place += skipped as u64;
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
                        Some(Some(0)) => self.at = tag(),
                        Some(Some(length)) => self.at = self.enter(field, length),
                        Some(None) => self.at = At::Broken,
                        None => {}
                    }
                }
            }
            self.place += 1;
            bytes = rest;
        }
        Ok(())
    }

    /// What is in a field of this length, whose last byte of the length is the next that counts.
    fn enter(&mut self, field: u64, length: u64) -> At {
        let (_, shape) = self.innermost();
        match shape.nested.iter().find(|(number, _)| *number == field) {
            Some((_, nested)) => {
                self.within.push(((self.place + 1).saturating_add(length), nested));
                tag()
            }
            None => At::Skip(length),
        }
    }

    fn innermost(&self) -> (u64, &'static Shape) {
        self.within.last().copied().unwrap_or((u64::MAX, &ANY))
    }

    /// A field begins, of which the byte at `place` is the last of the tag.
    fn begin(&mut self, tag: Option<u64>) -> Result<(), TooMany> {
        while self.within.len() > 1 && self.place >= self.innermost().0 {
            self.within.pop();
        }
        let (depth, (_, shape)) = (self.within.len(), self.innermost());
        if self.counts.len() < depth {
            self.counts.resize(depth, 0);
        }
        let Some(count) = self.counts.get_mut(depth - 1) else { return Ok(()) };
        *count += 1;
        if *count > shape.most {
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
    use synod_proto::v1::{AppendRequest, AppendStreamRequest, NewEntry};

    fn append(entries: usize, bytes: usize) -> AppendRequest {
        let entries = vec![vec![0xff; bytes].into(); entries];
        AppendRequest { entries, expected_index: Some(u64::MAX), ..AppendRequest::default() }
    }

    fn with_headers(entries: usize, headers: usize, bytes: usize) -> AppendRequest {
        let header = |n| (format!("header-{n}"), "x".repeat(bytes));
        let entry = NewEntry { payload: vec![1; bytes].into(), headers: (0..headers).map(header).collect() };
        AppendRequest { new_entries: vec![entry; entries], ..AppendRequest::default() }
    }

    fn tagged(append: AppendRequest) -> Vec<u8> {
        AppendStreamRequest { tag: 7, append: Some(append), timeout_ms: 9 }.encode_to_vec()
    }

    fn count(shape: &'static Shape, bytes: &[u8], piece: usize) -> Result<Vec<u32>, TooMany> {
        let mut fields = Fields::new(shape);
        bytes.chunks(piece).try_for_each(|piece| fields.take(piece))?;
        Ok(fields.counts)
    }

    #[test]
    fn the_largest_calls_pass_and_larger_ones_do_not() {
        let plain = [(1, 1 << 20, true), (4_096, 256, true), (6_000, 0, false)]
            .map(|(entries, bytes, passes)| (append(entries, bytes), passes));
        let headed =
            [(4_096, 2, true), (256, 32, true), (4_096, 5, false), (6_000, 1, false), (1, 20_000, false)]
                .map(|(entries, headers, passes)| (with_headers(entries, headers, 1), passes));
        for (append, passes) in plain.into_iter().chain(headed) {
            let alone = append.encode_to_vec();
            let tagged = tagged(append);
            for piece in [1, 1_000, usize::MAX] {
                assert_eq!(count(&APPEND, &alone, piece).is_ok(), passes);
                assert_eq!(count(&TAGGED_APPEND, &tagged, piece).is_ok(), passes);
            }
        }
    }

    proptest! {
        #[test]
        fn a_message_has_as_many_fields_as_it_has(
            entries in 0..99_usize, headers in 0..9_usize, bytes in 1..300_usize, piece in 1..99_usize
        ) {
            let fields = u32::try_from(entries).unwrap() + 1;
            let plain = append(entries, bytes);
            prop_assert_eq!(count(&APPEND, &plain.encode_to_vec(), piece), Ok(vec![fields]));
            prop_assert_eq!(count(&TAGGED_APPEND, &tagged(plain), piece), Ok(vec![3, fields]));
            let headed = AppendRequest { fence: Some(4), ..with_headers(entries, headers, bytes) };
            let nested = u32::try_from(entries * (1 + headers)).unwrap();
            let counted: Vec<u32> = if entries == 0 { vec![fields] } else { vec![fields, nested] };
            prop_assert_eq!(count(&APPEND, &headed.encode_to_vec(), piece), Ok(counted.clone()));
            let counted = [vec![3], counted].concat();
            prop_assert_eq!(count(&TAGGED_APPEND, &tagged(headed), piece), Ok(counted));
        }

        #[test]
        fn garbage_ends_nothing(bytes in prop::collection::vec(any::<u8>(), 0..3_000), piece in 1..99_usize) {
            prop_assert_eq!(count(&TAGGED_APPEND, &bytes, piece), count(&TAGGED_APPEND, &bytes, usize::MAX));
        }
    }
}
