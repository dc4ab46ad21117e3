//! Clusters of real processes: formed by admin calls, changed, killed, restarted.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{Cluster, id, stderr, until};
use futures::TryStreamExt;
use std::time::Duration;
use synod_client::wire::channel;
use synod_client::{AppendError, AppendOptions, Client, Consistency, ReadOptions};
use synod_proto::v1::log_client::LogClient;
use synod_proto::v1::{AppendRequest, MemberState, Role};

fn patient() -> AppendOptions {
    AppendOptions { timeout: Duration::from_secs(30), ..AppendOptions::default() }
}

async fn append(client: &Client, text: impl Into<Bytes>) -> u64 {
    client.append_with(vec![text.into()], patient()).await.unwrap().first_index
}

async fn read_all(client: &Client, consistency: Consistency) -> Vec<String> {
    let entries: Vec<_> =
        client.read(1, ReadOptions { limit: None, consistency }).try_collect().await.unwrap();
    assert!(entries.iter().zip(1..).all(|(entry, index)| entry.index == index));
    entries.iter().map(|entry| String::from_utf8(entry.payload.to_vec()).unwrap()).collect()
}

/// docs: architecture.md, "How data flows on an append".
#[tokio::test(flavor = "multi_thread")]
async fn three_members_keep_one_log() {
    let cluster = Cluster::of(3).await;
    let mut expected = Vec::new();
    for round in 0..5 {
        for (number, member) in cluster.members.iter().enumerate() {
            let text = format!("{round} through {number}");
            let index = append(&member.client(), text.clone()).await;
            expected.push(text);
            assert_eq!(index, expected.len() as u64);
        }
    }
    // An empty line is a valid entry.
    append(&cluster.members[0].client(), "").await;
    expected.push(String::new());
    for member in &cluster.members {
        assert_eq!(read_all(&member.client(), Consistency::Linearizable).await, expected);
        assert_eq!(member.client().tail(Consistency::Linearizable).await.unwrap(), 16);
    }
}

/// A call's entries share one slot; `expected_index` is judged at apply (docs: protocol.md, "Sessions").
#[tokio::test(flavor = "multi_thread")]
async fn calls_stand_or_fall_together() {
    let cluster = Cluster::of(1).await;
    let client = cluster.members[0].client();
    let many = client.append_many((0..100).map(|n| Bytes::from(format!("{n}"))).collect()).await.unwrap();
    assert_eq!((many.first_index, many.last_index), (1, 100));
    let expecting = |index| AppendOptions { expected_index: Some(index), ..patient() };
    let refused = client.append_with(vec!["no".into()], expecting(99)).await;
    assert!(matches!(refused, Err(AppendError::UnexpectedIndex { tail: 100 })), "{refused:?}");
    assert_eq!(client.append_with(vec!["yes".into()], expecting(100)).await.unwrap().first_index, 101);
    let limited = ReadOptions { limit: Some(3), ..ReadOptions::default() };
    let entries: Vec<_> = client.read(99, limited).try_collect().await.unwrap();
    assert_eq!(entries.iter().map(|e| e.payload.as_ref()).collect::<Vec<_>>(), [&b"98"[..], b"99", b"yes"]);
}

/// docs: reliability.md, faults 1 and 39: what was acknowledged before a kill -9 is there after it, once; and what
/// was under way is tried again until it is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_loses_nothing() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let other = (leader + 1) % 3;
    let client = cluster.members[other].client();
    let mut acknowledged = Vec::new();
    for n in 0..200 {
        if n == 100 {
            cluster.members[leader].kill();
        }
        let text = format!("entry {n}");
        acknowledged.push((append(&client, text.clone()).await, text));
    }
    cluster.members[leader].start();
    cluster.members[leader].ready().await;
    for member in &cluster.members {
        let log = read_all(&member.client(), Consistency::Linearizable).await;
        for (index, text) in &acknowledged {
            assert_eq!(&log[*index as usize - 1], text);
        }
        let mut sorted = log.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(sorted.len(), log.len(), "an entry stands twice");
    }
}

