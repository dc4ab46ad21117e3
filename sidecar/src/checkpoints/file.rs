//! One checkpoint's file, whole or in the making. Everything here blocks.
//!
//! ```text
//!  INDEX-DIGEST.checkpoint:  state | xxh3-64 of each block | footer      whole, synced, never written again
//!  INDEX-DIGEST.part:        the first bytes of the state                goes on after a cut or a restart
//!  N.tmp:                    the same, its digest not known yet          gone with its writer, and at the next start
//!
//!  footer, little-endian:    magic 8 | index 8 | length 8 | SHA-256 32 | xxh3-64 of the sums and of what is before
//! ```
//! A block is 1 MiB of the state, the last one less. A reader checks a block before it gives it away, so that a
//! flipped bit is never served, and no read of the whole is needed first.

use super::store::Claim;
use crate::descriptors;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use synod_paxos::value::Checkpoint;
use synod_paxos::{Digest, Index};
use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

/// The unit of checksums and of messages, in bytes.
pub(super) const BLOCK: u64 = 1 << 20;
const MAGIC: &[u8; 8] = b"SYNODCP1";
const FOOTER: u64 = 64;
/// Bytes that are written before they are synced: one sync of a whole state would hold up the log's for long.
const SYNC_EVERY: u64 = 16 << 20;

/// What a file's name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Name {
    pub(super) index: Index,
    pub(super) digest: [u8; 32],
}

impl Name {
    pub(super) fn of(checkpoint: &Checkpoint) -> Name {
        Name { index: checkpoint.index, digest: checkpoint.digest.0 }
    }

    /// Reads what [`Name::file`] wrote: the name and what is behind its dot.
    pub(super) fn parse(file: &str) -> Option<(Name, &str)> {
        let (name, kind) = file.split_once('.')?;
        let (index, digest) = name.split_once('-')?;
        let name = Name { index: Index(index.parse().ok()?), digest: Digest::parse(digest)?.0 };
        (name.file(kind) == file).then_some((name, kind))
    }

    pub(super) fn file(&self, kind: &str) -> String {
        let digest: String = self.digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{:020}-{digest}.{kind}", self.index.0)
    }
}

/// A checkpoint's file cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Bad {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("its footer fails its checksum, or belongs to another file")]
    Footer,
    #[error("block {0} fails its checksum")]
    Block(u64),
}

impl Bad {
    /// What the disk holds is wrong, rather than out of reach.
    pub(super) fn is_damage(&self) -> bool {
        match self {
            Bad::Footer | Bad::Block(_) => true,
            Bad::Io(error) => {
                error.kind() == ErrorKind::UnexpectedEof || error.raw_os_error() == Some(INPUT_OUTPUT_ERROR)
            }
        }
    }
}

/// EIO: the medium cannot give the bytes any more.
const INPUT_OUTPUT_ERROR: i32 = 5;

/// A whole checkpoint, open for reading.
#[derive(Debug)]
pub(super) struct Held {
    file: File,
    length: u64,
    sums: Vec<u64>,
}

impl Held {
    /// Opens and checks the footer; the blocks are checked as they are read.
    pub(super) fn open(path: &Path, name: &Name) -> Result<Held, Bad> {
        let file = descriptors::wait("a checkpoint", || File::open(path))?;
        let size = file.metadata()?.len();
        let start = size.checked_sub(FOOTER).ok_or(Bad::Footer)?;
        let mut footer = [0; FOOTER as usize];
        file.read_exact_at(&mut footer, start)?;
        let length = u64::from_le_bytes(footer[16..24].try_into().map_err(|_| Bad::Footer)?);
        let blocks = length.div_ceil(BLOCK);
        let sums_bytes = blocks.checked_mul(8).ok_or(Bad::Footer)?;
        if length.checked_add(sums_bytes).and_then(|n| n.checked_add(FOOTER)) != Some(size) {
            return Err(Bad::Footer);
        }
        let mut sums = vec![0; usize::try_from(sums_bytes).map_err(|_| Bad::Footer)?];
        file.read_exact_at(&mut sums, length)?;
        if footer_of(name, length, &sums) != footer {
            return Err(Bad::Footer);
        }
        let (sums, _) = sums.as_chunks();
        let sums = sums.iter().map(|sum| u64::from_le_bytes(*sum)).collect();
        Ok(Held { file, length, sums })
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Whether this is the file that stands at `path` now.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        let same = |here: &fs::Metadata, there: &fs::Metadata| {
            (here.dev(), here.ino()) == (there.dev(), there.ino())
        };
        let both = self.file.metadata().and_then(|here| Ok(same(&here, &fs::metadata(path)?)));
        both.unwrap_or(false)
    }

