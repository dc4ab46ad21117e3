//! The Kubernetes programs, built from their Go modules and kept in the user's cache folder.
//!
//! Each set has a go.mod and go.sum of its own under `programs/`, because their dependencies
//! disagree. The files are part of this program, so the cache's key (a hash of them and of the build's
//! flags) belongs to the code that uses it; a fresh clone on the same machine finds what an older
//! clone built. A set is built in a folder beside its place and renamed when all of it is there: an
//! interrupted build is never taken for a whole one.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use crate::error::{At, Error, Output, Result};
use crate::layout::hex;
use crate::lock::Lock;
use crate::progress::Progress;
use crate::run;

/// The version of Kubernetes that is built.
pub const KUBERNETES_VERSION: &str = "v1.36.3";

/// One set of programs with a go.mod of its own.
pub struct Set {
    /// The folder under `programs/`.
    pub name: &'static str,
    /// The version of its main module.
    pub version: &'static str,
    module: &'static str,
    sums: &'static str,
    /// Variables the linker sets to `version`.
    stamps: &'static [&'static str],
    packages: &'static [&'static str],
    /// The programs that come out, named by the last part of their package's path (without a
    /// version's `v3`).
    pub programs: &'static [&'static str],
    /// Packages compiled, for progress: measured once, only shown.
    size: usize,
}

macro_rules! set {
    ($name:literal, $($field:tt)*) => {
        Set {
            name: $name,
            module: include_str!(concat!("../programs/", $name, "/go.mod")),
            sums: include_str!(concat!("../programs/", $name, "/go.sum")),
            $($field)*
        }
    };
}

/// All sets, the longest build first.
pub const SETS: &[Set] = &[
    set! {
        "kubernetes",
        version: KUBERNETES_VERSION,
        // Without it the version reads v0.0.0-master, and clients misjudge what the server can do.
        stamps: &["k8s.io/component-base/version.gitVersion"],
        packages: &[
            "k8s.io/kubernetes/cmd/kube-apiserver",
            "k8s.io/kubernetes/cmd/kube-controller-manager",
            "k8s.io/kubernetes/cmd/kube-scheduler",
            "k8s.io/kubernetes/cmd/kubelet",
            "k8s.io/kubernetes/cmd/kube-proxy",
            "k8s.io/kubernetes/cmd/kubectl",
        ],
        programs: &[
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kubelet",
            "kube-proxy",
            "kubectl",
        ],
        size: 3000,
    },
    set! {
        "containerd",
        version: "v2.4.2",
        stamps: &["github.com/containerd/containerd/v2/version.Version"],
        packages: &[
            "github.com/containerd/containerd/v2/cmd/containerd",
            "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
            "github.com/containerd/containerd/v2/cmd/ctr",
        ],
        programs: &["containerd", "containerd-shim-runc-v2", "ctr"],
        size: 1100,
    },
    set! {
        "etcd",
        version: "v3.7.3",
        stamps: &[],
        packages: &["go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/etcdctl/v3"],
        programs: &["server", "etcdctl"],
        size: 700,
    },
    set! {
        "coredns",
        version: "v1.15.0",
        stamps: &[],
        packages: &["github.com/coredns/coredns"],
        programs: &["coredns"],
        size: 1700,
    },
    set! {
        "local-path-provisioner",
        version: "v0.0.30",
        stamps: &[],
        packages: &["github.com/rancher/local-path-provisioner"],
        programs: &["local-path-provisioner"],
        size: 900,
    },
    set! {
        "helm",
        version: "v4.3.1",
        stamps: &["helm.sh/helm/v4/internal/version.version"],
        packages: &["helm.sh/helm/v4/cmd/helm"],
        programs: &["helm"],
        size: 1500,
    },
];

/// The user's cache folder for Synod: `$XDG_CACHE_HOME/synod`, by default `~/.cache/synod`.
///
/// # Errors
/// [`Error::Missing`] if neither `XDG_CACHE_HOME` nor `HOME` is set.
pub fn cache_dir() -> Result<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("synod"))
        .ok_or_else(|| Error::Missing("set HOME or XDG_CACHE_HOME: the built programs are kept there".into()))
}

/// Where the built programs are.
#[derive(Debug, Clone)]
pub struct Programs {
    dir: PathBuf,
}

impl Programs {
    /// The programs in the user's cache folder, whether built or not.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is no cache folder.
    pub fn cached() -> Result<Self> {
        Ok(Programs { dir: cache_dir()?.join("programs") })
    }

    /// The file of one program. Panics on a name that no set has: names are constants of this crate.
    pub fn path(&self, program: &str) -> PathBuf {
        let set = SETS.iter().find(|set| set.programs.contains(&program));
        let set = set.unwrap_or_else(|| panic!("no set of programs has `{program}`"));
        self.place(set).join(program)
    }

    /// The folders of all sets, for a process's `PATH`.
    pub fn search_path(&self) -> String {
        let folders: Vec<String> = SETS.iter().map(|set| self.place(set).display().to_string()).collect();
        format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", folders.join(":"))
    }

