//! What a member does for others that catch up, beside its appends: at a rate while appends go on, as fast as it can
//! else (docs: protocol.md, "Snapshots, checkpoints, trim": rate-limited, off the leader where possible, each retry is
//! faster).

use super::Node;
use crate::message::Message;
use crate::types::{Instant, MemberId, Slot};
use alloc::collections::{BTreeMap, VecDeque};
use core::time::Duration;

/// Appends go on until so many beats have passed without one.
const QUIET_BEATS: u32 = 2;
/// How far what is served may run ahead of the clock, so that a late timer costs nothing.
const BURST: Duration = Duration::from_millis(20);
/// After so many retries the rate is not doubled again.
const MOST_DOUBLINGS: u32 = 8;

/// What somebody who catches up asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Chosen values, and how often the asker has fallen behind the trim again.
    Rows { from: Slot, through: Slot, retries: u32 },
    /// A part of a snapshot.
    Snapshot { slot: Slot, offset: u64 },
}

impl Wish {
    /// Both ask for what begins at one place.
    fn begins_as(self, other: Wish) -> bool {
        match (self, other) {
            (Wish::Rows { from, .. }, Wish::Rows { from: other, .. }) => from == other,
            (Wish::Snapshot { .. }, Wish::Snapshot { .. }) => self == other,
            (Wish::Rows { .. } | Wish::Snapshot { .. }, _) => false,
        }
    }
}

/// How busy this member is, and whom it lets wait.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When what was served is paid for.
    paid: Instant,
    /// In the order in which they came, each member at most once.
    waiting: VecDeque<(MemberId, Wish)>,
    /// Bytes of appends: applied since the last beat, and in a beat of late.
    appended: u64,
    appends: u64,
    /// Bytes of values applied and sent: since the last beat, and in a beat of late.
    moved: u64,
    load: u64,
    /// Beats since an append was applied.
    quiet_beats: u32,
    /// What was last sent to each, and until when it may be on a slow link: asked for again, it is not sent twice.
    served: BTreeMap<MemberId, (Wish, Instant)>,
    /// No part is larger, where that was asked for.
    most: Option<usize>,
}

impl Pace {
    /// Bytes of values that were applied and sent in a beat, of late.
    pub(super) fn load(&self) -> u64 {
        self.load
    }

    /// Appends go on at this member.
    fn is_busy(&self) -> bool {
        self.quiet_beats < QUIET_BEATS
    }

    pub(super) fn note_applied(&mut self, bytes: usize, appends: bool) {
        self.moved += bytes as u64;
        if appends {
            self.appended += bytes as u64;
            self.quiet_beats = 0;
        }
    }

    pub(super) fn note_sent(&mut self, message: &Message) {
        if !matches!(message, Message::Forward { .. }) {
            self.moved += message.value_bytes() as u64;
        }
    }

    pub(super) fn note_beat(&mut self) {
        self.appends = self.appends.midpoint(core::mem::take(&mut self.appended));
        self.load = self.load.midpoint(core::mem::take(&mut self.moved));
        self.quiet_beats = self.quiet_beats.saturating_add(1);
    }

    /// When somebody who waits is to be served.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then_some(self.paid)
    }

    /// `bytes` were served; `beat` is the time between two beats.
    fn pay(&mut self, now: Instant, bytes: usize, retries: u32, beat: Duration, rate: u64) {
        if !self.is_busy() {
            return;
        }
        let beats = 1_000_000_000 / u64::try_from(beat.as_nanos()).unwrap_or(u64::MAX).max(1);
        let appends = self.appends.saturating_mul(beats.max(1));
        let rate = rate.saturating_add(appends.saturating_mul(2));
        let rate = rate.saturating_mul(1 << retries.min(MOST_DOUBLINGS));
        let cost = (bytes as u64).saturating_mul(1_000_000_000) / rate;
        let from = self.paid.max(Instant(now.0.saturating_sub(BURST.as_nanos() as u64)));
        self.paid = from.after(Duration::from_nanos(cost));
    }
}

impl Node {
    /// Serves it now, or lets it wait for its turn.
    pub(super) fn serve_or_wait(&mut self, now: Instant, to: MemberId, wish: Wish) {
        if self.pace.served.get(&to).is_some_and(|(last, until)| last.begins_as(wish) && now < *until) {
            return;
        }
        if !self.pace.is_busy() && self.pace.waiting.is_empty() {
            return self.serve(now, to, wish);
        }
        // A repeat takes the place of the first.
        match self.pace.waiting.iter_mut().find(|(member, _)| *member == to) {
            Some((_, waiting)) => *waiting = wish,
            None => self.pace.waiting.push_back((to, wish)),
        }
        self.serve_waiting(now);
    }

    /// `bytes` of what was wished for are on their way.
    pub(super) fn note_served(&mut self, now: Instant, to: MemberId, wish: Wish, bytes: usize) {
        if bytes > 0 {
            self.pace.served.insert(to, (wish, now.after(self.bounds.transit(bytes))));
        }
    }

    /// A connection to `member` is new or gone: what was under way to it is lost.
    pub(super) fn forget_served(&mut self, member: MemberId) {
        self.pace.served.remove(&member);
    }

    /// Serves those whose turn it is.
    pub(super) fn serve_waiting(&mut self, now: Instant) {
        while !self.pace.is_busy() || self.pace.paid <= now {
            let Some((to, wish)) = self.pace.waiting.pop_front() else { break };
            self.serve(now, to, wish);
            if self.pace.is_busy() && matches!(wish, Wish::Rows { .. }) {
                // What it costs is known when its rows are read.
                break;
            }
        }
    }

    /// How large a part may be.
    pub(super) fn part_bytes(&self) -> usize {
        let bytes = if self.pace.is_busy() { self.bounds.small_chunk } else { self.bounds.chunk };
        self.pace.most.map_or(bytes, |most| bytes.min(most))
    }

    /// Serves those who catch up in parts of at most `bytes`, 1 at least: for simulations, whose snapshots are small and
    /// would never need two.
    pub fn limit_parts(&mut self, bytes: usize) {
        self.pace.most = Some(bytes.max(1));
    }

    /// What was served is paid for; then it is the next one's turn.
    pub(super) fn pay(&mut self, now: Instant, bytes: usize, retries: u32) {
        let beat = self.settings().heartbeat;
        self.pace.pay(now, bytes, retries, beat, self.bounds.learn_rate);
    }

    /// Whom a follower that is far behind should ask: of those with nearly all of the log the one that is nearest to
    /// idle, and not this leader, who has more to do than any of them.
    pub(super) fn source_for(&self, now: Instant, member: MemberId) -> Option<MemberId> {
        let proposer = self.proposer.as_ref()?;
        let alpha = self.state().configurations.alpha();
        let behind = proposer.progress.get(&member).map_or(Slot(0), |progress| progress.chosen_through);
        if behind.0 + alpha >= self.chosen_through.0 {
            return None;
        }
        let patience = self.settings().timeout / 2;
        let others = proposer.progress.iter().filter(|(other, progress)| {
            **other != member
                && self.connected.contains(other)
                && progress.durable_through.0 + alpha >= self.chosen_through.0
                && progress.silent_for(now).is_some_and(|silent| silent < patience)
        });
        others.min_by_key(|(other, progress)| (progress.load, **other)).map(|(other, _)| *other)
    }

    fn serve(&mut self, now: Instant, to: MemberId, wish: Wish) {
        match wish {
            Wish::Rows { from, through, retries } => self.open_learn_view(now, to, from, through, retries),
            Wish::Snapshot { slot, offset } => self.send_snapshot_part(now, to, slot, offset),
        }
    }
}
