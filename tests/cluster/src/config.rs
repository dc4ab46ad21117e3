//! The configuration of every component, rendered from the layout. Pure.
//!
//! Where a format allows it the text is JSON (which YAML readers take), so that no path needs
//! escaping rules of ours.

use std::path::Path;

use serde_json::{Value, json};

use crate::layout::{API_ADDRESS, DNS_SERVICE, Layout, Node, POD_RANGE, SERVICE_RANGE};

/// The names of the images that every node needs before anything else runs.
pub const PAUSE_IMAGE: &str = "localhost/pause:1";
/// CoreDNS.
pub const COREDNS_IMAGE: &str = "localhost/coredns:1";
/// For the storage provisioner's helper pods, and for whoever wants a shell in a test.
pub const BUSYBOX_IMAGE: &str = "localhost/busybox:1";

/// Where Debian puts the CNI plugins.
pub(crate) const CNI_PLUGINS: &str = "/usr/lib/cni";

/// etcd's arguments.
pub(crate) fn etcd(layout: &Layout) -> Vec<String> {
    vec![
        flag("data-dir", layout.state.join("etcd").display()),
        flag("listen-client-urls", "http://127.0.0.1:2379"),
        flag("advertise-client-urls", "http://127.0.0.1:2379"),
        flag("listen-peer-urls", "http://127.0.0.1:2380"),
        flag("initial-advertise-peer-urls", "http://127.0.0.1:2380"),
        flag("initial-cluster", "default=http://127.0.0.1:2380"),
        // A cluster that a reboot takes with it anyway needs no synced writes, and Synod's own
        // members on the same disk should not wait for them.
        "--unsafe-no-fsync".into(),
    ]
}

/// The API server's arguments.
pub(crate) fn api_server(layout: &Layout) -> Vec<String> {
    let pki = |file: &str| layout.pki().join(file).display().to_string();
    vec![
        flag("etcd-servers", "http://127.0.0.1:2379"),
        flag("secure-port", 6443),
        flag("bind-address", "0.0.0.0"),
        flag("advertise-address", API_ADDRESS),
        flag("service-cluster-ip-range", SERVICE_RANGE),
        flag("client-ca-file", pki("ca.crt")),
        flag("tls-cert-file", pki("apiserver.crt")),
        flag("tls-private-key-file", pki("apiserver.key")),
        flag("kubelet-client-certificate", pki("admin.crt")),
        flag("kubelet-client-key", pki("admin.key")),
        flag("kubelet-certificate-authority", pki("ca.crt")),
        flag("kubelet-preferred-address-types", "InternalIP"),
        flag("service-account-issuer", "https://kubernetes.default.svc.cluster.local"),
        flag("service-account-key-file", pki("accounts.pub")),
        flag("service-account-signing-key-file", pki("accounts.key")),
        flag("authorization-mode", "Node,RBAC"),
        // Pod Security is on by default.
        flag("enable-admission-plugins", "NodeRestriction"),
        // The storage provisioner and tests of Kubernetes itself may; Synod's namespaces may not.
        flag("allow-privileged", true),
    ]
}

/// The controller manager's arguments.
pub(crate) fn controller_manager(layout: &Layout) -> Vec<String> {
    let pki = |file: &str| layout.pki().join(file).display().to_string();
    let mut args = as_client(layout, "controller-manager");
    args.extend([
        flag("bind-address", "127.0.0.1"),
        flag("use-service-account-credentials", true),
        flag("service-account-private-key-file", pki("accounts.key")),
        flag("root-ca-file", pki("ca.crt")),
        flag("cluster-signing-cert-file", pki("ca.crt")),
        flag("cluster-signing-key-file", pki("ca.key")),
        flag("allocate-node-cidrs", false),
        flag("leader-elect", false),
        // A node cut off for 30 s is NotReady for about 10 s; pods tolerate that for 300 s.
        flag("node-monitor-grace-period", "20s"),
    ]);
    args
}

/// The scheduler's arguments.
pub(crate) fn scheduler(layout: &Layout) -> Vec<String> {
    let mut args = as_client(layout, "scheduler");
    args.extend([flag("bind-address", "127.0.0.1"), flag("leader-elect", false)]);
    args
}

/// kube-proxy's arguments.
pub(crate) fn proxy(layout: &Layout, node: &Node) -> Vec<String> {
    vec![
        flag("kubeconfig", layout.pki().join("proxy.kubeconfig").display()),
        flag("hostname-override", &node.name),
        flag("proxy-mode", "iptables"),
        flag("cluster-cidr", POD_RANGE),
        // The table's size belongs to the whole machine; leave it alone.
        flag("conntrack-max-per-core", 0),
    ]
}

/// kubelet's arguments.
pub(crate) fn kubelet(layout: &Layout, node: &Node) -> Vec<String> {
    vec![
        flag("config", node.state.join("kubelet.json").display()),
        flag("kubeconfig", layout.pki().join(format!("{}.kubeconfig", node.name)).display()),
        flag("hostname-override", &node.name),
        flag("node-ip", node.address),
        flag("cert-dir", node.state.join("kubelet-pki").display()),
        flag("v", 1),
    ]
}