    /// The sets that are not built yet.
    pub fn missing(&self) -> Vec<&'static Set> {
        SETS.iter()
            .filter(|set| !set.programs.iter().all(|program| self.place(set).join(program).is_file()))
            .collect()
    }

    /// A hash of what all programs are built from.
    pub fn key(&self) -> String {
        let keys: String = SETS.iter().map(key).collect();
        hex(&Sha256::digest(keys)[..6])
    }

    /// Builds what is missing. Two runs at once wait for each other.
    ///
    /// # Errors
    /// The first set that cannot be built, with the log of its build.
    pub fn ensure(&self, progress: &Progress) -> Result<()> {
        if self.missing().is_empty() {
            return Ok(());
        }
        fs::create_dir_all(&self.dir).at("create", &self.dir)?;
        let _lock = Lock::wait(&self.dir.join("lock"))?;
        for set in self.missing() {
            let log = self.dir.join(format!("{}.log", set.name));
            let name = format!("Build {} {} (once)", set.name, set.version);
            progress.step(&name, Some(log.clone()), |step| {
                self.build(set, &log, |done, package| {
                    let percent = (done * 100 / set.size).min(99);
                    step.at(&format!("{percent}% {package}"));
                })
            })?;
        }
        Ok(())
    }

    fn place(&self, set: &Set) -> PathBuf {
        self.dir.join(format!("{}-{}-{}", set.name, set.version, key(set)))
    }

    fn build(&self, set: &Set, log: &Path, mut at: impl FnMut(usize, &str)) -> Result<()> {
        let place = self.place(set);
        let partial = place.with_extension("partial");
        let source = partial.join("source");
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir_all(&source).at("create", &source)?;
        fs::write(source.join("go.mod"), set.module).at("write", &source)?;
        fs::write(source.join("go.sum"), set.sums).at("write", &source)?;
        let mut command = Command::new("go");
        command
            .current_dir(&source)
            .args(arguments(set))
            .arg("-o")
            .arg(&partial)
            .arg("-v")
            .args(set.packages);
        command.envs(ENVIRONMENT.iter().copied()).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::piped());
        let mut child =
            command.spawn().map_err(|source| Error::Spawn { command: run::show(&command), source })?;
        let mut lines = Vec::new();
        if let Some(stderr) = child.stderr.take() {
            for line in BufReader::new(stderr).lines().map_while(std::io::Result::ok) {
                at(lines.len(), &line);
                lines.push(line);
            }
        }
        let status = child.wait().map_err(|source| Error::Spawn { command: run::show(&command), source })?;
        let text = lines.join("\n");
        fs::write(log, &text).at("write", log)?;
        if !status.success() {
            return Err(Error::Command {
                command: format!("go build ({})", set.name),
                status: status.to_string(),
                output: Output(text),
            });
        }
        let _ = fs::remove_dir_all(&source);
        let _ = fs::remove_dir_all(&place);
        fs::rename(&partial, &place).at("rename to", &place)
    }
}

/// `GOTOOLCHAIN=local`: nothing but modules is downloaded. An empty `GOFLAGS` keeps a user's settings
/// out of what the key says.
const ENVIRONMENT: &[(&str, &str)] = &[("GOTOOLCHAIN", "local"), ("CGO_ENABLED", "0"), ("GOFLAGS", "")];

fn arguments(set: &Set) -> Vec<String> {
    let mut linker = String::from("-s -w");
    for stamp in set.stamps {
        linker.push_str(&format!(" -X {stamp}={}", set.version));
    }
    ["build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", &linker]
        .map(str::to_owned)
        .to_vec()
}

fn key(set: &Set) -> String {
    let mut hash = Sha256::new();
    for part in [set.module, set.sums] {
        hash.update(part);
        hash.update([0]);
    }
    for part in arguments(set).iter().map(String::as_str).chain(set.packages.iter().copied()) {
        hash.update(part);
        hash.update([0]);
    }
    hex(&hash.finalize()[..6])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_is_found_by_its_name() {
        let programs = Programs { dir: PathBuf::from("/cache") };
        for set in SETS {
            assert_eq!(set.programs.len(), set.packages.len(), "{}", set.name);
            for program in set.programs {
                let path = programs.path(program);
                assert!(path.starts_with(programs.place(set)), "{}", path.display());
            }
        }
    }

    #[test]
    fn the_modules_ask_for_the_versions_named_here() {
        for set in SETS {
            assert!(
                set.module.lines().any(|line| line.trim_end().contains(&format!(" {}", set.version))),
                "programs/{}/go.mod asks for another version than {}",
                set.name,
                set.version
            );
            for package in set.packages {
                assert!(set.module.contains(package), "programs/{}/go.mod has no tool {package}", set.name);
            }
        }
    }

    #[test]
    fn each_set_has_a_key_of_its_own() {
        let mut keys: Vec<String> = SETS.iter().map(key).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), SETS.len());
    }

    #[test]
    fn nothing_is_taken_for_built_in_an_empty_cache() {
        let folder = tempfile::tempdir().unwrap();
        let programs = Programs { dir: folder.path().to_path_buf() };
        assert_eq!(programs.missing().len(), SETS.len());
    }
}
