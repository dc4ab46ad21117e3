//! The member's clock.

use synod_paxos::Instant;

/// Nanoseconds since the machine booted, suspended time included (CLOCK_BOOTTIME): leases and silences are
/// judged by it (docs: protocol.md, "Leases and reads").
pub fn now() -> Instant {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    Instant(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
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
