//! What a member writes for what is appended.

use super::cluster::{Cluster, Member, Place, Usage};
use super::load::{Call, Load, foreground};
use crate::Format;
use anyhow::Context;
use clap::Args;
use serde::Serialize;
use std::time::Duration;
use tokio::time::{Instant, sleep};

#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    place: Place,
    /// Appends under way at a time; one measurement for each.
    #[arg(long, default_values_t = [1, 64, 256], value_delimiter = ',', value_name = "N,N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: Vec<u32>,
    /// Bytes of an entry.
    #[arg(long, default_value_t = 100, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    size: u32,
    /// How long each measurement takes, in seconds.
    #[arg(long, default_value_t = 10, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// text for people, json for programs: an object a measurement.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Debug, Serialize)]
struct Written {
    clients: u32,
    entry_bytes: u32,
    payload_mib: f64,
    entries_per_second: f64,
    p99_ms: f64,
    /// Bytes that the leader had written to its disk for each byte of payload.
    leader: f64,
    /// The same of the followers, on average.
    follower: f64,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let cluster = Cluster::start(&options.place).await?;
    for &clients in &options.clients {
        let written = measure(&cluster, &options, clients).await?;
        match options.output {
            Format::Json => println!("{}", serde_json::to_string(&written)?),
            Format::Text => println!(
                "{} clients: {:.0}/s, p99 {:.1} ms, {:.1} MiB of payload\n   written for each byte: leader {:.1}, \
                 followers {:.1}",
                clients,
                written.entries_per_second,
                written.p99_ms,
                written.payload_mib,
                written.leader,
                written.follower
            ),
        }
    }
    Ok(())
}

async fn measure(cluster: &Cluster, options: &Options, clients: u32) -> anyhow::Result<Written> {
    let leader = cluster.leader().await?;
    let client = cluster.members[leader].client()?;
    let call = Call { entry_bytes: options.size as usize, entries: 1 };
    let usage = || cluster.members.iter().map(Member::usage).collect::<Vec<Usage>>();
    let (before, began) = (usage(), Instant::now());
    let load = Load::start(&client, clients, call);
    sleep(Duration::from_secs(options.seconds)).await;
    let samples = load.end().await;
    let ended = Instant::now();
    // What followers still have to write was appended, too.
    cluster.level().await?;
    let payload = samples.len() as u64 * u64::from(options.size);
    let ratios: Vec<f64> = usage()
        .iter()
        .zip(before)
        .map(|(after, before)| (after.written - before.written) as f64 / payload as f64)
        .collect();
    let followers: Vec<f64> =
        ratios.iter().enumerate().filter(|(member, _)| *member != leader).map(|(_, ratio)| *ratio).collect();
    let appends = foreground(&samples, (began, ended)).context("no append was answered")?;
    Ok(Written {
        clients,
        entry_bytes: options.size,
        payload_mib: payload as f64 / 1_048_576.0,
        entries_per_second: appends.entries_per_second,
        p99_ms: appends.p99_ms,
        leader: ratios[leader],
        follower: followers.iter().sum::<f64>() / followers.len() as f64,
    })
}
