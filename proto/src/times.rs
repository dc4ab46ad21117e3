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
    // Not by the library, which negates what it refuses: the least number has no negative.
    let seconds = u64::try_from(wire.seconds).ok()?;
    let nanos = u32::try_from(wire.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Duration::new(seconds, nanos))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by random calls: the least number of seconds ended the process that read it.
    #[test]
    fn what_is_no_duration_is_none() {
        for (seconds, nanos) in [(i64::MIN, 0), (i64::MIN, i32::MIN), (-1, 0), (0, -1), (0, 1_000_000_000)] {
            assert_eq!(span(&Wire { seconds, nanos }), None, "{seconds} {nanos}");
        }
        assert_eq!(span(&Wire { seconds: 1, nanos: 5 }), Some(Duration::new(1, 5)));
        assert_eq!(span(&duration(Duration::MAX)), Some(Duration::new(i64::MAX as u64, 999_999_999)));
    }
}
