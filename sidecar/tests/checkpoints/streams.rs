//! In and out through the socket: whole, cut short, refused.

use crate::common::{Cluster, binary, stderr, until};
use crate::{
    MIB, append, begin, call, chunk, digest, fetched, files, finish, has_all, listed, reason, save_parts,
    service, standing, state, whole,
};
use bytes::Bytes;
use serde_json::Value;
use std::fs;
use std::io::{Cursor, Write};
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use synod_client::{Progress, Reason};
use synod_proto::v1::save_checkpoint_request::Part;
use synod_proto::v1::{SaveBegin, SaveCheckpointRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// docs: socket.md, "Checkpoints": what is saved at one member is fetched at every other.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_goes_in_at_one_member_and_out_at_all() {
    let cluster = Cluster::of(3).await;
    append(&cluster.members[0].client(), 100).await;
    assert!(cluster.members[1].client().checkpoints().fetch_newest().await.unwrap().is_none());
    let first = state(1, 3 * MIB + 17);
    let saved = cluster.members[0].client().checkpoints().save(40, Cursor::new(first.clone())).await.unwrap();
    assert_eq!((saved.index, saved.length), (40, first.len() as u64));
    assert_eq!(saved.digest.as_slice(), digest(&first).as_ref());
    // A quorum has it by now, and every member gives it, from its own disk or another's.
    let holding = cluster.members.iter().filter(|member| whole(member).len() == 1).count();
    assert!(holding >= 2, "{holding}");
    for member in &cluster.members {
        let (checkpoint, bytes) = fetched(member).await;
        assert!(checkpoint == saved && bytes == first, "{}", member.name);
        has_all(member).await;
    }
    // A stream of unknown length, an empty state, and the first again: a repeat does no harm.
    let other = state(2, 2 * MIB);
    let checkpoints = cluster.members[1].client().checkpoints();
    assert_eq!(checkpoints.save_stream(50, other.as_slice()).await.unwrap().length, other.len() as u64);
    assert_eq!(checkpoints.save(60, Cursor::new(Vec::new())).await.unwrap().length, 0);
    assert_eq!(checkpoints.save(40, Cursor::new(first.clone())).await.unwrap(), saved);
    for member in &cluster.members {
        let list = listed(member).await;
        assert_eq!(list.iter().map(|listed| listed.checkpoint.index).collect::<Vec<_>>(), [40, 50, 60]);
        assert!(fetched(member).await.1.is_empty());
        let mut old = Vec::new();
        let at = member.client().checkpoints().fetch(Some(50)).await.unwrap();
        at.copy_to(&mut old).await.unwrap();
        assert!(old == other);
        let none = member.client().checkpoints().fetch(Some(41)).await;
        assert_eq!(reason(none), Reason::NoCheckpoint);
    }
}

/// A Save that is cut goes on where it broke off, also after the member was killed.
#[tokio::test(flavor = "multi_thread")]
async fn a_cut_save_goes_on() {
    let mut cluster = Cluster::of(3).await;
    append(&cluster.members[0].client(), 10).await;
    let state = state(3, 8 * MIB + 5);
    let (parts, queue) = mpsc::channel(1);
    let mut client = service(&cluster.members[0]);
    let cut = tokio::spawn(async move { client.save(ReceiverStream::new(queue)).await });
    let say = |part| parts.send(SaveCheckpointRequest { part: Some(part) });
    say(begin(10, &state)).await.unwrap();
    for part in state.chunks(MIB).take(5) {
        say(chunk(part)).await.unwrap();
    }
    until("5 MiB stand", || async {
        match standing(&cluster.members[0], 10, &state).await {
            bytes if bytes == 5 * MIB as u64 => Ok(()),
            bytes => Err(bytes),
        }
    })
    .await;
    // The stream is held while the member dies, then its client goes.
    cluster.members[0].kill();
    assert!(cut.await.unwrap().is_err());
    cluster.members[0].start();
    assert_eq!(standing(&cluster.members[0], 10, &state).await, 5 * MIB as u64);
    cluster.members[0].ready().await;
    let least = Arc::new(Mutex::new(u64::MAX));
    let seen = least.clone();
    let checkpoints = cluster.members[0].client().checkpoints().observe(move |progress| {
        if let Progress::Sent(bytes) = progress {
            let mut least = seen.lock().unwrap();
            *least = bytes.min(*least);
        }
    });
    checkpoints.save(10, Cursor::new(state.clone())).await.unwrap();
    assert!(*least.lock().unwrap() > 5 * MIB as u64, "what stood was sent again");
    assert!(fetched(&cluster.members[2]).await.1 == state);
}

