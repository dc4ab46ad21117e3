//! `append` and `tail`.

use super::connect::Socket;
use super::{Format, seconds};
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

/// Lines and bytes of standard input that are appended together.
const BATCH: (usize, usize) = (2_048, 512 << 10);

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
    #[arg(long, default_value_t = 10, value_name = "SECONDS", value_parser = seconds())]
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
        let appended = client.append_with(entries, how).await?;
        let printed = tell(&mut std::io::stdout().lock(), &appended, options.output, true);
        return printed.with_context(|| {
            let Appended { first_index, last_index, .. } = appended;
            format!("the entries stand at {first_index} to {last_index}, but that cannot be printed")
        });
    }
    // Whoever is not there is told at once, and as that.
    client.status().await.map_err(|error| options.socket.explain(error))?;
    append_lines(&client, How { expected_index, timeout, repeats: Repeats::Session }, options.output).await
}

/// Appends the lines of standard input in their order: those that are there already together, so that a file goes fast and
/// a line that is typed goes at once.
async fn append_lines(client: &Client, mut how: How, output: Format) -> anyhow::Result<()> {
    let mut lines = BufReader::with_capacity(BATCH.1, tokio::io::stdin());
    let (mut count, mut last, mut heard) = (0, 0, true);
    loop {
        let batch = next_lines(&mut lines).await.context("cannot read standard input")?;
        if batch.is_empty() {
            client.close().await;
            return Ok(());
        }
        let more = batch.len();
        let appended = client.append_with(batch, how.clone()).await.with_context(|| match count {
            0 => format!("no line is known to be appended; tried the first {more}"),
            _ => format!("{count} lines stand, the last at index {last}; tried the next {more}"),
        })?;
        count += more;
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

/// The lines that are there, at least one; none at the end of the input. An empty line is an entry.
async fn next_lines(lines: &mut BufReader<tokio::io::Stdin>) -> std::io::Result<Vec<Bytes>> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    loop {
        let mut line = Vec::new();
        if lines.read_until(b'\n', &mut line).await? == 0 {
            return Ok(batch);
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
    let Appended { first_index, last_index, repeated } = *appended;
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
    let form = if options.raw { Form::Raw } else { Form::As(options.output) };
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
        match form {
            Form::Raw => {
                out.write_all(&entry.payload)?;
                out.write_all(b"\n")?;
            }
            Form::As(Format::Text) => writeln!(out, "{}\t{}", entry.index, escaped(&entry.payload))?,
            Form::As(Format::Json) => {
                let text = std::str::from_utf8(&entry.payload).ok();
                let base64 = text.is_none().then(|| STANDARD.encode(&entry.payload));
                writeln!(out, "{}", serde_json::to_string(&Line { index: entry.index, text, base64 })?)?;
            }
        }
        out.flush()?;
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
