//! Collecting promises, and asking again for what was not answered (docs: protocol.md, "Leader" rules 2 and 3).

use super::Node;
use super::proposer::Start;
use crate::message::{Message, ViewId};
use crate::row::Row;
use crate::storage::Gated;
use crate::types::{Ballot, Instant, MemberId, Slot};
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

/// One chunk of a promise, as it arrived.
#[derive(Debug)]
pub(super) struct PromisePart {
    pub(super) view: ViewId,
    /// The first slot that it reports on.
    pub(super) first: Slot,
    pub(super) chunk: u32,
    pub(super) last: bool,
    pub(super) trim_through: Slot,
    pub(super) chosen_through: Slot,
    pub(super) rows: Vec<Row>,
}

/// A promise that is still coming.
#[derive(Debug)]
pub(super) struct PartialPromise {
    view: ViewId,
    next_chunk: u32,
    rows: Vec<Row>,
    touched: Instant,
    /// Bytes of values that the next chunk is expected to have at most.
    expected: usize,
}

impl Node {
    /// The candidate's promise to itself is on disk.
    pub(super) fn handle_own_promise(&mut self, now: Instant, ballot: Ballot) {
        let rows: Vec<Row> = self.rows.values().cloned().collect();
        let (trim, chosen_through, me) = (self.trim_through, self.chosen_through, self.me);
        self.complete_promise(now, me, ballot, trim, chosen_through, rows);
    }

    pub(super) fn handle_promise(&mut self, now: Instant, from: MemberId, ballot: Ballot, part: PromisePart) {
        let Some(cluster) = self.cluster() else { return };
        let bounds = self.bounds;
        let Some(proposer) = self.proposer.as_mut().filter(|p| p.ballot == ballot) else { return };
        if proposer.promised.contains_key(&from) || part.rows.iter().any(|row| !row.is_intact(cluster)) {
            return;
        }
        let PromisePart { view, first, chunk, last, trim_through, chosen_through, rows } = part;
        if chunk == 0 && proposer.partial.get(&from).is_none_or(|partial| partial.view != view) {
            let partial = PartialPromise { view, next_chunk: 0, rows: Vec::new(), touched: now, expected: 0 };
            proposer.partial.insert(from, partial);
        }
        let Some(partial) = proposer.partial.get_mut(&from) else { return };
        // Only the first chunk of a promise is empty, or the last.
        let in_vain = rows.is_empty() && chunk > 0 && !last;
        if partial.view != view || partial.next_chunk != chunk || in_vain {
            return;
        }
        partial.next_chunk += 1;
        partial.touched = now;
        let bytes = rows.iter().map(|row| row.value.len()).sum::<usize>();
        // An empty chunk goes ahead of large ones.
        let expected = if rows.is_empty() || bytes > bounds.small_chunk { bounds.chunk } else { bytes };
        partial.expected = expected;
        partial.rows.extend(rows);
        if last || planted!(LastChunkOptional) {
            let rows = proposer.partial.remove(&from).map(|p| p.rows).unwrap_or_default();
            if lacks_chosen(&rows, first.max(trim_through.next()), chosen_through) {
                // It has lost a value that it knows to be chosen; of what others voted for there a quorum may not
                // hear. It is asked again, and what it says of the log's length holds.
                return self.note_chosen_elsewhere(from, chosen_through);
            }
            self.complete_promise(now, from, ballot, trim_through, chosen_through, rows);
        } else {
            self.send(from, Message::PromiseMore { ballot, view, chunk: chunk + 1 });
            // A long backlog comes in many chunks: as long as they come, this candidacy goes on.
            self.wait_for_promise(now, expected);
        }
    }

    /// Whether this member is a candidate to which a promise is coming in chunks.
    pub(super) fn takes_promises(&self, now: Instant) -> bool {
        let timeout = self.settings().timeout;
        let preparing = self.proposer.as_ref().filter(|p| !p.is_leading());
        preparing.is_some_and(|p| {
            p.partial
                .values()
                .any(|part| now.since(part.touched) < timeout + self.bounds.transit(part.expected))
        })
    }

