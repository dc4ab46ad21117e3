//! One cluster: brought up, found again, taken down.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::components::Components;
use crate::error::{At, Error, Result};
use crate::image::Image;
use crate::layout::{Layout, Link, MAX_NODES, Node, hex};
use crate::lock::Lock;
use crate::process::Membership;
use crate::programs::Programs;
use crate::progress::Progress;
use crate::{cgroup, config, images, machine, network, node, pki, process, run, sysctl};

/// How a cluster is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name: `demo`, `test`.
    pub name: String,
    /// How many nodes, 1 to [`MAX_NODES`].
    pub nodes: u8,
    /// The checkout it belongs to.
    pub root: PathBuf,
    /// The four addresses of its link with this machine, if not the derived ones.
    pub link: Option<Link>,
}

/// A cluster's places and programs, whether it runs or not.
#[derive(Debug, Clone)]
pub struct Cluster {
    layout: Layout,
    nodes: Vec<Node>,
    programs: Programs,
}

/// What a running cluster left about itself in its run folder, which a reboot empties.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct About {
    name: String,
    state: PathBuf,
    nodes: u8,
    link: String,
    /// A hash of all configuration and programs: another one is another cluster.
    key: String,
}

/// How a cluster stands.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Whether all its processes run and its API server answers.
    pub up: bool,
    /// The version the API server reports, empty if it does not answer.
    pub kubernetes_version: String,
    /// The user's kubeconfig.
    pub kubeconfig: PathBuf,
    /// Its nodes.
    pub nodes: Vec<NodeStatus>,
    /// Its processes and whether each runs.
    pub processes: Vec<ProcessStatus>,
}

/// How one node stands.
#[derive(Debug, Clone, Serialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Whether Kubernetes takes it for Ready.
    pub ready: bool,
}

/// How one process stands.
#[derive(Debug, Clone, Serialize)]
pub struct ProcessStatus {
    /// Its name.
    pub name: String,
    /// Its process id, if it runs.
    pub pid: Option<u32>,
    /// Its log.
    pub log: PathBuf,
}

impl Cluster {
    /// The cluster these options describe. Nothing is looked at or changed.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a wrong name or number of nodes, [`Error::Missing`] without a home.
    pub fn new(options: &Options) -> Result<Self> {
        if !(1..=MAX_NODES).contains(&options.nodes) {
            return Err(Error::Invalid(format!(
                "a cluster has 1 to {MAX_NODES} nodes, not {}",
                options.nodes
            )));
        }
        let layout = Layout::new(&options.root, &options.name, options.link)?;
        let nodes = layout.nodes(options.nodes);
        Ok(Cluster { layout, nodes, programs: Programs::cached()? })
    }

    /// The running cluster `name` of the checkout `root`.
    ///
    /// # Errors
    /// [`Error::NotUp`] with `hint`, the command that starts it, if it does not run.
    pub fn attach(root: &Path, name: &str, hint: &str) -> Result<Self> {
        let layout = Layout::new(root, name, None)?;
        let about = read_about(&layout).filter(|_| layout.kubeconfig().is_file());
        let Some(about) = about else {
            return Err(Error::NotUp { name: name.into(), root: root.into(), hint: hint.into() });
        };
        let link = Some(Link::parse(&about.link)?);
        let root = root.to_path_buf();
        Cluster::new(&Options { name: name.into(), nodes: about.nodes, root, link })
    }

