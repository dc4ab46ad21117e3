//! Full disks, really full: appends are refused, reads and trimming go on, and nothing is lost (docs: reliability.md,
//! fault 11).
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::mounts::{Filler, Mounts, free};
use common::{Cluster, Member, stderr, until};
use futures::TryStreamExt;
use std::path::PathBuf;
use std::time::Duration;
use synod_client::{
    AppendError, AppendOptions, CallError, Client, Consistency, Outcome, ReadOptions, Reason,
};
use synod_proto::v1::Room;

const MIB: u64 = 1 << 20;
const RESERVE: u64 = 16 * MIB;
/// A value and its head fill 256 KiB in redb.
const ENTRY: usize = 250 << 10;
/// What a member says that ends without a byte left.
const FULL: &str = "is full: make the volume larger";

/// A cluster with each disk in memory, of so many MiB.
async fn cluster(mounts: &Mounts, mebibytes: u64) -> (Cluster, Vec<PathBuf>) {
    let mut places = Vec::new();
    let cluster = Cluster::prepared(3, |member| {
        let at = member.data_dir.clone();
        member.said = Some(said(member));
        member.extra = vec!["--disk-reserve".to_owned(), RESERVE.to_string()];
        member.data_dir = mounts.memory(&at, mebibytes);
        places.push(at);
    })
    .await;
    cluster.form().await;
    (cluster, places)
}

fn said(member: &Member) -> PathBuf {
    member.socket.with_extension("said")
}

/// How often a member has said that.
fn times(member: &Member, words: &str) -> usize {
    std::fs::read_to_string(said(member)).unwrap().matches(words).count()
}

/// One append; its outcome is known, or the test fails.
async fn append(member: &Member, entry: Bytes) -> Result<u64, CallError> {
    let options = AppendOptions { timeout: Duration::from_secs(30), ..AppendOptions::default() };
    match member.client().append_with(vec![entry], options).await {
        Ok(appended) => Ok(appended.first_index),
        Err(AppendError::Refused(error)) => Err(error),
        Err(other) => panic!("{}: {other}", member.name),
    }
}

/// Whether an append through a member that may end meanwhile is refused for want of space, if it is.
async fn is_refused(client: Client) -> Result<bool, String> {
    match client.append("one more").await {
        Ok(_) => Ok(false),
        Err(AppendError::Refused(error)) if error.reason == Reason::DiskFull => Ok(true),
        Err(other) => Err(other.to_string()),
    }
}

/// Appends through all members in turn until each refuses; gives the last index.
async fn fill(cluster: &Cluster) -> u64 {
    let (mut last, mut refused) = (0, 0);
    for number in 0_u64.. {
        let member = &cluster.members[number as usize % 3];
        let mut entry = vec![b'x'; ENTRY];
        entry[..8].copy_from_slice(&number.to_le_bytes());
        match append(member, entry.into()).await {
            Ok(index) => (last, refused) = (index, 0),
            Err(error) => {
                assert_eq!(error.reason, Reason::DiskFull);
                assert!(
                    error.outcome == Outcome::NotAppended && error.message.contains("make the volume larger"),
                    "{error}"
                );
                refused += 1;
            }
        }
        if refused == 6 {
            break;
        }
    }
    last
}

fn reading(consistency: Consistency) -> ReadOptions {
    ReadOptions { consistency, ..ReadOptions::default() }
}

/// How many entries a member's log holds, and its first index.
async fn length(member: &Member) -> (usize, u64) {
    let client = member.client();
    let last = client.tail(Consistency::Linearizable).await.unwrap();
    let mut from = 1;
    let entries: Vec<_> = loop {
        match client.read(from, reading(Consistency::Linearizable)).try_collect().await {
            Ok(entries) => break entries,
            Err(error) => from = error.first_index.filter(|first| *first > from).expect("compacted"),
        }
    };
    assert_eq!(entries.last().map_or(from - 1, |entry: &synod_client::Entry| entry.index), last);
    (entries.len(), from)
}

