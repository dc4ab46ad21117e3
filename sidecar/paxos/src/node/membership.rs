//! Membership changes, retirement of removed members, and leadership hand-over (docs: protocol.md,
//! "Configurations", "Leases and reads", hand-over).

use super::Node;
use crate::configuration::{Change, ChangeRefused, Configuration, ConfigurationEntry, OperationId};
use crate::io::{AdminOutcome, Notice, Output, Refusal};
use crate::message::Message;
use crate::status::MemberState;
use crate::types::{Ballot, ClusterId, Instant, MemberId, RequestId, Slot};
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

/// A configuration entry on its way into the log.
#[derive(Debug)]
pub(super) struct PendingChange {
    pub(super) entry: ConfigurationEntry,
    /// Where it is proposed; none while it waits.
    pub(super) slot: Option<Slot>,
    request: RequestId,
}

/// A hand-over under way at the leader.
#[derive(Debug)]
struct HandOver {
    ballot: Ballot,
    to: MemberId,
    deadline: Instant,
    /// The target was told.
    told: bool,
    /// The heartbeat that tells the target what is chosen was sent.
    announced: bool,
}

/// Hand-over and the requests that wait for it.
#[derive(Debug, Default)]
pub(super) struct Membership {
    hand_over: Option<HandOver>,
    /// Who asked, and whether it was a stop.
    transfer: Vec<(RequestId, bool)>,
}

impl Node {
    pub(super) fn change(
        &mut self,
        now: Instant,
        request: RequestId,
        cluster: ClusterId,
        expected_version: u64,
        operation: OperationId,
        change: Change,
    ) {
        let entry = ConfigurationEntry { expected_version, operation, change };
        if let Err(Some(refusal)) = self.try_change(now, request, cluster, entry) {
            self.outputs.push_back(Output::AdminReply { request, outcome: Err(refusal) });
        }
    }

    /// `Err(None)`: answered already.
    fn try_change(
        &mut self,
        now: Instant,
        request: RequestId,
        cluster: ClusterId,
        entry: ConfigurationEntry,
    ) -> Result<(), Option<Refusal>> {
        let Some(system) = self.system.as_ref().filter(|_| self.life == MemberState::Active) else {
            return Err(Some(Refusal::NotActive("this member takes no part in a cluster now".into())));
        };
        if let Some(actual) = self.cluster().filter(|actual| *actual != cluster) {
            return Err(Some(Refusal::OtherCluster { actual }));
        }
        if let Some(made) = system.configurations.made_by(&entry.operation) {
            let outcome = Ok(self.changed(made.clone()));
            self.outputs.push_back(Output::AdminReply { request, outcome });
            return Err(None);
        }
        let next = self.chosen_through.next();
        let Some(proposer) = self.proposer.as_ref().filter(|p| p.is_serving()) else {
            let elsewhere = self.election.leader.map(|b| b.member).filter(|m| *m != self.me);
            return Err(Some(elsewhere.map_or(Refusal::NoLeader, |leader| Refusal::NotLeader { leader })));
        };
        if proposer.pending_change.is_some() {
            let version = system.configurations.latest().version + 1;
            return Err(Some(Refusal::Change(ChangeRefused::Pending { version })));
        }
        entry.validate().map_err(|why| Some(Refusal::Change(why)))?;
        let (needed, actual) = (entry.change.level(), system.settings.format_level);
        if needed > actual {
            return Err(Some(Refusal::FormatLevel { needed, actual }));
        }
        system
            .configurations
            .judge(next.max(proposer.next_slot), &entry)
            .map_err(|e| Some(Refusal::Change(e)))?;
        if let Change::Promote { member } = &entry.change {
            let progress = proposer.progress.get(member);
            let ready = progress.is_some_and(|p| p.caught_up) && proposer.has_promise_of(*member);
            if !ready {
                let durable = progress.map_or(0, |p| p.durable_through.0);
                let behind = self.chosen_through.0.saturating_sub(durable);
                return Err(Some(Refusal::NotCaughtUp { member: *member, behind }));
            }
            // A member that stops at an entry which it cannot read must not be needed for a quorum.
            let level = system.settings.format_level;
            if !self.reads_level(now, *member, level) && !planted!(LevelIgnored) {
                return Err(Some(Refusal::NotEveryMember { member: *member, level }));
            }
        }
        if let Some(proposer) = self.proposer.as_mut() {
            proposer.pending_change = Some(PendingChange { entry, slot: None, request });
        }
        Ok(())
    }

    /// The change that waits would not be read back as it is: it never reaches the log.
    pub(super) fn refuse_unreadable_change(&mut self, slot: Slot) {
        let pending = self.proposer.as_mut().and_then(|proposer| proposer.pending_change.take());
        let Some(PendingChange { request, .. }) = pending else { return };
        self.notice(Notice::NotProposed { slot });
        self.outputs.push_back(Output::AdminReply { request, outcome: Err(Refusal::Unreadable) });
    }

