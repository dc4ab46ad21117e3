//! `journal append`: lines of standard input become entries, in their order.

use crate::output::{json_line, sha256};
use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use serde::Serialize;
use std::time::Duration;
use synod_client::{AppendOptions, Client};
use tokio::io::{AsyncBufReadExt, BufReader};

/// Payload bytes after which a call is full; the log's own bound is 1 MiB.
const CALL_BYTES: usize = 512 << 10;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// At most this many lines in one call: they stand or fall together.
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    batch: u16,
    /// How long to try each call, in seconds.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    timeout: u64,
}

#[derive(Serialize)]
struct Acknowledged {
    line: u64,
    index: u64,
    sha256: String,
}

/// One call at a time: its lines are printed before the next are read. The session keeps the order, and appends
/// each call once whatever has to be tried again.
pub(crate) async fn run(client: Client, options: Options) -> anyhow::Result<()> {
    let mut lines = BufReader::with_capacity(1 << 16, tokio::io::stdin());
    let append = AppendOptions { timeout: Duration::from_secs(options.timeout), ..Default::default() };
    let mut done = 0_u64;
    loop {
        let entries = next_batch(&mut lines, usize::from(options.batch)).await?;
        if entries.is_empty() {
            break;
        }
        let first_line = done + 1;
        done += entries.len() as u64;
        let first_index = match client.append_with(entries.clone(), append.clone()).await {
            Ok(appended) => appended.first_index,
            Err(error) => bail!("lines {first_line} to {done}: {error}"),
        };
        for (offset, entry) in (0..).zip(&entries) {
            let (line, index) = (first_line + offset, first_index + offset);
            json_line(&Acknowledged { line, index, sha256: sha256(entry) })?;
        }
    }
    client.close().await;
    eprintln!("{done} lines appended");
    Ok(())
}

/// Up to `most` lines; none at the end of the input. Waits for the first line only: what is at hand goes.
async fn next_batch(lines: &mut BufReader<tokio::io::Stdin>, most: usize) -> anyhow::Result<Vec<Bytes>> {
    let mut batch = Vec::new();
    let mut bytes = 0;
    while batch.len() < most && bytes < CALL_BYTES {
        let mut line = Vec::new();
        let read = lines.read_until(b'\n', &mut line).await.context("cannot read standard input")?;
        if read == 0 {
            break;
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        bytes += line.len();
        batch.push(Bytes::from(line));
        // The next line's length is known here only where it is in the buffer as a whole; one that is not
        // would have to be waited for, and one that is large must not break the call's bound.
        match lines.buffer().iter().position(|&byte| byte == b'\n') {
            Some(length) if bytes + length <= CALL_BYTES => {}
            _ => break,
        }
    }
    Ok(batch)
}
