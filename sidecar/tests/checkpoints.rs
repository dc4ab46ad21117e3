//! Checkpoints: the application's state in and out, on a quorum before the log names it (docs: protocol.md,
//! "Snapshots, checkpoints, trim"; decisions/0010).
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{Cluster, Member, PATIENCE, binary, id, stderr, until};
use futures::TryStreamExt;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::fs;
use std::io::{Cursor, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use synod_client::{
    CallError, Checkpoint, CheckpointError, Client, Consistency, ListedCheckpoint, Progress, ReadOptions,
    channel,
};
use synod_proto::v1::checkpoints_client::CheckpointsClient;
use synod_proto::v1::save_checkpoint_request::Part;
use synod_proto::v1::{self, SaveBegin, SaveCheckpointRequest, SaveFinish, StandingRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;

const MIB: usize = 1 << 20;

/// Bytes that do not repeat.
fn state(seed: u64, length: usize) -> Vec<u8> {
    let mut number = seed;
    let next = |_| {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        number.to_be_bytes()[0]
    };
    (0..length).map(next).collect()
}

fn digest(state: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&Sha256::digest(state))
}

async fn append(client: &Client, count: usize) -> u64 {
    client.append_many((0..count).map(|n| Bytes::from(format!("{n}"))).collect()).await.unwrap().last_index
}

async fn fetched(member: &Member) -> (Checkpoint, Vec<u8>) {
    let fetched = member.client().checkpoints().fetch_newest().await.unwrap().unwrap();
    let mut state = Vec::new();
    (fetched.copy_to(&mut state).await.unwrap(), state)
}

async fn listed(member: &Member) -> Vec<ListedCheckpoint> {
    member.client().checkpoints().list().await.unwrap()
}

/// Waits until this member has every checkpoint that the log names on its own disk.
async fn has_all(member: &Member) {
    until("every checkpoint is here", || async {
        let list = listed(member).await;
        if list.iter().all(|listed| listed.here) { Ok(()) } else { Err(list) }
    })
    .await;
}

/// Files of the member's folder, by name.
fn files(member: &Member) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(member.data_dir.join("checkpoints")) else { return Vec::new() };
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn is_whole(path: &Path) -> bool {
    path.extension().unwrap() == "checkpoint"
}

fn whole(member: &Member) -> Vec<PathBuf> {
    files(member).into_iter().filter(|path| is_whole(path)).collect()
}

fn service(member: &Member) -> CheckpointsClient<Channel> {
    CheckpointsClient::new(channel(&member.socket).unwrap())
}

async fn standing(member: &Member, index: u64, state: &[u8]) -> u64 {
    let checkpoint = v1::Checkpoint { index, length: state.len() as u64, digest: digest(state) };
    let request = StandingRequest { checkpoint: Some(checkpoint) };
    until("the member answers", || async { service(member).standing(request.clone()).await })
        .await
        .into_inner()
        .bytes
}

fn begin(index: u64, state: &[u8]) -> Part {
    let length = Some(state.len() as u64);
    Part::Begin(SaveBegin { index, length, digest: digest(state), offset: 0 })
}

fn chunk(bytes: &[u8]) -> Part {
    Part::Chunk(Bytes::copy_from_slice(bytes))
}

fn finish(state: &[u8]) -> Part {
    Part::Finish(SaveFinish { length: state.len() as u64, digest: digest(state) })
}

/// A Save of exactly these parts, to its end.
async fn save_parts(member: &Member, parts: Vec<Part>) -> Result<v1::Checkpoint, CallError> {
    let parts = parts.into_iter().map(|part| SaveCheckpointRequest { part: Some(part) });
    let saved = service(member).save(futures::stream::iter(parts.collect::<Vec<_>>())).await?;
    Ok(saved.into_inner().checkpoint.unwrap())
}

fn reason<T: std::fmt::Debug>(outcome: Result<T, CallError>) -> (Code, String) {
    let error = outcome.unwrap_err();
    (error.code, error.reason)
}

fn call(outcome: Result<Checkpoint, CheckpointError>) -> CallError {
    match outcome {
        Err(CheckpointError::Call(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// docs: socket-api.md, "checkpoints": what is saved at one member is fetched at every other.
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
        assert_eq!(reason(none), (Code::NotFound, "no-checkpoint".into()));
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
    assert_eq!(reason(ended), (Code::InvalidArgument, "invalid".into()));
    let wrong = save_parts(member, vec![begins(), chunk(one), chunk(two), finish(one)]).await;
    assert_eq!(reason(wrong), (Code::Aborted, "mismatch".into()));
    until("nothing stays", || async { if files(member).is_empty() { Ok(()) } else { Err(files(member)) } })
        .await;
    // Other bytes than were announced.
    let wrong = save_parts(member, vec![begin(9, &state), chunk(two), chunk(one), finish(&state)]).await;
    assert_eq!(reason(wrong), (Code::Aborted, "mismatch".into()));
    let long = save_parts(member, vec![begin(9, one), chunk(one), chunk(b"x"), finish(one)]).await;
    assert_eq!(reason(long), (Code::Aborted, "mismatch".into()));
    assert!(files(member).is_empty() && listed(member).await.is_empty());
    // A part that a crash has spoilt: the SDK begins anew by itself.
    let cut = save_parts(member, vec![begin(9, &state), chunk(one)]).await;
    assert_eq!(reason(cut), (Code::InvalidArgument, "invalid".into()));
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

fn change(cluster: &Cluster, leader: usize, arguments: &[&str]) {
    let output = cluster.members[leader].admin(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
}

/// Adds one more member, and gives it a vote.
async fn join(cluster: &mut Cluster) -> usize {
    let new = cluster.add().await;
    cluster.let_join(new, 0).await;
    let new_id = id(cluster.members[new].answers().await.member);
    let leader = cluster.leader().await;
    change(cluster, leader, &["add-learner", "--member", &new_id, "--name", "n3"]);
    change(cluster, leader, &["promote", "--member", &new_id]);
    new
}

/// docs: protocol.md, "Snapshots": a new member gets the checkpoint, also where the log before it is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_member_gets_the_checkpoint() {
    let mut cluster = Cluster::of(3).await;
    let client = cluster.members[0].client();
    change(&cluster, 0, &["settings", "--retain-entries", "16"]);
    let state = state(6, 5 * MIB);
    // Trims go to marks, which stand about every so many entries: one is before a checkpoint before long.
    let index = until("the log is trimmed", || async {
        let index = append(&client, 10).await;
        client.checkpoints().save(index, Cursor::new(state.clone())).await.unwrap();
        let first = client.consumers().list(Consistency::Sequential).await.unwrap().first_index;
        if first > 1 { Ok(index) } else { Err(first) }
    })
    .await;
    append(&client, 10).await;
    // A subscriber that comes too late is told where to begin.
    let gone = client.read(1, ReadOptions::default()).try_next().await.unwrap_err();
    assert_eq!((gone.code, gone.reason.as_str()), (Code::OutOfRange, "compacted"));
    assert_eq!(gone.checkpoint, Some(index));
    assert!(gone.first_index.unwrap() <= index + 1, "trimmed past the checkpoint");
    let new = join(&mut cluster).await;
    let member = &cluster.members[new];
    let (checkpoint, bytes) = fetched(member).await;
    assert!(checkpoint.index == index && bytes == state);
    has_all(member).await;
    assert!(member.metric("synod_checkpoint_bytes_taken_total") >= state.len() as u64);
    assert_eq!(member.metric("synod_checkpoints_missing"), 0);
    // From its own disk now, and what follows from its own log.
    let next: Vec<_> = member
        .client()
        .read(index + 1, ReadOptions { limit: Some(1), ..ReadOptions::default() })
        .try_collect()
        .await
        .unwrap();
    assert_eq!(next[0].index, index + 1);
}

/// docs: reliability.md, faults 4 and 5, for checkpoints: a flipped byte is never served, and healed from a peer.
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_healed() {
    let mut cluster = Cluster::of(3).await;
    append(&cluster.members[0].client(), 10).await;
    let state = state(7, 3 * MIB + 100);
    cluster.members[0].client().checkpoints().save(10, Cursor::new(state.clone())).await.unwrap();
    for member in &cluster.members {
        has_all(member).await;
    }
    let path = whole(&cluster.members[1])[0].clone();
    let good = fs::read(&path).unwrap();
    // In the first block, in the last, in the sums behind it, in the footer.
    let places = [7, 3 * MIB + 50, state.len() + 3, good.len() - 20];
    for (flips, place) in (1..).zip(places) {
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[good[place] ^ 4], place as u64).unwrap();
        assert!(fetched(&cluster.members[1]).await.1 == state, "byte {place}");
        until("it is healed", || async {
            let healed = fs::read(&path).is_ok_and(|bytes| bytes == good);
            let damaged = cluster.members[1].metric("synod_checkpoints_damaged_total");
            if healed && damaged == flips { Ok(()) } else { Err((healed, damaged)) }
        })
        .await;
    }
    // While the member is down; the other that is asked has a flipped one, too.
    cluster.members[1].kill();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[good[MIB] ^ 1], MIB as u64).unwrap();
    let other = fs::OpenOptions::new().write(true).open(&whole(&cluster.members[2])[0]).unwrap();
    other.write_all_at(&[good[2 * MIB] ^ 1], 2 * MIB as u64).unwrap();
    cluster.members[1].start();
    assert!(fetched(&cluster.members[2]).await.1 == state);
    // The first by the member itself, though nobody asks for it.
    until("both are healed", || async {
        let same = |member: &Member| whole(member).first().is_some_and(|p| fs::read(p).unwrap() == good);
        let healed = (same(&cluster.members[1]), same(&cluster.members[2]));
        if healed == (true, true) { Ok(()) } else { Err(healed) }
    })
    .await;
}

/// docs: reliability.md, fault 1, for checkpoints: members killed at any point of a Save leave a part or the whole, and
/// the Save ends well once they are back.
#[tokio::test(flavor = "multi_thread")]
async fn killed_members_leave_no_half() {
    let mut cluster = Cluster::of(3).await;
    append(&cluster.members[0].client(), 10).await;
    let state = state(8, 24 * MIB);
    let file = cluster.dir.path().join("state");
    fs::write(&file, &state).unwrap();
    for round in 0..6 {
        let at = &cluster.members[0];
        let mut save = binary();
        save.args(["checkpoint", "save", &(round + 1).to_string()])
            .arg(&file)
            .arg("--socket")
            .arg(&at.socket);
        let save = RefCell::new(save.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        // The member that takes it in or one that pulls it, early or late.
        let victim = if round % 2 == 0 { 0 } else { 1 };
        let at_least = [0, 1, 8 * MIB, 4 * MIB, 20 * MIB, 16 * MIB][round];
        until("so much stands", || async {
            let sizes = files(&cluster.members[victim]).into_iter().filter_map(|path| {
                let of_round = path.file_name()?.to_str()?.starts_with(&format!("{:020}", round + 1));
                of_round.then(|| fs::metadata(path).map_or(0, |file| file.len()))
            });
            let most = sizes.max().unwrap_or(0);
            let ended = save.borrow_mut().try_wait().unwrap().is_some();
            if most >= at_least as u64 || ended { Ok(()) } else { Err(most) }
        })
        .await;
        cluster.members[victim].kill();
        cluster.members[victim].start();
        let ended = save.into_inner().wait_with_output().unwrap();
        assert!(ended.status.success(), "round {round}: {}", stderr(&ended));
        for member in &cluster.members {
            let (checkpoint, bytes) = fetched(member).await;
            assert!(checkpoint.index == round as u64 + 1 && bytes == state, "round {round}");
        }
    }
    for member in &cluster.members {
        has_all(member).await;
        until("only whole ones stay", || async {
            if files(member).len() == 6 && whole(member).len() == 6 { Ok(()) } else { Err(files(member)) }
        })
        .await;
    }
}

/// docs: protocol.md, "Snapshots": the log is trimmed past only what a quorum's durable checkpoints cover. Here two of
/// three members cannot keep any: the Save is not answered, the log does not name it, and nothing more is trimmed.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_waits_for_a_quorum() {
    let cluster = Cluster::of(3).await;
    let client = cluster.members[0].client();
    append(&client, 20).await;
    client.checkpoints().save(10, Cursor::new(state(9, 1_000))).await.unwrap();
    for member in &cluster.members {
        has_all(member).await;
    }
    for member in &cluster.members[1..] {
        fs::remove_dir_all(member.data_dir.join("checkpoints")).unwrap();
        fs::write(member.data_dir.join("checkpoints"), "in the way").unwrap();
    }
    change(&cluster, 0, &["settings", "--retain-entries", "16"]);
    let index = append(&client, 10).await;
    let (checkpoints, newer) = (client.checkpoints(), state(10, MIB));
    let saving = tokio::spawn(async move { checkpoints.save(index, Cursor::new(newer)).await });
    until("it is whole at one member", || async {
        if whole(&cluster.members[0]).len() == 2 { Ok(()) } else { Err(files(&cluster.members[0])) }
    })
    .await;
    for _ in 0..50 {
        append(&client, 20).await;
    }
    assert!(!saving.is_finished());
    for member in &cluster.members {
        let list = listed(member).await;
        assert_eq!(list.last().unwrap().checkpoint.index, 10, "the log names what one disk has");
        let first = member.client().consumers().list(Consistency::Linearizable).await.unwrap().first_index;
        assert!(first <= 11, "trimmed up to {first}");
    }
    // One more member is a quorum.
    fs::remove_file(cluster.members[1].data_dir.join("checkpoints")).unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, saving).await.unwrap().unwrap().unwrap().index, index);
    assert_eq!(whole(&cluster.members[1]).last().unwrap().metadata().unwrap().len(), MIB as u64 + 8 + 64);
    // Trims go to marks, which stand about every so many entries: one is before a checkpoint before long.
    until("the log is trimmed up to there", || async {
        let tail = append(&client, 20).await;
        client.checkpoints().save(tail, Cursor::new(Vec::new())).await.unwrap();
        let first = client.consumers().list(Consistency::Sequential).await.unwrap().first_index;
        if first > 11 { Ok(()) } else { Err(first) }
    })
    .await;
}

/// docs: decisions/0010: the quorum is that of the members when the Save is answered, not when it began.
#[tokio::test(flavor = "multi_thread")]
async fn the_quorum_is_that_of_now() {
    let mut cluster = Cluster::of(3).await;
    let client = cluster.members[0].client();
    append(&client, 20).await;
    for member in &cluster.members[1..] {
        fs::write(member.data_dir.join("checkpoints"), "in the way").unwrap();
    }
    let checkpoints = client.checkpoints();
    let saving = tokio::spawn(async move { checkpoints.save(20, Cursor::new(state(15, 2 * MIB))).await });
    until("it is whole at one member", || async {
        if whole(&cluster.members[0]).len() == 1 { Ok(()) } else { Err(files(&cluster.members[0])) }
    })
    .await;
    let new = join(&mut cluster).await;
    until("the new member is asked, too", || async {
        if whole(&cluster.members[new]).len() == 1 { Ok(()) } else { Err(files(&cluster.members[new])) }
    })
    .await;
    // Two of four are none.
    append(&client, 20).await;
    assert!(!saving.is_finished() && listed(&cluster.members[0]).await.is_empty());
    fs::remove_file(cluster.members[2].data_dir.join("checkpoints")).unwrap();
    tokio::time::timeout(PATIENCE, saving).await.unwrap().unwrap().unwrap();
    assert_eq!(whole(&cluster.members[2]).len(), 1);
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
    assert_eq!(reason(large), (Code::ResourceExhausted, "chunk-too-large".into()));
    let larger = save_parts(member, vec![begin(5, &small), chunk(&vec![0; 3 * MIB])]).await;
    assert_eq!(reason(larger).0, Code::ResourceExhausted);
    for wrong in [
        vec![chunk(&small)],
        vec![begin(5, &small), begin(5, &small)],
        vec![Part::Begin(SaveBegin { index: 5, length: Some(3), ..SaveBegin::default() })],
        vec![Part::Begin(SaveBegin { digest: Bytes::from_static(b"short"), ..SaveBegin::default() })],
    ] {
        assert_eq!(reason(save_parts(member, wrong).await), (Code::InvalidArgument, "invalid".into()));
    }
    let skipping =
        Part::Begin(SaveBegin { index: 5, length: Some(1_000), digest: digest(&small), offset: 10 });
    assert_eq!(reason(save_parts(member, vec![skipping]).await), (Code::Aborted, "offset".into()));
    let beyond = call(client.checkpoints().save(21, Cursor::new(small.clone())).await);
    assert_eq!(
        (beyond.code, beyond.reason.as_str(), beyond.tail),
        (Code::OutOfRange, "beyond-tail", Some(20))
    );
    client.checkpoints().save(15, Cursor::new(small.clone())).await.unwrap();
    let older = call(client.checkpoints().save(14, Cursor::new(small.clone())).await);
    assert_eq!((older.code, older.reason.as_str()), (Code::FailedPrecondition, "superseded"));
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
        assert_eq!((full.code, full.reason.as_str()), (Code::ResourceExhausted, "disk-full"));
    }
    until("nothing half stays", || async {
        if files(member) == before { Ok(()) } else { Err(files(member)) }
    })
    .await;
    assert!(fetched(member).await.1 == other);
}

