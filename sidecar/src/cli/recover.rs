//! `recover`: a new cluster from what is left of one whose quorum is lost for good (docs: lost-quorum.md).

use super::connect::print_json;
use super::{Format, offline, show};
use crate::checkpoints::{self, Standing};
use crate::storage::{self, Offline, Rows};
use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use synod_paxos::recovery::{self, Plan, RecoveryError};
use synod_paxos::value::Checkpoint;
use synod_paxos::{ClusterId, Digest, DurableState, MemberId, Slot};

#[derive(Clone, Debug, Args)]
pub(super) struct RecoverOptions {
    /// The data directory of a survivor; name each that is left.
    #[arg(long, required = true, value_name = "DIR")]
    from: Vec<PathBuf>,
    /// An empty directory for the first member of the new cluster.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// The new member's name; on Kubernetes that of its pod, such as demo-0.
    #[arg(long)]
    name: String,
    /// Attest that the named old member is destroyed and never comes back. Repeat it for each voter whose
    /// directory is not given.
    #[arg(long, value_name = "MEMBER")]
    destroyed: Vec<String>,
    /// Leave out an entry that no version can read. Without it the command names such an entry's slot and digest; its
    /// slot then decides nothing in the new log, and what it meant is lost.
    #[arg(long, value_parser = parse_skip, value_name = "SLOT:DIGEST")]
    skip: Vec<(Slot, Digest)>,
    /// Take disks that are fenced, too: volumes that were restored from copies of different times. What they have
    /// forgotten since is lost.
    #[arg(long)]
    fenced: bool,
    /// Do it: the code that the report ends with. Without it nothing is done but the report; another code comes
    /// with another plan.
    #[arg(long, value_name = "CODE")]
    confirm: Option<String>,
    /// text for people, json for programs.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Debug, Serialize)]
struct Recovered {
    done: bool,
    base: String,
    kept_through_slot: u64,
    of_which_known_chosen: u64,
    last_index: u64,
    lost_slots: Vec<Lost>,
    skipped_slots: Vec<Skipped>,
    checkpoints: Vec<Kept>,
    must_be_destroyed: Vec<String>,
    /// Disks that were taken although they are fenced.
    fenced: Vec<String>,
    /// What `--confirm` takes.
    confirm: String,
    new_cluster_id: Option<String>,
    new_member: Option<String>,
}

/// A checkpoint of the application that the kept log names.
#[derive(Debug, Serialize)]
struct Kept {
    index: u64,
    bytes: u64,
    /// The directory that has every byte of it; none: it is lost.
    from: Option<String>,
}

/// An entry that is left out because no version reads it.
#[derive(Debug, Serialize)]
struct Skipped {
    slot: u64,
    /// SHA-256 of the entry.
    digest: String,
}

fn parse_skip(text: &str) -> Result<(Slot, Digest), String> {
    let (slot, digest) = text.split_once(':').ok_or("write it as SLOT:DIGEST")?;
    let slot = slot.parse().map_err(|_| format!("{slot} is not a slot's number"))?;
    Ok((Slot(slot), Digest::parse(digest).ok_or("a digest has 64 hexadecimal digits")?))
}

#[derive(Debug, Serialize)]
struct Lost {
    slot: u64,
    known_chosen: bool,
    held: bool,
}

/// Goes on without a quorum that is lost for good: a report, unless its own code is given, and every missing voter is
/// attested destroyed.
pub(super) fn recover(options: &RecoverOptions) -> anyhow::Result<()> {
    let survivors = options
        .from
        .iter()
        .map(|dir| {
            let open = || Offline::open(dir, None)?.whole_state(Rows::All);
            open().with_context(|| format!("{} cannot be taken as it is", dir.display()))
        })
        .collect::<anyhow::Result<Vec<DurableState>>>()?;
    let (survivors, fenced) = unfenced(survivors, options.fenced);
    let plan =
        recovery::plan_without(&survivors, &options.skip.iter().copied().collect()).map_err(explain)?;
    let sources = sources(&plan.checkpoints, &options.from)?;
    let mut told = Recovered {
        done: false,
        base: plan.base.to_string(),
        kept_through_slot: plan.kept_through.0,
        of_which_known_chosen: plan.chosen_through.0,
        last_index: plan.last_index.0,
        lost_slots: plan
            .lost
            .iter()
            .map(|lost| Lost { slot: lost.slot.0, known_chosen: lost.chosen, held: lost.held })
            .collect(),
        skipped_slots: plan
            .skipped
            .iter()
            .map(|(slot, digest)| Skipped { slot: slot.0, digest: digest.to_string() })
            .collect(),
        checkpoints: kept(&sources),
        must_be_destroyed: plan.missing.iter().map(MemberId::to_string).collect(),
        fenced,
        confirm: format!("{:016x}", plan.fingerprint()),
        new_cluster_id: None,
        new_member: None,
    };
    if !options.destroyed.is_empty() || options.confirm.is_some() {
        attested(&plan, &options.destroyed)?;
    }
    let Some(confirm) = &options.confirm else { return tell(&told, options.output) };
    if *confirm != told.confirm {
        bail!(
            "the plan is not the one of --confirm {confirm}: repeat it without, and look at what it says now"
        );
    }
    let (cluster, member) = found(&plan, &sources, options)?;
    (told.done, told.new_cluster_id, told.new_member) =
        (true, Some(cluster.to_string()), Some(member.to_string()));
    tell(&told, options.output)
}

/// Names the option that leads on.
fn explain(error: RecoveryError) -> anyhow::Error {
    let RecoveryError::Undecodable { slot, digest } = error else { return error.into() };
    let option = format!("--skip {slot}:{digest}");
    anyhow::Error::from(error).context(format!("to leave the entry out for good, add {option}"))
}

/// The disks as if none were fenced, where that is asked for, and those that were.
fn unfenced(mut survivors: Vec<DurableState>, taken: bool) -> (Vec<DurableState>, Vec<String>) {
    let mut fenced = Vec::new();
    for disk in survivors.iter_mut().filter(|disk| taken && disk.fenced.is_some()) {
        disk.fenced = None;
        fenced.push(disk.member.to_string());
    }
    (survivors, fenced)
}

/// Exactly the missing voters must be attested: a typing error must not bring back a member that votes.
fn attested(plan: &Plan, destroyed: &[String]) -> anyhow::Result<()> {
    for missing in &plan.missing {
        if !destroyed.contains(&missing.to_string()) {
            bail!(
                "{missing} voted and its directory is not given: add --destroyed {missing} if it never comes back"
            );
        }
    }
    for named in destroyed {
        let known = MemberId::parse(named).is_some_and(|member| plan.missing.contains(&member));
        if !known {
            bail!("{named} is not a missing voter: without --destroyed the plan lists them");
        }
    }
    Ok(())
}

/// A checkpoint, and the directory that it can be copied from.
type Source<'a> = (Checkpoint, Option<&'a Path>);