/// kubelet's configuration file.
pub(crate) fn kubelet_file(layout: &Layout, node: &Node) -> Value {
    let pki = |file: String| layout.pki().join(file).display().to_string();
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.address,
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": pki("ca.crt".into())},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": pki(format!("{}.crt", node.name)),
        "tlsPrivateKeyFile": pki(format!("{}.key", node.name)),
        "containerRuntimeEndpoint": format!("unix://{}", node.socket().display()),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": node.cgroup,
        "failCgroupV1": false,
        "failSwapOn": false,
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": "cluster.local",
        // Pods that use the node's resolver would ask this machine's; there is none for them.
        "resolvConf": "/dev/null",
        "podLogsDir": node.state.join("pods").display().to_string(),
        "volumePluginDir": node.state.join("volume-plugins").display().to_string(),
        "nodeStatusUpdateFrequency": "5s",
        // How soon a changed Secret is in a running pod: a minute by default, which tests would wait for.
        "syncFrequency": "10s",
        "nodeLeaseDurationSeconds": 20,
        "serializeImagePulls": false,
        // All nodes share one disk with everything else on this machine: nothing is evicted, and no
        // image collected, because of what others wrote.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
    })
}

/// The pods' network on one node: a bridge, with the node as gateway, and no masquerading, so that
/// peers see each other's own addresses.
pub(crate) fn cni(node: &Node) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "ipMasq": false,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": node.state.join("ipam").display().to_string(),
                    "ranges": [[{"subnet": node.pods}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

/// containerd's configuration file. `snapshotter` is `overlayfs`, or `native` where the state folder
/// is itself on an overlay.
pub(crate) fn containerd(node: &Node, snapshotter: &str) -> String {
    let state = |part: &str| quoted(&node.state.join(part));
    let run = |part: &str| quoted(&node.run.join(part));
    format!(
        r#"version = 3
root = {root}
state = {state}
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri"]

[grpc]
address = {socket}

[ttrpc]
address = {ttrpc}

[plugins.'io.containerd.shim.v1.manager']
socket_dir = {shims}

[plugins.'io.containerd.cri.v1.images']
snapshotter = "{snapshotter}"

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{PAUSE_IMAGE}"

[plugins.'io.containerd.cri.v1.runtime']
# Pods' namespaces are mounted in this node's own mount namespace and end with it.
netns_mounts_under_state_dir = true
restrict_oom_score_adj = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["{CNI_PLUGINS}"]
conf_dir = {cni}

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
SystemdCgroup = false
Root = {runc}
"#,
        root = state("containerd"),
        state = run("state"),
        socket = run("containerd.sock"),
        ttrpc = run("containerd.sock.ttrpc"),
        shims = run("s"),
        cni = state("cni"),
        runc = run("runc"),
    )
}

/// The storage provisioner's configuration: a folder of volumes for each node.
pub(crate) fn local_path(nodes: &[Node]) -> Value {
    let map: Vec<Value> = nodes
        .iter()
        .map(|node| json!({"node": node.name, "paths": [node.state.join("volumes").display().to_string()]}))
        .collect();
    json!({ "nodePathMap": map })
}

/// The storage provisioner's arguments.
pub(crate) fn local_path_provisioner(layout: &Layout) -> Vec<String> {
    vec![
        "start".into(),
        "--kubeconfig".into(),
        layout.pki().join("admin.kubeconfig").display().to_string(),
        "--config".into(),
        layout.state.join("local-path.json").display().to_string(),
        "--namespace".into(),
        "local-path-storage".into(),
        "--service-account-name".into(),
        "default".into(),
        "--helper-image".into(),
        BUSYBOX_IMAGE.into(),
    ]
}

fn as_client(layout: &Layout, file: &str) -> Vec<String> {
    let config = layout.pki().join(format!("{file}.kubeconfig"));
    ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"]
        .map(|name| flag(name, config.display()))
        .to_vec()
}

fn flag(name: &str, value: impl std::fmt::Display) -> String {
    format!("--{name}={value}")
}

/// A TOML basic string.
fn quoted(path: &Path) -> String {
    let mut text = String::from("\"");
    for c in path.display().to_string().chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            c if c.is_control() => text.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        Layout::new(Path::new("/home/a \"b\""), "demo", None).unwrap()
    }

    #[test]
    fn containerd_keeps_to_its_own_folders() {
        let node = layout().node(2);
        let text = containerd(&node, "overlayfs");
        for line in text.lines().filter(|line| line.contains("= \"/")) {
            let path = line.split_once("= ").unwrap().1;
            let own = path.starts_with(&format!("\"{}/", node.run.display()))
                || path.starts_with(&format!("{}/", quoted(&node.state).trim_end_matches('"')));
            assert!(own, "{line}");
        }
        assert!(text.contains(r#"\"b\""#), "a quote in a path must be escaped");
    }

    #[test]
    fn each_node_has_its_own_pods_and_cgroup() {
        let layout = layout();
        let (one, two) = (layout.node(1), layout.node(2));
        assert_ne!(cni(&one)["plugins"][0]["ipam"], cni(&two)["plugins"][0]["ipam"]);
        assert_ne!(kubelet_file(&layout, &one)["cgroupRoot"], kubelet_file(&layout, &two)["cgroupRoot"]);
    }

    #[test]
    fn volumes_are_kept_apart_by_node() {
        let layout = layout();
        let config = local_path(&layout.nodes(3));
        let map = config["nodePathMap"].as_array().unwrap();
        assert_eq!(map.len(), 3);
        assert_ne!(map[0]["paths"], map[1]["paths"]);
    }

    #[test]
    fn the_api_server_listens_where_the_kubeconfigs_say() {
        let args = api_server(&layout());
        assert!(args.contains(&format!("--advertise-address={API_ADDRESS}")));
        assert!(args.contains(&"--secure-port=6443".to_owned()));
    }
}
