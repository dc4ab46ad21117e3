//! Inodes: a file system may be full although it has bytes left.

use rustix::fs::statvfs;
use std::path::Path;

/// Files that can still be made on the disk of `dir`; none: its file system has no such bound.
pub fn left(dir: &Path) -> Option<u64> {
    let space = statvfs(dir).ok()?;
    (space.f_files > 0).then_some(space.f_favail)
}

/// What to say of a full disk beside that it is full.
pub fn advice(dir: &Path) -> &'static str {
    match left(dir) {
        Some(0) => {
            " (no inode is left: remove files that are not needed, or use a file system with more inodes)"
        }
        _ => "",
    }
}
