//! Syncs that are slow, or do nothing: a library that is loaded before the C library of a member's process.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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
        let mut command = Command::new("cc");
        for (name, path) in [("FORGET", &forget), ("SLOW", &slow)] {
            command.arg(format!("-D{name}=\"{}\"", path.display()));
        }
        command.args(["-shared", "-fPIC", "-x", "c", "-", "-o"]).arg(&library);
        let mut compiler = command.stdin(Stdio::piped()).spawn().unwrap();
        compiler.stdin.take().unwrap().write_all(SOURCE.as_bytes()).unwrap();
        assert!(compiler.wait().unwrap().success(), "cc failed");
        let wrapper = vec!["env".to_owned(), format!("LD_PRELOAD={}", library.display())];
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
