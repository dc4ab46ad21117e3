//! What is chosen, and applying it (docs: protocol.md, "Leader" rule 6).

use super::Node;
use super::proposer::Start;
use crate::io::{Applied, Notice, Output};
use crate::settings::Settings;
use crate::status::MemberState;
use crate::system::Effect;
use crate::types::{Ballot, Index, Slot};
use alloc::vec::Vec;
use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_128;

impl Node {
    /// A leader under `ballot` says that every slot up to `through` is chosen. A slot is chosen for this member
    /// if its row has *exactly* that ballot; otherwise its value is asked for.
    pub(super) fn note_chosen_by_leader(&mut self, ballot: Ballot, through: Slot) {
        self.note_chosen_elsewhere(ballot.member, through);
        if through <= self.chosen_through {
            return;
        }
        for (_, row) in self.rows.range_mut(..=through) {
            if row.ballot == ballot || planted!(InferenceAtLeast) && row.ballot <= ballot {
                row.chosen = true;
            }
        }
        self.advance();
    }

    /// Applies the rows that are chosen without a hole.
    pub(super) fn advance(&mut self) {
        while !self.halted {
            let next = self.chosen_through.next();
            if !self.rows.get(&next).is_some_and(|row| row.chosen) {
                break;
            }
            let Some(row) = self.rows.remove(&next) else { break };
            self.recent.insert(next, xxh3_128(&row.value));
            while self.recent.len() as u64 > self.window() {
                self.recent.pop_first();
            }
            self.apply(next, row.value);
        }
    }

    fn apply(&mut self, slot: Slot, value: Bytes) {
        // Applying reads it too; only an older version's reader is asked here.
        let older = self.readable_level < Settings::FORMAT_LEVEL;
        let read = if older { self.read_value(&value).map(drop) } else { Ok(()) };
        let Some(system) = self.system.as_mut() else { return };
        let bytes = value.len();
        let effect = match read.and_then(|()| system.apply(slot, &value)) {
            Ok(effect) => effect,
            Err(_) => {
                // Guessing would diverge: this member stops here and says so.
                self.step_down("an undecodable value was chosen");
                self.halted = true;
                self.life = MemberState::Halted(
                    "it met a chosen entry that it cannot read: run the version that wrote it, or a newer one".into(),
                );
                return self.notice(Notice::Undecodable { slot });
            }
        };
        self.chosen_through = slot;
        self.catch_up.note_progress();
        self.pace
            .note_applied(bytes, matches!(&effect, Effect::Batch { entries, .. } if !entries.is_empty()));
        if let Some(proposer) = self.proposer.as_mut() {
            proposer.land(slot);
        }
        let (mut first, mut time, mut entries, mut skipped) = (Index(0), None, Vec::new(), Vec::new());
        match effect {
            Effect::None => {}
            Effect::LeaderStart(ballot) => self.apply_leader_start(slot, ballot),
            Effect::Batch { first: index, time: at, entries: added, skipped: not_added, calls } => {
                self.log_time_seen = Some(self.clock);
                (first, time, entries, skipped) = (index, at, added, not_added);
                for call in calls {
                    self.conclude_call(call);
                }
            }
            Effect::Configuration { operation, result } => self.apply_configuration(operation, result),
            Effect::Mark => self.take_snapshot(slot),
            Effect::Trim(mark) => self.apply_trim(mark),
        }
        self.outputs.push_back(Output::Applied(Applied { slot, first, time, entries, skipped }));
        self.answer_ready_reads();
    }

    /// A LeaderStart decides every earlier ballot: what was proposed under one and is not applied by now never
    /// will be (docs: decisions/0002).
    fn apply_leader_start(&mut self, slot: Slot, ballot: Ballot) {
        self.disk.note_system_changed();
        let serving =
            self.proposer.as_mut().filter(|p| p.ballot == ballot && p.start == Start::Proposed(slot));
        if let Some(proposer) = serving {
            proposer.start = Start::Serving(slot);
            // The time since the last leader's newest batch, as far as this member saw it pass.
            proposer.stamped = proposer.stamped.or(self.log_time_seen);
            self.notice(Notice::Leading { ballot, epoch: slot });
        }
        self.settle_calls_before(ballot);
    }
}
