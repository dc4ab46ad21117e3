//! What an application takes on with this crate: which crates, and which types it is shown.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// Crates with the default features, this one included: of a gRPC client over a Unix socket, and no more.
const CRATES: usize = 66;
/// What a client of a socket has no use for.
const NEEDLESS: [&str; 8] =
    ["axum", "openssl", "ring", "rustls", "sha2", "tokio-rustls", "signal-hook-registry", "clap"];
/// Names of types that are the transport's or the generated messages'.
const THEIRS: [&str; 9] =
    ["tonic::", "prost::", "hyper", "Channel", "Streaming<", "&Status", ": Status)", "Code", "v1::"];
/// What is re-exported of the generated messages, as docs/socket.md has it: one enum of reasons for all callers.
const SHARED: &str = "pub use synod_proto::v1::{Outcome, Reason};";

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Fault S22: 92 crates, TLS among them, for a Unix socket.
#[test]
fn few_crates_come_along() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["tree", "--package", "synod-client", "--edges", "normal", "--prefix", "none"]);
    cargo.args(["--format", "{p}", "--locked", "--offline"]).current_dir(here());
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let crates: BTreeSet<&str> = text.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(crates.contains("tonic") && crates.len() > 20, "{crates:?}");
    assert!(crates.len() <= CRATES, "{} crates: {crates:?}", crates.len());
    for needless in NEEDLESS {
        assert!(!crates.contains(needless), "{needless} comes along");
    }
}

/// The signatures of a file that applications see: from `pub` to the body or the semicolon.
fn shown(source: &str) -> Vec<String> {
    let source = source.split("#[cfg(test)]").next().unwrap_or_default();
    let mut shown = Vec::new();
    let mut lines = source.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if !line.starts_with("pub ") && !line.starts_with("impl From<") && !line.starts_with("impl TryFrom<")
        {
            continue;
        }
        let mut signature = line.to_owned();
        while !signature.ends_with(['{', ';', ',', '}']) || signature.ends_with("(,") {
            let Some(more) = lines.next() else { break };
            signature = format!("{signature} {more}");
        }
        // The arguments of a function that stand on lines of their own.
        while signature.matches('(').count() > signature.matches(')').count() {
            let Some(more) = lines.next() else { break };
            signature = format!("{signature} {more}");
        }
        shown.push(signature);
    }
    shown
}

/// Fault S22: types of tonic and prost in signatures, so that their next version would break every application.
#[test]
fn no_signature_shows_the_transport() {
    let mut files = Vec::new();
    for folder in ["src", "src/append", "src/checkpoints"] {
        files.extend(std::fs::read_dir(here().join(folder)).unwrap().map(|file| file.unwrap().path()));
    }
    let mut count = 0;
    for file in files.iter().filter(|file| file.is_file() && !file.ends_with("src/wire.rs")) {
        for signature in shown(&std::fs::read_to_string(file).unwrap()) {
            count += 1;
            // Private items of a private crate are nobody's business; conversions from messages are between our own types.
            if signature == SHARED || signature.starts_with("impl From<v1::") {
                continue;
            }
            let found = THEIRS.iter().find(|name| signature.contains(*name));
            assert_eq!(found, None, "{}: {signature}", file.display());
        }
    }
    assert!(count > 80, "only {count} signatures were looked at");
}

#[test]
fn a_type_of_the_transport_is_seen() {
    let source = "/// x\n    pub fn raw(\n        &self,\n        channel: Channel,\n    ) -> u8 {\n}\npub struct A {\n";
    assert_eq!(shown(source), ["pub fn raw( &self, channel: Channel, ) -> u8 {", "pub struct A {"]);
}
