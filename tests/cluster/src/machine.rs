//! What the machine must have, and how to get it.

use std::path::Path;
use std::process::Command;

use serde::Serialize;

use crate::config::CNI_PLUGINS;
use crate::error::{Error, Result};
use crate::programs::{Programs, SETS};
use crate::progress::Step;
use crate::run;

/// The oldest Go that builds the programs: what their go.mod files ask for.
const GO: (u32, u32) = (1, 26);

/// Debian's packages and a file that each brings.
const PACKAGES: &[(&str, &[&str])] = &[
    ("runc", &["/usr/sbin/runc", "/usr/bin/runc"]),
    ("containernetworking-plugins", &["/usr/lib/cni/bridge"]),
    ("iptables", &["/usr/sbin/iptables"]),
    ("iproute2", &["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"]),
    ("conntrack", &["/usr/sbin/conntrack"]),
    ("ethtool", &["/usr/sbin/ethtool", "/sbin/ethtool"]),
    ("socat", &["/usr/bin/socat"]),
    ("busybox-static", &["/usr/bin/busybox", "/bin/busybox"]),
    ("util-linux", &["/usr/bin/nsenter"]),
    ("mount", &["/usr/bin/mount", "/bin/mount"]),
    ("kmod", &["/usr/sbin/modprobe", "/sbin/modprobe"]),
    ("gcc", &["/usr/bin/cc"]),
    ("libc6-dev", &["/usr/include/stdlib.h"]),
    ("ca-certificates", &["/etc/ssl/certs/ca-certificates.crt"]),
];

/// One thing the machine must have.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What.
    pub what: String,
    /// Whether it is there.
    pub ok: bool,
    /// What was found, or how to get it.
    pub note: String,
}

/// Looks at everything; changes nothing.
pub fn doctor() -> Vec<Check> {
    let mut checks = vec![check("root", check_root().map(|()| "yes".to_owned()))];
    checks.push(check("Rust", rust()));
    checks.push(check("Go", go().map(|(major, minor)| format!("{major}.{minor}"))));
    for (package, files) in PACKAGES {
        let note = if present(files) {
            Ok("installed".to_owned())
        } else {
            Err(Error::Missing(format!("`apt-get install {package}`; `up` does it where it can")))
        };
        checks.push(check(package, note));
    }
    let built = Programs::cached().map(|programs| {
        let missing = programs.missing();
        let names: Vec<&str> = missing.iter().map(|set| set.name).collect();
        match names.len() {
            0 => format!("all {} in the cache", SETS.len()),
            _ => format!("to be built by the next `up` or by `programs`: {}", names.join(", ")),
        }
    });
    checks.push(check("Kubernetes programs", built));
    checks
}

/// Makes sure that the machine can run a cluster; installs Debian's packages that are missing.
///
/// # Errors
/// [`Error::Missing`] saying what is missing and how to get it.
pub fn ensure(step: &Step) -> Result<()> {
    check_root()?;
    if !Programs::cached()?.missing().is_empty() {
        go()?;
    }
    let missing: Vec<&str> =
        PACKAGES.iter().filter(|(_, files)| !present(files)).map(|(package, _)| *package).collect();
    if !missing.is_empty() {
        install(&missing, step)?;
    }
    for module in ["overlay", "br_netfilter", "nf_conntrack"] {
        // Built into some kernels, loaded on others; what is really missing shows where it is used.
        let _ = run::succeeds(Command::new("modprobe").args(["-q", module]));
    }
    Ok(())
}

/// Fails unless this process is root.
///
/// # Errors
/// [`Error::Missing`].
pub fn check_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::Missing(
        "namespaces, cgroups and mounts need root: run this as root (`sudo -E make ...` keeps the PATH \
         to Rust and Go)"
            .into(),
    ))
}

fn install(packages: &[&str], step: &Step) -> Result<()> {
    let list = packages.join(" ");
    if !Path::new("/usr/bin/apt-get").is_file() {
        return Err(Error::Missing(format!(
            "missing: {list}. These are the names of Debian's packages; this machine has no apt-get, so \
             install what gives the same programs (the CNI plugins in {CNI_PLUGINS}) and run this again"
        )));
    }
    for args in
        [vec!["update", "-q"], [&["install", "-y", "-q", "--no-install-recommends"], packages].concat()]
    {
        step.at(&format!("apt-get {}", args.join(" ")));
        run::output(Command::new("apt-get").args(&args).env("DEBIAN_FRONTEND", "noninteractive"))?;
    }
    let still: Vec<&str> = PACKAGES
        .iter()
        .filter(|(name, files)| packages.contains(name) && !present(files))
        .map(|p| p.0)
        .collect();
    if still.is_empty() {
        return Ok(());
    }
    Err(Error::Missing(format!("still missing after apt-get installed them: {}", still.join(", "))))
}

fn go() -> Result<(u32, u32)> {
    let how = format!(
        "building Kubernetes needs Go {}.{} or newer in the PATH: see https://go.dev/doc/install",
        GO.0, GO.1
    );
    let text = run::output(Command::new("go").args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local"))
        .map_err(|error| Error::Missing(format!("{how} ({error})")))?;
    match parse_go(&text) {
        Some(version) if version >= GO => Ok(version),
        _ => Err(Error::Missing(format!("{how}; found {}", text.trim()))),
    }
}

/// `go1.26.8` gives (1, 26).
fn parse_go(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim().strip_prefix("go")?.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn rust() -> Result<String> {
    run::output(Command::new("cargo").arg("--version"))
        .map(|text| text.trim().to_owned())
        .map_err(|_| Error::Missing("Synod's own programs need Rust: see https://rustup.rs".into()))
}

fn present(files: &[&str]) -> bool {
    files.iter().any(|file| Path::new(file).exists())
}

fn check(what: &str, result: Result<String>) -> Check {
    let ok = result.is_ok();
    let note = result.unwrap_or_else(|error| error.to_string());
    Check { what: what.to_owned(), ok, note }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gos_versions_are_read() {
        assert_eq!(parse_go("go1.26.8\n"), Some((1, 26)));
        assert_eq!(parse_go("go1.27rc1"), Some((1, 27)));
        assert_eq!(parse_go("devel"), None);
    }

    #[test]
    fn what_is_missing_comes_with_a_way_to_get_it() {
        for check in doctor().iter().filter(|check| !check.ok) {
            assert!(check.note.len() > 20, "{check:?}");
        }
    }
}
