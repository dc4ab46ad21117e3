//! An example application that keeps a journal in Synod's log: see README.md beside this crate.
#![forbid(unsafe_code)]

mod append;
mod output;
mod read;
mod run;
mod write;

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;
use synod_client::Client;

/// Keep a journal in a replicated log.
///
/// Speaks only to a member's socket: in a pod the one that SYNOD_SOCKET names, elsewhere --socket PATH
/// (`synod-sidecar dev` prints the paths of a cluster on this machine).
#[derive(Debug, Parser)]
#[command(name = "journal", version, max_term_width = 80)]
struct Cli {
    /// The member's socket.
    #[arg(long, global = true, env = "SYNOD_SOCKET", default_value = "/run/synod/synod.sock")]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Follow the log and keep a summary of it, until SIGTERM.
    Run(run::Options),
    /// Append each line of standard input, an empty one too; print a JSON line an acknowledgement.
    Append(append::Options),
    /// Append entries that exist once only; print a JSON line an outcome, as it comes.
    Write(write::Options),
    /// Print the entries.
    Cat(read::CatOptions),
    /// Print SHA-256 over the entries, joined by newlines.
    Digest(read::DigestOptions),
    /// Print the last entries, then live with -f.
    Tail(read::TailOptions),
}

/// Which entries to read, and how fresh.
#[derive(Clone, Copy, Debug, Args)]
struct Span {
    /// The first index.
    #[arg(long, default_value_t = 1, value_name = "INDEX")]
    from: u64,
    /// The last index; without it the tail as it stands now.
    #[arg(long, value_name = "INDEX")]
    to: Option<u64>,
    /// How fresh.
    #[arg(long, value_enum, default_value_t = Freshness::Linearizable)]
    consistency: Freshness,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Freshness {
    /// Everything that was acknowledged before, anywhere; needs a leader.
    Linearizable,
    /// What this pod's member has applied.
    Sequential,
}

impl From<Freshness> for synod_client::Consistency {
    fn from(freshness: Freshness) -> Self {
        match freshness {
            Freshness::Linearizable => synod_client::Consistency::Linearizable,
            Freshness::Sequential => synod_client::Consistency::Sequential,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("journal: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(dispatch(cli));
    // A read of standard input that nobody waits for any more must not hold the process.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that went away (`journal cat | head`) is no fault.
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("journal: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn dispatch(cli: Cli) -> anyhow::Result<()> {
    let client = Client::connect(&cli.socket)?;
    match cli.command {
        Command::Run(options) => run::run(client, options).await,
        Command::Append(options) => append::run(client, options).await,
        Command::Write(options) => write::run(client, options).await,
        Command::Cat(options) => read::cat(client, options).await,
        Command::Digest(options) => read::digest(client, options).await,
        Command::Tail(options) => read::tail(client, options).await,
    }
}
