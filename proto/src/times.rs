//! Durations between the standard library and the wire.

use prost_types::Duration as Wire;
use std::time::Duration;

/// A duration for the wire; one that is too long for it becomes the longest.
pub fn duration(span: Duration) -> Wire {
    Wire::try_from(span).unwrap_or(Wire { seconds: i64::MAX, nanos: 999_999_999 })
}

/// A duration from the wire; `None` where it is negative, or no duration at all.
pub fn span(wire: &Wire) -> Option<Duration> {
    Duration::try_from(*wire).ok()
}
