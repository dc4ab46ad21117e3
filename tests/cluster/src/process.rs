//! The cluster's processes: started apart from the caller, found again after an interrupt, ended
//! without hitting anybody else's.
//!
//! A process is ours if it is in one of our network or mount namespaces or in our cgroup; a number in
//! a file alone proves nothing. It is signalled through a descriptor of itself (pidfd) that was opened
//! before the last look at where it is, so a number that is used again is never hit.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::error::{At, Error, Output, Result};
use crate::layout::Layout;
use crate::run;

/// A namespace's identity: device and inode of its file.
pub(crate) type NamespaceId = (u64, u64);

/// One long-running program of the cluster.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    /// Its name, also its log's: `kubelet-node1`.
    pub name: String,
    /// The file that is run.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// The network namespace's name.
    pub netns: String,
    /// The mount namespace's pin, if it has one of its own.
    pub mountns: Option<PathBuf>,
    /// `PATH` for the programs it starts.
    pub search_path: String,
}

impl Process {
    /// Starts it unless it runs with exactly these arguments in its namespace; one that runs with
    /// others is ended first. Returns whether it was started.
    ///
    /// # Errors
    /// If the log cannot be made or the program cannot be started.
    pub(crate) fn ensure(&self, layout: &Layout) -> Result<bool> {
        let running = self.running()?;
        let (same, other): (Vec<u32>, Vec<u32>) =
            running.into_iter().partition(|pid| command_line(*pid).as_deref() == Some(&self.line()));
        for pid in other.iter().chain(same.iter().skip(1)) {
            self.end(*pid)?;
        }
        if !same.is_empty() {
            return Ok(false);
        }
        self.start(layout)?;
        Ok(true)
    }

    /// The processes of this program in its namespace that were started from here: with this
    /// program's file as their first argument.
    ///
    /// # Errors
    /// If the namespace cannot be read.
    pub(crate) fn running(&self) -> Result<Vec<u32>> {
        let Some(namespace) = network_namespace(&self.netns) else { return Ok(Vec::new()) };
        let program = self.program.to_string_lossy();
        Ok(all()
            .into_iter()
            .filter(|pid| namespace_of(*pid, "net") == Some(namespace))
            .filter(|pid| command_line(*pid).is_some_and(|line| line.split('\0').next() == Some(&*program)))
            .collect())
    }

    /// Ends every running copy with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// If one cannot be signalled.
    pub(crate) fn kill(&self) -> Result<()> {
        for pid in self.running()? {
            self.end(pid)?;
        }
        Ok(())
    }

    /// Fails with the end of its log if it does not run any more.
    ///
    /// # Errors
    /// [`Error::Command`] with the last lines of its log.
    pub(crate) fn check(&self, layout: &Layout) -> Result<()> {
        if !self.running()?.is_empty() {
            return Ok(());
        }
        let log = fs::read_to_string(layout.log(&self.name)).unwrap_or_default();
        Err(Error::Command {
            command: self.name.clone(),
            status: format!("ended; log: {}", layout.log(&self.name).display()),
            output: Output(log),
        })
    }

    fn start(&self, layout: &Layout) -> Result<()> {
        let log = open_log(&layout.log(&self.name))?;
        let errors = log.try_clone().at("open", &layout.log(&self.name))?;
        // A session of its own: neither the caller's terminal nor its end reaches it. `setsid` and
        // `nsenter` replace themselves, so nothing of them stays.
        let mut command = Command::new("setsid");
        command.arg("nsenter").arg(format!("--net=/run/netns/{}", self.netns));
        if let Some(pin) = &self.mountns {
            command.arg(format!("--mount={}", pin.display()));
        }
        command.arg("--").arg(&self.program).args(&self.args);
        command.env_clear().env("PATH", &self.search_path).env("HOME", "/root");
        command.stdin(Stdio::null()).stdout(log).stderr(errors).current_dir("/");
        let mut child =
            command.spawn().map_err(|source| Error::Spawn { command: run::show(&command), source })?;
        // Reaps the child if it ends while this program still runs.
        std::thread::spawn(move || child.wait());
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.running()?.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn line(&self) -> String {
        let mut line = self.program.to_string_lossy().into_owned();
        for arg in &self.args {
            line.push('\0');
            line.push_str(arg);
        }
        line
    }

    fn end(&self, pid: u32) -> Result<()> {
        let Some(namespace) = network_namespace(&self.netns) else { return Ok(()) };
        let gone = || namespace_of(pid, "net") != Some(namespace);
        kill_if(pid, || !gone());
        wait_until(Duration::from_secs(10), &format!("process {pid} ({}) to end", self.name), gone)
    }
}

/// Sends SIGKILL to `pid` if `ours` still says so once the process is held fast. Returns whether it
/// was sent.
pub(crate) fn kill_if(pid: u32, ours: impl Fn() -> bool) -> bool {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return false };
    let Ok(held) = pidfd_open(raw, PidfdFlags::empty()) else { return false };
    ours() && pidfd_send_signal(&held, Signal::KILL).is_ok()
}

