//! Nothing leaves a member before what it says is on the member's disk.

use crate::disk::SimDisk;
use crate::invariants::chosen::Chosen;
use crate::member::Member;
use crate::oracle::{Violation, violation};
use synod_paxos::{ClusterId, MemberId, Message, Row, Slot};
use xxhash_rust::xxh3::xxh3_64;

/// Checks a message as it leaves the member whose disk this is.
///
/// # Errors
/// Where it says more than the disk holds.
pub fn check(
    disk: &SimDisk,
    cluster: ClusterId,
    chosen: &Chosen,
    message: &Message,
) -> Result<(), Violation> {
    let promised = disk.state().promised;
    match message {
        Message::Prepare { ballot, .. } | Message::Promise { ballot, .. } if promised < *ballot => violation(
            "durable before it leaves",
            format!("{message:?} leaves a disk that promised {promised:?}"),
        ),
        Message::Accepted { ballot, slots } => {
            let trimmed = disk.state().trim_through;
            // What rots or is lost after it was written had been there; what is chosen is so under every ballot.
            let lower = |row: &Row| {
                let settled = row.chosen || chosen.value(row.slot) == Some(xxh3_64(&row.value));
                row.ballot < *ballot && !settled && row.is_intact(cluster)
            };
            let less = |slot: &Slot| match disk.rows().get(slot) {
                Some(row) => lower(row),
                None => !disk.damaged().contains(slot),
            };
            let missing = slots.iter().find(|slot| **slot > trimmed && less(slot));
            match missing {
                Some(slot) => violation(
                    "durable before it leaves",
                    format!("accepted {slot:?} under {ballot:?}, the disk has {:?}", disk.rows().get(slot)),
                ),
                None => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// Checks a message as it leaves a member that is removed for good, or that lost a row which is not applied: the one
/// takes no part any more, the other promises nothing until the row heals (docs: protocol.md, "Configurations",
/// "Integrity").
///
/// # Errors
/// Where it takes part, or promises.
pub fn check_barred(member: &Member, message: &Message) -> Result<(), Violation> {
    let (id, disk) = (member.id, &member.disk);
    if member.began_removed {
        return violation("a removed member stays removed", format!("{id:?} sends {message:?}"));
    }
    let promises = matches!(message, Message::Prepare { .. } | Message::Promise { .. });
    if !promises || member.began_damaged.is_empty() {
        return Ok(());
    }
    match member.began_damaged.intersection(disk.damaged()).next() {
        Some(slot) => {
            violation("a lost row bars promises", format!("{id:?} lost {slot:?} and sends {message:?}"))
        }
        None => Ok(()),
    }
}

/// Checks a message as it leaves a member whose disk shows less than it had acknowledged: it has forgotten promises
/// and votes, so nobody may count on it again (docs: protocol.md, "Identity and amnesia").
///
/// # Errors
/// Where it takes part.
pub fn check_rolled_back(member: MemberId, message: &Message) -> Result<(), Violation> {
    let takes_part = message.is_gated()
        || matches!(
            message,
            Message::Accept { .. } | Message::Heartbeat { .. } | Message::HeartbeatReply { .. }
        );
    match takes_part {
        true => violation("a disk that forgot never votes", format!("{member:?} sends {message:?}")),
        false => Ok(()),
    }
}
