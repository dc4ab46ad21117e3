//! What the Rust SDK tells an application of its member, and how long it waits.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{Cluster, Member, PATIENCE, until};
use futures::{Stream, StreamExt, TryStreamExt};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::HashMap;
use std::time::Duration;
use synod_client::{
    AppendError, AppendOptions, Client, ConnectionEvent, Consistency, IdempotencyKey, ReadOptions, Reason,
    Repeats, SubscribeOptions,
};

fn minted() -> AppendOptions {
    AppendOptions { repeats: Repeats::Minted, timeout: Duration::from_secs(60), ..AppendOptions::default() }
}

async fn next<S: Stream + Unpin>(stream: &mut S) -> S::Item {
    tokio::time::timeout(PATIENCE, stream.next()).await.expect("something comes").expect("it goes on")
}

async fn read_all(client: &Client) -> Vec<String> {
    let entries = client.read(1, ReadOptions::default());
    let text = |entry: synod_client::Entry| String::from_utf8(entry.payload.to_vec()).unwrap();
    entries.map_ok(text).try_collect().await.unwrap()
}

/// docs: decisions/0047: exactly once by a key that the SDK makes, across killed leaders and a killed member.
#[tokio::test(flavor = "multi_thread")]
async fn appends_by_minted_keys_stand_once() {
    const CALLS: usize = 100;
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let through = (leader + 1) % 3;
    let client = cluster.members[through].client();
    let mut under_way = futures::stream::FuturesUnordered::new();
    for round in 0..3 {
        for n in 0..CALLS {
            let (client, text) = (client.clone(), format!("{round} {n}"));
            under_way.push(async move { client.append_with(vec![text.into()], minted()).await });
        }
        under_way.try_next().await.unwrap().unwrap();
        let victim = if round == 1 { cluster.leader().await } else { through };
        cluster.members[victim].kill();
        cluster.members[victim].start();
    }
    while under_way.try_next().await.unwrap().is_some() {}
    let mut counts = HashMap::new();
    for text in read_all(&client).await {
        *counts.entry(text).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), 3 * CALLS);
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
}

/// A key stays in the table when the client goes; a session would be closed with it.
#[tokio::test(flavor = "multi_thread")]
async fn an_append_by_a_minted_key_needs_no_session() {
    let cluster = Cluster::of(1).await;
    let member = &cluster.members[0];
    let client = member.client();
    assert_eq!(client.append_with(vec!["first".into()], minted()).await.unwrap().first_index, 1);
    assert_eq!(member.metric("synod_session_rows"), 1);
    client.close().await;
    assert_eq!(member.metric("synod_session_rows"), 1);
    let conditional = AppendOptions { expected_index: Some(7), ..minted() };
    let refused = client.append_with(vec!["never".into()], conditional).await.unwrap_err();
    assert_eq!(refused.to_string(), "not appended: the last index is 1, not the expected one");
}

