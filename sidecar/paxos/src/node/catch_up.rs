//! A lagging member fetches chosen values from another's log.

use super::Node;
use super::pace::Wish;
use crate::io::Notice;
use crate::message::Message;
use crate::row::Row;
use crate::storage::Write;
use crate::types::{Instant, MemberId, Slot};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// A leader that gives up for a row waits longer each time, twice as long for so many times.
const MOST_DOUBLINGS: u32 = 8;

/// What this member knows of the log beyond its own.
#[derive(Debug, Default)]
pub(super) struct CatchUp {
    /// The highest chosen prefix that anyone reported, and whoever reports one.
    known: Slot,
    holders: BTreeMap<MemberId, Slot>,
    asked: Option<(MemberId, Instant)>,
    /// Bytes of values in the last part that came: the next may take as long on a slow link.
    part: usize,
    /// Whom the leader names for it.
    source: Option<MemberId>,
    /// Whom to ask next: what came is more than this disk has taken in.
    next: Option<MemberId>,
    /// Snapshots that were installed without reaching what was known to be chosen.
    installs: u32,
    /// Beats without progress while something is missing.
    idle_beats: u32,
    attempts: u64,
    caught_up_once: bool,
}

/// Wanted rows are asked for together where no more than so many rows that are not wanted lie between them.
const WANTED_GAP: u64 = 8;

/// Rows at or below what is applied that this disk has lost.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) slots: BTreeSet<Slot>,
    /// Rows below were asked of everybody in vain: those behind have their turn.
    turn: Slot,
    /// Asked since rows last came.
    in_vain: usize,
    /// Whom to ask on: what came has not been taken in by this disk yet.
    next: Option<MemberId>,
    /// Since when some are wanted.
    since: Option<Instant>,
    /// How often leadership was given up for them.
    given_up: u32,
}

impl Wanted {
    /// First and last of the next rows that are asked for together. Some are wanted.
    fn run(&self) -> (Slot, Slot) {
        let first = self.slots.range(self.turn..).next().or(self.slots.first());
        let first = first.copied().unwrap_or_default();
        let mut last = first;
        for slot in self.slots.range(first..) {
            if slot.0 > last.0 + WANTED_GAP {
                break;
            }
            last = *slot;
        }
        (first, last)
    }
}

impl CatchUp {
    pub(super) fn reset(&mut self) {
        self.asked = None;
    }

    pub(super) fn note_progress(&mut self) {
        self.idle_beats = 0;
    }

    pub(super) fn note_installed(&mut self) {
        self.installs = self.installs.saturating_add(1);
    }

    pub(super) fn note_source(&mut self, source: Option<MemberId>) {
        self.source = source;
    }

    /// No answer comes from there any more: another is asked at the next beat.
    pub(super) fn note_disconnected(&mut self, member: MemberId) {
        self.asked = self.asked.filter(|(asked, _)| *asked != member);
        self.next = self.next.filter(|next| *next != member);
    }

    /// Has reached, since this start, what a leader or peer had reported chosen.
    pub(super) fn caught_up_once(&self) -> bool {
        self.caught_up_once
    }
}

impl Node {
    /// `member` says that every slot up to `through` is chosen and known there.
    pub(super) fn note_chosen_elsewhere(&mut self, member: MemberId, through: Slot) {
        let held = self.catch_up.holders.entry(member).or_default();
        *held = (*held).max(through);
        self.catch_up.known = self.catch_up.known.max(through);
    }

    /// Accepts may still be on their way, so a short gap is given a beat; a gap wider than the window is not
    /// waited for.
    pub(super) fn beat_catch_up(&mut self, now: Instant) {
        if self.system.is_none() {
            return;
        }
        if self.wanted.next.is_none() {
            self.fetch_wanted(now, None);
        }
        if self.catch_up.known <= self.chosen_through {
            let hears = self.election.leader.is_some() && self.is_active();
            self.catch_up.caught_up_once |= hears;
            (self.catch_up.asked, self.catch_up.next) = (None, None);
            self.catch_up.installs = 0;
            return;
        }
        if self.catch_up.next.is_some() {
            return self.learn_more(now);
        }
        self.catch_up.idle_beats += 1;
        let patience = self.settings().heartbeat * 3 + self.bounds.transit(self.catch_up.part);
        let waiting = self.catch_up.asked.is_some_and(|(_, at)| now.since(at) < patience);
        if !waiting && (self.is_far_behind() || self.catch_up.idle_beats >= 2) {
            self.request_missing(now, None);
        }
    }

