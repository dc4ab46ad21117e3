//! Consumers: durable named positions that hold back trimming (docs: socket.md, "Consumers").
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{Cluster, Member, binary, stderr, until};
use futures::TryStreamExt;
use serde_json::Value;
use synod_client::{CallError, Client, Consistency, Consumer, ReadOptions, Reason};

async fn append(client: &Client, count: usize) -> u64 {
    client.append_many((0..count).map(|n| Bytes::from(format!("{n}"))).collect()).await.unwrap().last_index
}

async fn retain(cluster: &Cluster, entries: &str) {
    let output = cluster.members[0].admin(&["settings", "--retain-entries", entries]);
    assert!(output.status.success(), "{}", stderr(&output));
}

async fn first_index(member: &Member) -> u64 {
    member.client().consumers().list(Consistency::Sequential).await.unwrap().first_index
}

/// Appends until the log begins behind `index` at every member.
async fn trimmed_past(cluster: &Cluster, index: u64) {
    let client = cluster.members[0].client();
    until("the log is trimmed", || async {
        append(&client, 10).await;
        let mut first = Vec::new();
        for member in &cluster.members {
            first.push(first_index(member).await);
        }
        if first.iter().all(|first| *first > index) { Ok(()) } else { Err(first) }
    })
    .await;
}

fn reason<T: std::fmt::Debug>(outcome: Result<T, CallError>) -> Reason {
    outcome.unwrap_err().reason
}

/// Each consumer's name, position and lag; none of them expires.
fn listed(consumers: &[Consumer]) -> Vec<(&str, u64, u64)> {
    assert!(consumers.iter().all(|consumer| consumer.expiry.is_none()), "{consumers:?}");
    consumers.iter().map(|consumer| (consumer.name.as_str(), consumer.index, consumer.lag)).collect()
}

/// docs: socket.md, "Consumers": a position is the same at every member and never goes back.
#[tokio::test(flavor = "multi_thread")]
async fn positions_are_durable_and_only_advance() {
    let mut cluster = Cluster::of(3).await;
    append(&cluster.members[0].client(), 20).await;
    let consumers: Vec<_> = cluster.members.iter().map(|member| member.client().consumers()).collect();
    assert_eq!(consumers[0].register("b").await.unwrap(), 0);
    // Through another member, which may be behind: what was acknowledged is found.
    assert_eq!(consumers[1].advance("b", 7).await.unwrap(), 7);
    assert_eq!(consumers[2].advance("b", 5).await.unwrap(), 7);
    assert_eq!(consumers[2].register("b").await.unwrap(), 7);
    assert_eq!(consumers[0].register_at("b", 9).await.unwrap(), 9);
    assert_eq!(consumers[1].register_at("a", 20).await.unwrap(), 20);
    for member in &mut cluster.members {
        member.kill();
    }
    for member in &mut cluster.members {
        member.start();
    }
    for member in &cluster.members {
        member.ready().await;
    }
    for consumers in &consumers {
        let list = consumers.list(Consistency::Linearizable).await.unwrap();
        assert_eq!(listed(&list.consumers), [("a", 20, 0), ("b", 9, 11)]);
        assert_eq!((list.first_index, list.last_index), (1, 20));
    }
    consumers[0].remove("a").await.unwrap();
    // A repeat, as after an answer that was lost.
    consumers[1].remove("a").await.unwrap();
    let list = consumers[2].list(Consistency::Linearizable).await.unwrap();
    assert_eq!(listed(&list.consumers), [("b", 9, 11)]);
}

/// Bad input never reaches the log, and each refusal has a reason (docs: docs/socket.md).
#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_reasons() {
    let cluster = Cluster::of(1).await;
    let client = cluster.members[0].client();
    append(&client, 3).await;
    let consumers = client.consumers();
    let before = synod_client::wire::status(&client).await.unwrap().applied_slot;
    assert_eq!(reason(consumers.register("").await), Reason::Invalid);
    assert_eq!(reason(consumers.register("n".repeat(254)).await), Reason::Invalid);
    assert_eq!(reason(consumers.register("n".repeat(5_000)).await), Reason::CallTooLarge);
    assert_eq!(synod_client::wire::status(&client).await.unwrap().applied_slot, before);
    // Whether it is registered only the log decides.
    assert_eq!(reason(consumers.advance("x", 1).await), Reason::UnknownConsumer);
    assert_eq!(consumers.register("n".repeat(253)).await.unwrap(), 0);
    let beyond = consumers.register_at("x", 4).await.unwrap_err();
    assert_eq!(beyond.reason, Reason::BeyondTail);
    assert_eq!(beyond.tail, Some(3));
    let many = futures::future::join_all((1..1_024).map(|n| consumers.register(format!("c{n}")))).await;
    assert!(many.iter().all(Result::is_ok));
    let refused = Reason::TooManyConsumers;
    assert_eq!(reason(consumers.register("one more").await), refused);
    assert_eq!(consumers.register("c1").await.unwrap(), 0);
}

