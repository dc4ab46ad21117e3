//! A promise reports every vote that its sender gave, or will still be told of having given, under a lower ballot.
//!
//! When its last chunk leaves, no vote under a lower ballot can come to that disk any more: so what the disk holds
//! then must be in the report.

use crate::disk::SimDisk;
use crate::oracle::{Violation, violation};
use std::collections::{BTreeMap, BTreeSet};
use synod_paxos::message::ViewId;
use synod_paxos::{MemberId, Message, Slot};

/// The slots that promises under way have reported so far.
#[derive(Debug, Default)]
pub struct WholePromises(BTreeMap<(MemberId, ViewId), BTreeSet<Slot>>);

impl WholePromises {
    /// Checks a message as it leaves `member`.
    ///
    /// # Errors
    /// Where a complete promise leaves a vote out.
    pub fn check(&mut self, member: MemberId, disk: &SimDisk, message: &Message) -> Result<(), Violation> {
        let Message::Promise { ballot, from, view, chunk, last, rows, .. } = message else { return Ok(()) };
        let key = (member, *view);
        if *chunk == 0 {
            self.0.insert(key, BTreeSet::new());
        }
        let Some(reported) = self.0.get_mut(&key) else { return Ok(()) };
        reported.extend(rows.iter().map(|row| row.slot));
        if !last {
            return Ok(());
        }
        let reported = self.0.remove(&key).unwrap_or_default();
        let votes = disk.rows().range(*from..).map(|(_, row)| row);
        let mut left_out =
            votes.filter(|row| !row.chosen && row.ballot < *ballot && !reported.contains(&row.slot));
        match left_out.next() {
            Some(row) => violation(
                "promises are whole",
                format!("{member:?} promised {ballot:?} and left out {row:?}"),
            ),
            None => Ok(()),
        }
    }
}
