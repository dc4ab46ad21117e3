//! A checksum of every block of a segment's file, looked at before the database sees what was read.
//!
//! redb checks its pages when it repairs a file, not when it reads one: a page that makes no sense ends the process.
//! So a block that fails its checksum is not shown to it. In its place it gets an empty page, and whoever reads asks
//! [`Watch::is_damaged`] before an absent row is believed to be absent (docs: decisions/0016).
//!
//! The checksums of a file are kept in memory while it is written, and in a file beside it once it is closed. A file
//! without them, of an earlier version or of a process that was killed, is checked by redb's own means when it is
//! opened, and gets them then.

use crate::StorageError;
use crate::files::{Files, explain_io};
use redb::{Builder, DatabaseError, StorageBackend};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const BLOCK: usize = 4_096;
/// Bytes that are read at a time where a whole file is.
const PIECE: usize = 1 << 20;
/// First in a file of checksums.
const MAGIC: &[u8; 8] = b"synodsum";
/// First in a leaf page of redb's; the rest of an empty one is zeros.
const LEAF: u8 = 1;
/// The end of the name of a file of checksums.
const SUFFIX: &str = ".sums";

/// The name of a segment's file of checksums.
pub(crate) fn sums_name(segment: &str) -> String {
    format!("{segment}{SUFFIX}")
}

/// The segment's name in the name of its file of checksums.
pub(crate) fn summed(name: &str) -> Option<&str> {
    name.strip_suffix(SUFFIX)
}

/// Of a block that is read at this place; never 0.
fn sum(number: usize, block: &[u8]) -> u64 {
    xxh3_64_with_seed(block, number as u64).max(1)
}

