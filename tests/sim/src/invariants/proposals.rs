//! One value for a ballot and a slot, proposed by the ballot's own member; and a leader's watermark under a ballot
//! covers a slot that it proposed only on a quorum of votes under that very ballot, or on being told that exactly its
//! batch was chosen there.

use crate::invariants::chosen::Chosen;
use crate::oracle::{Violation, violation};
use std::collections::{BTreeMap, BTreeSet};
use synod_paxos::{Ballot, MemberId, Message, Node, Row, Slot};
use xxhash_rust::xxh3::xxh3_64;

/// What was proposed, and what watermarks have covered.
#[derive(Debug, Default)]
pub struct Proposals {
    proposed: BTreeMap<(Slot, Ballot), u64>,
    /// Who said to have voted, and the proposer's own votes on its disk.
    votes: BTreeMap<(Slot, Ballot), BTreeSet<MemberId>>,
    /// What members were told to be chosen: the value's hash.
    told: BTreeMap<(MemberId, Slot), u64>,
    /// For each ballot: up to where its watermark was checked.
    covered: BTreeMap<Ballot, Slot>,
    /// Watermarks that wait for the end of the step.
    fresh: Vec<(Ballot, Slot)>,
}

impl Proposals {
    /// Notes a message as it leaves `member`.
    ///
    /// # Errors
    /// Where a second value is proposed, or under another's ballot.
    pub fn sent(&mut self, member: MemberId, message: &Message) -> Result<(), Violation> {
        let (ballot, through) = match message {
            Message::Accept { ballot, slot, value, chosen_through, .. } => {
                let hash = xxh3_64(value);
                let first = *self.proposed.entry((*slot, *ballot)).or_insert(hash);
                if first != hash || ballot.member != member {
                    let evidence = format!("{member:?} proposes in {slot:?} under {ballot:?} another value");
                    return violation("one value a ballot", evidence);
                }
                (*ballot, *chosen_through)
            }
            Message::Heartbeat { ballot, chosen_through, .. } => (*ballot, *chosen_through),
            _ => return Ok(()),
        };
        if self.fresh.last() != Some(&(ballot, through)) {
            self.fresh.push((ballot, through));
        }
        Ok(())
    }

    /// A message reaches `to`. The caller leaves out what it may rightly drop.
    pub fn delivered(&mut self, from: MemberId, to: MemberId, message: &Message) {
        match message {
            Message::Accepted { ballot, slots } => {
                for slot in slots {
                    self.votes.entry((*slot, *ballot)).or_default().insert(from);
                }
            }
            Message::Learned { rows, .. } => {
                self.told.extend(rows.iter().map(|row| ((to, row.slot), xxh3_64(&row.value))));
            }
            _ => {}
        }
    }

    /// A row became durable at `member`.
    pub fn voted(&mut self, member: MemberId, row: &Row) {
        if row.ballot.member == member {
            self.votes.entry((row.slot, row.ballot)).or_default().insert(member);
        }
    }

    /// Checks the watermarks of a step, once all that it applied is known.
    ///
    /// # Errors
    /// Where a watermark covers a slot in which the leader had proposed something else than what was chosen, or where
    /// nobody has told it so.
    pub fn check(&mut self, chosen: &Chosen, node: &Node) -> Result<(), Violation> {
        for (ballot, through) in std::mem::take(&mut self.fresh) {
            let covered = self.covered.entry(ballot).or_default();
            while *covered < through {
                *covered = covered.next();
                let proposed = self.proposed.get(&(*covered, ballot));
                let votes = self.votes.remove(&(*covered, ballot)).unwrap_or_default();
                let told = self.told.get(&(ballot.member, *covered));
                let quorum = node.system().is_none_or(|s| s.configurations.at(*covered).has_quorum(&votes));
                if proposed.is_some() && !quorum && told != proposed {
                    let evidence = format!("{ballot:?} covers {covered:?} on votes of {votes:?}");
                    return violation("a watermark rests on a quorum's votes", evidence);
                }
                let value = chosen.value(*covered);
                if proposed.is_some() && value.is_some() && proposed.copied() != value {
                    let evidence = format!(
                        "{ballot:?} covers {covered:?}, where it proposed another value than is chosen"
                    );
                    return violation("a watermark covers what it proposed", evidence);
                }
            }
        }
        Ok(())
    }
}
