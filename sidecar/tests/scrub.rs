//! The scrubber finds what is damaged on a running member's disk before anybody needs it (docs: storage.md, "The
//! scrubber"; reliability.md, fault 4).
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{Cluster, Member, stderr, until};
use futures::TryStreamExt;
use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use synod_client::{AppendOptions, Client, Consistency, ReadOptions};

const ENTRIES: usize = 40;

/// A payload that is found again on the disk.
fn payload(number: usize) -> Bytes {
    format!("payload {number:04} ").repeat(50_000).into()
}

/// The segments on a member's disk, the oldest first.
fn segments(member: &Member) -> Vec<PathBuf> {
    let entries = fs::read_dir(member.data_dir.join("log")).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == "redb")).collect();
    segments.sort();
    segments
}

/// Flips a bit wherever `wanted` stands in a file, but for the first so many places; says at how many.
fn flip(path: &Path, wanted: &str, skipped: usize) -> usize {
    // A trim may have removed it.
    let Ok(mut file) = fs::OpenOptions::new().read(true).write(true).open(path) else { return 0 };
    let mut text = Vec::new();
    file.read_to_end(&mut text).unwrap();
    let places = text.windows(wanted.len()).enumerate().filter(|(_, at)| *at == wanted.as_bytes());
    let flipped = places.skip(skipped).map(|(place, _)| {
        file.write_all_at(&[text[place] ^ 1], place as u64).unwrap();
    });
    let flipped = flipped.count();
    file.sync_all().unwrap();
    flipped
}

/// Three members whose scrubbers go round and round, and which of them is a follower.
async fn scrubbed() -> (Cluster, usize) {
    let mut cluster = Cluster::empty(3).await;
    for member in &mut cluster.members {
        member.kill();
        member.extra = ["--scrub-every", "1", "--scrub-rate", "1000"].map(str::to_owned).to_vec();
        member.start();
    }
    cluster.initialize().await;
    let follower = (cluster.leader().await + 1) % 3;
    cluster.members[follower].ready().await;
    (cluster, follower)
}

async fn append_all(client: &Client) {
    let patient = || AppendOptions { timeout: common::PATIENCE, ..AppendOptions::default() };
    for number in 0..ENTRIES {
        client.append_with(vec![payload(number)], patient()).await.unwrap();
    }
}

async fn two_passes(member: &Member) {
    let passes = member.metric("synod_scrub_passes_total");
    until("two more passes", || async {
        let now = member.metric("synod_scrub_passes_total");
        if now >= passes + 2 { Ok(()) } else { Err(now) }
    })
    .await;
}

/// Stops a member and reads all of its disk.
fn verify(mut cluster: Cluster, member: usize) {
    let member = &mut cluster.members[member];
    assert_eq!(member.terminate(), Some(0));
    let verified = common::command(&["verify", member.data_dir.to_str().unwrap()]);
    assert!(verified.status.success(), "{}{}", String::from_utf8_lossy(&verified.stdout), stderr(&verified));
}

/// Property: a flipped bit in a closed segment is found, healed from a peer and counted, while the member runs, and
/// what it serves is what was appended.
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_is_found_and_healed() {
    let (cluster, follower) = scrubbed().await;
    let victim = &cluster.members[follower];
    let client = victim.client();
    append_all(&client).await;
    let segments = segments(victim);
    assert!(segments.len() > 1, "more than one segment");
    // Its scrubber has been through all of it, and found nothing.
    until("a whole pass", || async {
        let rows = victim.metric("synod_scrub_rows_total");
        if rows > 2 * ENTRIES as u64 { Ok(()) } else { Err(rows) }
    })
    .await;
    assert_eq!(victim.metric("synod_rows_damaged_total"), 0);
    // In the middle of its row.
    assert!(flip(&segments[0], "payload 0003 ", 20_000) > 0, "the fourth entry is in the oldest segment");
    until("the damage is found and healed", || async {
        let names = ["synod_rows_damaged_total", "synod_rows_healed_total", "synod_rows_unhealed"];
        match names.map(|name| victim.metric(name)) {
            [damaged, healed, 0] if damaged > 0 && healed > 0 => Ok(()),
            other => Err(other),
        }
    })
    .await;
    // The row is on the disk by then; until it is, it may be found once more.
    two_passes(victim).await;
    let damaged = victim.metric("synod_rows_damaged_total");
    two_passes(victim).await;
    assert_eq!(victim.metric("synod_rows_damaged_total"), damaged, "what is healed is not found again");
    let options = ReadOptions { consistency: Consistency::Sequential, ..ReadOptions::default() };
    let entries: Vec<_> = client.read(1, options).try_collect().await.unwrap();
    assert_eq!(entries.len(), ENTRIES);
    assert!(entries.iter().enumerate().all(|(number, entry)| entry.payload == payload(number)));
    // On the disk, too.
    verify(cluster, follower);
}