/// Checksums by block; 0: not known.
fn encode(sums: &[u64]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    sums.iter().for_each(|sum| bytes.extend_from_slice(&sum.to_le_bytes()));
    let all = xxh3_64(&bytes);
    bytes.extend_from_slice(&all.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<Vec<u64>> {
    let (body, all) = bytes.split_last_chunk::<8>()?;
    let sums = body.strip_prefix(MAGIC)?.as_chunks::<8>();
    let whole = u64::from_le_bytes(*all) == xxh3_64(body) && sums.1.is_empty();
    whole.then(|| sums.0.iter().map(|sum| u64::from_le_bytes(*sum)).collect())
}

/// The checksums that are stored of a file; none: there are none that can be relied on.
pub(crate) fn stored(files: &dyn Files, name: &str) -> Option<Vec<u64>> {
    let file = files.open(&sums_name(name), false).ok()?;
    let mut bytes = vec![0; usize::try_from(file.len().ok()?).ok()?];
    file.read(0, &mut bytes).ok()?;
    decode(&bytes)
}

/// Stores the checksums of a file that is not written any more.
fn store(files: &dyn Files, name: &str, sums: &[u64]) -> io::Result<()> {
    let bytes = encode(sums);
    let file = files.create(&sums_name(name))?;
    file.set_len(bytes.len() as u64)?;
    file.write(0, &bytes)?;
    file.sync_data()
}

/// Removes the checksums of a file that is to be written, so that no crash leaves them beside it.
pub(crate) fn forget(files: &dyn Files, name: &str) -> io::Result<()> {
    match files.remove(&sums_name(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => files.sync(),
    }
}

/// Reads a whole file and shows each of its blocks.
fn each_block(file: &dyn StorageBackend, mut each: impl FnMut(usize, &[u8])) -> io::Result<()> {
    let length = file.len()?;
    let mut piece = vec![0; PIECE];
    let mut offset = 0;
    while offset < length {
        let size = usize::try_from(length - offset).unwrap_or(PIECE).min(PIECE);
        file.read(offset, &mut piece[..size])?;
        let first = usize::try_from(offset).unwrap_or(usize::MAX) / BLOCK;
        piece[..size].chunks(BLOCK).enumerate().for_each(|(at, block)| each(first + at, block));
        offset += size as u64;
    }
    Ok(())
}

/// Blocks of a file that fail the checksums stored of it; none where there are no checksums.
pub(crate) fn damaged_blocks(files: &dyn Files, name: &str) -> io::Result<Vec<usize>> {
    let Some(sums) = stored(files, name) else { return Ok(Vec::new()) };
    let mut damaged = Vec::new();
    let file = files.open(name, false)?;
    each_block(&*file, |number, block| {
        if !matches(&sums, number, block) {
            damaged.push(number);
        }
    })?;
    let whole = usize::try_from(file.len()?).unwrap_or(usize::MAX).div_ceil(BLOCK);
    damaged.extend((whole..sums.len()).filter(|number| sums[*number] != 0));
    Ok(damaged)
}

fn matches(sums: &[u64], number: usize, block: &[u8]) -> bool {
    let known = sums.get(number).copied().unwrap_or(0);
    known == 0 || known == sum(number, block)
}

/// What is known of an open file: how far it is written, its checksums, and whether some block failed.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    used: AtomicU64,
    sums: RwLock<Vec<u64>>,
    damaged: AtomicBool,
    /// Its checksums are stored when it is closed.
    keeps: AtomicBool,
    /// A write failed: what the file holds is not known.
    failed: AtomicBool,
    /// A read failed.
    unread: AtomicBool,
}

impl Watch {
    /// How far the database has written into the file, in bytes. The file itself is doubled by redb as it fills, and
    /// the rest of it takes no space.
    pub(crate) fn bytes(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// A block that was read failed its checksum: what is not found may have been there.
    pub(crate) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Acquire)
    }

    /// From now on its checksums are stored when it is closed. No version that does not know them writes to it then.
    pub(crate) fn keep(&self) {
        self.keeps.store(true, Ordering::Release);
    }

    /// A read failed: redb answers nothing more until the file is opened anew, though the next read might succeed.
    pub(crate) fn has_failed_to_read(&self) -> bool {
        self.unread.load(Ordering::Acquire)
    }

    /// Some block is known to have failed.
    pub(crate) fn note_damaged(&self) {
        self.damaged.store(true, Ordering::Release);
    }
}

/// A file under a database.
#[derive(Debug)]
pub(crate) struct Watched {
    inner: Box<dyn StorageBackend>,
    watch: Arc<Watch>,
    /// Where it lies, if it is written.
    place: Option<(Arc<dyn Files>, String)>,
}

impl Watched {
    /// A file that is read, with the checksums that are known of it.
    pub(crate) fn read_only(
        inner: Box<dyn StorageBackend>,
        sums: Vec<u64>,
    ) -> io::Result<(Watched, Arc<Watch>)> {
        Watched::new(inner, sums, None)
    }

    /// A file that is written. Its checksums are not on the disk from now on.
    pub(crate) fn written(
        files: &Arc<dyn Files>,
        name: &str,
        inner: Box<dyn StorageBackend>,
    ) -> io::Result<(Watched, Arc<Watch>)> {
        let sums = stored(&**files, name).unwrap_or_default();
        forget(&**files, name)?;
        Watched::new(inner, sums, Some((files.clone(), name.to_owned())))
    }

    fn new(
        inner: Box<dyn StorageBackend>,
        sums: Vec<u64>,
        place: Option<(Arc<dyn Files>, String)>,
    ) -> io::Result<(Watched, Arc<Watch>)> {
        // A file that is doubled whenever it is full was written to more than half.
        let used = AtomicU64::new(inner.len()? / 2);
        let watch = Arc::new(Watch { used, sums: RwLock::new(sums), ..Watch::default() });
        Ok((Watched { inner, watch: watch.clone(), place }, watch))
    }

    fn sums(&self) -> std::sync::RwLockReadGuard<'_, Vec<u64>> {
        // Each change under it is a single assignment.
        self.watch.sums.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self, done: io::Result<()>) -> io::Result<()> {
        if done.is_err() {
            self.watch.failed.store(true, Ordering::Release);
        }
        done
    }

    /// Shows each block that `bytes` at `offset` touches, whole.
    fn each(&self, offset: u64, bytes: &[u8], mut each: impl FnMut(usize, &[u8])) -> io::Result<()> {
        let block = BLOCK as u64;
        let (first, end) = (offset / block, (offset + bytes.len() as u64).div_ceil(block));
        for number in first..end {
            let from = number * block;
            let at = from.checked_sub(offset).and_then(|at| usize::try_from(at).ok());
            let number = usize::try_from(number).unwrap_or(usize::MAX);
            match at.and_then(|at| bytes.get(at..at + BLOCK)) {
                Some(whole) => each(number, whole),
                None => {
                    let size = usize::try_from(self.inner.len()?.saturating_sub(from)).unwrap_or(BLOCK);
                    let mut whole = vec![0; size.min(BLOCK)];
                    self.inner.read(from, &mut whole)?;
                    each(number, &whole);
                }
            }
        }
        Ok(())
    }
}

