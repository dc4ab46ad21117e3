//! `admin`: membership without an operator, through the socket in a member's data directory.

use super::connect::{DataDir, parse_cluster, parse_digest, parse_member, print_json};
use crate::views;
use anyhow::{Context, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use std::time::Duration;
use synod_client::Reason;
use synod_paxos::ClusterId;
use synod_proto::admin::v1::{
    ChangeRequest, ChangeResponse, ChangeSettingsRequest, GenesisMember, InitializeRequest, JoinRequest,
    RenewRequest, TransferLeaderRequest,
};
use synod_proto::v1::{Election, Reads, Settings, StatusRequest, StatusResponse};
use tokio::time::{Instant, sleep};
use tonic::{Request, Status};

const PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, Subcommand)]
pub(super) enum Command {
    /// Form a cluster: give every founding member the same cluster id and list.
    Initialize(Initialize),
    /// Tell an empty member which cluster it will be added to.
    Join(Join),
    /// Add a member that has joined; it follows the log without a vote. Ask the leader.
    AddLearner(AddLearner),
    /// Give a learner that has caught up a vote. Ask the leader.
    Promote(Change),
    /// Remove a member for good; done when its vote is not needed any more. Ask the leader.
    Remove(Change),
    /// Hand leadership to another voter. Ask the leader.
    TransferLeader(TransferLeader),
    /// Show the settings that all members go by, or change them by an entry in the log.
    Settings(ChangeSettings),
    /// Give up the identity of a member that was removed, or has not begun to take part, and mint a new one.
    Renew(Renew),
}

#[derive(Clone, Debug, Args)]
pub(super) struct Initialize {
    #[command(flatten)]
    at: DataDir,
    /// The new cluster's id: one UUID for all members.
    #[arg(long, value_parser = parse_cluster, value_name = "UUID")]
    cluster_id: ClusterId,
    /// A founding member, as `status` shows it on its side; once for each.
    #[arg(long = "member", required = true, value_parser = parse_founder, value_name = "ID=NAME")]
    members: Vec<(u64, String)>,
    /// Between two heartbeats, in milliseconds; at least 20.
    #[arg(long, default_value_t = 100)]
    heartbeat_ms: u32,
    /// How long a silent leader is borne, in milliseconds; ten heartbeats to 60,000.
    #[arg(long, default_value_t = 1_000)]
    election_timeout_ms: u32,
    /// Let the leader answer reads under a lease, without a round to its peers.
    #[arg(long)]
    leases: bool,
}

fn parse_founder(text: &str) -> Result<(u64, String), String> {
    let (id, name) = text.split_once('=').ok_or("write it as ID=NAME")?;
    Ok((parse_member(id)?, name.to_owned()))
}

#[derive(Clone, Debug, Args)]
pub(super) struct Join {
    #[command(flatten)]
    at: DataDir,
    /// The cluster's id.
    #[arg(long, value_parser = parse_cluster, value_name = "UUID")]
    cluster_id: ClusterId,
    /// The cluster's genesis digest; `status -o json` of a member shows it.
    #[arg(long, value_parser = parse_digest, value_name = "HEX")]
    genesis_digest: [u8; 32],
}

#[derive(Clone, Debug, Args)]
pub(super) struct Change {
    #[command(flatten)]
    at: DataDir,
    /// The member.
    #[arg(long, value_parser = parse_member, value_name = "ID")]
    member: u64,
    /// Names the operation: a repeat with the same one is answered with what happened.
    #[arg(long, value_name = "UUID")]
    operation: Option<uuid::Uuid>,
    /// The version of the configuration that the change was planned from; by default the newest.
    #[arg(long, value_name = "N")]
    expected_version: Option<u64>,
    /// How long to ask again where the member has not caught up, or an earlier change is not in force yet, in
    /// seconds.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    timeout: u64,
}

#[derive(Clone, Debug, Args)]
pub(super) struct AddLearner {
    #[command(flatten)]
    change: Change,
    /// Its name, for people.
    #[arg(long)]
    name: String,
}

#[derive(Clone, Debug, Args)]
pub(super) struct TransferLeader {
    #[command(flatten)]
    at: DataDir,
    /// To whom; by default the most caught-up voter.
    #[arg(long, value_parser = parse_member, value_name = "ID")]
    to: Option<u64>,
}

