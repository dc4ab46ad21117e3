//! Leases: for a while nobody else gets a promise from those who granted one, so that the leader may answer
//! reads by itself (docs: protocol.md, "Leases and reads"; Chandra, Griesemer, Redstone: *Paxos Made Live*,
//! section 5.2).

use super::Node;
use crate::storage::{Gated, Write};
use crate::types::{Ballot, Instant, MemberId};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

/// What this member has granted, and what it gave up as a leader.
#[derive(Debug, Clone)]
pub(super) struct Leases {
    /// Grants that may be alive: under which ballot, and until when by this member's clock.
    grants: BTreeMap<Ballot, Instant>,
    /// Until then a grant of an earlier life of this member may be alive, to whomever it was.
    restart: Instant,
    /// The longest lease that may be granted: it is on disk, and is the wait after a start.
    durable: Duration,
    issued: Duration,
    /// The ballot under which this leader gave up its leases, for good.
    given_up: Option<Ballot>,
}

impl Leases {
    pub(super) fn new(now: Instant, longest: Duration) -> Leases {
        let restart = if planted!(RestartWaitSkipped) { now } else { now.after(longest) };
        Leases { grants: BTreeMap::new(), restart, durable: longest, issued: longest, given_up: None }
    }
}

/// How long a lease of `span` lasts for its holder, where clocks' rates differ by at most `drift` hundredths.
pub(super) fn counted(span: Duration, drift: u32) -> Duration {
    span.saturating_sub(span * drift / 100)
}

impl Node {
    /// Grants the leader of `ballot` a lease from now on, if it asks for one; false: not now. No grant without
    /// durable progress, and none longer than what a restart of this member would wait for.
    pub(super) fn grant_lease(&mut self, now: Instant, ballot: Ballot, span: Duration) -> bool {
        if span.is_zero() || self.disk.is_stalled(now, self.settings().timeout / 2) {
            return false;
        }
        if span > self.leases.durable {
            if span > self.leases.issued {
                self.leases.issued = span;
                self.write(Write::Lease(span));
                self.gate(Gated::Lease(span));
            }
            return false;
        }
        self.leases.grants.retain(|_, until| *until > now);
        let until = self.leases.grants.entry(ballot).or_insert(now);
        *until = now.after(span).max(*until);
        true
    }

    pub(super) fn note_lease_durable(&mut self, span: Duration) {
        self.leases.durable = self.leases.durable.max(span);
    }

    /// How long `candidate` must wait before it may be promised anything. A hand-over lifts the grants of the
    /// ballot whose leader asked for it, and no others.
    pub(super) fn lease_wait(
        &self,
        now: Instant,
        candidate: MemberId,
        hand_over: Option<Ballot>,
    ) -> Option<Duration> {
        if planted!(LeaseForgotten) {
            return None;
        }
        let grants = self.leases.grants.iter();
        let others = grants.filter(|(b, _)| b.member != candidate && Some(**b) != hand_over);
        let until = others.map(|(_, until)| *until).max().unwrap_or_default().max(self.leases.restart);
        (until > now).then(|| until.since(now))
    }

    /// The lease that this leader asks for with a heartbeat; zero: none.
    pub(super) fn lease_wanted(&self) -> Duration {
        let ballot = self.proposer.as_ref().map(|p| p.ballot);
        let given_up = self.leases.given_up.is_some() && self.leases.given_up == ballot;
        let wanted = self.state().settings.leases && (!given_up || planted!(LeaseAfterHandOver));
        if wanted { self.settings().timeout } else { Duration::ZERO }
    }

    /// Gives up leases for the rest of this leader's ballot.
    pub(super) fn give_up_leases(&mut self) {
        self.leases.given_up = self.proposer.as_ref().map(|p| p.ballot);
    }

    /// Whether a quorum of conf(chosen_through + 1) promises nobody else anything now: each grant is counted
    /// from when the heartbeat that it answers was *sent*, shortened by the drift of two clocks.
    pub(super) fn has_lease(&self, now: Instant) -> bool {
        let Some(proposer) = self.proposer.as_ref().filter(|p| p.is_serving()) else { return false };
        if self.lease_wanted().is_zero() {
            return false;
        }
        let configuration = self.state().configurations.at(self.chosen_through.next());
        let granted = |member: &MemberId| match proposer.progress.get(member) {
            _ if *member == self.me => true,
            progress => progress.is_some_and(|p| p.lease_until > now),
        };
        configuration.is_voter(self.me)
            && configuration.voters().filter(granted).collect::<Vec<_>>().len() >= configuration.quorum()
    }
}
