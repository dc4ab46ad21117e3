//! No dependency has a known advisory: the lock files against the snapshot in `advisories/`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rustsec::advisory::Id;
use rustsec::database::Query;
use rustsec::{Collection, Database, Lockfile};
use synod_supply::workspace;

/// Advisories that do not concern Synod, each with the reason why.
const PASSED_OVER: [(&str, &str); 0] = [];

fn snapshot() -> Database {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("advisories");
    Database::open(&folder).expect("the snapshot of the advisories can be read")
}

/// Advisories that a lock file's packages are affected by, unsound and unmaintained ones among them.
fn hits(lock: &Lockfile) -> BTreeSet<String> {
    let query = Query::new().collection(Collection::Crates).withdrawn(false);
    let passed_over: Vec<Id> =
        PASSED_OVER.iter().map(|(id, _)| id.parse().expect("an advisory's id")).collect();
    snapshot()
        .query_vulnerabilities(lock, &query)
        .into_iter()
        .filter(|hit| !passed_over.contains(&hit.advisory.id))
        .map(|hit| {
            format!(
                "{} {}: {} {}",
                hit.package.name, hit.package.version, hit.advisory.id, hit.advisory.title
            )
        })
        .collect()
}

/// A lock file with one package.
fn planted(name: &str, version: &str) -> Lockfile {
    let text = format!(
        "version = 4\n\n[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n\
         source = \"registry+https://github.com/rust-lang/crates.io-index\"\n"
    );
    text.parse().expect("a lock file")
}

#[test]
fn no_locked_dependency_has_a_known_advisory() {
    for path in ["Cargo.lock", "fuzz/Cargo.lock"] {
        let path: PathBuf = workspace().join(path);
        let lock = Lockfile::load(&path).expect("a lock file");
        assert!(lock.packages.len() > 100, "{} has {} packages", path.display(), lock.packages.len());
        let hits = hits(&lock);
        assert!(hits.is_empty(), "{} has dependencies with known advisories: {hits:#?}", path.display());
    }
}

#[test]
fn a_planted_version_with_an_advisory_is_found() {
    for (name, affected, free, id) in [
        ("h2", "0.4.15", "0.4.16", "RUSTSEC-2026-0258"),
        ("rustls", "0.23.44", "0.23.45", "RUSTSEC-2026-0285"),
        // Unsound, which the database counts as information.
        ("event-listener", "5.4.1", "5.4.2", "RUSTSEC-2026-0221"),
        // Unmaintained.
        ("ring", "0.16.20", "0.17.14", "RUSTSEC-2025-0010"),
    ] {
        let found = hits(&planted(name, affected));
        assert!(found.iter().any(|hit| hit.contains(id)), "{name} {affected}: {found:?}");
        let found = hits(&planted(name, free));
        assert!(found.is_empty(), "{name} {free}: {found:?}");
    }
}

#[test]
fn each_advisory_of_the_snapshot_is_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("advisories/crates");
    let mut files = BTreeSet::new();
    for package in fs::read_dir(folder).expect("the snapshot") {
        for file in fs::read_dir(package.expect("an entry").path()).expect("a crate's folder") {
            let path = file.expect("an entry").path();
            files.insert(path.file_stem().expect("a name").to_string_lossy().into_owned());
        }
    }
    let read: BTreeSet<String> = snapshot().iter().map(|advisory| advisory.metadata.id.to_string()).collect();
    assert_eq!(files, read);
}