/// docs: protocol.md, "Snapshots": the trim point moves past only what the slowest cursor allows.
#[tokio::test(flavor = "multi_thread")]
async fn the_slowest_consumer_holds_back_the_trim() {
    let cluster = Cluster::of(3).await;
    let client = cluster.members[0].client();
    let consumers = client.consumers();
    append(&client, 50).await;
    consumers.register_at("slow", 40).await.unwrap();
    consumers.register_at("fast", 50).await.unwrap();
    retain(&cluster, "16").await;
    for _ in 0..100 {
        append(&client, 10).await;
        consumers.advance("fast", client.tail(Consistency::Sequential).await.unwrap()).await.unwrap();
    }
    for member in &cluster.members {
        assert!(first_index(member).await <= 41, "trimmed past a consumer");
        let one = ReadOptions { limit: Some(1), ..ReadOptions::default() };
        let entries: Vec<_> = member.client().read(41, one).try_collect().await.unwrap();
        assert_eq!(entries[0].index, 41);
    }
    consumers.advance("slow", 900).await.unwrap();
    trimmed_past(&cluster, 50).await;
    assert!(first_index(&cluster.members[0]).await <= 901);
    let gone = consumers.register_at("late", 3).await.unwrap_err();
    assert_eq!(gone.reason, Reason::Compacted);
    assert!(gone.first_index.unwrap() > 50 && gone.checkpoint.is_none());
    consumers.remove("slow").await.unwrap();
    consumers.remove("fast").await.unwrap();
    trimmed_past(&cluster, 901).await;
    // Where the log begins, though this member may learn of a trim only as it registers.
    let begins = consumers.register("new").await.unwrap();
    assert!(begins > 900, "{begins}");
}

fn run(member: &Member, arguments: &[&str]) -> std::process::Output {
    binary().arg("consumers").args(arguments).arg("--socket").arg(&member.socket).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_do_the_same() {
    let cluster = Cluster::of(1).await;
    let member = &cluster.members[0];
    append(&member.client(), 5).await;
    let said = |arguments: &[&str]| {
        let output = run(member, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(said(&["list"]).contains("No consumer"));
    assert_eq!(said(&["register", "billing"]), "0\n");
    assert_eq!(said(&["advance", "billing", "2"]), "2\n");
    let json = |text: String| serde_json::from_str::<Value>(&text).unwrap();
    assert_eq!(json(said(&["register", "mail", "--index", "5", "-o", "json"]))["index"], 5);
    let list = json(said(&["list", "-o", "json"]));
    assert_eq!(list["consumers"][0]["name"], "billing");
    assert_eq!((&list["consumers"][0]["behind"], &list["last_index"]), (&Value::from(3), &Value::from(5)));
    let text = said(&["list"]);
    assert!(text.contains("billing") && text.lines().all(|line| line.len() <= 80), "{text}");
    assert_eq!(said(&["seek", "billing", "1"]), "1\n");
    assert_eq!(said(&["register", "billing", "--expiry", "3600"]), "1\n");
    let short = run(member, &["register", "billing", "--expiry", "9"]);
    assert!(!short.status.success() && stderr(&short).contains("10 s"), "{}", stderr(&short));
    said(&["remove", "mail"]);
    let unknown = run(member, &["advance", "mail", "3"]);
    assert!(!unknown.status.success() && stderr(&unknown).contains("register it first"));
    for arguments in [&["consumers", "--help"][..], &["consumers", "register", "--help"]] {
        let help = binary().args(arguments).output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        assert!(help.contains("--help") && help.lines().all(|line| line.len() <= 80), "{help}");
    }
}
