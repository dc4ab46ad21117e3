//! Promises and votes (docs: protocol.md, "Acceptor").

use super::Node;
use crate::io::{Notice, Output};
use crate::message::{Message, ViewId};
use crate::row::Row;
use crate::storage::{Gated, Write};
use crate::types::{Ballot, Instant, MemberId, Slot};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use xxhash_rust::xxh3::xxh3_128;

/// What an open storage view is for.
#[derive(Debug)]
pub(super) enum ViewUse {
    /// The chunks of one promise.
    Promise {
        to: MemberId,
        ballot: Ballot,
        from: Slot,
        /// Every slot up to it that is not trimmed has its row in the view.
        chosen: Slot,
        /// The next chunk to send.
        chunk: u32,
        next: Slot,
        reading: bool,
    },
    /// One answer to a learn request.
    Learn { to: MemberId, from: Slot, through: Slot, retries: u32 },
}

/// A view of the disk.
#[derive(Debug)]
struct View {
    purpose: ViewUse,
    /// When it was opened, or something was last read in it.
    touched: Instant,
    /// Bytes of values that were last sent from it: they may still be on a slow link.
    sent: usize,
    /// The watermark that was durable when it was opened. A row at or below it is the chosen one; above it the
    /// disk may still hold what an earlier ballot had proposed there, even where this member knows better.
    chosen: Slot,
}

/// Views that are open.
#[derive(Debug, Default)]
pub(super) struct Views {
    last_id: u64,
    open: BTreeMap<ViewId, View>,
}

impl Views {
    pub(super) fn next_id(&mut self) -> ViewId {
        self.last_id += 1;
        ViewId(self.last_id)
    }

    pub(super) fn learning(&self, member: MemberId) -> bool {
        self.open.values().any(|view| matches!(view.purpose, ViewUse::Learn { to, .. } if to == member))
    }
}

impl Node {
    /// Phase 1a. A repeat of what was promised is answered again: the first answer may have been lost.
    pub(super) fn handle_prepare(
        &mut self,
        now: Instant,
        from: MemberId,
        ballot: Ballot,
        slot: Slot,
        hand_over: Option<Ballot>,
    ) {
        if !self.is_active() || ballot.member != from {
            return;
        }
        self.election.note_round(ballot.round);
        if ballot < self.promised {
            return self.send(from, Message::Nack { ballot, promised: self.promised });
        }
        if !self.damaged.is_empty() || self.has_lost(slot) {
            // A row that is damaged or missing must not be read as empty: no promise until it heals.
            return;
        }
        if let Some(wait) = self.lease_wait(now, from, hand_over) {
            return self.send(from, Message::Busy { ballot, wait });
        }
        if ballot > self.promised {
            self.promise(now, ballot);
        }
        let chosen = self.chosen_through;
        if planted!(StaleView) {
            return self.open_promise(now, from, ballot, slot, chosen);
        }
        self.gate(Gated::Promise { to: from, ballot, from: slot, chosen });
    }

    /// Whether a row that a promise from `from` on would have to show is known to be lost here. What is chosen below
    /// that the candidate has itself.
    pub(super) fn has_lost(&self, from: Slot) -> bool {
        self.wanted.slots.range(from..).next().is_some() && !planted!(MissingPromised)
    }

    /// Raises what is promised; one's own leadership ends in the same step.
    pub(super) fn promise(&mut self, now: Instant, ballot: Ballot) {
        if self.proposer.as_ref().is_some_and(|p| p.ballot < ballot) {
            self.step_down("promised a higher ballot");
        }
        self.promised = ballot;
        self.write(Write::Promised(ballot));
        if self.election.leader.is_some_and(|leader| leader < ballot) {
            self.forget_leader();
        }
        // A candidate that was promised gets its chance before this member campaigns itself.
        self.reset_election_timer(now);
    }

