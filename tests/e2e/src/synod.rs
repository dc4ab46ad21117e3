//! Synod on the tests' Kubernetes: the operator installed once for all tests, and logs to try.

use crate::{Test, root};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::process::Command;
use synod_cluster::run;

/// The operator's namespace, as manifests/install.yaml has it.
pub const SYSTEM: &str = "synod-system";

impl Test {
    /// Installs the operator from `manifests/install.yaml` alone, as a user without Helm does; what is there
    /// already is left as it is. Tests run side by side: one at a time gets to do this.
    ///
    /// # Panics
    /// If it does not become available within three minutes.
    pub fn install_operator(&self) {
        let folder = root().join("target/e2e");
        fs::create_dir_all(&folder).expect("the target folder is writable");
        let lock = File::create(folder.join("install.lock")).expect("the target folder is writable");
        lock.lock().expect("a file on a local disk can be locked");
        let manifest =
            fs::read_to_string(root().join("manifests/install.yaml")).expect("the manifest is there");
        let operator = self.image("synod-operator");
        let sidecar = self.image("synod-sidecar");
        let manifest = manifest
            .replace("synod/synod-operator:0.1.0", &operator)
            .replace("synod/synod-sidecar:0.1.0", &sidecar);
        assert!(
            manifest.contains(&operator) && manifest.contains(&sidecar),
            "the manifest names both images"
        );
        let mut apply = self.cluster.kubectl();
        apply.args(["apply", "--server-side", "--force-conflicts", "-f", "-"]);
        if let Err(error) = run::output_with_input(&mut apply, manifest.as_bytes()) {
            panic!("{error}");
        }
        self.kubectl(&["-n", SYSTEM, "rollout", "status", "deployment/synod-operator", "--timeout=180s"]);
    }

    /// Applies a PaxosCluster without a template; `more` is added to its spec.
    pub fn apply_log(&self, name: &str, replicas: u32, more: &str) {
        self.apply(&log_manifest(name, replicas, more));
    }

    /// Waits until a PaxosCluster is Ready at its newest generation, with so many voters.
    pub fn wait_log(&self, name: &str, voters: u64) {
        self.wait(&format!("{name} with {voters} voters"), 240, || {
            let log = self.get("paxos", name);
            let current = log["status"]["observedGeneration"] == log["metadata"]["generation"];
            let ready = condition(&log, "Ready").is_some_and(|c| c["status"] == "True");
            (current && ready && log["status"]["voters"] == voters).then_some(())
        });
    }

    /// Appends entries through a pod's socket and gives their indexes.
    pub fn append(&self, pod: &str, entries: &[&str]) -> Vec<u64> {
        let said = self.exec(pod, "synod", &[&["synod-sidecar", "append"][..], entries].concat());
        said.lines().map(|line| line.trim().parse().expect("an index a line")).collect()
    }

    /// The whole log as a pod's own member has it, by a linearizable read: index, tab, entry.
    pub fn log(&self, pod: &str) -> String {
        self.exec(pod, "synod", &["synod-sidecar", "tail", "--from", "1"])
    }

    /// Runs the kubectl plugin against the tests' cluster and gives what it printed.
    ///
    /// # Panics
    /// If it fails.
    pub fn plugin(&self, args: &[&str]) -> String {
        let kubectl = self.cluster.kubectl();
        let mut command = Command::new(root().join("target/debug/kubectl-synod"));
        for (name, value) in kubectl.get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        // The plugin calls kubectl: the cluster's own must be found first.
        let folder = std::path::Path::new(kubectl.get_program()).parent().map(|p| p.display().to_string());
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", folder.unwrap_or_default()));
        command.args(args).args(["-n", &self.namespace]);
        match run::output(&mut command) {
            Ok(text) => text,
            Err(error) => panic!("{error}"),
        }
    }
}

/// A PaxosCluster without a template.
pub fn log_manifest(name: &str, replicas: u32, more: &str) -> String {
    format!(
        "{{apiVersion: synod.dev/v1alpha1, kind: PaxosCluster, metadata: {{name: {name}}}, \
         spec: {{replicas: {replicas}, storage: {{size: 64Mi}} {more}}}}}"
    )
}

/// A condition of an object's status.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}

impl Test {
    /// Applies a PaxosCluster whose application is the journal; `storage` and `more` are added to its storage and spec.
    pub fn apply_journal(&self, name: &str, replicas: u32, storage: &str, more: &str) {
        let image = self.image("journal");
        self.apply(&format!(
            "{{apiVersion: synod.dev/v1alpha1, kind: PaxosCluster, metadata: {{name: {name}}}, spec: {{\
             replicas: {replicas}, storage: {{size: 64Mi {storage}}}, template: {{spec: {{containers: [{{\
             name: journal, image: \"{image}\", imagePullPolicy: IfNotPresent, args: [run]}}]}}}} {more}}}}}"
        ));
    }

    /// The ids of a PaxosCluster's members, as status tells them, by pod.
    pub fn members(&self, name: &str) -> BTreeMap<String, String> {
        let log = self.get("paxos", name);
        let members = log["status"]["members"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        members.iter().map(|member| (text(&member["pod"]), text(&member["memberId"]))).collect()
    }

    /// Asks for a pod's eviction, as a drain does; what the API server said, if it refused.
    ///
    /// # Errors
    /// The refusal.
    pub fn evict(&self, pod: &str) -> synod_cluster::Result<String> {
        let path = format!("/api/v1/namespaces/{}/pods/{pod}/eviction", self.namespace);
        let eviction =
            format!(r#"{{"apiVersion":"policy/v1","kind":"Eviction","metadata":{{"name":"{pod}"}}}}"#);
        let mut command = self.cluster.kubectl();
        command.args(["create", "--raw", &path, "-f", "-"]);
        run::output_with_input(&mut command, eviction.as_bytes())
    }

    /// The uid of each pod that there is.
    pub fn pod_uids(&self, pods: &[&str]) -> Vec<String> {
        let uid = |pod: &&str| {
            let get = ["get", "pod", *pod, "-o", "jsonpath={.metadata.uid}"];
            self.try_kubectl(&get).unwrap_or_default()
        };
        pods.iter().map(uid).filter(|uid| !uid.is_empty()).collect()
    }

    /// Waits until each of the pods is another than before.
    ///
    /// # Panics
    /// If that takes longer than four minutes.
    pub fn wait_replaced(&self, pods: &[&str], before: &[String]) {
        self.wait("every pod to be another", 240, || {
            let now = self.pod_uids(pods);
            (now.len() == pods.len() && now.iter().all(|uid| !before.contains(uid))).then_some(())
        });
    }

    /// The pod of a log that leads.
    ///
    /// # Panics
    /// If none does within a minute.
    pub fn leader(&self, name: &str) -> String {
        self.wait("a leader", 60, || {
            let leader = self.get("paxos", name)["status"]["leader"].as_str().map(str::to_owned);
            leader.filter(|leader| !leader.is_empty())
        })
    }
}

/// The folder of this machine that a pod's local volume is.
///
/// # Panics
/// If its volume is not local.
pub fn volume(test: &Test, claim: &str) -> std::path::PathBuf {
    let claim = test.get("pvc", claim);
    let volume = claim["spec"]["volumeName"].as_str().unwrap_or_default();
    let volume = test.get("pv", volume);
    volume["spec"]["local"]["path"].as_str().expect("the tests' volumes are local").into()
}
