//! Faults on demand, and ways to look on from outside while they last.
//!
//! | fault | what is cut | how to look on |
//! |---|---|---|
//! | [`Cluster::node_cut`] | everything between the node and the rest | [`Cluster::exec_on_node`], [`Cluster::container_logs`] |
//! | [`Cluster::pods_cut`] | the node's pods from everything outside the node | kubectl |
//! | [`Cluster::pod_isolate`] | one pod from everything but its own node | kubectl |
//! | [`Cluster::container_kill`] | one container's process, by SIGKILL | kubectl |
//! | [`Cluster::node_stop`] | the machine loses power | - |
//!
//! Every fault may be made twice and healed twice.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::cluster::Cluster;
use crate::error::{At, Error, Result};
use crate::layout::Node;
use crate::process::{self, Membership};
use crate::{network, node, run};

/// A running container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// The node it runs on.
    pub node: String,
    /// containerd's id.
    pub id: String,
    /// Its first process, as this machine numbers it.
    pub pid: u32,
}

/// A program about to run in a container: see [`Cluster::exec_on_node`].
#[derive(Debug)]
pub struct Exec {
    /// Runs it; ends when it ends, with its status.
    pub command: Command,
    /// Sends it SIGTERM. Ending `command` instead leaves the program running in the container.
    pub terminate: Command,
}

/// Numbers this process's programs in containers.
static EXECS: AtomicU64 = AtomicU64::new(0);

/// What is looked for in a pod.
enum Part<'a> {
    Named(&'a str),
    Sandbox,
}

impl Cluster {
    /// Cuts a node off the network: API server, other nodes and their pods. What runs on it goes on.
    ///
    /// # Errors
    /// If there is no such node or its link cannot be set.
    pub fn node_cut(&self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        network::do_ip(Some(&self.layout().netns()), &["link", "set", &node.port, "down"])
    }

    /// Puts a node that was cut back on the network.
    ///
    /// # Errors
    /// As [`Cluster::node_cut`].
    pub fn node_heal(&self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        network::do_ip(Some(&self.layout().netns()), &["link", "set", &node.port, "up"])
    }

    /// Cuts a node's pods off everything outside the node; the node itself stays in the cluster.
    ///
    /// # Errors
    /// If there is no such node or a rule cannot be set.
    pub fn pods_cut(&self, name: &str) -> Result<()> {
        self.pod_rules(name, true)
    }

    /// Heals [`Cluster::pods_cut`].
    ///
    /// # Errors
    /// As [`Cluster::pods_cut`].
    pub fn pods_heal(&self, name: &str) -> Result<()> {
        self.pod_rules(name, false)
    }

    fn pod_rules(&self, name: &str, cut: bool) -> Result<()> {
        let node = self.node(name)?;
        let target = format!("--net=/run/netns/{}", node.netns);
        rule(&target, cut, &["FORWARD", "-i", "eth0", "-d", &node.pods])?;
        rule(&target, cut, &["FORWARD", "-o", "eth0", "-s", &node.pods])
    }

    /// Cuts one pod off everything but its own node, whose kubelet goes on probing it. `kubectl exec`,
    /// `logs` and `port-forward` go on working: they do not use the pod's network.
    ///
    /// # Errors
    /// If the pod does not run or a rule cannot be set.
    pub fn pod_isolate(&self, namespace: &str, pod: &str) -> Result<()> {
        self.isolation(namespace, pod, true)
    }

    /// Heals [`Cluster::pod_isolate`].
    ///
    /// # Errors
    /// As [`Cluster::pod_isolate`].
    pub fn pod_rejoin(&self, namespace: &str, pod: &str) -> Result<()> {
        self.isolation(namespace, pod, false)
    }

    fn isolation(&self, namespace: &str, pod: &str, cut: bool) -> Result<()> {
        let sandbox = self.find(namespace, pod, &Part::Sandbox)?;
        let gateway = self.node(&sandbox.node)?.gateway.to_string();
        let target = format!("--net=/proc/{}/ns/net", sandbox.pid);
        rule(&target, cut, &["INPUT", "-i", "eth0", "!", "-s", &gateway])?;
        rule(&target, cut, &["OUTPUT", "-o", "eth0", "!", "-d", &gateway])
    }

