//! `inspect`, `verify`, `export` and `recover` on directories of a cluster that ran and was stopped.
#![allow(clippy::unwrap_used)]

mod medium;

use bytes::Bytes;
use medium::{old_state, write_old};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use synod_paxos::value::{Append, Call, Fields, Operation, Origin, Value};
use synod_paxos::{Ballot, ClusterId, Genesis, MemberId, Row, Slot, Storage, SystemState, Write, row};
use synod_paxos::{Incarnation, Index, RequestId};
use synod_sidecar::storage::{DIRECTORY, LEGACY, Mark, Options, open, open_with};

const CLUSTER: ClusterId = ClusterId([7; 16]);

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_synod-sidecar")).args(arguments).output().unwrap()
}

/// The bytes of every file of a log, by path.
fn bytes(dir: &Path) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(dir.join(DIRECTORY)).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

fn text(dir: &Path) -> &str {
    dir.to_str().unwrap()
}

fn json(output: &Output) -> Json {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn batch(slot: u64, entry: &str) -> Row {
    let ballot = Ballot { round: 1, member: MemberId(1) };
    let origin = Origin { member: MemberId(1), incarnation: Incarnation(1), request: RequestId(slot) };
    let append = Append::plain(vec![Bytes::from(entry.to_owned())]);
    let calls = vec![Call { origin, operation: Operation::Append(append) }];
    let value =
        Value::Batch { ballot, advance: std::time::Duration::ZERO, fields: Fields::NONE, calls }.encode();
    let checksum = row::checksum(CLUSTER, Slot(slot), ballot, &value);
    Row { slot: Slot(slot), ballot, chosen: true, value, checksum }
}

/// The directory of a member of three, with three entries; `damaged` slots fail their checksum.
fn directory(damaged: &[u64]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = open(dir.path(), None).unwrap();
    let members = BTreeMap::from([
        (opened.state.member, "log-0".to_owned()),
        (MemberId(2), "log-1".to_owned()),
        (MemberId(3), "log-2".to_owned()),
    ]);
    let mut writes = vec![Write::Genesis(Genesis::new(CLUSTER, members)), Write::GenesisConfirmed];
    for (slot, entry) in [(1, "one"), (2, "two"), (3, "three")] {
        let mut row = batch(slot, entry);
        if damaged.contains(&slot) {
            row.checksum ^= 1;
        }
        writes.push(Write::Row(row));
    }
    writes.push(Write::ChosenThrough(Slot(3)));
    let mark = |n| Mark { first: Index(n), slot: Slot(n), count: 1, skipped: Vec::new() };
    opened.storage.add_marks([mark(1), mark(2), mark(3)], Slot(3));
    opened.storage.commit(opened.state.written.next(), &mut writes.iter()).unwrap();
    dir
}

#[test]
fn a_directory_is_shown_checked_and_exported_without_a_change() {
    let dir = directory(&[]);
    let before = bytes(dir.path());
    let shown = json(&run(&["inspect", text(dir.path()), "-o", "json"]));
    assert_eq!((&shown["last_index"], &shown["chosen_through"]), (&Json::from(3), &Json::from(3)));
    assert_eq!(shown["configuration"]["voters"].as_object().unwrap().len(), 3);
    let people = run(&["inspect", text(dir.path())]);
    let people = String::from_utf8(people.stdout).unwrap();
    assert!(people.lines().all(|line| line.chars().count() <= 80), "{people}");
    let verified = json(&run(&["verify", text(dir.path()), "-o", "json"]));
    assert_eq!(
        (&verified["healthy"], &verified["rows"], &verified["entries"]),
        (&Json::from(true), &Json::from(3), &Json::from(3))
    );
    let exported = run(&["export", text(dir.path()), "--from", "2"]);
    let exported = String::from_utf8(exported.stdout).unwrap();
    assert_eq!(exported, "{\"index\":2,\"text\":\"two\"}\n{\"index\":3,\"text\":\"three\"}\n");
    assert_eq!(bytes(dir.path()), before);
}

/// reliability.md, fault 4: found, named, never exported.
#[test]
fn damage_is_named_and_never_exported() {
    let dir = directory(&[2]);
    let verified = run(&["verify", text(dir.path()), "-o", "json"]);
    assert!(!verified.status.success());
    let found: Json = serde_json::from_slice(&verified.stdout).unwrap();
    assert_eq!(found["damaged"], Json::from(vec!["slot 2 in segment-0000000001.redb: fails its checksum"]));
    let exported = run(&["export", text(dir.path())]);
    assert!(!exported.status.success());
    assert!(!String::from_utf8(exported.stdout).unwrap().contains("two"));
}

/// reliability.md, fault 5: a damaged snapshot is named, and no log is made to begin with it; the rest is shown, and the
/// member goes on without it.
#[test]
fn a_damaged_snapshot_is_named_and_not_used() {
    let dir = directory(&[]);
    let mut opened = open(dir.path(), None).unwrap();
    let mut system = SystemState::new(opened.state.genesis.as_ref().unwrap());
    for (slot, entry) in [(1, "one"), (2, "two"), (3, "three")] {
        system.apply(Slot(slot), &batch(slot, entry).value).unwrap();
    }
    let state = system.encode();
    let snapshot = Write::Snapshot { slot: Slot(3), state: state.clone() };
    opened.storage.commit(opened.state.written.next(), &mut [snapshot].iter()).unwrap();
    drop(opened);
    assert_eq!(json(&run(&["verify", text(dir.path()), "-o", "json"]))["snapshots"], Json::from(1));
    let path = dir.path().join(DIRECTORY).join("segment-0000000001.redb");
    let mut file = std::fs::read(&path).unwrap();
    let places: Vec<usize> =
        file.windows(state.len()).enumerate().filter(|(_, at)| *at == state).map(|(n, _)| n).collect();
    assert!(!places.is_empty());
    places.iter().for_each(|place| file[place + state.len() / 2] ^= 1);
    std::fs::write(&path, file).unwrap();
    let verified = run(&["verify", text(dir.path())]);
    assert!(!verified.status.success());
    let said = String::from_utf8(verified.stdout).unwrap();
    assert!(said.contains("slot 3 fails its checksum"), "{said}");
    let shown = json(&run(&["inspect", text(dir.path()), "-o", "json"]));
    assert_eq!((&shown["last_index"], &shown["snapshots"]), (&Json::from(3), &Json::Array(Vec::new())));
    let to = dir.path().join("new");
    let refused = run(&["recover", "--from", text(dir.path()), "--to", text(&to), "--name", "log-0"]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("slot 3 fails its checksum"), "{said}");
    let opened = open(dir.path(), None).unwrap();
    assert!(opened.state.snapshots.is_empty() && opened.state.rows.len() == 3);
}

#[test]
fn what_is_no_stopped_member_is_refused_with_a_hint() {
    let empty = tempfile::tempdir().unwrap();
    let refused = run(&["inspect", text(empty.path())]);
    assert!(String::from_utf8(refused.stderr).unwrap().contains("holds no member"));
    let dir = directory(&[]);
    let held = open(dir.path(), None).unwrap();
    let refused = run(&["verify", text(dir.path())]);
    assert!(String::from_utf8(refused.stderr).unwrap().contains("in use by another process"));
    drop(held);
    let refused = run(&["inspect", text(dir.path()), "--copy-to", text(dir.path())]);
    assert!(String::from_utf8(refused.stderr).unwrap().contains("name an empty directory"));
    let copied = empty.path().join("copy");
    assert!(run(&["inspect", text(dir.path()), "--copy-to", text(&copied)]).status.success());
}

/// docs: decisions/0009: all segments are shown, checked and exported; a damaged one is named with what can be run.
#[test]
fn every_segment_is_looked_at_and_a_damaged_one_is_named() {
    let dir = directory(&[]);
    let options = Options { most_bytes: 8 << 10, least_bytes: 4 << 10, background: false };
    let mut opened = open_with(dir.path(), None, options).unwrap();
    for slot in 4..=40 {
        let written = opened.state.written;
        opened.storage.add_marks(
            [Mark { first: Index(slot), slot: Slot(slot), count: 1, skipped: Vec::new() }],
            Slot(slot),
        );
        let row = Write::Row(batch(slot, &"x".repeat(1_500)));
        opened.storage.commit(written, &mut [row, Write::ChosenThrough(Slot(slot))].iter()).unwrap();
        opened.storage.keep_house();
    }
    drop(opened);
    let before = bytes(dir.path());
    let shown = json(&run(&["inspect", text(dir.path()), "-o", "json"]));
    let segments = shown["segments"].as_array().unwrap();
    assert!(segments.len() > 4, "{segments:?}");
    assert_eq!((&shown["last_index"], &shown["rows"]), (&Json::from(40), &Json::from(40)));
    let verified = json(&run(&["verify", text(dir.path()), "-o", "json"]));
    assert_eq!((&verified["rows"], &verified["entries"]), (&Json::from(40), &Json::from(40)));
    let exported = run(&["export", text(dir.path())]);
    assert_eq!(String::from_utf8(exported.stdout).unwrap().lines().count(), 40);
    assert_eq!(bytes(dir.path()), before);
    // The first bytes of a file say that it is a database.
    let second = segments[1]["file"].as_str().unwrap();
    let path = dir.path().join(DIRECTORY).join(second);
    let mut damaged = std::fs::read(&path).unwrap();
    damaged[0] ^= 1;
    std::fs::write(&path, damaged).unwrap();
    let verified = run(&["verify", text(dir.path())]);
    assert!(!verified.status.success());
    assert!(String::from_utf8(verified.stdout).unwrap().contains(second));
    let exported = String::from_utf8(run(&["export", text(dir.path())]).stderr).unwrap();
    assert!(exported.contains(second) && exported.contains("`synod-sidecar verify "), "{exported}");
}

/// docs: storage.md, "Format 1": looking changes nothing, so an old directory is looked at in a copy.
#[test]
fn a_directory_of_format_1_is_looked_at_in_a_copy() {
    let (dir, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let state = old_state(CLUSTER, batch(4, "four"));
    write_old(&redb::Database::create(dir.path().join(LEGACY)).unwrap(), &state);
    let before = std::fs::read(dir.path().join(LEGACY)).unwrap();
    let refused = run(&["inspect", text(dir.path())]);
    assert!(String::from_utf8(refused.stderr).unwrap().contains("written by an older version"));
    let shown = json(&run(&["inspect", text(dir.path()), "--copy-to", text(to.path()), "-o", "json"]));
    assert_eq!((&shown["trim_through"], &shown["rows"]), (&Json::from(3), &Json::from(1)));
    assert_eq!(std::fs::read(dir.path().join(LEGACY)).unwrap(), before);
}

/// docs: protocol.md, "Quorum lost for good": a dry run first, an attestation for each missing voter, the source
/// untouched, and a cluster of one that goes on behind what was kept.
#[test]
fn a_lost_quorum_is_recovered_only_with_every_attestation() {
    let (dir, target) = (directory(&[]), tempfile::tempdir().unwrap());
    let to = target.path().join("new");
    let before = bytes(dir.path());
    let base = ["recover", "--from", text(dir.path()), "--to", text(&to), "--name", "log-0"];
    let with = |more: &[&str]| run(&[&base[..], more].concat());
    let plan = json(&with(&["-o", "json"]));
    assert_eq!((&plan["done"], &plan["last_index"]), (&Json::from(false), &Json::from(3)));
    let missing = [MemberId(2).to_string(), MemberId(3).to_string()];
    assert_eq!(plan["must_be_destroyed"], Json::from(missing.to_vec()));
    assert!(!to.exists());
    let refused = with(&["--destroyed", &missing[0]]);
    assert!(String::from_utf8(refused.stderr).unwrap().contains(&missing[1]));
    let refused = with(&["--destroyed", &missing[0], "--destroyed", &missing[1], "--destroyed", "typo"]);
    assert!(!refused.status.success() && !to.exists());
    let all = ["--destroyed", &missing[0], "--destroyed", &missing[1], "-o", "json"];
    // A report comes first, whatever is attested; and what is done is what it said.
    assert_eq!(json(&with(&all))["done"], Json::from(false));
    let confirmed = |code: &str| with(&[&all[..], &["--confirm", code]].concat());
    let refused = confirmed("0123456789abcdef");
    assert!(String::from_utf8(refused.stderr).unwrap().contains("repeat it without") && !to.exists());
    let code = plan["confirm"].as_str().unwrap();
    let refused = with(&["--confirm", code]);
    assert!(String::from_utf8(refused.stderr).unwrap().contains(&missing[0]) && !to.exists());
    let done = json(&confirmed(code));
    assert_eq!(done["done"], Json::from(true));
    assert_eq!(bytes(dir.path()), before);
    assert!(!confirmed(code).status.success(), "not twice");
    // The new member starts, leads by itself and has every entry.
    let mut opened = open(&to, None).unwrap();
    assert_eq!(opened.state.member.to_string(), done["new_member"].as_str().unwrap());
    let node = synod_paxos::Node::new(opened.state.clone(), synod_paxos::Instant(0), 1).unwrap();
    let system = node.system().unwrap();
    assert_eq!((system.last_index, system.recoveries), (Index(3), 1));
    assert_eq!(system.configurations.latest().voters().collect::<Vec<_>>(), [opened.state.member]);
    opened.storage.commit(opened.state.written.next(), &mut [].iter()).unwrap();
}
