//! `journal cat`, `digest` and `tail`.

use crate::output::{hex, json_line, sha256};
use crate::{Format, Span};
use anyhow::bail;
use clap::Args;
use futures::{Stream, TryStreamExt};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::io::{self, Write};
use synod_client::{CallError, Client, Entry, ReadOptions};

#[derive(Debug, Args)]
pub(crate) struct CatOptions {
    #[command(flatten)]
    span: Span,
    /// text: the payloads, a line each. json: index and digest of each.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Debug, Args)]
pub(crate) struct DigestOptions {
    #[command(flatten)]
    span: Span,
    /// text: the digest. json: with the span and the number of entries.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Debug, Args)]
pub(crate) struct TailOptions {
    /// How many entries.
    #[arg(short = 'n', default_value_t = 10, value_name = "N")]
    count: u64,
    /// Go on with what is appended from now on.
    #[arg(short, long)]
    follow: bool,
    /// How fresh.
    #[arg(long, value_enum, default_value_t = crate::Freshness::Linearizable)]
    consistency: crate::Freshness,
}

#[derive(Serialize)]
struct Line {
    index: u64,
    sha256: String,
}

#[derive(Serialize)]
struct Summary {
    from: u64,
    to: u64,
    entries: u64,
    sha256: String,
}

/// The entries of a span.
fn entries(
    client: &Client,
    span: Span,
) -> anyhow::Result<impl Stream<Item = Result<Entry, CallError>> + Unpin> {
    if span.from == 0 {
        bail!("--from 0: the first entry has the index 1");
    }
    let limit = match span.to {
        Some(to) if to < span.from => bail!("--to {to} lies before --from {}", span.from),
        Some(to) => Some(to - span.from + 1),
        None => None,
    };
    Ok(client.read(span.from, ReadOptions { limit, consistency: span.consistency.into() }))
}

pub(crate) async fn cat(client: Client, options: CatOptions) -> anyhow::Result<()> {
    let mut entries = entries(&client, options.span)?;
    let mut out = io::BufWriter::new(io::stdout());
    while let Some(entry) = entries.try_next().await? {
        match options.output {
            Format::Text => out.write_all(&entry.payload)?,
            Format::Json => {
                let line = Line { index: entry.index, sha256: sha256(&entry.payload) };
                serde_json::to_writer(&mut out, &line).map_err(io::Error::from)?;
            }
        }
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

pub(crate) async fn digest(client: Client, options: DigestOptions) -> anyhow::Result<()> {
    let from = options.span.from;
    let mut entries = entries(&client, options.span)?;
    let mut digest = Sha256::new();
    let mut count = 0;
    while let Some(entry) = entries.try_next().await? {
        if count > 0 {
            digest.update(b"\n");
        }
        digest.update(&entry.payload);
        count += 1;
    }
    if let Some(to) = options.span.to
        && count < to - from + 1
    {
        bail!("the log ends at {}, before {to}", from + count - 1);
    }
    let sha256 = hex(&digest.finalize());
    match options.output {
        Format::Text => println!("{sha256}"),
        Format::Json => {
            json_line(&Summary { from, to: (from + count).saturating_sub(1), entries: count, sha256 })?
        }
    }
    Ok(())
}

pub(crate) async fn tail(client: Client, options: TailOptions) -> anyhow::Result<()> {
    let last = client.tail(options.consistency.into()).await?;
    let from = last.saturating_sub(options.count) + 1;
    if options.follow {
        return print(client.subscribe(from)).await;
    }
    let count = last + 1 - from;
    if count == 0 {
        return Ok(());
    }
    let consistency = synod_client::Consistency::Sequential;
    print(client.read(from, ReadOptions { limit: Some(count), consistency })).await
}

async fn print(mut entries: impl Stream<Item = Result<Entry, CallError>> + Unpin) -> anyhow::Result<()> {
    while let Some(entry) = entries.try_next().await? {
        let mut out = io::stdout().lock();
        write!(out, "{}\t", entry.index)?;
        out.write_all(&entry.payload)?;
        out.write_all(b"\n")?;
        out.flush()?;
    }
    Ok(())
}
