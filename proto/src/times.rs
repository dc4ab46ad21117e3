//! Durations and times between the standard library and the wire.

use prost_types::Duration as Wire;
use prost_types::Timestamp;
use std::time::Duration;

/// A duration for the wire; one that is too long for it becomes the longest.
pub fn duration(span: Duration) -> Wire {
    Wire::try_from(span).unwrap_or(Wire { seconds: i64::MAX, nanos: 999_999_999 })
}

/// A duration from the wire; `None` where it is negative, or no duration at all.
pub fn span(wire: &Wire) -> Option<Duration> {
    Duration::try_from(*wire).ok()
}

/// A time for the wire: microseconds since the beginning of 1970.
pub fn timestamp(micros: u64) -> Timestamp {
    let (seconds, rest) = (micros / 1_000_000, micros % 1_000_000);
    // Both are in bounds: whole seconds of 64 bits of microseconds, and less than 10^9.
    Timestamp {
        seconds: i64::try_from(seconds).unwrap_or(i64::MAX),
        nanos: i32::try_from(rest * 1_000).unwrap_or(0),
    }
}

/// Microseconds since the beginning of 1970, a part of one up to the next; `None` where it is before that, or no time at
/// all.
pub fn micros(wire: &Timestamp) -> Option<u64> {
    let nanos = u32::try_from(wire.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    let whole = u64::try_from(wire.seconds).ok()?.checked_mul(1_000_000)?;
    whole.checked_add(u64::from(nanos.div_ceil(1_000)))
}
