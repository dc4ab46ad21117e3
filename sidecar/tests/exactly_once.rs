//! Sessions, keys, freshness of reads and settings, as an application sees them (docs: protocol.md, "Sessions:
//! exactly once" and "Leases and reads").
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{Cluster, Member, stderr, until};
use futures::TryStreamExt;
use serde_json::Value;
use std::time::Duration;
use synod_client::wire::channel;
use synod_client::{
    AppendError, AppendOptions, CallError, Client, Consistency, IdempotencyKey, Outcome, ReadOptions, Reason,
    Repeats,
};
use synod_proto::v1::append_request::Identity;
use synod_proto::v1::log_client::LogClient;
use synod_proto::v1::{self, AppendRequest, AppendResponse, OpenSessionRequest, SessionCall, TailRequest};
use tonic::Request;
use tonic::transport::Channel;

fn log(member: &Member) -> LogClient<Channel> {
    LogClient::new(channel(&member.socket).unwrap())
}

fn call(session: u64, sequence: u64, text: &str) -> AppendRequest {
    let identity = SessionCall { session, sequence, acknowledged: 0 };
    let entries = vec![Bytes::from(text.to_owned())];
    AppendRequest { entries, identity: Some(Identity::Session(identity)), ..AppendRequest::default() }
}

fn keyed(key: &str, minted_at: Option<u64>, text: &str) -> AppendRequest {
    let identity = v1::IdempotencyKey { key: Bytes::from(key.to_owned()), minted_at };
    let entries = vec![Bytes::from(text.to_owned())];
    AppendRequest { entries, identity: Some(Identity::Key(identity)), ..AppendRequest::default() }
}

async fn append(member: &Member, request: AppendRequest) -> Result<AppendResponse, CallError> {
    Ok(log(member).append(request).await.map_err(|status| synod_client::wire::error(&status))?.into_inner())
}

/// Sends a request again until the log has decided it, as a client may that gives its calls an identity.
async fn decided(member: &Member, request: AppendRequest) -> Result<AppendResponse, CallError> {
    until("the log decides", || async {
        match append(member, request.clone()).await {
            Err(error) if matches!(error.reason, Reason::NoLeader | Reason::OutcomeUnknown) => Err(error),
            decided => Ok::<_, CallError>(decided),
        }
    })
    .await
}

async fn open_session(member: &Member) -> u64 {
    until("a session is opened", || async { log(member).open_session(OpenSessionRequest {}).await })
        .await
        .into_inner()
        .session
}

fn patient() -> AppendOptions {
    AppendOptions { timeout: Duration::from_secs(60), ..AppendOptions::default() }
}

async fn read_all(client: &Client) -> Vec<String> {
    let entries: Vec<_> = client.read(1, ReadOptions::default()).try_collect().await.unwrap();
    entries.iter().map(|entry| String::from_utf8(entry.payload.to_vec()).unwrap()).collect()
}

fn settings(member: &Member, change: &[&str]) -> Value {
    let output = member.admin(&[&["settings"], change].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// docs: reliability.md, fault 39: a retry across a leader change has the same index and is one entry, whichever
/// member it goes to.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_across_a_leader_kill_is_one_entry() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let (one, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let session = open_session(&cluster.members[one]).await;
    let numbered = append(&cluster.members[one], call(session, 1, "numbered")).await.unwrap();
    let named = append(&cluster.members[leader], keyed("k", Some(0), "named")).await.unwrap();
    assert!(!numbered.repeated && !named.repeated);
    cluster.members[leader].kill();
    for through in [one, other] {
        let member = &cluster.members[through];
        let again = decided(member, call(session, 1, "numbered")).await.unwrap();
        assert_eq!((again.first_index, again.repeated), (numbered.first_index, true));
        let again = decided(member, keyed("k", Some(0), "named")).await.unwrap();
        assert_eq!((again.first_index, again.repeated), (named.first_index, true));
    }
    let next = decided(&cluster.members[other], call(session, 2, "next")).await.unwrap();
    assert_eq!((next.first_index, next.repeated), (3, false));
    assert_eq!(read_all(&cluster.members[other].client()).await, ["numbered", "named", "next"]);
}

/// docs: reliability.md, fault 39: the SDK's own retries, with many appends under way while the member that they
/// go through is killed again and again: each stands once, in the order of the calls.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_member_costs_no_append() {
    const CALLS: usize = 200;
    let mut cluster = Cluster::of(3).await;
    let client = cluster.members[0].client();
    let mut under_way = futures::stream::FuturesOrdered::new();
    let mut indexes = Vec::new();
    for round in 0..3 {
        for n in 0..CALLS {
            let (client, text) = (client.clone(), format!("{round} {n}"));
            let append = async move { client.append_with(vec![text.into()], patient()).await };
            // Polled once in this order, so that they are called in this order.
            let mut append = Box::pin(tokio::task::unconstrained(append));
            assert!(futures::poll!(&mut append).is_pending());
            under_way.push_back(append);
        }
        indexes.push(under_way.try_next().await.unwrap().unwrap().first_index);
        cluster.members[0].kill();
        cluster.members[0].start();
    }
    while let Some(appended) = under_way.try_next().await.unwrap() {
        indexes.push(appended.first_index);
    }
    assert_eq!(indexes, (1..=3 * CALLS as u64).collect::<Vec<_>>());
    let expected: Vec<String> =
        (0..3).flat_map(|round| (0..CALLS).map(move |n| format!("{round} {n}"))).collect();
    assert_eq!(read_all(&client).await, expected);
}

