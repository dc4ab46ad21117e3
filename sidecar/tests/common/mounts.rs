//! File systems of a test's own: small ones that can be full, and ones that can stand still. They are in a mount
//! namespace that ends with the test, however it ends; members reach them through its process.

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// How a disk that can be cut is mounted: nothing but a sync makes its journal commit, and file data is written neither
/// with that nor with a rename.
const CUTTABLE: &str = "loop,data=writeback,noauto_da_alloc,commit=600";

/// A mount namespace, held by a process that ends when the test does.
pub struct Mounts {
    holder: Child,
    is_root: bool,
}

impl Mounts {
    pub fn new() -> Mounts {
        let is_root = rustix::process::geteuid().is_root();
        let mut command = Command::new("unshare");
        command.args(if is_root { &["--mount"][..] } else { &["--mount", "--map-root-user"] });
        // Its standard input ends with the test, even with one that is killed.
        command.args(["--propagation", "private", "sh", "-c", "echo; exec cat"]);
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "\n", "unshare: no mount namespace can be made here");
        Mounts { holder, is_root }
    }

    /// A path as this namespace has it, for whoever is outside.
    pub fn path(&self, path: &Path) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{}", self.holder.id(), path.display()))
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.id().to_string(), "--mount"]);
        if !self.is_root {
            command.args(["--user", "--preserve-credentials"]);
        }
        let output = command.arg(program).args(arguments).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{program}: {}", super::stderr(&output));
    }

    /// Mounts a file system in memory on an empty directory that it makes.
    pub fn memory(&self, at: &Path, mebibytes: u64) -> PathBuf {
        std::fs::create_dir(at).unwrap();
        let size = format!("size={mebibytes}m");
        self.run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", at.to_str().unwrap()]);
        self.path(at)
    }

    /// The same, on which no more than so many files can be.
    pub fn memory_for(&self, at: &Path, mebibytes: u64, files: u64) -> PathBuf {
        std::fs::create_dir(at).unwrap();
        let bounds = format!("size={mebibytes}m,nr_inodes={files}");
        self.run("mount", &["-t", "tmpfs", "-o", &bounds, "tmpfs", at.to_str().unwrap()]);
        self.path(at)
    }

    /// Makes a file system in memory larger.
    pub fn enlarge(&self, at: &Path, mebibytes: u64) {
        let size = format!("remount,size={mebibytes}m");
        self.run("mount", &["-o", &size, at.to_str().unwrap()]);
    }

    /// Whether a file system can be made that stands still: that takes root and loop devices.
    pub fn can_stand_still(&self) -> bool {
        self.is_root && Path::new("/dev/loop-control").exists()
    }

    /// Mounts an ext4 of its own, on a file beside the directory that it makes.
    pub fn disk(&self, at: &Path, mebibytes: u64) -> PathBuf {
        std::fs::create_dir(at).unwrap();
        let image = at.with_extension("image");
        File::create(&image).unwrap().set_len(mebibytes << 20).unwrap();
        let (image, place) = (image.to_str().unwrap(), at.to_str().unwrap());
        self.run("mkfs.ext4", &["-q", "-m", "0", image]);
        // Freed with the last use, that is with the namespace.
        self.run("mount", &["-o", "loop", image, place]);
        self.path(at)
    }

    /// The same, with the file in memory, for [`Mounts::cut`].
    pub fn cuttable(&self, at: &Path, mebibytes: u64) -> PathBuf {
        let medium = self.memory(&at.with_extension("medium"), mebibytes + 16);
        File::create(medium.join("image")).unwrap().set_len(mebibytes << 20).unwrap();
        std::fs::create_dir(at).unwrap();
        self.run("mkfs.ext4", &["-q", "-m", "0", image_of(at).to_str().unwrap()]);
        self.attach(at);
        self.path(at)
    }

    /// Cuts these disks off at once: from now on nothing more gets from the page cache or the journal to the medium, and
    /// every write and sync fails.
    pub fn cut(&self, disks: &[PathBuf]) {
        let script = "for disk; do mount -o remount,abort \"$disk\" & done; wait";
        let mut arguments = vec!["-c", script, "sh"];
        arguments.extend(disks.iter().map(|disk| disk.to_str().unwrap()));
        self.run("sh", &arguments);
    }

    /// Mounts a disk that was cut, as it is on its medium. No process may use it.
    pub fn mount_again(&self, at: &Path) {
        self.run("umount", &[at.to_str().unwrap()]);
        self.attach(at);
    }

    fn attach(&self, at: &Path) {
        self.run("mount", &["-o", CUTTABLE, image_of(at).to_str().unwrap(), at.to_str().unwrap()]);
    }
}

/// The medium of a disk that can be cut.
fn image_of(at: &Path) -> PathBuf {
    at.with_extension("medium").join("image")
}

impl Drop for Mounts {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        drop(self.holder.wait());
    }
}

/// Every write and sync on the file system of `dir` stands still from now on, for so long. Another process ends that,
/// whatever becomes of the test.
pub fn stand_still(dir: &Path, seconds: f64) -> Child {
    let script = "fsfreeze --freeze \"$0\" && echo && sleep \"$1\" && fsfreeze --unfreeze \"$0\"";
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(dir).arg(seconds.to_string());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "\n", "{} does not stand still", dir.display());
    child
}

/// Bytes that are free.
pub fn free(dir: &Path) -> u64 {
    let space = statvfs(dir).unwrap();
    space.f_bavail * space.f_frsize
}

/// A file that takes the space of a disk, until it is dropped.
pub struct Filler(PathBuf);

impl Filler {
    /// Takes all but `left` bytes of what is free.
    pub fn new(dir: &Path, left: u64) -> Filler {
        let path = dir.join("filler");
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path).unwrap();
        let mut chunk = 256 << 20;
        while chunk >= 4_096 {
            let taken = file.metadata().unwrap().len();
            let wanted = chunk.min(free(dir).saturating_sub(left) & !4_095);
            if wanted == 0 || fallocate(&file, FallocateFlags::empty(), taken, wanted).is_err() {
                chunk /= 2;
            }
        }
        assert!(left > 0 || file.metadata().unwrap().blocks() > 0, "nothing was free");
        Filler(path)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}
