use super::*;
use proptest::prelude::*;

/// How a test writes a string.
#[derive(Clone, Copy, Debug)]
enum Form {
    Plain,
    Coded,
}

#[derive(Clone, Debug)]
enum Name {
    /// In the static table.
    Index(u32),
    Text(Form, Vec<u8>),
}

#[derive(Clone, Debug)]
enum Field {
    Indexed(u32),
    Size(u32),
    Literal { how: (u8, u32), name: Name, form: Form, value: Vec<u8> },
}

/// Huffman codes of up to 8 bits (RFC 7541, appendix B), in the order of the codes.
const CODES: [(u32, u32, &[u8]); 4] = [
    (5, 0x0, b"012aceiost"),
    (6, 0x14, b" %-./3456789=A_bdfghlmnpru"),
    (7, 0x5c, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, 0xf8, b"&*,;XZ"),
];

fn code(byte: u8) -> (u32, u32) {
    let find = |(length, first, bytes): &(u32, u32, &[u8])| {
        let place = bytes.iter().position(|other| *other == byte)?;
        Some((*length, first + u32::try_from(place).unwrap()))
    };
    CODES.iter().find_map(find).unwrap()
}

fn coded(text: &[u8]) -> Vec<u8> {
    let mut bits: Vec<u8> = Vec::new();
    for byte in text {
        let (length, code) = code(*byte);
        bits.extend((0..length).rev().map(|place| u8::from(code >> place & 1 == 1)));
    }
    bits.resize(bits.len().next_multiple_of(8), 1);
    bits.chunks(8).map(|bits| bits.iter().fold(0, |byte, bit| byte << 1 | bit)).collect()
}

fn decoded(bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    let (mut length, mut bits) = (0, 0);
    for place in 0..8 * bytes.len() {
        bits = bits << 1 | u32::from(bytes[place / 8] >> (7 - place % 8) & 1);
        length += 1;
        let known = CODES.iter().find(|(long, first, all)| {
            *long == length && (*first..first + u32::try_from(all.len()).unwrap()).contains(&bits)
        });
        if let Some((_, first, all)) = known {
            text.push(all[usize::try_from(bits - first).unwrap()]);
            (length, bits) = (0, 0);
        }
    }
    text
}

fn integer(out: &mut Vec<u8>, pattern: u8, bits: u32, value: u32) {
    let most = (1 << bits) - 1;
    if value < most {
        out.push(pattern | u8::try_from(value).unwrap());
        return;
    }
    out.push(pattern | u8::try_from(most).unwrap());
    let mut rest = value - most;
    while rest >= 0x80 {
        out.push(u8::try_from(rest & 0x7f).unwrap() | 0x80);
        rest >>= 7;
    }
    out.push(u8::try_from(rest).unwrap());
}

fn string(out: &mut Vec<u8>, form: Form, text: &[u8]) -> std::ops::Range<usize> {
    let (mark, bytes) = match form {
        Form::Plain => (0, text.to_vec()),
        Form::Coded => (0x80, coded(text)),
    };
    integer(out, mark, 7, u32::try_from(bytes.len()).unwrap());
    let begin = out.len();
    out.extend(bytes);
    begin..out.len()
}

/// The block, and where in it the authorities' values are.
fn block(fields: &[Field]) -> (Vec<u8>, Vec<(Form, std::ops::Range<usize>)>) {
    let (mut out, mut values) = (Vec::new(), Vec::new());
    for field in fields {
        match field {
            Field::Indexed(index) => integer(&mut out, 0x80, 7, *index),
            Field::Size(size) => integer(&mut out, 0x20, 5, *size),
            Field::Literal { how: (pattern, bits), name, form, value } => {
                let is_authority = match name {
                    Name::Index(index) => {
                        integer(&mut out, *pattern, *bits, *index);
                        *index == NAME_INDEX
                    }
                    Name::Text(form, text) => {
                        integer(&mut out, *pattern, *bits, 0);
                        string(&mut out, *form, text);
                        text == NAME
                    }
                };
                let range = string(&mut out, *form, value);
                if is_authority {
                    values.push((*form, range));
                }
            }
        }
    }
    (out, values)
}

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let [_, high, middle, low] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![high, middle, low, kind, flags, 0, 0, 0, 1];
    frame.extend(payload);
    frame
}

/// What came out, given the bytes in pieces of these sizes.
fn edited(bytes: &[u8], pieces: &[usize]) -> Vec<u8> {
    let (mut authorities, mut bytes) = (Authorities::new(), bytes.to_vec());
    let mut sizes = pieces.iter().cycle();
    let mut begin = 0;
    while begin < bytes.len() {
        let end = sizes.next().map_or(bytes.len(), |size| (begin + size).min(bytes.len()));
        authorities.edit(&mut bytes[begin..end]);
        begin = end;
    }
    bytes
}

fn form() -> impl Strategy<Value = Form> {
    prop_oneof![Just(Form::Plain), Just(Form::Coded)]
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    let bytes: Vec<u8> = CODES.iter().flat_map(|(_, _, bytes)| bytes.to_vec()).collect();
    prop::collection::vec(prop::sample::select(bytes), 0..200)
}

