//! Makes the `:authority` of stock gRPC clients one that the HTTP/2 library takes.
//!
//! A client of a Unix socket has no host to name. gRPC's C core (Python, Ruby, PHP, C++) sends the percent-encoded path,
//! Java sends the path itself; the `http` crate takes neither for an authority, and the stream is reset before any
//! handler sees it. Nothing here looks at the authority, so its bytes may be others: [`Authorities`] follows the frames
//! of a connection as they are read, and changes the refused bytes of that one field in place.
//!
//! No byte is added or removed, so lengths, padding and flow control stay true, and both ends keep the same dynamic
//! table: the decoder enters the changed value there and finds it when the client refers to it later. That needs no
//! table here, since where a field begins and ends follows from the bytes alone. A byte of a Huffman code is exchanged
//! for one whose code is as long and differs in a bit that comes after what tells the two apart from all others, so that
//! one bit at a time is enough.

/// What every HTTP/2 client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
/// The field's name, and the same in Huffman's code.
const NAME: &[u8] = b":authority";
const NAME_CODED: &[u8] = &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f];
/// The field's name in the static table.
const NAME_INDEX: u32 = 1;
/// No header block that the server takes has a longer field.
const LARGEST: u32 = 1 << 24;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const PADDED: u8 = 0x8;
const WITH_PRIORITY: u8 = 0x20;

/// Follows what one client sends. It holds some dozens of bytes, whatever comes.
#[derive(Debug)]
pub(super) struct Authorities {
    place: Place,
    block: Block,
}

/// Where in the connection the next byte is.
#[derive(Debug)]
enum Place {
    Preface(usize),
    /// In something else than HTTP/2.
    Untouched,
    FrameHeader([u8; FRAME_HEADER], usize),
    Frame(Frame),
}

/// The rest of a frame.
#[derive(Debug)]
struct Frame {
    left: usize,
    /// Whether a header block's fields are in it.
    has_fields: bool,
    /// Whether the next byte says how long the padding at the end is.
    padded: bool,
    padding: usize,
    /// Bytes of the priority, before the fields.
    priority: usize,
}

impl Authorities {
    pub(super) fn new() -> Authorities {
        Authorities { place: Place::Preface(0), block: Block::new() }
    }

    /// Changes what was just read; to be given every byte of the connection once, in order.
    pub(super) fn edit(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let taken = match &mut self.place {
                Place::Untouched => return,
                Place::Preface(seen) if bytes[0] == PREFACE[*seen] => {
                    *seen += 1;
                    if *seen == PREFACE.len() {
                        self.place = Place::FrameHeader([0; FRAME_HEADER], 0);
                    }
                    1
                }
                Place::Preface(_) => {
                    self.place = Place::Untouched;
                    return;
                }
                Place::FrameHeader(header, seen) => {
                    header[*seen] = bytes[0];
                    *seen += 1;
                    if *seen == FRAME_HEADER {
                        let frame = Frame::of(header);
                        if header[3] == HEADERS {
                            self.block = Block::new();
                        }
                        self.place = Place::Frame(frame);
                    }
                    1
                }
                Place::Frame(frame) => frame.take(&mut self.block, bytes),
            };
            if matches!(&self.place, Place::Frame(frame) if frame.left == 0) {
                self.place = Place::FrameHeader([0; FRAME_HEADER], 0);
            }
            bytes = &mut bytes[taken..];
        }
    }
}

impl Frame {
    fn of(header: &[u8; FRAME_HEADER]) -> Frame {
        let [high, middle, low, kind, flags, ..] = *header;
        let is_first = kind == HEADERS;
        Frame {
            left: usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low),
            has_fields: is_first || kind == CONTINUATION,
            padded: is_first && flags & PADDED != 0,
            padding: 0,
            priority: if is_first && flags & WITH_PRIORITY != 0 { 5 } else { 0 },
        }
    }

    /// Takes some of the bytes, at least one; none where the frame is at its end.
    fn take(&mut self, block: &mut Block, bytes: &mut [u8]) -> usize {
        let most = self.left.min(bytes.len());
        let taken = if !self.has_fields || most == 0 {
            most
        } else if self.padded {
            self.padded = false;
            self.padding = usize::from(bytes[0]);
            1
        } else if self.priority > 0 {
            self.priority -= 1;
            1
        } else if self.left <= self.padding {
            most
        } else {
            let fields = most.min(self.left - self.padding);
            bytes[..fields].iter_mut().for_each(|byte| block.take(byte));
            fields
        };
        self.left -= taken;
        taken
    }
}

/// The fields of a header block (RFC 7541), as far as it takes to find their ends.
#[derive(Debug)]
struct Block {
    at: At,
    /// Whether the name that was read last is the authority's.
    is_authority: bool,
}

#[derive(Debug)]
enum At {
    /// At the first byte of a field.
    Field,
    /// In an integer that did not fit into its first byte.
    Integer {
        value: u32,
        shift: u32,
        of: Integer,
    },
    /// At the first byte of a string.
    Length {
        is_name: bool,
    },
    Text(Text),
    /// Behind what is in no block: the server refuses it.
    Broken,
}