#[derive(Clone, Debug, Args)]
pub(super) struct ChangeSettings {
    #[command(flatten)]
    at: DataDir,
    /// Let the leader answer reads under a lease, without a round to its peers.
    #[arg(long, value_name = "true|false")]
    leases: Option<bool>,
    /// How far two members' clocks may differ in rate, in percent.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=20))]
    clock_drift_percent: Option<u32>,
    /// Between two heartbeats, in milliseconds; at least 20.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..))]
    heartbeat_ms: Option<u32>,
    /// How long a silent leader is borne, in milliseconds; ten heartbeats to 60,000.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..))]
    election_timeout_ms: Option<u32>,
    /// Sessions, their answers and keys that the log remembers, together.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    session_rows: Option<u32>,
    /// How long a session may be idle before it expires, in milliseconds.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    session_idle_ms: Option<u64>,
    /// Keep the newest so many entries, 0: all.
    #[arg(long, value_name = "N")]
    retain_entries: Option<u64>,
    /// Keep the newest so many bytes of entries, 0: all.
    #[arg(long, value_name = "BYTES")]
    retain_bytes: Option<u64>,
    /// Keep what is younger than so many milliseconds, 0: all.
    #[arg(long, value_name = "MS")]
    retain_age_ms: Option<u64>,
    /// Raise the format level by one, once every member runs a version that reads it; it never falls, and older versions
    /// cannot start any more. Ask the leader.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    format_level: Option<u32>,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Renew {
    #[command(flatten)]
    at: DataDir,
    /// The id that is given up: a guard against the wrong disk.
    #[arg(long, value_parser = parse_member, value_name = "ID")]
    member: u64,
}

pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Initialize(options) => initialize(options).await,
        Command::Join(options) => join(options).await,
        Command::AddLearner(AddLearner { change, name }) => {
            change_members(change, Kind::AddLearner(name)).await
        }
        Command::Promote(options) => change_members(options, Kind::Promote).await,
        Command::Remove(options) => change_members(options, Kind::Remove).await,
        Command::TransferLeader(options) => transfer(options).await,
        Command::Settings(options) => settings(options).await,
        Command::Renew(options) => renew(options).await,
    }
}

async fn initialize(options: Initialize) -> anyhow::Result<()> {
    let members = options.members.into_iter().map(|(member, name)| GenesisMember { member, name });
    let (heartbeat_ms, timeout_ms) = (options.heartbeat_ms, options.election_timeout_ms);
    let request = InitializeRequest {
        cluster_id: Bytes::copy_from_slice(&options.cluster_id.0),
        members: members.collect(),
        alpha: 0,
        settings: Some(Settings {
            election: Some(Election { heartbeat_ms, timeout_ms }),
            reads: Some(Reads { leases: options.leases, ..Reads::default() }),
            ..Settings::default()
        }),
    };
    let answer = options.at.admin()?.initialize(request).await.map_err(|s| options.at.explain(s))?;
    println!("initialized, genesis {}", views::hex(&answer.into_inner().genesis_digest));
    Ok(())
}

async fn join(options: Join) -> anyhow::Result<()> {
    let request = JoinRequest {
        cluster_id: Bytes::copy_from_slice(&options.cluster_id.0),
        genesis_digest: Bytes::copy_from_slice(&options.genesis_digest),
    };
    options.at.admin()?.join(request).await.map_err(|status| options.at.explain(status))?;
    println!("joined: add this member as a learner now, through the leader");
    Ok(())
}

async fn status(at: &DataDir) -> anyhow::Result<StatusResponse> {
    Ok(at.admin()?.status(StatusRequest {}).await.map_err(|status| at.explain(status))?.into_inner())
}

enum Kind {
    AddLearner(String),
    Promote,
    Remove,
}

async fn propose(
    at: &DataDir,
    kind: &Kind,
    request: ChangeRequest,
) -> anyhow::Result<Result<ChangeResponse, Status>> {
    let mut admin = at.admin()?;
    let mut request = Request::new(request);
    request.set_timeout(Duration::from_secs(30));
    let answer = match kind {
        Kind::AddLearner(_) => admin.add_learner(request).await,
        Kind::Promote => admin.promote(request).await,
        Kind::Remove => admin.remove_member(request).await,
    };
    Ok(answer.map(tonic::Response::into_inner))
}

