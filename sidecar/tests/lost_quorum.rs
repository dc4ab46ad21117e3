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
use synod_client::{AppendOptions, ReadOptions};
use synod_paxos::configuration::{Change, ConfigurationEntry};
use synod_paxos::value::Value as Entry;
use synod_paxos::{MemberId, Row, row};

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
            let last = synod_client::wire::status(&member.client()).await.unwrap().last_index;
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
    let confirm = plan["confirm"].as_str().unwrap();
    let done = shown(&recover([0, 2], &["--destroyed", destroyed, "--confirm", confirm]));
    assert_eq!(done["done"], json!(true));

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

/// A log that holds a chosen entry which no version reads: no member starts on it, and `recover` leaves it out where a
/// person names its slot and digest.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_nobody_reads_is_left_out_by_an_explicit_act() {
    let cluster = stopped(b"state").await;
    let old = synod_sidecar::storage::Offline::open(&cluster.members[0].data_dir, None).unwrap();
    let mut disk = old.whole_state(synod_sidecar::storage::Rows::All).unwrap();
    drop(old);
    // What a leader of an earlier version could put there: a learner with a name of 254 bytes.
    let change = Change::AddLearner { member: MemberId(0xaa), name: "x".repeat(254) };
    let entry = ConfigurationEntry { expected_version: 1, operation: [1; 16], change };
    let slot = disk.rows.keys().next_back().unwrap().next();
    let (ballot, value) = (disk.promised, Entry::Configuration(entry).encode());
    let checksum = row::checksum(disk.genesis.as_ref().unwrap().cluster, slot, ballot, &value);
    disk.rows.insert(slot, Row { slot, ballot, chosen: true, value, checksum });
    disk.chosen_through = slot;
    let dir = cluster.dir.path().join("held");
    synod_sidecar::storage::create(&dir, &disk).unwrap();

    let to = cluster.dir.path().join("new");
    let recover = |more: &[&str]| {
        let base = ["recover", "--from", dir.to_str().unwrap(), "--to", to.to_str().unwrap()];
        command(&[&base[..], &["--name", "new", "-o", "json"], more].concat())
    };
    let refused = recover(&[]);
    assert!(!refused.status.success());
    let told = stderr(&refused);
    let option = told.split("add --skip ").nth(1).unwrap_or_else(|| panic!("{told}"));
    let named = option.split_whitespace().next().unwrap().trim_end_matches(':').to_owned();
    assert!(named.starts_with(&format!("{}:", slot.0)), "{told}");
    let other = recover(&["--skip", &format!("{}:{}", slot.0, "0".repeat(64))]);
    assert!(stderr(&other).contains("holds no entry that can be left out"), "{}", stderr(&other));

    let plan = shown(&recover(&["--skip", &named]));
    assert_eq!((&plan["done"], &plan["skipped_slots"][0]["slot"]), (&json!(false), &json!(slot.0)));
    let lost: Vec<&str> =
        plan["must_be_destroyed"].as_array().unwrap().iter().map(|member| member.as_str().unwrap()).collect();
    let confirm = plan["confirm"].as_str().unwrap();
    let attested = ["--skip", &named, "--destroyed", lost[0], "--destroyed", lost[1], "--confirm", confirm];
    assert_eq!(shown(&recover(&attested))["done"], json!(true));
    let mut new = Member::new(cluster.dir.path(), "new");
    new.start();
    new.ready().await;
    assert_eq!(new.client().append(Bytes::from("five")).await.unwrap().first_index, 5);
    new.terminate();
}

/// Nothing is done without a report, where every voter's directory is named, too: the log that they are of may be
/// running well elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_recovered_without_a_report() {
    let cluster = stopped(b"a state").await;
    let to = cluster.dir.path().join("new");
    let mut all = vec!["recover", "--to", to.to_str().unwrap(), "--name", "new", "-o", "json"];
    for member in &cluster.members {
        all.extend(["--from", member.data_dir.to_str().unwrap()]);
    }
    let report = shown(&command(&all));
    assert_eq!((&report["done"], &report["must_be_destroyed"]), (&json!(false), &json!([])));
    assert!(!to.exists());
    all.extend(["--confirm", report["confirm"].as_str().unwrap()]);
    assert_eq!(shown(&command(&all))["done"], json!(true));
}

