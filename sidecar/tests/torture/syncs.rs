//! Syncs that are slow, or do nothing: a library that is loaded before the C library of a member's process.

use crate::common::preload;
use std::path::{Path, PathBuf};

/// Once the file `FORGET` is there syncs do nothing; each begins as many milliseconds late as the file `SLOW` says.
const SOURCE: &str = r#"
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>
static int call(long number, int fd) {
    if (access(FORGET, F_OK) == 0) return 0;
    unsigned milliseconds = 0;
    FILE *slow = fopen(SLOW, "r");
    if (slow) {
        if (fscanf(slow, "%u", &milliseconds) != 1) milliseconds = 0;
        fclose(slow);
    }
    if (milliseconds) usleep(milliseconds * 1000);
    return (int)syscall(number, fd);
}
int fsync(int fd) { return call(SYS_fsync, fd); }
int fdatasync(int fd) { return call(SYS_fdatasync, fd); }
"#;

/// The syncs of the members that it wraps.
pub(crate) struct Syncs {
    /// What runs a member so.
    pub(crate) wrapper: Vec<String>,
    forget: PathBuf,
    slow: PathBuf,
}

impl Syncs {
    /// Builds the library in `dir`; syncs are as ever until they are told otherwise.
    pub(crate) fn new(dir: &Path) -> Syncs {
        let [library, forget, slow] = ["syncs.so", "forget", "slow"].map(|name| dir.join(name));
        let wrapper = preload::wrapper(SOURCE, &library, &[("FORGET", &forget), ("SLOW", &slow)]);
        Syncs { wrapper, forget, slow }
    }

    /// From now on they do nothing.
    pub(crate) fn forget(&self) {
        std::fs::write(&self.forget, "").unwrap();
    }

    /// From now on each takes at least so long; 0: as long as it does.
    pub(crate) fn take(&self, milliseconds: u64) {
        // Whole at once: a process reads it at any time.
        let written = self.slow.with_extension("new");
        std::fs::write(&written, milliseconds.to_string()).unwrap();
        std::fs::rename(&written, &self.slow).unwrap();
    }
}