    /// The promise is on disk: its rows may be read now, and not before. A repeat does not begin again what is on its way.
    pub(super) fn open_promise(
        &mut self,
        now: Instant,
        to: MemberId,
        ballot: Ballot,
        from: Slot,
        chosen: Slot,
    ) {
        if self.promised != ballot || !self.is_active() || self.is_promise_coming(now, to, ballot, from) {
            return;
        }
        self.close_views(|view| matches!(view, ViewUse::Promise { to: other, .. } if *other == to));
        let purpose = ViewUse::Promise { to, ballot, from, chosen, chunk: 0, next: from, reading: true };
        self.open_view(now, from, self.bounds.chunk, purpose);
    }

    /// Whether chunks of this promise, or of one from an earlier slot on, may still be on the slowest link.
    fn is_promise_coming(&self, now: Instant, candidate: MemberId, under: Ballot, slot: Slot) -> bool {
        let patience = self.settings().heartbeat * 2;
        !planted!(PromiseStartedOver)
            && self.views.open.values().any(|view| {
                let fresh = now.since(view.touched) < patience + self.bounds.transit(view.sent);
                let (to, ballot, from) = match &view.purpose {
                    ViewUse::Promise { to, ballot, from, .. } => (*to, *ballot, *from),
                    ViewUse::Learn { .. } => return false,
                };
                fresh && (to, ballot) == (candidate, under) && from <= slot
            })
    }

    /// A connection to `member` is new or gone: what was under way to it is lost.
    pub(super) fn close_promises_to(&mut self, member: MemberId) {
        self.close_views(|view| matches!(view, ViewUse::Promise { to, .. } if *to == member));
    }

    fn open_view(&mut self, now: Instant, from: Slot, bytes: usize, purpose: ViewUse) {
        let view = self.new_view();
        self.outputs.push_back(Output::OpenView { view });
        self.outputs.push_back(Output::ReadView { view, from, bytes });
        let chosen = self.disk.chosen_durable();
        self.views.open.insert(view, View { purpose, touched: now, sent: 0, chosen });
    }

    /// The candidate takes the next chunk.
    pub(super) fn handle_promise_more(
        &mut self,
        now: Instant,
        from: MemberId,
        ballot: Ballot,
        view: ViewId,
        wanted: u32,
    ) {
        let Some(open) = self.views.open.get_mut(&view) else { return };
        let ViewUse::Promise { to, ballot: promised, chunk, next, reading, .. } = &mut open.purpose else {
            return;
        };
        if *to == from && *promised == ballot && *chunk == wanted && !*reading {
            *reading = true;
            (open.touched, open.sent) = (now, 0);
            let from = *next;
            self.outputs.push_back(Output::ReadView { view, from, bytes: self.bounds.chunk });
            self.note_taken(now, ballot, 0);
        }
    }

    pub(super) fn handle_view_rows(&mut self, now: Instant, view: ViewId, mut rows: Vec<Row>, end: bool) {
        let Some(open) = self.views.open.get(&view) else { return };
        for row in &mut rows {
            row.chosen |=
                row.slot <= if planted!(WatermarkNotDurable) { self.chosen_through } else { open.chosen };
            let applied = self.recent.get(&row.slot).filter(|_| row.chosen);
            if applied.is_some_and(|applied| *applied != xxh3_128(&row.value)) {
                // Another value was applied: the disk has lost the row that took this one's place.
                row.checksum = !row.checksum;
            }
        }
        let durable = open.chosen;
        match open.purpose {
            ViewUse::Promise { .. } => self.send_promise_chunk(now, view, rows, end),
            ViewUse::Learn { to, from, through, retries } => {
                self.close_view(view);
                self.pay(now, rows.iter().map(|row| row.value.len()).sum(), retries);
                self.note_missing(from, &rows, end, durable);
                self.send_learned(now, to, from, through, rows);
            }
        }
    }