/// docs: reliability.md, fault 40: a retry after the log forgot is told so, and appends nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_expiry_is_told_so() {
    let cluster = Cluster::of(1).await;
    let member = &cluster.members[0];
    let session = open_session(member).await;
    let first = append(member, call(session, 1, "first")).await.unwrap();
    let client = member.client();
    assert_eq!(client.append_with(vec!["sdk".into()], patient()).await.unwrap().first_index, 2);
    assert_eq!(settings(member, &["--session-idle-ms", "1000", "--session-rows", "16"])["version"], 2);
    // Log time passes with what is appended.
    let expired = until("the session expires", || {
        let plain = AppendRequest { entries: vec![Bytes::new()], ..AppendRequest::default() };
        async move {
            append(member, plain).await.unwrap();
            match member.metric("synod_session_rows") {
                0 => Ok(()),
                rows => Err(rows),
            }
        }
    });
    expired.await;
    let count = client.tail(Consistency::Linearizable).await.unwrap();
    for (sequence, text) in [(1, "first"), (2, "second")] {
        let error = append(member, call(session, sequence, text)).await.unwrap_err();
        assert_eq!((error.reason, error.outcome), (Reason::SessionExpired, Outcome::Unknown));
    }
    // The SDK had nothing under way: it opens another session by itself.
    let next = client.append_with(vec!["next".into()], patient()).await.unwrap();
    assert_eq!((next.first_index, next.repeated), (count + 1, false));
    let minted = next.first_index;
    let mut seen = minted;
    // More keys than the table has rows: they wait until the first one is old enough to be forgotten.
    for n in 0..20 {
        let (key, before) = (format!("key {n}"), seen);
        seen = until("there is a row for the key", || {
            let key = &key;
            async move {
                let error = match append(member, keyed(key, Some(before), key)).await {
                    Ok(appended) => return Ok(appended.last_index),
                    Err(error) => error,
                };
                assert_eq!((error.reason, error.outcome), (Reason::TooManyKeys, Outcome::NotAppended));
                // Log time passes with what is appended.
                append(member, AppendRequest { entries: vec![Bytes::new()], ..AppendRequest::default() })
                    .await
                    .unwrap();
                Err(error.reason)
            }
        })
        .await;
    }
    let error = append(member, keyed("key 0", Some(minted), "key 0")).await.unwrap_err();
    assert_eq!((error.reason, error.outcome), (Reason::KeyExpired, Outcome::Unknown));
    let key = IdempotencyKey::new("key 0").minted_at(minted);
    let options = AppendOptions { repeats: Repeats::Key(key), ..patient() };
    let outcome = client.append_with(vec!["key 0".into()], options).await;
    assert!(
        matches!(outcome, Err(AppendError::Unknown(ref e)) if e.reason == Reason::KeyExpired),
        "{outcome:?}"
    );
    assert_eq!(client.tail(Consistency::Linearizable).await.unwrap(), seen, "nothing was appended");
    assert_eq!(first.first_index, 1);
}

/// A client that is closed leaves nothing in the session table; used again, it opens another session.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_client_is_forgotten() {
    let cluster = Cluster::of(1).await;
    let member = &cluster.members[0];
    let client = member.client();
    for n in 1..=2 {
        let under_way = client.append_with(vec!["entry".into()], patient());
        let (appended, ()) = tokio::join!(under_way, async {
            tokio::task::yield_now().await;
            client.close().await;
        });
        assert_eq!(appended.unwrap().first_index, n);
        until("the table is empty", || async {
            match member.metric("synod_session_rows") {
                0 => Ok(()),
                rows => Err(rows),
            }
        })
        .await;
    }
}

