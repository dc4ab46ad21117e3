//! Runs kubectl with the flags that choose the cluster and the user.

use std::io::Read;
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;

use super::PluginError;

/// How long one kubectl may take.
const PATIENCE: Duration = Duration::from_secs(30);

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
        let child = Command::new("kubectl")
            .args(self.flags())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(PluginError::NoKubectl)?;
        let output = within(child, PATIENCE)?;
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

/// What a program prints within some time; it is ended when that is over.
fn within(mut child: Child, patience: Duration) -> Result<Output, PluginError> {
    fn reader(stream: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            // What was read before an error is all that there is.
            let _ = stream.map(|mut s| s.read_to_end(&mut text));
            text
        })
    }
    let (stdout, stderr) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(PluginError::NoKubectl)? {
            break status;
        }
        if begun.elapsed() > patience {
            let _ = child.kill();
            let _ = child.wait();
            let said =
                format!("kubectl did not answer within {} s: its node may be down", patience.as_secs());
            return Err(PluginError::Kubectl(said));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let text = |reader: JoinHandle<Vec<u8>>| reader.join().unwrap_or_default();
    Ok(Output { status, stdout: text(stdout), stderr: text(stderr) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// O26: a node that is cut off makes kubectl wait for ever.
    #[test]
    fn a_command_that_never_ends_is_ended() {
        let spawn = |program: &str, argument: &str| {
            let mut command = Command::new(program);
            command.arg(argument).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let hangs = within(spawn("sleep", "600"), Duration::ZERO).unwrap_err();
        assert!(hangs.to_string().contains("did not answer"), "{hangs}");
        let says = within(spawn("echo", "here"), Duration::from_secs(60)).unwrap();
        assert_eq!(says.stdout, b"here\n");
    }

    #[test]
    fn flags_go_before_the_command_and_cannot_be_mistaken_for_it() {
        let kubectl = Kubectl { namespace: Some("-x".into()), context: None, kubeconfig: Some("a b".into()) };
        assert_eq!(kubectl.flags(), ["--namespace=-x", "--kubeconfig=a b"]);
    }
}