    /// The first slot that must have a row from `from` on, up to `chosen`, and has none among `rows`, which are all of
    /// a view's or the next of them.
    fn first_missing(&self, from: Slot, rows: &[Row], end: bool, chosen: Slot) -> Option<Slot> {
        let first = from.max(self.trim_through.next());
        let mut next = first;
        for row in rows.iter().filter(|row| row.slot >= first) {
            if row.slot > next {
                break;
            }
            next = next.next();
        }
        let shown = if end { chosen } else { rows.last()?.slot.min(chosen) };
        (next <= shown && !planted!(MissingPromised)).then_some(next)
    }

    /// A vote that was on disk before `ballot` was promised, and that the same part of a view does not show.
    fn lost_vote(&self, from: Slot, rows: &[Row], end: bool, ballot: Ballot) -> Option<Slot> {
        let last = if end { Slot(u64::MAX) } else { rows.last()?.slot };
        let votes = self.rows.range(from..=last.max(from));
        let mut votes = votes.filter(|(slot, row)| **slot <= last && row.ballot < ballot && !row.chosen);
        // An older vote is shown where the disk has lost the one that took its place.
        let shown = |slot: &Slot, vote: &Row| {
            let row = rows.binary_search_by_key(slot, |row| row.slot).ok().and_then(|at| rows.get(at));
            row.is_some_and(|row| row.ballot == vote.ballot)
        };
        votes
            .find(|(slot, vote)| !shown(slot, vote))
            .map(|(slot, _)| *slot)
            .filter(|_| !planted!(MissingPromised))
    }

    /// A row that should be in a view is not there.
    fn note_missing(&mut self, from: Slot, rows: &[Row], end: bool, chosen: Slot) {
        if let Some(slot) = self.first_missing(from, rows, end, chosen) {
            self.handle_damaged(slot);
        }
    }

    /// Sends what was read, and waits until it is asked for more. Where that is much, an empty chunk goes first: the
    /// candidate waits for a promise that it knows to be coming.
    fn send_promise_chunk(&mut self, now: Instant, view: ViewId, mut rows: Vec<Row>, mut last: bool) {
        let Some(cluster) = self.cluster() else { return };
        if rows.is_empty() && !last {
            // The disk could not be read: a candidate that waited on would keep everyone else from leading.
            return self.close_view(view);
        }
        let trim_through = self.trim_through;
        let still_promised = self.promised;
        let open = self.views.open.get(&view).map(|view| &view.purpose);
        let Some(&ViewUse::Promise { next, chosen, ballot, .. }) = open else { return };
        let missing = self.first_missing(next, &rows, last, chosen);
        let missing = missing.or_else(|| self.lost_vote(next, &rows, last, ballot));
        let Some(open) = self.views.open.get_mut(&view) else { return };
        let ViewUse::Promise { to, ballot, from, chosen, chunk, next, reading } = &mut open.purpose else {
            return;
        };
        let (to, ballot, from, chosen_through, number) = (*to, *ballot, *from, *chosen, *chunk);
        let damaged = rows.iter().find(|row| !row.is_intact(cluster)).map(|row| row.slot).or(missing);
        let bytes = |rows: &[Row]| rows.iter().map(|row| row.value.len()).sum::<usize>();
        if number == 0 && bytes(&rows) > self.bounds.small_chunk {
            (rows, last) = (Vec::new(), false);
        }
        let sent = bytes(&rows);
        (open.touched, open.sent) = (now, sent);
        *chunk += 1;
        *reading = false;
        *next = rows.last().map_or(*next, |row| row.slot.next());
        if last || damaged.is_some() || ballot != still_promised {
            self.close_view(view);
        }
        if let Some(slot) = damaged {
            return self.heal_or_mark(slot);
        }
        if ballot != still_promised {
            return;
        }
        if !last && number > 0 {
            // It has asked for this chunk, and cannot ask for the next before this one is there.
            self.note_taken(now, ballot, sent);
        }
        let message =
            Message::Promise { ballot, from, view, chunk: number, last, trim_through, chosen_through, rows };
        self.emit(to, message);
    }