    /// More is missing than what may still be on its way.
    fn is_far_behind(&self) -> bool {
        self.catch_up.known.0 > self.chosen_through.0 + self.state().configurations.alpha()
    }

    /// The disk has taken something in: asks for more of what is missing, unless too much waits for it still. So
    /// memory is bounded however fast others are.
    pub(super) fn learn_more(&mut self, now: Instant) {
        if self.disk.backlog() <= self.bounds.learn_backlog
            && let Some(from) = self.wanted.next.take()
        {
            self.fetch_wanted(now, Some(from));
        }
        if self.catch_up.next.is_none() || self.disk.backlog() > self.bounds.learn_backlog {
            return;
        }
        let next = self.catch_up.next.take();
        if self.catch_up.known > self.chosen_through {
            self.request_missing(now, next);
        }
    }

    /// Asks one holder, then each in turn. A little is asked of the leader first, who has it for certain; much of
    /// whom it names, or else of anybody before it: it has more to do than the others.
    pub(super) fn request_missing(&mut self, now: Instant, preferred: Option<MemberId>) {
        if self.disk.backlog() > self.bounds.learn_backlog {
            return;
        }
        let from = self.chosen_through.next();
        let mut holders: Vec<MemberId> = self
            .catch_up
            .holders
            .iter()
            .filter(|(member, through)| **through >= from && **member != self.me)
            .map(|(member, _)| *member)
            .collect();
        if holders.iter().any(|member| self.connected.contains(member)) {
            holders.retain(|member| self.connected.contains(member));
        }
        if self.catch_up.asked.is_some() {
            // Whoever was asked did not help, a damaged row of its own may be why: everyone else may hold more
            // than it was heard to say.
            let others = self.connected.iter().filter(|m| !holders.contains(m)).copied().collect::<Vec<_>>();
            holders.extend(others);
        }
        let leader = self.election.leader.map(|b| b.member);
        let far = self.is_far_behind();
        let (mut preferred, mut first) = (preferred, leader.filter(|leader| holders.contains(leader)));
        if far {
            // It answered a leader's heartbeat, so it is there, and the leader knows what it holds.
            first = self.catch_up.source.filter(|source| self.connected.contains(source));
            preferred = preferred.filter(|member| first.is_none() || Some(*member) != leader);
            if self.catch_up.asked.is_none() && holders.iter().any(|member| Some(*member) != leader) {
                holders.retain(|member| Some(*member) != leader);
            }
        }
        let first = first.filter(|_| self.catch_up.asked.is_none());
        let turn = self.catch_up.attempts.checked_rem(holders.len() as u64).unwrap_or(0);
        let turn = usize::try_from(turn).unwrap_or(0);
        let Some(to) = preferred.or(first).or(holders.get(turn).copied()) else { return };
        self.catch_up.attempts += 1;
        self.catch_up.asked = Some((to, now));
        let (through, retries) = (self.catch_up.known, self.catch_up.installs.saturating_sub(1));
        self.send(to, Message::LearnRequest { from, through, retries });
    }

    /// Rows that are damaged on this disk below what is applied are asked for, run by run: of each peer in turn, then
    /// of whoever gives some, as fast as this disk takes them in.
    fn fetch_wanted(&mut self, now: Instant, giver: Option<MemberId>) {
        self.wanted.slots = self.wanted.slots.split_off(&self.trim_through.next());
        if self.wanted.slots.is_empty() || self.connected.is_empty() {
            (self.wanted.since, self.wanted.given_up, self.wanted.in_vain) = (None, 0, 0);
            return;
        }
        self.wanted.since.get_or_insert(now);
        if self.wanted.in_vain >= self.connected.len() {
            let (_, through) = self.wanted.run();
            (self.wanted.turn, self.wanted.in_vain) = (through.next(), 0);
        }
        let (from, through) = self.wanted.run();
        self.catch_up.attempts += 1;
        let turn = usize::try_from(self.catch_up.attempts % self.connected.len() as u64).unwrap_or(0);
        let giver = giver.filter(|giver| self.connected.contains(giver));
        if let Some(to) = giver.or_else(|| self.connected.iter().nth(turn).copied()) {
            self.wanted.in_vain += 1;
            self.send(to, Message::LearnRequest { from, through, retries: 0 });
        }
    }

