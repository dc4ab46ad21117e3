//! `append` and `tail`.

use super::connect::Socket;
use super::{Format, seconds};
use crate::shown::{self, ShownEntry};
use anyhow::{Context, bail};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use futures::{Stream, StreamExt, TryStreamExt};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use synod_client::{
    AppendOptions as How, Appended, CallError, Client, Consistency, End, Entry, IdempotencyKey, NewEntry,
    ReadOptions, Repeats, Start,
};
use synod_paxos::Time;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

/// Lines and bytes of standard input that are appended together.
const BATCH: (usize, usize) = (2_048, 512 << 10);
/// Entries that are printed before a consumer's position moves on.
const CHUNK: usize = 256;
/// Longer lines are not read to their end.
const LONGEST_LINE: u64 = 4 << 20;

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
    #[arg(long, value_name = "KEY", requires = "what")]
    key: Option<String>,
    /// An index that was in the log when the key was made: a key that is so old that the log may have forgotten
    /// it is then refused.
    #[arg(long, value_name = "INDEX", requires = "key")]
    minted_at: Option<u64>,
    /// Says something beside each of the entries: a name of a-z, 0-9 and '-', and a value. May be given up to 32 times.
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// How long to try each, in seconds.
    #[arg(long, default_value_t = 10, value_name = "SECONDS", value_parser = seconds())]
    timeout: u64,
    /// text: the index of each entry. json: an object a line.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// Append the bytes of this file as one entry.
    #[arg(long, value_name = "FILE", group = "what")]
    file: Option<PathBuf>,
    /// Append the bytes of standard input as one entry.
    #[arg(long, group = "what")]
    stdin_binary: bool,
    /// The entries, appended together; without any, each line of standard input is one.
    #[arg(value_name = "ENTRY", group = "what")]
    entries: Vec<String>,
}

impl AppendOptions {
    /// What is said beside each entry.
    fn headers(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let mut headers = BTreeMap::new();
        for (name, value) in &self.headers {
            if headers.insert(name.clone(), value.clone()).is_some() {
                bail!("the header {name} is given twice");
            }
        }
        Ok(headers)
    }

    /// What is appended together; none: the lines of standard input.
    fn together(&self) -> anyhow::Result<Vec<Bytes>> {
        if let Some(path) = &self.file {
            let file =
                std::fs::File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
            return Ok(vec![whole(file).with_context(|| format!("{} cannot be read", path.display()))?]);
        }
        if self.stdin_binary {
            return Ok(vec![whole(std::io::stdin().lock()).context("cannot read standard input")?]);
        }
        Ok(self.entries.iter().map(|entry| Bytes::from(entry.clone())).collect())
    }
}

/// A time as it is given.
fn time(text: &str) -> Result<SystemTime, String> {
    let time = shown::read_time(text).ok_or("a time is given as RFC 3339 has it: 2026-12-01T09:30:00Z")?;
    UNIX_EPOCH.checked_add(Duration::from_micros(time.0)).ok_or_else(|| "that is too far ahead".to_owned())
}

/// A header as it is given: its name, and behind the first '=' its value.
fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("a header is given as NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Entries with the same headers.
fn with_headers(payloads: Vec<Bytes>, headers: &BTreeMap<String, String>) -> Vec<NewEntry> {
    let entry = |payload| NewEntry { headers: headers.clone(), ..NewEntry::new(payload) };
    payloads.into_iter().map(entry).collect()
}

/// All that can be read, if it is not more than any entry can have.
fn whole(from: impl Read) -> std::io::Result<Bytes> {
    let mut bytes = Vec::new();
    from.take(LONGEST_LINE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST_LINE {
        let message = format!("it has more than {} MiB: no entry can be as large", LONGEST_LINE >> 20);
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, message));
    }
    Ok(bytes.into())
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
    let (entries, headers) = (options.together()?, options.headers()?);
    if !entries.is_empty() {
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
        let how = How { expected_index, timeout, repeats: Repeats::Key(key), ..How::default() };
        let appended = client.append_entries(with_headers(entries, &headers), how).await?;
        let printed = tell(&mut std::io::stdout().lock(), &appended, options.output, true);
        return printed.with_context(|| {
            let Appended { first_index, last_index, .. } = appended;
            format!("the entries stand at {first_index} to {last_index}, but that cannot be printed")
        });
    }
    // Whoever is not there is told at once, and as that.
    client.status().await.map_err(|error| options.socket.explain(error))?;
    let how = How { expected_index, timeout, repeats: Repeats::Session, ..How::default() };
    append_lines(&client, how, &headers, options.output).await
}