/// A subscription survives its member's restart: no skip, no repeat (docs: socket.md, "Subscribing").
#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_resumes() {
    let mut cluster = Cluster::of(3).await;
    let writer = cluster.members[0].client();
    let mut entries = cluster.members[1].client().subscribe(1);
    for round in 0..3 {
        for n in 0..50 {
            append(&writer, format!("{round} {n}")).await;
        }
        for n in 0..50 {
            let entry = entries.try_next().await.unwrap().unwrap();
            assert_eq!(entry.index, round * 50 + n + 1);
            assert_eq!(entry.payload, format!("{round} {n}"));
        }
        if round == 0 {
            cluster.members[1].kill();
            cluster.members[1].start();
        } else {
            assert_eq!(cluster.members[1].terminate(), Some(0));
            cluster.members[1].start();
        }
    }
}

/// docs: protocol.md, "Configurations": grow, shrink, then restart all: the configuration comes from the log.
#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go() {
    let mut cluster = Cluster::of(3).await;
    append(&cluster.members[0].client(), "before").await;
    let new = cluster.add().await;
    cluster.let_join(new, 0).await;
    let new_id = id(cluster.members[new].answers().await.member);
    let change = |leader: usize, arguments: &[&str]| {
        let output = cluster.members[leader].admin(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    };
    let leader = cluster.leader().await;
    change(leader, &["add-learner", "--member", &new_id, "--name", "n3"]);
    change(leader, &["promote", "--member", &new_id]);
    let (gone, gone_id) = {
        let gone = (leader + 1) % 3;
        (gone, id(cluster.members[gone].answers().await.member))
    };
    change(leader, &["remove", "--member", &gone_id]);
    let removed = until("the removed member knows it", || async {
        match synod_client::wire::status(&cluster.members[gone].client()).await {
            Ok(status) if status.state() == MemberState::Removed => Ok(status),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert!(!removed.ready);
    append(&cluster.members[new].client(), "after").await;
    let stay: Vec<usize> = (0..4).filter(|number| *number != gone).collect();
    for number in &stay {
        cluster.members[*number].kill();
    }
    for number in &stay {
        cluster.members[*number].start();
    }
    for number in &stay {
        let status = cluster.members[*number].ready().await;
        let configuration = status.configuration.unwrap();
        assert_eq!((configuration.version, configuration.members.len()), (4, 3));
        let log = read_all(&cluster.members[*number].client(), Consistency::Linearizable).await;
        assert_eq!(log, ["before", "after"]);
    }
    // A removed member's disk is renewed, and only with its own id.
    let wrong = cluster.members[gone].admin(&["renew", "--member", &new_id]);
    assert!(stderr(&wrong).contains("belongs to member"), "{}", stderr(&wrong));
    let output = cluster.members[gone].admin(&["renew", "--member", &gone_id]);
    assert!(output.status.success(), "{}", stderr(&output));
    let fresh = cluster.members[gone].answers().await;
    assert_eq!(fresh.state(), MemberState::Uninitialized);
    assert_ne!(id(fresh.member), gone_id);
}

/// docs: operator-rules.md, rule 5: a founder that waits for one whose disk is lost has promised nothing: it gives its
/// identity up and is formed anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_founder_that_waits_for_a_lost_one_starts_over() {
    let cluster = Cluster::empty(1).await;
    let member = &cluster.members[0];
    let own = id(member.answers().await.member);
    let here = format!("--cluster-id={}", cluster.cluster_id);
    let listed = format!("--member={own}=n0");
    let output = member.admin(&["initialize", &here, &listed, "--member=00000000000000aa=n1"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(member.answers().await.state(), MemberState::Joining);
    let output = member.admin(&["renew", "--member", &own]);
    assert!(output.status.success(), "{}", stderr(&output));
    let fresh = member.answers().await;
    assert_eq!(fresh.state(), MemberState::Uninitialized);
    let fresh = id(fresh.member);
    assert_ne!(fresh, own);
    let elsewhere = format!("--cluster-id={}", uuid::Uuid::new_v4());
    let output = member.admin(&["initialize", &elsewhere, &format!("--member={fresh}=n0")]);
    assert!(output.status.success(), "{}", stderr(&output));
    member.ready().await;
    assert_eq!(append(&member.client(), "first").await, 1);
}

/// docs: protocol.md, "Hand-over"; operator-rules.md, "Pod": the preStop hook.
#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_handed_over() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let target = (leader + 1) % 3;
    let target_id = id(cluster.members[target].answers().await.member);
    let output = cluster.members[leader].admin(&["transfer-leader", "--to", &target_id]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(cluster.leader().await, target);
    let dir = cluster.members[target].data_dir.to_str().unwrap();
    let output = common::command(&["prestop", "--data-dir", dir]);
    assert!(output.status.success() && stderr(&output).contains("does not lead"), "{}", stderr(&output));
    assert_ne!(cluster.leader().await, target);
}

/// docs: protocol.md, "Leases and reads": without a quorum, sequential reads go on and linearizable ones do
/// not.
#[tokio::test(flavor = "multi_thread")]
async fn a_lone_member_still_reads() {
    let mut cluster = Cluster::of(3).await;
    append(&cluster.members[0].client(), "kept").await;
    for member in &cluster.members {
        assert_eq!(member.client().tail(Consistency::Linearizable).await.unwrap(), 1);
    }
    cluster.members[1].kill();
    cluster.members[2].kill();
    let client = cluster.members[0].client();
    assert_eq!(read_all(&client, Consistency::Sequential).await, ["kept"]);
    let short = AppendOptions { timeout: Duration::from_secs(3), ..AppendOptions::default() };
    let outcome = client.append_with(vec!["lost?".into()], short).await;
    assert!(matches!(outcome, Err(AppendError::Refused(_) | AppendError::Unknown(_))), "{outcome:?}");
    cluster.members[1].start();
    cluster.members[2].start();
    cluster.members[1].ready().await;
    append(&client, "again").await;
}

/// docs: reliability.md, fault 47: a leader that is told to stop hands over before it ends. No election timeout passes:
/// when its process has ended, another member leads.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_stopped_hands_over() {
    let mut cluster = Cluster::of(3).await;
    for _ in 0..3 {
        let leader = cluster.leader().await;
        append(&cluster.members[leader].client(), "before").await;
        assert_eq!(cluster.members[leader].terminate(), Some(0));
        let mut roles = Vec::new();
        for other in (0..3).filter(|other| *other != leader) {
            roles.push(synod_client::wire::status(&cluster.members[other].client()).await.unwrap().role());
        }
        assert!(roles.contains(&Role::Leader), "{roles:?}");
        cluster.members[leader].start();
        cluster.members[leader].ready().await;
    }
}

/// Calls without a key that come while there is no leader wait for one, and each stands once.
#[tokio::test(flavor = "multi_thread")]
async fn calls_wait_for_the_next_leader() {
    const CALLS: usize = 300;
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let dead = cluster.members[leader].answers().await.member;
    let log = LogClient::new(channel(&cluster.members[follower].socket).unwrap());
    cluster.members[leader].kill();
    until("the follower knows that the leader is gone", || async {
        let status = cluster.members[follower].answers().await;
        match status.peers.iter().any(|peer| peer.member == dead && peer.connected) {
            true => Err(status),
            false => Ok(()),
        }
    })
    .await;
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..CALLS {
        let mut log = log.clone();
        calls.spawn(async move {
            let entries = vec![format!("call {number}").into()];
            let mut request = tonic::Request::new(AppendRequest { entries, ..AppendRequest::default() });
            request.set_timeout(common::PATIENCE);
            log.append(request).await
        });
    }
    let failed: Vec<_> = calls.join_all().await.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{} of {CALLS} calls failed: {:?}", failed.len(), failed.first());
    let all = read_all(&cluster.members[follower].client(), Consistency::Linearizable).await;
    assert_eq!(all.len(), CALLS);
    assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), CALLS);
}