async fn change_members(options: Change, kind: Kind) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(options.timeout);
    let seen = status(&options.at).await?;
    let version = seen.configuration.as_ref().map(|configuration| configuration.version);
    let version = options.expected_version.or(version);
    let expected_version = version.context("this member belongs to no cluster yet")?;
    let operation = options.operation.unwrap_or_else(uuid::Uuid::new_v4);
    let name = match &kind {
        Kind::AddLearner(name) => name.clone(),
        Kind::Promote | Kind::Remove => String::new(),
    };
    let request = ChangeRequest {
        cluster_id: seen.cluster_id.clone(),
        expected_version,
        operation_id: Bytes::copy_from_slice(operation.as_bytes()),
        member: options.member,
        name,
    };
    loop {
        let waits_for = match propose(&options.at, &kind, request.clone()).await? {
            Ok(done) if !done.in_force => "the configuration is chosen, but not in force yet".to_owned(),
            Ok(done) if matches!(kind, Kind::Remove) && !done.retired => {
                "the member is removed, but its vote is still needed".to_owned()
            }
            Ok(done) => {
                let made = done.configuration.context("the member gave no configuration")?;
                println!("configuration {} is in force", made.version);
                return Ok(());
            }
            Err(refused) => {
                let error = synod_client::wire::error(&refused);
                // A repeat of the same operation is answered with what happened.
                let may_pass = matches!(
                    error.reason,
                    Reason::NotCaughtUp
                        | Reason::ChangePending
                        | Reason::NoLeader
                        | Reason::OutcomeUnknown
                        | Reason::Deadline
                );
                if !may_pass {
                    return Err(options.at.explain(refused));
                }
                error.message
            }
        };
        if Instant::now() + PAUSE >= deadline {
            bail!("gave up after {} s (operation {operation}): {waits_for}", options.timeout);
        }
        sleep(PAUSE).await;
    }
}

async fn transfer(options: TransferLeader) -> anyhow::Result<()> {
    let cluster_id = status(&options.at).await?.cluster_id;
    let request = TransferLeaderRequest { cluster_id, to: options.to };
    let answer = options.at.admin()?.transfer_leader(request).await.map_err(|s| options.at.explain(s))?;
    println!("{} leads", views::member(answer.into_inner().leader));
    Ok(())
}

/// Shows what is in force; with anything to change, changes that first.
async fn settings(options: ChangeSettings) -> anyhow::Result<()> {
    let seen = status(&options.at).await?;
    let now = seen.settings.context("this member knows no settings yet: it belongs to no cluster")?;
    let mut wanted = now;
    let election = wanted.election.get_or_insert_default();
    set(&mut election.heartbeat_ms, options.heartbeat_ms);
    set(&mut election.timeout_ms, options.election_timeout_ms);
    let reads = wanted.reads.get_or_insert_default();
    set(&mut reads.leases, options.leases);
    set(&mut reads.clock_drift_percent, options.clock_drift_percent.map(Some));
    let limits = wanted.limits.get_or_insert_default();
    set(&mut limits.session_rows, options.session_rows);
    set(&mut limits.session_idle_ms, options.session_idle_ms);
    let retention = wanted.retention.get_or_insert_default();
    let bound = |value: Option<u64>| value.map(|n| (n > 0).then_some(n));
    set(&mut retention.entries, bound(options.retain_entries));
    set(&mut retention.bytes, bound(options.retain_bytes));
    set(&mut retention.age_ms, bound(options.retain_age_ms));
    set(&mut wanted.format_level, options.format_level.map(Some));
    if wanted == now {
        return print_json(&views::Settings::from(&now));
    }
    let request = ChangeSettingsRequest {
        cluster_id: seen.cluster_id,
        expected_version: now.version,
        settings: Some(wanted),
    };
    let answer = options.at.admin()?.change_settings(request).await.map_err(|s| options.at.explain(s))?;
    let changed = answer.into_inner().settings.context("the member gave no settings")?;
    if let Some(wanted) = options.format_level.filter(|wanted| changed.format_level != Some(*wanted)) {
        bail!(
            "the member runs an older version, which does not know format level {wanted}: nothing was raised"
        );
    }
    print_json(&views::Settings::from(&changed))
}

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

async fn renew(options: Renew) -> anyhow::Result<()> {
    let request = RenewRequest { member: options.member };
    let answer = options.at.admin()?.renew(request).await.map_err(|status| options.at.explain(status))?;
    println!("this disk is member {} now", views::member(answer.into_inner().member));
    Ok(())
}
