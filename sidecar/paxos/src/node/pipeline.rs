//! What a leader has under way to each follower: Accepts that are sent and not answered, bounded in bytes.
//!
//! A link carries Accepts in order and loses none while it stands. What a slow link cannot take yet waits here, where it
//! costs nothing, and not in a queue of the transport, which would drop it when it is full; and an Accept is sent again
//! only when the slowest link would have carried everything before it.

use super::Node;
use crate::types::{Instant, MemberId, Slot};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// Accepts under way to one member.
#[derive(Debug, Default)]
pub(super) struct Pipeline {
    /// Sent and not answered: when, and the value's bytes.
    sent: BTreeMap<Slot, (Instant, usize)>,
    /// Bytes of all in `sent`.
    bytes: usize,
    /// Every slot in flight below it was sent, or need not be.
    next: Slot,
}

impl Pipeline {
    fn takes(&self, bytes: usize, most: usize) -> bool {
        self.sent.is_empty() || self.bytes + bytes <= most
    }

    fn note_sent(&mut self, now: Instant, slot: Slot, bytes: usize) {
        if self.sent.insert(slot, (now, bytes)).is_none() {
            self.bytes += bytes;
        }
    }

    fn note_answered(&mut self, slot: Slot) {
        if let Some((_, bytes)) = self.sent.remove(&slot) {
            self.bytes -= bytes;
        }
    }

    /// The member holds every slot up to `through`.
    fn note_held(&mut self, through: Slot) {
        let above = self.sent.split_off(&through.next());
        self.bytes -=
            core::mem::replace(&mut self.sent, above).values().map(|(_, bytes)| bytes).sum::<usize>();
    }
}

impl Node {
    /// Sends `member` the Accepts that wait for it, as far as its pipeline takes them.
    pub(super) fn feed(&mut self, now: Instant, member: MemberId) {
        let most = self.bounds.pipeline;
        while let Some(proposer) = self.proposer.as_mut() {
            let pipeline = proposer.pipelines.entry(member).or_default();
            let Some((&slot, flight)) = proposer.in_flight.range(pipeline.next..).next() else { return };
            let row = self.rows.get(&slot).filter(|row| row.ballot == proposer.ballot).cloned();
            let wanted = row.filter(|_| !flight.votes.contains(&member));
            let wanted = wanted.filter(|_| self.is_follower(slot, member));
            let Some(proposer) = self.proposer.as_mut() else { return };
            let pipeline = proposer.pipelines.entry(member).or_default();
            if let Some(row) = &wanted {
                if !pipeline.takes(row.value.len(), most) && !planted!(PipelineUnbounded) {
                    return;
                }
                pipeline.note_sent(now, slot, row.value.len());
            }
            pipeline.next = slot.next();
            if let Some(row) = wanted {
                self.send_accept(now, member, &row);
            }
        }
    }

    /// `member` answered the Accepts of `slots`: there is room for others.
    pub(super) fn note_accepts_answered(&mut self, now: Instant, member: MemberId, slots: &[Slot]) {
        let Some(proposer) = self.proposer.as_mut() else { return };
        if let Some(pipeline) = proposer.pipelines.get_mut(&member) {
            slots.iter().for_each(|slot| pipeline.note_answered(*slot));
        }
        self.feed(now, member);
    }

    /// `member` holds every slot up to `through`, however it got them.
    pub(super) fn note_held(&mut self, now: Instant, member: MemberId, through: Slot) {
        let Some(proposer) = self.proposer.as_mut() else { return };
        if let Some(pipeline) = proposer.pipelines.get_mut(&member) {
            pipeline.note_held(through);
        }
        self.feed(now, member);
    }

    /// A new connection: nothing is under way on it.
    pub(super) fn restart_pipeline(&mut self, now: Instant, member: MemberId) {
        let Some(proposer) = self.proposer.as_mut() else { return };
        proposer.pipelines.insert(member, Pipeline::default());
        self.feed(now, member);
    }

    /// Sends again what the slowest link would have carried, and its answer back, by now.
    pub(super) fn resend_late(&mut self, now: Instant, member: MemberId) {
        let patience = self.settings().heartbeat * 2;
        let Some(proposer) = self.proposer.as_mut() else { return };
        let Some(pipeline) = proposer.pipelines.get(&member) else { return self.feed(now, member) };
        let patience = patience + self.bounds.transit(pipeline.bytes);
        let late = pipeline.sent.iter().filter(|(_, (sent, _))| now.since(*sent) >= patience);
        let late: Vec<Slot> = late.map(|(slot, _)| *slot).collect();
        for slot in late {
            let row = self.rows.get(&slot).cloned();
            let Some(proposer) = self.proposer.as_mut() else { return };
            let open = proposer.in_flight.get(&slot).is_some_and(|flight| !flight.votes.contains(&member));
            let pipeline = proposer.pipelines.entry(member).or_default();
            match row.filter(|row| open && row.ballot == proposer.ballot) {
                Some(row) => {
                    pipeline.note_sent(now, slot, row.value.len());
                    self.send_accept(now, member, &row);
                }
                // Chosen without it: it learns what it lacks.
                None => pipeline.note_answered(slot),
            }
        }
        self.feed(now, member);
    }
}
