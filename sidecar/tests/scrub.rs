//! The scrubber finds what is damaged on a running member's disk before anybody needs it (docs: storage.md, "The
//! scrubber"; reliability.md, fault 4).
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{Cluster, Member, stderr, until};
use futures::TryStreamExt;
use std::fs;
use std::os::unix::fs::FileExt;
use synod_client::{AppendOptions, Consistency, ReadOptions};

const ENTRIES: usize = 40;

/// A payload that is found again on the disk.
fn payload(number: usize) -> Bytes {
    format!("payload {number:04} ").repeat(50_000).into()
}

/// Flips a bit in the middle of an entry's row in the oldest segment; `false`: it is not in there.
fn flip(member: &Member, number: usize) -> bool {
    let path = member.data_dir.join("log/segment-0000000001.redb");
    let text = fs::read(&path).unwrap();
    let wanted = format!("payload {number:04} ");
    let mut places = text.windows(wanted.len()).enumerate().filter(|(_, at)| *at == wanted.as_bytes());
    let Some((place, _)) = places.nth(20_000) else { return false };
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[text[place] ^ 1], place as u64).unwrap();
    file.sync_all().unwrap();
    true
}

/// Property: a flipped bit in a closed segment is found, healed from a peer and counted, while the member runs, and
/// what it serves is what was appended.
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_is_found_and_healed() {
    let mut cluster = Cluster::empty(3).await;
    for member in &mut cluster.members {
        member.kill();
        member.extra = ["--scrub-every", "1", "--scrub-rate", "1000"].map(str::to_owned).to_vec();
        member.start();
    }
    cluster.initialize().await;
    let victim = (cluster.leader().await + 1) % 3;
    let victim = &cluster.members[victim];
    victim.ready().await;
    let client = victim.client();
    let segments = || fs::read_dir(victim.data_dir.join("log")).unwrap().count();
    let patient = || AppendOptions { timeout: common::PATIENCE, ..AppendOptions::default() };
    for number in 0..ENTRIES {
        client.append_with(vec![payload(number)], patient()).await.unwrap();
    }
    assert!(segments() > 2, "the lock, and more than one segment");
    // Its scrubber has been through all of it, and found nothing.
    until("a whole pass", || async {
        let rows = victim.metric("synod_scrub_rows_total");
        if rows > 2 * ENTRIES as u64 { Ok(()) } else { Err(rows) }
    })
    .await;
    assert_eq!(victim.metric("synod_rows_damaged_total"), 0);
    assert!(flip(victim, 3), "the fourth entry is in the oldest segment");
    until("the damage is found and healed", || async {
        let names = ["synod_rows_damaged_total", "synod_rows_healed_total", "synod_rows_unhealed"];
        match names.map(|name| victim.metric(name)) {
            [damaged, healed, 0] if damaged > 0 && healed > 0 => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let two_passes = || async {
        let passes = victim.metric("synod_scrub_passes_total");
        until("two more passes", || async {
            let now = victim.metric("synod_scrub_passes_total");
            if now >= passes + 2 { Ok(()) } else { Err(now) }
        })
        .await;
    };
    // The row is on the disk by then; until it is, it may be found once more.
    two_passes().await;
    let damaged = victim.metric("synod_rows_damaged_total");
    two_passes().await;
    assert_eq!(victim.metric("synod_rows_damaged_total"), damaged, "what is healed is not found again");
    let options = ReadOptions { consistency: Consistency::Sequential, ..ReadOptions::default() };
    let entries: Vec<_> = client.read(1, options).try_collect().await.unwrap();
    assert_eq!(entries.len(), ENTRIES);
    assert!(entries.iter().enumerate().all(|(number, entry)| entry.payload == payload(number)));
    // On the disk, too.
    let name = victim.name.clone();
    let victim = cluster.members.iter_mut().find(|member| member.name == name).unwrap();
    assert_eq!(victim.terminate(), Some(0));
    let dir = victim.data_dir.to_str().unwrap();
    let verified = common::command(&["verify", dir]);
    assert!(verified.status.success(), "{}{}", String::from_utf8_lossy(&verified.stdout), stderr(&verified));
}
