//! What the core says of its life, in the process's log.

use super::Fatal;
use synod_paxos::Notice;

/// Writes a notice to the log. Ends the member where it must not go on.
pub(super) fn tell(notice: Notice) -> Result<(), Fatal> {
    match notice {
        Notice::Campaigning(ballot) => tracing::info!(%ballot, "campaigns"),
        Notice::Leading { ballot, epoch } => tracing::info!(%ballot, epoch = epoch.0, "leads"),
        Notice::SteppedDown { ballot, why } => tracing::info!(%ballot, why, "leads no more"),
        Notice::Configured(configuration) => tracing::info!(
            version = configuration.version,
            slot = configuration.slot.0,
            voters = configuration.voters().count(),
            members = configuration.members.len(),
            "configuration applied"
        ),
        Notice::Removed => {
            tracing::warn!("this member was removed from its cluster; its vote is not needed any more")
        }
        Notice::Fenced(why) => tracing::error!(why, "this disk shows less than its peers remember: fenced"),
        Notice::Damaged { slot, from } => {
            let from = from.map(|member| member.to_string());
            tracing::error!(slot = slot.0, from, "a row is damaged or missing");
        }
        Notice::Healed { slot } => tracing::info!(slot = slot.0, "a damaged row is healed"),
        Notice::Diverged { slot } => {
            tracing::error!(
                slot = slot.0,
                "the members' chains differ: the same log led to different states"
            );
        }
        Notice::Installed { slot, from } => {
            tracing::info!(slot = slot.0, %from, "installed a snapshot in place of the log up to there");
        }
        Notice::DamagedSnapshot { slot, healed: true } => {
            tracing::info!(slot = slot.0, "a snapshot was damaged, and is written again");
        }
        Notice::DamagedSnapshot { slot, healed: false } => tracing::error!(
            slot = slot.0,
            "a snapshot is damaged: this member does not serve it, and removes it with a trim behind it"
        ),
        Notice::Unreadable { slot, from, again: false } => tracing::error!(
            slot = slot.0,
            %from,
            "a proposal gets no vote here, because this version cannot read it: does the leader run another version?"
        ),
        Notice::Unreadable { again: true, .. } => {}
        Notice::NotProposed { slot } => tracing::error!(
            slot = slot.0,
            "a call was refused, because no member would read it back: this is a fault of Synod's"
        ),
        Notice::Withheld { slot } => tracing::error!(
            slot = slot.0,
            "an accepted entry cannot be read here and may be chosen: start the members that are down, or the version that wrote it"
        ),
        Notice::Undecodable { slot } => return Err(Fatal::Undecodable { slot }),
    }
    Ok(())
}
