//! The log is trimmed only to where a quorum has a snapshot on disk, and not under a connected member that is catching
//! up, unless it holds up more than twice what retention keeps.

use crate::member::Member;
use crate::oracle::{Violation, violation};
use std::collections::{BTreeMap, BTreeSet};
use synod_paxos::value::Value;
use synod_paxos::{Ballot, MemberId, Message, Slot};

/// A trim waits for a member that lags until this many times what retention keeps is held.
const PATIENCE: u64 = 2;

/// What leaders were told of their followers' progress.
#[derive(Debug, Default)]
pub struct Trims {
    told: BTreeMap<(Ballot, MemberId), Slot>,
    /// The newest snapshot that each follower said it has on disk.
    told_snapshots: BTreeMap<MemberId, Slot>,
    connected: BTreeSet<(MemberId, MemberId)>,
    /// Up to where trims were looked at, by ballot.
    seen: BTreeMap<Ballot, Slot>,
}

impl Trims {
    /// One end of a connection sees it stand or break.
    pub fn connection(&mut self, at: MemberId, peer: MemberId, stands: bool) {
        match stands {
            true => self.connected.insert((at, peer)),
            false => self.connected.remove(&(at, peer)),
        };
    }

    /// A process begins: it has no connections.
    pub fn started(&mut self, member: MemberId) {
        self.connected.retain(|(at, _)| *at != member);
    }

    /// A message reaches the leader whose ballot it names.
    pub fn delivered(&mut self, from: MemberId, message: &Message) {
        if let Message::HeartbeatReply { ballot, chosen_through, snapshot_through, .. } = message {
            let snapshot = self.told_snapshots.entry(from).or_default();
            *snapshot = (*snapshot).max(*snapshot_through);
            let told = self.told.entry((*ballot, from)).or_default();
            *told = (*told).max(*chosen_through);
        }
    }

    /// Checks a trim as it is proposed. The disks of those in `forgetful` have lost what they had acknowledged: what
    /// these members said of them before was true, as far as anybody can tell.
    ///
    /// # Errors
    /// Where too few have the snapshot, or where it should have waited.
    pub fn sent(
        &mut self,
        leader: MemberId,
        members: &BTreeMap<MemberId, Member>,
        forgetful: &BTreeSet<MemberId>,
        message: &Message,
    ) -> Result<(), Violation> {
        let Message::Accept { ballot, slot, value, .. } = message else { return Ok(()) };
        if value.len() > 16 {
            return Ok(());
        }
        let Ok(Value::Trim { through }) = Value::decode(value.clone()) else { return Ok(()) };
        let seen = self.seen.entry(*ballot).or_default();
        let node = members.get(&leader).and_then(|m| m.node.as_ref());
        let Some(system) = node.and_then(|node| node.system()) else { return Ok(()) };
        // What an earlier leader had proposed is only proposed again.
        let serves = system.newest_leader().is_some_and(|(_, newest)| newest == *ballot);
        if *slot <= *seen || !serves {
            return Ok(());
        }
        *seen = *slot;
        let Some(mark) = system.marks.iter().find(|mark| mark.slot == through) else { return Ok(()) };
        let newest = system.configurations.latest();
        let has = |id: &MemberId| {
            let state = members.get(id).map(|m| m.disk.state());
            let told = || forgetful.contains(id) && self.told_snapshots.get(id) >= Some(&through);
            state.is_some_and(|s| s.snapshots.last_key_value().is_some_and(|(held, _)| *held >= through))
                || told()
        };
        let holding: BTreeSet<MemberId> = newest.members.keys().copied().filter(has).collect();
        if !newest.has_quorum(&holding) {
            let evidence = format!("{leader:?} trims to {through:?}, only {holding:?} have a snapshot there");
            return violation("trims rest on a quorum's snapshots", evidence);
        }
        let kept = system.settings.retention.entries.unwrap_or(u64::MAX);
        if system.last_index.0 - mark.index.0 >= kept.saturating_mul(PATIENCE) {
            return Ok(());
        }
        let lags = |id: &&MemberId| {
            self.connected.contains(&(leader, **id))
                && self.told.get(&(*ballot, **id)).is_some_and(|told| *told < through)
        };
        match newest.members.keys().find(lags) {
            Some(behind) => violation(
                "trims wait for who catches up",
                format!(
                    "{leader:?} trims to {through:?} under {ballot:?}, {behind:?} is behind and connected"
                ),
            ),
            None => Ok(()),
        }
    }
}
