//! The cgroups above the nodes' pods, in version 1 (also hybrid) and version 2.
//!
//! kubelet wants its root to exist in every hierarchy. Version 1 hands a new cpuset no processors, so
//! they are copied down; version 2 hands down no controller that is not switched on for it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{At, Result};
use crate::layout::{Layout, Node};

/// How this machine's cgroups are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hierarchies {
    /// One tree.
    Unified(PathBuf),
    /// A tree for each controller.
    Split(Vec<PathBuf>),
}

/// Reads how cgroups are mounted.
///
/// # Errors
/// If the kernel's table cannot be read.
pub(crate) fn detect() -> Result<Hierarchies> {
    let table = Path::new("/proc/self/mountinfo");
    Ok(parse(&fs::read_to_string(table).at("read", table)?))
}

/// Split if there is any controller's own tree but systemd's: then kubelet uses those.
fn parse(table: &str) -> Hierarchies {
    let mut split = Vec::new();
    let mut unified = PathBuf::from("/sys/fs/cgroup");
    for line in table.lines() {
        let Some((front, back)) = line.split_once(" - ") else { continue };
        let Some(point) = front.split(' ').nth(4) else { continue };
        match back.split(' ').next() {
            Some("cgroup") => split.push(PathBuf::from(point)),
            Some("cgroup2") => unified = PathBuf::from(point),
            _ => {}
        }
    }
    if split.is_empty() { Hierarchies::Unified(unified) } else { Hierarchies::Split(split) }
}

/// Makes the nodes' cgroups.
///
/// # Errors
/// If one cannot be made.
pub(crate) fn ensure(layout: &Layout, nodes: &[Node]) -> Result<()> {
    let roots = match detect()? {
        Hierarchies::Unified(root) => vec![root],
        Hierarchies::Split(roots) => roots,
    };
    for root in roots {
        make(&root, &layout.cgroup())?;
        for node in nodes {
            make(&root, &node.cgroup)?;
        }
    }
    Ok(())
}

fn make(root: &Path, path: &str) -> Result<()> {
    let folder = root.join(path.trim_start_matches('/'));
    let parent = folder.parent().unwrap_or(root).to_path_buf();
    if let Ok(controllers) = fs::read_to_string(parent.join("cgroup.controllers")) {
        for controller in controllers.split_whitespace() {
            // One that cannot be switched on is missed by kubelet, which then says so itself.
            let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
    fs::create_dir_all(&folder).at("create", &folder)?;
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (parent.join(file), folder.join(file));
        if root.join("cpuset.cpus").is_file()
            && fs::read_to_string(&to).is_ok_and(|text| text.trim().is_empty())
        {
            let value = fs::read_to_string(&from).at("read", &from)?;
            fs::write(&to, value.trim()).at("write", &to)?;
        }
    }
    Ok(())
}

/// Removes all cgroups of the cluster. Its processes must have ended before.
///
/// # Errors
/// If one cannot be removed.
pub(crate) fn remove(layout: &Layout) -> Result<()> {
    let roots = match detect()? {
        Hierarchies::Unified(root) => vec![root],
        Hierarchies::Split(mut roots) => {
            roots.push(PathBuf::from("/sys/fs/cgroup/unified"));
            roots
        }
    };
    for root in roots {
        let folder = root.join(layout.cgroup().trim_start_matches('/'));
        if folder.is_dir() {
            remove_tree(&folder)?;
        }
    }
    Ok(())
}

fn remove_tree(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).at("read", folder)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    // The kernel lets the last process go a moment after it was reaped.
    let mut left = 100;
    loop {
        match fs::remove_dir(folder) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy && left > 0 => {
                left -= 1;
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            Err(error) => return Err(error).at("remove", folder),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_machine_is_split() {
        let table = "25 20 0:22 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                     26 20 0:23 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(parse(table), Hierarchies::Split(vec!["/sys/fs/cgroup/cpu".into()]));
    }

    #[test]
    fn a_machine_with_version_2_alone_is_unified() {
        let table = "26 20 0:23 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(parse(table), Hierarchies::Unified("/sys/fs/cgroup".into()));
    }
}
