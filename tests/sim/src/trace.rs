//! What happened, as a hash that two runs of one seed must share, and as lines for a person.

use xxhash_rust::xxh3::Xxh3;

/// Hashes every step; keeps the lines only where somebody wants to read them.
#[derive(Default)]
pub struct Trace {
    hash: Xxh3,
    keep: bool,
    lines: Vec<String>,
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trace({:016x})", self.hash.digest())
    }
}

impl Trace {
    /// A trace; `keep` its lines.
    pub fn new(keep: bool) -> Trace {
        Trace { hash: Xxh3::new(), keep, lines: Vec::new() }
    }

    /// Notes a step by numbers that tell it apart from every other.
    pub fn step(&mut self, at: u64, kind: u8, a: u64, b: u64) {
        self.hash.update(&at.to_le_bytes());
        self.hash.update(&[kind]);
        self.hash.update(&a.to_le_bytes());
        self.hash.update(&b.to_le_bytes());
    }

    /// Notes a line for a person; `line` is made only if it is kept.
    pub fn line(&mut self, at: u64, line: impl FnOnce() -> String) {
        if self.keep {
            self.lines.push(format!("{:>10.3}ms  {}", at as f64 / 1e6, line()));
        }
    }

    /// Whether somebody wants the lines.
    pub fn is_kept(&self) -> bool {
        self.keep
    }

    /// The hash so far.
    pub fn digest(&self) -> u64 {
        self.hash.digest()
    }

    /// The kept lines.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }
}