/// Finds for each checkpoint a directory that has every byte of it.
fn sources<'a>(checkpoints: &[Checkpoint], dirs: &'a [PathBuf]) -> anyhow::Result<Vec<Source<'a>>> {
    let progress = show::bytes_bar(checkpoints.iter().map(|checkpoint| checkpoint.length).sum())?;
    let sound = |dir: &&PathBuf, checkpoint: &Checkpoint| {
        progress.set_message(format!("reading checkpoint {}", checkpoint.index));
        checkpoints::look(dir, checkpoint, |read| progress.inc(read)) == Standing::Sound
    };
    let sources = checkpoints.iter().map(|checkpoint| {
        let found = dirs.iter().find(|dir| sound(dir, checkpoint));
        (*checkpoint, found.map(PathBuf::as_path))
    });
    let sources = sources.collect();
    progress.finish_and_clear();
    Ok(sources)
}

fn kept(sources: &[Source<'_>]) -> Vec<Kept> {
    let kept = sources.iter().map(|(checkpoint, from)| Kept {
        index: checkpoint.index.0,
        bytes: checkpoint.length,
        from: from.map(|dir| dir.display().to_string()),
    });
    kept.collect()
}

fn found(
    plan: &Plan,
    sources: &[Source<'_>],
    options: &RecoverOptions,
) -> anyhow::Result<(ClusterId, MemberId)> {
    let cluster = ClusterId(uuid::Uuid::new_v4().into_bytes());
    let member = storage::mint_member()?;
    for disk in plan.found(cluster, &BTreeMap::from([(member, options.name.clone())]))? {
        storage::create(&options.to, &disk)?;
    }
    copy(sources, &options.to)?;
    Ok((cluster, member))
}

fn copy(sources: &[Source<'_>], to: &Path) -> anyhow::Result<()> {
    let sources = sources.iter().filter_map(|(checkpoint, from)| Some((checkpoint, (*from)?)));
    let progress = show::bytes_bar(sources.clone().map(|(checkpoint, _)| checkpoint.length).sum())?;
    for (checkpoint, from) in sources {
        progress.set_message(format!("copying checkpoint {}", checkpoint.index));
        checkpoints::copy(from, to, checkpoint, |read| progress.inc(read)).with_context(|| {
            format!(
                "checkpoint {} cannot be copied from {}: empty {} and repeat the command",
                checkpoint.index,
                from.display(),
                to.display()
            )
        })?;
    }
    progress.finish_and_clear();
    Ok(())
}

fn tell(told: &Recovered, output: Format) -> anyhow::Result<()> {
    if output == Format::Json {
        return print_json(told);
    }
    let unsure = Slot(told.kept_through_slot).0 - told.of_which_known_chosen;
    let lost = match told.lost_slots.iter().filter(|lost| lost.known_chosen).count() {
        0 => format!("{} slots, none of them known to be chosen", told.lost_slots.len()),
        chosen => format!("{} slots, {chosen} of them CHOSEN", told.lost_slots.len()),
    };
    let skipped = told.skipped_slots.iter();
    let skipped: Vec<String> =
        skipped.map(|skipped| format!("slot {}, the entry {}", skipped.slot, skipped.digest)).collect();
    let checkpoints = told.checkpoints.iter().map(|kept| match &kept.from {
        Some(dir) => format!("{}, {} MiB, from {dir}", kept.index, kept.bytes >> 20),
        None => format!("{}: LOST, no directory has the whole of it", kept.index),
    });
    let checkpoints = checkpoints.collect::<Vec<_>>().join("\n");
    let mut rows = vec![
        ("Log of", told.base.clone()),
        ("Kept", format!("entries up to {}, slots up to {}", told.last_index, told.kept_through_slot)),
        ("Kept, unsure", format!("{unsure} slots that may never have been acknowledged")),
        ("Lost", lost),
        ("Left out", skipped.join("\n")),
        ("Checkpoints", checkpoints),
        ("Must be destroyed", told.must_be_destroyed.join(", ")),
        ("Fenced, and taken", told.fenced.join(", ")),
    ];
    match (&told.new_cluster_id, &told.new_member) {
        (Some(cluster), Some(member)) => {
            rows.push(("New cluster", cluster.clone()));
            rows.push(("New member", member.clone()));
        }
        _ => {
            let destroyed = told.must_be_destroyed.iter().map(|member| format!(" --destroyed {member}"));
            let destroyed = destroyed.collect::<String>();
            rows.push((
                "Done",
                format!("nothing: to do it, repeat it with --confirm {}{destroyed}", told.confirm),
            ));
        }
    }
    offline::print(&rows)
}
