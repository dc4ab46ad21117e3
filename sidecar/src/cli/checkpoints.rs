//! `checkpoint`: the application's state at an index, for people and scripts.

use super::Format;
use super::connect::{Socket, print_json};
use super::show::{bytes_bar, print, table};
use crate::views::hex;
use anyhow::Context;
use clap::{Args, Subcommand};
use comfy_table::presets;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use synod_client::{CheckpointError, Checkpoints, Progress};
use tokio::fs::File;

/// Between two turns of what shows that something is awaited.
const TURN: Duration = Duration::from_millis(100);

/// The application's state at an index, kept by every member beside the log. The log is trimmed up to the newest one
/// (as far as retention says), and never past it: whoever starts anew fetches that state and reads on behind its
/// index.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum Command {
    /// Save a file as the state at an index. Done when a quorum of members has it on disk. Where that is cut, saving
    /// the same file again goes on.
    Save(Save),
    /// Write the newest state, or the one at an index, to a file.
    Fetch(Fetch),
    /// List the checkpoints, oldest first: the last is the one that the log is not trimmed past.
    List(List),
}

#[derive(Clone, Debug, Args)]
struct At {
    #[command(flatten)]
    socket: Socket,
    /// How long a transfer may stand still, in seconds.
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    timeout: u64,
    /// text for people, json for programs.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Save {
    #[command(flatten)]
    at: At,
    /// Every entry up to this one is in the state.
    #[arg(value_name = "INDEX")]
    index: u64,
    /// The file that holds the state; `-`: standard input.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Fetch {
    #[command(flatten)]
    at: At,
    /// The checkpoint at this index; without it the newest.
    #[arg(long, value_name = "INDEX")]
    index: Option<u64>,
    /// Where to; it appears when all of it is there and has the right digest. `-`: standard output.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

#[derive(Clone, Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    at: At,
}

#[derive(Serialize)]
struct Checkpoint {
    index: u64,
    length: u64,
    /// SHA-256 of the state.
    digest: String,
    /// On the disk of the member that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    here: Option<bool>,
}

impl Checkpoint {
    fn new(checkpoint: &synod_client::Checkpoint, here: Option<bool>) -> Checkpoint {
        let synod_client::Checkpoint { index, length, digest } = checkpoint;
        Checkpoint { index: *index, length: *length, digest: hex(digest), here }
    }
}

impl At {
    fn checkpoints(&self) -> anyhow::Result<Checkpoints> {
        Ok(self.socket.client()?.checkpoints().timeout(Duration::from_secs(self.timeout)))
    }

    fn explain(&self, error: CheckpointError) -> anyhow::Error {
        match error {
            CheckpointError::Call(error) => self.socket.explain(error),
            error => error.into(),
        }
    }

    /// Says what was carried out: on standard error where standard output is taken.
    fn tell(&self, checkpoint: &synod_client::Checkpoint, what: &str, aside: bool) -> anyhow::Result<()> {
        let view = Checkpoint::new(checkpoint, None);
        let said = format!("{what}: index {}, {} bytes, SHA-256 {}", view.index, view.length, view.digest);
        match self.output {
            _ if aside => eprintln!("{said}"),
            Format::Json => print_json(&view)?,
            Format::Text => {
                use std::io::Write;
                writeln!(std::io::stdout().lock(), "{said}")?;
            }
        }
        Ok(())
    }
}

fn waiting(bar: &ProgressBar, message: &'static str) {
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(TURN);
    bar.set_message(message);
}

fn show(bar: &ProgressBar, progress: Progress) {
    let (message, bytes) = match progress {
        Progress::Read(bytes) => ("reading", bytes),
        Progress::Sent(bytes) => ("sending", bytes),
        Progress::Fetched(bytes) => ("fetching", bytes),
        Progress::Replicating => {
            return waiting(bar, "all is sent; a quorum of members is to have it on disk");
        }
        // What a later client tells of, too.
        _ => return,
    };
    bar.set_message(message);
    bar.set_position(bytes);
}

pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Save(options) => save(options).await,
        Command::Fetch(options) => fetch(options).await,
        Command::List(List { at }) => list(&at).await,
    }
}

fn is_standard(file: &Path) -> bool {
    file.as_os_str() == "-"
}

async fn save(Save { at, index, file }: Save) -> anyhow::Result<()> {
    let saved = if is_standard(&file) {
        let spinner = ProgressBar::new_spinner();
        waiting(&spinner, "sending standard input");
        let checkpoints = at.checkpoints()?;
        let saved = checkpoints.save_stream(index, tokio::io::stdin()).await;
        spinner.finish_and_clear();
        saved
    } else {
        let state = File::open(&file).await.with_context(|| format!("cannot read {}", file.display()))?;
        let bar = bytes_bar(state.metadata().await?.len())?;
        let shown = bar.clone();
        let checkpoints = at.checkpoints()?.observe(move |progress| show(&shown, progress));
        let saved = checkpoints.save(index, state).await;
        bar.finish_and_clear();
        saved
    };
    at.tell(&saved.map_err(|error| at.explain(error))?, "saved", false)
}

async fn fetch(Fetch { at, index, file }: Fetch) -> anyhow::Result<()> {
    let bar = bytes_bar(0)?;
    let shown = bar.clone();
    let checkpoints = at.checkpoints()?.observe(move |progress| show(&shown, progress));
    let fetched = checkpoints.fetch(index).await.map_err(|error| at.socket.explain(error))?;
    bar.set_length(fetched.checkpoint().length);
    if is_standard(&file) {
        let copied = fetched.copy_to(&mut tokio::io::stdout()).await;
        bar.finish_and_clear();
        return at.tell(&copied.map_err(|error| at.explain(error))?, "fetched", true);
    }
    // Beside its place, so that a rename puts it there as a whole; gone if that fails.
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let part = tempfile::NamedTempFile::new_in(folder)
        .with_context(|| format!("cannot write in {}", folder.display()))?;
    let mut target = File::from_std(part.reopen()?);
    let copied = fetched.copy_to(&mut target).await;
    bar.finish_and_clear();
    let copied = copied.map_err(|error| at.explain(error))?;
    target.sync_all().await?;
    part.persist(&file).with_context(|| format!("cannot write {}", file.display()))?;
    at.tell(&copied, "fetched", false)
}

async fn list(at: &At) -> anyhow::Result<()> {
    let listed = at.checkpoints()?.list().await.map_err(|error| at.socket.explain(error))?;
    let views: Vec<_> =
        listed.iter().map(|listed| Checkpoint::new(&listed.checkpoint, Some(listed.here))).collect();
    if at.output == Format::Json {
        return print_json(&views);
    }
    if views.is_empty() {
        println!("No checkpoint was saved yet: retention alone decides what is trimmed.");
        return Ok(());
    }
    let mut table = table(presets::NOTHING);
    table.set_header(vec!["INDEX", "BYTES", "HERE", "SHA-256"]);
    for Checkpoint { index, length, digest, here } in views {
        let here = if here == Some(true) { "yes" } else { "no" };
        let digest = format!("{}...", digest.get(..16).unwrap_or_default());
        table.add_row(vec![index.to_string(), length.to_string(), here.to_owned(), digest]);
    }
    print(&table)
}
