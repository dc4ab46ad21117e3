//! What happened, as a hash that two runs of one seed must share, and as lines for a person.

use synod_sim::trace::Trace as Hash;

/// Hashes every call and every fault; keeps the lines only where somebody wants to read them.
#[derive(Debug)]
pub struct Trace {
    hash: Hash,
    keep: bool,
    start: i64,
    lines: Vec<String>,
}

impl Trace {
    /// A trace; `keep` its lines.
    pub fn new(keep: bool, start: i64) -> Trace {
        Trace { hash: Hash::new(false), keep, start, lines: Vec::new() }
    }

    fn text(&mut self, at: i64, kind: u8, text: &str) {
        // Eight bytes at a time, so that every byte counts.
        for chunk in text.as_bytes().chunks(8) {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            self.hash.step(u64::try_from(at).unwrap_or(0), kind, u64::from_le_bytes(bytes), 0);
        }
    }

    /// Notes something that happened.
    pub fn step(&mut self, at: i64, text: &str) {
        self.text(at, 1, text);
    }

    /// Notes a call of an operator.
    pub fn call(&mut self, at: i64, operator: usize, method: &str, path: &str, code: u16) {
        self.text(at, 2, method);
        self.text(at, 3, path);
        self.hash.step(u64::try_from(at).unwrap_or(0), 4, operator as u64, code.into());
    }

    /// Notes a line for a person; `line` is made only if it is kept.
    pub fn line(&mut self, at: i64, line: impl FnOnce() -> String) {
        if self.keep {
            self.lines.push(format!("{:>9.3}s {}", (at - self.start) as f64 / 1e3, line()));
        }
    }

    /// The hash so far.
    pub fn digest(&self) -> u64 {
        self.hash.digest()
    }

    /// The kept lines.
    pub fn into_lines(self) -> Vec<String> {
        self.lines
    }
}