/// Appends the lines of standard input in their order: those that are there already together, so that a file goes fast and
/// a line that is typed goes at once.
async fn append_lines(
    client: &Client,
    mut how: How,
    headers: &BTreeMap<String, String>,
    output: Format,
) -> anyhow::Result<()> {
    let mut lines = BufReader::with_capacity(BATCH.1, tokio::io::stdin());
    let progress = progress()?;
    let (mut count, mut last, mut heard) = (0, 0, true);
    loop {
        let batch = next_lines(&mut lines).await.context("cannot read standard input")?;
        if batch.is_empty() {
            client.close().await;
            return Ok(());
        }
        let more = batch.len();
        let batch = with_headers(batch, headers);
        let appended = client.append_entries(batch, how.clone()).await.with_context(|| match count {
            0 => format!("no line is known to be appended; tried the first {more}"),
            _ => format!("{count} lines stand, the last at index {last}; tried the next {more}"),
        })?;
        count += more;
        progress.inc(more as u64);
        last = appended.last_index;
        how.expected_index = None;
        if !heard {
            continue;
        }
        match tell(&mut std::io::stdout().lock(), &appended, output, false) {
            // Whoever heard the indexes went away (`append | head`): the lines are appended all the same.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => heard = false,
            told => told.with_context(|| {
                format!("{count} lines stand, the last at index {last}, but that cannot be printed")
            })?,
        }
    }
}

/// Tells a person how far a file is, unless they see the indexes.
fn progress() -> anyhow::Result<ProgressBar> {
    if std::io::stdin().is_terminal() || std::io::stdout().is_terminal() {
        return Ok(ProgressBar::hidden());
    }
    let style = ProgressStyle::with_template("{human_pos} lines appended, {per_sec}")?;
    Ok(ProgressBar::no_length().with_style(style))
}

/// The lines that are there, at least one; none at the end of the input. An empty line is an entry.
async fn next_lines(lines: &mut BufReader<tokio::io::Stdin>) -> std::io::Result<Vec<Bytes>> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    loop {
        let mut line = Vec::new();
        if (&mut *lines).take(LONGEST_LINE + 1).read_until(b'\n', &mut line).await? == 0 {
            return Ok(batch);
        }
        if line.len() as u64 > LONGEST_LINE {
            let message = format!("a line has more than {} MiB: no entry can be as long", LONGEST_LINE >> 20);
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, message));
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        bytes += line.len();
        batch.push(line.into());
        let next = lines.buffer().iter().position(|byte| *byte == b'\n');
        if batch.len() == BATCH.0 || next.is_none_or(|next| bytes + next > BATCH.1) {
            return Ok(batch);
        }
    }
}

/// Prints where entries stand.
fn tell(out: &mut impl Write, appended: &Appended, output: Format, together: bool) -> std::io::Result<()> {
    let Appended { first_index, last_index, repeated, .. } = *appended;
    let json =
        |first_index, last_index| serde_json::to_string(&Acknowledged { first_index, last_index, repeated });
    match output {
        Format::Text => (first_index..=last_index).try_for_each(|index| writeln!(out, "{index}"))?,
        Format::Json if together => writeln!(out, "{}", json(first_index, last_index)?)?,
        Format::Json => {
            for index in first_index..=last_index {
                writeln!(out, "{}", json(index, index)?)?;
            }
        }
    }
    out.flush()
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
    /// From the first entry of this time on, as in 2026-12-01T09:30:00Z.
    #[arg(long, value_name = "TIME", conflicts_with_all = ["from", "count"], value_parser = time)]
    since: Option<SystemTime>,
    /// Go on with what is appended from now on.
    #[arg(short, long)]
    follow: bool,
    /// How fresh.
    #[arg(long, value_enum, default_value_t = Freshness::Linearizable)]
    consistency: Freshness,
    /// How old the view may be, in milliseconds; stale-bounded only.
    #[arg(long, default_value_t = 1_000, value_name = "MS")]
    max_staleness: u32,
    /// text: index and entry, with everything escaped that is no visible character. json: an object a line.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// Print the bytes of each entry as they are and a newline, and nothing else.
    #[arg(long, conflicts_with = "output")]
    raw: bool,
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
    let form = if options.raw { Form::Raw } else { Form::As(options.output) };
    if let Some(since) = options.since {
        let end = if options.follow { End::Never } else { End::Index(last) };
        return print(client.subscribe_until(Start::Time(since), end), form).await;
    }
    let from = options.from.unwrap_or_else(|| last.saturating_sub(options.count) + 1);
    if options.follow {
        return print(client.subscribe(from), form).await;
    }
    let limit = (last + 1).saturating_sub(from);
    if limit == 0 {
        return Ok(());
    }
    // This member has applied what was asked for just now.
    let how = ReadOptions { limit: Some(limit), consistency: Consistency::Sequential };
    print(client.read(from, how), form).await
}

