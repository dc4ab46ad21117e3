//! One short line for everything that happens on the bench: what scripts compare and failing tests print.

#![allow(
    unreachable_patterns,
    reason = "what the core gains is printed as it is, until it has a line of its own"
)]

use synod_paxos::configuration::Change;
use synod_paxos::io::Applied;
use synod_paxos::message::ForwardOutcome;
use synod_paxos::value::{Call, Entry, Operation, Value};
use synod_paxos::{Ballot, Incoming, Message, Notice, Output, Reply, Row, Write};

/// `1>2 Prepare b1.1 from s1`
pub(crate) fn incoming(incoming: &Incoming) -> String {
    let (from, to) = (incoming.from.0, incoming.to.0);
    format!("{from}>{to} {}", message(&incoming.message))
}

/// The name of a message's kind, as scripts pick it.
pub(crate) fn kind(message: &Message) -> String {
    let text = format!("{message:?}");
    text.split([' ', '{']).next().unwrap_or_default().to_string()
}

fn message(message: &Message) -> String {
    let kind = kind(message);
    let body = match message {
        Message::Hello { needs_genesis, .. } => if *needs_genesis { "needs genesis" } else { "" }.into(),
        Message::Welcome { remembered, full_genesis, chosen_through, .. } => {
            let genesis = if full_genesis.is_some() { ", genesis" } else { "" };
            let (boots, writes) = (remembered.incarnation.0, remembered.written.0);
            format!("remembers boot {boots} write {writes}, chosen {chosen_through:?}{genesis}")
        }
        Message::Canvass { ballot, from, .. } => format!("{ballot:?} from {from:?}"),
        Message::CanvassReply { willing, promised, chosen_through, .. } => {
            let word = if *willing { "willing" } else { "unwilling" };
            format!("{word}, promised {promised:?}, chosen {chosen_through:?}")
        }
        Message::Prepare { ballot, from, hand_over, .. } => {
            let why = hand_over.map(|b| format!(" handed over by {b:?}")).unwrap_or_default();
            format!("{ballot:?} from {from:?}{why}")
        }
        Message::Promise { ballot, chunk, last, trim_through, chosen_through, rows, .. } => {
            let last = if *last { " last" } else { "" };
            let trim = if trim_through.0 > 0 { format!(", trimmed {trim_through:?}") } else { String::new() };
            format!("{ballot:?} chunk {chunk}{last}, chosen {chosen_through:?}{trim}:{}", self::rows(rows))
        }
        Message::PromiseMore { ballot, chunk, .. } => format!("{ballot:?} chunk {chunk}"),
        Message::Nack { ballot, promised, .. } => format!("{ballot:?}, promised {promised:?}"),
        Message::Accept { ballot, slot, value, chosen_through, .. } => {
            format!("{slot:?}@{ballot:?} {}, chosen {chosen_through:?}", self::value(value, *ballot))
        }
        Message::Accepted { ballot, slots, .. } => format!("{ballot:?} {slots:?}"),
        Message::Heartbeat { ballot, chosen_through, has_quorum, .. } => {
            let quorum = if *has_quorum { "" } else { ", no quorum" };
            format!("{ballot:?}, chosen {chosen_through:?}{quorum}")
        }
        Message::HeartbeatReply { ballot, chosen_through, durable_through, .. } => {
            format!("{ballot:?}, chosen {chosen_through:?}, durable {durable_through:?}")
        }
        Message::LearnRequest { from, through, .. } => format!("{from:?} to {through:?}"),
        Message::Learned { chosen_through, rows, .. } => {
            format!("chosen {chosen_through:?}:{}", self::rows(rows))
        }
        Message::Forward { request, ballot, sequence, .. } => {
            format!("{request:?} under {ballot:?} number {sequence}")
        }
        Message::ForwardReply { request, outcome, .. } => match outcome {
            ForwardOutcome::Appended { first, last, .. } => {
                format!("{request:?} appended {first:?}..{last:?}")
            }
            other => format!("{request:?} {other:?}"),
        },
        Message::ReadPointRequest { ballot, .. } => format!("under {ballot:?}"),
        Message::ReadPoint { slot: Some(slot), .. } => format!("at {slot:?}"),
        Message::ReadPoint { slot: None, .. } => "refused".into(),
        Message::HandOver { ballot, .. } => format!("{ballot:?}"),
        Message::Retire { version, slot, .. } => format!("version {version} by {slot:?}"),
        Message::Busy { ballot, wait, .. } => format!("{ballot:?} for {} ms", wait.as_millis()),
        Message::SnapshotRequest { slot, offset, .. } => format!("of {slot:?} from byte {offset}"),
        Message::SnapshotChunk { slot, .. } => format!("of {slot:?}"),
        other => return format!("{other:?}"),
    };
    [kind, body].join(" ").trim_end().to_string()
}