/// Blocks of 4 KiB of a file in which `wanted` stands first become zeros, or all but the first block; says how many.
fn zero(path: &Path, wanted: Option<&str>) -> usize {
    let mut file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut text = Vec::new();
    file.read_to_end(&mut text).unwrap();
    let blocks = text.chunks(4_096).enumerate().skip(1).filter(|(_, block)| match wanted {
        Some(wanted) => block.windows(wanted.len()).any(|at| at == wanted.as_bytes()),
        None => block.iter().any(|byte| *byte != 0),
    });
    let blocks: Vec<usize> = blocks.map(|(number, _)| number).collect();
    for number in &blocks {
        file.write_all_at(&[0; 4_096], *number as u64 * 4_096).unwrap();
    }
    file.sync_all().unwrap();
    blocks.len()
}

async fn reads_all(client: &Client) {
    let options = ReadOptions { consistency: Consistency::Sequential, ..ReadOptions::default() };
    let entries: Vec<_> = client.read(1, options).try_collect().await.unwrap();
    assert_eq!(entries.len(), ENTRIES);
    assert!(entries.iter().enumerate().all(|(number, entry)| entry.payload == payload(number)));
}

/// Property: pages of an old segment that make no sense end no member and no read: who reads waits while their rows
/// heal from peers.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_lost_pages_waits_while_they_heal() {
    let cluster = Cluster::of(3).await;
    let follower = (cluster.leader().await + 1) % 3;
    let victim = &cluster.members[follower];
    victim.ready().await;
    let client = victim.client();
    append_all(&client).await;
    let segments = segments(victim);
    assert!(segments.len() > 2, "more than one closed segment");
    until("the oldest segments are closed", || async {
        let sums = |path: &PathBuf| path.with_extension("redb.sums").exists();
        if segments[..1].iter().all(sums) { Ok(()) } else { Err("not yet") }
    })
    .await;
    assert!(zero(&segments[0], Some("payload 0003 ")) > 0);
    reads_all(&client).await;
    assert!(victim.metric("synod_rows_healed_total") > 0);
    verify(cluster, follower);
}

/// Property: the same where nothing is left of a segment but its first block, across a start, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_of_which_nothing_is_left_heals() {
    let mut cluster = Cluster::of(3).await;
    let follower = (cluster.leader().await + 1) % 3;
    let victim = &mut cluster.members[follower];
    victim.ready().await;
    append_all(&victim.client()).await;
    assert_eq!(victim.terminate(), Some(0));
    assert!(zero(&segments(victim)[0], None) > 0);
    victim.start();
    victim.ready().await;
    reads_all(&victim.client()).await;
    assert!(victim.metric("synod_rows_healed_total") > 0);
}

/// Property: a segment that is damaged while its member is down is left for the next one, and what it lost heals.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_on_a_damaged_newest_segment_goes_on_in_the_next() {
    let mut cluster = Cluster::of(3).await;
    let follower = (cluster.leader().await + 1) % 3;
    let client = cluster.members[follower].client();
    for number in 0..200 {
        client.append(Bytes::from(format!("small {number:04}"))).await.unwrap();
    }
    let victim = &mut cluster.members[follower];
    victim.ready().await;
    assert_eq!(victim.terminate(), Some(0));
    let newest = segments(victim).into_iter().rfind(|path| path.with_extension("redb.sums").exists());
    assert!(zero(&newest.unwrap(), Some("small 0100")) > 0);
    victim.start();
    victim.ready().await;
    let options = ReadOptions { consistency: Consistency::Linearizable, ..ReadOptions::default() };
    let entries: Vec<_> = victim.client().read(1, options).try_collect().await.unwrap();
    assert_eq!(entries.len(), 200);
    assert!(entries.iter().enumerate().all(|(n, entry)| entry.payload == format!("small {n:04}").as_bytes()));
    verify(cluster, follower);
}

/// Property: so is one in a snapshot, from memory; the log may come to begin with any of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_a_snapshot_is_found_and_healed() {
    let (cluster, follower) = scrubbed().await;
    let victim = &cluster.members[follower];
    // Marks behind every tenth entry, and nothing to trim.
    let told = cluster.members[0].admin(&["settings", "--retain-entries", &(2 * ENTRIES).to_string()]);
    assert!(told.status.success(), "{}", stderr(&told));
    let name = "a consumer that is in each snapshot";
    victim.client().consumers().register(name).await.unwrap();
    append_all(&victim.client()).await;
    two_passes(victim).await;
    assert_eq!(victim.metric("synod_snapshots_healed_total"), 0);
    // Which segment has which snapshot is a matter of when its mark was chosen.
    let mut flipped = 0;
    let client = victim.client();
    until("the damage is found and healed", || {
        let segments = segments(victim);
        // The last two are the one that is written and, mostly, one that is prepared.
        let closed = &segments[..segments.len().saturating_sub(2)];
        flipped += closed.iter().map(|segment| flip(segment, name, 0)).sum::<usize>();
        let client = &client;
        async move {
            if victim.metric("synod_snapshots_healed_total") > 0 {
                return Ok(());
            }
            client.append(payload(ENTRIES)).await.map_err(|error| error.to_string())?;
            Err(format!("{flipped} bits flipped"))
        }
    })
    .await;
    two_passes(victim).await;
    let healed = victim.metric("synod_snapshots_healed_total");
    two_passes(victim).await;
    assert_eq!(victim.metric("synod_snapshots_healed_total"), healed, "what is healed is not found again");
    verify(cluster, follower);
}
