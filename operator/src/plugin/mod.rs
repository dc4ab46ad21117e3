//! `kubectl synod`: what a user asks about a cluster, with the user's own rights.
//!
//! It holds no certificate and no client of its own: `kubectl get` reads the PaxosCluster, and
//! `kubectl exec` runs the sidecar's own commands in its pods.

mod kubectl;
mod show;

use std::collections::BTreeMap;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::{Value, json};
use thiserror::Error;

pub use kubectl::Kubectl;

use crate::names::{CONTAINER, LABEL_CLUSTER};

/// Looks into Synod's clusters.
///
/// It runs kubectl with your own rights: reading PaxosClusters and pods, and exec in the pods.
#[derive(Debug, Parser)]
#[command(name = "kubectl synod", bin_name = "kubectl synod", version, max_term_width = 80)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show how a cluster stands, and what the operator waits for and why
    Status(Cluster),
    /// List the members as their leader sees them
    Members(Cluster),
    /// List all configurations and leaderships so far
    History(Cluster),
}

#[derive(Debug, Args)]
struct Cluster {
    /// The PaxosCluster
    name: String,

    #[command(flatten)]
    kubectl: Kubectl,

    /// How it is printed
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For scripts
    Json,
}

/// Why there is nothing to show.
#[derive(Debug, Error)]
pub enum PluginError {
    /// kubectl cannot be started.
    #[error("kubectl cannot be run ({0}): install it, and see to it that it is in PATH")]
    NoKubectl(std::io::Error),
    /// kubectl said no.
    #[error("{0}")]
    Kubectl(String),
    /// kubectl printed something else than JSON.
    #[error("kubectl answered with something that cannot be read: {0}")]
    Answer(#[from] serde_json::Error),
    /// No pod of the cluster answers.
    #[error("no member of '{cluster}' answers: {why}")]
    NobodyAnswers {
        /// The cluster.
        cluster: String,
        /// Why not, pod by pod.
        why: String,
    },
    /// The output cannot be written.
    #[error("cannot write: {0}")]
    Output(#[from] std::io::Error),
}

/// Runs one command and returns what is printed.
///
/// # Errors
/// If kubectl fails or, where a member is needed, none answers.
pub fn run(arguments: &Arguments) -> Result<String, PluginError> {
    match &arguments.command {
        Command::Status(cluster) => status(cluster),
        Command::Members(cluster) => members(cluster),
        Command::History(cluster) => history(cluster),
    }
}

fn status(cluster: &Cluster) -> Result<String, PluginError> {
    let object = cluster.kubectl.json(&["get", "paxosclusters.synod.dev", &cluster.name])?;
    let pods = pods(cluster)?;
    let answers = ask_all(cluster, &pods, "status");
    if cluster.output == Format::Json {
        let members: BTreeMap<&String, Value> = answers
            .iter()
            .map(|(pod, answer)| match answer {
                Ok(status) => (pod, status.clone()),
                Err(why) => (pod, json!({ "error": why.to_string() })),
            })
            .collect();
        let all =
            json!({ "cluster": { "spec": object["spec"], "status": object["status"] }, "members": members });
        return Ok(format!("{all:#}\n"));
    }
    Ok(show::status(&object, &answers))
}

fn members(cluster: &Cluster) -> Result<String, PluginError> {
    let answer = leader_says(cluster, "members")?;
    Ok(if cluster.output == Format::Json { format!("{answer:#}\n") } else { show::members(&answer) })
}

fn history(cluster: &Cluster) -> Result<String, PluginError> {
    let answer = leader_says(cluster, "history")?;
    Ok(if cluster.output == Format::Json { format!("{answer:#}\n") } else { show::history(&answer) })
}

/// Names of the cluster's running pods.
fn pods(cluster: &Cluster) -> Result<Vec<String>, PluginError> {
    let selector = format!("{LABEL_CLUSTER}={}", cluster.name);
    let list = cluster.kubectl.json(&["get", "pods", "-l", &selector])?;
    let items = list["items"].as_array().into_iter().flatten();
    Ok(items.filter_map(|p| p["metadata"]["name"].as_str().map(str::to_owned)).collect())
}

/// A sidecar command in one pod.
fn ask(cluster: &Cluster, pod: &str, command: &str) -> Result<Value, PluginError> {
    let sidecar = ["synod-sidecar", command, "-o", "json"];
    let text = cluster.kubectl.exec(pod, CONTAINER, &sidecar)?;
    Ok(serde_json::from_str(&text)?)
}

fn ask_all(cluster: &Cluster, pods: &[String], command: &str) -> Vec<(String, Result<Value, PluginError>)> {
    std::thread::scope(|scope| {
        let asked: Vec<_> =
            pods.iter().map(|pod| (pod, scope.spawn(move || ask(cluster, pod, command)))).collect();
        let answered = asked.into_iter().map(|(pod, thread)| {
            let answer = thread.join().unwrap_or_else(|_| Err(PluginError::Kubectl("it failed".into())));
            (pod.clone(), answer)
        });
        answered.collect()
    })
}

/// What the leader's pod says; if it does not answer, what any other says.
fn leader_says(cluster: &Cluster, command: &str) -> Result<Value, PluginError> {
    let object = cluster.kubectl.json(&["get", "paxosclusters.synod.dev", &cluster.name])?;
    let mut pods = pods(cluster)?;
    let leader = object["status"]["leader"].as_str().unwrap_or_default().to_owned();
    pods.sort_by_key(|pod| *pod != leader);
    let mut why = Vec::new();
    for pod in &pods {
        match ask(cluster, pod, command) {
            Ok(answer) => return Ok(answer),
            Err(error) => why.push(format!("{pod}: {error}")),
        }
    }
    let why = if why.is_empty() { "it has no pods".to_owned() } else { why.join("; ") };
    Err(PluginError::NobodyAnswers { cluster: cluster.name.clone(), why })
}
