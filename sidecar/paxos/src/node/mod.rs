//! The core's one type: its state, and the routing of inputs to the rooms where the rules live.
//!
//! | room | rules of docs: protocol.md |
//! |---|---|
//! | `identity` | genesis, handshake, fencing, tombstones |
//! | `acceptor` | promises and votes |
//! | `election` | hearing, canvass, prepare, stepping down |
//! | `phase_one` | collecting promises, asking again |
//! | `proposer` | recovery, LeaderStart, the steady state |
//! | `pipeline` | how much is under way to each follower |
//! | `heartbeat` | a leader's life signs and what it knows of its peers |
//! | `learner` | what is chosen, and applying it |
//! | `catch_up` | fetching chosen values |
//! | `pace` | whom to fetch from, and how fast they are served beside appends |
//! | `appends` | clients' calls, forwarded or proposed |
//! | `reads` | read rounds |
//! | `lease` | grants, and reading under them |
//! | `snapshots` | taking, serving, fetching, installing |
//! | `retention` | marks and trims |
//! | `divergence` | comparing chains |
//! | `membership` | changes, retirement, hand-over |
//! | `disk` | the persist-before-send gate |

mod acceptor;
mod adopted;
mod appends;
mod catch_up;
mod disk;
mod divergence;
mod election;
mod heartbeat;
mod identity;
mod invariants;
mod learner;
mod lease;
mod membership;
mod pace;
mod phase_one;
mod pipeline;
mod proposer;
mod random;
mod reads;
mod report;
mod retention;
mod snapshots;

use crate::codec::DecodeError;
use crate::genesis::Genesis;
use crate::io::{AdminCommand, Input, Notice, Output, Refusal};
use crate::limits;
use crate::message::{Counters, Incoming, Message, Outgoing, ViewId};
use crate::row::Row;
use crate::settings::{ElectionSettings, Settings};
use crate::status::MemberState;
use crate::storage::DurableState;
use crate::system::SystemState;
use crate::types::{Ballot, ClusterId, Digest, Incarnation, Instant, MemberId, RequestId, Slot, Time};
use crate::value::Value;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use bytes::Bytes;

/// One member's protocol state. See the crate's documentation for the calling order.
///
/// Invariants: `trim_through <= system.applied == chosen_through`; every row in `rows` lies above
/// `chosen_through`; where this member proposes, its ballot is what it has promised.
#[derive(Debug)]
pub struct Node {
    me: MemberId,
    incarnation: Incarnation,
    random: random::Random,
    outputs: VecDeque<Output>,
    disk: disk::Disk,

    life: MemberState,
    genesis: Option<Genesis>,
    joined: Option<(ClusterId, Digest)>,
    genesis_confirmed: bool,
    handshake: identity::Handshake,
    /// The most that was seen of each peer.
    peers: BTreeMap<MemberId, Counters>,
    connected: BTreeSet<MemberId>,

    /// No lower ballot is answered; durable before any answer leaves.
    promised: Ballot,
    trim_through: Slot,
    /// Accepted or learnt rows above `chosen_through`, durable or on their way to the disk.
    rows: BTreeMap<Slot, Row>,
    /// What was chosen in the newest applied slots: xxh3-128 of the values.
    recent: BTreeMap<Slot, u128>,
    /// Slots whose stored row does not fit its checksum: until they heal, this member does not promise.
    damaged: BTreeSet<Slot>,
    /// Damaged rows of slots that are applied: fetched again from others.
    wanted: catch_up::Wanted,
    views: acceptor::Views,
    leases: lease::Leases,
    snapshots: snapshots::Snapshots,

    chosen_through: Slot,
    system: Option<SystemState>,
    /// When the newest input came.
    clock: Instant,
    /// When the newest batch that moved log time on was applied: a new leader counts from then, since its proposer had
    /// stamped it before.
    log_time_seen: Option<Instant>,
    /// What the wall clock said last; 0: nobody told.
    wall: Time,
    /// Election timing in place of the log's.
    election_override: Option<ElectionSettings>,
    /// The newest format level that this member reads.
    readable_level: u32,
    /// The newest proposal that got no vote because this member could not apply it.
    unreadable: Option<(Ballot, Slot)>,
    /// A chosen value that cannot be decoded ends all taking part.
    halted: bool,

