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
        let Some(proposer) = self.proposer.as_mut().filter(|p| p.ballot == ballot) else { return };
        if proposer.promised.contains_key(&from) || part.rows.iter().any(|row| !row.is_intact(cluster)) {
            return;
        }
        let PromisePart { view, chunk, last, trim_through, chosen_through, rows } = part;
        if chunk == 0 {
            let partial = PartialPromise { view, next_chunk: 0, rows: Vec::new(), touched: now };
            proposer.partial.insert(from, partial);
        }
        let Some(partial) = proposer.partial.get_mut(&from) else { return };
        if partial.view != view || partial.next_chunk != chunk {
            return;
        }
        partial.next_chunk += 1;
        partial.touched = now;
        partial.rows.extend(rows);
        if last || planted!(LastChunkOptional) {
            let rows = proposer.partial.remove(&from).map(|p| p.rows).unwrap_or_default();
            self.complete_promise(now, from, ballot, trim_through, chosen_through, rows);
        } else {
            self.send(from, Message::PromiseMore { ballot, view, chunk: chunk + 1 });
            // A long backlog comes in many chunks: as long as they come, this candidacy goes on.
            self.reset_election_timer(now);
        }
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
            proposer.report(rows);
        }
        proposer.progress.entry(from).or_default().answered(now);
        self.note_chosen_elsewhere(from, chosen_through);
    }

    /// Accepts that `member` has not answered are sent again, and its promise is asked for again.
    pub(super) fn resend_to(&mut self, now: Instant, member: MemberId) {
        let from = self.chosen_through.next();
        let Some(proposer) = &self.proposer else { return };
        let ballot = proposer.ballot;
        let slots: Vec<Slot> =
            proposer.in_flight.iter().filter(|(_, f)| !f.votes.contains(&member)).map(|(s, _)| *s).collect();
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
        for slot in slots {
            if let Some(row) = self.rows.get(&slot).cloned()
                && row.ballot == ballot
                && self.followers_of(slot).contains(&member)
            {
                self.send_accept(now, member, &row);
            }
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
        let patience = self.settings().heartbeat * 2;
        let Some(proposer) = self.proposer.as_mut() else { return };
        let mut stale = false;
        for flight in proposer.in_flight.values_mut() {
            if now.since(flight.sent) >= patience {
                flight.sent = now;
                stale = true;
            }
        }
        let configurations = &self.state().configurations;
        let mut peers: BTreeSet<MemberId> = configurations.latest().members.keys().copied().collect();
        peers.extend(self.phase_one_voters());
        peers.remove(&self.me);
        for peer in peers {
            let promised = self.proposer.as_ref().is_some_and(|p| p.has_promise_of(peer));
            if stale || !promised {
                self.resend_to(now, peer);
            }
        }
    }
}