    fn changed(&self, configuration: Configuration) -> AdminOutcome {
        let in_force = self.chosen_through.next() >= configuration.effective_from;
        let retired = configuration.removed.is_some() && self.is_retired(&configuration);
        AdminOutcome::Changed { configuration, in_force, retired }
    }

    /// An applied configuration entry: judged the same on every member.
    pub(super) fn apply_configuration(
        &mut self,
        operation: OperationId,
        result: Result<Configuration, ChangeRefused>,
    ) {
        self.disk.note_system_changed();
        if let Ok(configuration) = &result {
            self.notice(Notice::Configured(configuration.clone()));
            if planted!(RemovedStopsEarly) && configuration.removed.as_ref().is_some_and(|r| r.0 == self.me) {
                self.life = MemberState::Removed;
            }
        }
        let Some(proposer) = self.proposer.as_mut() else { return };
        if proposer.pending_change.as_ref().is_none_or(|pending| pending.entry.operation != operation) {
            return;
        }
        let Some(pending) = proposer.pending_change.take() else { return };
        let outcome = match result {
            Ok(configuration) => Ok(self.changed(configuration)),
            Err(refused) => Err(Refusal::Change(refused)),
        };
        self.outputs.push_back(Output::AdminReply { request: pending.request, outcome });
    }

    /// A leadership ended with a change on its way: the log will tell, and a repeat asks it.
    pub(super) fn fail_pending_change(&mut self, pending: Option<PendingChange>) {
        let Some(pending) = pending else { return };
        let refusal = if pending.slot.is_some() { Refusal::OutcomeUnknown } else { Refusal::NoLeader };
        self.outputs.push_back(Output::AdminReply { request: pending.request, outcome: Err(refusal) });
    }

    /// A removed voter retires when every slot it voted in is chosen, and a quorum of a configuration in force
    /// without it has that prefix on disk and knows it there to be chosen. That may be a later configuration:
    /// the members of the first one without it may be gone themselves by then.
    pub(super) fn is_retired(&self, configuration: &Configuration) -> bool {
        let Some(proposer) = self.proposer.as_ref().filter(|p| p.is_serving()) else { return false };
        let needed = configuration.effective_from.previous();
        let next = self.chosen_through.next();
        let holding: BTreeSet<MemberId> =
            proposer.progress.iter().filter(|(_, p)| p.durable_through >= needed).map(|(m, _)| *m).collect();
        let since = |c: &&Configuration| c.version >= configuration.version && c.effective_from <= next;
        let held = self.state().configurations.all().iter().filter(since).any(|c| c.has_quorum(&holding));
        self.chosen_through >= needed && (held || planted!(RetiredEarly))
    }

    /// Tells removed members that are still connected that they may rest.
    pub(super) fn send_retirements(&mut self) {
        let configurations = self.state().configurations.all();
        let mut retired = Vec::new();
        for configuration in configurations {
            if let Some((member, _)) = &configuration.removed
                && *member != self.me
                && self.connected.contains(member)
                && self.is_retired(configuration)
            {
                retired.push((*member, configuration.version, configuration.slot));
            }
        }
        for (member, version, slot) in retired {
            self.send(member, Message::Retire { version, slot });
        }
    }

    pub(super) fn transfer_leader(
        &mut self,
        now: Instant,
        request: RequestId,
        cluster: ClusterId,
        to: Option<MemberId>,
    ) {
        let refusal = match self.cluster() {
            Some(actual) if actual != cluster => Some(Refusal::OtherCluster { actual }),
            _ if self.proposer.as_ref().is_some_and(|p| p.is_leading()) => None,
            _ => {
                let elsewhere = self.election.leader.map(|b| b.member).filter(|m| *m != self.me);
                Some(elsewhere.map_or(Refusal::NoLeader, |leader| Refusal::NotLeader { leader }))
            }
        };
        if let Some(refusal) = refusal {
            return self.outputs.push_back(Output::AdminReply { request, outcome: Err(refusal) });
        }
        if to == Some(self.me) {
            let outcome = Ok(AdminOutcome::Transferred(self.me));
            return self.outputs.push_back(Output::AdminReply { request, outcome });
        }
        self.begin_hand_over(now, to, Some((request, false)));
    }

    /// The pod is going: this member does not campaign for a while, and hands leadership over if it leads.
    pub(super) fn prepare_stop(&mut self, now: Instant, request: RequestId) {
        self.announce_stop(now);
        if self.proposer.as_ref().is_some_and(|p| p.is_leading()) {
            return self.begin_hand_over(now, None, Some((request, true)));
        }
        self.step_down("stopping");
        self.outputs.push_back(Output::AdminReply { request, outcome: Ok(AdminOutcome::StopPrepared) });
    }

