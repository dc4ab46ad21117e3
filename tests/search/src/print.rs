//! Fingerprints: what tells two members, or two messages, apart.

use std::fmt::{self, Write};
use xxhash_rust::xxh3::Xxh3;

/// Fields of the core that count or time what happens; no rule of agreement reads them (see the crate's documentation).
/// Whatever is not named here, or below for its [`Depth`], tells states apart.
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
    // How busy a member is, by bytes and beats: it only says whom to ask, and how fast to answer.
    "pace",
];

/// Traces of what happened that serve only rules which a search leaves out. Which life a member is in, and what peers
/// remember of it, is none of them: a start that waits for every voter may wait for a write of one.
const TRACES: &[&str] = &[
    // A timer.
    "waiting_since",
    // When the system state rides with a write: after a million bytes, not after fifty.
    "system_bytes",
    "value_bytes",
    // Whom to ask for what was chosen: nobody is asked here.
    "holders",
    // What members answer to heartbeats: there are none here, so an empty record is as good as none.
    "progress",
];

/// What a promise changes that comes when its candidate adopts none any more: who has promised, and how far others
/// are. `promised` is masked where it is a map.
const LATE: &[&str] = &["reported_chosen", "known"];

/// What serves candidates, leaders and clients only; see [`Depth::Quiet`].
const QUIET: &[&str] = &[
    "election",
    "appends",
    "catch_up",
    "reads",
    "membership",
    "connected",
    "leases",
    "start",
    "reports",
    "queue",
    "queue_bytes",
    "taken",
    "stamped",
    "next_slot",
    "hand_over",
    "pending_change",
    "housekeeping",
    "housekept",
    "diverged_since",
];

/// How much tells two members apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// With the traces of what happened.
    Traces,
    /// All that its future may rest on.
    Full,
    /// But for what a late promise changes.
    Late,
    /// All that the future of a member may rest on that will not campaign again, and proposes nothing more within the
    /// bound: its disk, its acceptor, its ballot and votes for it, and what it applied.
    Quiet,
}

impl Depth {
    fn masks(self, name: &str, value: &str) -> bool {
        let traces = MASKED.contains(&name);
        let full = || traces || TRACES.contains(&name);
        let late = || full() || LATE.contains(&name) || name == "promised" && value.starts_with('{');
        match self {
            Depth::Traces => traces,
            Depth::Full => full(),
            Depth::Late => late(),
            Depth::Quiet => late() || QUIET.contains(&name),
        }
    }
}

/// Hashes a `Debug` text as it is written, but for the values of masked fields.
pub struct Print {
    hash: Xxh3,
    text: String,
    depth: Depth,
}

impl Default for Print {
    fn default() -> Print {
        Print::to(Depth::Full)
    }
}

impl Print {
    /// A print that goes so deep.
    pub fn to(depth: Depth) -> Print {
        Print { hash: Xxh3::new(), text: String::new(), depth }
    }

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
            let masked = self.depth.masks(&rest[name_at..colon], &rest[colon + 2..]);
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
