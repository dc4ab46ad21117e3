//! `admin`: membership without an operator, through the socket in a member's data directory.

use super::connect::{DataDir, parse_cluster, parse_digest, parse_member};
use super::views;
use anyhow::{Context, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use std::time::Duration;
use synod_client::CallError;
use synod_paxos::ClusterId;
use synod_proto::v1::{
    ChangeRequest, ChangeResponse, GenesisMember, InitializeRequest, JoinRequest, RenewRequest,
    StatusRequest, StatusResponse, TransferLeaderRequest,
};
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
    /// Give up the identity of a removed or uninitialized member and mint a new one.
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
    /// Between two heartbeats, in milliseconds.
    #[arg(long, default_value_t = 100)]
    heartbeat_ms: u32,
    /// How long a silent leader is borne, in milliseconds; at least five heartbeats.
    #[arg(long, default_value_t = 1_000)]
    election_timeout_ms: u32,
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
        Command::Renew(options) => renew(options).await,
    }
}

async fn initialize(options: Initialize) -> anyhow::Result<()> {
    let members = options.members.into_iter().map(|(member, name)| GenesisMember { member, name });
    let request = InitializeRequest {
        cluster_id: Bytes::copy_from_slice(&options.cluster_id.0),
        members: members.collect(),
        alpha: 0,
        heartbeat_ms: options.heartbeat_ms,
        election_timeout_ms: options.election_timeout_ms,
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
                let error = CallError::from(refused.clone());
                // A repeat of the same operation is answered with what happened.
                let may_pass = ["not-caught-up", "change-pending", "no-leader", "outcome-unknown"];
                if !may_pass.contains(&error.reason.as_str()) {
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

async fn renew(options: Renew) -> anyhow::Result<()> {
    let request = RenewRequest { member: options.member };
    let answer = options.at.admin()?.renew(request).await.map_err(|status| options.at.explain(status))?;
    println!("this disk is member {} now", views::member(answer.into_inner().member));
    Ok(())
}
