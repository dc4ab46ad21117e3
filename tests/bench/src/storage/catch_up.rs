//! How long an empty member needs to get a log, and what appends feel of it.

use super::cluster::{Cluster, Member, Place, Usage};
use super::load::{Call, Foreground, Load, fill_bytes, foreground};
use crate::Format;
use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Between two looks at the new member.
const LOOK: Duration = Duration::from_millis(5);
/// A member that gets nothing for so long never will.
const PATIENCE: Duration = Duration::from_secs(30);
/// What is appended beside it.
const APPEND: Call = Call { entry_bytes: 100, entries: 1 };
const MIB: f64 = 1_048_576.0;

#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    place: Place,
    /// Payload of the log, in MiB.
    #[arg(long, default_value_t = 1_024, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
    log: u64,
    /// Bytes of an entry.
    #[arg(long, default_value_t = 10_000, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    size: u32,
    /// Entries of one call while the log is filled; calls share slots of at most 1 MiB.
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4_096))]
    batch: u32,
    /// Calls under way while the log is filled; with one, each slot holds one call.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    fillers: u32,
    /// Rounds without appends meanwhile.
    #[arg(long, default_value_t = 3, value_name = "N")]
    idle: u32,
    /// Rounds with appends meanwhile.
    #[arg(long, default_value_t = 3, value_name = "N")]
    loaded: u32,
    /// Appends under way in such a round, of 100 bytes each, at the leader.
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// How long appends are measured before each such round, in seconds.
    #[arg(long, default_value_t = 5, value_name = "SECONDS")]
    before: u64,
    /// text for people, json for programs: an object a round.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// What a process used during a round.
#[derive(Clone, Debug, Serialize)]
struct Used {
    member: String,
    role: &'static str,
    cpu_seconds: f64,
    written_mib: f64,
    peak_resident_mib: f64,
}

#[derive(Debug, Serialize)]
struct Round {
    round: u32,
    loaded: bool,
    log_mib: f64,
    entry_bytes: u32,
    slots: u64,
    seconds: f64,
    mib_per_second: f64,
    before: Option<Foreground>,
    meanwhile: Option<Foreground>,
    p99_ratio: Option<f64>,
    used: Vec<Used>,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let mut cluster = Cluster::start(&options.place).await?;
    let leader = cluster.leader().await?;
    let client = cluster.members[leader].client()?;
    let began = Instant::now();
    let call = Call { entry_bytes: options.size as usize, entries: options.batch as usize };
    let bytes = fill_bytes(&client, options.log, options.fillers, call).await?;
    let seconds = began.elapsed().as_secs_f64();
    eprintln!("filled {:.0} MiB in {seconds:.1} s", bytes as f64 / MIB);
    for round in 1..=options.idle + options.loaded {
        // Whatever was left to do after the fill or the last round is not what is measured.
        sleep(Duration::from_secs(2)).await;
        let outcome = measure(&mut cluster, &options, (round, bytes)).await?;
        tell(&outcome, options.output)?;
        let leader = cluster.leader().await?;
        cluster.remove_last(leader).await?;
    }
    Ok(())
}

async fn measure(
    cluster: &mut Cluster,
    options: &Options,
    (round, bytes): (u32, u64),
) -> anyhow::Result<Round> {
    let loaded = round > options.idle;
    let leader = cluster.leader().await?;
    let new = cluster.add().await?;
    let load = match loaded {
        true => Some(Load::start(&cluster.members[leader].client()?, options.clients, APPEND)),
        false => None,
    };
    let warmed = Instant::now();
    if loaded {
        sleep(Duration::from_secs(options.before)).await;
    }
    let target = cluster.members[leader].status().await?.chosen_through;
    let usage: Vec<Usage> = cluster.members.iter().map(Member::usage).collect();
    let began = Instant::now();
    let (joined, caught_up) =
        tokio::join!(cluster.join(new, leader), caught_up(&cluster.members[new], target));
    joined?;
    caught_up?;
    let ended = Instant::now();
    let samples = match load {
        Some(load) => load.end().await,
        None => Vec::new(),
    };
    let seconds = (ended - began).as_secs_f64();
    let (before, meanwhile) = (foreground(&samples, (warmed, began)), foreground(&samples, (began, ended)));
    let used = cluster.members.iter().zip(usage).enumerate().map(|(number, (member, before))| {
        let after = member.usage();
        Used {
            member: member.name.clone(),
            role: if number == leader {
                "leader"
            } else if number == new {
                "new"
            } else {
                "follower"
            },
            cpu_seconds: after.cpu - before.cpu,
            written_mib: after.written.saturating_sub(before.written) as f64 / MIB,
            peak_resident_mib: after.resident as f64 / MIB,
        }
    });
    Ok(Round {
        round,
        loaded,
        log_mib: bytes as f64 / MIB,
        entry_bytes: options.size,
        slots: target,
        seconds,
        mib_per_second: bytes as f64 / MIB / seconds,
        before,
        meanwhile,
        p99_ratio: before.zip(meanwhile).map(|(before, meanwhile)| meanwhile.p99_ms / before.p99_ms),
        used: used.collect(),
    })
}

/// Waits until a member has a slot and all before it on its disk.
async fn caught_up(member: &Member, target: u64) -> anyhow::Result<()> {
    let (mut last, mut since) = (0, Instant::now());
    let client = member.client()?;
    loop {
        let durable = synod_client::wire::status(&client)
            .await
            .context("the new member does not answer")?
            .durable_through;
        if durable >= target {
            return Ok(());
        }
        if durable > last {
            (last, since) = (durable, Instant::now());
        }
        if since.elapsed() > PATIENCE {
            bail!("the new member stays at slot {durable} of {target}");
        }
        sleep(LOOK).await;
    }
}

fn tell(round: &Round, output: Format) -> anyhow::Result<()> {
    if output == Format::Json {
        println!("{}", serde_json::to_string(round)?);
        return Ok(());
    }
    let kind = if round.loaded { "loaded" } else { "idle" };
    println!(
        "{}. {kind}: {:.0} MiB, {} slots in {:.2} s: {:.0} MiB/s",
        round.round, round.log_mib, round.slots, round.seconds, round.mib_per_second
    );
    for (name, foreground) in [("before", round.before), ("meanwhile", round.meanwhile)] {
        if let Some(Foreground { entries_per_second, p50_ms, p99_ms, max_ms }) = foreground {
            println!(
                "   appends {name}: {entries_per_second:.0}/s, p50 {p50_ms:.1}, p99 {p99_ms:.1}, max {max_ms:.0} ms"
            );
        }
    }
    for used in &round.used {
        println!(
            "   {} ({}): {:.1} s of a core, {:.0} MiB written, {:.0} MiB resident at most",
            used.member, used.role, used.cpu_seconds, used.written_mib, used.peak_resident_mib
        );
    }
    Ok(())
}
