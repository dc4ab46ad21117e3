//! Runs kubectl with the flags that choose the cluster and the user.

use std::process::{Command, Stdio};

use clap::Args;
use serde_json::Value;

use super::PluginError;

/// Flags that are passed on to kubectl.
#[derive(Debug, Default, Args)]
pub struct Kubectl {
    /// The namespace [default: the context's]
    #[arg(short, long)]
    namespace: Option<String>,

    /// The context of the kubeconfig
    #[arg(long)]
    context: Option<String>,

    /// The kubeconfig
    #[arg(long)]
    kubeconfig: Option<String>,
}

impl Kubectl {
    fn flags(&self) -> Vec<String> {
        let flag = |name: &str, value: &Option<String>| value.as_ref().map(|v| format!("--{name}={v}"));
        [
            flag("namespace", &self.namespace),
            flag("context", &self.context),
            flag("kubeconfig", &self.kubeconfig),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn run(&self, arguments: &[&str]) -> Result<String, PluginError> {
        let output = Command::new("kubectl")
            .args(self.flags())
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .map_err(PluginError::NoKubectl)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        let last = words.trim().lines().last().unwrap_or("kubectl failed and said nothing");
        Err(PluginError::Kubectl(last.to_owned()))
    }

    /// A kubectl command whose answer is asked for as JSON.
    ///
    /// # Errors
    /// If kubectl cannot be run, fails, or prints no JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value, PluginError> {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        Ok(serde_json::from_str(&self.run(&all)?)?)
    }

    /// A command in a container; its standard output.
    ///
    /// # Errors
    /// If kubectl cannot be run, or the command fails.
    pub fn exec(&self, pod: &str, container: &str, command: &[&str]) -> Result<String, PluginError> {
        let mut all = vec!["exec", pod, "-c", container, "--"];
        all.extend(command);
        self.run(&all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_go_before_the_command_and_cannot_be_mistaken_for_it() {
        let kubectl = Kubectl { namespace: Some("-x".into()), context: None, kubeconfig: Some("a b".into()) };
        assert_eq!(kubectl.flags(), ["--namespace=-x", "--kubeconfig=a b"]);
    }
}
