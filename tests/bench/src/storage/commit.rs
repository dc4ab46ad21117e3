//! What redb's ways to commit cost, on transactions like ours (docs: decisions/0003).

use super::cluster::{directory, written};
use crate::Format;
use clap::Args;
use redb::{Database, Durability, ReadableDatabase, TableDefinition};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const ROWS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("rows");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// What a segment of ours holds at most, in bytes: so much is in the file that is opened behind a crash.
const SEGMENT: u64 = 60 << 20;

#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Make the files in here; by default where temporary files go.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Rows of a transaction; one measurement for each.
    #[arg(long, default_values_t = [1, 16, 256], value_delimiter = ',', value_name = "N,N", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    rows: Vec<u64>,
    /// Bytes of a row's value.
    #[arg(long, default_value_t = 100, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    size: u32,
    /// How often each is measured, in turn with the others.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long each measurement takes, in seconds.
    #[arg(long, default_value_t = 2, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// text for people, json for programs: an object a line.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Phases {
    One,
    Two,
    TwoWithQuickRepair,
}

impl Phases {
    const ALL: [Phases; 3] = [Phases::One, Phases::Two, Phases::TwoWithQuickRepair];
}

/// One way to commit, and so many rows at a time.
#[derive(Debug, Serialize)]
struct Figures {
    phases: Phases,
    rows: u64,
    commits_per_second: Spread,
    /// Bytes that went to the disk for each commit.
    written: Spread,
    /// To open a file of 60 MiB that was not closed, in milliseconds.
    open_ms: Spread,
}

/// Of several rounds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(mut all: Vec<f64>) -> Spread {
        all.sort_unstable_by(f64::total_cmp);
        let at = |position: usize| all.get(position).copied().unwrap_or(f64::NAN);
        Spread { median: at(all.len() / 2), least: at(0), most: at(all.len().saturating_sub(1)) }
    }
}

#[derive(Clone, Copy)]
struct Round {
    commits: f64,
    written: f64,
    open: f64,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let dir = directory(options.dir.as_deref())?;
    for &rows in &options.rows {
        let mut rounds: [Vec<Round>; 3] = Default::default();
        for _ in 0..options.rounds {
            for (phases, rounds) in Phases::ALL.into_iter().zip(&mut rounds) {
                rounds.push(measure(dir.path(), options, phases, rows)?);
            }
        }
        for (phases, rounds) in Phases::ALL.into_iter().zip(rounds) {
            let spread = |of: fn(&Round) -> f64| Spread::of(rounds.iter().map(of).collect());
            let figures = Figures {
                phases,
                rows,
                commits_per_second: spread(|round| round.commits),
                written: spread(|round| round.written),
                open_ms: spread(|round| round.open),
            };
            tell(&figures, options.output)?;
        }
    }
    Ok(())
}

fn measure(dir: &Path, options: &Options, phases: Phases, rows: u64) -> anyhow::Result<Round> {
    let (path, crashed) = (dir.join("log.redb"), dir.join("crashed.redb"));
    let db = Database::builder().set_cache_size(8 << 20).create(&path)?;
    let value = vec![b'x'; options.size as usize];
    let mut next = 1;
    // As large as a segment before, since what stands in the file is what a commit's tree reaches into.
    let many = (SEGMENT / 2 / (u64::from(options.size) + 64)).min(200_000);
    commit(&db, phases, (&mut next, many), &value)?;
    let (began, before) = (Instant::now(), written("self"));
    let mut commits = 0;
    while began.elapsed() < Duration::from_secs(options.seconds) {
        commit(&db, phases, (&mut next, rows), &value)?;
        commits += 1;
    }
    let seconds = began.elapsed().as_secs_f64();
    let written = (written("self") - before) as f64 / f64::from(commits);
    // What a kill leaves: the file as it stands, not closed.
    std::fs::copy(&path, &crashed)?;
    let began = Instant::now();
    let again = Database::builder().set_cache_size(8 << 20).open(&crashed)?;
    let found = again.begin_read()?.open_table(ROWS)?.get(next - 1)?.is_some();
    let open = began.elapsed().as_secs_f64() * 1_000.0;
    anyhow::ensure!(found, "the last commit is not there after a crash");
    drop((db, again));
    std::fs::remove_file(&path)?;
    std::fs::remove_file(&crashed)?;
    Ok(Round { commits: f64::from(commits) / seconds, written, open })
}

/// Rows behind the last ones, and what rides with them.
fn commit(db: &Database, phases: Phases, (next, rows): (&mut u64, u64), value: &[u8]) -> anyhow::Result<()> {
    let mut transaction = db.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    transaction.set_two_phase_commit(phases != Phases::One);
    transaction.set_quick_repair(phases == Phases::TwoWithQuickRepair);
    {
        let mut table = transaction.open_table(ROWS)?;
        for _ in 0..rows {
            table.insert(*next, value)?;
            *next += 1;
        }
        let mut meta = transaction.open_table(META)?;
        meta.insert("written", next.to_le_bytes().as_slice())?;
        meta.insert("chosen_through", next.to_le_bytes().as_slice())?;
    }
    transaction.commit()?;
    Ok(())
}

fn tell(figures: &Figures, output: Format) -> anyhow::Result<()> {
    if output == Format::Json {
        println!("{}", serde_json::to_string(figures)?);
        return Ok(());
    }
    let Figures { phases, rows, commits_per_second: commits, written, open_ms } = figures;
    let phases = match phases {
        Phases::One => "one phase",
        Phases::Two => "two phases",
        Phases::TwoWithQuickRepair => "two, quick repair",
    };
    println!(
        "{rows} rows, {phases}: {:.0} commits/s ({:.0} to {:.0})\n   {:.0} bytes each; opened after a crash in {:.0} ms",
        commits.median, commits.least, commits.most, written.median, open_ms.median
    );
    Ok(())
}
