//! The simulated world: members, network, clients, and the events between them in order of time.

use crate::client::Client;
use crate::faults::{Fault, FaultCounts};
use crate::invariants::agreement::Agreement;
use crate::invariants::chosen::Chosen;
use crate::invariants::epochs;
use crate::invariants::promises::Promises;
use crate::member::Member;
use crate::membership::Operator;
use crate::network::Network;
use crate::oracle::{Oracle, Outcome, Violation};
use crate::random::Random;
use crate::trace::Trace;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;
use synod_paxos::message::ViewId;
use synod_paxos::{
    AdminCommand, ClusterId, Genesis, Incoming, Input, MemberId, Node, Output, Refusal, Reply, RequestId,
    Slot,
};

/// Something that will happen.
#[derive(Debug)]
pub(crate) enum Event {
    Deliver(Box<Incoming>),
    Tick(MemberId, u64),
    Synced(MemberId, u64),
    ReadView { member: MemberId, boot: u64, view: ViewId, from: Slot, bytes: usize },
    Connect(MemberId, MemberId),
    Client(usize),
    GiveUp { client: usize, request: RequestId },
    Restart(MemberId),
    Trouble,
    HealNetwork,
    Operate,
}

/// All of one run's state.
#[derive(Debug)]
pub struct World {
    pub(crate) now: u64,
    pub(crate) random: Random,
    pub(crate) cluster: ClusterId,
    pub(crate) genesis: Genesis,
    pub(crate) members: BTreeMap<MemberId, Member>,
    pub(crate) network: Network,
    pub(crate) faults: FaultCounts,
    pub(crate) clients: Vec<Client>,
    pub(crate) operator: Operator,
    /// No new faults and operations: everything is to come to rest.
    pub(crate) settling: bool,
    pub(crate) oracle: Oracle,
    pub(crate) trace: Trace,
    /// When the newest append that is acknowledged had begun.
    pub(crate) last_append_served: Option<u64>,
    /// How long clients wait for an answer, between these.
    pub(crate) patience: (Duration, Duration),
    events: BinaryHeap<Reverse<(u64, u64)>>,
    bodies: BTreeMap<u64, Event>,
    scheduled: u64,
    requests: u64,
    agreement: Agreement,
    chosen: Chosen,
    promises: Promises,
}

