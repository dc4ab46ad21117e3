//! The version before this one beside this one, in one cluster and under load: up, back down, and up again, and then the
//! format level (docs/upgrade.md).
//!
//! The version before is the commit in `PREVIOUS`; `previous` builds its program once, in the user's cache folder.
//! `make test` runs that first, so that its progress is seen.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code, reason = "shared with the torture tests, which use more of it")]
#[path = "../torture/load.rs"]
mod load;
#[path = "../torture/readers.rs"]
mod readers;

use common::{Cluster, stderr, until};
use load::{Load, Report};
use readers::Readers;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use synod_client::{AppendError, AppendOptions, NewEntry, Reason, Repeats};
use synod_proto::v1::MemberState;

/// The newest level.
const LEVEL: u32 = synod_paxos::Settings::FORMAT_LEVEL;

/// The program of the version before; built if it is not there.
fn previous() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/upgrade/previous");
    let built = Command::new(script).stdin(Stdio::null()).stderr(Stdio::inherit()).output().unwrap();
    assert!(built.status.success(), "the previous version is missing: what it takes is said above");
    PathBuf::from(String::from_utf8(built.stdout).unwrap().trim())
}

/// Puts another version under every member, one after the other, the leader last, as a rolling update does.
async fn roll(cluster: &mut Cluster, load: &Load, program: Option<&Path>) {
    let leader = cluster.leader().await;
    let order: Vec<usize> = (0..cluster.members.len()).filter(|n| *n != leader).chain([leader]).collect();
    for n in order {
        let member = &mut cluster.members[n];
        assert_eq!(member.terminate(), Some(0), "{}: {:?}", member.name, member.last_words());
        member.program = program.map(Path::to_owned);
        member.start();
        member.ready().await;
        load.advance().await;
        check(cluster).await;
    }
}

/// Every member takes part.
async fn check(cluster: &mut Cluster) {
    for member in &mut cluster.members {
        assert!(!member.has_ended(), "{} has ended: {:?}", member.name, member.last_words());
        let status = member.answers().await;
        assert_eq!(status.state(), MemberState::Active, "{}: {}", member.name, status.reason);
    }
}

async fn raise(cluster: &Cluster, level: u32) -> Result<(), String> {
    let level = level.to_string();
    let output = cluster.members[cluster.leader().await].admin(&["settings", "--format-level", &level]);
    if output.status.success() { Ok(()) } else { Err(stderr(&output)) }
}

async fn level(cluster: &Cluster, n: usize) -> Option<u32> {
    cluster.members[n].answers().await.settings.and_then(|settings| settings.format_level)
}

/// Why an append with a header is refused, if it is: through a member that does not lead.
async fn append_with_header(cluster: &Cluster) -> Result<(), Option<Reason>> {
    let member = &cluster.members[(cluster.leader().await + 1) % 3];
    let entry = NewEntry::new(load::BESIDE).header("traceparent", "00-1-2-01");
    let how =
        AppendOptions { timeout: common::PATIENCE, repeats: Repeats::Untold, ..AppendOptions::default() };
    let appended = member.client().append_entries(vec![entry], how).await;
    appended.map(|_| ()).map_err(|error| match error {
        AppendError::Refused(why) => Some(why.reason),
        _ => None,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_upgrade_goes_up_and_back_down_under_load() {
    let previous = previous();
    let mut cluster = Cluster::prepared(3, |member| {
        member.program = Some(previous.clone());
        member.said = Some(member.data_dir.with_extension("log"));
    })
    .await;
    cluster.form().await;
    let load = Load::start(&cluster.members, 4);
    let readers = Readers::start(&cluster.members, &load.known);
    load.advance().await;
    let consumers = |cluster: &Cluster| cluster.members[0].client().consumers();
    consumers(&cluster).register_at("reader", 0).await.unwrap();

    roll(&mut cluster, &load, None).await;
    consumers(&cluster).advance("reader", 5).await.unwrap();
    roll(&mut cluster, &load, Some(&previous)).await;
    consumers(&cluster).advance("reader", 9).await.unwrap();

    // Halfway up: a member of this version leads, one of the others is of the version before.
    let leader = cluster.leader().await;
    let stays = (leader + 1) % 3;
    for n in (0..3).filter(|n| *n != stays) {
        cluster.members[n].terminate();
        cluster.members[n].program = None;
        cluster.members[n].start();
        cluster.members[n].ready().await;
        load.advance().await;
    }
    let old = common::id(cluster.members[stays].answers().await.member);
    let new = cluster.members[leader].answers().await.member;
    until("a member of this version leads", || async {
        let at = cluster.leader().await;
        if at == stays {
            cluster.members[at].admin(&["transfer-leader", "--to", &common::id(new)]);
            return Err(at);
        }
        Ok(())
    })
    .await;
    let refused = raise(&cluster, 2).await.unwrap_err();
    assert!(refused.contains("run this version on every member") && refused.contains(&old), "{refused}");
    check(&mut cluster).await;

    roll(&mut cluster, &load, None).await;
    for n in 0..3 {
        assert_eq!(level(&cluster, n).await, Some(1));
    }
    until("every member has said that it reads the next level", || raise(&cluster, 2)).await;
    for next in 3..=LEVEL {
        let refused = append_with_header(&cluster).await.unwrap_err();
        assert_eq!(refused, Some(Reason::FormatLevel), "headers wait for their level");
        until("the level rises by one at a time", || raise(&cluster, next)).await;
    }
    load.advance().await;
    for n in 0..3 {
        let here = || async {
            let level = level(&cluster, n).await;
            if level == Some(LEVEL) { Ok(()) } else { Err(level) }
        };
        until("the level has risen", here).await;
    }
    append_with_header(&cluster).await.unwrap();
    // They start on what they wrote at the new level, and go on.
    roll(&mut cluster, &load, None).await;

    let mut report = Report::default();
    let ended = load.end().await;
    readers.end().await;
    let refused = ended.judge(&cluster.members, &mut report).await;
    println!("{report:?}");
    assert!(report.acknowledged > 300, "{report:?}");
    assert_eq!((report.lost, report.duplicated, report.reordered), (0, 0, 0), "{report:?}");
    assert_eq!((report.unknown, refused), (0, 0), "no append fails: {report:?}");
    let seen = report.readers;
    assert!(seen.reads > 0 && (seen.stale, seen.holes, seen.differing) == (0, 0, 0), "{seen:?}");
    for member in &mut cluster.members {
        assert_eq!(member.metric("synod_proposals_unreadable_total"), 0);
        assert_eq!(member.terminate(), Some(0));
    }
}
