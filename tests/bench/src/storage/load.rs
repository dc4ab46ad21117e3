//! Appends that go on while something else is measured, and the log that it is measured on.

use anyhow::bail;
use bytes::Bytes;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use synod_client::Client;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// When an append was sent, and how long it took.
pub(super) type Sample = (Instant, Duration);

/// Appends in one stretch of time.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Foreground {
    pub(super) entries_per_second: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) max_ms: f64,
}

/// What one call appends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) entry_bytes: usize,
    pub(super) entries: usize,
}

/// Appends that go on in the background, each client's behind its last one.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    clients: JoinSet<Vec<Sample>>,
}

impl Load {
    pub(super) fn start(client: &Client, clients: u32, call: Call) -> Load {
        let (stop, mut tasks) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        let entries = vec![Bytes::from(vec![b'x'; call.entry_bytes]); call.entries];
        for _ in 0..clients {
            let (client, stop, entries) = (client.clone(), stop.clone(), entries.clone());
            tasks.spawn(async move {
                let mut samples = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let sent = Instant::now();
                    match client.append_many(entries.clone()).await {
                        Ok(_) => samples.push((sent, sent.elapsed())),
                        Err(error) => eprintln!("an append failed: {error}"),
                    }
                }
                samples
            });
        }
        Load { stop, clients: tasks }
    }

    /// Every append that was answered.
    pub(super) async fn end(self) -> Vec<Sample> {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.join_all().await.into_iter().flatten().collect()
    }
}

/// The appends that were sent between two moments; none: there were none.
pub(super) fn foreground(samples: &[Sample], (from, to): (Instant, Instant)) -> Option<Foreground> {
    let within = samples.iter().filter(|(sent, _)| (from..to).contains(sent));
    let mut latencies: Vec<Duration> = within.map(|(_, latency)| *latency).collect();
    latencies.sort_unstable();
    let last = latencies.len().checked_sub(1)?;
    let at =
        |permille: usize| latencies[(latencies.len() * permille / 1_000).min(last)].as_secs_f64() * 1_000.0;
    Some(Foreground {
        entries_per_second: latencies.len() as f64 / (to - from).as_secs_f64(),
        p50_ms: at(500),
        p99_ms: at(990),
        max_ms: at(1_000),
    })
}

/// Appends until the log has `mib` MiB of payload; gives how many bytes it is.
///
/// # Errors
/// A call of more than 1 MiB, or an append that failed.
pub(super) async fn fill_bytes(client: &Client, mib: u64, fillers: u32, call: Call) -> anyhow::Result<u64> {
    let bytes = call.entry_bytes as u64 * call.entries as u64;
    if bytes > 1 << 20 {
        bail!("a call of {bytes} bytes is too large: at most 1 MiB, so use a smaller --batch");
    }
    let calls = (mib << 20).div_ceil(bytes);
    fill(client, calls, fillers, call).await?;
    Ok(calls * bytes)
}

/// Appends by so many calls.
///
/// # Errors
/// An append that failed.
pub(super) async fn fill(client: &Client, calls: u64, fillers: u32, call: Call) -> anyhow::Result<()> {
    let Call { entry_bytes: size, entries: batch } = call;
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..fillers {
        let (client, next) = (client.clone(), next.clone());
        tasks.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= calls {
                    return Ok::<_, anyhow::Error>(());
                }
                // No two calls alike, so that nobody is helped by what repeats.
                let byte =
                    |at: usize| (number as usize).wrapping_mul(31).wrapping_add(at * 7 + (at >> 8)) as u8;
                let entry: Bytes = (0..size).map(byte).collect::<Vec<u8>>().into();
                client.append_many(vec![entry; batch]).await?;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}
