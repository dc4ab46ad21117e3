//! The commands.

mod admin;
mod checkpoints;
mod connect;
mod consumers;
mod dev;
mod entries;
mod offline;
mod recover;
mod run;
mod show;
mod wait;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;
use synod_client::{AppendError, CallError, Reason};

/// How long a member that has stopped may take to close its disk.
const CLOSING: Duration = Duration::from_secs(5);

/// A replicated log beside your application.
///
/// Each replica runs `synod-sidecar run`; applications speak to its Unix socket. On Kubernetes the operator
/// starts it in every pod of a PaxosCluster. To try it on this machine: `synod-sidecar dev --replicas 3`.
#[derive(Debug, Parser)]
#[command(name = "synod-sidecar", version, max_term_width = 80)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one member, until SIGTERM.
    Run(Box<run::Options>),
    /// Run a whole cluster on this machine, until Ctrl-C.
    Dev(dev::Options),
    /// Append entries: the arguments, or each line of standard input, an empty one too.
    Append(entries::AppendOptions),
    /// Print the log's last entries, then live with -f.
    Tail(entries::TailOptions),
    /// Print what a consumer is not done with, then live, and move its position on.
    Subscribe(entries::SubscribeOptions),
    /// Save, fetch and list checkpoints: the application's state at an index.
    #[command(subcommand)]
    Checkpoint(checkpoints::Command),
    /// List, register, move on and remove consumers: positions that the log is not trimmed past.
    #[command(subcommand)]
    Consumers(consumers::Command),
    /// Show what this member knows of itself and its cluster.
    Status(show::Options),
    /// List the members of the cluster.
    Members(show::Options),
    /// List all configurations and leaderships so far.
    History(show::Options),
    /// Wait until this member is ready, or knows a leader.
    Wait(wait::WaitOptions),
    /// Succeed if this member answers: for probes in scripts.
    Probe(wait::ProbeOptions),
    /// Hand leadership over before this member stops: the preStop hook. For two minutes the member does not campaign,
    /// unless no other one leads. SIGTERM hands over by itself.
    Prestop(wait::PrestopOptions),
    /// Show what a data directory holds: identity, positions, configuration. The member must be stopped.
    Inspect(offline::InspectOptions),
    /// Read every row of a data directory, and name what is damaged. The member must be stopped.
    Verify(offline::InspectOptions),
    /// Print the entries of a data directory as lines of JSON. The member must be stopped.
    Export(offline::ExportOptions),
    /// Go on without a quorum that is lost for good: shows what would be kept and lost, then makes a new
    /// cluster of one member out of the survivors' directories, which stay as they are.
    Recover(recover::RecoverOptions),
    /// Form a cluster and change its members, where no operator does it.
    #[command(subcommand)]
    Admin(admin::Command),
    /// Print what makes a shell complete these commands.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// How a command ended that did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failed {
    /// Refused, or failed: nothing was done.
    Refused,
    /// It may have been done.
    Unknown,
    /// Nobody answers.
    Silent,
}

impl Failed {
    /// What an error means.
    fn of(error: &anyhow::Error) -> Failed {
        let call = |error: &CallError| match error.reason {
            Reason::Transport => Failed::Silent,
            _ => Failed::Refused,
        };
        let found = error.chain().find_map(|cause| match cause.downcast_ref() {
            Some(AppendError::Unknown(_)) => Some(Failed::Unknown),
            Some(AppendError::Refused(error)) => Some(call(error)),
            Some(AppendError::UnexpectedIndex { .. }) => Some(Failed::Refused),
            None => cause.downcast_ref().map(call),
        });
        found.unwrap_or(Failed::Refused)
    }

    fn code(self) -> u8 {
        match self {
            Failed::Refused => 1,
            Failed::Unknown => 3,
            Failed::Silent => 4,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Failed::Refused => "refused",
            Failed::Unknown => "unknown",
            Failed::Silent => "nobody answers",
        }
    }
}

/// What was found is no success, and stands in the output already.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Told(String);

