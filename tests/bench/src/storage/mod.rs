//! What the storage of real sidecars does.

mod catch_up;
mod cluster;

use clap::Subcommand;

/// Figures of the storage.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// How fast an empty member gets the log of three others, with and without appends meanwhile.
    ///
    /// Starts three sidecars on loopback, fills their log, and lets a fourth, empty one join. Then it removes that one
    /// again; each round has a new one. The directory goes at the end.
    CatchUp(catch_up::Options),
}

pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::CatchUp(options) => catch_up::run(options).await,
    }
}