    /// Its driver has found the row of a slot damaged on the disk, or missing below what is known there to be chosen.
    pub(super) fn handle_damaged(&mut self, slot: Slot) {
        let known = self.wanted.slots.contains(&slot) || self.damaged.contains(&slot);
        if self.system.is_some() && slot > self.trim_through && !known {
            self.heal_or_mark(slot);
        }
    }

    /// A damaged row is never read as empty: it is written again from memory, or bars promises until it heals.
    pub(super) fn heal_or_mark(&mut self, slot: Slot) {
        self.notice(Notice::Damaged { slot, from: None });
        match self.rows.get(&slot).cloned() {
            Some(row) => {
                self.write(Write::Row(row));
                self.notice(Notice::Healed { slot });
            }
            None if slot > self.chosen_through => {
                self.damaged.insert(slot);
            }
            // Applied long ago, and chosen: any other member's row is as good.
            None => {
                self.wanted.slots.insert(slot);
            }
        }
    }

    pub(super) fn open_learn_view(
        &mut self,
        now: Instant,
        to: MemberId,
        from: Slot,
        through: Slot,
        retries: u32,
    ) {
        let bytes = self.part_bytes();
        self.open_view(now, from, bytes, ViewUse::Learn { to, from, through, retries });
    }

    fn close_view(&mut self, view: ViewId) {
        self.views.open.remove(&view);
        self.outputs.push_back(Output::CloseView(view));
    }

    fn close_views(&mut self, which: impl Fn(&ViewUse) -> bool) {
        let open = self.views.open.iter().filter(|(_, view)| which(&view.purpose));
        let closing: Vec<ViewId> = open.map(|(id, _)| *id).collect();
        closing.into_iter().for_each(|view| self.close_view(view));
    }

    /// A candidate that went away must not hold a storage view for ever.
    pub(super) fn expire_views(&mut self, now: Instant) {
        let patience = self.settings().timeout * 8;
        let old = self
            .views
            .open
            .iter()
            .filter(|(_, view)| now.since(view.touched) > patience + self.bounds.transit(view.sent));
        let closing: Vec<ViewId> = old.map(|(id, _)| *id).collect();
        closing.into_iter().for_each(|view| self.close_view(view));
    }

    /// The member has trimmed the slot: it is chosen there, and this is no vote.
    pub(super) fn handle_already_chosen(
        &mut self,
        now: Instant,
        from: MemberId,
        ballot: Ballot,
        trim_through: Slot,
    ) {
        if planted!(AlreadyChosenVotes)
            && let Some(proposer) = &self.proposer
        {
            let slots: Vec<Slot> = proposer.in_flight.range(..=trim_through).map(|(s, _)| *s).collect();
            self.handle_accepted(now, from, ballot, &slots);
        }
        self.note_chosen_elsewhere(from, trim_through);
    }

    /// Phase 2a. Accepts may come in any order and more than once.
    pub(super) fn handle_accept(
        &mut self,
        now: Instant,
        from: MemberId,
        row: Row,
        chosen_through: Slot,
        has_quorum: bool,
    ) {
        let Some(cluster) = self.cluster() else { return };
        let (ballot, slot) = (row.ballot, row.slot);
        if ballot.member != from {
            return;
        }
        if !row.is_intact(cluster) {
            return self.notice(Notice::Damaged { slot, from: Some(from) });
        }
        if !self.is_active() {
            return self.note_chosen_elsewhere(from, chosen_through);
        }
        if ballot < self.promised {
            return self.send(from, Message::Nack { ballot, promised: self.promised });
        }
        self.hear(now, ballot, has_quorum);
        if slot <= self.chosen_through {
            return self.accept_again(now, from, &row);
        }
        if self.rows.get(&slot).is_some_and(|held| held.chosen && held.value != row.value) {
            return self.send_chosen_position(from);
        }
        if self.is_swamped(&row) {
            return self.note_chosen_by_leader(ballot, chosen_through);
        }
        if slot <= self.chosen_through.plus(self.window()) && self.can_read(from, &row) {
            if ballot > self.promised {
                self.promise(now, ballot);
            }
            self.accept(row);
            self.gate_accepted(from, ballot, slot);
        }
        self.note_chosen_by_leader(ballot, chosen_through);
    }

