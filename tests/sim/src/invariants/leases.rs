//! While a leader may read by itself, nobody else gets anything chosen under a higher ballot.

use crate::member::Member;
use crate::oracle::{Violation, violation};
use std::collections::BTreeMap;
use synod_paxos::{Ballot, MemberId};

/// The LeaderStart of `ballot` is chosen now: no other member may still hold a lease, by its own clock.
///
/// # Errors
/// Where one does.
pub fn check(members: &BTreeMap<MemberId, Member>, now: u64, ballot: Ballot) -> Result<(), Violation> {
    for member in members.values().filter(|m| m.id != ballot.member) {
        let Some(node) = &member.node else { continue };
        let status = node.status(member.clock.local(now));
        if status.lease && status.leader.is_some_and(|under| under < ballot) {
            let evidence = format!("{:?} holds one under {:?}, {ballot:?} leads", member.id, status.leader);
            return violation("a lease is over before another leads", evidence);
        }
    }
    Ok(())
}