/// What makes a process the cluster's: the namespaces and the cgroup it is in.
pub(crate) struct Membership {
    net: BTreeSet<NamespaceId>,
    mount: BTreeSet<NamespaceId>,
    cgroup: String,
}

impl Membership {
    /// The whole cluster's.
    pub(crate) fn of_cluster(layout: &Layout) -> Self {
        let own = layout.netns();
        let nodes = format!("{own}-n");
        let net = names_in(Path::new("/run/netns"))
            .into_iter()
            .filter(|name| *name == own || name.starts_with(&nodes))
            .filter_map(|name| network_namespace(&name))
            .collect();
        let pins = layout.run.join("mnt");
        let mount = names_in(&pins).iter().filter_map(|name| pinned(&pins.join(name))).collect();
        Membership { net, mount, cgroup: format!("{}/", layout.cgroup()) }
    }

    /// One node's.
    pub(crate) fn of_node(node: &crate::layout::Node) -> Self {
        Membership {
            net: network_namespace(&node.netns).into_iter().collect(),
            mount: pinned(&node.mountns).into_iter().collect(),
            cgroup: format!("{}/", node.cgroup),
        }
    }

    /// Whether a process belongs.
    pub(crate) fn has(&self, pid: u32) -> bool {
        pid != std::process::id()
            && (namespace_of(pid, "net").is_some_and(|id| self.net.contains(&id))
                || namespace_of(pid, "mnt").is_some_and(|id| self.mount.contains(&id))
                || in_cgroup(pid, &self.cgroup))
    }

    /// All processes that belong.
    pub(crate) fn processes(&self) -> Vec<u32> {
        all().into_iter().filter(|pid| self.has(*pid)).collect()
    }

    /// Ends all of them with SIGKILL and waits until none is left.
    ///
    /// # Errors
    /// [`Error::Timeout`] after 30 s, naming what is left.
    pub(crate) fn kill(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let left = self.processes();
            if left.is_empty() {
                return Ok(());
            }
            for pid in &left {
                kill_if(*pid, || self.has(*pid));
            }
            if Instant::now() > deadline {
                let names: Vec<String> =
                    left.iter().map(|pid| format!("{pid} ({})", short_name(*pid))).collect();
                return Err(Error::Timeout {
                    what: "the cluster's processes to end".into(),
                    seconds: 30,
                    state: format!("left: {}", names.join(", ")),
                });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Waits until `done`, looking every 20 ms.
///
/// # Errors
/// [`Error::Timeout`] with `what`.
pub(crate) fn wait_until(limit: Duration, what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !done() {
        if Instant::now() > deadline {
            return Err(Error::Timeout {
                what: what.to_owned(),
                seconds: limit.as_secs(),
                state: "it did not happen".into(),
            });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The identity of a network namespace that `ip netns` named.
pub(crate) fn network_namespace(name: &str) -> Option<NamespaceId> {
    pinned(&Path::new("/run/netns").join(name))
}

/// The identity of the namespace a file pins; none if the file is only a file.
pub(crate) fn pinned(path: &Path) -> Option<NamespaceId> {
    let meta = fs::metadata(path).ok()?;
    let own = fs::metadata("/proc/self/ns/net").ok()?;
    // All namespace files are on one device; a file that lost its mount is not.
    (meta.dev() == own.dev()).then(|| (meta.dev(), meta.ino()))
}

/// The identity of a process's namespace of one kind (`net`, `mnt`).
pub(crate) fn namespace_of(pid: u32, kind: &str) -> Option<NamespaceId> {
    let meta = fs::metadata(format!("/proc/{pid}/ns/{kind}")).ok()?;
    Some((meta.dev(), meta.ino()))
}

fn in_cgroup(pid: u32, prefix: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| {
        text.lines().any(|line| line.splitn(3, ':').nth(2).is_some_and(|p| p.starts_with(prefix)))
    })
}

fn command_line(pid: u32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned())
}

fn short_name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

fn all() -> Vec<u32> {
    names_in(Path::new("/proc")).iter().filter_map(|name| name.parse().ok()).collect()
}

/// The names in a folder; none if it cannot be read.
pub(crate) fn names_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn open_log(path: &Path) -> Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).at("create", parent)?;
    }
    OpenOptions::new().create(true).append(true).open(path).at("open", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_no_members() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path(), "absent", None).unwrap();
        assert!(Membership::of_cluster(&layout).processes().is_empty());
    }

    #[test]
    fn a_plain_file_pins_no_namespace() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("n1");
        fs::write(&file, "").unwrap();
        assert_eq!(pinned(&file), None);
        assert!(pinned(Path::new("/proc/self/ns/mnt")).is_some());
    }

    #[test]
    fn a_process_that_turned_out_not_to_be_ours_is_spared() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert!(!kill_if(child.id(), || false));
        assert!(child.try_wait().unwrap().is_none());
        assert!(kill_if(child.id(), || true));
        assert!(!child.wait().unwrap().success());
    }
}
