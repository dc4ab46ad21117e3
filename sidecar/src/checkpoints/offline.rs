//! Checkpoints in data directories that no process holds: looked at, and copied to a new one.

use super::file::{Held, Name, WHOLE, Writing, sync};
use super::store::FOLDER;
use sha2::{Digest as _, Sha256};
use std::fs;
use std::io;
use std::path::Path;
use synod_paxos::value::Checkpoint;

/// What a directory has of a checkpoint that its log names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The whole of it, every byte as it was saved.
    Sound,
    /// Nothing, or a part: a running member fetches it from another.
    Missing,
    /// A file that fails a checksum or cannot be read, and why.
    Damaged(String),
}

/// Reads the whole checkpoint in `data_dir`; `progress` is told of bytes read.
#[must_use]
pub fn look(data_dir: &Path, checkpoint: &Checkpoint, progress: impl FnMut(u64)) -> Standing {
    let path = data_dir.join(FOLDER).join(Name::of(checkpoint).file(WHOLE));
    if !path.exists() {
        return Standing::Missing;
    }
    match each_block(&path, checkpoint, progress, |_| Ok(())) {
        Ok(()) => Standing::Sound,
        Err(error) => Standing::Damaged(format!("{}: {error}", path.display())),
    }
}

/// Copies a checkpoint from one data directory to another, every byte checked, synced before this returns.
///
/// # Errors
/// If the source is missing or damaged, or the copy cannot be written; nothing of it stays then.
pub fn copy(
    from: &Path,
    to: &Path,
    checkpoint: &Checkpoint,
    progress: impl FnMut(u64),
) -> Result<(), io::Error> {
    let folder = to.join(FOLDER);
    fs::create_dir_all(&folder)?;
    sync(to)?;
    let name = Name::of(checkpoint);
    let mut writing = Writing::temporary(folder.join("copy.tmp"))?;
    let source = from.join(FOLDER).join(name.file(WHOLE));
    each_block(&source, checkpoint, progress, |block| writing.push(block))?;
    writing.finish(&folder, checkpoint.index)?;
    Ok(())
}

fn each_block(
    path: &Path,
    checkpoint: &Checkpoint,
    mut progress: impl FnMut(u64),
    mut each: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let held = Held::open(path, &Name::of(checkpoint)).map_err(io::Error::other)?;
    let (mut offset, mut digest) = (0, Sha256::new());
    while offset < held.length() {
        let block = held.read(offset).map_err(io::Error::other)?;
        digest.update(&block);
        each(&block)?;
        offset += block.len() as u64;
        progress(block.len() as u64);
    }
    match held.length() == checkpoint.length && digest.finalize()[..] == checkpoint.digest.0 {
        true => Ok(()),
        false => Err(io::Error::other("its bytes are not what its digest says")),
    }
}