/// What an integer tells.
#[derive(Clone, Copy, Debug)]
enum Integer {
    /// A whole field, or a size: nothing follows.
    Alone,
    /// The index of a name, before its value. 0: the name itself follows.
    Name,
    /// A string's length.
    Length { is_name: bool, is_coded: bool },
}

#[derive(Debug)]
struct Text {
    left: u32,
    seen: usize,
    is_name: bool,
    is_coded: bool,
    /// Whether a name is the authority's so far, or a value's codes are all known so far.
    fits: bool,
    /// The bits of the code that has begun, and how many.
    code: (u8, u8),
}

impl Block {
    fn new() -> Block {
        Block { at: At::Field, is_authority: false }
    }

    fn take(&mut self, byte: &mut u8) {
        match &mut self.at {
            At::Broken => {}
            At::Field => {
                let (bits, of) = match *byte {
                    0x80.. => (7, Integer::Alone),
                    0x40.. => (6, Integer::Name),
                    0x20.. => (5, Integer::Alone),
                    _ => (4, Integer::Name),
                };
                self.integer(*byte, bits, of);
            }
            At::Length { is_name } => {
                let of = Integer::Length { is_name: *is_name, is_coded: *byte & 0x80 != 0 };
                self.integer(*byte, 7, of);
            }
            At::Integer { value, shift, of } => {
                let more =
                    u32::from(*byte & 0x7f).checked_shl(*shift).and_then(|more| value.checked_add(more));
                let of = *of;
                match more {
                    Some(value) if value <= LARGEST && *shift <= 21 => {
                        let is_last = *byte & 0x80 == 0;
                        let shift = *shift + 7;
                        self.at = At::Integer { value, shift, of };
                        if is_last {
                            self.told(value, of);
                        }
                    }
                    _ => self.at = At::Broken,
                }
            }
            At::Text(text) => {
                if text.is_name {
                    text.compare(*byte);
                } else if self.is_authority {
                    text.mend(byte);
                }
                text.left -= 1;
                if text.left == 0 {
                    let (is_name, fits, seen) = (text.is_name, text.fits, text.seen);
                    let name = if text.is_coded { NAME_CODED } else { NAME };
                    if is_name {
                        self.is_authority = fits && seen == name.len();
                    }
                    self.ended(is_name);
                }
            }
        }
    }

    /// An integer begins with the lowest `bits` of this byte.
    fn integer(&mut self, byte: u8, bits: u32, of: Integer) {
        let most = (1 << bits) - 1;
        let value = byte & most;
        self.at = At::Integer { value: u32::from(value), shift: 0, of };
        if value < most {
            self.told(u32::from(value), of);
        }
    }

    fn told(&mut self, value: u32, of: Integer) {
        match of {
            Integer::Alone => self.at = At::Field,
            Integer::Name => {
                self.is_authority = value == NAME_INDEX;
                self.at = At::Length { is_name: value == 0 };
            }
            Integer::Length { is_name, .. } if value == 0 => {
                self.is_authority &= !is_name;
                self.ended(is_name);
            }
            Integer::Length { is_name, is_coded } => {
                self.at =
                    At::Text(Text { left: value, seen: 0, is_name, is_coded, fits: true, code: (0, 0) });
            }
        }
    }

    /// A string is over.
    fn ended(&mut self, is_name: bool) {
        self.at = if is_name { At::Length { is_name: false } } else { At::Field };
    }
}

impl Text {
    fn compare(&mut self, byte: u8) {
        let name = if self.is_coded { NAME_CODED } else { NAME };
        self.fits &= name.get(self.seen) == Some(&byte);
        self.seen = self.seen.saturating_add(1);
    }

    fn mend(&mut self, byte: &mut u8) {
        if !self.is_coded {
            if !is_taken(*byte) {
                *byte = b'-';
            }
            return;
        }
        for place in (0..8).rev() {
            if !self.fits {
                return;
            }
            *byte |= u8::from(self.is_to_change()) << place;
            self.push(*byte >> place & 1);
        }
    }

    /// Whether the code's next bit has to be 1 for the byte to be one that is taken: a space or a percent sign becomes a
    /// hyphen or a dot, a slash becomes a 3.
    fn is_to_change(&self) -> bool {
        matches!(self.code, (0b0101, 4) | (0b01100, 5))
    }

    fn push(&mut self, bit: u8) {
        let (bits, count) = (self.code.0 << 1 | bit, self.code.1 + 1);
        let is_whole = match count {
            5 => bits <= 0b01001,
            6 => bits <= 0b10_1101,
            7 => bits <= 0b111_1011,
            8 => true,
            _ => false,
        };
        // Codes of more than 8 bits are of bytes that no path should have: the value stays as it is from here on.
        self.fits = !(count == 8 && bits > 0b1111_1101);
        self.code = if is_whole { (0, 0) } else { (bits, count) };
    }
}

/// Whether the byte may be in an authority.
fn is_taken(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@[]".contains(&byte)
}

#[cfg(test)]
mod tests;
