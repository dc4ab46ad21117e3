//! Messages, read once as a stranger: each says what happened, to what, and nothing twice (fault S23).
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{Cluster, binary, stderr, until};
use std::process::{Output, Stdio};
use std::time::Duration;
use synod_client::{AppendError, AppendOptions, Consistency, ReadOptions, Reason, Repeats};

fn full() -> Stdio {
    std::fs::File::options().write(true).open("/dev/full").unwrap().into()
}

/// A command whose answer cannot be printed.
fn unprinted(socket: &std::path::Path, arguments: &[&str]) -> Output {
    let mut command = binary();
    command.args(arguments).env("SYNOD_SOCKET", socket).stdin(Stdio::null()).stdout(full());
    command.output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_output_is_not_told_as_a_full_disk() {
    let cluster = Cluster::of(1).await;
    let socket = &cluster.members[0].socket;
    let appended = stderr(&unprinted(socket, &["append", "entry"]));
    assert!(
        appended.starts_with("synod: the entries stand at 1 to 1, but that cannot be printed: "),
        "{appended}"
    );
    for arguments in [&["tail"][..], &["status"], &["status", "-o", "json"], &["completion", "bash"]] {
        let output = unprinted(socket, arguments);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.starts_with("synod: the answer cannot be printed: "), "{arguments:?}: {said}");
    }
}

/// The same words for an append and for a read would be wrong for one of them.
#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_is_told_once_and_of_appends_only() {
    let mut cluster = Cluster::of(3).await;
    for member in 1..3 {
        cluster.members[member].kill();
    }
    let client = cluster.members[0].client().timeout(Duration::from_millis(300));
    let seen = until("the others are missed", || async {
        match client.tail(Consistency::Linearizable).await {
            Err(error) if error.reason == Reason::NoLeader => Ok(error),
            other => Err(other),
        }
    });
    assert_eq!(seen.await.to_string(), "no leader right now: try again shortly (NO_LEADER)");
    for repeats in [Repeats::Session, Repeats::Minted, Repeats::Untold] {
        let options =
            AppendOptions { repeats, timeout: Duration::from_millis(300), ..AppendOptions::default() };
        let error = client.append_with(vec!["entry".into()], options).await.unwrap_err();
        let told = error.to_string();
        assert!(told.matches("appended").count() == 1, "{told}");
        assert!(matches!(error, AppendError::Refused(_) | AppendError::Unknown(_)), "{told}");
    }
    let consumer = client.consumers().register("billing").await.unwrap_err().to_string();
    assert!(!consumer.contains("append"), "{consumer}");
    let read = client.read(1, ReadOptions::default());
    let read = futures::TryStreamExt::try_collect::<Vec<_>>(read).await.unwrap_err().to_string();
    assert!(!read.contains("append"), "{read}");
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_agree_with_their_nouns() {
    let cluster = Cluster::of(1).await;
    let client = cluster.members[0].client();
    let large = vec![Bytes::from(vec![b'x'; 600 << 10]); 2];
    let told = client.append_many(large).await.unwrap_err().to_string();
    assert_eq!(
        told,
        "not appended: the call is over its limits, 4096 entries and 1048576 bytes, with 2 and 1228800: send several \
         calls (CALL_TOO_LARGE)"
    );
    let status = binary().arg("status").env("SYNOD_SOCKET", &cluster.members[0].socket).output().unwrap();
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(status.contains("1 voter, 0 learners"), "{status}");
    // A member has a name for people, beside its number.
    let named = format!("{} (n0)", common::id(cluster.members[0].answers().await.member));
    assert_eq!(status.matches(&named).count(), 2, "{status}");
}