/// docs: protocol.md, "Sessions": rows keep the payload's digest; a number beyond the next one is refused.
#[tokio::test(flavor = "multi_thread")]
async fn other_content_and_gaps_are_refused() {
    let cluster = Cluster::of(3).await;
    let member = &cluster.members[0];
    let session = open_session(member).await;
    append(member, call(session, 1, "content")).await.unwrap();
    append(member, keyed("k", None, "content")).await.unwrap();
    for request in [call(session, 1, "other"), keyed("k", None, "other")] {
        let error = append(member, request).await.unwrap_err();
        assert_eq!(error.reason, Reason::KeyReused);
        assert_eq!(error.outcome, Outcome::NotAppended);
    }
    let error = append(member, call(session, 3, "gap")).await.unwrap_err();
    assert_eq!((error.reason, error.outcome), (Reason::SequenceGap, Outcome::NotAppended));
    let status = log(member).append(call(session, 3, "gap")).await.unwrap_err();
    let failure = v1::Failure::from_status(&status).unwrap();
    assert_eq!(failure.expected_sequence, Some(2));
    // A refusal that the log decided is remembered, too: lookup comes before the condition.
    let late = |sequence| AppendRequest { expected_index: Some(1), ..call(session, sequence, "late") };
    for _ in 0..2 {
        let error = append(member, late(2)).await.unwrap_err();
        assert_eq!((error.reason, error.tail), (Reason::ExpectedIndex, Some(2)));
        append(member, AppendRequest { entries: vec!["between".into()], ..Default::default() }).await.ok();
    }
    for bad in [keyed("", None, "x"), keyed(&"k".repeat(65), None, "x"), call(session, 0, "x")] {
        let error = append(member, bad).await.unwrap_err();
        assert_eq!(error.reason, Reason::Invalid, "{error}");
    }
}

/// docs: protocol.md, "Leases and reads": sequential never goes backwards, on whichever member and across a
/// restart; where it cannot be, it says so.
#[tokio::test(flavor = "multi_thread")]
async fn sequential_never_goes_back() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let (one, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let sequential = v1::consistency::Kind::Sequential(v1::Sequential { at_least: 2 });
    let behind = TailRequest { consistency: Some(v1::Consistency { kind: Some(sequential) }) };
    let mut short = Request::new(behind);
    short.set_timeout(Duration::from_millis(200));
    let error = synod_client::wire::error(&log(&cluster.members[one]).tail(short).await.unwrap_err());
    assert_eq!((error.reason, error.tail), (Reason::Behind, Some(0)));
    // A reader waits for what it has seen elsewhere.
    let mut waiting = log(&cluster.members[one]);
    let waiting = tokio::spawn(async move { waiting.tail(behind).await.unwrap().into_inner().last_index });
    let client = cluster.members[other].client();
    for _ in 0..2 {
        client.append_with(vec!["entry".into()], patient()).await.unwrap();
    }
    assert!(waiting.await.unwrap() >= 2);
    for n in 3..40 {
        let appended = client.append_with(vec!["entry".into()], patient()).await.unwrap();
        assert_eq!(appended.first_index, n);
        assert!(client.tail(Consistency::Sequential).await.unwrap() >= n, "its own append is not there");
        if n % 12 == 0 {
            cluster.members[other].kill();
            cluster.members[other].start();
            cluster.members[other].answers().await;
            assert!(client.tail(Consistency::Sequential).await.unwrap() >= n, "the log went back");
        }
    }
    let reader = cluster.members[one].client();
    reader.not_before(39);
    let sequential = ReadOptions { consistency: Consistency::Sequential, ..ReadOptions::default() };
    assert_eq!(reader.read(1, sequential).try_collect::<Vec<_>>().await.unwrap().len(), 39);
}

