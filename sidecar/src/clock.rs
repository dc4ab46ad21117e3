//! The member's clock.

use std::time::{SystemTime, UNIX_EPOCH};
use synod_paxos::{Instant, Time};

/// Nanoseconds since the machine booted, suspended time included (CLOCK_BOOTTIME): leases and silences are
/// judged by it (docs: protocol.md, "Leases and reads").
pub fn now() -> Instant {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    Instant(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// What the wall clock says; it may go back, and nothing is judged by it (docs: decisions/0040).
pub fn wall() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time(u64::try_from(since.as_micros()).unwrap_or(u64::MAX).min(Time::LATEST.0))
}

/// A number that differs from start to start.
///
/// # Errors
/// If the system has no randomness to give.
pub fn seed() -> std::io::Result<u64> {
    let mut bytes = [0_u8; 8];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if filled == bytes.len() {
        Ok(u64::from_le_bytes(bytes))
    } else {
        Err(std::io::ErrorKind::UnexpectedEof.into())
    }
}