/// How entries are printed.
#[derive(Clone, Copy, Debug)]
enum Form {
    Raw,
    As(Format),
}

/// Text on one line, whatever the bytes: no entry looks like two, and none speaks to the terminal.
fn escaped(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                character if character.is_control() => text.extend(character.escape_default()),
                character => text.push(character),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

async fn print(
    mut entries: impl Stream<Item = Result<Entry, CallError>> + Unpin,
    form: Form,
) -> anyhow::Result<()> {
    while let Some(entry) = entries.try_next().await? {
        let mut out = std::io::stdout().lock();
        write_entry(&mut out, &entry, form)?;
        out.flush()?;
    }
    Ok(())
}

fn write_entry(out: &mut impl Write, entry: &Entry, form: Form) -> std::io::Result<()> {
    match form {
        Form::Raw => {
            out.write_all(&entry.payload)?;
            out.write_all(b"\n")
        }
        Form::As(Format::Text) => writeln!(out, "{}\t{}", entry.index, escaped(&entry.payload)),
        Form::As(Format::Json) => {
            let time = entry.time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            let time = time.and_then(|since| u64::try_from(since.as_micros()).ok()).map(Time);
            let shown = ShownEntry::new(entry.index, &entry.payload, time, entry.headers.clone());
            writeln!(out, "{}", serde_json::to_string(&shown)?)
        }
    }
}

#[derive(Clone, Debug, Args)]
pub(super) struct SubscribeOptions {
    #[command(flatten)]
    socket: Socket,
    /// The consumer whose position this is; it is registered where there is none of that name.
    #[arg(long, value_name = "NAME")]
    consumer: String,
    /// text: index and entry, with everything escaped that is no visible character. json: an object a line.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// Print the bytes of each entry as they are and a newline, and nothing else.
    #[arg(long, conflicts_with = "output")]
    raw: bool,
}

/// Prints what a consumer is not done with, then live. What was printed is done with: after a crash the last entries come
/// again, and none is left out.
pub(super) async fn subscribe(options: SubscribeOptions) -> anyhow::Result<()> {
    let client = options.socket.client()?;
    let (consumers, name) = (client.consumers(), options.consumer.as_str());
    let form = if options.raw { Form::Raw } else { Form::As(options.output) };
    let done = consumers.register(name).await.map_err(|error| options.socket.explain(error))?;
    let mut chunks = client.subscribe(done + 1).ready_chunks(CHUNK);
    while let Some(chunk) = chunks.next().await {
        let mut last = None;
        {
            let mut out = std::io::stdout().lock();
            for entry in chunk {
                let entry = entry?;
                write_entry(&mut out, &entry, form)?;
                last = Some(entry.index);
            }
            out.flush()?;
        }
        if let Some(last) = last {
            consumers.advance(name, last).await.map_err(|error| options.socket.explain(error))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn an_entry_is_one_line() {
        assert_eq!(escaped(b"a\tb\nc\\n\x1b[31m\xff\xc3\xa9\r"), "a\\tb\\nc\\\\n\\u{1b}[31m\\xff\u{e9}\\r");
        assert_eq!(escaped(b""), "");
    }
}