impl World {
    /// `founders` members with empty disks, started and told to form a cluster.
    pub fn new(seed: u64, founders: usize, clients: usize, keep_trace: bool) -> World {
        let mut random = Random::new(seed);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&random.bits().to_le_bytes());
        let cluster = ClusterId(bytes);
        let ids: Vec<MemberId> = (0..founders).map(|_| MemberId(random.bits() | 1)).collect();
        let members = ids.iter().map(|id| (*id, format!("{id}"))).collect();
        let mut genesis = Genesis::new(cluster, members);
        // Small windows meet their edges often.
        genesis.alpha = [2, 4, 8, 64][usize::try_from(random.below(4)).unwrap_or(0)];
        let mut world = World {
            now: 0,
            random,
            cluster,
            genesis: genesis.clone(),
            members: BTreeMap::new(),
            network: Network::default(),
            faults: FaultCounts::default(),
            clients: (0..clients).map(|_| Client::default()).collect(),
            operator: Operator::default(),
            settling: false,
            oracle: Oracle::default(),
            trace: Trace::new(keep_trace),
            last_append_served: None,
            patience: (Duration::from_millis(300), Duration::from_millis(4_000)),
            events: BinaryHeap::new(),
            bodies: BTreeMap::new(),
            scheduled: 0,
            requests: 0,
            agreement: Agreement::default(),
            chosen: Chosen::default(),
            promises: Promises::default(),
        };
        for id in ids {
            world.add_member(id);
            world.start(id);
            world.admin(id, AdminCommand::Initialize(genesis.clone()));
        }
        for client in 0..clients {
            world.schedule(Duration::from_millis(5), Event::Client(client));
        }
        world
    }

    /// A fresh member id.
    pub(crate) fn mint(&mut self) -> MemberId {
        MemberId(self.random.bits() | 1)
    }

    pub(crate) fn add_member(&mut self, id: MemberId) {
        self.members.insert(id, Member::new(id));
    }

    pub(crate) fn node(&self, id: MemberId) -> Option<&Node> {
        self.members.get(&id).and_then(|m| m.node.as_ref())
    }

    pub(crate) fn is_running(&self, id: MemberId) -> bool {
        self.node(id).is_some()
    }

    pub(crate) fn running(&self) -> Vec<MemberId> {
        self.members.values().filter(|m| m.node.is_some()).map(|m| m.id).collect()
    }

    pub(crate) fn schedule(&mut self, after: Duration, event: Event) {
        let at = self.now + u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
        self.scheduled += 1;
        self.events.push(Reverse((at, self.scheduled)));
        self.bodies.insert(self.scheduled, event);
    }

    /// Lets the next event happen; false: there is none.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn step(&mut self) -> Result<bool, Violation> {
        let Some(Reverse((at, number))) = self.events.pop() else { return Ok(false) };
        let Some(event) = self.bodies.remove(&number) else { return Ok(true) };
        self.now = at;
        self.happen(event)?;
        Ok(true)
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Deliver(incoming) => self.deliver(*incoming),
            Event::Tick(member, boot) => {
                if let Some(m) = self.members.get_mut(&member).filter(|m| m.boot == boot) {
                    m.tick_at = None;
                    return self.input(member, Input::Tick);
                }
                Ok(())
            }
            Event::Synced(member, boot) => self.synced(member, boot),
            Event::ReadView { member, boot, view, from, bytes } => {
                self.read_view(member, boot, view, from, bytes)
            }
            Event::Connect(a, b) => {
                if self.is_running(a) && self.is_running(b) && self.network.is_open(a, b) {
                    return self.input(a, Input::PeerConnected(b));
                }
                Ok(())
            }
            Event::Client(client) => self.client_turn(client),
            Event::GiveUp { client, request } => self.give_up(client, request),
            Event::Restart(member) => {
                if !self.is_running(member) && self.members.get(&member).is_some_and(|m| !m.destroyed) {
                    self.faults.add(Fault::Restart);
                    self.start(member);
                    return self.pump(member);
                }
                Ok(())
            }
            Event::Trouble => self.trouble(),
            Event::HealNetwork => {
                self.network.heal();
                self.connect_all();
                Ok(())
            }
            Event::Operate => {
                if !self.settling {
                    self.destroy_retired();
                    self.operate();
                    let pause = self.random.between(Duration::from_millis(100), Duration::from_millis(900));
                    self.schedule(pause, Event::Operate);
                }
                Ok(())
            }
        }
    }

    /// Starts the process on a member's disk.
    pub(crate) fn start(&mut self, id: MemberId) {
        let (seed, offset, now) = (self.random.bits(), self.random.below(1 << 40), self.now);
        let Some(member) = self.members.get_mut(&id) else { return };
        member.boot += 1;
        member.clock_offset = Duration::from_nanos(offset);
        member.tick_at = None;
        let state = member.disk.boot();
        let node =
            Node::new(state, member.local(now), seed).expect("a simulated disk holds what the core wrote");
        member.node = Some(node);
        self.trace.line(now, || format!("{id:?} starts"));
        for other in self.running() {
            if other != id {
                let delay = self.random.between(Duration::from_millis(1), Duration::from_millis(30));
                self.schedule(delay, Event::Connect(id, other));
                self.schedule(delay, Event::Connect(other, id));
            }
        }
        self.schedule_tick(id);
    }

    pub(crate) fn connect_all(&mut self) {
        let running = self.running();
        for &a in &running {
            for &b in running.iter().filter(|b| **b != a) {
                let delay = self.random.between(Duration::from_millis(1), Duration::from_millis(50));
                self.schedule(delay, Event::Connect(a, b));
            }
        }
    }

    /// Ends a member's process; what its clients wait for has an unknown outcome.
    pub(crate) fn crash(&mut self, id: MemberId) {
        let survives = self.random.chance(500);
        let now = self.now;
        let Some(member) = self.members.get_mut(&id) else { return };
        if member.node.take().is_none() {
            return;
        }
        member.boot += 1;
        let syncing = !member.disk.syncing.is_empty();
        let syncing_batches = std::mem::take(&mut member.disk.fresh);
        drop(syncing_batches);
        let lost = member.disk.crash(survives);
        if syncing && survives {
            for row in std::mem::take(&mut member.disk.fresh) {
                self.chosen.voted(id, &row);
            }
            self.faults.add(Fault::UntoldSync);
        }
        if lost > 0 {
            self.faults.add(Fault::LostUnsynced);
        }
        self.faults.add(Fault::Crash);
        self.trace.line(now, || format!("{id:?} crashes, {lost} writes lost"));
        self.trace.step(now, 1, id.0, lost as u64);
        for client in 0..self.clients.len() {
            if self.clients[client].open.as_ref().is_some_and(|open| open.at == id)
                && let Some(open) = self.clients[client].open.take()
            {
                let _ = self.oracle.answered(&open, &Outcome::Unknown);
                self.client_pause(client);
            }
        }
        for other in self.running() {
            self.input_quietly(other, Input::PeerDisconnected(id));
        }
    }

    /// The member's disk is gone for good.
    pub(crate) fn destroy(&mut self, id: MemberId) {
        self.crash(id);
        if let Some(member) = self.members.get_mut(&id) {
            member.destroyed = true;
        }
    }

    pub(crate) fn admin(&mut self, id: MemberId, command: AdminCommand) {
        let request = self.new_request();
        self.trace.line(self.now, || format!("{id:?} is told {command:?}"));
        self.input_quietly(id, Input::Admin { request, command });
    }

    pub(crate) fn new_request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    /// An input whose outputs are looked at with the member's next step.
    fn input_quietly(&mut self, id: MemberId, input: Input) {
        let now = self.now;
        let Some(member) = self.members.get_mut(&id) else { return };
        let local = member.local(now);
        let boot = member.boot;
        if let Some(node) = member.node.as_mut() {
            node.handle(local, input);
            self.schedule(Duration::ZERO, Event::Tick(id, boot));
        }
    }

    pub(crate) fn input(&mut self, id: MemberId, input: Input) -> Result<(), Violation> {
        let now = self.now;
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        let local = member.local(now);
        let Some(node) = member.node.as_mut() else { return Ok(()) };
        node.handle(local, input);
        self.pump(id)
    }

    fn deliver(&mut self, incoming: Incoming) -> Result<(), Violation> {
        let to = incoming.to;
        if !self.network.is_open(incoming.from, to) {
            return Ok(());
        }
        self.trace.step(self.now, 2, incoming.from.0 ^ to.0.rotate_left(7), incoming.counters.written.0);
        self.trace.line(self.now, || format!("{:?} -> {to:?} {:?}", incoming.from, incoming.message));
        self.input(to, Input::Message(incoming))
    }

    /// Takes a member's outputs, then checks what must hold.
    pub(crate) fn pump(&mut self, id: MemberId) -> Result<(), Violation> {
        let mut applied = false;
        loop {
            let now = self.now;
            let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
            let local = member.local(now);
            let Some(output) = member.node.as_mut().and_then(|node| node.poll_output(local)) else { break };
            applied |= matches!(output, Output::Applied(_));
            self.take_output(id, output)?;
        }
        self.schedule_tick(id);
        self.check(id, applied)
    }

    fn check(&mut self, id: MemberId, applied: bool) -> Result<(), Violation> {
        let Some(node) = self.members.get(&id).and_then(|m| m.node.as_ref()) else { return Ok(()) };
        node.check_invariants();
        if applied {
            self.agreement.check(id, node)?;
            epochs::check(node)?;
            if let Some(system) = node.system() {
                self.chosen.check(node, system.applied)?;
                self.oracle.dense(system.applied)?;
            }
            self.oracle.settle_owed()?;
        }
        Ok(())
    }

    fn schedule_tick(&mut self, id: MemberId) {
        let now = self.now;
        let Some(member) = self.members.get_mut(&id) else { return };
        let Some(deadline) = member.node.as_ref().and_then(Node::next_deadline) else { return };
        let at = member.global(deadline).max(now);
        if member.tick_at.is_none_or(|scheduled| at < scheduled) {
            member.tick_at = Some(at);
            let boot = member.boot;
            self.schedule(Duration::from_nanos(at - now), Event::Tick(id, boot));
        }
    }

    fn take_output(&mut self, id: MemberId, output: Output) -> Result<(), Violation> {
        match output {
            Output::Send(outgoing) => {
                let incoming = outgoing.to_incoming();
                if !self.is_running(incoming.to) {
                    return Ok(());
                }
                for delay in self.network.route(id, incoming.to, &mut self.random, &mut self.faults) {
                    self.schedule(delay, Event::Deliver(Box::new(incoming.clone())));
                }
            }
            Output::Persist(batch) => {
                if let Some(member) = self.members.get_mut(&id) {
                    member.disk.pending.push_back(batch);
                }
                self.start_sync(id);
            }
            Output::OpenView { view } => {
                if let Some(member) = self.members.get_mut(&id) {
                    member.disk.open(view);
                }
            }
            Output::ReadView { view, from, bytes } => {
                let delay = self.random.between(Duration::from_micros(20), Duration::from_micros(900));
                let boot = self.members.get(&id).map_or(0, |m| m.boot);
                self.schedule(delay, Event::ReadView { member: id, boot, view, from, bytes });
            }
            Output::CloseView(view) => {
                if let Some(member) = self.members.get_mut(&id) {
                    member.disk.close(view);
                }
            }
            Output::Applied(applied) => {
                self.trace.step(self.now, 3, id.0, applied.slot.0);
                self.trace.line(self.now, || format!("{id:?} applies {:?}", applied.slot));
                self.oracle.applied(id, &applied)?;
            }
            Output::Installed { slot, index } => {
                self.trace.line(self.now, || format!("{id:?} installs a snapshot at {slot:?}, {index:?}"));
            }
            Output::Trimmed { slot, index } => {
                self.trace.line(self.now, || format!("{id:?} trims to {slot:?}, {index:?}"));
            }
            Output::CallReply { request, outcome } => {
                let outcome = match outcome {
                    Ok(Reply::Appended { first, last, .. }) => Outcome::Appended(first, last),
                    Ok(_) => Outcome::Unknown,
                    Err(Refusal::OutcomeUnknown) => Outcome::Unknown,
                    Err(refusal) => Outcome::Refused(refusal),
                };
                self.answer(id, request, &outcome)?;
            }
            Output::ReadReady { request, outcome } => {
                let outcome = outcome.map_or_else(Outcome::Refused, Outcome::Read);
                self.answer(id, request, &outcome)?;
            }
            Output::AdminReply { request, outcome } => {
                self.trace.line(self.now, || format!("{id:?} answers {request:?}: {outcome:?}"));
            }
            Output::LeaderChanged { leader } => {
                self.trace.line(self.now, || format!("{id:?} follows {leader:?}"));
            }
            Output::Notice(notice) => self.trace.line(self.now, || format!("{id:?}: {notice:?}")),
        }
        Ok(())
    }

    fn start_sync(&mut self, id: MemberId) {
        let latency = self.random.between(Duration::from_micros(60), Duration::from_micros(2_500));
        let Some(member) = self.members.get_mut(&id) else { return };
        if !member.disk.syncing.is_empty() || member.disk.pending.is_empty() {
            return;
        }
        member.disk.syncing = std::mem::take(&mut member.disk.pending).into();
        let (boot, latency) = (member.boot, latency + member.sync_floor);
        self.schedule(latency, Event::Synced(id, boot));
    }

    fn synced(&mut self, id: MemberId, boot: u64) -> Result<(), Violation> {
        let Some(member) = self.members.get_mut(&id).filter(|m| m.boot == boot) else { return Ok(()) };
        let batches = std::mem::take(&mut member.disk.syncing);
        let Some(completed) = member.disk.commit_all(batches) else { return Ok(()) };
        for row in std::mem::take(&mut member.disk.fresh) {
            self.chosen.voted(id, &row);
        }
        let Some(member) = self.members.get(&id) else { return Ok(()) };
        self.promises.check(id, member.disk.durable().promised)?;
        self.input(id, Input::Persisted(completed))?;
        self.start_sync(id);
        Ok(())
    }

    fn read_view(
        &mut self,
        id: MemberId,
        boot: u64,
        view: ViewId,
        from: Slot,
        bytes: usize,
    ) -> Result<(), Violation> {
        let Some(member) = self.members.get(&id).filter(|m| m.boot == boot) else { return Ok(()) };
        match member.disk.read(view, from, bytes) {
            Some((rows, end)) => self.input(id, Input::ViewRows { view, rows, end }),
            None => Ok(()),
        }
    }
}
