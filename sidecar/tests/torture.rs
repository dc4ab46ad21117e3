//! Real processes killed and paused under load (docs: reliability.md, layers of testing, 5; faults 1, 10, 22, 39).
//!
//! In `make test` for a few kills; `make torture` sets `SYNOD_TORTURE` to how long it goes on and has the report
//! written to `target/torture/report.json`.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{Cluster, Member, until};
use futures::TryStreamExt;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use synod_client::{AppendOptions, Client, Consistency, ReadOptions};

const MEMBERS: usize = 3;
const WRITERS: usize = 6;
/// Kills of a run without `SYNOD_TORTURE`.
const KILLS: u64 = 12;

#[derive(Debug, Default, Serialize)]
struct Report {
    kills: u64,
    pauses: u64,
    stalls: u64,
    full_disks: u64,
    acknowledged: u64,
    unknown: u64,
    found: u64,
    lost: u64,
    duplicated: u64,
    reordered: u64,
    seconds: u64,
}

/// What one writer was told: the text of each call, and its index or that nobody knows.
#[derive(Debug, Default)]
struct Told {
    acknowledged: Vec<(String, u64)>,
    unknown: Vec<String>,
}

/// Appends one entry after the other until it is told to stop; each may take until the cluster is whole again.
async fn write(client: Client, name: usize, stop: Arc<AtomicBool>, progress: Arc<AtomicU64>) -> Told {
    let options = || AppendOptions { timeout: Duration::from_secs(30), ..AppendOptions::default() };
    let mut told = Told::default();
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let text = format!("writer {name} call {number}");
        match client.append_with(vec![Bytes::from(text.clone())], options()).await {
            Ok(appended) => {
                progress.fetch_add(1, Ordering::Relaxed);
                told.acknowledged.push((text, appended.first_index));
            }
            Err(_) => told.unknown.push(text),
        }
    }
    told
}

/// A small generator: which member, and which fault, need no more.
fn next(seed: &mut u64, below: u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) % below
}

fn signal(member: &Member, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(member.process()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Every member's log, read from that member.
async fn log(member: &Member) -> Vec<String> {
    let client = member.client();
    let options = || ReadOptions { consistency: Consistency::Linearizable, ..ReadOptions::default() };
    until("the log is read", || async {
        let entries: Result<Vec<_>, _> = client.read(1, options()).try_collect().await;
        let entries = entries.map_err(|error| format!("{error:?}"))?;
        Ok::<_, String>(entries.iter().map(|e| String::from_utf8(e.payload.to_vec()).unwrap()).collect())
    })
    .await
}

fn judge(report: &mut Report, told: &[Told], log: &[String]) {
    let mut places: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for (index, text) in (1..).zip(log) {
        places.entry(text).or_default().push(index);
    }
    report.duplicated += places.values().filter(|indexes| indexes.len() > 1).count() as u64;
    for writer in told {
        let mut last = 0;
        for (text, index) in &writer.acknowledged {
            match places.get(text.as_str()).map(Vec::as_slice) {
                Some([found, ..]) => {
                    report.found += 1;
                    report.reordered += u64::from(found != index || *found <= last);
                    last = *found;
                }
                _ => report.lost += 1,
            }
        }
    }
}

/// Waits until more was acknowledged: a fault that comes before the last one is over shows less.
async fn advance(progress: &AtomicU64) {
    let before = progress.load(Ordering::Relaxed);
    until("appends go on", || async {
        if progress.load(Ordering::Relaxed) > before + 20 { Ok(()) } else { Err(before) }
    })
    .await;
}

/// `90s`, `20m` or `1h`.
fn seconds(span: &str) -> u64 {
    let (number, unit) = span.split_at(span.len() - 1);
    let number: u64 = number.parse().expect("SYNOD_TORTURE is a number with s, m or h behind it");
    match unit {
        "s" => number,
        "m" => number * 60,
        "h" => number * 3_600,
        _ => panic!("SYNOD_TORTURE={span}: use 90s, 20m or 1h"),
    }
}

/// Property: an acknowledged append is in every member's log, once, at its index and in its writer's order,
/// whatever processes were killed or paused (docs: protocol.md, first paragraph).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_processes_die() {
    let wanted = std::env::var("SYNOD_TORTURE").ok().map(|span| seconds(&span));
    let began = Instant::now();
    let mut cluster = Cluster::of(MEMBERS).await;
    let (stop, progress) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..WRITERS)
        .map(|name| {
            let client = cluster.members[name % MEMBERS].client();
            tokio::spawn(write(client, name, stop.clone(), progress.clone()))
        })
        .collect();
    let mut report = Report::default();
    let mut seed = 1;
    let more = |report: &Report| match wanted {
        Some(seconds) => began.elapsed().as_secs() < seconds,
        None => report.kills < KILLS,
    };
    while more(&report) {
        advance(&progress).await;
        let victim = usize::try_from(next(&mut seed, MEMBERS as u64)).unwrap();
        match next(&mut seed, 10) {
            // Power is lost everywhere at once.
            0 => {
                cluster.members.iter_mut().for_each(Member::kill);
                cluster.members.iter_mut().for_each(Member::start);
                report.kills += MEMBERS as u64;
            }
            // A pause that is longer than an election timeout, and one that is shorter.
            pause @ 1..=2 => {
                signal(&cluster.members[victim], Signal::STOP);
                tokio::time::sleep(Duration::from_millis(300 + 1_500 * (pause - 1))).await;
                signal(&cluster.members[victim], Signal::CONT);
                report.pauses += 1;
            }
            // Killed again while it recovers (fault 13).
            3 => {
                for _ in 0..2 {
                    cluster.members[victim].kill();
                    cluster.members[victim].start();
                    report.kills += 1;
                }
            }
            _ => {
                cluster.members[victim].kill();
                cluster.members[victim].start();
                report.kills += 1;
            }
        }
        if wanted.is_some() && report.kills.is_multiple_of(50) {
            println!("{} kills, {} acknowledged", report.kills, progress.load(Ordering::Relaxed));
        }
    }
    advance(&progress).await;
    stop.store(true, Ordering::Relaxed);
    let mut told = Vec::new();
    for writer in writers {
        told.push(writer.await.unwrap());
    }
    report.acknowledged = told.iter().map(|t| t.acknowledged.len() as u64).sum();
    report.unknown = told.iter().map(|t| t.unknown.len() as u64).sum();
    for member in &cluster.members {
        let log = log(member).await;
        judge(&mut report, &told, &log);
    }
    report.seconds = began.elapsed().as_secs();
    let json = serde_json::to_string_pretty(&report).unwrap();
    println!("{json}");
    if wanted.is_some() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/torture");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("report.json"), json).unwrap();
    }
    assert_eq!((report.lost, report.duplicated, report.reordered), (0, 0, 0));
    assert_eq!(report.found, report.acknowledged * MEMBERS as u64);
}
