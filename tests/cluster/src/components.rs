//! The cluster's processes, in the order they start.

use std::path::PathBuf;

use crate::config;
use crate::layout::{Layout, Node};
use crate::process::Process;
use crate::programs::Programs;

/// Makes the processes of one cluster.
pub(crate) struct Components<'a> {
    /// Where things are.
    pub layout: &'a Layout,
    /// What is run.
    pub programs: &'a Programs,
}

impl Components<'_> {
    /// The store of the control plane.
    pub(crate) fn etcd(&self) -> Process {
        self.outer("etcd", "server", config::etcd(self.layout))
    }

    /// The API server.
    pub(crate) fn api_server(&self) -> Process {
        self.outer("apiserver", "kube-apiserver", config::api_server(self.layout))
    }

    /// What runs beside the API server, in any order.
    pub(crate) fn controllers(&self) -> Vec<Process> {
        vec![
            self.outer(
                "controller-manager",
                "kube-controller-manager",
                config::controller_manager(self.layout),
            ),
            self.outer("scheduler", "kube-scheduler", config::scheduler(self.layout)),
        ]
    }

    /// The storage provisioner.
    pub(crate) fn provisioner(&self) -> Process {
        let args = config::local_path_provisioner(self.layout);
        self.outer("local-path-provisioner", "local-path-provisioner", args)
    }

    /// A node's container runtime.
    pub(crate) fn containerd(&self, node: &Node) -> Process {
        let config = node.state.join("containerd.toml").display().to_string();
        self.inside(node, "containerd", vec!["--config".into(), config])
    }

    /// A node's agent.
    pub(crate) fn kubelet(&self, node: &Node) -> Process {
        self.inside(node, "kubelet", config::kubelet(self.layout, node))
    }

    /// A node's service proxy.
    pub(crate) fn proxy(&self, node: &Node) -> Process {
        self.inside(node, "kube-proxy", config::proxy(self.layout, node))
    }

    /// All of a node's processes but its containers.
    pub(crate) fn of_node(&self, node: &Node) -> Vec<Process> {
        vec![self.containerd(node), self.kubelet(node), self.proxy(node)]
    }

    /// All of the cluster's processes but the containers.
    pub(crate) fn all(&self, nodes: &[Node]) -> Vec<Process> {
        let mut all = vec![self.etcd(), self.api_server()];
        all.extend(self.controllers());
        all.push(self.provisioner());
        all.extend(nodes.iter().flat_map(|node| self.of_node(node)));
        all
    }

    fn outer(&self, name: &str, program: &str, args: Vec<String>) -> Process {
        self.process(name.to_owned(), program, args, self.layout.netns(), None)
    }

    fn inside(&self, node: &Node, program: &str, args: Vec<String>) -> Process {
        let name = format!("{program}-{}", node.name);
        self.process(name, program, args, node.netns.clone(), Some(node.mountns.clone()))
    }

    fn process(
        &self,
        name: String,
        program: &str,
        args: Vec<String>,
        netns: String,
        mountns: Option<PathBuf>,
    ) -> Process {
        Process {
            name,
            program: self.programs.path(program),
            args,
            netns,
            mountns,
            search_path: self.programs.search_path(),
        }
    }
}