    /// Where the cluster's things are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Its nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of that name.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming those there are.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
            Error::Invalid(format!("no node is named `{name}`; there are {}", names.join(", ")))
        })
    }

    /// The user's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.layout.kubeconfig()
    }

    /// The programs it runs, and kubectl and helm.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// `kubectl` for this cluster.
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(self.programs.path("kubectl"));
        command.env("KUBECONFIG", self.kubeconfig());
        command
    }

    /// `helm` for this cluster.
    pub fn helm(&self) -> Command {
        let mut command = Command::new(self.programs.path("helm"));
        command.env("KUBECONFIG", self.kubeconfig());
        command
    }

    pub(crate) fn components(&self) -> Components<'_> {
        Components { layout: &self.layout, programs: &self.programs }
    }

    /// Brings the cluster up with all its nodes Ready: packages and programs that are missing are
    /// installed and built, what an interrupted run left is mended or removed, what runs is kept.
    ///
    /// # Errors
    /// [`Error::Step`] naming the step, the reason and the log. What was started stays, to be looked
    /// at; the next `up` or `down` takes it on.
    pub fn up(&self, progress: &Progress) -> Result<()> {
        progress.step("Machine: root, Go, packages", None, machine::ensure)?;
        progress.step("Addresses", None, |_| self.check_addresses())?;
        self.programs.ensure(progress)?;
        let _lock = self.lock()?;
        self.clear_if_other(progress)?;
        let log = |name: &str| Some(self.layout.log(name));
        let base = progress.step("Base images", None, |_| images::base(&self.programs, &self.layout))?;
        progress.step("Network namespaces and cgroups", None, |_| {
            network::ensure(&self.layout, &self.nodes)?;
            self.write_about()?;
            sysctl::remember()?;
            cgroup::ensure(&self.layout, &self.nodes)
        })?;
        progress.step("Certificates", None, |_| pki::ensure(&self.layout, &self.nodes))?;
        progress.step("Control plane", log("apiserver"), |_| self.start_control_plane())?;
        progress.step("Nodes", log("kubelet-node1"), |_| self.start_nodes(&base))?;
        progress.step("DNS and storage", log("local-path-provisioner"), |_| self.start_add_ons())?;
        progress.step("Nodes Ready", log("kubelet-node1"), |step| self.wait_ready(|text| step.at(text)))
    }

    /// Fails if this machine's addresses for the cluster are in use by anything else.
    ///
    /// # Errors
    /// [`Error::AddressesInUse`] naming who uses them.
    pub fn check_addresses(&self) -> Result<()> {
        network::check_free(&self.layout)
    }

    /// Takes the cluster down: no process, mount, link, namespace, cgroup or rule of it is left. Its
    /// logs stay until the next `up`.
    ///
    /// # Errors
    /// [`Error::Step`] naming what could not be removed.
    pub fn down(&self, progress: &Progress) -> Result<()> {
        machine::check_root()?;
        let _lock = self.lock()?;
        self.clear(progress)
    }

    /// How the cluster stands.
    ///
    /// # Errors
    /// If the system's tables cannot be read.
    pub fn status(&self) -> Result<Status> {
        let mut processes = Vec::new();
        for process in self.components().all(&self.nodes) {
            let pid = process.running()?.first().copied();
            processes.push(ProcessStatus { log: self.layout.log(&process.name), name: process.name, pid });
        }
        let version =
            if processes.iter().any(|process| process.pid.is_some()) { self.version() } else { None };
        let ready = if version.is_some() { self.ready_nodes() } else { Vec::new() };
        let nodes = self
            .nodes
            .iter()
            .map(|node| NodeStatus { name: node.name.clone(), ready: ready.contains(&node.name) })
            .collect();
        Ok(Status {
            name: self.layout.name.clone(),
            up: version.is_some() && processes.iter().all(|process| process.pid.is_some()),
            kubernetes_version: version.unwrap_or_default(),
            kubeconfig: self.kubeconfig(),
            nodes,
            processes,
        })
    }

    /// Loads an image archive on every node.
    ///
    /// # Errors
    /// If a node's runtime refuses it.
    pub fn load_archive(&self, archive: &Path) -> Result<()> {
        let archive = fs::canonicalize(archive).at("read", archive)?;
        self.on_nodes(|node| node::import(&self.components(), node, &archive))
    }

    /// Loads images on every node that does not have them.
    ///
    /// # Errors
    /// If a node's runtime refuses one.
    pub fn load_images(&self, images: &[Image]) -> Result<()> {
        self.on_nodes(|node| node::load(&self.components(), node, images))
    }

    pub(crate) fn start_control_plane(&self) -> Result<()> {
        let components = self.components();
        components.etcd().ensure(&self.layout)?;
        let api_server = components.api_server();
        api_server.ensure(&self.layout)?;
        let deadline = Instant::now() + Duration::from_secs(120);
        while !run::succeeds(self.kubectl().args(["get", "--raw", "/readyz", "--request-timeout=5s"])) {
            components.etcd().check(&self.layout)?;
            api_server.check(&self.layout)?;
            if Instant::now() > deadline {
                return Err(Error::Timeout {
                    what: "the API server to answer".into(),
                    seconds: 120,
                    state: "it runs but is not ready".into(),
                });
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        for process in components.controllers() {
            process.ensure(&self.layout)?;
        }
        Ok(())
    }

    fn start_nodes(&self, base: &[Image]) -> Result<()> {
        let components = self.components();
        self.on_nodes(|node| {
            node::write_files(&components, node)?;
            node::start(&components, node, base)
        })
    }

    fn start_add_ons(&self) -> Result<()> {
        let file = self.layout.state.join("local-path.json");
        self.link_tools()?;
        fs::write(&file, config::local_path(&self.nodes).to_string()).at("write", &file)?;
        for manifest in [include_str!("../manifests/coredns.yaml"), include_str!("../manifests/storage.yaml")]
        {
            let mut command = self.kubectl();
            command.args([
                "apply",
                "--server-side",
                "--force-conflicts",
                "--field-manager=synod-cluster",
                "-f",
                "-",
            ]);
            run::output_with_input(&mut command, manifest.as_bytes())?;
        }
        self.components().provisioner().ensure(&self.layout).map(drop)
    }

    /// `bin` in the cluster's folder: what a person puts into the PATH.
    fn link_tools(&self) -> Result<()> {
        for program in ["kubectl", "helm", "etcdctl"] {
            self.link_tool(program, &self.programs.path(program))?;
        }
        Ok(())
    }

    /// The folder of links to kubectl, helm and what [`Cluster::link_tool`] added.
    pub fn tools(&self) -> PathBuf {
        self.layout.state.join("bin")
    }

    /// Puts a link to a program into the cluster's `bin`.
    ///
    /// # Errors
    /// If the link cannot be made.
    pub fn link_tool(&self, name: &str, program: &Path) -> Result<()> {
        fs::create_dir_all(self.tools()).at("create", &self.tools())?;
        let link = self.tools().join(name);
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(program, &link).at("create", &link)
    }

    /// Waits until every node is Ready, DNS answers on each, and no process has ended.
    fn wait_ready(&self, at: impl Fn(&str)) -> Result<()> {
        let limit = Duration::from_secs(180);
        let deadline = Instant::now() + limit;
        loop {
            let ready = self.ready_nodes();
            let dns = self.dns_ready();
            if ready.len() == self.nodes.len() && dns >= self.nodes.len() {
                return Ok(());
            }
            for process in self.components().all(&self.nodes) {
                process.check(&self.layout)?;
            }
            let state = format!("{} of {} nodes Ready, DNS on {dns}", ready.len(), self.nodes.len());
            at(&state);
            if Instant::now() > deadline {
                let what = "the nodes to be Ready".into();
                return Err(Error::Timeout { what, seconds: limit.as_secs(), state });
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn version(&self) -> Option<String> {
        let text =
            run::output(self.kubectl().args(["get", "--raw", "/version", "--request-timeout=5s"])).ok()?;
        let value: serde_json::Value = serde_json::from_str(&text).ok()?;
        value["gitVersion"].as_str().map(str::to_owned)
    }

    /// The names of the nodes that are Ready now; none if the API server does not answer.
    pub fn ready_nodes(&self) -> Vec<String> {
        let template = "{range .items[*]}{.metadata.name}{range .status.conditions[?(@.type==\"Ready\")]} \
                        {.status}{end}{\"\\n\"}{end}";
        let mut command = self.kubectl();
        command.args(["get", "nodes", "--request-timeout=5s", "-o", &format!("jsonpath={template}")]);
        let text = run::output(&mut command).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.strip_suffix(" True"))
            .map(|name| name.trim().to_owned())
            .collect()
    }

    fn dns_ready(&self) -> usize {
        let mut command = self.kubectl();
        command.args(["-n", "kube-system", "get", "daemonset", "coredns", "--request-timeout=5s"]);
        command.args(["-o", "jsonpath={.status.numberAvailable}"]);
        run::output(&mut command).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    pub(crate) fn on_nodes(&self, work: impl Fn(&Node) -> Result<()> + Sync) -> Result<()> {
        std::thread::scope(|scope| {
            let running: Vec<_> = self.nodes.iter().map(|node| scope.spawn(|| work(node))).collect();
            running.into_iter().try_for_each(|thread| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
    }

    fn lock(&self) -> Result<Lock> {
        let path = PathBuf::from("/run/lock").join(format!("synod-{}.lock", self.layout.id));
        Lock::take(&path, &format!("cluster `{}`", self.layout.name))
    }

    fn key(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.programs.key());
        for node in &self.nodes {
            hash.update(config::containerd(node, ""));
            hash.update(config::kubelet_file(&self.layout, node).to_string());
            hash.update(config::cni(node).to_string());
        }
        for process in self.components().all(&self.nodes) {
            hash.update(process.args.join("\0"));
        }
        hash.update(self.layout.link.cidr());
        hex(&hash.finalize()[..8])
    }

    fn about(&self) -> About {
        About {
            name: self.layout.name.clone(),
            state: self.layout.state.clone(),
            nodes: self.nodes.len() as u8,
            link: self.layout.link.cidr(),
            key: self.key(),
        }
    }

    fn write_about(&self) -> Result<()> {
        let path = self.layout.run.join("about.json");
        let text = serde_json::to_string_pretty(&self.about()).unwrap_or_default();
        fs::write(&path, text).at("write", &path)
    }

    /// Removes what is there unless it is this very cluster: same programs, same configuration, and
    /// this boot's. Anything else cannot be mended into it.
    fn clear_if_other(&self, progress: &Progress) -> Result<()> {
        let known = read_about(&self.layout).is_some_and(|about| about == self.about());
        let certified = self.layout.pki().is_dir();
        if known && certified {
            return Ok(());
        }
        if self.layout.run.exists() || self.layout.state.exists() {
            self.clear(progress)?;
            let logs = self.layout.state.join("log");
            let _ = fs::remove_dir_all(&logs);
        }
        fs::create_dir_all(&self.layout.state).at("create", &self.layout.state)
    }

    fn clear(&self, progress: &Progress) -> Result<()> {
        let name = format!("Remove cluster {}", self.layout.name);
        progress.step(&name, None, |_| {
            Membership::of_cluster(&self.layout).kill()?;
            network::remove(&self.layout)?;
            cgroup::remove(&self.layout)?;
            for name in process::names_in(&self.layout.state) {
                if name != "log" {
                    remove_all(&self.layout.state.join(name))?;
                }
            }
            remove_all(&self.layout.run)?;
            if !others_run() {
                sysctl::restore()?;
                network::remove_covered();
            }
            Ok(())
        })
    }
}

/// Whether any cluster of any checkout runs on this machine.
fn others_run() -> bool {
    process::names_in(Path::new("/run"))
        .iter()
        .any(|name| name.starts_with("synod-") && Path::new("/run").join(name).join("about.json").is_file())
}

fn read_about(layout: &Layout) -> Option<About> {
    serde_json::from_slice(&fs::read(layout.run.join("about.json")).ok()?).ok()
}

fn remove_all(path: &Path) -> Result<()> {
    let result =
        if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at("remove", path),
        _ => Ok(()),
    }
}
