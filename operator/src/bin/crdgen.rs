//! Writes the generated manifests of the repository.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use synod_operator::manifests;

/// Writes manifests/crd.yaml, manifests/install.yaml and the chart's copy of the former from the
/// operator's own types.
#[derive(Parser)]
#[command(name = "crdgen", version)]
struct Arguments {
    /// The checkout of Synod
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/.."))]
    root: PathBuf,

    /// Write nothing; fail if a file differs
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut stale = false;
    for (file, text) in manifests::files() {
        let path = arguments.root.join(file);
        if std::fs::read_to_string(&path).is_ok_and(|standing| standing == text) {
            continue;
        }
        if arguments.check {
            eprintln!("{} is out of date: run `cargo run -p synod-operator --bin crdgen`", path.display());
            stale = true;
            continue;
        }
        let folder = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        if let Err(error) = folder.and_then(|()| std::fs::write(&path, text)) {
            eprintln!("{} cannot be written: {error}", path.display());
            return ExitCode::FAILURE;
        }
        eprintln!("wrote {}", path.display());
    }
    if stale { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