    election: election::Election,
    proposer: Option<proposer::Proposer>,
    catch_up: catch_up::CatchUp,
    pace: pace::Pace,
    appends: appends::Appends,
    reads: reads::Reads,
    membership: membership::Membership,

    next_beat: Instant,
    bounds: limits::Bounds,
}

impl Node {
    /// Starts on what a disk holds; `disk.incarnation` was raised durably before. `seed` must differ from
    /// start to start: it feeds the random timeouts and the handshake's nonce.
    ///
    /// # Errors
    /// Where the stored system state cannot be read.
    pub fn new(disk: DurableState, now: Instant, seed: u64) -> Result<Node, DecodeError> {
        let system = match (&disk.genesis, disk.system.is_empty()) {
            (None, _) => None,
            (Some(genesis), true) => Some(SystemState::new(genesis)),
            (Some(_), false) => Some(SystemState::decode(disk.system.clone())?),
        };
        let applied = system.as_ref().map_or(Slot(0), |s| s.applied);
        let mut node = Node {
            me: disk.member,
            incarnation: disk.incarnation,
            random: random::Random::new(seed),
            outputs: VecDeque::new(),
            disk: disk::Disk::new(&disk),
            life: MemberState::Uninitialized,
            joined: disk.joined,
            genesis_confirmed: disk.genesis_confirmed,
            handshake: identity::Handshake::new(now),
            peers: disk.peers,
            connected: BTreeSet::new(),
            promised: if planted!(PromiseForgotten) { Ballot::ZERO } else { disk.promised },
            trim_through: disk.trim_through,
            rows: BTreeMap::new(),
            recent: BTreeMap::new(),
            damaged: BTreeSet::new(),
            wanted: catch_up::Wanted::default(),
            views: acceptor::Views::default(),
            leases: lease::Leases::new(now, disk.lease),
            snapshots: snapshots::Snapshots::new(disk.snapshots, disk.fetched),
            chosen_through: applied,
            system,
            clock: now,
            log_time_seen: None,
            wall: Time(0),
            election_override: None,
            readable_level: Settings::FORMAT_LEVEL,
            unreadable: None,
            halted: false,
            election: election::Election::new(now, disk.incarnation),
            proposer: None,
            catch_up: catch_up::CatchUp::default(),
            pace: pace::Pace::default(),
            appends: appends::Appends::default(),
            reads: reads::Reads::new(disk.incarnation),
            membership: membership::Membership::default(),
            next_beat: now,
            bounds: limits::Bounds::default(),
            genesis: disk.genesis,
        };
        node.load_rows(disk.rows, disk.chosen_through);
        node.disk.note_loaded(node.chosen_through);
        node.start_life(disk.tombstone.is_some(), disk.fenced);
        node.reset_election_timer(now);
        Ok(node)
    }

    /// Goes by other bounds than the default ones: for simulations, see [`limits::Bounds::divided`].
    pub fn set_bounds(&mut self, bounds: limits::Bounds) {
        self.bounds = bounds;
    }

    /// Goes by this election timing in place of the log's: the way on for a log whose own does not let a leader lead. What
    /// must not differ between members does not depend on it: a lease's length is named in the heartbeat that asks for it.
    pub fn override_election(&mut self, now: Instant, election: ElectionSettings) {
        self.election_override = Some(election);
        self.next_beat = now;
        self.reset_election_timer(now);
    }

    /// Notes what the wall clock says: what this member appends as a leader from now on is of this time, or of the newest
    /// entry's where that is later. Without it entries have no time of their own.
    pub fn set_wall_clock(&mut self, wall: Time) {
        self.wall = wall;
    }

    /// Reads nothing above `level` from now on, as an older version does: for tests of rolling upgrades.
    pub fn read_up_to(&mut self, level: u32) {
        self.readable_level = level.min(Settings::FORMAT_LEVEL);
    }

