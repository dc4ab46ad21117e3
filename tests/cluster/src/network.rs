//! The cluster's namespaces and links. Every step is written so that it can be done again: what is
//! there is kept, what is missing is made.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use rustix::mount::{UnmountFlags, unmount};
use serde_json::Value;

use crate::error::{At, Error, Result};
use crate::layout::{API_ADDRESS, Layout, Link, Node};
use crate::process::{names_in, network_namespace, pinned};
use crate::run;

/// Makes sure that all namespaces, links, addresses and routes are there.
///
/// # Errors
/// [`Error::AddressesInUse`] before anything is changed; otherwise the command that failed.
pub(crate) fn ensure(layout: &Layout, nodes: &[Node]) -> Result<()> {
    check_free(layout)?;
    fs::create_dir_all(&layout.run).at("create", &layout.run)?;
    ensure_outer(layout)?;
    for node in nodes {
        ensure_node(layout, node)?;
    }
    for node in nodes {
        ensure_routes(layout, node, nodes)?;
    }
    Ok(())
}

/// Fails if the link's addresses are in use on this machine by anything but this cluster.
///
/// # Errors
/// [`Error::AddressesInUse`].
pub(crate) fn check_free(layout: &Layout) -> Result<()> {
    let read = |what: &[&str]| -> Result<Value> {
        let text = run::output(Command::new("ip").arg("-j").args(what))?;
        Ok(serde_json::from_str(text.trim()).unwrap_or(Value::Null))
    };
    let addresses = read(&["-4", "address", "show"])?;
    let routes = read(&["-4", "route", "show", "table", "all"])?;
    match find_user(&layout.link, &layout.host_link(), &addresses, &routes) {
        Some(user) => Err(Error::AddressesInUse { wanted: layout.link.cidr(), user }),
        None => Ok(()),
    }
}

/// Who but `own` uses addresses of `link`, from what `ip -j` says. Routes wider than a /16 are no
/// users: a default route, or a company's whole private range, is what more specific routes are for.
fn find_user(link: &Link, own: &str, addresses: &Value, routes: &Value) -> Option<String> {
    for interface in addresses.as_array().into_iter().flatten() {
        let name = interface["ifname"].as_str().unwrap_or("?");
        for info in interface["addr_info"].as_array().into_iter().flatten() {
            let address: Option<Ipv4Addr> = info["local"].as_str().and_then(|text| text.parse().ok());
            let prefix = info["prefixlen"].as_u64().and_then(|n| u8::try_from(n).ok()).unwrap_or(32);
            if name != own && address.is_some_and(|address| link.overlaps(address, prefix)) {
                return Some(format!("the interface {name} ({})", info["local"].as_str().unwrap_or("?")));
            }
        }
    }
    for route in routes.as_array().into_iter().flatten() {
        let device = route["dev"].as_str().unwrap_or("?");
        let text = route["dst"].as_str().unwrap_or("default");
        let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let (Ok(address), Ok(prefix)) = (address.parse::<Ipv4Addr>(), prefix.parse::<u8>()) else { continue };
        if device != own && prefix >= 16 && link.overlaps(address, prefix) {
            return Some(format!("the route to {text} by {device}"));
        }
    }
    None
}

fn ensure_outer(layout: &Layout) -> Result<()> {
    let outer = layout.netns();
    let host = layout.host_link();
    ensure_namespace(&outer)?;
    if !has_link(None, &host) || !has_link(Some(&outer), "uplink") {
        let _ = run::succeeds(&mut ip(None, &["link", "del", &host]));
        do_ip(None, &["link", "add", &host, "type", "veth", "peer", "name", "uplink", "netns", &outer])?;
    }
    do_ip(None, &["address", "replace", &format!("{}/30", layout.link.host()), "dev", &host])?;
    do_ip(None, &["link", "set", &host, "up"])?;
    let at = Some(outer.as_str());
    do_ip(at, &["link", "set", "lo", "up"])?;
    do_ip(at, &["address", "replace", &format!("{}/30", layout.link.cluster()), "dev", "uplink"])?;
    do_ip(at, &["link", "set", "uplink", "up"])?;
    if !has_link(at, "br0") {
        do_ip(at, &["link", "add", "br0", "type", "bridge"])?;
    }
    do_ip(at, &["address", "replace", &format!("{API_ADDRESS}/24"), "dev", "br0"])?;
    do_ip(at, &["link", "set", "br0", "up"])
}