impl StorageBackend for Watched {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let read = self.inner.read(offset, out);
        read.inspect_err(|_| self.watch.unread.store(true, Ordering::Release))?;
        let mut whole = true;
        let sums = self.sums();
        if sums.is_empty() {
            return Ok(());
        }
        self.each(offset, out, |number, block| whole &= matches(&sums, number, block))?;
        if whole {
            return Ok(());
        }
        self.watch.note_damaged();
        if offset == 0 {
            // Without its head nothing in it can be found.
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the first block fails its checksum"));
        }
        out.fill(0);
        if let Some(kind) = out.first_mut() {
            *kind = LEAF;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.changed(self.inner.set_len(len))?;
        let blocks = usize::try_from(len).unwrap_or(usize::MAX).div_ceil(BLOCK);
        self.watch.sums.write().unwrap_or_else(PoisonError::into_inner).truncate(blocks);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.changed(self.inner.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.watch.used.fetch_max(offset + data.len() as u64, Ordering::Relaxed);
        self.changed(self.inner.write(offset, data))?;
        let mut changed = Vec::new();
        self.each(offset, data, |number, block| changed.push((number, sum(number, block))))?;
        let mut sums = self.watch.sums.write().unwrap_or_else(PoisonError::into_inner);
        for (number, sum) in changed {
            if sums.len() <= number {
                sums.resize(number + 1, 0);
            }
            sums[number] = sum;
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        let kept = self.watch.keeps.load(Ordering::Acquire) && !self.watch.failed.load(Ordering::Acquire);
        if let (Some((files, name)), true) = (&self.place, kept) {
            // They must not be on the disk before what they are of.
            self.inner.sync_data()?;
            match store(&**files, name, &self.sums()) {
                // They are taken again when it is opened the next time.
                Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                    tracing::warn!(%error, name, "no space for the checksums of a segment");
                    drop(files.remove(&sums_name(name)));
                }
                stored => stored?,
            }
        }
        self.inner.close()
    }
}

/// What is written over a file without changing it.
#[derive(Debug)]
struct Overlay {
    inner: Box<dyn StorageBackend>,
    length: AtomicU64,
    /// Blocks by number.
    written: Mutex<BTreeMap<u64, Vec<u8>>>,
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.length.load(Ordering::Acquire))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.below(offset, out)?;
        let end = offset + out.len() as u64;
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, block) in written.range(offset / BLOCK as u64..end.div_ceil(BLOCK as u64)) {
            let at = number * BLOCK as u64;
            let (from, to) = (at.max(offset), (at + BLOCK as u64).min(end));
            let place = |from: u64, base: u64| usize::try_from(from - base).unwrap_or(usize::MAX);
            out[place(from, offset)..place(to, offset)]
                .copy_from_slice(&block[place(from, at)..place(to, at)]);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.length.store(len, Ordering::Release);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut at, mut data) = (offset, data);
        while !data.is_empty() {
            let (number, from) = (at / BLOCK as u64, usize::try_from(at).unwrap_or(usize::MAX) % BLOCK);
            let (piece, rest) = data.split_at(data.len().min(BLOCK - from));
            let block = match written.entry(number) {
                Entry::Occupied(held) => held.into_mut(),
                Entry::Vacant(none) => {
                    let mut block = vec![0; BLOCK];
                    self.below(number * BLOCK as u64, &mut block)?;
                    none.insert(block)
                }
            };
            block[from..from + piece.len()].copy_from_slice(piece);
            (at, data) = (at + piece.len() as u64, rest);
        }
        Ok(())
    }
}

impl Overlay {
    /// What the file has there; zeros behind its end.
    fn below(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let there = usize::try_from(self.inner.len()?.saturating_sub(offset)).unwrap_or(out.len());
        let there = there.min(out.len());
        self.inner.read(offset, &mut out[..there])?;
        out[there..].fill(0);
        Ok(())
    }
}

/// Checks a closed file without checksums by those that redb keeps of its pages, and takes its checksums. None: redb
/// says that it is damaged, and cannot say where.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn adopt(files: &dyn Files, name: &str) -> Result<Option<Vec<u64>>, StorageError> {
    let unusable = |error| explain_io(files.place(), error);
    let inner = files.open(name, false).map_err(unusable)?;
    let length = AtomicU64::new(inner.len().map_err(unusable)?);
    let overlay = Overlay { inner, length, written: Mutex::default() };
    match Builder::new().set_cache_size(PIECE).set_check_integrity_on_open(true).create_with_backend(overlay)
    {
        Ok(database) => drop(database),
        Err(DatabaseError::Storage(redb::StorageError::Io(error)))
            if error.kind() != io::ErrorKind::InvalidData =>
        {
            return Err(unusable(error));
        }
        Err(_) => return Ok(None),
    }
    let mut sums = Vec::new();
    let file = files.open(name, false).map_err(unusable)?;
    each_block(&*file, |number, block| sums.push(sum(number, block))).map_err(unusable)?;
    Ok(Some(sums))
}

/// The same, and stores them.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn adopt_and_store(files: &dyn Files, name: &str) -> Result<Option<Vec<u64>>, StorageError> {
    let sums = adopt(files, name)?;
    if let Some(sums) = &sums
        && let Err(error) = store(files, name, sums)
    {
        // They are taken again when it is opened the next time.
        tracing::warn!(%error, name, "the checksums of a segment cannot be stored");
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_read_as_they_were_stored() {
        let sums = vec![0, 7, u64::MAX];
        let bytes = encode(&sums);
        assert_eq!(decode(&bytes).as_deref(), Some(sums.as_slice()));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(decode(&damaged), None, "byte {at}");
            assert_eq!(decode(&bytes[..at]), None, "cut at {at}");
        }
    }
}