/// What the log keeps, as an administrator says it.
async fn retain(cluster: &Cluster, bytes: u64) {
    let leader = &cluster.members[cluster.leader().await];
    let output = leader.admin(&["settings", "--retain-bytes", &bytes.to_string()]);
    assert!(output.status.success(), "{}", stderr(&output));
}

/// docs: reliability.md, fault 11, all of it: a warning, then refusals at every door, while reads, retention and
/// settings go on; and appends again when there is space, be it by a larger volume or by a trim.
#[tokio::test(flavor = "multi_thread")]
async fn full_disks_refuse_appends_only() {
    let mounts = Mounts::new();
    let (mut cluster, places) = cluster(&mounts, 96).await;
    // More than the disks hold.
    retain(&cluster, 200 * MIB).await;
    let last = fill(&cluster).await;
    assert!(last > 100, "{last} entries filled the disks");
    for member in &mut cluster.members {
        assert!(!member.has_ended(), "{} ended", member.name);
        assert!(free(&member.data_dir) < 2 * RESERVE);
    }
    // Told once, the warning first.
    let full: Vec<&Member> = cluster.members.iter().filter(|m| m.metric("synod_disk_full") == 1).collect();
    assert!(full.len() > 1, "a quorum has no space");
    for member in &full {
        assert_eq!(times(member, "the disk is getting full"), 1);
        assert_eq!(times(member, "the disk is almost full: appends are refused"), 1);
        assert_eq!(member.metric("synod_disk_low"), 1);
        assert!(member.metric("synod_disk_free_bytes") < RESERVE);
        let disk = member.answers().await.disk.unwrap();
        assert_eq!((disk.room(), disk.reserve_bytes), (Room::Full, RESERVE));
        assert!(member.ready().await.ready, "reads go on");
    }
    for member in &cluster.members {
        assert_eq!(member.metric("synod_appends_refused_disk_full"), 1);
        assert_eq!(length(member).await, (last as usize, 1));
    }
    // A larger volume.
    places.iter().for_each(|place| mounts.enlarge(place, 128));
    let more = until("appends are taken again", || append(&cluster.members[0], "more".into())).await;
    assert_eq!(more, last + 1);
    let last = fill(&cluster).await;
    // A trim.
    retain(&cluster, 8 * MIB).await;
    let more = until("appends are taken again", || append(&cluster.members[1], "more".into())).await;
    assert_eq!(more, last + 1);
    for member in &mut cluster.members {
        assert!(!member.has_ended(), "{} ended", member.name);
        until("the trim gives space back", || async {
            if free(&member.data_dir) > 4 * RESERVE { Ok(()) } else { Err(free(&member.data_dir)) }
        })
        .await;
    }
    // All that is left is there, everywhere, and after a start, too.
    let lengths: Vec<_> = futures::future::join_all(cluster.members.iter().map(length)).await;
    assert!(lengths.iter().all(|one| *one == lengths[0] && one.0 as u64 + one.1 - 1 == more), "{lengths:?}");
    for member in &mut cluster.members {
        assert_eq!(member.terminate(), Some(0));
        member.start();
    }
    for member in &cluster.members {
        member.ready().await;
        assert_eq!(length(member).await, lengths[0]);
    }
}

/// docs: storage.md, "A full disk": a log that was to be kept for ever fills its disks; lowering the retention makes room,
/// though not a byte can be appended.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_without_a_retention_makes_room() {
    let mounts = Mounts::new();
    let (cluster, _) = cluster(&mounts, 160).await;
    let last = fill(&cluster).await;
    let (marked, kept) = ((64 * MIB).div_ceil(ENTRY as u64), (8 * MIB) / ENTRY as u64);
    assert!(last > marked + kept, "{last} entries are more than stand before the first mark");
    retain(&cluster, 8 * MIB).await;
    let more = until("appends are taken again", || append(&cluster.members[0], "more".into())).await;
    assert_eq!(more, last + 1);
    let (entries, first) = length(&cluster.members[1]).await;
    assert_eq!(entries as u64 + first - 1, more);
    // A mark stands at the first beat behind 64 MiB.
    assert!(
        (marked..=more - kept).contains(&first),
        "trimmed to a mark that stood already: the log begins at {first} of {more}"
    );
}

