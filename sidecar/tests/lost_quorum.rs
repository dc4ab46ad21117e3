//! A quorum is lost for good, and the log went on behind a checkpoint: the application's state goes on too (docs:
//! lost-quorum.md).
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{Cluster, Member, command, stderr, until};
use futures::TryStreamExt;
use serde_json::{Value, json};
use std::fs;
use std::io::Cursor;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use synod_client::ReadOptions;

fn shown(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", stderr(output)))
}

fn verified(dir: &Path) -> Output {
    command(&["verify", dir.to_str().unwrap(), "-o", "json"])
}

fn checkpoint_file(dir: &Path) -> PathBuf {
    let mut files = fs::read_dir(dir.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path());
    files.find(|path| path.extension().unwrap() == "checkpoint").unwrap()
}

/// Three stopped members whose log names a checkpoint of `state` at index 3, and has an entry behind it.
async fn stopped(state: &[u8]) -> Cluster {
    let mut cluster = Cluster::of(3).await;
    let client = cluster.members[0].client();
    for entry in ["one", "two", "three"] {
        client.append(Bytes::from(entry)).await.unwrap();
    }
    client.checkpoints().save(3, Cursor::new(state.to_vec())).await.unwrap();
    client.append(Bytes::from("four")).await.unwrap();
    for member in &cluster.members {
        until("the checkpoint is here, and the entry", || async {
            let list = member.client().checkpoints().list().await.unwrap();
            let last = member.client().status().await.unwrap().last_index;
            if list.iter().any(|listed| listed.here) && last == 4 { Ok(()) } else { Err(last) }
        })
        .await;
    }
    for member in &mut cluster.members {
        assert_eq!(member.terminate(), Some(0));
    }
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_quorum_takes_the_applications_state_along() {
    let state: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).take(3_000_000).collect();
    let cluster = stopped(&state).await;
    let dirs: Vec<&Path> = cluster.members.iter().map(|member| member.data_dir.as_path()).collect();
    let sound = shown(&verified(dirs[2]));
    assert_eq!((&sound["healthy"], &sound["checkpoints"]), (&json!(true), &json!(1)));

    // One has lost the file, one has it with a byte flipped.
    fs::remove_file(checkpoint_file(dirs[0])).unwrap();
    let missing = shown(&verified(dirs[0]));
    assert_eq!((&missing["healthy"], &missing["missing_checkpoints"]), (&json!(true), &json!(1)));
    let flipped = checkpoint_file(dirs[1]);
    let file = fs::File::options().write(true).open(&flipped).unwrap();
    file.write_all_at(&[state[1_500_000] ^ 1], 1_500_000).unwrap();
    let damaged = verified(dirs[1]);
    assert!(!damaged.status.success());
    let damaged = shown(&damaged)["damaged"].to_string();
    assert!(damaged.contains("block 1 fails its checksum") && damaged.contains("checkpoints/"), "{damaged}");

    let to = cluster.dir.path().join("new");
    let recover = |from: [usize; 2], more: &[&str]| {
        let from = from.map(|n| dirs[n].to_str().unwrap());
        let base = ["recover", "--from", from[0], "--from", from[1], "--to", to.to_str().unwrap()];
        command(&[&base[..], &["--name", "new", "-o", "json"], more].concat())
    };
    // Without a whole copy it is said to be lost; nothing is done yet.
    let lost = shown(&recover([0, 1], &[]));
    assert_eq!((&lost["done"], &lost["checkpoints"][0]["from"]), (&json!(false), &Value::Null));
    assert_eq!(lost["checkpoints"][0]["index"], json!(3));
    let plan = shown(&recover([0, 2], &[]));
    assert_eq!(plan["checkpoints"][0]["from"], json!(dirs[2]));
    let destroyed = plan["must_be_destroyed"][0].as_str().unwrap();
    assert_eq!(shown(&recover([0, 2], &["--destroyed", destroyed]))["done"], json!(true));

    // The new member serves the state and what follows it, and goes on.
    let mut new = Member::new(cluster.dir.path(), "new");
    new.start();
    new.ready().await;
    let client = new.client();
    let fetched = client.checkpoints().fetch_newest().await.unwrap().unwrap();
    let mut bytes = Vec::new();
    assert_eq!(fetched.copy_to(&mut bytes).await.unwrap().index, 3);
    assert!(bytes == state, "the very bytes");
    let behind: Vec<_> = client.read(4, ReadOptions::default()).try_collect().await.unwrap();
    assert_eq!(behind[0].payload, Bytes::from("four"));
    assert_eq!(client.append(Bytes::from("five")).await.unwrap().first_index, 5);
    new.terminate();
}
