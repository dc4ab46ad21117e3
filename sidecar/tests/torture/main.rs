//! Real processes killed and paused under load, on disks that are slow, stand still, fill up and lose their power, over slow
//! links, among strangers' connections (docs: reliability.md, layers of testing, 5; faults 1, 10 to 13, 22, 39).
//!
//! In `make test` for a few of each; `make torture` sets `SYNOD_TORTURE` to how long it goes on and has the report
//! written to `target/torture/report.json`. `make powercut` sets `SYNOD_POWERCUT` to a number of cuts.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod faults;
mod load;
mod powercut;
mod readers;
mod syncs;
mod volumes;

use common::until;
use faults::Torture;
use load::Load;
use powercut::PowerCut;
use readers::Readers;
use serde::Serialize;
use std::path::Path;
use std::time::{Duration, Instant};
use syncs::Syncs;
use volumes::{Kind, Outcome};

const WRITERS: usize = 6;
/// Kills of a run without `SYNOD_TORTURE`.
const KILLS: u64 = 12;
/// Rounds with leases, and then without.
const LEASES: u64 = 6;
/// What a member may have resident, at any time (docs: reliability.md).
const MEMORY: u64 = 256 << 20;
/// Volumes of each kind in a run without `SYNOD_VOLUMES`.
const VOLUMES: u64 = 3;
/// Power cuts of a run without `SYNOD_POWERCUT`.
const CUTS: u64 = 6;
/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(15);

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

/// Writes a report below `target`, where `make` looks for it.
fn save(name: &str, report: &impl Serialize) {
    let json = serde_json::to_string_pretty(report).unwrap();
    println!("{json}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target").join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, json).unwrap();
}

/// Property: an acknowledged append is in every member's log, once, at its index and in its writer's order, and what
/// was refused for certain is in none, whatever happened to processes and disks (docs: protocol.md, first paragraph). No
/// reader is shown less than it was promised, and no member takes more memory than it may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_processes_die() {
    let wanted = std::env::var("SYNOD_TORTURE").ok().map(|span| seconds(&span));
    let seed = std::env::var("SYNOD_TORTURE_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    let (began, mut told) = (Instant::now(), Instant::now());
    let mut torture = Torture::start(seed).await;
    if !torture.has_disks() {
        println!("no disk stands still here: that takes root and loop devices");
    }
    let load = Load::start(&torture.cluster.members, WRITERS);
    let readers = Readers::start(&torture.cluster.members, &load.known);
    if wanted.is_none() {
        // One of each kind, whatever the seed chooses.
        load.advance().await;
        torture.switch_leases(&load).await;
        let leader = torture.cluster.leader().await;
        torture.freeze(leader).await;
        torture.strangers(0, &load).await;
        torture.slow_link(1, &load).await;
        torture.slow_disk(&load).await;
        if torture.has_disks() {
            torture.stall(2).await;
            torture.fill_all(&load).await;
        }
        torture.fill_one(0, &load).await;
    }
    let mut rounds = 0;
    loop {
        let over = match wanted {
            Some(seconds) => began.elapsed().as_secs() >= seconds,
            None => torture.report.kills >= KILLS,
        };
        if over {
            break;
        }
        load.advance().await;
        rounds += 1;
        // On in half of the rounds.
        if rounds % LEASES == 0 {
            torture.switch_leases(&load).await;
        }
        match wanted {
            Some(_) => torture.strike(&load).await,
            None => torture.kill(usize::try_from(torture.report.kills).unwrap() % faults::MEMBERS),
        }
        if wanted.is_some() && told.elapsed() > PROGRESS {
            told = Instant::now();
            let (report, free) = (&torture.report, torture.space() >> 20);
            println!(
                "{:>5} s: {} kills, {} pauses, {} stalls, {} slow links, {} slow disks, {} full disks, \
                 {} acknowledged, {free} MiB free",
                began.elapsed().as_secs(),
                report.kills,
                report.pauses,
                report.stalls,
                report.slow_links,
                report.slow_disks,
                report.full_disks,
                load.acknowledged()
            );
        }
    }
    load.advance().await;
    torture.weigh();
    let mut report = torture.report(&load);
    let ended = load.end().await;
    readers.end().await;
    ended.judge(&torture.cluster.members, &mut report).await;
    report.seconds = began.elapsed().as_secs();
    println!("{report:?}");
    if wanted.is_some() {
        save("torture/report.json", &report);
    }
    assert_eq!((report.lost, report.duplicated, report.reordered), (0, 0, 0));
    assert_eq!(report.found, report.acknowledged * faults::MEMBERS as u64);
    let readers = report.readers;
    assert_eq!((readers.stale, readers.holes, readers.differing), (0, 0, 0));
    assert!(readers.reads > 0 && report.under_leases > 0 && report.memory > 0);
    assert!(report.memory <= MEMORY, "a member had {} MiB resident", report.memory >> 20);
}

