//! What the storage of real sidecars does.

mod catch_up;
pub(crate) mod cluster;
mod commit;
mod load;
mod start;
mod trim;
mod written;

use clap::Subcommand;

/// Figures of the storage.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// How fast an empty member gets the log of three others, with and without appends meanwhile.
    ///
    /// Starts three sidecars on loopback, fills their log, and lets a fourth, empty one join. Then it removes that one
    /// again; each round has a new one. The directory goes at the end.
    CatchUp(catch_up::Options),
    /// What redb's ways to commit cost: one phase, two, and two with quick repair.
    ///
    /// On transactions like a member's, in a file of its own; no sidecar is started.
    Commit(commit::Options),
    /// How long a start takes on a long log, and how much memory it holds.
    ///
    /// Starts three sidecars on loopback, fills their log, kills them and starts them again.
    Start(start::Options),
    /// What trimming does to a log's size on disk, and to the appends meanwhile.
    ///
    /// Starts three sidecars on loopback, fills their log, and lowers its retention while appends go on. Needs about
    /// four times the log's size on disk.
    Trim(trim::Options),
    /// How many bytes a member writes for each byte that is appended.
    Written(written::Options),
}

pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::CatchUp(options) => catch_up::run(options).await,
        Command::Commit(options) => tokio::task::block_in_place(|| commit::run(&options)),
        Command::Start(options) => start::run(options).await,
        Command::Trim(options) => trim::run(options).await,
        Command::Written(options) => written::run(options).await,
    }
}
