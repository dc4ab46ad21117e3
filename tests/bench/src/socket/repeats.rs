//! The same appends again and again, through every member, while leaders are killed.

use super::{Options, cluster, report};
use anyhow::bail;
use futures::{StreamExt, TryStreamExt};
use std::collections::HashMap;
use std::time::Duration;
use synod_client::{AppendOptions, IdempotencyKey, ReadOptions, Repeats};
use tokio::time::Instant;

/// Appends; each is retried so often that all retries are made.
const KEYS: u64 = 20_000;
/// Retries under way.
const UNDER_WAY: usize = 512;
/// Between two killed leaders.
const BETWEEN: Duration = Duration::from_secs(4);

pub(super) async fn run(options: &Options) -> anyhow::Result<()> {
    let mut cluster = cluster(options).await?;
    let clients: Result<Vec<_>, _> = cluster.members.iter().map(|member| member.client()).collect();
    let clients = clients?;
    let retries = options.retries;
    let tries = futures::stream::iter(0..retries + KEYS).map(|n| {
        let client = clients[usize::try_from(n % 3).unwrap_or(0)].clone();
        let name = format!("append {}", n % KEYS);
        let repeats = Repeats::Key(IdempotencyKey::new(name.clone()));
        let how = AppendOptions { repeats, timeout: Duration::from_secs(60), ..AppendOptions::default() };
        async move { client.append_with(vec![name.into()], how).await }
    });
    let began = Instant::now();
    let mut tries = Box::pin(tries.buffer_unordered(UNDER_WAY));
    let (mut answered, mut repeated, mut unknown, mut changes) = (0_u64, 0_u64, 0_u64, 0_u64);
    let mut places: HashMap<u64, u64> = HashMap::new();
    let mut next_kill = began + BETWEEN;
    while let Some(outcome) = tries.next().await {
        match outcome {
            Ok(appended) => {
                answered += 1;
                repeated += u64::from(appended.repeated);
                *places.entry(appended.first_index).or_insert(0) += 1;
            }
            Err(error) => {
                unknown += 1;
                eprintln!("a try failed: {error}");
            }
        }
        if Instant::now() >= next_kill {
            let leader = cluster.leader().await?;
            cluster.restart(leader..leader + 1)?;
            changes += 1;
            next_kill = Instant::now() + BETWEEN;
        }
    }
    drop(tries);
    let entries: Vec<_> = clients[0].read(1, ReadOptions::default()).try_collect().await?;
    let mut counts: HashMap<_, u64> = HashMap::new();
    for entry in &entries {
        *counts.entry(entry.payload.clone()).or_insert(0) += 1;
    }
    let duplicates = counts.values().filter(|count| **count > 1).count();
    let figures = serde_json::json!({
        "retries": retries, "answered": answered, "answered_as_repeats": repeated, "unknown": unknown, "leaders_killed": changes,
        "entries": entries.len(), "duplicates": duplicates, "seconds": began.elapsed().as_secs_f64(),
    });
    report("retries", &figures)?;
    if duplicates > 0 || places.len() as u64 != KEYS {
        bail!("{duplicates} duplicates, {} places for {KEYS} appends", places.len());
    }
    Ok(())
}
