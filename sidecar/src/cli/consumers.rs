//! `consumers`: durable named positions, for people and scripts.

use super::Format;
use super::connect::{Socket, print_json};
use super::show::{print, table};
use clap::{Args, Subcommand};
use comfy_table::presets;
use serde::Serialize;
use std::time::Duration;
use synod_client::{Consistency, Consumers, RegisterOptions};

/// Durable named positions in the log. The log is never trimmed past the slowest one, so a reader that goes by
/// its position finds every entry behind it, however long it was away. One that nobody needs any more must be
/// removed, or the log grows for ever.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum Command {
    /// List the consumers: where each stands, and how far it is behind.
    List(List),
    /// Register a consumer where the log begins, or at an index; prints where it stands.
    Register(Register),
    /// Note that a consumer is done with every entry up to an index; prints where it stands.
    Advance(Advance),
    /// Put a consumer anywhere in the log, back as well; prints where it stands.
    Seek(Seek),
    /// Forget a consumer: the log may be trimmed past it.
    Remove(Remove),
}

#[derive(Clone, Debug, Args)]
struct At {
    #[command(flatten)]
    socket: Socket,
    /// How long to try, in seconds.
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    timeout: u64,
    /// text for people, json for programs.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    at: At,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Register {
    #[command(flatten)]
    at: At,
    /// The consumer's name, 1 to 253 bytes, no control characters.
    #[arg(value_name = "NAME")]
    name: String,
    /// It is done with every entry up to this one; 0: it wants the whole log. Without it a new consumer begins
    /// where the log begins, one that is registered stays where it is.
    #[arg(long, value_name = "INDEX")]
    index: Option<u64>,
    /// Forget it by itself when nothing was heard of it for so many seconds, 10 or more; 0: never.
    #[arg(long, value_name = "SECONDS")]
    expiry: Option<u64>,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Advance {
    #[command(flatten)]
    at: At,
    /// The consumer's name.
    #[arg(value_name = "NAME")]
    name: String,
    /// It is done with every entry up to this one.
    #[arg(value_name = "INDEX")]
    index: u64,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Seek {
    #[command(flatten)]
    at: At,
    /// The consumer's name.
    #[arg(value_name = "NAME")]
    name: String,
    /// The next entry that it reads is the one behind this; 0: the first.
    #[arg(value_name = "INDEX")]
    index: u64,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Remove {
    #[command(flatten)]
    at: At,
    /// The consumer's name.
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(Serialize)]
struct Line {
    name: String,
    /// It is done with every entry up to it.
    index: u64,
    /// Entries behind the log's last one.
    behind: u64,
}

#[derive(Serialize)]
struct All {
    first_index: u64,
    last_index: u64,
    consumers: Vec<Line>,
}

#[derive(Serialize)]
struct Stands<'a> {
    name: &'a str,
    index: u64,
}

impl At {
    fn consumers(&self) -> anyhow::Result<Consumers> {
        Ok(self.socket.client()?.consumers().timeout(Duration::from_secs(self.timeout)))
    }

    fn tell(&self, name: &str, index: u64) -> anyhow::Result<()> {
        match self.output {
            Format::Json => print_json(&Stands { name, index }),
            Format::Text => {
                use std::io::Write;
                Ok(writeln!(std::io::stdout().lock(), "{index}")?)
            }
        }
    }
}

pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::List(List { at }) => list(&at).await,
        Command::Register(Register { at, name, index, expiry }) => {
            let options = RegisterOptions { index, expiry: expiry.map(Duration::from_secs) };
            let stands = at.consumers()?.register_with(&name, options).await;
            at.tell(&name, stands.map_err(|error| at.socket.explain(error))?.index)
        }
        Command::Advance(Advance { at, name, index }) => {
            let stands = at.consumers()?.advance(&name, index).await;
            at.tell(&name, stands.map_err(|error| at.socket.explain(error))?)
        }
        Command::Seek(Seek { at, name, index }) => {
            let stands = at.consumers()?.seek(&name, index).await;
            at.tell(&name, stands.map_err(|error| at.socket.explain(error))?)
        }
        Command::Remove(Remove { at, name }) => {
            at.consumers()?.remove(&name).await.map_err(|error| at.socket.explain(error))
        }
    }
}

async fn list(at: &At) -> anyhow::Result<()> {
    let list = at.consumers()?.list(Consistency::Linearizable).await;
    let list = list.map_err(|error| at.socket.explain(error))?;
    let consumers = list.consumers.into_iter().map(|consumer| Line {
        behind: list.last_index.saturating_sub(consumer.index),
        name: consumer.name,
        index: consumer.index,
    });
    let consumers: Vec<Line> = consumers.collect();
    let (first_index, last_index) = (list.first_index, list.last_index);
    if at.output == Format::Json {
        return print_json(&All { first_index, last_index, consumers });
    }
    if consumers.is_empty() {
        println!("No consumer is registered: retention alone decides what is trimmed.");
        return Ok(());
    }
    let mut table = table(presets::NOTHING);
    table.set_header(vec!["NAME", "DONE WITH", "BEHIND"]);
    for Line { name, index, behind } in consumers {
        table.add_row(vec![name, index.to_string(), behind.to_string()]);
    }
    print(&table)
}