    /// The bytes from `offset` to the end of its block, checked; empty at the end.
    pub(super) fn read(&self, offset: u64) -> Result<Bytes, Bad> {
        if offset >= self.length {
            return Ok(Bytes::new());
        }
        let number = offset / BLOCK;
        let start = number * BLOCK;
        let mut block = vec![0; in_memory((self.length - start).min(BLOCK))];
        self.file.read_exact_at(&mut block, start)?;
        let sum = usize::try_from(number).ok().and_then(|number| self.sums.get(number));
        if sum != Some(&xxh3_64_with_seed(&block, number)) {
            return Err(Bad::Block(number));
        }
        Ok(Bytes::from(block).slice(in_memory(offset - start)..))
    }
}

/// At most a block, which any memory can address.
fn in_memory(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn footer_of(name: &Name, length: u64, sums: &[u8]) -> [u8; FOOTER as usize] {
    let mut footer = [0; FOOTER as usize];
    footer[..8].copy_from_slice(MAGIC);
    footer[8..16].copy_from_slice(&name.index.0.to_le_bytes());
    footer[16..24].copy_from_slice(&length.to_le_bytes());
    footer[24..56].copy_from_slice(&name.digest);
    let mut hash = Xxh3::new();
    hash.update(sums);
    hash.update(&footer[..56]);
    footer[56..].copy_from_slice(&hash.digest().to_le_bytes());
    footer
}

/// A checkpoint in the making: everything that is written is hashed as it comes.
pub(super) struct Writing {
    file: File,
    path: PathBuf,
    length: u64,
    synced: u64,
    digest: Sha256,
    sums: Vec<u8>,
    block: Xxh3,
    /// Removed when it is dropped: nobody could go on with it.
    temporary: bool,
    /// The right to write a part.
    _claim: Option<Claim>,
}

impl Drop for Writing {
    fn drop(&mut self) {
        if self.temporary {
            // One that stays is removed at the next start.
            drop(fs::remove_file(&self.path));
        }
    }
}

impl Writing {
    /// Begins a file that goes away with its writer.
    pub(super) fn temporary(path: PathBuf) -> io::Result<Writing> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        let file = descriptors::wait("a checkpoint", || options.open(&path))?;
        Ok(Writing::new(file, path, None))
    }

    /// Begins, or goes on with what stands: at most the state's `length`.
    pub(super) fn resume(path: PathBuf, length: u64, claim: Claim) -> io::Result<Writing> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = descriptors::wait("a checkpoint", || options.open(&path))?;
        if file.metadata()?.len() > length {
            // The end of one that was complete but for its name.
            file.set_len(length)?;
        }
        let mut writing = Writing::new(file, path, Some(claim));
        let mut buffer = vec![0; in_memory(BLOCK)];
        loop {
            let count = writing.file.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            writing.note(&buffer[..count]);
        }
        writing.synced = writing.length;
        writing.file.seek(SeekFrom::Start(writing.length))?;
        Ok(writing)
    }

    fn new(file: File, path: PathBuf, claim: Option<Claim>) -> Writing {
        let (digest, block, temporary) = (Sha256::new(), Xxh3::with_seed(0), claim.is_none());
        Writing {
            file,
            path,
            length: 0,
            synced: 0,
            digest,
            sums: Vec::new(),
            block,
            temporary,
            _claim: claim,
        }
    }

    /// Bytes of the state so far.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    fn note(&mut self, mut bytes: &[u8]) {
        self.digest.update(bytes);
        while !bytes.is_empty() {
            let room = in_memory(BLOCK - self.length % BLOCK).min(bytes.len());
            let (now, rest) = bytes.split_at(room);
            self.block.update(now);
            self.length += now.len() as u64;
            if self.length.is_multiple_of(BLOCK) {
                self.end_block();
            }
            bytes = rest;
        }
    }

    fn end_block(&mut self) {
        self.sums.extend_from_slice(&self.block.digest().to_le_bytes());
        self.block = Xxh3::with_seed((self.sums.len() / 8) as u64);
    }

    /// Adds the next bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.note(bytes);
        if self.length - self.synced >= SYNC_EVERY {
            self.file.sync_data()?;
            self.synced = self.length;
        }
        Ok(())
    }

    /// The state's digest, if these are all its bytes.
    pub(super) fn digest(&self) -> Digest {
        Digest(self.digest.clone().finalize().into())
    }

    /// Makes it a whole checkpoint in `dir`: synced, then renamed, then the directory synced. What a crash leaves
    /// is a part, or the whole.
    pub(super) fn finish(mut self, dir: &Path, index: Index) -> io::Result<Checkpoint> {
        let checkpoint = Checkpoint { index, length: self.length, digest: self.digest() };
        let name = Name::of(&checkpoint);
        if !self.length.is_multiple_of(BLOCK) {
            self.end_block();
        }
        let footer = footer_of(&name, self.length, &self.sums);
        self.file.write_all(&self.sums)?;
        self.file.write_all(&footer)?;
        self.file.sync_all()?;
        let whole = dir.join(name.file(WHOLE));
        fs::rename(&self.path, &whole)?;
        self.temporary = false;
        // What may not be there after a crash must not be taken for durable by the next who looks.
        sync(dir).inspect_err(|_| drop(fs::remove_file(&whole)))?;
        Ok(checkpoint)
    }

    /// Gives up: nothing of it stays.
    pub(super) fn discard(mut self) {
        self.temporary = true;
    }
}