fn ensure_node(layout: &Layout, node: &Node) -> Result<()> {
    let outer = layout.netns();
    ensure_namespace(&node.netns)?;
    if !has_link(Some(&outer), &node.port) || !has_link(Some(&node.netns), "eth0") {
        let _ = run::succeeds(&mut ip(Some(&outer), &["link", "del", &node.port]));
        let peer = ["peer", "name", "eth0", "netns", &node.netns];
        do_ip(Some(&outer), &[&["link", "add", &node.port, "type", "veth"][..], &peer].concat())?;
    }
    do_ip(Some(&outer), &["link", "set", &node.port, "master", "br0", "up"])?;
    let at = Some(node.netns.as_str());
    do_ip(at, &["link", "set", "lo", "up"])?;
    do_ip(at, &["address", "replace", &format!("{}/24", node.address), "dev", "eth0"])?;
    do_ip(at, &["link", "set", "eth0", "up"])?;
    run::output(&mut in_namespace(&node.netns, "sh", &["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]))?;
    ensure_mount_namespace(node)
}

fn ensure_routes(layout: &Layout, node: &Node, nodes: &[Node]) -> Result<()> {
    // The API server calls webhooks at their pods' addresses.
    do_ip(Some(&layout.netns()), &["route", "replace", &node.pods, "via", &node.address.to_string()])?;
    let at = Some(node.netns.as_str());
    do_ip(at, &["route", "replace", "default", "via", &API_ADDRESS.to_string()])?;
    for other in nodes.iter().filter(|other| other.number != node.number) {
        do_ip(at, &["route", "replace", &other.pods, "via", &other.address.to_string()])?;
    }
    Ok(())
}

fn ensure_namespace(name: &str) -> Result<()> {
    if network_namespace(name).is_some() {
        return Ok(());
    }
    // An interrupt between the file and its mount leaves a plain file, which `ip` would refuse.
    let file = Path::new("/run/netns").join(name);
    if file.exists() {
        fs::remove_file(&file).at("remove", &file)?;
    }
    do_ip(None, &["netns", "add", name])
}

/// The fixed paths that kubelet and the CNI plugins write to, and the node's own folder for each.
const COVERED: &[(&str, &str)] =
    &[("/var/lib/kubelet", "kubelet"), ("/var/lib/cni", "cni-cache"), ("/var/log", "var-log")];

/// A mount namespace for each node: its kubelet's and its containers' mounts end with it, and paths
/// that kubelet has fixed (`/var/lib/kubelet`, `/var/log/containers`) are its own.
pub(crate) fn ensure_mount_namespace(node: &Node) -> Result<()> {
    if pinned(&node.mountns).is_some() {
        return Ok(());
    }
    let folder = node.mountns.parent().unwrap_or(Path::new("/run"));
    fs::create_dir_all(folder).at("create", folder)?;
    if !is_mount(folder)? {
        // A pin must not spread into the namespace that it pins.
        run::output(Command::new("mount").args(["--bind"]).arg(folder).arg(folder))?;
    }
    run::output(Command::new("mount").arg("--make-private").arg(folder))?;
    fs::write(&node.mountns, "").at("write", &node.mountns)?;
    let mut script = String::from("set -e; mount --make-rshared /");
    for (place, own) in COVERED {
        let own = node.state.join(own);
        fs::create_dir_all(&own).at("create", &own)?;
        fs::create_dir_all(place).at("create", Path::new(place))?;
        script.push_str(&format!(
            "; mount --bind \"$1/{}\" {place}",
            own.file_name().unwrap_or_default().display()
        ));
    }
    run::output(
        Command::new("unshare")
            .arg(format!("--mount={}", node.mountns.display()))
            .args(["--propagation", "private", "sh", "-c", &script, "sh"])
            .arg(&node.state),
    )?;
    Ok(())
}

/// Removes every namespace, pin and link of the cluster. Its processes must have ended before.
///
/// # Errors
/// The first thing that cannot be removed.
pub(crate) fn remove(layout: &Layout) -> Result<()> {
    let pins = layout.run.join("mnt");
    for name in names_in(&pins) {
        unpin(&pins.join(name))?;
    }
    for mount in mounts_under(&layout.run)? {
        unmount(&mount, UnmountFlags::DETACH)
            .map_err(std::io::Error::from)
            .at("unmount", Path::new(&mount))?;
    }
    if has_link(None, &layout.host_link()) {
        do_ip(None, &["link", "del", &layout.host_link()])?;
    }
    let own = layout.netns();
    for name in names_in(Path::new("/run/netns")) {
        if name == own || name.starts_with(&format!("{own}-n")) {
            let file = Path::new("/run/netns").join(&name);
            if network_namespace(&name).is_some() {
                do_ip(None, &["netns", "del", &name])?;
            } else {
                fs::remove_file(&file).at("remove", &file)?;
            }
        }
    }
    Ok(())
}

/// Lets a node's mount namespace go, and its mounts with it. Its processes must have ended before.
///
/// # Errors
/// If its pin cannot be removed.
pub(crate) fn remove_mount_namespace(node: &Node) -> Result<()> {
    unpin(&node.mountns)
}

fn unpin(pin: &Path) -> Result<()> {
    while pinned(pin).is_some() {
        unmount(pin, UnmountFlags::DETACH).map_err(std::io::Error::from).at("unmount", pin)?;
    }
    Ok(())
}

/// Folders that were made for [`COVERED`] and are empty: removed only when no cluster is left, since
/// removing a folder takes another namespace's mount on it away.
pub(crate) fn remove_covered() {
    for (place, _) in COVERED.iter().filter(|(place, _)| *place != "/var/log") {
        let _ = fs::remove_dir(place);
    }
}

/// The mount points under a folder, the deepest first.
///
/// # Errors
/// If the kernel's table cannot be read.
pub(crate) fn mounts_under(folder: &Path) -> Result<Vec<String>> {
    let table = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(table).at("read", table)?;
    let all: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .filter(|point| Path::new(point).starts_with(folder))
        .collect();
    Ok(all.into_iter().rev().collect())
}

fn is_mount(path: &Path) -> Result<bool> {
    Ok(mounts_under(path)?.iter().any(|point| Path::new(point) == path))
}

/// The kernel writes space, tab, newline and backslash in a mount point as three octal digits.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'\\' {
            let digits: Vec<u8> = bytes.by_ref().take(3).collect();
            out.push(digits.iter().fold(0u8, |n, d| n.wrapping_mul(8).wrapping_add(d.wrapping_sub(b'0'))));
        } else {
            out.push(byte);
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A command in a network namespace. Not `ip netns exec`: that mounts another /sys, and the cgroups
/// are gone.
pub(crate) fn in_namespace(name: &str, program: &str, args: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{name}")).arg("--").arg(program).args(args);
    command
}

/// `ip`, in a namespace or on this machine.
pub(crate) fn ip(namespace: Option<&str>, args: &[&str]) -> Command {
    let mut command = Command::new("ip");
    if let Some(name) = namespace {
        command.args(["-n", name]);
    }
    command.args(args);
    command
}

/// Runs `ip`.
///
/// # Errors
/// If it fails.
pub(crate) fn do_ip(namespace: Option<&str>, args: &[&str]) -> Result<()> {
    run::output(&mut ip(namespace, args)).map(drop)
}

fn has_link(namespace: Option<&str>, name: &str) -> bool {
    run::succeeds(&mut ip(namespace, &["link", "show", "dev", name]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn user(addresses: Value, routes: Value) -> Option<String> {
        find_user(&Link::parse("172.30.8.4/30").unwrap(), "sy01234567", &addresses, &routes)
    }

    #[test]
    fn an_interface_with_the_addresses_is_named() {
        let addresses =
            json!([{"ifname": "docker0", "addr_info": [{"local": "172.30.0.1", "prefixlen": 16}]}]);
        assert_eq!(user(addresses, json!([])).unwrap(), "the interface docker0 (172.30.0.1)");
    }

    #[test]
    fn a_route_to_the_addresses_is_named() {
        let routes = json!([{"dst": "default", "dev": "eth0"}, {"dst": "172.30.8.0/24", "dev": "tun0"}]);
        assert_eq!(user(json!([]), routes).unwrap(), "the route to 172.30.8.0/24 by tun0");
    }

    #[test]
    fn the_clusters_own_link_and_wide_routes_are_no_users() {
        let addresses =
            json!([{"ifname": "sy01234567", "addr_info": [{"local": "172.30.8.5", "prefixlen": 30}]}]);
        let routes = json!([
            {"dst": "172.30.8.4/30", "dev": "sy01234567"},
            {"dst": "172.16.0.0/12", "dev": "tun0"},
            {"type": "local", "dst": "172.30.8.5", "dev": "sy01234567"},
        ]);
        assert_eq!(user(addresses, routes), None);
    }

    #[test]
    fn octal_escapes_of_mount_points_are_read() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
    }
}