    /// Kills a node's kubelet, runtime and containers at once and cuts its link, as a machine that
    /// loses power. Its disks stay.
    ///
    /// # Errors
    /// If there is no such node or a process cannot be ended.
    pub fn node_stop(&self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        self.node_cut(name)?;
        Membership::of_node(node).kill()?;
        network::remove_mount_namespace(node)?;
        match fs::remove_dir_all(&node.run) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at("remove", &node.run),
            _ => Ok(()),
        }
    }

    /// Starts a node that was stopped. Returns before it is Ready.
    ///
    /// # Errors
    /// If a process does not start.
    pub fn node_start(&self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        network::ensure_mount_namespace(node)?;
        node::write_files(&self.components(), node)?;
        node::start(&self.components(), node, &[])?;
        self.node_heal(name)
    }

    /// Ends a node's kubelet alone; containers go on. [`Cluster::kubelet_start`] brings it back.
    ///
    /// # Errors
    /// If there is no such node or the process cannot be ended.
    pub fn kubelet_stop(&self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        self.components().kubelet(node).kill()
    }

    /// Starts a node's kubelet.
    ///
    /// # Errors
    /// If it does not start.
    pub fn kubelet_start(&self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        self.components().kubelet(node).ensure(self.layout()).map(drop)
    }

    /// Ends the API server. Everything else goes on.
    ///
    /// # Errors
    /// If the process cannot be ended.
    pub fn api_server_stop(&self) -> Result<()> {
        self.components().api_server().kill()
    }

    /// Starts the API server and waits until it answers.
    ///
    /// # Errors
    /// If it does not start or answer.
    pub fn api_server_start(&self) -> Result<()> {
        self.start_control_plane()
    }

    /// Waits until Kubernetes takes a node for Ready (or, if not `ready`, for not Ready).
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub fn wait_node(&self, name: &str, ready: bool, limit: Duration) -> Result<()> {
        let what = format!("{name} to be {}", if ready { "Ready" } else { "not Ready" });
        process::wait_until(limit, &what, || self.ready_nodes().iter().any(|node| node == name) == ready)
    }

    /// A running container, asked of the nodes themselves: this works while a node is cut off.
    ///
    /// # Errors
    /// [`Error::Invalid`] if no node runs it.
    pub fn container(&self, namespace: &str, pod: &str, container: &str) -> Result<Container> {
        self.find(namespace, pod, &Part::Named(container))
    }

    /// Kills a container's first process with SIGKILL. kubelet starts it again.
    ///
    /// # Errors
    /// If it does not run.
    pub fn container_kill(&self, namespace: &str, pod: &str, container: &str) -> Result<Container> {
        let found = self.container(namespace, pod, container)?;
        let node = Membership::of_node(self.node(&found.node)?);
        if process::kill_if(found.pid, || node.has(found.pid)) {
            return Ok(found);
        }
        Err(Error::Invalid(format!("process {} of container {container} of {pod} has ended", found.pid)))
    }

    /// Prepares running `args` in a running container through the node's own socket, with streams on
    /// this machine: it starts, and goes on, while the node is cut off the network.
    ///
    /// # Errors
    /// If the container does not run.
    pub fn exec_on_node(&self, namespace: &str, pod: &str, container: &str, args: &[&str]) -> Result<Exec> {
        let found = self.container(namespace, pod, container)?;
        let node = self.node(&found.node)?;
        let fifos = node.run.join("fifo");
        fs::create_dir_all(&fifos).at("create", &fifos)?;
        let id = format!("synod-{}-{}", std::process::id(), EXECS.fetch_add(1, Ordering::Relaxed));
        let ctr = || node::ctr(&self.components(), node);
        let mut command = ctr();
        command.args(["tasks", "exec", "--exec-id", &id, "--fifo-dir"]).arg(fifos).arg(&found.id).args(args);
        let mut terminate = ctr();
        terminate.args(["tasks", "kill", "--signal", "SIGTERM", "--exec-id", &id, &found.id]);
        Ok(Exec { command, terminate })
    }

    /// The files a container logs to, on this machine's disk, the oldest first: one for each time it
    /// started. Each line carries the time, the stream and `F` before the text.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn container_logs(&self, namespace: &str, pod: &str, container: &str) -> Result<Vec<PathBuf>> {
        let prefix = format!("{namespace}_{pod}_");
        let mut files = Vec::new();
        for node in self.nodes() {
            let pods = node.state.join("pods");
            for folder in process::names_in(&pods).iter().filter(|name| name.starts_with(&prefix)) {
                let folder = pods.join(folder).join(container);
                for name in process::names_in(&folder) {
                    let number: Option<u32> = name.strip_suffix(".log").and_then(|n| n.parse().ok());
                    files.extend(number.map(|number| (number, folder.join(name))));
                }
            }
        }
        files.sort();
        Ok(files.into_iter().map(|(_, file)| file).collect())
    }

    fn find(&self, namespace: &str, pod: &str, part: &Part<'_>) -> Result<Container> {
        let filter = filter(namespace, pod, part);
        for node in self.nodes() {
            if let Some(found) = self.find_on(node, &filter)? {
                return Ok(found);
            }
        }
        let what = match part {
            Part::Named(container) => format!("container `{container}` of pod"),
            Part::Sandbox => "pod".to_owned(),
        };
        Err(Error::Invalid(format!("no node runs {what} {namespace}/{pod}")))
    }

    fn find_on(&self, node: &Node, filter: &str) -> Result<Option<Container>> {
        if !node.socket().exists() {
            return Ok(None);
        }
        let ctr = |args: &[&str]| run::output(node::ctr(&self.components(), node).args(args));
        let ids = ctr(&["containers", "ls", "-q", filter])?;
        if ids.trim().is_empty() {
            return Ok(None);
        }
        let tasks = ctr(&["tasks", "ls"])?;
        Ok(running(&ids, &tasks).map(|(id, pid)| Container { node: node.name.clone(), id, pid }))
    }
}

