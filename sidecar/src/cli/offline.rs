//! `inspect`, `verify`, `export` and `recover`: data directories that no process holds.

use super::connect::print_json;
use super::{Format, Told, show};
use crate::shown::ShownEntry;
use anyhow::{Context, bail};
use clap::Args;
use comfy_table::presets;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use synod_paxos::system::SystemState;
use synod_paxos::{Ballot, DurableState, Index};

use crate::checkpoints::{self, Standing};
use crate::storage::{Checked, Offline, Rows, SegmentFile};

/// Entries of one read while exporting.
const PAGE: (usize, usize) = (4_096, 4 << 20);

#[derive(Clone, Debug, Args)]
pub(super) struct Directory {
    /// The member's data directory. No process may hold it; it is never written to.
    dir: PathBuf,
    /// Look at a copy that is made in this empty directory: needed after a member was killed.
    #[arg(long, value_name = "DIR")]
    copy_to: Option<PathBuf>,
}

impl Directory {
    fn open(&self) -> anyhow::Result<Offline> {
        Ok(Offline::open(&self.dir, self.copy_to.as_deref())?)
    }
}

#[derive(Clone, Debug, Args)]
pub(super) struct InspectOptions {
    #[command(flatten)]
    directory: Directory,
    /// text for people, json for programs.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Debug, Args)]
pub(super) struct ExportOptions {
    #[command(flatten)]
    directory: Directory,
    /// The first index to print; what was trimmed is not there.
    #[arg(long, default_value_t = 1)]
    from: u64,
}

#[derive(Debug, Serialize)]
struct Inspected {
    member: String,
    starts: u64,
    writes: u64,
    cluster_id: Option<String>,
    state: String,
    promised: String,
    trim_through: u64,
    applied: u64,
    chosen_through: u64,
    rows: u64,
    first_index: Option<u64>,
    last_index: Option<u64>,
    recoveries: u32,
    settings_version: Option<u64>,
    configuration: Option<Configured>,
    sessions: usize,
    snapshots: Vec<u64>,
    segments: Vec<Segment>,
}

#[derive(Debug, Serialize)]
struct Segment {
    file: String,
    first_slot: Option<u64>,
    last_slot: Option<u64>,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Configured {
    version: u64,
    voters: BTreeMap<String, String>,
    learners: BTreeMap<String, String>,
}

fn ballot(ballot: Ballot) -> String {
    if ballot == Ballot::ZERO { "none".to_owned() } else { ballot.to_string() }
}

fn state_word(state: &DurableState) -> String {
    match (&state.fenced, &state.tombstone) {
        (Some(why), _) => format!("fenced: {why}"),
        (None, Some((version, _))) => format!("removed by configuration {version}"),
        (None, None) if state.genesis.is_some() => "a member".to_owned(),
        (None, None) if state.joined.is_some() => "joining".to_owned(),
        (None, None) => "belongs to no cluster".to_owned(),
    }
}

/// The state as it was written last, or where the log begins; none before a genesis is known.
fn stored_system(state: &DurableState) -> anyhow::Result<Option<SystemState>> {
    match (&state.genesis, state.system.is_empty()) {
        (_, false) => {
            Ok(Some(SystemState::decode(state.system.clone()).context("the system state is damaged")?))
        }
        (genesis, true) => Ok(genesis.as_ref().map(SystemState::new)),
    }
}

fn inspected(offline: &Offline) -> anyhow::Result<Inspected> {
    let state = offline.state(Rows::None)?;
    let system = stored_system(&state)?;
    let span = offline.span()?;
    let configuration = system.as_ref().map(|system| {
        let latest = system.configurations.latest();
        let named = |voter| {
            let members = latest.members.iter().filter(|(_, m)| m.voter == voter);
            members.map(|(id, member)| (id.to_string(), member.name.clone())).collect()
        };
        Configured { version: latest.version, voters: named(true), learners: named(false) }
    });
    Ok(Inspected {
        member: state.member.to_string(),
        starts: state.incarnation.0,
        writes: state.written.0,
        cluster_id: state.genesis.as_ref().map(|genesis| genesis.cluster.to_string()),
        state: state_word(&state),
        promised: ballot(state.promised),
        trim_through: state.trim_through.0,
        applied: state.applied.0,
        chosen_through: state.chosen_through.0,
        rows: offline.row_count()?,
        first_index: span.map(|(first, _)| first.0),
        last_index: span.map(|(_, last)| last.0),
        recoveries: system.as_ref().map_or(0, |system| system.recoveries),
        settings_version: system.as_ref().map(|system| system.settings.version),
        configuration,
        sessions: system.as_ref().map_or(0, |system| system.sessions.open_sessions()),
        snapshots: state.snapshots.keys().map(|slot| slot.0).collect(),
        segments: offline.segments()?.into_iter().map(segment).collect(),
    })
}

fn segment(segment: SegmentFile) -> Segment {
    let SegmentFile { file, slots, bytes } = segment;
    Segment {
        file,
        first_slot: slots.map(|(first, _)| first.0),
        last_slot: slots.map(|(_, last)| last.0),
        bytes,
    }
}

pub(super) fn print(rows: &[(&str, String)]) -> anyhow::Result<()> {
    let mut table = show::table(presets::NOTHING);
    for (name, value) in rows {
        table.add_row(vec![(*name).to_owned(), value.clone()]);
    }
    show::print(&table)
}

fn files(segments: &[Segment]) -> String {
    let mib = segments.iter().map(|segment| segment.bytes).sum::<u64>() >> 20;
    match segments {
        [] => "none".to_owned(),
        [only] => format!("{}, {mib} MiB", only.file),
        [first, .., last] => format!("{} of {mib} MiB, {} to {}", segments.len(), first.file, last.file),
    }
}

/// What a data directory is, and where its log stands.
pub(super) fn inspect(options: &InspectOptions) -> anyhow::Result<()> {
    let found = inspected(&options.directory.open()?)?;
    if options.output == Format::Json {
        return print_json(&found);
    }
    let span = match (found.first_index, found.last_index) {
        (Some(first), Some(last)) => format!("{first} to {last}"),
        _ => "none".to_owned(),
    };
    let configuration = found.configuration.as_ref().map_or_else(
        || "none".to_owned(),
        |c| {
            let names = |members: &BTreeMap<String, String>| {
                members.iter().map(|(id, name)| format!("{name} ({id})")).collect::<Vec<_>>().join(", ")
            };
            let learners = if c.learners.is_empty() {
                String::new()
            } else {
                format!("; learners {}", names(&c.learners))
            };
            format!("version {}: {}{learners}", c.version, names(&c.voters))
        },
    );
    print(&[
        ("Member", found.member),
        ("State", found.state),
        ("Cluster", found.cluster_id.unwrap_or_else(|| "none".to_owned())),
        ("Configuration", configuration),
        ("Promised", found.promised),
        ("Entries", span),
        (
            "Slots",
            format!(
                "trimmed {}, applied {}, chosen {}",
                found.trim_through, found.applied, found.chosen_through
            ),
        ),
        ("Rows", found.rows.to_string()),
        ("Files", files(&found.segments)),
        ("Sessions", found.sessions.to_string()),
        ("Starts", found.starts.to_string()),
        ("Writes", found.writes.to_string()),
        ("Recoveries", found.recoveries.to_string()),
    ])
}

#[derive(Debug, Serialize)]
struct Verified<'a> {
    healthy: bool,
    rows: u64,
    entries: u64,
    bytes: u64,
    snapshots: u64,
    checkpoints: u64,
    missing_checkpoints: u64,
    damaged: &'a [String],
}

/// What a directory has of the checkpoints that its log names.
#[derive(Debug, Default)]
struct Looked {
    sound: u64,
    missing: u64,
    damaged: Vec<String>,
}

/// The state behind every row that is known to be chosen: the stored one is written now and then only. A row that cannot
/// be read ends it; the check of the rows names it.
fn system_at_chosen(state: &DurableState) -> Option<SystemState> {
    let mut system = stored_system(state).ok()??;
    let cluster = state.genesis.as_ref()?.cluster;
    while system.applied < state.chosen_through {
        let slot = system.applied.next();
        let row = state.rows.get(&slot).filter(|row| row.is_intact(cluster));
        if row.and_then(|row| system.apply(slot, &row.value).ok()).is_none() {
            break;
        }
    }
    Some(system)
}

fn look_at_checkpoints(offline: &Offline, dir: &Path) -> anyhow::Result<Looked> {
    let mut looked = Looked::default();
    let Some(system) = system_at_chosen(&offline.state(Rows::AboveApplied)?) else { return Ok(looked) };
    let progress = show::bytes_bar(system.checkpoints.iter().map(|checkpoint| checkpoint.length).sum())?;
    for checkpoint in &system.checkpoints {
        progress.set_message(format!("checkpoint {}", checkpoint.index));
        match checkpoints::look(dir, checkpoint, |read| progress.inc(read)) {
            Standing::Sound => looked.sound += 1,
            Standing::Missing => looked.missing += 1,
            Standing::Damaged(why) => looked.damaged.push(why),
        }
    }
    progress.finish_and_clear();
    Ok(looked)
}

/// Reads every row and every checkpoint; fails if one is damaged.
pub(super) fn verify(options: &InspectOptions) -> anyhow::Result<()> {
    let offline = options.directory.open()?;
    // What cannot be counted is named by the check.
    let progress = indicatif::ProgressBar::new(offline.row_count().unwrap_or_default());
    let style = indicatif::ProgressStyle::with_template("{bar:30} {pos} of {len} rows, {eta} left")?;
    progress.set_style(style);
    let checked = offline.check(|| progress.inc(1))?;
    progress.finish_and_clear();
    let Checked { rows, entries, bytes, snapshots, mut damaged } = checked;
    let checkpoints = look_at_checkpoints(&offline, &options.directory.dir).unwrap_or_else(|error| Looked {
        damaged: vec![format!("what the log names as checkpoints: {error}")],
        ..Looked::default()
    });
    let Looked { sound, missing, damaged: bad } = checkpoints;
    damaged.extend(bad);
    let healthy = damaged.is_empty();
    if options.output == Format::Json {
        let verified = Verified {
            healthy,
            rows,
            entries,
            bytes,
            snapshots,
            checkpoints: sound,
            missing_checkpoints: missing,
            damaged: &damaged,
        };
        print_json(&verified)?;
    } else {
        println!("{rows} rows, {entries} entries, {bytes} bytes, {snapshots} snapshots, {sound} checkpoints");
        if missing > 0 {
            println!("{missing} checkpoints are not here: the running member fetches them from others");
        }
        damaged.iter().for_each(|what| println!("damaged: {what}"));
    }
    if healthy {
        return Ok(());
    }
    let found = format!(
        "{} of this disk are damaged: start the member, it fetches what others have; or remove it and give it an \
         empty volume",
        damaged.len()
    );
    Err(Told(found).into())
}

/// Entries as lines of JSON: `text` where the payload is UTF-8, else `base64`.
pub(super) fn export(options: &ExportOptions) -> anyhow::Result<()> {
    let offline = options.directory.open()?;
    let Some((first, last)) = offline.span()? else { return Ok(()) };
    if Index(options.from) < first && options.from > 1 {
        bail!("index {} is trimmed here: the log of this disk begins at {first}", options.from);
    }
    let reader = offline.reader();
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut next = first.max(Index(options.from));
    while next <= last {
        let found = reader.entries((next, last), PAGE.0, PAGE.1)?;
        if found.is_empty() {
            bail!("entry {next} is missing on this disk: `synod-sidecar verify` tells more");
        }
        for entry in found {
            serde_json::to_writer(&mut out, &ShownEntry::logged(next.0, &entry))?;
            out.write_all(b"\n")?;
            next = next.next();
        }
    }
    Ok(out.flush()?)
}
