//! The corpus of the fuzz targets (`fuzz/corpus`), and small damage to each of its files, through the same decoders
//! (docs: reliability.md, fault 53: malformed input is refused before the log).
//!
//! `UPDATE=1 cargo test -p synod-sidecar --test outside` writes the seeds anew, from what a small cluster really says
//! and stores.

mod outside_seeds;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use synod_sidecar::outside::DECODERS;

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name)
}

/// The corpus of a target, in order of its names.
fn files(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(corpus(name)).expect("the target has a corpus");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).expect("readable"))).collect()
}

/// Property: no file of the corpus, cut anywhere or with any one bit flipped, makes a decoder panic, and what a
/// decoder accepts is written again as it was read.
#[test]
fn nothing_from_outside_makes_a_decoder_panic() {
    for (name, decode) in DECODERS {
        let files = files(name);
        assert!(files.len() >= 3, "{name} has hardly a corpus");
        for (path, bytes) in files {
            println!("{}", path.display());
            decode(&bytes);
            let most = bytes.len().min(600);
            for end in 0..most {
                decode(&bytes[..end]);
            }
            let mut damaged = bytes.clone();
            for bit in 0..most * 8 {
                damaged[bit / 8] ^= 1 << (bit % 8);
                decode(&damaged);
                damaged[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }
}

/// What the version before wrote, at level 1, is written again to the byte: members of both compare and chain it.
#[test]
fn level_1_keeps_its_bytes() {
    use bytes::Bytes;
    use synod_paxos::system::SystemState;
    use synod_paxos::value::{Call, Value};
    let mut read = 0;
    for (target, again) in [
        ("snapshot", (|b| SystemState::decode(b).map(|state| state.encode())) as fn(Bytes) -> _),
        ("value", |b| Value::decode(b).map(|value| value.encode())),
        ("call", |b| Call::decode(b).map(|call| call.encode())),
    ] {
        for (path, bytes) in files(target) {
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("level-1-")) {
                assert_eq!(again(bytes.clone().into()), Ok(Bytes::from(bytes)), "{}", path.display());
                read += 1;
            }
        }
    }
    assert!(read > 30, "the corpus holds what the version before wrote: {read} files");
}

/// Each decoder has its fuzz target, and each target its decoder.
#[test]
fn every_decoder_is_fuzzed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/fuzz_targets");
    let targets: BTreeSet<String> = std::fs::read_dir(folder)
        .expect("the targets are there")
        .map(|entry| entry.expect("readable").path())
        .map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned())
        .collect();
    let decoders: BTreeSet<String> = DECODERS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(targets, decoders);
}

/// What this program says and stores today is accepted; with `UPDATE` it becomes the seeds of the corpus.
#[test]
fn seeds_are_accepted() {
    for (target, name, bytes) in outside_seeds::all() {
        let (_, decode) =
            DECODERS.iter().find(|(decoder, _)| *decoder == target).expect("seeds are for decoders");
        decode(&bytes);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::create_dir_all(corpus(target)).expect("the corpus can be written");
            std::fs::write(corpus(target).join(name), &bytes).expect("the corpus can be written");
        }
    }
}
