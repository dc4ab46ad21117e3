//! Where a cluster's files, namespaces and addresses are. Pure: derived from the checkout's path and
//! the cluster's name, so that two clusters, or two checkouts', stand side by side.
//!
//! ```text
//!  this machine          namespace synod-ID                    namespace synod-ID-n1
//!  syID 172.30.x.1/30 --- uplink 172.30.x.2/30
//!                         br0 10.250.0.1/24 ---- n1 === eth0 10.250.0.11/24
//!                         etcd, API server, ...          containerd, kubelet, kube-proxy
//!                                                        cni0 10.244.1.1/24: pods
//! ```
//! Only the first column is on the machine itself: one link with one address.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Most nodes a cluster can have: a limit of this tool's address plan, not of Kubernetes.
pub const MAX_NODES: u8 = 20;
/// The API server's address inside the cluster.
pub(crate) const API_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 250, 0, 1);
/// The range of Services.
pub(crate) const SERVICE_RANGE: &str = "10.96.0.0/16";
/// The first address of [`SERVICE_RANGE`]: the Service `kubernetes`.
pub(crate) const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// The address of the cluster's DNS service.
pub(crate) const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The range of all pods.
pub(crate) const POD_RANGE: &str = "10.244.0.0/16";

/// The names and places of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The cluster's name.
    pub name: String,
    /// The checkout it belongs to.
    pub root: PathBuf,
    /// Eight hexadecimal digits from the checkout's path and the name.
    pub id: String,
    /// Data, logs, volumes, certificates: `target/cluster/NAME` of the checkout.
    pub state: PathBuf,
    /// Sockets and pins, on short paths: a socket's path may have 107 bytes at most.
    pub run: PathBuf,
    /// The link between this machine and the cluster.
    pub link: Link,
}

/// Four addresses: the network, this machine, the cluster, the broadcast address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    base: Ipv4Addr,
}

impl Link {
    /// Parses `A.B.C.D/30`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is no range of four addresses, or one that the cluster uses inside.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || {
            Error::Invalid(format!(
                "`{text}` is no range of four addresses such as 10.255.255.0/30 outside \
                 10.96.0.0/16, 10.244.0.0/16 and 10.250.0.0/24, which the cluster uses inside"
            ))
        };
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let base: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let [a, b, c, d] = base.octets();
        let inside = a == 10 && (b == 96 || b == 244 || (b == 250 && c == 0));
        if prefix != "30" || d % 4 != 0 || inside || base.is_loopback() {
            return Err(wrong());
        }
        Ok(Link { base })
    }

    /// This machine's address on the link.
    pub fn host(&self) -> Ipv4Addr {
        self.plus(1)
    }

    /// The cluster's address on the link: its API server, for the user's kubectl.
    pub fn cluster(&self) -> Ipv4Addr {
        self.plus(2)
    }

    /// The range in CIDR notation.
    pub fn cidr(&self) -> String {
        format!("{}/30", self.base)
    }

    /// Whether the range `address/prefix` has addresses in common with this link.
    pub fn overlaps(&self, address: Ipv4Addr, prefix: u8) -> bool {
        let prefix = prefix.min(30);
        let mask = if prefix == 0 { 0 } else { u32::MAX << (32 - u32::from(prefix)) };
        u32::from(address) & mask == u32::from(self.base) & mask
    }

    fn plus(&self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base) + n)
    }
}

/// The names and addresses of one node, numbered from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// 1 for the first.
    pub number: u8,
    /// The node's name in Kubernetes: `node1`.
    pub name: String,
    /// Its network namespace.
    pub netns: String,
    /// The file that pins its mount namespace.
    pub mountns: PathBuf,
    /// Its end of the link, in the outer namespace.
    pub port: String,
    /// Its address in the cluster.
    pub address: Ipv4Addr,
    /// The range of its pods.
    pub pods: String,
    /// The first address of that range: the pods' gateway, which is the node itself.
    pub gateway: Ipv4Addr,
    /// Its data on disk.
    pub state: PathBuf,
    /// Its sockets.
    pub run: PathBuf,
    /// The cgroup of its pods, from the root of each hierarchy.
    pub cgroup: String,
}

impl Node {
    /// containerd's socket.
    pub fn socket(&self) -> PathBuf {
        self.run.join("containerd.sock")
    }
}

impl Layout {
    /// The layout of the cluster `name` of the checkout `root`. `link` overrides the derived range.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name that cannot be part of a file's or a link's name.
    pub fn new(root: &Path, name: &str, link: Option<Link>) -> Result<Self> {
        check_name(name)?;
        let state = root.join("target").join("cluster").join(name);
        let digest = Sha256::digest(state.as_os_str().as_encoded_bytes());
        let id = hex(&digest[..4]);
        let derived = Link { base: Ipv4Addr::new(172, 30, digest[4], digest[5] & 0xfc) };
        Ok(Layout {
            name: name.to_owned(),
            root: root.to_path_buf(),
            run: PathBuf::from(format!("/run/synod-{id}")),
            id,
            state,
            link: link.unwrap_or(derived),
        })
    }

    /// The network namespace of the control plane and the bridge.
    pub fn netns(&self) -> String {
        format!("synod-{}", self.id)
    }

    /// The link on this machine (at most 15 characters, as the kernel wants).
    pub fn host_link(&self) -> String {
        format!("sy{}", self.id)
    }

    /// The cgroup above all nodes', from the root of each hierarchy.
    pub fn cgroup(&self) -> String {
        format!("/synod-{}", self.id)
    }

