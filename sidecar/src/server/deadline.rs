//! Deadlines of callers.

use std::time::Duration;
use tokio::time::Instant;
use tonic::codegen::http::HeaderMap;
use tonic::metadata::MetadataMap;

/// How long a call without a deadline may wait.
const DEFAULT: Duration = Duration::from_secs(30);

/// When to answer a call. The caller's own deadline, told by `grpc-timeout`, less a little: an answer that says
/// what is known is worth more than the transport's bare "deadline exceeded". On a busy machine either end may be some
/// tens of milliseconds late.
pub(super) fn of(metadata: &MetadataMap) -> Instant {
    let span = match told(metadata.as_ref()) {
        Some(span) => span - (span / 10).min(Duration::from_millis(100)),
        None => DEFAULT,
    };
    Instant::now() + span
}

/// When any answer must be given, or else the transport ends the call without a word; `None`: it does not.
pub(super) fn last(headers: &HeaderMap) -> Option<Instant> {
    told(headers).map(|span| Instant::now() + span - (span / 40).min(Duration::from_millis(25)))
}

fn told(headers: &HeaderMap) -> Option<Duration> {
    headers.get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(parse)
}

/// The wire format of gRPC: up to eight digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3_600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// gRPC over HTTP2, "Timeout".
    #[test]
    fn timeouts_have_units() {
        assert_eq!(parse("5S"), Some(Duration::from_secs(5)));
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse("99999999u"), Some(Duration::from_micros(99_999_999)));
        for bad in ["", "S", "5", "5x", "-1S", "123456789S", "\u{e9}"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