/// docs: reliability.md, faults 3 and 5, for checkpoints: what is half, or is not what was announced, is never whole.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_whole_is_not_saved() {
    let mut cluster = Cluster::of(1).await;
    let member = &cluster.members[0];
    append(&member.client(), 10).await;
    let state = state(4, 2 * MIB);
    let (one, two) = state.split_at(MIB);
    // Of unknown digest: nothing could go on with it.
    let begins = || Part::Begin(SaveBegin { index: 9, ..SaveBegin::default() });
    let ended = save_parts(member, vec![begins(), chunk(one)]).await;
    assert_eq!(reason(ended), Reason::Invalid);
    let wrong = save_parts(member, vec![begins(), chunk(one), chunk(two), finish(one)]).await;
    assert_eq!(reason(wrong), Reason::Mismatch);
    until("nothing stays", || async { if files(member).is_empty() { Ok(()) } else { Err(files(member)) } })
        .await;
    // Other bytes than were announced.
    let wrong = save_parts(member, vec![begin(9, &state), chunk(two), chunk(one), finish(&state)]).await;
    assert_eq!(reason(wrong), Reason::Mismatch);
    let long = save_parts(member, vec![begin(9, one), chunk(one), chunk(b"x"), finish(one)]).await;
    assert_eq!(reason(long), Reason::Mismatch);
    assert!(files(member).is_empty() && listed(member).await.is_empty());
    // A part that a crash has spoilt: the SDK begins anew by itself.
    let cut = save_parts(member, vec![begin(9, &state), chunk(one)]).await;
    assert_eq!(reason(cut), Reason::Invalid);
    cluster.members[0].kill();
    let member = &mut cluster.members[0];
    let part = fs::OpenOptions::new().write(true).open(&files(member)[0]).unwrap();
    part.write_all_at(&[0; 4_096], 12_288).unwrap();
    fs::write(member.data_dir.join("checkpoints/77.tmp"), one).unwrap();
    member.start();
    member.ready().await;
    assert_eq!(standing(member, 9, &state).await, MIB as u64);
    member.client().checkpoints().save(9, Cursor::new(state.clone())).await.unwrap();
    assert!(fetched(member).await.1 == state);
    // What was left without a name went at the start.
    assert!(files(member).len() == 1 && whole(member).len() == 1, "{:?}", files(member));
}

/// A fetch goes on where it was cut, by another connection and with another source.
#[tokio::test(flavor = "multi_thread")]
async fn a_cut_fetch_goes_on() {
    let mut cluster = Cluster::of(3).await;
    append(&cluster.members[0].client(), 10).await;
    let state = state(5, 24 * MIB);
    cluster.members[0].client().checkpoints().save(10, Cursor::new(state.clone())).await.unwrap();
    let mut fetching = cluster.members[1].client().checkpoints().fetch_newest().await.unwrap().unwrap();
    let mut bytes = Vec::new();
    for round in 0..3 {
        while bytes.len() < (round + 1) * 5 * MIB {
            bytes.extend_from_slice(&fetching.chunk().await.unwrap().unwrap());
        }
        cluster.members[1].kill();
        if round == 1 {
            // From now on its bytes come from a peer.
            fs::remove_dir_all(cluster.members[1].data_dir.join("checkpoints")).unwrap();
        }
        cluster.members[1].start();
    }
    while let Some(chunk) = fetching.chunk().await.unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    assert!(bytes == state);
    // A slow reader is held back, not failed, and holds nothing up.
    let mut slow = cluster.members[0].client().checkpoints().fetch_newest().await.unwrap().unwrap();
    assert!(slow.chunk().await.unwrap().is_some());
    append(&cluster.members[0].client(), 1).await;
}