/// One disk of three that somebody else has filled to the last byte, the leader's or another: the others go on; its
/// member starts from what it had in reserve, answers reads, and is back when there is space.
#[tokio::test(flavor = "multi_thread")]
async fn one_disk_without_a_byte_left() {
    let mounts = Mounts::new();
    let (mut cluster, _) = cluster(&mounts, 128).await;
    let mut last = 0;
    for round in 0..4 {
        let leader = cluster.leader().await;
        let victim = if round % 2 == 0 { leader } else { (leader + 1) % 3 };
        let member = &cluster.members[victim];
        let (told, starts) = (times(member, FULL), member.starts);
        let filler = Filler::new(&member.data_dir, 0);
        let other = (victim + 1) % 3;
        for _ in 0..8 {
            let entry = Bytes::from(vec![b'y'; 100]);
            let appending = || append(&cluster.members[other], entry.clone());
            last = until("the others go on", appending).await;
        }
        // Free space is looked at every second.
        until("a member without space does not lead", || async {
            let leader = cluster.leader().await;
            if leader == victim { Err(leader) } else { Ok(()) }
        })
        .await;
        let member = &mut cluster.members[victim];
        let refuses = |client: Client| async move {
            if is_refused(client).await? { Ok(()) } else { Err("it takes appends".to_owned()) }
        };
        member.kept_running("it refuses appends", refuses).await;
        // It starts from what it had in reserve, and does not end again.
        let ends = member.starts - starts + usize::from(member.has_ended());
        assert!(ends <= 1 && ends == times(member, FULL) - told, "{ends} ends; {:?}", member.last_words());
        let read: Result<Vec<_>, _> =
            member.client().read(1, reading(Consistency::Sequential)).try_collect().await;
        assert!(read.unwrap().len() as u64 + 8 * 2 > last, "what it had is read");
        drop(filler);
        let takes = |client: Client| async move {
            if is_refused(client).await? { Err("it is full".to_owned()) } else { Ok(()) }
        };
        member.kept_running("it takes appends again", takes).await;
        member.ready().await;
        for member in &cluster.members {
            assert_eq!(length(member).await.1, 1);
        }
    }
}

/// Property: a disk without an inode for another file takes appends, and a member starts on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_starts_without_an_inode_left() {
    let mounts = Mounts::new();
    let mut cluster = Cluster::prepared(1, |member| {
        let at = member.data_dir.clone();
        member.extra = vec!["--disk-reserve".to_owned(), RESERVE.to_string()];
        member.data_dir = mounts.memory_for(&at, 256, 200);
    })
    .await;
    cluster.form().await;
    let member = &mut cluster.members[0];
    append(member, Bytes::from("before")).await.unwrap();
    let reserve = member.data_dir.join("reserve");
    until("the reserve is kept", || async { if reserve.exists() { Ok(()) } else { Err("not yet") } }).await;
    let made =
        (0..).take_while(|n| std::fs::File::create(member.data_dir.join(format!("other-{n}"))).is_ok());
    assert!(made.count() > 100, "there were inodes");
    append(member, Bytes::from("with none")).await.unwrap();
    // Twice: the first start has the reserve's inode, the second that of what the first one left.
    for start in 0..2 {
        member.kill();
        let other = member.data_dir.join(format!("more-{start}"));
        drop(std::fs::File::create(other));
        member.start();
        member.ready().await;
        append(member, Bytes::from("again")).await.unwrap();
    }
}
