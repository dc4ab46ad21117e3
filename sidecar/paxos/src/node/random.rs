//! The core's own small generator: seeded by the driver, so that a run can be repeated.

/// SplitMix64 (Steele, Lea, Flood: *Fast Splittable Pseudorandom Number Generators*, 2014). Not for secrets.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Evenly from 0 to `span`, to the nanosecond.
    pub(super) fn up_to(&mut self, span: core::time::Duration) -> core::time::Duration {
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        core::time::Duration::from_nanos(if nanos == 0 { 0 } else { self.next() % nanos })
    }
}
