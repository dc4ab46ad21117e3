//! Whether what was given up leaves a connection: a transport keeps it for as long as nothing is taken off the socket.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// How long what was given up may stay in memory because its connection takes nothing.
const GRACE: Duration = Duration::from_millis(200);

/// Counts what a connection holds of shares that were ended for others.
#[derive(Debug, Default)]
pub(super) struct Wire {
    /// Shares that were ended so far.
    ended: AtomicU64,
    /// Of those, shares that are out of memory.
    left: AtomicU64,
    more: Notify,
    /// Pieces of answers that were made so far: none is made while nothing is taken.
    pieces: AtomicU64,
}

impl Wire {
    /// A share was ended: what it is for is still in memory.
    pub(super) fn ended(&self) {
        self.ended.fetch_add(1, Ordering::AcqRel);
        self.more.notify_one();
    }

    /// What a share was for that was ended is out of memory.
    pub(super) fn left(&self) {
        self.left.fetch_add(1, Ordering::AcqRel);
    }

    /// A piece of an answer goes to the transport, which has room for it.
    pub(super) fn piece(&self) {
        self.pieces.fetch_add(1, Ordering::Relaxed);
    }

    /// How many pieces went to the transport.
    pub(super) fn pieces(&self) -> u64 {
        self.pieces.load(Ordering::Relaxed)
    }

    /// Resolves once something that was given up has not left for too long.
    pub(super) async fn stalled(&self) {
        loop {
            self.more.notified().await;
            let ended = self.ended.load(Ordering::Acquire);
            tokio::time::sleep(GRACE).await;
            // They leave about in the order in which they were ended: each stream has its turn.
            if self.left.load(Ordering::Acquire) < ended {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_stays_is_told() {
        let wire = Wire::default();
        wire.ended();
        wire.left();
        let waited = tokio::time::timeout(GRACE * 2, wire.stalled()).await;
        assert!(waited.is_err(), "what left was taken for what stays");
        wire.ended();
        wire.stalled().await;
    }
}
