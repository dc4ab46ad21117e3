//! Real processes on links of a few megabytes a second, with entries of a megabyte (docs: reliability.md, "Slow links").
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::narrow::Narrow;
use common::{Cluster, free_address, until};
use futures::TryStreamExt;
use std::time::{Duration, Instant};
use synod_client::{AppendError, AppendOptions, Entry, ReadOptions};
use tokio::task::JoinSet;

/// Appends at a time, of so many bytes each.
const APPENDS: usize = 32;
const ENTRY: usize = 1_000_000;
/// How long an append may take: many times what the links need for all.
const APPEND_PATIENCE: Duration = Duration::from_secs(240);
/// Bytes on all links for a byte that is acknowledged: from the follower to the leader, and to two followers; and a part of
/// it again where a link was given up.
const MOST_SENT: f64 = 3.5;

/// Bytes a second of a link, each way; `SYNOD_LINK_RATE` has others tried.
fn rate() -> u64 {
    std::env::var("SYNOD_LINK_RATE").map_or(4_000_000, |rate| rate.parse().expect("bytes a second"))
}

/// Three members on such links.
async fn cluster() -> (Cluster, Vec<Narrow>) {
    // The links first: a member says when it starts where it is reached.
    let mut links = Vec::new();
    let listens: Vec<_> = (0..3).map(|_| free_address()).collect();
    for member in &listens {
        links.push(Narrow::to(*member, rate()).await);
    }
    let mut places = listens.iter().zip(&links);
    let cluster = Cluster::prepared(3, |member| {
        let (listens, link) = places.next().unwrap();
        (member.peer, member.reached) = (*listens, Some(link.address));
    })
    .await;
    cluster.form().await;
    (cluster, links)
}

fn entry(number: usize) -> Bytes {
    let mut entry = vec![b'x'; ENTRY];
    let text = format!("{number} ");
    entry[..text.len()].copy_from_slice(text.as_bytes());
    entry.into()
}

/// All appends at once, at one member.
fn append_all(cluster: &Cluster, at: usize) -> JoinSet<(usize, Result<u64, AppendError>)> {
    let client = cluster.members[at].client();
    let mut appends = JoinSet::new();
    for number in 0..APPENDS {
        let client = client.clone();
        let options = AppendOptions { timeout: APPEND_PATIENCE, ..AppendOptions::default() };
        appends.spawn(async move {
            let appended = client.append_with(vec![entry(number)], options).await;
            (number, appended.map(|appended| appended.first_index))
        });
    }
    appends
}

fn sent(links: &[Narrow]) -> u64 {
    links.iter().map(Narrow::passed).sum()
}

/// Property: every value goes over a narrow link once (docs: reliability.md, "Slow links"; the case: 17 to 22 bytes were
/// sent for each that was acknowledged).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_crosses_a_narrow_link_once() {
    let (cluster, links) = cluster().await;
    let follower = (cluster.leader().await + 1) % 3;
    let (before, began) = (sent(&links), Instant::now());
    let results = append_all(&cluster, follower).join_all().await;
    let mut indexes: Vec<u64> = results.into_iter().map(|(_, appended)| appended.unwrap()).collect();
    indexes.sort_unstable();
    indexes.dedup();
    assert_eq!(indexes.len(), APPENDS, "each has an index of its own");
    let share = (sent(&links) - before) as f64 / (APPENDS * ENTRY) as f64;
    println!(
        "{} bytes/s: {:.1} s, {share:.2} bytes sent for each acknowledged",
        rate(),
        began.elapsed().as_secs_f64()
    );
    assert!(share <= MOST_SENT, "{share:.2} bytes were sent for each that was acknowledged");
}

/// Property: with large values undecided on narrow links another leader is found, and what was acknowledged is in its log
/// (docs: reliability.md, "Slow links"; the case: none within 60 and 90 s).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_is_found_over_narrow_links_with_large_values_undecided() {
    let (mut cluster, links) = cluster().await;
    let leader = cluster.leader().await;
    let (follower, before) = ((leader + 1) % 3, sent(&links));
    let mut appends = append_all(&cluster, follower);
    // Some are decided, most are not.
    let first = appends.join_next().await.unwrap().unwrap();
    cluster.members[leader].kill();
    let began = Instant::now();
    let next = until("another member leads", || async {
        let next = cluster.leader().await;
        if next == leader { Err(next) } else { Ok(next) }
    })
    .await;
    println!("{} bytes/s: another leader after {:.1} s", rate(), began.elapsed().as_secs_f64());
    let mut results = appends.join_all().await;
    results.push(first);
    println!("{:.2} bytes sent for each appended", (sent(&links) - before) as f64 / (APPENDS * ENTRY) as f64);
    let page = cluster.members[next].client();
    let mut acknowledged = 0;
    for (number, appended) in results {
        let index = match appended {
            Ok(index) => index,
            // It is told what it cannot know; nothing is refused for good on a cluster with a quorum.
            Err(AppendError::Unknown(_)) => continue,
            Err(error) => panic!("append {number}: {error}"),
        };
        acknowledged += 1;
        let one = ReadOptions { limit: Some(1), ..ReadOptions::default() };
        let read: Vec<Entry> = page.read(index, one).try_collect().await.unwrap();
        assert!(read[0].index == index && read[0].payload == entry(number), "{number} at {index}");
    }
    println!("{acknowledged} of {APPENDS} acknowledged");
    assert!(acknowledged > 0);
}