fn rows(rows: &[Row]) -> String {
    if rows.is_empty() {
        return " nothing".into();
    }
    rows.iter().map(|r| format!(" {}", row(r))).collect::<Vec<_>>().join(",")
}

/// `s1@b1.1 [x]`; a `!` behind the ballot marks a row known chosen.
pub(crate) fn row(row: &Row) -> String {
    let mark = if row.chosen { "!" } else { "" };
    format!("{:?}@{:?}{mark} {}", row.slot, row.ballot, value(&row.value, row.ballot))
}

/// A value, as short as can be; a batch names its ballot where it is not the row's.
fn value(bytes: &bytes::Bytes, under: Ballot) -> String {
    match Value::decode(bytes.clone()) {
        Ok(Value::NoOp) => "no-op".into(),
        Ok(Value::LeaderStart { ballot, .. }) => format!("start {ballot:?}"),
        Ok(Value::Batch { ballot, calls, .. }) => {
            let texts: Vec<_> = calls.iter().flat_map(entries).map(|e| text(&e.payload)).collect();
            let of = if ballot == under { String::new() } else { format!(" of {ballot:?}") };
            format!("[{}]{of}", texts.join(" "))
        }
        Ok(Value::Configuration(entry)) => {
            let version = entry.expected_version;
            match entry.change {
                Change::AddLearner { member, .. } => format!("version {version} add {}", member.0),
                Change::Promote { member } => format!("version {version} promote {}", member.0),
                Change::Remove { member } => format!("version {version} remove {}", member.0),
            }
        }
        Ok(other) => format!("{other:?}"),
        Err(error) => format!("unreadable: {error}"),
    }
}

/// The payloads of a call.
fn entries(call: &Call) -> &[Entry] {
    match &call.operation {
        Operation::Append(append) => &append.entries,
        _ => &[],
    }
}

