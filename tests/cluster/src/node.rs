//! Starting one node: its files, its container runtime, the images every node needs, its agent.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::statfs;

use crate::components::Components;
use crate::config;
use crate::error::{At, Error, Result};
use crate::image::Image;
use crate::layout::Node;
use crate::run;

/// The kernel's number for overlayfs.
const OVERLAYFS: u64 = 0x794c_7630;

/// Writes a node's configuration files.
///
/// # Errors
/// If one cannot be written.
pub(crate) fn write_files(components: &Components<'_>, node: &Node) -> Result<()> {
    for folder in [&node.state, &node.run, &node.state.join("cni"), &node.state.join("volumes")] {
        fs::create_dir_all(folder).at("create", folder)?;
    }
    // An overlay cannot be stacked on an overlay: there, layers are copied.
    let on_overlay = statfs(&node.state).is_ok_and(|fs| u64::try_from(fs.f_type) == Ok(OVERLAYFS));
    let snapshotter = if on_overlay { "native" } else { "overlayfs" };
    let files = [
        ("containerd.toml", config::containerd(node, snapshotter)),
        ("kubelet.json", config::kubelet_file(components.layout, node).to_string()),
        ("cni/10-pods.conflist", config::cni(node).to_string()),
    ];
    for (name, text) in files {
        let path = node.state.join(name);
        fs::write(&path, text).at("write", &path)?;
    }
    Ok(())
}

/// Starts a node's processes and loads `images`. Returns before the node is Ready.
///
/// # Errors
/// If a process ends at once or the runtime does not answer in 30 s.
pub(crate) fn start(components: &Components<'_>, node: &Node, images: &[Image]) -> Result<()> {
    let containerd = components.containerd(node);
    containerd.ensure(components.layout)?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while !run::succeeds(ctr(components, node).arg("version")) {
        containerd.check(components.layout)?;
        if Instant::now() > deadline {
            return Err(Error::Timeout {
                what: format!("containerd of {} to answer", node.name),
                seconds: 30,
                state: format!("log: {}", components.layout.log(&containerd.name).display()),
            });
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    load(components, node, images)?;
    components.kubelet(node).ensure(components.layout)?;
    components.proxy(node).ensure(components.layout)?;
    Ok(())
}

/// Loads images that the node does not have.
///
/// # Errors
/// If an archive cannot be imported.
pub(crate) fn load(components: &Components<'_>, node: &Node, images: &[Image]) -> Result<()> {
    let present = run::output(ctr(components, node).args(["images", "ls", "-q"]))?;
    for image in images {
        if !present.lines().any(|line| line == image.reference) {
            import(components, node, &image.archive)?;
        }
    }
    Ok(())
}

/// Imports an archive into the node's store.
///
/// # Errors
/// If containerd refuses it.
pub(crate) fn import(components: &Components<'_>, node: &Node, archive: &Path) -> Result<()> {
    run::output(ctr(components, node).args(["images", "import"]).arg(archive)).map(drop)
}

/// `ctr` on the node's runtime, in Kubernetes' namespace. It speaks to a socket on this machine: a
/// node that is cut off the network answers all the same.
pub(crate) fn ctr(components: &Components<'_>, node: &Node) -> Command {
    let mut command = Command::new(components.programs.path("ctr"));
    command.arg("--address").arg(node.socket()).args(["--namespace", "k8s.io"]);
    command
}
