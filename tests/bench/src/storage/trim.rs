//! What trimming does to the size of a log on disk, and to the appends meanwhile.

use super::cluster::{Cluster, Place};
use super::load::{Call, Foreground, Load, fill_bytes, foreground};
use crate::Format;
use anyhow::Context;
use clap::Args;
use futures::StreamExt;
use serde::Serialize;
use std::path::Path;
use std::time::Duration;
use synod_client::{Client, ReadOptions};
use tokio::time::{Instant, sleep};

const MIB: f64 = 1_048_576.0;
/// Columns of the plot's longest bar.
const COLUMNS: f64 = 50.0;

#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    place: Place,
    /// Payload of the log before the trim, in MiB.
    #[arg(long, default_value_t = 5_120, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
    log: u64,
    /// How much of it is retained then, in percent.
    #[arg(long, default_value_t = 10, value_name = "PERCENT", value_parser = clap::value_parser!(u64).range(1..100))]
    retain: u64,
    /// Bytes of an entry.
    #[arg(long, default_value_t = 1_000, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    size: u32,
    /// Entries of a call.
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4_096))]
    batch: u32,
    /// Calls under way at a time.
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    clients: u32,
    /// How long appends are measured before the trim, in seconds.
    #[arg(long, default_value_t = 10, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3_600))]
    before: u64,
    /// How long it is watched behind the trim, in seconds.
    #[arg(long, default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3_600))]
    after: u64,
    /// text for people, json for programs: one object.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// What stood on the leader's disk.
#[derive(Clone, Copy, Debug, Serialize)]
struct Size {
    /// Seconds since the retention was lowered; less than 0 before.
    seconds: f64,
    disk_mib: f64,
}

#[derive(Debug, Serialize)]
struct Trimmed {
    log_mib: f64,
    retain_mib: f64,
    sizes: Vec<Size>,
    before: Foreground,
    meanwhile: Foreground,
    p99_ratio: f64,
    /// The leader's disk, for each byte of payload that its log held at the end.
    at_the_end: f64,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let cluster = Cluster::start(&options.place).await?;
    let leader = cluster.leader().await?;
    let client = cluster.members[leader].client()?;
    let call = Call { entry_bytes: options.size as usize, entries: options.batch as usize };
    let began = Instant::now();
    let bytes = fill_bytes(&client, options.log, options.clients, call).await?;
    eprintln!("filled {:.0} MiB in {:.1} s", bytes as f64 / MIB, began.elapsed().as_secs_f64());

    let load = Load::start(&client, options.clients, call);
    let (warmed, mut sizes) = (Instant::now(), Vec::new());
    let lowered = warmed + Duration::from_secs(options.before);
    watch(&cluster.members[leader].dir, lowered, lowered, &mut sizes).await?;
    let retain = bytes / 100 * options.retain;
    cluster.admin(leader, &["settings", "--retain-bytes", &retain.to_string()])?;
    let end = lowered + Duration::from_secs(options.after);
    watch(&cluster.members[leader].dir, lowered, end, &mut sizes).await?;
    let samples = load.end().await;

    let held = held(&client).await? * u64::from(options.size);
    let before = foreground(&samples, (warmed, lowered)).context("no append was answered before")?;
    let meanwhile = foreground(&samples, (lowered, end)).context("no append was answered meanwhile")?;
    let last = sizes.last().context("nothing was seen")?;
    let trimmed = Trimmed {
        log_mib: bytes as f64 / MIB,
        retain_mib: retain as f64 / MIB,
        at_the_end: last.disk_mib * MIB / held as f64,
        p99_ratio: meanwhile.p99_ms / before.p99_ms,
        sizes,
        before,
        meanwhile,
    };
    tell(&trimmed, options.output)
}

/// How many entries the log still has.
async fn held(client: &Client) -> anyhow::Result<u64> {
    let one = ReadOptions { limit: Some(1), ..ReadOptions::default() };
    let first = match client.read(1, one).next().await.context("the log is empty")? {
        Ok(entry) => entry.index,
        Err(error) => error.first_index.context(error)?,
    };
    Ok(synod_client::wire::status(client).await?.last_index + 1 - first)
}

/// Notes the size of a directory twice a second.
async fn watch(dir: &Path, zero: Instant, until: Instant, sizes: &mut Vec<Size>) -> anyhow::Result<()> {
    while Instant::now() < until {
        let now = Instant::now();
        let seconds = match now.checked_duration_since(zero) {
            Some(since) => since.as_secs_f64(),
            None => -(zero - now).as_secs_f64(),
        };
        sizes.push(Size { seconds, disk_mib: on_disk(dir)? as f64 / MIB });
        sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

/// What the files of a directory take on their disk, in bytes.
fn on_disk(dir: &Path) -> anyhow::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for file in std::fs::read_dir(dir)? {
        let file = file?;
        // A file may go between its name and a look at it.
        let Ok(data) = file.metadata() else { continue };
        bytes += if data.is_dir() { on_disk(&file.path())? } else { data.blocks() * 512 };
    }
    Ok(bytes)
}

fn tell(trimmed: &Trimmed, output: Format) -> anyhow::Result<()> {
    if output == Format::Json {
        println!("{}", serde_json::to_string(trimmed)?);
        return Ok(());
    }
    println!("{:.0} MiB, then {:.0} MiB retained", trimmed.log_mib, trimmed.retain_mib);
    let most = trimmed.sizes.iter().map(|size| size.disk_mib).fold(1.0, f64::max);
    for Size { seconds, disk_mib } in trimmed.sizes.iter().step_by(2) {
        let columns = (disk_mib / most * COLUMNS).round() as usize;
        println!("{seconds:>6.1} s {disk_mib:>7.0} MiB {}", "#".repeat(columns));
    }
    for (name, of) in [("before", trimmed.before), ("meanwhile", trimmed.meanwhile)] {
        println!(
            "calls {name}: {:.0}/s, p50 {:.1}, p99 {:.1} ms",
            of.entries_per_second, of.p50_ms, of.p99_ms
        );
    }
    println!("disk at the end: {:.2} x the payload that is held", trimmed.at_the_end);
    Ok(())
}