    /// Reads a value as this member's version does.
    fn read_value(&self, bytes: &Bytes) -> Result<Value, DecodeError> {
        let value = Value::decode(bytes.clone())?;
        if self.readable_level < Settings::FORMAT_LEVEL && value.level_to_read() > self.readable_level {
            let found = u64::from(value.level_to_read());
            return Err(DecodeError::Unknown { what: "format level", found });
        }
        Ok(value)
    }

    /// Takes one input.
    pub fn handle(&mut self, now: Instant, input: Input) {
        self.clock = self.clock.max(now);
        if self.halted {
            return self.refuse_halted(input);
        }
        match input {
            Input::Tick => self.tick(now),
            Input::Message(incoming) => self.handle_incoming(now, incoming),
            Input::PeerConnected(member) => self.handle_connected(now, member),
            Input::PeerDisconnected(member) => {
                self.connected.remove(&member);
                self.close_promises_to(member);
                self.forget_served(member);
                self.catch_up.note_disconnected(member);
            }
            Input::Persisted(completed) => self.handle_persisted(now, completed),
            Input::ViewRows { view, rows, end } => self.handle_view_rows(now, view, rows, end),
            Input::Damaged(slot) => self.handle_damaged(slot),
            Input::DamagedSnapshot(slot) => self.handle_damaged_snapshot(now, slot),
            Input::SnapshotRead { slot, state } => self.handle_snapshot_read(now, slot, state),
            Input::Call { request, operation } => self.handle_call(now, request, operation),
            Input::Cancel(request) => self.handle_cancel(request),
            Input::Read { request, consistency } => self.handle_read(now, request, consistency),
            Input::Admin { request, command } => self.handle_admin(now, request, command),
        }
    }

    /// Gives the next output; call until there is none.
    pub fn poll_output(&mut self, now: Instant) -> Option<Output> {
        self.clock = self.clock.max(now);
        if self.outputs.is_empty() && !self.halted {
            self.drive(now);
            self.flush_disk(now);
        }
        self.outputs.pop_front()
    }

