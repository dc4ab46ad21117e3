//! Fingerprints: what tells two members, or two messages, apart.

use std::fmt::{self, Write};
use xxhash_rust::xxh3::Xxh3;

/// Fields of the core that count or time what happens; no rule of agreement reads them (see the crate's
/// documentation). Whatever is not named here tells states apart.
const MASKED: &[&str] = &[
    "random",
    "nonce",
    "last_canvass",
    "next_sequence",
    "completed_sequence",
    "issued_watermarks",
    "written",
    "durable_written",
    "last_id",
    "idle_beats",
    "attempts",
    "sequence",
    "last_answer",
    "heard",
    "deadline",
    "next_beat",
    "since",
    "sent",
    "resent",
    "touched",
    "caught_up_once",
    "last_request",
];

/// Hashes a `Debug` text as it is written, but for the values of masked fields.
pub struct Print {
    hash: Xxh3,
    text: String,
}

impl Default for Print {
    fn default() -> Print {
        Print { hash: Xxh3::new(), text: String::with_capacity(8 << 10) }
    }
}

impl Print {
    /// Takes in the `Debug` text of `value`, without masked fields.
    pub fn masked(&mut self, value: &dyn fmt::Debug) {
        self.text.clear();
        // Writing into a string cannot fail.
        let _ = write!(self.text, "{value:?}");
        let text = std::mem::take(&mut self.text);
        let mut rest = text.as_str();
        while let Some(colon) = rest.find(": ") {
            let name_at = rest[..colon].rfind([' ', '{', '(', '[']).map_or(0, |at| at + 1);
            self.hash.update(&rest.as_bytes()[..colon]);
            let masked = MASKED.contains(&&rest[name_at..colon]);
            rest = &rest[colon + 2..];
            if masked {
                rest = &rest[value_length(rest)..];
            }
        }
        self.hash.update(rest.as_bytes());
        self.text = text;
    }

    /// Takes in bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.hash.update(&(bytes.len() as u64).to_le_bytes());
        self.hash.update(bytes);
    }

    /// The fingerprint of all that was taken in.
    pub fn finish(&self) -> u128 {
        self.hash.digest128()
    }
}

/// How far the value of a field reaches: up to the comma or bracket that ends it.
fn value_length(text: &str) -> usize {
    let mut depth = 0_i32;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' if depth == 0 => return at,
            b'}' | b')' | b']' => depth -= 1,
            b',' if depth == 0 => return at,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    #[allow(dead_code, reason = "only their text is read")]
    struct Inner {
        kept: u64,
        written: u64,
    }
    #[derive(Debug)]
    #[allow(dead_code, reason = "only their text is read")]
    struct Outer {
        random: (u64, [u64; 2]),
        inner: Vec<Inner>,
        last: Option<u64>,
    }

    fn print(kept: u64, written: u64, random: u64, last: Option<u64>) -> u128 {
        let mut print = Print::default();
        print.masked(&Outer { random: (random, [random; 2]), inner: vec![Inner { kept, written }], last });
        print.finish()
    }

    #[test]
    fn only_what_is_not_masked_tells_apart() {
        let one = print(1, 2, 3, None);
        assert_eq!(one, print(1, 7, 8, None));
        assert_ne!(one, print(2, 2, 3, None));
        assert_ne!(one, print(1, 2, 3, Some(4)));
    }
}