/// docs: reliability.md, fault 11, for checkpoints: a Save that meets a full disk leaves nothing, and the log goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_the_save_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut member = Member::new(dir.path(), "small");
    fs::create_dir(&member.data_dir).unwrap();
    fs::write(&member.peers_file, "").unwrap();
    let mount = format!("mount -t tmpfs -o size=48m tmpfs {} && exec \"$@\"", member.data_dir.display());
    // The small disk is in a mount namespace of its own, and reached through the process.
    member.wrapper = ["unshare", "-rm", "sh", "-c", &mount, "sh"].map(str::to_owned).to_vec();
    member.extra = vec!["--disk-reserve".into(), (4 * MIB).to_string()];
    member.start();
    let own = id(member.answers().await.member);
    member.data_dir = PathBuf::from(format!("/proc/{}/root{}", member.process(), member.data_dir.display()));
    let (cluster_id, founder) = (uuid::Uuid::new_v4().to_string(), format!("--member={own}=small"));
    let output = member.admin(&["initialize", "--cluster-id", &cluster_id, &founder]);
    assert!(output.status.success(), "{}", stderr(&output));
    member.ready().await;
    let client = member.client();
    append(&client, 10).await;
    let large = state(16, 60 * MIB);
    // It is not known how much comes, and it is known; appends go on meanwhile.
    for announced in [false, true] {
        let checkpoints = client.checkpoints();
        let saving = async {
            match announced {
                false => checkpoints.save_stream(5, large.as_slice()).await,
                true => checkpoints.save(5, Cursor::new(large.clone())).await,
            }
        };
        let appending = async {
            loop {
                append(&client, 1).await;
            }
        };
        let outcome = tokio::select! {
            outcome = saving => outcome,
            () = appending => unreachable!("it goes on until the Save has ended"),
        };
        let full = call(outcome);
        assert_eq!((full.code, full.reason.as_str()), (Code::ResourceExhausted, "disk-full"));
    }
    until("nothing half stays", || async {
        if files(&member).is_empty() { Ok(()) } else { Err(files(&member)) }
    })
    .await;
    client.checkpoints().save(5, Cursor::new(large[..25 * MIB].to_vec())).await.unwrap();
    assert!(fetched(&member).await.1 == large[..25 * MIB]);
    append(&client, 10).await;
}

/// The log names the newest eight; the files of others go, at every member.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_names_no_more_is_removed() {
    let mut cluster = Cluster::of(3).await;
    let client = cluster.members[0].client();
    append(&client, 20).await;
    for index in 1..=10 {
        let through = &cluster.members[index as usize % 3];
        through.client().checkpoints().save(index, Cursor::new(state(index, 10_000))).await.unwrap();
    }
    // One that was away meanwhile, and comes back with what it had.
    cluster.members[2].kill();
    client.checkpoints().save(11, Cursor::new(state(11, 10_000))).await.unwrap();
    cluster.members[2].start();
    for member in &cluster.members {
        until("eight files stay", || async {
            let list = member.client().checkpoints().list().await.map_err(|error| error.to_string())?;
            let indexes: Vec<_> = list.iter().map(|listed| listed.checkpoint.index).collect();
            let here = list.iter().all(|listed| listed.here);
            if here && indexes == (4..=11).collect::<Vec<_>>() && files(member).len() == 8 {
                Ok(())
            } else {
                Err(format!("{indexes:?} {:?}", files(member)))
            }
        })
        .await;
    }
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
    assert!(!none.status.success() && stderr(&none).contains("no-checkpoint"), "{}", stderr(&none));
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