    /// Node `number`, from 1.
    pub fn node(&self, number: u8) -> Node {
        let name = format!("node{number}");
        Node {
            number,
            netns: format!("synod-{}-n{number}", self.id),
            mountns: self.run.join("mnt").join(&name),
            port: format!("n{number}"),
            address: Ipv4Addr::new(10, 250, 0, 10 + number),
            pods: format!("10.244.{number}.0/24"),
            gateway: Ipv4Addr::new(10, 244, number, 1),
            state: self.state.join(&name),
            run: self.run.join(format!("n{number}")),
            cgroup: format!("/synod-{}/n{number}", self.id),
            name,
        }
    }

    /// Nodes 1 to `count`.
    pub fn nodes(&self, count: u8) -> Vec<Node> {
        (1..=count).map(|number| self.node(number)).collect()
    }

    /// The user's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.join("kubeconfig")
    }

    /// The folder of certificates.
    pub fn pki(&self) -> PathBuf {
        self.state.join("pki")
    }

    /// The log of one process.
    pub fn log(&self, process: &str) -> PathBuf {
        self.state.join("log").join(format!("{process}.log"))
    }
}

/// The checkout around `start`: the nearest folder that holds this crate.
///
/// # Errors
/// [`Error::Invalid`] if `start` is in no checkout.
pub fn find_root(start: &Path) -> Result<PathBuf> {
    start
        .ancestors()
        .find(|folder| folder.join("Cargo.lock").is_file() && folder.join("tests/cluster/programs").is_dir())
        .map(Path::to_path_buf)
        .ok_or_else(|| {
            Error::Invalid(format!(
                "{} is in no checkout of Synod; go into one, or name it with --root",
                start.display()
            ))
        })
}

fn check_name(name: &str) -> Result<()> {
    let ok = (1..=32).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && name.as_bytes()[0].is_ascii_lowercase()
        && !name.ends_with('-');
    if ok {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "`{name}` cannot name a cluster: use at most 32 lower-case letters, digits and `-`, \
         starting with a letter"
    )))
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(root: &str, name: &str) -> Layout {
        Layout::new(Path::new(root), name, None).unwrap()
    }

    #[test]
    fn two_names_and_two_checkouts_share_nothing() {
        let all = [layout("/a", "demo"), layout("/a", "test"), layout("/b", "demo")];
        for (i, one) in all.iter().enumerate() {
            for other in &all[i + 1..] {
                assert_ne!(one.id, other.id);
                assert_ne!(one.link, other.link);
                assert_ne!(one.state, other.state);
                assert_ne!(one.run, other.run);
                assert_ne!(one.netns(), other.netns());
                assert_ne!(one.host_link(), other.host_link());
            }
        }
    }

    #[test]
    fn the_same_place_gives_the_same_layout() {
        assert_eq!(layout("/a", "demo"), layout("/a", "demo"));
    }

    #[test]
    fn names_fit_the_kernels_limits() {
        let layout = layout("/a/very/long/path/to/some/checkout/of/synod", "demo");
        assert!(layout.host_link().len() <= 15);
        for node in layout.nodes(MAX_NODES) {
            assert!(node.port.len() <= 15);
            assert!(node.socket().as_os_str().len() + ".ttrpc".len() <= 107);
            // containerd refuses a longer folder for its shims' sockets.
            assert!(node.run.join("s").as_os_str().len() <= 38);
        }
    }

    #[test]
    fn nodes_share_no_address() {
        let nodes = layout("/a", "demo").nodes(MAX_NODES);
        for (i, one) in nodes.iter().enumerate() {
            assert_ne!(one.address, API_ADDRESS);
            assert!(
                nodes[i + 1..].iter().all(|other| other.address != one.address && other.pods != one.pods)
            );
        }
    }

    #[test]
    fn a_link_has_its_machine_and_its_cluster() {
        let link = Link::parse("10.255.255.4/30").unwrap();
        assert_eq!(link.host().to_string(), "10.255.255.5");
        assert_eq!(link.cluster().to_string(), "10.255.255.6");
        assert_eq!(link.cidr(), "10.255.255.4/30");
    }

    #[test]
    fn a_wrong_link_is_refused() {
        for text in ["10.0.0.0/24", "10.0.0.1/30", "10.244.3.0/30", "10.96.0.0/30", "127.0.0.0/30", "x", ""] {
            assert!(Link::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn overlapping_ranges_are_seen() {
        let link = Link::parse("172.30.8.4/30").unwrap();
        for (address, prefix, overlaps) in [
            ([172, 30, 8, 6], 32, true),
            ([172, 30, 8, 8], 30, false),
            ([172, 30, 0, 0], 16, true),
            ([172, 31, 0, 0], 16, false),
            ([0, 0, 0, 0], 0, true),
        ] {
            assert_eq!(link.overlaps(Ipv4Addr::from(address), prefix), overlaps, "{address:?}/{prefix}");
        }
    }

    #[test]
    fn a_wrong_name_is_refused() {
        for name in ["", "-a", "a-", "A", "a/b", "1a", &"a".repeat(33)] {
            assert!(Layout::new(Path::new("/a"), name, None).is_err(), "{name}");
        }
        for name in ["a", "demo", "test-2"] {
            assert!(Layout::new(Path::new("/a"), name, None).is_ok(), "{name}");
        }
    }

    #[test]
    fn the_checkout_is_found_from_inside_it() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert_eq!(find_root(here).unwrap(), here.parent().unwrap().parent().unwrap());
        assert!(find_root(Path::new("/")).is_err());
    }
}