#[derive(Debug, Serialize)]
struct VolumesReport {
    wiped: Outcome,
    rolled_back: Outcome,
    swapped: Outcome,
    seconds: u64,
}

/// Property: a member whose volume was wiped, rolled back to an older copy or swapped with another's never speaks for
/// what it may have forgotten, and three voters are whole again afterwards (docs: protocol.md, "Identity and amnesia").
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_that_change_under_their_members() {
    let wanted = std::env::var("SYNOD_VOLUMES").ok().map(|runs| runs.parse().expect("a number"));
    let (runs, began) = (wanted.unwrap_or(VOLUMES), Instant::now());
    let (wiped, rolled_back, swapped) = tokio::join!(
        volumes::run(Kind::Wiped, runs),
        volumes::run(Kind::RolledBack, runs),
        volumes::run(Kind::Swapped, runs)
    );
    let report = VolumesReport { wiped, rolled_back, swapped, seconds: began.elapsed().as_secs() };
    println!("{report:?}");
    if wanted.is_some() {
        save("torture/volumes.json", &report);
    }
    for outcome in [&report.wiped, &report.rolled_back, &report.swapped] {
        assert_eq!((outcome.unsafe_votes, outcome.whole_again), (0, runs));
        assert_eq!((outcome.lost, outcome.duplicated, outcome.reordered), (0, 0, 0));
    }
    assert_eq!(report.rolled_back.fenced, runs, "who comes back as an older copy says so");
}

/// Property: a power cut of all members at once takes no acknowledged append, whatever it leaves of what was not synced
/// (docs: reliability.md, faults 10 and 13).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_cuts_take_nothing_acknowledged() {
    let wanted = std::env::var("SYNOD_POWERCUT").ok().map(|runs| runs.parse().expect("a number"));
    let (runs, began) = (wanted.unwrap_or(CUTS), Instant::now());
    let Some(mut power) = PowerCut::start(&[]).await else { return };
    let load = Load::start(&power.cluster.members, WRITERS);
    let readers = Readers::start(&power.cluster.members, &load.known);
    let mut told = Instant::now();
    while power.report.cuts < runs {
        power.round(&load).await;
        if wanted.is_some() && told.elapsed() > PROGRESS {
            told = Instant::now();
            let seconds = began.elapsed().as_secs();
            println!("{seconds:>5} s: {} cuts, {} acknowledged", power.report.cuts, load.acknowledged());
        }
    }
    load.advance().await;
    let ended = load.end().await;
    readers.end().await;
    let mut report = power.judge(&ended).await;
    report.load.seconds = began.elapsed().as_secs();
    println!("{report:?}");
    if wanted.is_some() {
        save("powercut/report.json", &report);
    }
    assert!(report.forgotten > 0, "no cut took what was not synced");
    let (readers, load) = (report.load.readers, report.load);
    assert!(load.memory <= MEMORY, "a member had {} MiB resident", load.memory >> 20);
    assert!(readers.reads > 0 && load.under_leases > 0);
    // What a reader was shown stands, too.
    assert_eq!((readers.stale, readers.holes, readers.differing), (0, 0, 0));
    assert_eq!((load.lost, load.duplicated, load.reordered), (0, 0, 0));
    assert_eq!(load.found, load.acknowledged * faults::MEMBERS as u64);
}

/// Property: the test above sees a storage whose sync does nothing, in the logs and with its readers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_finds_a_sync_that_does_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let syncs = Syncs::new(dir.path());
    let Some(mut power) = PowerCut::start(&syncs.wrapper).await else { return };
    let load = Load::start(&power.cluster.members, WRITERS);
    let known = load.known.clone();
    let _readers = Readers::start(&power.cluster.members, &known);
    load.advance().await;
    syncs.forget();
    load.advance().await;
    let ended = load.end().await;
    power.cut();
    power.ready().await;
    until("a reader is shown less than was acknowledged", || async {
        let seen = known.seen();
        if seen.stale > 0 { Ok(()) } else { Err(seen) }
    })
    .await;
    let report = power.judge(&ended).await;
    println!("{report:?}");
    assert!(report.load.lost > 0, "every acknowledged entry is there, though nothing was synced: {report:?}");
}
