//! `journal run`: state made from the log, which is what most applications do with one.
//!
//! The state and the index it stands at are written together, by renaming a new file over the old one:
//! after a restart the log is followed from the index behind it, so that each entry counts exactly once.

use crate::output::{hex, stop_signal};
use anyhow::Context;
use clap::Args;
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::time::Duration;
use synod_client::{Client, Entry};
use tokio::time::interval;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Keep the summary in this file, and go on from it after a restart; without it in memory.
    #[arg(long, env = "JOURNAL_STATE", value_name = "FILE")]
    state: Option<PathBuf>,
    /// How often to write the summary, in seconds, where it changed.
    #[arg(long, default_value_t = 10, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
}

/// The state: what the journal holds up to `last_index`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Summary {
    last_index: u64,
    entries: u64,
    bytes: u64,
    /// SHA-256 over the previous chain and the entry: equal on two pods that are at the same index.
    chain: String,
}

impl Summary {
    fn load(path: &Path) -> anyhow::Result<Summary> {
        match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is no summary of a journal: move it away", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Summary::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    fn store(&self, path: &Path) -> anyhow::Result<()> {
        let next = path.with_extension("next");
        std::fs::write(&next, serde_json::to_vec(self)?)
            .with_context(|| format!("cannot write {}", next.display()))?;
        std::fs::rename(&next, path).with_context(|| format!("cannot write {}", path.display()))
    }

    fn apply(&mut self, entry: &Entry) {
        let mut digest = Sha256::new();
        digest.update(self.chain.as_bytes());
        digest.update(&entry.payload);
        self.chain = hex(&digest.finalize());
        self.last_index = entry.index;
        self.entries += 1;
        self.bytes += entry.payload.len() as u64;
    }
}

pub(crate) async fn run(client: Client, options: Options) -> anyhow::Result<()> {
    let mut summary = options.state.as_deref().map(Summary::load).transpose()?.unwrap_or_default();
    let mut told = summary.clone();
    let mut entries = client.subscribe(summary.last_index + 1);
    let mut write = interval(Duration::from_secs(options.every));
    let mut stop = std::pin::pin!(stop_signal());
    eprintln!("journal: following the log from index {}", summary.last_index + 1);
    loop {
        let stopping = tokio::select! {
            entry = entries.try_next() => {
                let entry = entry?.context("the log ended, which it never does")?;
                summary.apply(&entry);
                continue;
            }
            _ = write.tick() => false,
            result = &mut stop => {
                result?;
                true
            }
        };
        if summary != told {
            tell(&summary, options.state.as_deref())?;
            told = summary.clone();
        }
        if stopping {
            eprintln!("journal: stopped at index {}", summary.last_index);
            return Ok(());
        }
    }
}

fn tell(summary: &Summary, state: Option<&Path>) -> anyhow::Result<()> {
    if let Some(path) = state {
        summary.store(path)?;
    }
    let Summary { last_index, entries, bytes, chain } = summary;
    eprintln!("journal: index {last_index}, {entries} entries, {bytes} bytes, chain {chain:.12}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// docs: architecture.md, "Vocabulary": an index has no gaps, so state and index can ride together.
    #[test]
    fn a_summary_survives_its_file() {
        let folder = std::env::temp_dir().join(format!("journal-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("state.json");
        assert_eq!(Summary::load(&path).unwrap(), Summary::default());
        let mut summary = Summary::default();
        for index in 1..=3 {
            summary.apply(&Entry::new(index, format!("line {index}")));
        }
        summary.store(&path).unwrap();
        assert_eq!(Summary::load(&path).unwrap(), summary);
        assert_eq!((summary.last_index, summary.entries, summary.bytes), (3, 3, 18));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