    fn complete_promise(
        &mut self,
        now: Instant,
        from: MemberId,
        ballot: Ballot,
        trim_through: Slot,
        chosen_through: Slot,
        rows: Vec<Row>,
    ) {
        let unreadable = rows.iter().filter(|row| self.read_value(&row.value).is_err());
        let unreadable: Vec<Slot> = unreadable.map(|row| row.slot).collect();
        let Some(proposer) = self.proposer.as_mut().filter(|p| p.ballot == ballot) else { return };
        proposer.promised.insert(from, trim_through);
        proposer.reported_chosen = proposer.reported_chosen.max(chosen_through);
        // Once LeaderStart is proposed, every configuration that an earlier ballot could have proposed in has
        // promised: what a late promise reports was not chosen, and adopting it would overturn what LeaderStart
        // has told (docs: decisions/0002).
        let recovers = match proposer.start {
            Start::Preparing => true,
            Start::Recovering => !planted!(LaterReportsIgnored),
            Start::Proposed(_) | Start::Serving(_) => planted!(LateReport),
        };
        if recovers {
            for slot in unreadable {
                proposer.unreadable.entry(slot).or_default().insert(from);
            }
            proposer.report(rows);
        }
        proposer.progress.entry(from).or_default().answered(now);
        self.note_chosen_elsewhere(from, chosen_through);
    }

    /// A new connection to `member`: its promise is asked for again, and Accepts that it has not answered are sent again.
    pub(super) fn resend_to(&mut self, now: Instant, member: MemberId) {
        self.ask_promise(now, member);
        self.restart_pipeline(now, member);
    }

    /// Asks for a promise that is needed and has not begun to come. The acceptor knows what it has sent lately, and does
    /// not begin again for a repeat.
    fn ask_promise(&mut self, now: Instant, member: MemberId) {
        let from = self.chosen_through.next();
        let Some(proposer) = &self.proposer else { return };
        let ballot = proposer.ballot;
        let patience = self.settings().heartbeat * 2;
        // A promise that is still coming in chunks is not disturbed.
        let coming = proposer.partial.get(&member).is_some_and(|p| now.since(p.touched) < patience);
        let asks = !coming && !proposer.has_promise_of(member) && self.needs_promise_of(member);
        if asks && self.disk_has_own_promise() {
            let from = if proposer.is_leading() { from } else { proposer.from };
            // The promise to itself is on disk, so this Prepare waits for nothing more than the order of writes.
            let hand_over = self.proposer.as_ref().and_then(|p| p.hand_over);
            self.gate(Gated::Send(member, Message::Prepare { ballot, from, hand_over }));
        }
    }

    fn disk_has_own_promise(&self) -> bool {
        self.proposer.as_ref().is_some_and(|p| p.has_promise_of(self.me))
    }

    /// Voters of all configurations in force or pending, and learners that are about to vote.
    fn needs_promise_of(&self, member: MemberId) -> bool {
        let configurations = &self.state().configurations;
        let voter = configurations.from(self.chosen_through.next()).any(|c| c.is_voter(member));
        let caught_up =
            self.proposer.as_ref().and_then(|p| p.progress.get(&member)).is_some_and(|p| p.caught_up);
        voter || (caught_up && configurations.latest().members.contains_key(&member))
    }

    /// The timer's half of resending; the other half is the reconnect.
    pub(super) fn resend_unanswered(&mut self, now: Instant) {
        if self.proposer.is_none() {
            return;
        }
        let configurations = &self.state().configurations;
        let mut peers: BTreeSet<MemberId> = configurations.latest().members.keys().copied().collect();
        peers.extend(self.phase_one_voters());
        peers.remove(&self.me);
        for peer in peers {
            self.ask_promise(now, peer);
            self.resend_late(now, peer);
        }
    }
}

/// Whether a promise from `first` on shows no row in a slot that its sender knows to be chosen: what it has lost it
/// cannot report, so it is no whole promise (docs: decisions/0017).
fn lacks_chosen(rows: &[Row], first: Slot, chosen_through: Slot) -> bool {
    let mut next = first;
    for row in rows {
        if row.slot == next {
            next = next.next();
        }
    }
    next <= chosen_through && !planted!(MissingPromised)
}
