//! The simulated members, their disks and clients, and everything that can happen to them.
//!
//! The world has no chance in it and schedules nothing: whoever drives it ([`crate::director`] by chance,
//! [`crate::replay`] from a file) tells it what happens next, and it says what may happen then as [`Effect`]s.

use crate::action::{self, Command};
use crate::client::Client;
use crate::coverage::{Coverage, MessageKind, Rule};
use crate::disk::SimDisk;
use crate::disk_faults::DiskFault;
use crate::faults::Fault;
use crate::history;
use crate::invariants::agreement::Agreement;
use crate::invariants::chosen::Chosen;
use crate::invariants::names::Names;
use crate::invariants::promises::Promises;
use crate::invariants::proposals::Proposals;
use crate::invariants::recovery::Recovery;
use crate::invariants::retirement::Retirement;
use crate::invariants::snapshots::Snapshots;
use crate::invariants::trims::Trims;
use crate::invariants::whole_promises::WholePromises;
use crate::member::{Clock, Member};
use crate::oracle::{Oracle, Outcome, Violation, violation};
use crate::real::{Scrubbed, Unusable};
use crate::setup::Setup;
use crate::trace::Trace;
use std::collections::{BTreeMap, BTreeSet};
use synod_paxos::configuration::Change;
use synod_paxos::limits::Bounds;
use synod_paxos::{
    AdminCommand, AdminOutcome, Genesis, Incoming, Input, MemberId, Node, Refusal, RequestId, Slot,
    SnapshotPart,
};

/// What a step made possible.
#[derive(Debug)]
pub enum Effect {
    /// A message is on its way.
    Sent(Box<Incoming>),
    /// A member's transaction is on its way to the disk.
    Syncing(MemberId),
    /// A member waits for rows of a view.
    Reading(MemberId),
    /// A member wants a tick at that simulated time.
    Tick(MemberId, u64),
    /// A member's process died.
    Died(MemberId),
    /// A member comes to a turning point.
    Moment(MemberId),
    /// A member stopped by itself, for a person to look.
    Halted(MemberId),
    /// A client's operation is over.
    Answered(usize),
}

/// All of one run's state.
#[derive(Debug)]
pub struct World {
    /// Simulated nanoseconds.
    pub now: u64,
    /// The first configuration.
    pub genesis: Genesis,
    /// All that ever were.
    pub members: BTreeMap<MemberId, Member>,
    /// The applications.
    pub clients: Vec<Client>,
    /// Judges their answers.
    pub oracle: Oracle,
    /// What was met.
    pub coverage: Coverage,
    /// What happened.
    pub trace: Trace,
    /// Operations from call to return, if somebody wants them.
    pub history: Option<Vec<history::Event>>,
    /// What the steps since the last look made possible.
    pub effects: Vec<Effect>,
    /// When the newest append that is acknowledged had begun.
    pub last_append_served: Option<u64>,
    /// Members whose disk shows less than it had acknowledged: none of them may ever vote again.
    pub rolled_back: BTreeSet<MemberId>,
    /// Members whose state was made another: they are to be found out.
    pub diverged: BTreeSet<MemberId>,
    /// Bytes that fill every entry up.
    pub(crate) padding: usize,
    /// The bounds that the members go by.
    pub(crate) bounds: Bounds,
    /// Disks hold the real storage engine.
    files: bool,
    pub(crate) agreement: Agreement,
    pub(crate) chosen: Chosen,
    pub(crate) promises: Promises,
    pub(crate) proposals: Proposals,
    pub(crate) whole_promises: WholePromises,
    pub(crate) recovery: Recovery,
    pub(crate) retirement: Retirement,
    pub(crate) names: Names,
    pub(crate) trims: Trims,
    pub(crate) snapshots: Snapshots,
    /// The version that each membership change was planned from, by the request that asked for it.
    pub(crate) planned: BTreeMap<RequestId, u64>,
}

impl World {
    /// A world without members.
    pub fn new(setup: &Setup, keep_trace: bool) -> World {
        World {
            now: 0,
            genesis: setup.genesis(),
            members: BTreeMap::new(),
            clients: (0..setup.clients).map(|_| Client::default()).collect(),
            oracle: Oracle::default(),
            coverage: Coverage::default(),
            trace: Trace::new(keep_trace),
            history: None,
            effects: Vec::new(),
            last_append_served: None,
            rolled_back: BTreeSet::new(),
            diverged: BTreeSet::new(),
            padding: setup.padding,
            bounds: Bounds::divided(setup.divisor),
            files: setup.files,
            agreement: Agreement::default(),
            chosen: Chosen::default(),
            promises: Promises::default(),
            proposals: Proposals::default(),
            whole_promises: WholePromises::default(),
            recovery: Recovery::default(),
            retirement: Retirement::default(),
            names: Names::default(),
            trims: Trims::default(),
            snapshots: Snapshots::default(),
            planned: BTreeMap::new(),
        }
    }

