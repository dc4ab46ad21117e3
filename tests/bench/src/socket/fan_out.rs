//! One writer, many readers.

use super::{Options, cluster, report};
use bytes::Bytes;
use futures::StreamExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use synod_client::{Client, End};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// The writer's appends under way.
const UNDER_WAY: usize = 1_024;

pub(super) async fn run(options: &Options) -> anyhow::Result<()> {
    for readers in [10, 100] {
        let cluster = cluster(options).await?;
        let leader = cluster.leader().await?;
        let writer = cluster.members[leader].client()?;
        let given = Arc::new(AtomicU64::new(0));
        let mut all = JoinSet::new();
        let end = Arc::new(AtomicU64::new(u64::MAX));
        for number in 0..readers {
            // Spread over the members, each on connections of its own.
            let client = Client::connect(&cluster.members[number % cluster.members.len()].socket)?;
            let (given, end) = (given.clone(), end.clone());
            all.spawn(async move {
                let mut entries = client.subscribe_until(1, End::Never);
                let mut next = 1;
                while let Some(Ok(entry)) = entries.next().await {
                    if entry.index != next {
                        return false;
                    }
                    given.fetch_add(1, Ordering::Relaxed);
                    if next >= end.load(Ordering::Relaxed) {
                        return true;
                    }
                    next += 1;
                }
                false
            });
        }
        let began = Instant::now();
        let span = options.span();
        let appends = futures::stream::repeat_with(|| writer.append(Bytes::from_static(&[b'x'; 100])))
            .take_while(|_| std::future::ready(began.elapsed() < span))
            .buffered(UNDER_WAY)
            .fold((0_u64, 0_u64), |(done, failed), outcome| {
                std::future::ready(if outcome.is_ok() { (done + 1, failed) } else { (done, failed + 1) })
            });
        let (appended, failed) = appends.await;
        let writing = began.elapsed().as_secs_f64();
        // Where a reader is past the end already, one more entry shows it that.
        end.store(writer.append("the last").await?.last_index, Ordering::Relaxed);
        writer.append("one more").await?;
        let in_order = all.join_all().await.into_iter().all(|in_order| in_order);
        let reading = began.elapsed().as_secs_f64();
        let figures = serde_json::json!({
            "readers": readers, "appended_per_second": appended as f64 / writing, "failed": failed,
            "given_per_second": given.load(Ordering::Relaxed) as f64 / reading, "last_reader_behind_s": reading - writing,
            "in_order": in_order,
        });
        report("fan-out", &figures)?;
    }
    Ok(())
}
