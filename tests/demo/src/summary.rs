//! What `make demo` ends with: `target/demo/summary.json`, and a table for a person.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::verdict::Verdict;

/// The summary, as it is written.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Summary {
    pub(crate) verdict: String,
    pub(crate) failures: Vec<String>,
    pub(crate) kubernetes_version: String,
    pub(crate) nodes: usize,
    pub(crate) lines: usize,
    pub(crate) sha256_in: String,
    pub(crate) sha256_out: BTreeMap<String, String>,
    /// Lines of the text and the writers' entries.
    pub(crate) appends_acknowledged: usize,
    /// The writers' entries alone.
    pub(crate) writers_acknowledged: usize,
    pub(crate) found: usize,
    pub(crate) lost: usize,
    pub(crate) duplicated: usize,
    pub(crate) reordered: usize,
    pub(crate) unknown_outcome: usize,
    /// Acknowledgements that said that an earlier try had appended the entry: retries that duplicated nothing.
    pub(crate) repeated: usize,
    /// Certainly not appended, by the client's word.
    pub(crate) refused: usize,
    pub(crate) longest_write_gap_ms: Gaps,
    pub(crate) configurations: Vec<Configuration>,
    pub(crate) leaders: Vec<Leader>,
    pub(crate) seconds: Seconds,
}

/// The longest time without an acknowledgement of any writer, in each part of the job.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Gaps {
    pub(crate) scale_up: u64,
    pub(crate) scale_down: u64,
    pub(crate) leader_deleted: u64,
    pub(crate) leader_killed: u64,
    pub(crate) partition: u64,
}

/// One configuration of the cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Configuration {
    pub(crate) version: u64,
    pub(crate) slot: u64,
    pub(crate) voters: Vec<String>,
    pub(crate) learners: Vec<String>,
}

/// One leadership.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Leader {
    pub(crate) fencing_epoch: u64,
    pub(crate) ballot: String,
    pub(crate) member: String,
}

/// How long each part took.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Seconds {
    pub(crate) build: f64,
    pub(crate) cluster: f64,
    pub(crate) install: f64,
    pub(crate) ready: f64,
    pub(crate) job: f64,
}

impl Summary {
    /// Takes the verdict in.
    pub(crate) fn judged(mut self, verdict: &Verdict) -> Self {
        self.verdict = if verdict.holds() { "holds" } else { "FAILS" }.to_owned();
        self.failures.clone_from(&verdict.failures);
        self.found = verdict.found;
        self.lost = verdict.lost;
        self.duplicated = verdict.duplicated;
        self.reordered = verdict.reordered;
        self.unknown_outcome = verdict.unknown_outcome;
        self
    }

    /// The table: at most 80 columns.
    pub(crate) fn table(&self) -> String {
        let mut rows: Vec<(String, String)> = Vec::new();
        let mut row = |what: &str, value: String| rows.push((what.to_owned(), value));
        row("Kubernetes", format!("{}, {} nodes", self.kubernetes_version, self.nodes));
        row("text", format!("{} lines, SHA-256 {}", self.lines, short(&self.sha256_in)));
        for (pod, digest) in &self.sha256_out {
            let same = if *digest == self.sha256_in { "the same" } else { "ANOTHER" };
            row(&format!("  read back through {pod}"), format!("{} ({same})", short(digest)));
        }
        row("appends acknowledged", self.appends_acknowledged.to_string());
        row("  once, in place, everywhere", self.found.to_string());
        row("  lost", self.lost.to_string());
        row("  duplicated", self.duplicated.to_string());
        row("  reordered", self.reordered.to_string());
        row("  answered to a repeat", self.repeated.to_string());
        row("outcomes unknown / refused", format!("{} / {}", self.unknown_outcome, self.refused));
        let gaps = &self.longest_write_gap_ms;
        for (what, gap) in [
            ("write gap, 3 to 5 members", gaps.scale_up),
            ("write gap, 5 to 3 members", gaps.scale_down),
            ("write gap, leader's pod deleted", gaps.leader_deleted),
            ("write gap, leader killed", gaps.leader_killed),
            ("write gap, leader's node cut off", gaps.partition),
        ] {
            row(what, format!("{gap} ms"));
        }
        let mut last = self.configurations.last().map(|last| last.voters.clone()).unwrap_or_default();
        last.sort();
        row("configurations", format!("{}, now {}", self.configurations.len(), last.join(", ")));
        row("leaderships", self.leaders.len().to_string());
        let s = &self.seconds;
        let took = [
            ("build", s.build),
            ("cluster", s.cluster),
            ("install", s.install),
            ("ready", s.ready),
            ("job", s.job),
        ];
        row("seconds", took.map(|(what, seconds)| format!("{what} {seconds:.0}")).join(", "));
        let mut text = String::new();
        for (what, value) in rows {
            text.push_str(&format!("{what:<33} {value}\n"));
        }
        text.push_str(&format!("\nVerdict: {}\n", self.verdict));
        for failure in &self.failures {
            text.push_str(&format!("  - {failure}\n"));
        }
        text
    }
}

fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> Summary {
        let configuration = Configuration {
            version: 9,
            slot: 1234,
            voters: vec!["demo-0".into(), "demo-1".into(), "demo-2".into()],
            learners: Vec::new(),
        };
        Summary {
            kubernetes_version: "v1.36.3".into(),
            nodes: 3,
            lines: 30_000,
            sha256_in: "ab".repeat(32),
            sha256_out: [("demo-1".into(), "ab".repeat(32)), ("demo-2".into(), "cd".repeat(32))].into(),
            configurations: vec![configuration],
            ..Summary::default()
        }
    }

    #[test]
    fn the_table_fits_a_terminal() {
        let table = summary().judged(&Verdict::default()).table();
        assert!(table.lines().all(|line| line.len() <= 80), "{table}");
        assert!(table.contains("Verdict: holds"));
    }

    #[test]
    fn a_failure_and_another_digest_are_plain_to_see() {
        let verdict = Verdict { lost: 2, failures: vec!["2 entries are lost".into()], ..Verdict::default() };
        let table = summary().judged(&verdict).table();
        assert!(table.contains("FAILS") && table.contains("  - 2 entries are lost"), "{table}");
        assert!(table.contains("ANOTHER"), "{table}");
    }

    #[test]
    fn the_file_has_the_promised_fields() {
        let value = serde_json::to_value(summary()).unwrap();
        for field in [
            "kubernetes_version",
            "nodes",
            "lines",
            "sha256_in",
            "sha256_out",
            "appends_acknowledged",
            "found",
            "lost",
            "duplicated",
            "reordered",
            "unknown_outcome",
            "longest_write_gap_ms",
            "configurations",
            "leaders",
            "seconds",
        ] {
            assert!(value.get(field).is_some(), "{field}");
        }
        for field in ["scale_up", "scale_down", "leader_deleted", "leader_killed", "partition"] {
            assert!(value["longest_write_gap_ms"][field].is_u64(), "{field}");
        }
        for field in ["build", "cluster", "install", "ready", "job"] {
            assert!(value["seconds"][field].is_f64(), "{field}");
        }
    }
}
