//! `append` and `tail`.

use super::Format;
use super::connect::Socket;
use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use futures::{Stream, TryStreamExt};
use serde::Serialize;
use std::io::Write;
use std::time::Duration;
use synod_client::{
    AppendOptions as How, Appended, CallError, Client, Consistency, Entry, IdempotencyKey, ReadOptions,
    Repeats,
};
use tokio::io::{AsyncBufReadExt, BufReader};

#[derive(Clone, Debug, Args)]
pub(super) struct AppendOptions {
    #[command(flatten)]
    socket: Socket,
    /// Append only if this is the log's last index now (0: if the log is empty). With lines of standard input
    /// it counts for the first.
    #[arg(long, value_name = "INDEX")]
    expected_index: Option<u64>,
    /// Names this append: repeating it under the same key appends it once, and prints the same index again. 1 to
    /// 64 bytes.
    #[arg(long, value_name = "KEY", requires = "entries")]
    key: Option<String>,
    /// An index that was in the log when the key was made: a key that is so old that the log may have forgotten
    /// it is then refused.
    #[arg(long, value_name = "INDEX", requires = "key")]
    minted_at: Option<u64>,
    /// How long to try each, in seconds.
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    timeout: u64,
    /// text: the index of each entry. json: an object a line.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// The entries, appended together; without any, each line of standard input is one.
    #[arg(value_name = "ENTRY")]
    entries: Vec<String>,
}

#[derive(Serialize)]
struct Acknowledged {
    first_index: u64,
    last_index: u64,
    /// It had been appended before, under the same key.
    repeated: bool,
}

pub(super) async fn append(options: AppendOptions) -> anyhow::Result<()> {
    let client = options.socket.client()?;
    let expected_index = options.expected_index;
    let timeout = Duration::from_secs(options.timeout);
    if !options.entries.is_empty() {
        let entries = options.entries.iter().map(|entry| Bytes::from(entry.clone())).collect();
        let key = match &options.key {
            Some(key) => {
                let key = IdempotencyKey::new(key.clone());
                options.minted_at.into_iter().fold(key, IdempotencyKey::minted_at)
            }
            // A session for one append would be two entries more in the log.
            None => {
                let index = client.tail(Consistency::Sequential).await;
                let index = index.map_err(|error| options.socket.explain(error))?;
                IdempotencyKey::new(uuid::Uuid::new_v4().to_string()).minted_at(index)
            }
        };
        let how = How { expected_index, timeout, repeats: Repeats::Key(key) };
        return append_one(&client, entries, how, options.output).await;
    }
    let mut how = How { expected_index, timeout, repeats: Repeats::Session };
    let mut lines = BufReader::new(tokio::io::stdin());
    loop {
        let mut line = Vec::new();
        if lines.read_until(b'\n', &mut line).await.context("cannot read standard input")? == 0 {
            client.close().await;
            return Ok(());
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        append_one(&client, vec![line.into()], how.clone(), options.output).await?;
        how.expected_index = None;
    }
}

async fn append_one(client: &Client, entries: Vec<Bytes>, how: How, output: Format) -> anyhow::Result<()> {
    let appended = client.append_with(entries, how).await?;
    let mut out = std::io::stdout().lock();
    match output {
        Format::Text => {
            for index in appended.first_index..=appended.last_index {
                writeln!(out, "{index}")?;
            }
        }
        Format::Json => {
            let Appended { first_index, last_index, repeated } = appended;
            let line = serde_json::to_string(&Acknowledged { first_index, last_index, repeated })?;
            writeln!(out, "{line}")?;
        }
    }
    Ok(out.flush()?)
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Freshness {
    /// Everything that was acknowledged before, anywhere; needs a leader.
    Linearizable,
    /// What this member has applied; needs nobody else.
    Sequential,
    /// Everything that was acknowledged up to --max-staleness ago.
    StaleBounded,
}

#[derive(Clone, Debug, Args)]
pub(super) struct TailOptions {
    #[command(flatten)]
    socket: Socket,
    /// How many of the last entries.
    #[arg(short = 'n', default_value_t = 10, value_name = "N", conflicts_with = "from")]
    count: u64,
    /// From this index on, the first is 1.
    #[arg(long, value_name = "INDEX", value_parser = clap::value_parser!(u64).range(1..))]
    from: Option<u64>,
    /// Go on with what is appended from now on.
    #[arg(short, long)]
    follow: bool,
    /// How fresh.
    #[arg(long, value_enum, default_value_t = Freshness::Linearizable)]
    consistency: Freshness,
    /// How old the view may be, in milliseconds; stale-bounded only.
    #[arg(long, default_value_t = 1_000, value_name = "MS")]
    max_staleness: u32,
    /// text: index and entry. json: an object a line.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Serialize)]
struct Line<'a> {
    index: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    /// Where the entry is no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

pub(super) async fn tail(options: TailOptions) -> anyhow::Result<()> {
    let client = options.socket.client()?;
    let consistency = match options.consistency {
        Freshness::Linearizable => Consistency::Linearizable,
        Freshness::Sequential => Consistency::Sequential,
        Freshness::StaleBounded => {
            Consistency::StaleBounded(Duration::from_millis(u64::from(options.max_staleness)))
        }
    };
    let last = client.tail(consistency).await.map_err(|error| options.socket.explain(error))?;
    let from = options.from.unwrap_or_else(|| last.saturating_sub(options.count) + 1);
    if options.follow {
        return print(client.subscribe(from), options.output).await;
    }
    let limit = (last + 1).saturating_sub(from);
    if limit == 0 {
        return Ok(());
    }
    // This member has applied what was asked for just now.
    let how = ReadOptions { limit: Some(limit), consistency: Consistency::Sequential };
    print(client.read(from, how), options.output).await
}

async fn print(
    mut entries: impl Stream<Item = Result<Entry, CallError>> + Unpin,
    output: Format,
) -> anyhow::Result<()> {
    while let Some(entry) = entries.try_next().await? {
        let mut out = std::io::stdout().lock();
        match output {
            Format::Text => {
                write!(out, "{}\t", entry.index)?;
                out.write_all(&entry.payload)?;
                out.write_all(b"\n")?;
            }
            Format::Json => {
                let text = std::str::from_utf8(&entry.payload).ok();
                let base64 = text.is_none().then(|| STANDARD.encode(&entry.payload));
                writeln!(out, "{}", serde_json::to_string(&Line { index: entry.index, text, base64 })?)?;
            }
        }
        out.flush()?;
    }
    Ok(())
}