fn field() -> impl Strategy<Value = Field> {
    let name = prop_oneof![
        Just(Name::Index(NAME_INDEX)),
        (2..500_u32).prop_map(Name::Index),
        form().prop_map(|form| Name::Text(form, NAME.to_vec())),
        (form(), text()).prop_map(|(form, name)| Name::Text(form, name)),
    ];
    let how = prop::sample::select(vec![(0x40, 6), (0x10, 4), (0, 4)]);
    prop_oneof![
        (1..500_u32).prop_map(Field::Indexed),
        (0..5_000_u32).prop_map(Field::Size),
        (how, name, form(), text()).prop_map(|(how, name, form, value)| Field::Literal {
            how,
            name,
            form,
            value
        }),
    ]
}

/// A connection whose second frame, cut in two, holds the block.
fn connection(block: &[u8], cut: usize, padding: Option<u8>, priority: bool) -> (Vec<u8>, Vec<usize>) {
    let (first, second) = block.split_at(cut.min(block.len()));
    let mut payload = Vec::new();
    payload.extend(padding);
    payload.extend(priority.then_some([0x41, 0x25, b'%', 0, 1]).into_iter().flatten());
    let begin = payload.len();
    payload.extend(first);
    payload.resize(payload.len() + usize::from(padding.unwrap_or(0)), b'%');
    let flags = if padding.is_some() { PADDED } else { 0 } | if priority { WITH_PRIORITY } else { 0 };
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frame(4, 0, &[0, 5, 0, 0, b'%', b'/']));
    let at = bytes.len() + FRAME_HEADER + begin;
    bytes.extend(frame(HEADERS, flags, &payload));
    let then = bytes.len() + FRAME_HEADER;
    bytes.extend(frame(CONTINUATION, 4, second));
    bytes.extend(frame(0, 1, b"data: 100% /, A%2F"));
    let places = (0..first.len()).map(|place| at + place).chain((0..second.len()).map(|place| then + place));
    (bytes, places.collect())
}

proptest! {
    /// Whatever the block: nothing but the values of authorities changes, and these are taken afterwards.
    #[test]
    fn only_authorities_change(
        fields in prop::collection::vec(field(), 0..12),
        cut in 0..4_000_usize,
        padding in prop::option::of(any::<u8>()),
        priority in any::<bool>(),
        pieces in prop::collection::vec(1..40_usize, 1..6),
    ) {
        let (block, values) = block(&fields);
        let (bytes, places) = connection(&block, cut, padding, priority);
        let after = edited(&bytes, &pieces);
        prop_assert_eq!(&edited(&bytes, &[]), &after);
        let mut expected = bytes.clone();
        for (form, range) in values {
            let is_empty = range.is_empty();
            for place in range.clone() {
                expected[places[place]] = after[places[place]];
            }
            let value: Vec<u8> = range.map(|place| after[places[place]]).collect();
            let value = match form {
                Form::Plain => value,
                Form::Coded => decoded(&value),
            };
            prop_assert!(value.iter().all(|byte| is_taken(*byte)), "{}", String::from_utf8_lossy(&value));
            prop_assert_eq!(value.is_empty(), is_empty);
        }
        prop_assert_eq!(expected, after);
    }

    /// Bytes that are no connection, and frames that hold no block, change nothing they should not and end nothing.
    #[test]
    fn garbage_is_passed_on(bytes in prop::collection::vec(any::<u8>(), 0..2_000), pieces in prop::collection::vec(1..99_usize, 1..4)) {
        prop_assert_eq!(edited(&bytes, &pieces), bytes.clone());
        let mut connection = PREFACE.to_vec();
        connection.extend(frame(HEADERS, 0x2d, &bytes));
        connection.extend(&bytes);
        prop_assert_eq!(edited(&connection, &pieces).len(), connection.len());
    }
}

/// What stock clients send: the C core writes the name out, Java refers to the static table.
#[test]
fn paths_become_authorities() {
    let of = |name: Name, form, value: &str| {
        let field = Field::Literal { how: (0x40, 6), name, form, value: value.as_bytes().to_vec() };
        let (bytes, values) = block(&[Field::Indexed(2), field, Field::Indexed(62)]);
        let (bytes, places) = connection(&bytes, 9, None, false);
        let after = edited(&bytes, &[7]);
        let value: Vec<u8> = values[0].1.clone().map(|place| after[places[place]]).collect();
        String::from_utf8(match form {
            Form::Plain => value,
            Form::Coded => decoded(&value),
        })
        .unwrap()
    };
    let text = || Name::Text(Form::Plain, NAME.to_vec());
    assert_eq!(of(text(), Form::Plain, "run%2Fsynod%2Fsynod.sock"), "run-2Fsynod-2Fsynod.sock");
    assert_eq!(of(Name::Index(1), Form::Plain, "/run/my synod.sock"), "-run-my-synod.sock");
    assert_eq!(of(Name::Index(1), Form::Coded, "/run/a%20b"), "3run3a.20b");
    assert_eq!(of(text(), Form::Coded, "localhost:80"), "localhost:80");
    assert_eq!(of(text(), Form::Plain, "[::1]:7400"), "[::1]:7400");
}
