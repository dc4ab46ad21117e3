//! Planted bugs of the operator, and a seed that shows each.

/// A bug and who sees it.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Its name, as in `operator/src/planted.rs`.
    pub bug: &'static str,
    /// A seed that shows it.
    pub seed: u64,
    /// How many of the first 100 seeds do.
    pub of_100: u32,
}

/// The table.
pub const SEEN: &[Seen] = &[];

/// Bugs that can be planted and that no seed has shown yet.
pub const UNSEEN: &[&str] = &[];