/// docs: protocol.md, "Leases and reads": linearizable and stale-bounded reads after a change of the leader.
#[tokio::test(flavor = "multi_thread")]
async fn reads_after_a_leader_change() {
    let mut cluster = Cluster::of(3).await;
    for round in 1..=2 {
        let leader = cluster.leader().await;
        let through = cluster.members[leader].client();
        let index = through.append_with(vec!["entry".into()], patient()).await.unwrap().first_index;
        cluster.members[leader].kill();
        for reader in [(leader + 1) % 3, (leader + 2) % 3] {
            let client = cluster.members[reader].client();
            for consistency in [Consistency::Linearizable, Consistency::StaleBounded(Duration::ZERO)] {
                assert_eq!(client.tail(consistency).await.unwrap(), index, "round {round}");
            }
        }
        cluster.members[leader].start();
        cluster.members[leader].ready().await;
    }
}

/// docs: protocol.md, "Leases and reads"; operator-rules.md, rule 10: leases are switched by a log entry, and with them
/// the leader answers without a round.
#[tokio::test(flavor = "multi_thread")]
async fn leases_are_switched_by_a_log_entry() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let member = &cluster.members[leader];
    let under_lease = || member.metric("synod_reads_under_lease_total");
    let client = member.client();
    client.append_with(vec!["entry".into()], patient()).await.unwrap();
    assert_eq!(settings(member, &[])["leases"], false);
    for _ in 0..5 {
        assert_eq!(client.tail(Consistency::Linearizable).await.unwrap(), 1);
    }
    assert_eq!(under_lease(), 0, "there are no leases yet");
    let changed = settings(&cluster.members[(leader + 1) % 3], &["--leases", "true"]);
    assert_eq!((&changed["version"], &changed["leases"]), (&Value::from(2), &Value::from(true)));
    until("the leader reads under a lease", || async {
        assert_eq!(client.tail(Consistency::Linearizable).await.unwrap(), 1);
        if under_lease() > 0 { Ok(()) } else { Err("rounds still") }
    })
    .await;
    for other in &cluster.members {
        until("every member knows it", || async {
            let settings = synod_client::wire::status(&other.client()).await.unwrap().settings.unwrap();
            if (settings.version, settings.reads.unwrap().leases) == (2, true) {
                Ok(())
            } else {
                Err(settings)
            }
        })
        .await;
    }
    assert_eq!(settings(member, &["--leases", "false"])["version"], 3);
    until("reads need a round again", || async {
        let before = under_lease();
        assert_eq!(client.tail(Consistency::Linearizable).await.unwrap(), 1);
        if under_lease() == before { Ok(()) } else { Err("under a lease still") }
    })
    .await;
    let refused = member.admin(&["settings", "--election-timeout-ms", "100"]);
    assert!(stderr(&refused).contains("ten heartbeats"), "{}", stderr(&refused));
}

/// docs: reliability.md, fault 41: what retention has trimmed is told so, with the index to go on from; a session
/// outlives the entries that it appended.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_trimmed_is_told_so() {
    let cluster = Cluster::of(3).await;
    let session = open_session(&cluster.members[0]).await;
    let first = append(&cluster.members[0], call(session, 1, "first")).await.unwrap();
    settings(&cluster.members[0], &["--retain-entries", "100"]);
    let client = cluster.members[1].client();
    let mut begins = 0;
    until("the log is trimmed", || async {
        client.append_many(vec![Bytes::from_static(b"entry"); 50]).await.unwrap();
        match client.read(1, ReadOptions::default()).try_collect::<Vec<_>>().await {
            Err(error) if error.reason == Reason::Compacted => Ok(()),
            other => Err(other.map(|entries| entries.len())),
        }
    })
    .await;
    for member in &cluster.members {
        let client = member.client();
        let error = until("this member trims, too", || async {
            match client.read(1, ReadOptions::default()).try_collect::<Vec<_>>().await {
                Err(error) if error.reason == Reason::Compacted => Ok(error),
                other => Err(other.map(|entries| entries.len())),
            }
        })
        .await;
        assert_eq!(error.outcome, Outcome::Unspecified, "only an append has an outcome");
        begins = error.first_index.unwrap();
        let last = client.tail(Consistency::Linearizable).await.unwrap();
        let kept: Vec<_> = client.read(begins, ReadOptions::default()).try_collect().await.unwrap();
        assert_eq!((kept[0].index, kept.len() as u64), (begins, last - begins + 1));
        assert!(kept.len() >= 100, "{}", kept.len());
        let cut = client.subscribe(1).try_next().await.unwrap_err();
        assert_eq!(cut.reason, Reason::Compacted);
    }
    assert!(begins > 1);
    let again = append(&cluster.members[2], call(session, 1, "first")).await.unwrap();
    assert_eq!((again.first_index, again.repeated), (first.first_index, true));
}