    fn begin_hand_over(&mut self, now: Instant, to: Option<MemberId>, asker: Option<(RequestId, bool)>) {
        let target = to
            .filter(|m| self.can_take_over(*m))
            .or_else(|| if to.is_some() { None } else { self.best_successor() });
        let Some(to) = target else {
            if let Some((request, _)) = asker {
                self.outputs.push_back(Output::AdminReply { request, outcome: Err(Refusal::NotTransferred) });
            }
            return;
        };
        let Some(ballot) = self.proposer.as_ref().map(|p| p.ballot) else { return };
        self.membership.transfer.extend(asker);
        // For the rest of this ballot: what the successor may override must not be relied on.
        self.give_up_leases();
        if self.membership.hand_over.as_ref().is_none_or(|h| h.ballot != ballot || h.to != to) {
            let deadline = now.after(self.settings().timeout);
            self.membership.hand_over =
                Some(HandOver { ballot, to, deadline, told: false, announced: false });
        }
    }

    fn can_take_over(&self, member: MemberId) -> bool {
        let next = self.chosen_through.next();
        member != self.me && self.state().configurations.from(next).all(|c| c.is_voter(member))
    }

    /// The most caught-up voter that is connected.
    fn best_successor(&self) -> Option<MemberId> {
        let proposer = self.proposer.as_ref()?;
        let voters = self.state().configurations.latest().voters();
        let able = voters.filter(|m| self.can_take_over(*m) && self.connected.contains(m));
        able.max_by_key(|m| proposer.progress.get(m).map_or(Slot(0), |p| p.chosen_through))
    }

    /// While a hand-over is under way this member proposes nothing new.
    pub(super) fn is_handing_over(&self) -> bool {
        let ballot = self.proposer.as_ref().map(|p| p.ballot);
        self.membership.hand_over.as_ref().is_some_and(|h| Some(h.ballot) == ballot)
    }

    /// Once everything proposed is chosen and the target knows it, the target is asked to take over.
    pub(super) fn drive_hand_over(&mut self, now: Instant) {
        let chosen_through = self.chosen_through;
        let Some(proposer) = self.proposer.as_ref().filter(|p| p.is_leading()) else { return };
        let ballot = proposer.ballot;
        let Some(hand_over) = self.membership.hand_over.as_mut().filter(|h| h.ballot == ballot) else {
            return;
        };
        if proposer.next_slot != chosen_through.next() && !proposer.in_flight.is_empty() {
            return;
        }
        let knows = proposer.progress.get(&hand_over.to).is_some_and(|p| p.chosen_through >= chosen_through);
        if knows && !hand_over.told {
            hand_over.told = true;
            let to = hand_over.to;
            self.send(to, Message::HandOver { ballot });
        } else if !knows && !hand_over.announced {
            hand_over.announced = true;
            self.send_heartbeats(now);
        }
    }

    pub(super) fn beat_hand_over(&mut self, now: Instant) {
        let Some(hand_over) = self.membership.hand_over.as_mut() else { return };
        hand_over.told = false;
        hand_over.announced = false;
        if now >= hand_over.deadline {
            // Nobody took it: this member leads on.
            self.membership.hand_over = None;
            for (request, _) in core::mem::take(&mut self.membership.transfer) {
                self.outputs.push_back(Output::AdminReply { request, outcome: Err(Refusal::NotTransferred) });
            }
        }
    }

    /// Another member leads now: a hand-over that waited for it is done.
    pub(super) fn note_transfer_done(&mut self, leader: MemberId) {
        if leader == self.me {
            return;
        }
        self.membership.hand_over = None;
        for (request, stopping) in core::mem::take(&mut self.membership.transfer) {
            let outcome =
                if stopping { AdminOutcome::StopPrepared } else { AdminOutcome::Transferred(leader) };
            self.outputs.push_back(Output::AdminReply { request, outcome: Ok(outcome) });
        }
    }

    /// A leader that is no voter of the next slot's configuration has finished: it hands over.
    pub(super) fn hand_over_when_removed(&mut self, now: Instant) {
        if !self.is_handing_over() {
            self.begin_hand_over(now, None, None);
        }
    }

    /// The leader asks this member to take over: it campaigns at once, without a canvass.
    pub(super) fn handle_hand_over(&mut self, now: Instant, from: MemberId, ballot: Ballot) {
        let follows = self.election.leader == Some(ballot) && ballot.member == from;
        if follows && self.proposer.is_none() {
            self.campaign(now, Some(ballot));
        }
    }
}