    /// Whether so much waits for the disk that another vote is not taken: it is dropped as if it had been lost. The leader
    /// chooses without this member, or sends it again; so memory is bounded however slow the disk is.
    fn is_swamped(&self, row: &Row) -> bool {
        let held = self.rows.get(&row.slot).is_some_and(|held| held.ballot == row.ballot);
        let backlog = self.disk.backlog();
        !held
            && backlog > 0
            && backlog + row.value.len() > self.bounds.accept_backlog
            && !planted!(BacklogUnbounded)
    }

    /// A value that this member could not apply gets no vote: were it chosen, every member would halt at it.
    fn can_read(&mut self, from: MemberId, row: &Row) -> bool {
        if self.read_value(&row.value).is_ok() || planted!(UndecodableProposed) {
            return true;
        }
        let (slot, place) = (row.slot, Some((row.ballot, row.slot)));
        let again = self.unreadable == place;
        self.unreadable = place;
        self.notice(Notice::Unreadable { slot, from, again });
        false
    }

    /// An Accept in a slot that is applied here. A new leader that proposes the chosen value again gets its vote:
    /// the value stands on the disk, and no ballot changes that it is chosen. What is chosen here may also have
    /// been learnt under a ballot that this member never promised; an older leader that does not know it yet may
    /// then propose something else, and there is nothing to vote on.
    fn accept_again(&mut self, now: Instant, from: MemberId, row: &Row) {
        let ballot = row.ballot;
        if planted!(ChosenOverwritten) {
            self.write(Write::Row(Row { chosen: true, ..row.clone() }));
            return self.gate_accepted(from, ballot, row.slot);
        }
        if self.recent.get(&row.slot) != Some(&xxh3_128(&row.value)) {
            let trim_through = self.chosen_through;
            return self.send(from, Message::AlreadyChosen { ballot, trim_through });
        }
        if ballot > self.promised {
            self.promise(now, ballot);
        }
        if self.wanted.slots.remove(&row.slot) {
            // The value it had lost.
            self.write(Write::Row(Row { chosen: true, ..row.clone() }));
            self.notice(Notice::Healed { slot: row.slot });
        }
        self.gate_accepted(from, ballot, row.slot);
    }

    /// Takes a vote in; what stood in the slot under a lower ballot is replaced. A repeat needs no write:
    /// its answer waits for the first one's.
    pub(super) fn accept(&mut self, mut row: Row) {
        let slot = row.slot;
        assert!(slot > self.chosen_through, "a vote in {slot:?}, chosen through {:?}", self.chosen_through);
        if let Some(held) = self.rows.get(&slot) {
            if held.ballot == row.ballot && !self.damaged.contains(&slot) {
                assert!(held.value == row.value, "two values under {:?} in {slot:?}", row.ballot);
                return;
            }
            if held.chosen {
                assert!(
                    held.value == row.value,
                    "{slot:?} is chosen with another value than {:?} has",
                    row.ballot
                );
                row.chosen = true;
            }
        }
        self.note_healed(slot);
        self.write(Write::Row(row.clone()));
        self.rows.insert(slot, row);
    }

    /// Another value stands where a row was damaged.
    pub(super) fn note_healed(&mut self, slot: Slot) {
        if self.damaged.remove(&slot) {
            self.notice(Notice::Healed { slot });
        }
    }

    /// How far above its chosen prefix a member takes Accepts: bounds memory. What lies beyond is learnt later.
    pub(super) fn window(&self) -> u64 {
        2 * self.state().configurations.alpha() + 64
    }
}