/// Bounds and orders of a Save; bad input never reaches the log (docs: docs/socket.md).
#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_reasons() {
    let mut cluster = Cluster::of(1).await;
    let client = cluster.members[0].client();
    append(&client, 20).await;
    let member = &cluster.members[0];
    let small = state(11, 1_000);
    let large = save_parts(member, vec![begin(5, &small), chunk(&vec![0; MIB + 1])]).await;
    assert_eq!(reason(large), Reason::ChunkTooLarge);
    let larger = save_parts(member, vec![begin(5, &small), chunk(&vec![0; 3 * MIB])]).await;
    assert_eq!(reason(larger), Reason::CallTooLarge);
    for wrong in [
        vec![chunk(&small)],
        vec![begin(5, &small), begin(5, &small)],
        vec![Part::Begin(SaveBegin { index: 5, length: Some(3), ..SaveBegin::default() })],
        vec![Part::Begin(SaveBegin { digest: Bytes::from_static(b"short"), ..SaveBegin::default() })],
    ] {
        assert_eq!(reason(save_parts(member, wrong).await), Reason::Invalid);
    }
    let skipping =
        Part::Begin(SaveBegin { index: 5, length: Some(1_000), digest: digest(&small), offset: 10 });
    assert_eq!(reason(save_parts(member, vec![skipping]).await), Reason::Offset);
    let beyond = call(client.checkpoints().save(21, Cursor::new(small.clone())).await);
    assert_eq!((beyond.reason, beyond.tail), (Reason::BeyondTail, Some(20)));
    client.checkpoints().save(15, Cursor::new(small.clone())).await.unwrap();
    let older = call(client.checkpoints().save(14, Cursor::new(small.clone())).await);
    assert_eq!(older.reason, Reason::Superseded);
    assert_eq!(older.checkpoint, Some(15));
    // At the same index another state takes its place.
    let other = state(12, 2_000);
    client.checkpoints().save(15, Cursor::new(other.clone())).await.unwrap();
    assert!(fetched(member).await.1 == other);
    assert_eq!(listed(member).await.len(), 1);
    // On a disk without room for it nothing of it stays, and what is there is still given.
    let member = &mut cluster.members[0];
    assert_eq!(member.terminate(), Some(0));
    member.extra = vec!["--disk-reserve".into(), (1_u64 << 60).to_string()];
    member.start();
    member.ready().await;
    let before = files(member);
    for outcome in [
        member.client().checkpoints().save(16, Cursor::new(state(13, 2 * MIB))).await,
        member.client().checkpoints().save_stream(16, state(13, 2 * MIB).as_slice()).await,
    ] {
        let full = call(outcome);
        assert_eq!(full.reason, Reason::DiskFull);
    }
    until("nothing half stays", || async {
        if files(member) == before { Ok(()) } else { Err(files(member)) }
    })
    .await;
    assert!(fetched(member).await.1 == other);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_do_the_same() {
    let cluster = Cluster::of(1).await;
    let member = &cluster.members[0];
    append(&member.client(), 5).await;
    let run = |arguments: &[&str]| {
        let mut command = binary();
        command.arg("checkpoint").args(arguments).arg("--socket").arg(&member.socket).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A command that does not read it may have ended.
        drop(child.stdin.take().unwrap().write_all(b"from a pipe"));
        child.wait_with_output().unwrap()
    };
    let said = |arguments: &[&str]| {
        let output = run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        output.stdout
    };
    let text = |arguments: &[&str]| String::from_utf8(said(arguments)).unwrap();
    assert!(text(&["list"]).contains("No checkpoint"));
    let none = run(&["fetch", "-"]);
    assert!(!none.status.success() && stderr(&none).contains("NO_CHECKPOINT"), "{}", stderr(&none));
    let bytes = state(14, 300_000);
    let (file, copy) = (cluster.dir.path().join("state"), cluster.dir.path().join("copy"));
    fs::write(&file, &bytes).unwrap();
    let (file, target) = (file.to_str().unwrap(), copy.to_str().unwrap());
    let saved: Value = serde_json::from_str(&text(&["save", "3", file, "-o", "json"])).unwrap();
    assert_eq!((&saved["index"], &saved["length"]), (&Value::from(3), &Value::from(300_000)));
    assert_eq!(text(&["save", "4", "-"]).split(',').next(), Some("saved: index 4"));
    assert_eq!(said(&["fetch", "-"]), b"from a pipe");
    assert!(text(&["fetch", "--index", "3", target]).starts_with("fetched: index 3, 300000 bytes"));
    assert!(fs::read(&copy).unwrap() == bytes);
    let list: Value = serde_json::from_str(&text(&["list", "-o", "json"])).unwrap();
    assert_eq!(list[0]["digest"], saved["digest"]);
    assert_eq!((&list[1]["index"], &list[1]["here"]), (&Value::from(4), &Value::from(true)));
    assert!(text(&["list"]).lines().all(|line| line.len() <= 80));
    let beyond = run(&["save", "6", file]);
    assert!(!beyond.status.success() && stderr(&beyond).contains("the log ends at index 5"));
    for arguments in [&["--help"][..], &["save", "--help"], &["fetch", "--help"]] {
        let help = binary().arg("checkpoint").args(arguments).output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        assert!(help.contains("--help") && help.lines().all(|line| line.len() <= 80), "{help}");
    }
}
