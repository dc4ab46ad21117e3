//! What the health port tells of calls.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Cluster, Member, until};
use futures::{StreamExt, TryStreamExt};
use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use synod_client::{AppendOptions, End};

/// All that the health port tells, by name and labels; fails where it is not what OpenMetrics says it is.
fn told(member: &Member) -> BTreeMap<String, u64> {
    let text = member.metrics();
    let (_, body) = text.split_once("\r\n\r\n").unwrap();
    let (mut kinds, mut numbers) = (BTreeMap::new(), BTreeMap::new());
    for line in body.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(kinds.insert(name.to_owned(), kind.to_owned()), None, "{name} is registered twice");
        } else if let Some((name, value)) = line.rsplit_once(' ').filter(|_| !line.starts_with('#')) {
            let number = value.parse::<f64>().unwrap() as u64;
            assert_eq!(numbers.insert(name.to_owned(), number), None, "{name} comes twice");
            let family = name.split('{').next().unwrap().trim_end_matches("_total").to_owned();
            if name.contains("_total") {
                assert_eq!(kinds[&family], "counter", "{line}");
            } else if let Some(kind) = kinds.get(&family) {
                assert_ne!(kind, "counter", "{line}");
            }
        }
    }
    assert_eq!(body.lines().filter(|line| *line == "# EOF").count(), 1);
    assert!(body.ends_with("# EOF\n"));
    assert_eq!(kinds["synod_messages_dropped"], "counter");
    numbers
}

fn curl(member: &Member, path: &str, arguments: &[&str]) {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--unix-socket"])
        .arg(&member.socket)
        .args(arguments)
        .arg(format!("http://synod{path}"));
    assert!(curl.stdout(Stdio::null()).status().unwrap().success());
}

/// Fault S18: refusals were in no metric, a counter was a gauge, there were no labels and no times.
#[tokio::test(flavor = "multi_thread")]
async fn calls_are_counted_by_name_and_reason() {
    let cluster = Cluster::of(1).await;
    let member = &cluster.members[0];
    let client = member.client();
    for _ in 0..3 {
        client.append("entry").await.unwrap();
    }
    let conditional = AppendOptions { expected_index: Some(9), ..AppendOptions::default() };
    client.append_with(vec!["never".into()], conditional).await.unwrap_err();
    client.consumers().advance("nobody", 1).await.unwrap_err();
    client.subscribe_until(1, End::Tail).try_collect::<Vec<_>>().await.unwrap();
    // One that is let go of before its end.
    assert!(client.subscribe(1).next().await.is_some());
    curl(member, "/v1/entries", &["-d", "entry"]);
    curl(member, "/v1/entries?expected_index=9", &["-d", "entry"]);
    curl(member, "/v1/nothing/of/the/kind", &[]);
    curl(member, &format!("/v1/{}", "x".repeat(100)), &[]);
    client.close().await;
    let call = |call: &str, reason: &str| format!("synod_calls_total{{call=\"{call}\",reason=\"{reason}\"}}");
    let expected = [
        (call("Log.AppendStream (one append)", "OK"), 3),
        (call("Log.AppendStream (one append)", "EXPECTED_INDEX"), 1),
        (call("Consumers.Advance", "UNKNOWN_CONSUMER"), 1),
        (call("Log.Subscribe", "OK"), 1),
        (call("Log.Subscribe", "GONE"), 1),
        (call("POST /v1/entries", "OK"), 1),
        (call("POST /v1/entries", "EXPECTED_INDEX"), 1),
        // Whatever is asked for makes no label of its own.
        (call("other", "INVALID"), 2),
        ("synod_call_seconds_count{call=\"Consumers.Advance\"}".to_owned(), 1),
        ("synod_call_seconds_count{call=\"POST /v1/entries\"}".to_owned(), 2),
        ("synod_member_state{state=\"ACTIVE\"}".to_owned(), 1),
        ("synod_member_state{state=\"FENCED\"}".to_owned(), 0),
        ("synod_first_index".to_owned(), 1),
        (format!("synod_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION")), 1),
    ];
    until("everything has ended", || async {
        let told = told(member);
        let wrong = expected.iter().find(|(name, count)| told.get(name) != Some(count));
        wrong.map_or(Ok(()), |(name, count)| Err((name, count, told.get(name).copied())))
    })
    .await;
}