/// What a whole checkpoint's file name ends with.
pub(super) const WHOLE: &str = "checkpoint";
/// What a resumable part's file name ends with.
pub(super) const PART: &str = "part";
/// What the file of a state of unknown digest ends with.
pub(super) const TEMPORARY: &str = "tmp";
/// What the name of a file that failed a checksum ends with.
pub(super) const DAMAGED: &str = "damaged";

/// Makes the names in a folder durable.
pub(super) fn sync(dir: &Path) -> io::Result<()> {
    descriptors::wait("the directory", || File::open(dir))?.sync_all()
}

/// Removes a file; one that is gone is removed already.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn state(length: usize) -> Vec<u8> {
        let mut number = 1_u64;
        let next = |_| {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(3);
            (number >> 56) as u8
        };
        (0..length).map(next).collect()
    }

    fn write(dir: &Path, bytes: &[u8]) -> (PathBuf, Name) {
        let mut writing = Writing::temporary(dir.join("1.tmp")).unwrap();
        bytes.chunks(700_001).for_each(|chunk| writing.push(chunk).unwrap());
        let checkpoint = writing.finish(dir, Index(7)).unwrap();
        let name = Name::of(&checkpoint);
        assert_eq!(checkpoint.length, bytes.len() as u64);
        assert_eq!(checkpoint.digest.0, <[u8; 32]>::from(Sha256::digest(bytes)));
        (dir.join(name.file(WHOLE)), name)
    }

    fn read(path: &Path, name: &Name) -> Result<Vec<u8>, Bad> {
        let held = Held::open(path, name)?;
        let mut all = Vec::new();
        loop {
            let more = held.read(all.len() as u64)?;
            if more.is_empty() {
                return Ok(all);
            }
            all.extend_from_slice(&more);
        }
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        for length in [0, 1, BLOCK as usize - 1, BLOCK as usize, BLOCK as usize + 1, 3 << 20] {
            let bytes = state(length);
            let (path, name) = write(dir.path(), &bytes);
            assert!(read(&path, &name).unwrap() == bytes, "{length}");
            assert_eq!(Name::parse(path.file_name().unwrap().to_str().unwrap()), Some((name, WHOLE)));
            let middle = Held::open(&path, &name).unwrap().read(length as u64 / 2).unwrap();
            assert!(bytes[length / 2..].starts_with(&middle));
        }
        assert_eq!(Name::parse("7-00.checkpoint"), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 6);
    }

    /// docs: reliability.md, fault 4, for checkpoints: a flipped bit is detected wherever it is, never served.
    #[test]
    fn a_flipped_byte_is_never_served() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = state(BLOCK as usize + 1_000);
        let (path, name) = write(dir.path(), &bytes);
        let size = fs::metadata(&path).unwrap().len();
        let places = (0..size).step_by(50_021).chain(BLOCK + 1_000..size);
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        for place in places {
            let mut byte = [0];
            file.read_exact_at(&mut byte, place).unwrap();
            file.write_all_at(&[byte[0] ^ 16], place).unwrap();
            let error = read(&path, &name).unwrap_err();
            assert!(error.is_damage(), "byte {place}: {error}");
            file.write_all_at(&byte, place).unwrap();
        }
        assert!(read(&path, &name).unwrap() == bytes);
        let other = Name { index: Index(8), ..name };
        assert!(matches!(Held::open(&path, &other), Err(Bad::Footer)));
        file.set_len(size - 1).unwrap();
        assert!(matches!(Held::open(&path, &name), Err(Bad::Footer)));
    }

    /// A part goes on where it stands, also where it was whole but for its name.
    #[test]
    fn a_part_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = state(2 * BLOCK as usize + 5);
        let length = bytes.len() as u64;
        let part = dir.path().join("x.part");
        let claim: Claim = Arc::new(Arc::new(tokio::sync::Mutex::new(())).try_lock_owned().unwrap());
        let resume = |length| Writing::resume(part.clone(), length, claim.clone()).unwrap();
        for stop in [0, 10, BLOCK as usize, bytes.len()] {
            let mut writing = resume(length);
            let from = writing.length() as usize;
            writing.push(&bytes[from..stop]).unwrap();
        }
        fs::write(&part, [&bytes[..], b"some of a footer"].concat()).unwrap();
        let writing = resume(length);
        let checkpoint = writing.finish(dir.path(), Index(3)).unwrap();
        let name = Name::of(&checkpoint);
        assert!(read(&dir.path().join(name.file(WHOLE)), &name).unwrap() == bytes);
        let mut writing = resume(length);
        writing.push(b"wrong").unwrap();
        writing.discard();
        drop(Writing::temporary(dir.path().join("2.tmp")).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
