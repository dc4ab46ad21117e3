//! What real members have resident where there once was no bound (docs: reliability.md, "Bounds").
//!
//! `SYNOD_MEMORY_SECONDS` has the disk stand still for longer, `SYNOD_MEMORY_KEYS` has more keys in each snapshot; both print
//! what they saw.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::mounts::{Mounts, stand_still};
use common::{Cluster, Member, stderr, until};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use synod_client::{AppendOptions, IdempotencyKey, Repeats};
use tokio::task::JoinSet;

/// What a member may have resident (docs: reliability.md).
const MEMORY: u64 = 256 << 20;
const CLIENTS: usize = 16;
const ENTRY: usize = 500_000;
/// Marks that a log keeps while a forgotten consumer holds its trim back.
const MARKS: u64 = 32;
/// Appends behind the keys, one after the other.
const ROUNDS: usize = 1_500;
/// Keyed appends under way at a time.
const UNDER_WAY: usize = 256;
const APPEND_PATIENCE: Duration = Duration::from_secs(60);

fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |text| text.parse().expect("a number"))
}

fn options() -> AppendOptions {
    AppendOptions { timeout: APPEND_PATIENCE, ..AppendOptions::default() }
}

/// Each member's peak, in MiB, printed and judged.
fn judge(what: &str, members: &[Member]) {
    let peaks: Vec<u64> = members.iter().map(|member| member.peak_memory() >> 20).collect();
    println!("{what}: at most {peaks:?} MiB resident");
    assert!(peaks.iter().all(|peak| (1..=MEMORY >> 20).contains(peak)), "{what}: {peaks:?} MiB");
}

/// A follower whose disk stands still while the log grows: its queue ends, the others go on, and it catches up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_whose_disk_stands_still() {
    let mounts = Mounts::new();
    if !mounts.can_stand_still() {
        println!("no disk stands still here: that takes root and loop devices");
        return;
    }
    let seconds = number("SYNOD_MEMORY_SECONDS", 8);
    let cluster = Cluster::prepared(3, |member| {
        member.data_dir = mounts.disk(&member.data_dir.clone(), 16_384);
    })
    .await;
    cluster.form().await;
    let leader = cluster.leader().await;
    let follower = &cluster.members[(leader + 1) % 3];
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (client, stop, acknowledged) =
            (cluster.members[leader].client(), stop.clone(), acknowledged.clone());
        clients.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                client.append_with(vec![Bytes::from(vec![b'x'; ENTRY])], options()).await.unwrap();
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let mut standing = stand_still(&follower.data_dir, seconds as f64);
    let before = acknowledged.load(Ordering::Relaxed);
    assert!(tokio::task::spawn_blocking(move || standing.wait()).await.unwrap().unwrap().success());
    let meanwhile = acknowledged.load(Ordering::Relaxed) - before;
    stop.store(true, Ordering::Relaxed);
    clients.join_all().await;
    let last = cluster.members[leader].metric("synod_last_index");
    until("the follower catches up", || async {
        let its = follower.metric("synod_last_index");
        if its == last { Ok(()) } else { Err((its, last)) }
    })
    .await;
    let what = format!("{} MB appended in {seconds} s", meanwhile * ENTRY as u64 / 1_000_000);
    // More than a queue without a bound may hold of it.
    assert!(meanwhile as usize * ENTRY > 16 << 20, "{what}: the others did not go on");
    judge(&what, &cluster.members);
}

/// A forgotten consumer and a full table of keys: every mark has a snapshot, and they are on the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_that_a_forgotten_consumer_holds() {
    let keys = number("SYNOD_MEMORY_KEYS", 10_000);
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let client = cluster.members[leader].client();
    client.append("the first").await.unwrap();
    client.consumers().register("forgotten").await.unwrap();
    let mut appends = JoinSet::new();
    for key in 0..keys {
        if appends.len() >= UNDER_WAY {
            appends.join_next().await.unwrap().unwrap();
        }
        let client = client.clone();
        let repeats = Repeats::Key(IdempotencyKey::new(format!("a key of some length {key}")));
        let options = AppendOptions { repeats, ..options() };
        appends.spawn(async move {
            client.append_with(vec!["with a key".into()], options).await.unwrap();
        });
    }
    appends.join_all().await;
    let output = cluster.members[leader].admin(&["settings", "--retain-entries", "1000"]);
    assert!(output.status.success(), "{}", stderr(&output));
    // A mark at most a heartbeat, and one after so many entries.
    for _ in 0..ROUNDS {
        client.append_with(vec![Bytes::from_static(b"on"); 60], options()).await.unwrap();
    }
    judge(&format!("{keys} keys"), &cluster.members);
    for member in &mut cluster.members {
        member.terminate();
        let said = common::command(&["verify", member.data_dir.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let words: Vec<&str> = said.split_whitespace().collect();
        let at = words.iter().position(|word| word.starts_with("snapshots")).unwrap();
        let snapshots: u64 = words[at - 1].parse().unwrap();
        assert!(snapshots >= MARKS, "it was to hold many snapshots: {said}");
        println!("{} holds {snapshots} snapshots", member.name);
        member.start();
    }
    for member in &cluster.members {
        member.ready().await;
    }
    judge(&format!("{keys} keys, started again"), &cluster.members);
}