/// containerd's filter for one container of one pod, by the labels that kubelet gives.
fn filter(namespace: &str, pod: &str, part: &Part<'_>) -> String {
    let kind = match part {
        Part::Named(container) => format!(
            "labels.\"io.cri-containerd.kind\"==container,labels.\"io.kubernetes.container.name\"==\"{container}\""
        ),
        Part::Sandbox => "labels.\"io.cri-containerd.kind\"==sandbox".to_owned(),
    };
    format!(
        "labels.\"io.kubernetes.pod.namespace\"==\"{namespace}\",labels.\"io.kubernetes.pod.name\"==\"{pod}\",{kind}"
    )
}

/// The first of `ids` that the task table (`TASK PID STATUS`) shows running.
fn running(ids: &str, tasks: &str) -> Option<(String, u32)> {
    tasks.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let (id, pid, status) = (fields.next()?, fields.next()?, fields.next()?);
        let wanted = status == "RUNNING" && ids.lines().any(|wanted| wanted == id);
        wanted.then(|| pid.parse().ok().map(|pid| (id.to_owned(), pid)))?
    })
}

/// Adds (at the top) or removes the rule that drops what `matching` says, in the namespace `target`.
fn rule(target: &str, add: bool, matching: &[&str]) -> Result<()> {
    let iptables = |verb: &str| {
        let mut command = Command::new("nsenter");
        command.args([target, "--", "iptables", "-w", verb]).args(matching).args(["-j", "DROP"]);
        command
    };
    let present = run::succeeds(&mut iptables("-C"));
    match (present, add) {
        (false, true) => run::output(&mut iptables("-I")).map(drop),
        (true, false) => run::output(&mut iptables("-D")).map(drop),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_running_task_is_found() {
        let tasks = "TASK    PID    STATUS\naaa     10     STOPPED\nbbb     20     RUNNING\nccc 30 RUNNING\n";
        assert_eq!(running("aaa\nbbb\n", tasks), Some(("bbb".into(), 20)));
        assert_eq!(running("aaa\n", tasks), None);
        assert_eq!(running("", tasks), None);
    }

    #[test]
    fn a_containers_filter_is_no_sandboxs() {
        let named = filter("ns", "pod-0", &Part::Named("synod"));
        assert!(named.contains("\"io.kubernetes.container.name\"==\"synod\""));
        assert!(!filter("ns", "pod-0", &Part::Sandbox).contains("container.name"));
    }
}
