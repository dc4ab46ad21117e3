//! Lines through the command.

use super::{Options, cluster, report};
use anyhow::ensure;
use std::io::Write;
use std::process::Stdio;
use tokio::process::Command;
use tokio::time::Instant;

pub(super) async fn run(options: &Options) -> anyhow::Result<()> {
    let cluster = cluster(options).await?;
    let member = &cluster.members[cluster.leader().await?];
    let mut file = tempfile::tempfile()?;
    for line in 1..=options.lines {
        writeln!(file, "line {line} of a file that is appended through the command")?;
    }
    std::io::Seek::rewind(&mut file)?;
    let mut command = Command::new(options.place.program());
    command.arg("append").env("SYNOD_SOCKET", &member.socket).stdin(Stdio::from(file)).stdout(Stdio::null());
    let began = Instant::now();
    let ended = command.status().await?;
    let seconds = began.elapsed().as_secs_f64();
    ensure!(ended.success(), "the command failed: {ended}");
    let stand = member.status().await?.last_index;
    ensure!(stand == options.lines, "{stand} of {} lines stand", options.lines);
    let lines_per_second = options.lines as f64 / seconds;
    report("append < file", &serde_json::json!({ "lines": options.lines, "per_second": lines_per_second }))
}
