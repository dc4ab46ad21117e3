//! A new leader proposes, in each slot that recovery decides, the value with the highest ballot among the promises that
//! have reached it whole and its own disk; and its LeaderStart, like a no-op, stands where nobody reported a value.
//!
//! Promises are put together here once more from what is delivered, so that no candidate's own bookkeeping is believed.

use crate::disk::SimDisk;
use crate::oracle::{Violation, violation};
use std::collections::{BTreeMap, BTreeSet};
use synod_paxos::message::ViewId;
use synod_paxos::value::Value;
use synod_paxos::{Ballot, MemberId, Message, Row, Slot};
use xxhash_rust::xxh3::xxh3_64;

/// The best that was reported of a slot: chosen above accepted, then by ballot; and the value's hash.
type Report = (bool, Ballot, u64);

/// A promise of which some chunks have come.
#[derive(Debug)]
struct Partial {
    view: ViewId,
    next: u32,
    rows: Vec<(Slot, Report)>,
}

/// What has reached one candidacy.
#[derive(Debug, Default)]
struct Candidacy {
    partial: BTreeMap<MemberId, Partial>,
    whole: BTreeSet<MemberId>,
    best: BTreeMap<Slot, Report>,
    started: bool,
}

/// The candidacies of a run.
#[derive(Debug, Default)]
pub struct Recovery {
    candidacies: BTreeMap<Ballot, Candidacy>,
    proposed: BTreeMap<Ballot, Slot>,
}

fn report(row: &Row) -> Report {
    (row.chosen, row.ballot, xxh3_64(&row.value))
}

impl Recovery {
    /// A chunk of a promise reaches its candidate. The caller leaves out what the candidate may rightly drop.
    pub fn delivered(&mut self, from: MemberId, message: &Message) {
        let Message::Promise { ballot, view, chunk, last, rows, .. } = message else { return };
        let candidacy = self.candidacies.entry(*ballot).or_default();
        if candidacy.whole.contains(&from) {
            return;
        }
        if *chunk == 0 {
            candidacy.partial.insert(from, Partial { view: *view, next: 0, rows: Vec::new() });
        }
        let Some(partial) = candidacy.partial.get_mut(&from) else { return };
        if partial.view != *view || partial.next != *chunk {
            return;
        }
        partial.next += 1;
        partial.rows.extend(rows.iter().map(|row| (row.slot, report(row))));
        if !last {
            return;
        }
        candidacy.whole.insert(from);
        for (slot, report) in candidacy.partial.remove(&from).map(|p| p.rows).unwrap_or_default() {
            let best = candidacy.best.entry(slot).or_insert(report);
            *best = report.max(*best);
        }
    }

    /// Checks a proposal when the leader writes its own vote: its Accepts may leave later, when other promises have come
    /// that a quorum did not need.
    ///
    /// # Errors
    /// Where recovery passes over the value that it must propose again.
    pub fn proposed(&mut self, member: MemberId, disk: &SimDisk, row: &Row) -> Result<(), Violation> {
        let Row { slot, ballot, value, .. } = row;
        if row.chosen || ballot.member != member {
            return Ok(());
        }
        let newest = self.proposed.entry(*ballot).or_default();
        if *slot <= *newest {
            return Ok(());
        }
        *newest = *slot;
        let candidacy = self.candidacies.entry(*ballot).or_default();
        if candidacy.started {
            return Ok(());
        }
        // What rots on its disk it still has in memory, or it would not be a candidate.
        let own = disk.rows().get(slot).filter(|row| row.ballot < *ballot && !disk.damaged().contains(slot));
        let best = own.map(report).max(candidacy.best.get(slot).copied());
        candidacy.started = value.len() < 32
            && matches!(Value::decode(value.clone()), Ok(Value::LeaderStart { ballot: b }) if b == *ballot);
        match best {
            Some((_, under, hash)) if hash != xxh3_64(value) => violation(
                "recovery proposes what was accepted last",
                format!(
                    "{member:?} proposes {:?} in {slot:?} under {ballot:?}; another was accepted under {under:?}",
                    &value[..value.len().min(80)]
                ),
            ),
            _ => Ok(()),
        }
    }
}