    /// When [`Input::Tick`] is wanted.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.halted {
            return None;
        }
        match self.life {
            MemberState::Fenced(_)
            | MemberState::Halted(_)
            | MemberState::Removed
            | MemberState::Uninitialized => None,
            _ => {
                let next = self.next_beat.min(self.election.deadline);
                Some(self.pace.deadline().map_or(next, |due| due.min(next)))
            }
        }
    }

    /// The replicated state; none before a genesis is known.
    pub fn system(&self) -> Option<&SystemState> {
        self.system.as_ref()
    }

    fn tick(&mut self, now: Instant) {
        if self.next_deadline().is_none() {
            return;
        }
        if now >= self.next_beat {
            self.next_beat = now.after(self.settings().heartbeat);
            self.beat(now);
        }
        if now >= self.election.deadline {
            self.handle_election_timeout(now);
        }
        self.serve_waiting(now);
    }

    /// What recurs every heartbeat: nothing here is on a hot path.
    fn beat(&mut self, now: Instant) {
        self.resend_hello(now);
        self.expire_views(now);
        self.beat_proposer(now);
        self.beat_hand_over(now);
        self.beat_retention(now);
        self.beat_catch_up(now);
        self.beat_snapshots(now);
        self.resend_forwarded(now);
        self.beat_reads(now);
        self.disk.note_beat();
        self.pace.note_beat();
    }

    fn handle_connected(&mut self, now: Instant, member: MemberId) {
        if member == self.me {
            return;
        }
        self.connected.insert(member);
        self.close_promises_to(member);
        self.forget_served(member);
        self.send_hello(member);
        if self.proposer.is_some() {
            self.resend_to(now, member);
        }
        if self.election.leader.is_some_and(|b| b.member == member) {
            self.resend_all_forwarded(now);
        }
    }

    /// Checks the envelope, then hands the message to its room.
    fn handle_incoming(&mut self, now: Instant, incoming: Incoming) {
        let Incoming { cluster, from, counters, to, message } = incoming;
        if Some(cluster) != self.cluster() || to != self.me || from == self.me {
            return;
        }
        if matches!(self.life, MemberState::Fenced(_) | MemberState::Halted(_) | MemberState::Removed) {
            return;
        }
        // A Hello is answered whatever it shows: it may be the first word of a disk restored from an old copy.
        if !self.note_counters(from, counters) && !matches!(message, Message::Hello { .. }) {
            return;
        }
        match message {
            Message::Hello { nonce, genesis, needs_genesis } => {
                return self.handle_hello(from, nonce, genesis, needs_genesis);
            }
            Message::Welcome { nonce, remembered, gossip, genesis, full_genesis, chosen_through } => {
                self.handle_welcome(from, nonce, remembered, &gossip, genesis, full_genesis);
                return self.note_chosen_elsewhere(from, chosen_through);
            }
            _ if self.system.is_none() => return,
            _ => {}
        }
        if self.is_refused_sender(from, &message) {
            return self.send_chosen_position(from);
        }
        self.route(now, from, message);
    }

    fn route(&mut self, now: Instant, from: MemberId, message: Message) {
        match message {
            Message::Hello { .. } | Message::Welcome { .. } => {}
            Message::Canvass { id, ballot, from: first, hand_over } => {
                self.handle_canvass(now, from, id, ballot, first, hand_over);
            }
            Message::CanvassReply { id, willing, promised, chosen_through } => {
                self.handle_canvass_reply(now, from, id, willing, promised, chosen_through);
            }
            Message::Prepare { ballot, from: slot, hand_over } => {
                self.handle_prepare(now, from, ballot, slot, hand_over);
            }
            Message::Promise {
                ballot,
                from: first,
                view,
                chunk,
                last,
                trim_through,
                chosen_through,
                rows,
            } => {
                let part =
                    phase_one::PromisePart { view, first, chunk, last, trim_through, chosen_through, rows };
                self.handle_promise(now, from, ballot, part);
            }
            Message::PromiseMore { ballot, view, chunk } => {
                self.handle_promise_more(now, from, ballot, view, chunk)
            }
            // Asked again by the timer until the lease is over.
            Message::Busy { .. } => {}
            Message::Nack { ballot: _, promised } => self.handle_nack(now, promised),
            Message::Accept { ballot, slot, value, checksum, chosen_through, has_quorum } => {
                let row = Row { slot, ballot, chosen: false, value, checksum };
                self.handle_accept(now, from, row, chosen_through, has_quorum);
            }
            Message::Accepted { ballot, slots } => self.handle_accepted(now, from, ballot, &slots),
            Message::AlreadyChosen { ballot, trim_through } => {
                self.handle_already_chosen(now, from, ballot, trim_through);
            }
            Message::Heartbeat {
                ballot,
                sequence,
                chosen_through,
                has_quorum,
                lease,
                chain,
                source,
                taken,
            } => {
                let beat =
                    heartbeat::Beat { sequence, chosen_through, has_quorum, lease, chain, source, taken };
                self.handle_heartbeat(now, from, ballot, beat);
            }
            Message::HeartbeatReply {
                ballot,
                sequence,
                chosen_through,
                durable_through,
                granted,
                snapshot_through,
                chain,
                format_level,
                load,
            } => {
                let answer = heartbeat::Answer {
                    sequence,
                    chosen_through,
                    durable_through,
                    granted,
                    snapshot_through,
                    chain,
                    format_level,
                    load,
                };
                self.handle_heartbeat_reply(now, from, ballot, answer);
            }
            Message::LearnRequest { from: slot, through, retries } => {
                self.handle_learn_request(now, from, slot, through, retries);
            }
            Message::Learned { from: slot, trim_through, chosen_through, rows } => {
                self.handle_learned(now, from, slot, trim_through, chosen_through, rows);
            }
            Message::SnapshotRequest { slot, offset } => {
                self.serve_or_wait(now, from, pace::Wish::Snapshot { slot, offset });
            }
            Message::SnapshotChunk { slot, total, digest, offset, bytes } => {
                self.handle_snapshot_chunk(now, from, slot, (total, digest), offset, &bytes);
            }
            Message::Diverged { at, agreed } => self.handle_diverged(at, &agreed),
            Message::Forward { request, ballot, sequence, call } => {
                self.handle_forward(from, request, ballot, sequence, call);
            }
            Message::ForwardReply { request, incarnation, ballot, outcome } => {
                self.handle_forward_reply(request, incarnation, ballot, outcome);
            }
            Message::ReadPointRequest { request, ballot } => {
                self.handle_read_point_request(now, from, request, ballot);
            }
            Message::ReadPoint { request, slot } => self.handle_read_point(request, slot),
            Message::HandOver { ballot } => self.handle_hand_over(now, from, ballot),
            Message::Retire { version, slot } => self.handle_retire(version, slot),
        }
    }

    fn handle_admin(&mut self, now: Instant, request: RequestId, command: AdminCommand) {
        match command {
            AdminCommand::Initialize(genesis) => self.initialize(request, genesis),
            AdminCommand::Join { cluster, digest } => self.join(request, cluster, digest),
            AdminCommand::Change { cluster, expected_version, operation, change } => {
                self.change(now, request, cluster, expected_version, operation, change);
            }
            AdminCommand::TransferLeader { cluster, to } => self.transfer_leader(now, request, cluster, to),
            AdminCommand::PrepareStop => self.prepare_stop(now, request),
        }
    }

    /// After a halt every request is refused: this member can serve nobody.
    fn refuse_halted(&mut self, input: Input) {
        let why = || match &self.life {
            MemberState::Fenced(why) | MemberState::Halted(why) => Refusal::NotActive(why.clone()),
            _ => Refusal::NotActive("this member halted".into()),
        };
        match input {
            Input::Call { request, .. } => {
                self.outputs.push_back(Output::CallReply { request, outcome: Err(why()) });
            }
            Input::Read { request, .. } => {
                self.outputs.push_back(Output::ReadReady { request, outcome: Err(why()) })
            }
            Input::Admin { request, .. } => {
                self.outputs.push_back(Output::AdminReply { request, outcome: Err(why()) });
            }
            Input::Tick
            | Input::Message(_)
            | Input::PeerConnected(_)
            | Input::PeerDisconnected(_)
            | Input::Persisted(_)
            | Input::ViewRows { .. }
            | Input::Damaged(_)
            | Input::DamagedSnapshot(_)
            | Input::SnapshotRead { .. }
            | Input::Cancel(_) => {}
        }
    }

    fn cluster(&self) -> Option<ClusterId> {
        self.genesis.as_ref().map(|g| g.cluster).or(self.joined.map(|(cluster, _)| cluster))
    }

    fn settings(&self) -> ElectionSettings {
        let of_the_log = || self.system.as_ref().map(|s| s.settings.election);
        self.election_override.or_else(of_the_log).unwrap_or_default()
    }

    /// The replicated state of a member that has a genesis; callers are reached only then.
    fn state(&self) -> &SystemState {
        self.system.as_ref().expect("rooms behind the envelope check are reached with a genesis only")
    }

    /// Takes part in votes: not before its genesis is confirmed or its handshake answered.
    fn is_active(&self) -> bool {
        self.life == MemberState::Active && !self.halted
    }

    fn send(&mut self, to: MemberId, message: Message) {
        debug_assert!(
            !message.is_gated() || matches!(message, Message::Promise { .. }),
            "gated: {message:?}"
        );
        self.emit(to, message);
    }

    fn emit(&mut self, to: MemberId, message: Message) {
        let Some(cluster) = self.cluster() else { return };
        let level = self.system.as_ref().map_or(1, |system| system.settings.format_level);
        debug_assert!(message.level() <= level, "level {level}: {message:?}");
        self.pace.note_sent(&message);
        let counters = Counters { incarnation: self.incarnation, written: self.disk.durable_written() };
        self.outputs.push_back(Output::Send(Outgoing::new(cluster, self.me, counters, to, message)));
    }

    fn notice(&mut self, notice: Notice) {
        self.outputs.push_back(Output::Notice(notice));
    }

    fn new_view(&mut self) -> ViewId {
        self.views.next_id()
    }
}