    /// A member's core, if its process runs.
    pub fn node(&self, id: MemberId) -> Option<&Node> {
        self.members.get(&id).and_then(|m| m.node.as_ref())
    }

    /// Whether a member's process runs.
    pub fn is_running(&self, id: MemberId) -> bool {
        self.node(id).is_some()
    }

    /// All whose process runs.
    pub fn running(&self) -> Vec<MemberId> {
        self.members.values().filter(|m| m.node.is_some()).map(|m| m.id).collect()
    }

    /// An empty volume appears.
    ///
    /// # Errors
    /// If the storage engine cannot take it.
    pub fn add(&mut self, id: MemberId) -> Result<bool, Violation> {
        let disk = if self.files { SimDisk::with_files(id)? } else { SimDisk::empty(id) };
        Ok(self.members.insert(id, Member::new(id, disk)).is_none())
    }

    /// Starts the process on a member's volume. Returns whether it did.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn start(&mut self, id: MemberId, seed: u64, clock: Clock) -> Result<bool, Violation> {
        let now = self.now;
        let Some(member) = self.members.get_mut(&id).filter(|m| m.node.is_none() && !m.destroyed) else {
            return Ok(false);
        };
        if member.boot > 0 {
            self.coverage.fault(Fault::Restart);
        }
        if clock.drift != 0 {
            self.coverage.fault(Fault::ClockRate);
        }
        self.coverage.fault(Fault::ClockOffset);
        member.boot += 1;
        member.clock = clock;
        member.tick_at = None;
        member.was_active = false;
        let state = match member.disk.boot(self.genesis.cluster) {
            Ok(state) => state,
            Err(why) => return self.unusable(id, why).map(|()| false),
        };
        member.began_removed = state.tombstone.is_some();
        if member.began_removed {
            self.coverage.fault(Fault::RemovedReturns);
        }
        // What rotted twice may be whole again.
        let lost = |slot: &&Slot| {
            member.disk.rows().get(slot).is_none_or(|row| !row.is_intact(self.genesis.cluster))
        };
        let damaged = member.disk.damaged().range(state.applied.next()..);
        member.began_damaged = damaged.filter(lost).copied().collect();
        // Its last life may have ended before it was told of its last write.
        self.retirement.holds(id, state.chosen_through);
        self.trims.started(id);
        member.began_fetched = state.fetched.last().map(SnapshotPart::end);
        let node = Node::new(state, clock.local(now), seed);
        let mut node = node.expect("a simulated disk holds what the core wrote");
        node.set_bounds(self.bounds);
        if !seed.is_multiple_of(4) {
            // Snapshots here are of a few hundred bytes.
            node.limit_parts(32 + usize::try_from(seed % 509).unwrap_or(0));
        }
        if member.boot == 1 && self.genesis.members.contains_key(&id) {
            // Of the version that the cluster was formed by; the next start is of a newer one.
            node.read_up_to(self.genesis.settings.format_level);
        }
        member.node = Some(node);
        self.trace.step(now, 6, id.0, seed);
        self.trace.line(now, || format!("{id:?} starts"));
        self.pump(id)?;
        Ok(true)
    }

    /// Ends a member's process; what its clients wait for has an unknown outcome. Returns whether it ran.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn crash(&mut self, id: MemberId, kept: usize, torn: bool) -> Result<bool, Violation> {
        let now = self.now;
        let Some(member) = self.members.get_mut(&id) else { return Ok(false) };
        if member.node.take().is_none() {
            return Ok(false);
        }
        member.boot += 1;
        member.reads.clear();
        let syncing = member.disk.syncing.len();
        let lied = member.disk.kept().is_some();
        let lost = member.disk.crash(kept, torn)?;
        let fresh = std::mem::take(&mut member.disk.fresh);
        self.coverage.fault(Fault::Crash);
        if lied {
            self.coverage.fault(DiskFault::LostSync);
            self.promises.forget(id);
            self.rolled_back.insert(id);
        } else {
            for row in &fresh {
                self.chosen.voted(id, row)?;
            }
        }
        if torn && syncing > 0 && kept > 0 {
            self.coverage.fault(DiskFault::TornWrite);
        } else if syncing > 0 && kept >= syncing {
            self.coverage.fault(DiskFault::UntoldSync);
        }
        if lost > 0 {
            self.coverage.fault(DiskFault::LostUnsynced);
        }
        self.trace.line(now, || {
            let note = if lied { ", and what it had acknowledged" } else { "" };
            format!("{id:?} dies, {lost} writes lost{note}")
        });
        self.trace.step(now, 1, id.0, lost as u64);
        for client in 0..self.clients.len() {
            if self.clients[client].open.as_ref().is_some_and(|open| open.at == id) {
                self.close(client, &Outcome::Unknown)?;
            }
        }
        self.effects.push(Effect::Died(id));
        Ok(true)
    }

    /// The member's volume is gone for good.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn destroy(&mut self, id: MemberId) -> Result<bool, Violation> {
        self.crash(id, 0, false)?;
        let Some(member) = self.members.get_mut(&id) else { return Ok(false) };
        self.trace.line(self.now, || format!("{id:?} loses its volume"));
        Ok(!std::mem::replace(&mut member.destroyed, true))
    }

    /// One end of a connection sees it stand or break. Returns whether that end runs.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn connection(&mut self, at: MemberId, peer: MemberId, stands: bool) -> Result<bool, Violation> {
        let input = if stands { Input::PeerConnected(peer) } else { Input::PeerDisconnected(peer) };
        self.trace.step(self.now, 7, at.0, peer.0 << 1 | u64::from(stands));
        self.trims.connection(at, peer, stands);
        self.input(at, input)?;
        Ok(self.is_running(at))
    }

    /// A member's timer fires.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn tick(&mut self, id: MemberId) -> Result<bool, Violation> {
        let Some(member) = self.members.get_mut(&id) else { return Ok(false) };
        member.tick_at = None;
        self.input(id, Input::Tick)?;
        Ok(self.is_running(id))
    }

    /// A message arrives.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn deliver(&mut self, incoming: Incoming) -> Result<(), Violation> {
        let to = incoming.to;
        if !self.is_running(to) {
            return Ok(());
        }
        self.coverage.message(MessageKind::of(&incoming.message));
        self.note_delivered(&incoming);
        self.trace.step(self.now, 2, incoming.from.0 ^ to.0.rotate_left(7), incoming.counters.written.0);
        self.trace.line(self.now, || format!("{:?} -> {to:?} {:?}", incoming.from, incoming.message));
        self.input(to, Input::Message(incoming))
    }

    fn note_delivered(&mut self, incoming: &Incoming) {
        let (from, message) = (incoming.from, &incoming.message);
        self.trims.delivered(from, message);
        self.proposals.delivered(from, incoming.to, message);
        // Words of an earlier life are dropped where a later one is known.
        let life = self.members.get(&from).map(|m| m.disk.state().incarnation);
        if life == Some(incoming.counters.incarnation) && !self.rolled_back.contains(&from) {
            self.recovery.delivered(from, message);
        }
    }

    /// The transaction under way is durable, and the member is told.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn synced(&mut self, id: MemberId) -> Result<bool, Violation> {
        let Some(member) = self.members.get_mut(&id).filter(|m| m.node.is_some()) else { return Ok(false) };
        let batches = std::mem::take(&mut member.disk.syncing);
        let completed = match member.disk.commit_all(batches) {
            Ok(Some(completed)) => completed,
            Ok(None) => return Ok(false),
            // Its process ends, and its next start finds what is there.
            Err(Unusable::Damaged(_)) if member.disk.is_rotten() => return self.crash(id, 0, false),
            Err(why) => return violation("a disk in order takes every write", format!("{why:?}")),
        };
        let disk = &member.disk;
        // A row that is written anew is whole, whatever happens to it later.
        member.began_damaged.retain(|slot| disk.damaged().contains(slot));
        self.retirement.holds(id, member.disk.state().chosen_through);
        for row in std::mem::take(&mut member.disk.fresh) {
            self.chosen.voted(id, &row)?;
            self.proposals.voted(id, &row);
        }
        self.promises.check(id, member.disk.state().promised)?;
        self.input(id, Input::Persisted(completed))?;
        self.start_sync(id);
        Ok(true)
    }

    /// The disk answers the oldest read of a view with at most so many rows.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn read_rows(&mut self, id: MemberId, count: usize) -> Result<bool, Violation> {
        let Some(member) = self.members.get_mut(&id) else { return Ok(false) };
        let Some(asked) = member.reads.pop_front() else { return Ok(false) };
        let wanted = (asked.from, asked.bytes, count);
        let read = member.disk.read(asked.view, wanted, self.genesis.cluster)?;
        if let Some((rows, end)) = read {
            self.input(id, Input::ViewRows { view: asked.view, rows, end })?;
        }
        Ok(true)
    }

    /// Something goes wrong with a disk. Returns whether there was something to go wrong.
    pub fn disk(&mut self, id: MemberId, fault: DiskFault, change: impl FnOnce(&mut Member) -> bool) -> bool {
        let Some(member) = self.members.get_mut(&id).filter(|m| !m.destroyed) else { return false };
        let done = change(member);
        if done {
            self.trace.step(self.now, 8, id.0, fault as u64);
            self.trace.line(self.now, || format!("{id:?} disk: {}", fault.name()));
            self.coverage.fault(fault);
        }
        done
    }

    /// A scrubber reads a row that is damaged or gone. Returns whether it is.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn scrub(&mut self, id: MemberId, slot: Slot) -> Result<bool, Violation> {
        let cluster = self.genesis.cluster;
        let Some(member) = self.members.get_mut(&id).filter(|m| m.node.is_some()) else { return Ok(false) };
        if let Some(found) = member.disk.scrub() {
            return self.scrubbed(id, found);
        }
        let (disk, row) = (&member.disk, member.disk.rows().get(&slot));
        let found = match row {
            Some(row) => !row.is_intact(cluster),
            None => slot > disk.state().trim_through && slot <= disk.state().chosen_through,
        };
        if found {
            self.trace.step(self.now, 12, id.0, slot.0);
            self.trace.line(self.now, || format!("{id:?} scrubber finds {slot:?}"));
            self.input(id, Input::Damaged(slot))?;
        }
        Ok(found)
    }

    fn scrubbed(&mut self, id: MemberId, found: Result<Scrubbed, Unusable>) -> Result<bool, Violation> {
        let (rows, snapshots) = match found {
            Ok(found) => found,
            Err(Unusable::Wrong(violation)) => return Err(violation),
            // The newest segment cannot be read through: the scrubber says so, and the member goes on.
            Err(Unusable::Damaged(_)) => return Ok(false),
        };
        let any = !rows.is_empty() || !snapshots.is_empty();
        self.trace.step(self.now, 12, id.0, (rows.len() + snapshots.len()) as u64);
        for slot in rows {
            self.trace.line(self.now, || format!("{id:?} scrubber finds {slot:?}"));
            self.input(id, Input::Damaged(slot))?;
        }
        for slot in snapshots {
            self.input(id, Input::DamagedSnapshot(slot))?;
        }
        Ok(any)
    }

    /// A member cannot start on its files: they are as good as gone.
    fn unusable(&mut self, id: MemberId, why: Unusable) -> Result<(), Violation> {
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        match why {
            Unusable::Damaged(why) if member.disk.is_rotten() => {
                self.trace.line(self.now, || format!("{id:?} cannot start: {why}"));
                self.coverage.rule(Rule::DiskUnusable);
                member.destroyed = true;
                Ok(())
            }
            Unusable::Damaged(why) => violation("a disk that only lost power opens", why),
            Unusable::Wrong(violation) => Err(violation),
        }
    }

    /// The volume of a member that does not run is an older copy of itself.
    pub fn restore(&mut self, id: MemberId) -> bool {
        let stopped = !self.is_running(id);
        let done = self.disk(id, DiskFault::RestoredCopy, |member| stopped && member.disk.restore());
        if done {
            self.promises.forget(id);
            self.rolled_back.insert(id);
        }
        done
    }

    /// The state of a member that does not run becomes another.
    pub fn diverge(&mut self, id: MemberId) -> bool {
        let Some(member) = self.members.get_mut(&id).filter(|m| m.node.is_none() && !m.destroyed) else {
            return false;
        };
        let done = member.disk.diverge();
        if done {
            self.diverged.insert(id);
            self.coverage.fault(Fault::SilentDivergence);
            self.trace.step(self.now, 11, id.0, 0);
            self.trace.line(self.now, || format!("{id:?} has another state from now on"));
        }
        done
    }

    /// A clock jumps ahead.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn jump(&mut self, id: MemberId, by: u64) -> Result<bool, Violation> {
        let Some(member) = self.members.get_mut(&id).filter(|m| m.node.is_some()) else { return Ok(false) };
        member.clock.offset += by;
        member.tick_at = None;
        self.coverage.fault(Fault::ClockJump);
        self.trace.step(self.now, 9, id.0, by);
        self.trace.line(self.now, || format!("{id:?} clock jumps by {} ms", by / 1_000_000));
        self.pump(id)?;
        Ok(true)
    }

    /// An operator's call.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn admin(&mut self, id: MemberId, request: RequestId, command: &Command) -> Result<bool, Violation> {
        let cluster = self.genesis.cluster;
        let command = match command {
            Command::Initialize => AdminCommand::Initialize(self.genesis.clone()),
            Command::Join => AdminCommand::Join { cluster, digest: self.genesis.digest() },
            Command::Change { version, operation, change, subject, name: length } => {
                self.planned.insert(request, *version);
                let member = MemberId(*subject);
                let mut name = [0; 16];
                name[..8].copy_from_slice(&operation.to_le_bytes());
                let change = match change {
                    action::Change::AddLearner => {
                        let name = match length {
                            Some(bytes) => "x".repeat(*bytes as usize),
                            None => format!("m{subject}"),
                        };
                        Change::AddLearner { member, name }
                    }
                    action::Change::Promote => Change::Promote { member },
                    action::Change::Remove => Change::Remove { member },
                };
                AdminCommand::Change { cluster, expected_version: *version, operation: name, change }
            }
            Command::Transfer { to } => AdminCommand::TransferLeader { cluster, to: to.map(MemberId) },
            Command::PrepareStop => AdminCommand::PrepareStop,
        };
        self.trace.step(self.now, 10, id.0, request.0);
        self.trace.line(self.now, || match &command {
            AdminCommand::Initialize(_) => format!("{id:?} is told to form the cluster"),
            other => format!("{id:?} is told {other:?}"),
        });
        self.input(id, Input::Admin { request, command })?;
        Ok(self.is_running(id))
    }

    /// Hands an input to a member's core, takes what comes of it, and checks what must hold.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn input(&mut self, id: MemberId, input: Input) -> Result<(), Violation> {
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        let local = member.clock.local(self.now);
        let Some(node) = member.node.as_mut() else { return Ok(()) };
        node.handle(local, input);
        self.pump(id)
    }

    pub(crate) fn start_sync(&mut self, id: MemberId) {
        let Some(member) = self.members.get_mut(&id) else { return };
        if !member.disk.syncing.is_empty() || member.disk.pending.is_empty() {
            return;
        }
        member.disk.syncing = std::mem::take(&mut member.disk.pending).into();
        self.effects.push(Effect::Syncing(id));
    }

    /// Members of the configurations that the most advanced member knows to be in force or pending.
    pub fn configurations(&self) -> Vec<Vec<MemberId>> {
        let nodes = self.members.values().filter_map(|m| m.node.as_ref()?.system());
        let Some(system) = nodes.max_by_key(|s| s.applied) else { return Vec::new() };
        system.configurations.from(system.applied.next()).map(|c| c.voters().collect()).collect()
    }

    /// Judges and counts an answer to an operator.
    ///
    /// # Errors
    /// Where a change took effect that was planned from another version.
    pub(crate) fn judge_admin(
        &mut self,
        request: RequestId,
        outcome: &Result<AdminOutcome, Refusal>,
    ) -> Result<(), Violation> {
        if let (Ok(AdminOutcome::Changed { configuration, .. }), Some(planned)) =
            (outcome, self.planned.get(&request))
            && configuration.version != planned + 1
        {
            let evidence = format!("planned from version {planned}, made version {}", configuration.version);
            return violation("a change takes effect on its own base only", evidence);
        }
        self.count_admin(outcome);
        Ok(())
    }

    fn count_admin(&mut self, outcome: &Result<AdminOutcome, Refusal>) {
        match outcome {
            Ok(AdminOutcome::Changed { .. }) => self.coverage.rule(Rule::ChangeConfirmed),
            Ok(AdminOutcome::Transferred(_)) => self.coverage.rule(Rule::HandedOver),
            Ok(AdminOutcome::StopPrepared) => self.coverage.rule(Rule::StopPrepared),
            Err(Refusal::Change(_) | Refusal::NotCaughtUp { .. }) => self.coverage.rule(Rule::ChangeRefused),
            Ok(AdminOutcome::Initialized(_) | AdminOutcome::Joined) | Err(_) => {}
        }
    }

    /// Whether nobody has an operation open, or an append whose outcome is still to be asked for.
    pub fn is_quiet(&self) -> bool {
        self.clients.iter().all(|client| client.open.is_none() && client.unresolved.is_none())
    }

    /// The last index that a client has seen.
    pub fn seen(&self, client: usize) -> u64 {
        self.clients.get(client).map_or(0, |client| client.seen.0)
    }
}
