//! `status`, `members` and `history`: what fits a terminal of 80 columns.

use super::Format;
use super::connect::{Socket, print_json};
use crate::views::{self, History, Status};
use clap::Args;
use comfy_table::{ContentArrangement, Table, TableStyle, presets};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::Write;

const WIDTH: u16 = 80;

#[derive(Clone, Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    socket: Socket,
    /// text for people, json for programs.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

pub(super) fn table(style: TableStyle) -> Table {
    let mut table = Table::new();
    table.load_style(style).set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    table
}

pub(super) fn print(table: &Table) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout().lock(), "{}", table.trim_fmt())?)
}

/// Progress through so many bytes: shown on a terminal only, on standard error.
pub(super) fn bytes_bar(length: u64) -> anyhow::Result<ProgressBar> {
    let bar = ProgressBar::new(length);
    bar.set_style(ProgressStyle::with_template("{msg:9} {bar:30} {bytes} of {total_bytes}, {eta} left")?);
    Ok(bar)
}

fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

async fn fetch(options: &Options) -> anyhow::Result<synod_proto::v1::StatusResponse> {
    synod_client::wire::status(&options.socket.client()?).await.map_err(|error| options.socket.explain(error))
}

pub(super) async fn status(options: Options) -> anyhow::Result<()> {
    let status = Status::from(&fetch(&options).await?);
    if options.output == Format::Json {
        return print_json(&status);
    }
    let mut table = table(presets::NOTHING);
    let mut row = |name: &str, value: String| {
        table.add_row(vec![name.to_owned(), value]);
    };
    row("Member", format!("{} ({})", status.member, status.name));
    let ready = if status.ready { "ready".to_owned() } else { format!("not ready: {}", status.reason) };
    row("State", format!("{}, {ready}", status.state));
    row("Role", status.role.to_owned());
    let leader = match (&status.leader, &status.leader_name) {
        (Some(id), Some(name)) => format!("{id} ({name})"),
        (Some(id), None) => id.clone(),
        (None, _) => "none known".to_owned(),
    };
    row("Leader", leader);
    row("Fencing epoch", status.fencing_epoch.to_string());
    row("Cluster", status.cluster_id.unwrap_or_else(|| "none".to_owned()));
    if let Some(configuration) = &status.configuration {
        let pending = if status.configuration_in_force { "" } else { ", not in force yet" };
        let (voters, learners) = (configuration.voters.len(), configuration.learners.len());
        row(
            "Configuration",
            format!(
                "version {}: {}, {}{pending}",
                configuration.version,
                counted(voters, "voter"),
                counted(learners, "learner")
            ),
        );
    }
    row("Last index", status.last_index.to_string());
    row("Chosen slots", format!("{} (on disk {})", status.chosen_through, status.durable_through));
    if let Some(disk) = &status.disk {
        let room = match disk.room {
            "low" => ", low: make the volume larger or keep less of the log",
            "full" => ", full: appends are refused",
            "spent" => ", full: half of the reserve is used up",
            _ => "",
        };
        row("Disk", format!("{} MiB free{room}", disk.free_bytes >> 20));
    }
    row("Starts", status.incarnation.to_string());
    row("Version", status.version);
    print(&table)
}

pub(super) async fn members(options: Options) -> anyhow::Result<()> {
    let members = views::members(&fetch(&options).await?);
    if options.output == Format::Json {
        return print_json(&members);
    }
    if members.is_empty() {
        println!("This member belongs to no cluster yet.");
        return Ok(());
    }
    let mut table = table(presets::NOTHING);
    table.set_header(vec!["NAME", "MEMBER", "ROLE", "CONNECTED", "CAUGHT UP", "ON DISK"]);
    for member in &members {
        let role = match (member.leader, member.voter) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "learner",
        };
        table.add_row(vec![
            member.name.clone(),
            member.member.clone(),
            role.to_owned(),
            if member.this { "this one" } else { yes(member.connected) }.to_owned(),
            member.caught_up.map_or("-", yes).to_owned(),
            member.durable_through.map_or_else(|| "-".to_owned(), |slot| slot.to_string()),
        ]);
    }
    print(&table)
}

pub(super) async fn history(options: Options) -> anyhow::Result<()> {
    let history = synod_client::wire::history(&options.socket.client()?)
        .await
        .map_err(|e| options.socket.explain(e))?;
    let history = History::from(&history);
    if options.output == Format::Json {
        return print_json(&history);
    }
    if history.configurations.is_empty() {
        println!("This member belongs to no cluster yet.");
        return Ok(());
    }
    let mut configurations = table(presets::NOTHING);
    configurations.set_header(vec!["VERSION", "SLOT", "IN FORCE FROM", "MEMBERS"]);
    for configuration in &history.configurations {
        let members = configuration.names.iter().map(|named| {
            let learner = configuration.learners.contains(&named.member);
            format!("{}{}", named.name, if learner { " (learner)" } else { "" })
        });
        configurations.add_row(vec![
            configuration.version.to_string(),
            configuration.slot.to_string(),
            configuration.effective_from.to_string(),
            members.collect::<Vec<_>>().join(", "),
        ]);
    }
    print(&configurations)?;
    println!();
    let mut leaders = table(presets::NOTHING);
    leaders.set_header(vec!["FENCING EPOCH", "BALLOT"]);
    for leadership in &history.leaders {
        let ballot = leadership.ballot.clone().unwrap_or_default();
        leaders.add_row(vec![leadership.fencing_epoch.to_string(), ballot]);
    }
    print(&leaders)
}

fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
