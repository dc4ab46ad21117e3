//! The text that goes in: the API description that the running Kubernetes serves, a line for each line.

use serde::Deserialize;
use sha2::{Digest, Sha256};
use synod_cluster::{Error, Result, run};

use crate::stage::{APPLICATION, Stage, parse};
use synod_e2e::load::{Acknowledged, now_ms};

/// A text of fewer lines shows little.
const LEAST_LINES: usize = 20_000;

/// A text, its lines counted, its digest taken as `journal digest` takes it: without a last newline.
pub(crate) struct Text {
    pub(crate) content: String,
    pub(crate) lines: usize,
    pub(crate) sha256: String,
}

#[derive(Deserialize)]
struct Line {
    index: u64,
    sha256: String,
}

impl Text {
    /// The API description of the running Kubernetes.
    pub(crate) fn of_api(stage: &Stage) -> Result<Self> {
        let description = run::output(stage.cluster.kubectl().args(["get", "--raw", "/openapi/v2"]))?;
        let content = format!("{:#}", parse(&description)?);
        let text = Text { lines: content.lines().count(), sha256: digest(content.as_bytes()), content };
        if text.lines < LEAST_LINES {
            return Err(Error::Invalid(format!("the API description has {} lines only", text.lines)));
        }
        Ok(text)
    }

    /// Appends every line through one pod's socket.
    pub(crate) fn append(&self, stage: &Stage, pod: &str) -> Result<Vec<Acknowledged>> {
        let input = format!("{}\n", self.content);
        let told = stage.exec_with_input(pod, APPLICATION, &["journal", "append"], input.as_bytes())?;
        let acknowledged: Vec<Acknowledged> = told
            .lines()
            .map(|line| {
                let line: Line = serde_json::from_str(line)
                    .map_err(|error| Error::Invalid(format!("`journal append` printed `{line}`: {error}")))?;
                Ok(Acknowledged { index: line.index, sha256: line.sha256, at_ms: now_ms() })
            })
            .collect::<Result<_>>()?;
        if acknowledged.len() != self.lines {
            let (told, lines) = (acknowledged.len(), self.lines);
            return Err(Error::Invalid(format!("{told} of {lines} lines were acknowledged")));
        }
        Ok(acknowledged)
    }

    /// The digest of what a pod's member reads back between two indexes.
    pub(crate) fn read_back(stage: &Stage, pod: &str, from: u64, to: u64) -> Result<String> {
        let (from, to) = (from.to_string(), to.to_string());
        let args = ["journal", "digest", "--from", &from, "--to", &to];
        stage.exec(pod, APPLICATION, &args).map(|digest| digest.trim().to_owned())
    }
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
