//! What every part of the job works with: the cluster, the namespace, and ways to ask.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use synod_cluster::{Cluster, Error, Result, run};
use synod_e2e::load::Place;

/// The namespace of the demo's PaxosCluster.
pub(crate) const NAMESPACE: &str = "synod-demo";
/// The PaxosCluster's name.
pub(crate) const NAME: &str = "demo";
/// The namespace of the operator.
pub(crate) const SYSTEM: &str = "synod-system";
/// The example application's container.
pub(crate) const APPLICATION: &str = "journal";
/// The sidecar's container.
pub(crate) const SIDECAR: &str = "synod";

/// Everything a step needs.
#[derive(Clone)]
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
}

impl Stage {
    /// kubectl in the demo's namespace.
    pub(crate) fn kubectl(&self, args: &[&str]) -> Result<String> {
        run::output(self.cluster.kubectl().args(["-n", NAMESPACE]).args(args))
    }

    /// An object of the demo's namespace.
    pub(crate) fn get(&self, kind: &str, name: &str) -> Result<Value> {
        parse(&self.kubectl(&["get", kind, name, "-o", "json"])?)
    }

    /// Runs a program in a pod's container through its node, cut off or not.
    pub(crate) fn exec(&self, pod: &str, container: &str, args: &[&str]) -> Result<String> {
        run::output(&mut self.cluster.exec_on_node(NAMESPACE, pod, container, args)?.command)
    }

    /// Where a writer in a pod runs.
    pub(crate) fn place(&self, pod: &str) -> Place {
        let (namespace, container) = (NAMESPACE.to_owned(), APPLICATION.to_owned());
        Place { cluster: self.cluster.clone(), namespace, pod: pod.to_owned(), container }
    }

    /// Like [`Stage::exec`], with `input` on its standard input.
    pub(crate) fn exec_with_input(
        &self,
        pod: &str,
        container: &str,
        args: &[&str],
        input: &[u8],
    ) -> Result<String> {
        let mut command: Command = self.cluster.kubectl();
        command.args(["-n", NAMESPACE, "exec", "-i", pod, "-c", container, "--"]).args(args);
        run::output_with_input(&mut command, input)
    }

    /// What a pod's member says of itself.
    pub(crate) fn status(&self, pod: &str) -> Result<Value> {
        parse(&self.exec(pod, SIDECAR, &["synod-sidecar", "status", "-o", "json"])?)
    }

    /// The configurations and leaderships so far, as a pod's member knows them.
    pub(crate) fn history(&self, pod: &str) -> Result<Value> {
        parse(&self.exec(pod, SIDECAR, &["synod-sidecar", "history", "-o", "json"])?)
    }

    /// The pods `demo-0` to `demo-(n-1)`.
    pub(crate) fn pods(n: usize) -> Vec<String> {
        (0..n).map(|ordinal| format!("{NAME}-{ordinal}")).collect()
    }

    /// The pod that leads, as soon as one of `pods` knows one that is among `pods`.
    pub(crate) fn leader(&self, pods: &[String]) -> Result<String> {
        wait("a leader", Duration::from_secs(60), || {
            pods.iter().find_map(|pod| {
                let status = self.status(pod).ok()?;
                let leader = status["leader_name"].as_str()?;
                pods.iter().find(|pod| *pod == leader).cloned()
            })
        })
    }

    /// Waits until the PaxosCluster is Ready with `replicas` voters.
    pub(crate) fn wait_ready(&self, replicas: usize, limit: Duration) -> Result<()> {
        let mut last = String::from("it does not exist");
        let done = wait("", limit, || {
            let object = self.get("paxosclusters", NAME).ok()?;
            last = describe(&object);
            is_ready(&object, replicas).then_some(())
        });
        done.map_err(|_| Error::Timeout {
            what: format!("{NAME} to be Ready with {replicas} members"),
            seconds: limit.as_secs(),
            state: last,
        })
    }
}

/// Writes down how everything stands, for whoever wants to know why a step failed.
pub(crate) fn write_report(stage: &Stage, file: &Path) -> std::io::Result<()> {
    let member = ["-n", NAMESPACE, "logs", "-l", "synod.dev/cluster", "--tail=300", "--prefix"];
    let sections: [&[&str]; 6] = [
        &["get", "nodes,pods", "-A", "-o", "wide"],
        &["-n", NAMESPACE, "describe", "paxos"],
        &["-n", NAMESPACE, "get", "events", "--sort-by=.lastTimestamp"],
        &["-n", SYSTEM, "logs", "-l", "app.kubernetes.io/name=synod-operator", "--tail=500"],
        &[&member[..], &["-c", SIDECAR]].concat(),
        &[&member[..], &["-c", APPLICATION]].concat(),
    ];
    let mut text = String::new();
    for args in sections {
        let said = match run::output(stage.cluster.kubectl().args(args)) {
            Ok(said) => said,
            Err(error) => error.to_string(),
        };
        text.push_str(&format!("# kubectl {}\n{said}\n", args.join(" ")));
    }
    std::fs::write(file, text)
}

/// Whether a PaxosCluster is Ready as its present spec wants it, with this many members.
fn is_ready(object: &Value, replicas: usize) -> bool {
    let status = &object["status"];
    let ready = condition(object, "Ready").is_some_and(|condition| condition["status"] == "True");
    ready
        && status["observedGeneration"] == object["metadata"]["generation"]
        && object["spec"]["replicas"].as_u64() == Some(replicas as u64)
        && status["readyReplicas"].as_u64() == Some(replicas as u64)
}

/// One line on how it stands.
fn describe(object: &Value) -> String {
    let status = &object["status"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let condition = condition(object, "Ready").cloned().unwrap_or_default();
    format!(
        "{} of {} members ready, Ready={} {}: {}",
        status["readyReplicas"].as_u64().unwrap_or(0),
        object["spec"]["replicas"].as_u64().unwrap_or(0),
        text(&condition["status"]),
        text(&condition["reason"]),
        text(&condition["message"]),
    )
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

/// Parses what a program printed as JSON.
pub(crate) fn parse(text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| {
        Error::Invalid(format!("this is no JSON ({error}): {}", text.chars().take(200).collect::<String>()))
    })
}

/// Looks every 100 ms until there is something.
pub(crate) fn wait<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() > deadline {
            return Err(Error::Timeout {
                what: what.to_owned(),
                seconds: limit.as_secs(),
                state: "it did not happen".into(),
            });
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(generation: u64, observed: u64, ready: &str, members: u64) -> Value {
        json!({
            "metadata": {"generation": generation},
            "spec": {"replicas": 3},
            "status": {
                "observedGeneration": observed,
                "readyReplicas": members,
                "conditions": [{"type": "Ready", "status": ready, "reason": "R", "message": "m"}],
            },
        })
    }

    #[test]
    fn ready_counts_for_the_present_spec_only() {
        assert!(is_ready(&object(2, 2, "True", 3), 3));
        assert!(!is_ready(&object(3, 2, "True", 3), 3));
        assert!(!is_ready(&object(2, 2, "False", 3), 3));
        assert!(!is_ready(&object(2, 2, "True", 5), 3));
        assert!(!is_ready(&object(2, 2, "True", 5), 5));
        assert!(!is_ready(&json!({"metadata": {"generation": 1}, "spec": {"replicas": 3}}), 3));
    }

    #[test]
    fn what_is_not_ready_says_why() {
        assert_eq!(describe(&object(2, 2, "False", 2)), "2 of 3 members ready, Ready=False R: m");
    }
}