/// A payload as text.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a member gave out; none for what only moves rows between the core and its disk.
pub(crate) fn output(member: u64, output: &Output) -> Option<String> {
    Some(match output {
        Output::Send(outgoing) => incoming(&outgoing.to_incoming()),
        Output::Persist(batch) => {
            let writes: Vec<_> = batch.writes().iter().filter_map(write).collect();
            if writes.is_empty() {
                return None;
            }
            format!("{member} writes {}", writes.join(", "))
        }
        Output::Applied(Applied { slot, entries, first, .. }) if entries.is_empty() => {
            let _ = first;
            format!("{member} applies {slot:?}")
        }
        Output::Applied(Applied { slot, entries, first, .. }) => {
            let texts: Vec<_> = entries.iter().map(|e| text(&e.payload)).collect();
            format!("{member} applies {slot:?}: {first:?} [{}]", texts.join(" "))
        }
        Output::CallReply { request, outcome: Ok(Reply::Appended { first, last, .. }) } => {
            format!("{member} answers {request:?}: appended {first:?}..{last:?}")
        }
        Output::CallReply { request, outcome: Ok(reply) } => {
            format!("{member} answers {request:?}: {reply:?}")
        }
        Output::CallReply { request, outcome: Err(refusal) } => {
            format!("{member} answers {request:?}: {refusal}")
        }
        Output::ReadReady { request, outcome: Ok(index), .. } => {
            format!("{member} answers {request:?}: read up to {index:?}")
        }
        Output::ReadReady { request, outcome: Err(refusal), .. } => {
            format!("{member} answers {request:?}: {refusal}")
        }
        Output::AdminReply { request, outcome: Err(refusal) } => {
            format!("{member} answers {request:?}: {refusal}")
        }
        Output::AdminReply { request, outcome: Ok(done) } => {
            let text = format!("{done:?}");
            let word = text.split(['(', ' ']).next().unwrap_or_default().to_lowercase();
            format!("{member} answers {request:?}: {word}")
        }
        Output::LeaderChanged { leader: Some(ballot) } => format!("{member} follows {ballot:?}"),
        Output::LeaderChanged { leader: None } => format!("{member} follows nobody"),
        Output::Notice(notice) => format!("{member} notes: {}", self::notice(notice)),
        Output::Installed { slot, index } => format!("{member} stands at {slot:?}, {index:?}"),
        Output::OpenView { .. }
        | Output::ReadView { .. }
        | Output::CloseView(_)
        | Output::ReadSnapshot { .. } => return None,
        other => format!("{member} gives {other:?}"),
    })
}

/// What a write changes; what a member remembers of its peers rides along and is not shown.
fn write(write: &Write) -> Option<String> {
    Some(match write {
        Write::Promised(ballot) => format!("promised {ballot:?}"),
        Write::Row(row) => format!("row {}", self::row(row)),
        Write::ChosenThrough(slot) => format!("chosen {slot:?}"),
        Write::System { applied, .. } => format!("state {applied:?}"),
        Write::Genesis(_) => "genesis".into(),
        Write::Joined { .. } => "cluster to join".into(),
        Write::GenesisConfirmed => "genesis confirmed".into(),
        Write::Tombstone { version, .. } => format!("tombstone by version {version}"),
        Write::Fenced(_) => "fence".into(),
        Write::Snapshot { slot, .. } => format!("snapshot {slot:?}"),
        Write::Trim { through } => format!("trim {through:?}"),
        Write::SnapshotPart(part) => format!("snapshot {:?} up to byte {}", part.slot, part.end()),
        Write::Install { slot, .. } => format!("install {slot:?}"),
        Write::Lease(longest) => format!("longest lease {} ms", longest.as_millis()),
        Write::Peer { .. } => return None,
        other => format!("{other:?}"),
    })
}

fn notice(notice: &Notice) -> String {
    match notice {
        Notice::Campaigning(ballot) => format!("campaigns under {ballot:?}"),
        Notice::Leading { ballot, epoch } => format!("leads under {ballot:?}, epoch {epoch:?}"),
        Notice::SteppedDown { ballot, why } => format!("stepped down from {ballot:?}: {why}"),
        Notice::Configured(c) => {
            let voters: Vec<_> = c.voters().map(|m| m.0.to_string()).collect();
            let learners: Vec<_> =
                c.members.iter().filter(|(_, m)| !m.voter).map(|(id, _)| id.0.to_string()).collect();
            let learners = if learners.is_empty() {
                String::new()
            } else {
                format!(", learners {}", learners.join(" "))
            };
            let from = c.effective_from;
            format!("version {} from {from:?}: voters {}{learners}", c.version, voters.join(" "))
        }
        Notice::Damaged { slot, from } => match from {
            Some(from) => format!("{slot:?} came damaged from {}", from.0),
            None => format!("{slot:?} is damaged on its disk"),
        },
        Notice::Healed { slot } => format!("{slot:?} is healed"),
        Notice::Installed { slot, from } => format!("took the snapshot of {slot:?} from {}", from.0),
        Notice::Fenced(why) => format!("fenced: {why}"),
        other => format!("{other:?}"),
    }
}