    /// The row that this leader has lost was given by nobody for two election timeouts: it may be the only one that
    /// knows the slot to be chosen, while others hold the value as accepted. A new leader's phase 1 brings it back.
    /// This member may well be elected again before the others were ready; so it gives up again, later each time: where
    /// nobody holds the value, another leader does not help.
    pub(super) fn wants_in_vain(&mut self, now: Instant) -> bool {
        let patience = self.settings().timeout * (2 << self.wanted.given_up.min(MOST_DOUBLINGS));
        let in_vain = self.wanted.since.is_some_and(|since| now.since(since) >= patience);
        if !in_vain || self.wanted.slots.is_empty() {
            return false;
        }
        self.wanted.given_up += 1;
        self.wanted.since = None;
        true
    }

    /// Anyone of this cluster may be told what is chosen; one answer at a time for each.
    pub(super) fn handle_learn_request(
        &mut self,
        now: Instant,
        from: MemberId,
        slot: Slot,
        through: Slot,
        retries: u32,
    ) {
        if self.views.learning(from) {
            return;
        }
        if slot <= self.trim_through || slot > self.chosen_through {
            return self.send_learned(now, from, slot, through, Vec::new());
        }
        self.serve_or_wait(now, from, Wish::Rows { from: slot, through, retries });
    }

    /// Sends the rows of a view that are known chosen, without a hole from `from` on.
    pub(super) fn send_learned(
        &mut self,
        now: Instant,
        to: MemberId,
        from: Slot,
        through: Slot,
        rows: Vec<Row>,
    ) {
        let Some(cluster) = self.cluster() else { return };
        let (trim_through, chosen_through) = (self.trim_through, self.chosen_through);
        let mut next = from;
        let mut chosen = Vec::new();
        for row in rows {
            if row.slot != next || !row.chosen || row.slot > through {
                break;
            }
            if !row.is_intact(cluster) {
                self.heal_or_mark(row.slot);
                break;
            }
            next = next.next();
            chosen.push(row);
        }
        self.note_served(
            now,
            to,
            Wish::Rows { from, through, retries: 0 },
            chosen.iter().map(|row| row.value.len()).sum(),
        );
        self.emit(to, Message::Learned { from, trim_through, chosen_through, rows: chosen });
    }

    pub(super) fn handle_learned(
        &mut self,
        now: Instant,
        from: MemberId,
        slot: Slot,
        trim_through: Slot,
        chosen_through: Slot,
        rows: Vec<Row>,
    ) {
        let Some(cluster) = self.cluster() else { return };
        self.note_chosen_elsewhere(from, chosen_through);
        let answers = self.catch_up.asked.is_some_and(|(asked, _)| asked == from);
        let mut gained = !rows.is_empty();
        self.catch_up.part = rows.iter().map(|row| row.value.len()).sum();
        let mut healed = false;
        for row in rows {
            if !row.chosen || !row.is_intact(cluster) {
                self.notice(Notice::Damaged { slot: row.slot, from: Some(from) });
                // The next one is asked for it.
                gained = false;
                break;
            }
            if self.wanted.slots.remove(&row.slot) {
                // Chosen here, and chosen there: the same value, so that only the disk has to have it again.
                let slot = row.slot;
                self.write(Write::Row(row));
                self.notice(Notice::Healed { slot });
                healed = true;
                continue;
            }
            self.learn(row);
        }
        if healed {
            (self.wanted.since, self.wanted.in_vain) = (None, 0);
            self.wanted.next = Some(from);
            self.learn_more(now);
        }
        if answers && trim_through > self.chosen_through {
            self.catch_up.asked = None;
            self.request_snapshot(now, from);
        } else if answers && slot > trim_through && gained {
            // Self-clocked: the next request goes out when this answer is in, as far as the disk keeps up.
            self.catch_up.asked = None;
            self.catch_up.next = Some(from);
            self.learn_more(now);
        }
    }
}
