//! Members that come back to a log that went on without them (docs: storage.md, "Catching up").
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{Cluster, Member, stderr, until};
use futures::{StreamExt, TryStreamExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use synod_client::{AppendOptions, CallError, Client, Consistency, Entry, ReadOptions};
use tokio::task::JoinSet;

/// Appends that go on until they are told to stop.
struct Appends {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Appends {
    fn start(client: &Client) -> Appends {
        let (stop, mut tasks) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        for task in 0..8 {
            let (client, stop) = (client.clone(), stop.clone());
            tasks.spawn(async move {
                let entry = Bytes::from(vec![task; 10_000]);
                while !stop.load(Ordering::Relaxed) {
                    let options = AppendOptions { timeout: common::PATIENCE, ..AppendOptions::default() };
                    client.append_with(vec![entry.clone()], options).await.unwrap();
                }
            });
        }
        Appends { stop, tasks }
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.join_all().await;
    }
}

/// Waits until the log of `leader` begins behind a slot.
async fn trimmed_past(leader: &Member, slot: u64) {
    until("the log goes on without it", || async {
        let trimmed = leader.answers().await.trim_through;
        if trimmed > slot { Ok(()) } else { Err((trimmed, slot)) }
    })
    .await;
}

/// Waits until a member has on its disk what the leader knows to be chosen now.
async fn is_there(member: &Member, leader: &Member) {
    let target = leader.answers().await.chosen_through;
    until("it is there", || async {
        let durable = member.answers().await.durable_through;
        if durable >= target { Ok(()) } else { Err((durable, target)) }
    })
    .await;
}

/// Where a member's log begins.
async fn first_index(member: &Member) -> u64 {
    match member.client().read(1, ReadOptions::default()).next().await.unwrap() {
        Ok(first) => first.index,
        Err(error) => error.first_index.unwrap(),
    }
}

/// What a member has of the log.
async fn entries(member: &Member, from: u64) -> Result<Vec<Entry>, CallError> {
    let options = ReadOptions { consistency: Consistency::Linearizable, ..ReadOptions::default() };
    member.client().read(from, options).try_collect().await
}

/// Property: a member that falls behind the trim again and again, and is killed on its way back, still gets there while
/// appends go on, and has the same log (docs: protocol.md, "Snapshots, checkpoints, trim": each retry is faster).
#[tokio::test(flavor = "multi_thread")]
async fn who_falls_behind_again_and_again_gets_there() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let late = (leader + 1) % 3;
    let told = cluster.members[leader].admin(&["settings", "--retain-bytes", "1000000"]);
    assert!(told.status.success(), "{}", stderr(&told));
    let appends = Appends::start(&cluster.members[leader].client());
    for round in 0..6 {
        let before = cluster.members[late].answers().await;
        cluster.members[late].kill();
        trimmed_past(&cluster.members[leader], before.chosen_through).await;
        cluster.members[late].start();
        if round % 2 == 0 {
            // Killed again wherever it is then.
            cluster.members[late].answers().await;
            continue;
        }
        let late = &cluster.members[late];
        until("it installs a snapshot", || async {
            let trimmed = late.answers().await.trim_through;
            if trimmed > before.chosen_through { Ok(()) } else { Err(trimmed) }
        })
        .await;
    }
    let (leader, late) = (&cluster.members[leader], &cluster.members[late]);
    for _ in 0..3 {
        is_there(late, leader).await;
    }
    appends.end().await;
    is_there(late, leader).await;
    // The last trim may still be under way.
    let (has, should) = until("both read from where the log begins", || async {
        let first = first_index(leader).await;
        let (has, should) = (entries(late, first).await, entries(leader, first).await);
        match (has, should) {
            (Ok(has), Ok(should)) => Ok((has, should)),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    })
    .await;
    assert!(should.len() >= 100, "{} are retained", should.len());
    assert_eq!(has, should);
}