/// A client that has seen nothing for so long that the log may have forgotten keys made since: the key is made anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_minted_key_is_as_old_as_the_append() {
    let cluster = Cluster::of(1).await;
    let member = &cluster.members[0];
    let quiet = member.client();
    assert_eq!(quiet.append_with(vec!["first".into()], minted()).await.unwrap().first_index, 1);
    let settings = ["settings", "--session-idle-ms", "1000", "--session-rows", "16"];
    assert!(member.admin(&settings).status.success());
    let busy = member.client();
    let key = || IdempotencyKey::new("an old one").minted_at(1);
    let passing = || AppendOptions { repeats: Repeats::Untold, ..AppendOptions::default() };
    until("the log has forgotten keys", || async {
        // Log time passes with what is appended; keys of others fill the table.
        busy.append_with(vec![Bytes::new()], passing()).await.map_err(|error| error.to_string())?;
        drop(busy.append_with(vec![Bytes::new()], minted()).await);
        let options = AppendOptions { repeats: Repeats::Key(key()), ..AppendOptions::default() };
        match busy.append_with(vec!["old".into()], options).await {
            Err(AppendError::Unknown(error)) if error.reason == Reason::KeyExpired => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let appended = until("there is a row for a young key", || async {
        busy.append_with(vec![Bytes::new()], passing()).await.map_err(|error| error.to_string())?;
        match quiet.append_with(vec!["last".into()], minted()).await {
            Err(AppendError::Refused(error)) if error.reason == Reason::TooManyKeys => Err(error.to_string()),
            outcome => Ok(outcome.unwrap()),
        }
    })
    .await;
    assert_eq!(appended.first_index, quiet.tail(Consistency::Linearizable).await.unwrap());
    assert!(!appended.repeated);
}

fn signal(member: &Member, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(member.process()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_tell_what_becomes_of_them() {
    let mut cluster = Cluster::of(1).await;
    let client = cluster.members[0].client();
    let mut events = client.connection_events();
    client.tail(Consistency::Linearizable).await.unwrap();
    assert_eq!(next(&mut events).await, ConnectionEvent::Connected);
    cluster.members[0].kill();
    assert_eq!(next(&mut events).await, ConnectionEvent::Lost);
    let hasty = client.clone().timeout(Duration::from_millis(100));
    assert_eq!(hasty.tail(Consistency::Linearizable).await.unwrap_err().reason, Reason::Transport);
    match next(&mut events).await {
        ConnectionEvent::Unreachable { message } => assert!(message.contains("refused"), "{message}"),
        other => panic!("{other:?}"),
    }
    cluster.members[0].start();
    client.tail(Consistency::Linearizable).await.unwrap();
    while next(&mut events).await != ConnectionEvent::Connected {}
    drop((client, hasty));
    assert_eq!(next(&mut events).await, ConnectionEvent::Lost);
    assert_eq!(tokio::time::timeout(PATIENCE, events.next()).await.expect("it ends"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_are_told_and_a_silent_member_leads_nothing() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let mut watched: Vec<_> = cluster.members.iter().map(|member| member.client().watch_role()).collect();
    let mut old = next(&mut watched[leader]).await.unwrap();
    while !old.leads {
        old = next(&mut watched[leader]).await.unwrap();
    }
    cluster.members[leader].kill();
    let lost = next(&mut watched[leader]).await.unwrap();
    assert_eq!((lost.leads, lost.fencing_epoch, lost.leader), (false, old.fencing_epoch, None));
    let others = watched.iter_mut().enumerate().filter(|(number, _)| *number != leader);
    let mut others = futures::stream::select_all(others.map(|(_, watched)| watched));
    let newer = loop {
        let now = next(&mut others).await.unwrap();
        if now.leads {
            break now;
        }
    };
    assert!(newer.fencing_epoch > old.fencing_epoch, "{old:?} {newer:?}");
    drop(others);
    // What it told is what an append goes by.
    let client = cluster.members[(leader + 1) % 3].client();
    let fenced = AppendOptions { fence: Some(old.fencing_epoch), ..AppendOptions::default() };
    let refused = client.append_with(vec!["old".into()], fenced).await.unwrap_err();
    assert!(refused.to_string().contains("FENCED"), "{refused}");
    let led = AppendOptions { fence: Some(newer.fencing_epoch), ..AppendOptions::default() };
    client.append_with(vec!["new".into()], led).await.unwrap();
    cluster.members[leader].start();
    // It is heard again, and follows.
    let again = next(&mut watched[leader]).await.unwrap();
    assert!(!again.leads && again.fencing_epoch >= old.fencing_epoch, "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_gives_up_when_it_is_told_to() {
    let mut cluster = Cluster::of(1).await;
    let client = cluster.members[0].client();
    client.append("entry").await.unwrap();
    let patience = Some(Duration::from_millis(200));
    let options = SubscribeOptions { give_up_after: patience, ..SubscribeOptions::default() };
    let mut entries = client.subscribe_with(1, options);
    assert_eq!(next(&mut entries).await.unwrap().index, 1);
    cluster.members[0].kill();
    assert_eq!(next(&mut entries).await.unwrap_err().reason, Reason::Transport);
    assert!(entries.next().await.is_none());
    // One that cannot begin gives up, too; one that was told nothing goes on when the member is back.
    assert_eq!(next(&mut client.subscribe_with(1, options)).await.unwrap_err().reason, Reason::Transport);
    let mut patient = client.subscribe(1);
    assert!(futures::poll!(patient.next()).is_pending());
    cluster.members[0].start();
    assert_eq!(next(&mut patient).await.unwrap().index, 1);
}

/// Fault S14: nothing waits without an end for a member that stands still.
#[tokio::test(flavor = "multi_thread")]
async fn closing_does_not_wait_for_a_member_that_stands_still() {
    let cluster = Cluster::of(1).await;
    let client = cluster.members[0].client().timeout(Duration::from_millis(300));
    client.append("entry").await.unwrap();
    signal(&cluster.members[0], Signal::STOP);
    let endless = AppendOptions { timeout: Duration::MAX, ..AppendOptions::default() };
    let mut append = Box::pin(client.append_with(vec!["under way".into()], endless));
    assert!(futures::poll!(&mut append).is_pending());
    tokio::time::timeout(PATIENCE, client.close()).await.expect("it ends");
    signal(&cluster.members[0], Signal::CONT);
    assert_eq!(append.await.unwrap().first_index, 2);
}
