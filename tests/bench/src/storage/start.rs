//! How long a start takes on a long log, and how much memory.

use super::cluster::{Cluster, Member, PAUSE, Place};
use super::load::{Call, fill};
use crate::Format;
use clap::Args;
use serde::Serialize;
use std::time::Duration;
use synod_client::{AppendOptions, Consistency};
use tokio::time::{Instant, sleep};

#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    place: Place,
    /// Entries of the log.
    #[arg(long, default_value_t = 1_000_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    entries: u64,
    /// Bytes of an entry.
    #[arg(long, default_value_t = 100, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    size: u32,
    /// Calls of one entry under way while the log is filled.
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    fillers: u32,
    /// How often each start is measured.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// text for people, json for programs: an object for the memory, then one a round.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// Of whichever member has the most, in MiB.
#[derive(Debug, Serialize)]
struct Memory {
    entries: u64,
    slots: u64,
    /// Resident where nothing was appended yet.
    empty_mib: f64,
    /// Resident when the log was just filled.
    filled_mib: f64,
}

#[derive(Debug, Serialize)]
struct Round {
    /// One follower was killed: from the start of its process until it reads the whole log to a client.
    follower_seconds: f64,
    /// All were killed: from the start of their processes until a client's append is acknowledged, an election included.
    cluster_seconds: f64,
    /// Resident then, of whichever member has the most, in MiB.
    started_mib: f64,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let mut cluster = Cluster::start(&options.place).await?;
    let empty_mib = resident(&cluster);
    let leader = cluster.leader().await?;
    let call = Call { entry_bytes: options.size as usize, entries: 1 };
    let client = cluster.members[leader].client()?;
    fill(&client, options.entries, options.fillers, call).await?;
    cluster.level().await?;
    let slots = cluster.members[leader].status().await?.chosen_through;
    let memory = Memory { entries: options.entries, slots, empty_mib, filled_mib: resident(&cluster) };
    match options.output {
        Format::Json => println!("{}", serde_json::to_string(&memory)?),
        Format::Text => println!(
            "{} entries in {} slots: {:.0} MiB resident, {:.0} MiB before them",
            memory.entries, memory.slots, memory.filled_mib, memory.empty_mib
        ),
    }
    for number in 1..=options.rounds {
        let round = measure(&mut cluster, options.entries).await?;
        match options.output {
            Format::Json => println!("{}", serde_json::to_string(&round)?),
            Format::Text => println!(
                "{number}. a follower reads behind {:.2} s, all append behind {:.2} s; {:.0} MiB resident",
                round.follower_seconds, round.cluster_seconds, round.started_mib
            ),
        }
    }
    Ok(())
}

fn resident(cluster: &Cluster) -> f64 {
    let most = cluster.members.iter().map(|member| member.usage().resident_now).max();
    most.unwrap_or(0) as f64 / 1_048_576.0
}

async fn measure(cluster: &mut Cluster, entries: u64) -> anyhow::Result<Round> {
    let follower = (cluster.leader().await? + 1) % cluster.members.len();
    let began = cluster.restart(follower..follower + 1)?;
    reads(&cluster.members[follower], entries).await?;
    let follower_seconds = began.elapsed().as_secs_f64();
    let everyone = 0..cluster.members.len();
    let began = cluster.restart(everyone)?;
    let patient = AppendOptions { timeout: Duration::from_secs(60), ..AppendOptions::default() };
    cluster.members[follower].client()?.append_with(vec!["first".into()], patient).await?;
    let cluster_seconds = began.elapsed().as_secs_f64();
    cluster.level().await?;
    Ok(Round { follower_seconds, cluster_seconds, started_mib: resident(cluster) })
}

/// Waits until a member reads so many entries to its clients.
async fn reads(member: &Member, entries: u64) -> anyhow::Result<()> {
    let client = member.client()?;
    let began = Instant::now();
    loop {
        match client.tail(Consistency::Sequential).await {
            Ok(last) if last >= entries => return Ok(()),
            Err(error) if began.elapsed() > Duration::from_secs(60) => return Err(error.into()),
            _ => sleep(PAUSE).await,
        }
    }
}
