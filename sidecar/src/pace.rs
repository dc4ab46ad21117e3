//! So many bytes a second, for all who share it.

use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How far transfers may run ahead of the clock.
const BURST: Duration = Duration::from_millis(50);

/// Spreads bytes over time.
#[derive(Debug)]
pub(crate) struct Pace {
    rate: u64,
    /// When what was let through so far is paid for.
    paid: Mutex<Instant>,
}

impl Pace {
    /// `rate` bytes a second.
    pub(crate) fn new(rate: u64) -> Pace {
        Pace { rate: rate.max(1), paid: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` more may pass; who came first goes first.
    pub(crate) async fn pass(&self, bytes: usize) {
        let mut paid = self.paid.lock().await;
        let wait = self.wait(&mut paid, Instant::now(), bytes);
        tokio::time::sleep(wait).await;
    }

    /// Books `bytes` at `now`: how long they must wait.
    fn wait(&self, paid: &mut Instant, now: Instant, bytes: usize) -> Duration {
        let cost = Duration::from_nanos((bytes as u64).saturating_mul(1_000_000_000) / self.rate);
        *paid = (*paid).max(now) + cost;
        paid.saturating_duration_since(now).saturating_sub(BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_pass_at_the_rate() {
        let pace = Pace::new(1_000_000);
        let began = Instant::now();
        let (mut now, mut paid) = (began, began);
        for _ in 0..20 {
            now += pace.wait(&mut paid, now, 100_000);
        }
        assert_eq!(now - began, Duration::from_secs(2) - BURST);
        // What was not used is not saved up.
        now += Duration::from_secs(60);
        assert_eq!(pace.wait(&mut paid, now, 100_000), Duration::from_millis(100) - BURST);
    }
}