/// Copies of the members that were taken one after the other, while the log went on: started together, later ones
/// remember more of the earlier than those show. From all of them a log begins again with all that they hold.
#[tokio::test(flavor = "multi_thread")]
async fn copies_of_different_times_begin_a_log_again() {
    let mut cluster = Cluster::of(3).await;
    let place = cluster.dir.path().to_owned();
    let mut copies: Vec<PathBuf> = Vec::new();
    let mut appended = 0_u64;
    for n in 0..3 {
        for _ in 0..5 {
            appended += 1;
            let client = cluster.members[(n + 1) % 3].client();
            let patient = AppendOptions { timeout: common::PATIENCE, ..AppendOptions::default() };
            client.append_with(vec![Bytes::from(format!("entry {appended}"))], patient).await.unwrap();
        }
        // A member is stopped, copied, and started; the log goes on without it.
        let member = &mut cluster.members[n];
        assert_eq!(member.terminate(), Some(0));
        let copy = place.join(format!("copy-{n}"));
        let from = member.data_dir.to_str().unwrap();
        let copied = std::process::Command::new("cp").args(["-a", from, copy.to_str().unwrap()]).status();
        assert!(copied.unwrap().success());
        copies.push(copy);
        member.start();
        member.ready().await;
    }
    for member in &mut cluster.members {
        member.kill();
    }
    // One of the copies is a backup by itself: the others of its time are gone.
    let to = place.join("from-one");
    let recover = |from: &[PathBuf], to: &Path, more: &[&str]| {
        let mut all = vec!["recover", "--to", to.to_str().unwrap(), "--name", "new", "-o", "json"];
        from.iter().for_each(|dir| all.extend(["--from", dir.to_str().unwrap()]));
        command(&[&all[..], more].concat())
    };
    let report = shown(&recover(&copies[2..], &to, &[]));
    let destroyed: Vec<String> = report["must_be_destroyed"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|member| ["--destroyed".to_owned(), member.as_str().unwrap().to_owned()])
        .collect();
    let mut more: Vec<&str> = destroyed.iter().map(String::as_str).collect();
    more.extend(["--confirm", report["confirm"].as_str().unwrap()]);
    assert_eq!(shown(&recover(&copies[2..], &to, &more))["done"], json!(true));
    let mut new = Member::new(&place, "from-one");
    new.data_dir = to;
    new.start();
    new.ready().await;
    let entries: Vec<_> = new.client().read(1, ReadOptions::default()).try_collect().await.unwrap();
    let expected = (1..=appended).map(|n| format!("entry {n}"));
    assert!(entries.iter().map(|entry| entry.payload.clone()).eq(expected.map(Bytes::from)));
    assert_eq!(new.client().append(Bytes::from("on")).await.unwrap().first_index, appended + 1);
    new.terminate();
    // A disk that its peers have fenced is refused, with what to do; and taken where that is said.
    let fenced = &mut synod_sidecar::storage::open(&copies[0], None).unwrap();
    let why = synod_paxos::Write::Fenced("an older copy".to_owned());
    let written = fenced.state.written.next();
    synod_paxos::Storage::commit(&mut fenced.storage, written, &mut [why].iter()).unwrap();
    drop(std::mem::replace(fenced, synod_sidecar::storage::open(&place.join("none"), None).unwrap()));
    let to = place.join("from-all");
    let refused = stderr(&recover(&copies, &to, &[]));
    assert!(refused.contains("--fenced"), "{refused}");
    let report = shown(&recover(&copies, &to, &["--fenced"]));
    assert_eq!((&report["last_index"], &report["must_be_destroyed"]), (&json!(appended), &json!([])));
    assert_eq!(report["fenced"].as_array().unwrap().len(), 1);
    let confirm = report["confirm"].as_str().unwrap();
    assert_eq!(shown(&recover(&copies, &to, &["--fenced", "--confirm", confirm]))["done"], json!(true));
}