/// Whether the command line asks for output for programs.
fn wants_json() -> bool {
    let words: Vec<String> = std::env::args().take_while(|word| word != "--").collect();
    words.iter().any(|word| word == "-ojson" || word == "--output=json")
        || words.windows(2).any(|pair| matches!(pair[0].as_str(), "-o" | "--output") && pair[1] == "json")
}

/// Seconds on the command line: a year at most.
fn seconds() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(..=31_536_000)
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Runs the command line; the exit code is 0, 1 where it was refused or failed, 2 for a wrong command line, 3 where it may
/// have been done, 4 where nobody answers.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = match builder.enable_all().thread_name("synod").max_blocking_threads(32).build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("synod-sidecar: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let serves = matches!(cli.command, Command::Run(_) | Command::Dev(_));
    let result = runtime.block_on(dispatch(cli.command));
    if serves {
        // What still holds the disk goes with its tasks, and the disk is closed.
        runtime.shutdown_timeout(CLOSING);
    } else {
        // A read of standard input that nobody waits for any more must not hold the process.
        runtime.shutdown_background();
    }
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that went away (`synod-sidecar tail | head`) is no fault.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let error = of_output(error);
            let failed = Failed::of(&error);
            let message = whole(&error);
            if wants_json() && !error.is::<Told>() {
                let error = serde_json::json!({"error": {"outcome": failed.word(), "message": message}});
                // Where nobody reads it, the exit code tells.
                drop(writeln!(std::io::stdout(), "{error}"));
            }
            eprintln!("synod: {message}");
            ExitCode::from(failed.code())
        }
    }
}

/// What could not be printed is said to be that: the bare words of the system could be about the disk of the member.
fn of_output(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<std::io::Error>() {
        Some(io) if io.kind() == std::io::ErrorKind::StorageFull && error.chain().len() == 1 => {
            error.context("the answer cannot be printed")
        }
        _ => error,
    }
}

/// An error with what led to it; a cause that the error names itself is not said twice.
fn whole(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |said, cause| match cause.to_string() {
        cause if said.is_empty() => cause,
        cause if said.contains(&cause) => said,
        cause => format!("{said}: {cause}"),
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = std::io::ErrorKind::BrokenPipe;
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == broken)
}

async fn dispatch(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run(options) => run::run(*options).await,
        Command::Dev(options) => dev::run(options).await,
        Command::Append(options) => entries::append(options).await,
        Command::Tail(options) => entries::tail(options).await,
        Command::Subscribe(options) => entries::subscribe(options).await,
        Command::Checkpoint(command) => checkpoints::run(command).await,
        Command::Consumers(command) => consumers::run(command).await,
        Command::Status(options) => show::status(options).await,
        Command::Members(options) => show::members(options).await,
        Command::History(options) => show::history(options).await,
        Command::Wait(options) => wait::wait(options).await,
        Command::Probe(options) => wait::probe(options).await,
        Command::Prestop(options) => wait::prestop(options).await,
        Command::Inspect(options) => offline::inspect(&options),
        Command::Verify(options) => offline::verify(&options),
        Command::Export(options) => offline::export(&options),
        Command::Recover(options) => recover::recover(&options),
        Command::Admin(command) => admin::run(command).await,
        Command::Completion { shell } => {
            let name = std::env::args().next().unwrap_or_default();
            let name = std::path::Path::new(&name).file_name().and_then(|name| name.to_str());
            let name = name.unwrap_or("synod");
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), name, &mut text);
            Ok(std::io::stdout().write_all(&text)?)
        }
    }
}

/// Resolves at SIGTERM or SIGINT. As process 1 of a container a program gets neither without a handler.
async fn stop_signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::whole;
    use anyhow::Context;

    #[test]
    fn a_cause_is_said_once() {
        let io = std::io::Error::other("the plug was pulled");
        let error = Err::<(), _>(io).context("the disk failed: the plug was pulled").context("no start");
        assert_eq!(whole(&error.unwrap_err()), "no start: the disk failed: the plug was pulled");
    }
}
