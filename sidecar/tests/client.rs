//! The Rust SDK against real members.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{Cluster, Member, until};
use futures::future::join_all;
use futures::{StreamExt, TryStreamExt};
use rustix::process::{Pid, Signal};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use synod_client::{AppendOptions, Client, Consistency, End, ReadOptions, Reason, Start, Subscription};

fn signal(member: &Member, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(member.process()).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

fn patient() -> AppendOptions {
    AppendOptions { timeout: Duration::from_secs(60), ..AppendOptions::default() }
}

/// Appends `count` entries at once; gives their indexes in the order in which their futures were polled first.
async fn together(client: &Client, count: usize) -> Vec<u64> {
    let polled = AtomicUsize::new(0);
    let one = |n: usize| {
        let polled = &polled;
        async move {
            let place = polled.fetch_add(1, Ordering::Relaxed);
            let appended = client.append_with(vec![Bytes::from(n.to_string())], patient()).await.unwrap();
            (place, appended.first_index)
        }
    };
    let mut indexes = join_all((0..count).map(one)).await;
    indexes.sort_unstable();
    indexes.into_iter().map(|(_, index)| index).collect()
}

/// Fault S3: two awaits stood before a call had its place, and later calls overtook it.
#[tokio::test(flavor = "multi_thread")]
async fn appends_are_in_the_order_of_their_calls() {
    let cluster = Cluster::of(1).await;
    let client = cluster.members[0].client();
    for count in [300, 10_000] {
        let indexes = together(&client, count).await;
        let inversions = indexes.windows(2).filter(|pair| pair[0] > pair[1]).count();
        assert_eq!((inversions, indexes.len()), (0, count));
    }
}

/// Fault S9: four streams that nobody read used up the one connection's window, and appends waited for ever.
#[tokio::test(flavor = "multi_thread")]
async fn appends_do_not_wait_for_readers() {
    let cluster = Cluster::of(1).await;
    let client = cluster.members[0].client();
    for _ in 0..12 {
        client.append_many(vec![Bytes::from(vec![b'x'; 1 << 10]); 1_000]).await.unwrap();
    }
    let mut unread: Vec<Subscription> = Vec::new();
    for _ in 0..16 {
        let mut subscription = client.subscribe(1);
        assert_eq!(subscription.next().await.unwrap().unwrap().index, 1);
        unread.push(subscription);
    }
    // Appends, and other calls, too.
    let appended = client.append("after").await.unwrap();
    assert_eq!(client.tail(Consistency::Linearizable).await.unwrap(), appended.first_index);
    for mut subscription in unread {
        let rest = subscription.by_ref().take(usize::try_from(appended.first_index).unwrap() - 1);
        assert_eq!(rest.try_collect::<Vec<_>>().await.unwrap().last().unwrap().index, appended.first_index);
    }
}

/// Fault S17: more time than the clock can add was a panic.
#[tokio::test(flavor = "multi_thread")]
async fn any_timeout_will_do() {
    let cluster = Cluster::of(1).await;
    let client = cluster.members[0].client().timeout(Duration::MAX);
    let options = AppendOptions { timeout: Duration::MAX, ..AppendOptions::default() };
    client.append_with(vec!["entry".into()], options).await.unwrap();
    assert_eq!(client.tail(Consistency::StaleBounded(Duration::MAX)).await.unwrap(), 1);
    client.consumers().timeout(Duration::MAX).register("one").await.unwrap();
    client.checkpoints().timeout(Duration::MAX).save(1, std::io::Cursor::new(b"state")).await.unwrap();
}

/// Fault S14: a member that stands still was waited for without an end.
#[tokio::test(flavor = "multi_thread")]
async fn calls_to_a_member_that_stands_still_end() {
    let cluster = Cluster::of(1).await;
    let member = &cluster.members[0];
    let client = member.client().timeout(Duration::from_millis(500));
    client.append("entry").await.unwrap();
    signal(member, Signal::STOP);
    let stat = format!("/proc/{}/stat", member.process());
    until("it stands still", || async {
        let stat = std::fs::read_to_string(&stat).unwrap();
        if stat.contains(") T ") { Ok(()) } else { Err(stat) }
    })
    .await;
    for consistency in [Consistency::Linearizable, Consistency::Sequential] {
        assert!(client.tail(consistency).await.is_err());
        let read = client.read(1, ReadOptions { consistency, ..ReadOptions::default() });
        assert!(read.try_collect::<Vec<_>>().await.is_err());
    }
    assert!(client.status().await.is_err());
    assert!(client.consumers().list(Consistency::Linearizable).await.is_err());
    signal(member, Signal::CONT);
    until("it answers again", || async { client.status().await.map_err(|error| error.reason) }).await;
}

/// Streams need nothing of the client that made them.
fn subscribed(client: &Client) -> Subscription {
    client.subscribe_until(Start::FirstRetained, End::Index(3))
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_begin_and_end_where_they_are_told() {
    let cluster = Cluster::of(1).await;
    let client = cluster.members[0].client();
    for n in 1..=5 {
        client.append(format!("{n}")).await.unwrap();
    }
    async fn indexes(subscription: Subscription) -> Vec<u64> {
        subscription.map_ok(|entry| entry.index).try_collect().await.unwrap()
    }
    assert_eq!(indexes(subscribed(&client)).await, [1, 2, 3]);
    assert_eq!(indexes(client.subscribe_until(2, End::Tail)).await, [2, 3, 4, 5]);
    let consumers = client.consumers();
    consumers.register_at("reader", 3).await.unwrap();
    assert_eq!(
        indexes(client.subscribe_until(Start::Consumer("reader".to_owned()), End::Tail)).await,
        [4, 5]
    );
    let unknown = client.subscribe(Start::Consumer("nobody".to_owned())).try_next().await.unwrap_err();
    assert_eq!(unknown.reason, Reason::UnknownConsumer);
    assert_eq!(indexes(client.subscribe_until(Start::Now, End::Tail)).await, [0_u64; 0]);
    let mut live = client.subscribe(Start::Now);
    // When it has begun shows only when an entry comes.
    let mut appended = 5;
    let first = loop {
        tokio::select! {
            entry = live.next() => break entry.unwrap().unwrap().index,
            more = client.append("live") => appended = more.unwrap().first_index,
        }
    };
    assert!(first > 5, "{first}");
    appended = client.append("last").await.unwrap().first_index.max(appended);
    let rest = live.take(usize::try_from(appended - first).unwrap()).map_ok(|entry| entry.index);
    assert_eq!(rest.try_collect::<Vec<u64>>().await.unwrap(), (first + 1..=appended).collect::<Vec<_>>());
}
