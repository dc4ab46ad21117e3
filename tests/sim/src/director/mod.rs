//! Drives a world by chance: the order of what happens, the faults, the clients, the operator; all from one seed.
//!
//! Everything that it does to the world it can write down as typed steps ([`crate::action`]).

mod disks;
mod links;
pub mod network;
mod operator;
mod recorder;
pub mod swarm;
mod trouble;
mod workload;

use crate::action::{Action, Command, Step, Wanted};
use crate::faults::Fault;
use crate::member::Clock;
use crate::oracle::Violation;
use crate::random::{Random, nanos};
use crate::setup::Setup;
use crate::world::{Effect, World};
use network::{Link, Network};
use operator::Operator;
use recorder::Recorder;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;
use swarm::{Swarm, Trouble};
use synod_paxos::{Incoming, MemberId, RequestId};
use workload::Identities;

/// Something that will happen.
#[derive(Debug)]
pub(crate) enum Event {
    Deliver(Box<Incoming>, u64),
    Tick(MemberId, u64),
    Synced(MemberId, u64),
    Read(MemberId, u64),
    Connection {
        at: MemberId,
        peer: MemberId,
        stands: bool,
    },
    Client(usize),
    GiveUp {
        client: usize,
        request: RequestId,
    },
    Restart(MemberId),
    Crash(MemberId, u64, bool),
    Trouble,
    Mend(Vec<Link>),
    Clear,
    DiskInOrder(MemberId),
    Operate,
    /// Trouble for that member, if one is named.
    Strike(MemberId, Option<Trouble>),
    /// Streams between these flow again.
    Release(Vec<Link>),
    /// These links go, or come, and so on so many times.
    Flap(Vec<Link>, u32),
    /// A person looks at a member that stopped by itself, and starts it again.
    Reopen(MemberId),
}

#[derive(Debug)]
struct Scheduled {
    at: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    /// The earliest is the greatest: it leaves the heap first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// What is wrong with a member's machine.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Condition {
    /// A sync takes at least so long.
    pub(crate) sync_floor: Duration,
    /// No sync ends before then.
    pub(crate) stalled_until: u64,
    /// Its process gets no time before then.
    pub(crate) paused_until: u64,
    /// Its disk has no room for appends.
    pub(crate) full: bool,
    /// Its next sync fails.
    pub(crate) fails: bool,
}

/// Chance, and the world it drives.
#[derive(Debug)]
pub struct Director {
    /// The members and all that is judged.
    pub world: World,
    /// What the world began with.
    pub setup: Setup,
    /// The kind of run.
    pub swarm: Swarm,
    pub(crate) random: Random,
    pub(crate) network: Network,
    pub(crate) operator: Operator,
    /// No new faults and operations: everything is to come to rest.
    pub(crate) settling: bool,
    pub(crate) conditions: BTreeMap<MemberId, Condition>,
    /// Operations that each client has begun.
    begun: Vec<u64>,
    identities: Vec<Identities>,
    /// Of clients that stay with a member: with which now.
    homes: Vec<Option<MemberId>>,
    names: u64,
    requests: u64,
    heap: BinaryHeap<Scheduled>,
    scheduled: u64,
    /// What happened so far, counted.
    pub(crate) events: u64,
    effects: Vec<Effect>,
    recorder: Option<Recorder>,
    /// The only member whose files rot.
    rotten: Option<MemberId>,
}

/// One seed of so many runs the real storage engine.
pub const FILES: u64 = 20;

/// Where entries are filled up, a kilobyte stands for a megabyte.
const DIVISOR: usize = 1_024;

impl Director {
    /// Founders with empty volumes, started and told to form a cluster.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn new(
        seed: u64,
        swarm: Swarm,
        mut random: Random,
        keep_trace: bool,
        record: bool,
    ) -> Result<Director, Violation> {
        let mut founders: Vec<u64> = Vec::new();
        while founders.len() < swarm.founders {
            let id = 1 + random.below(99);
            if !founders.contains(&id) {
                founders.push(id);
            }
        }
        let setup = Setup {
            seed,
            founders,
            alpha: swarm.alpha,
            settings: Wanted {
                heartbeat: nanos(swarm.heartbeat),
                timeout: nanos(swarm.timeout),
                leases: swarm.leases,
                retention: swarm.retention,
                chain_interval: swarm.chain_interval,
                session_rows: swarm.session_rows,
                session_idle: nanos(swarm.session_idle),
                format_level: swarm.format_level,
            },
            clients: swarm.clients + swarm.watchers,
            padding: swarm.padding,
            divisor: if swarm.padding > 0 { DIVISOR } else { 1 },
            files: seed.is_multiple_of(FILES),
        };
        let mut director = Director {
            world: World::new(&setup, keep_trace),
            begun: vec![0; setup.clients],
            identities: vec![Identities::None; setup.clients],
            homes: vec![None; setup.clients],
            setup,
            network: Network::new(swarm.rate),
            swarm,
            random,
            operator: Operator::default(),
            settling: false,
            conditions: BTreeMap::new(),
            names: 100,
            requests: 0,
            heap: BinaryHeap::new(),
            scheduled: 0,
            events: 0,
            effects: Vec::new(),
            recorder: record.then(Recorder::default),
            rotten: None,
        };
        director.draw_identities();
        for id in director.setup.founders.clone() {
            director.add(MemberId(id))?;
            director.start(MemberId(id))?;
            director.admin(MemberId(id), Command::Initialize)?;
        }
        for client in 0..director.setup.clients {
            director.schedule(Duration::from_millis(5), Event::Client(client));
        }
        Ok(director)
    }

    /// What it did, if that was written down.
    pub fn steps(&mut self) -> Vec<Step> {
        self.recorder.take().map(Recorder::into_steps).unwrap_or_default()
    }

    pub(crate) fn record(&mut self, action: impl FnOnce() -> Action) {
        if let Some(recorder) = &mut self.recorder {
            recorder.note(self.world.now, action());
        }
    }

    pub(crate) fn note(&mut self, member: MemberId, text: impl FnOnce() -> String) {
        if self.recorder.is_some() || self.world.trace.is_kept() {
            let text = text();
            self.world.trace.line(self.world.now, || format!("-- {text}"));
            self.record(|| Action::Note { member: member.0, text });
        }
    }

    /// A member id that was never used.
    pub(crate) fn mint(&mut self) -> Result<MemberId, Violation> {
        // Above and below those of the founders by turns: ballots are ordered by them, too.
        self.names += 1;
        let id = MemberId(if self.random.chance(500) { self.names } else { 10_000 - self.names });
        self.add(id)?;
        Ok(id)
    }

    fn add(&mut self, id: MemberId) -> Result<(), Violation> {
        self.record(|| Action::Add { member: id.0 });
        self.world.add(id).map(drop)
    }

    pub(crate) fn new_request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    pub(crate) fn schedule(&mut self, after: Duration, event: Event) {
        let at = self.world.now + u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
        self.schedule_at(at, event);
    }

    fn schedule_at(&mut self, at: u64, event: Event) {
        self.scheduled += 1;
        self.heap.push(Scheduled { at, number: self.scheduled, event });
    }

    pub(crate) fn condition(&mut self, id: MemberId) -> &mut Condition {
        self.conditions.entry(id).or_default()
    }

    /// Lets the next event happen; false: there is none.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn step(&mut self) -> Result<bool, Violation> {
        let Some(Scheduled { at, event, .. }) = self.heap.pop() else { return Ok(false) };
        self.world.now = at;
        self.events += 1;
        if let Some(resumed) = self.paused(&event) {
            self.schedule_at(resumed, event);
            return Ok(true);
        }
        self.happen(event)?;
        self.absorb();
        Ok(true)
    }

    /// Lets simulated time pass.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn pass(&mut self, span: Duration) -> Result<(), Violation> {
        let until = self.world.now + u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        while self.world.now < until && self.step()? {}
        Ok(())
    }

    /// When a paused process will see this event; none: it is not one that a pause holds up.
    fn paused(&self, event: &Event) -> Option<u64> {
        let member = match event {
            Event::Deliver(incoming, _) => incoming.to,
            Event::Tick(member, _) | Event::Synced(member, _) | Event::Read(member, _) => *member,
            Event::Connection { at, .. } => *at,
            _ => return None,
        };
        let until = self.conditions.get(&member)?.paused_until;
        (until > self.world.now).then_some(until)
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Deliver(incoming, number) => self.deliver(*incoming, number),
            Event::Tick(member, wanted) => {
                if self.world.members.get(&member).is_some_and(|m| m.tick_at == Some(wanted)) {
                    self.record(|| Action::Tick { member: member.0 });
                    self.world.tick(member)?;
                }
                Ok(())
            }
            Event::Synced(member, boot) if self.lives(member, boot) => self.synced(member),
            Event::Read(member, boot) if self.lives(member, boot) => {
                let rows = self.swarm.rows;
                self.record(|| Action::Read { member: member.0, rows });
                self.world.read_rows(member, rows).map(drop)
            }
            Event::Crash(member, boot, recovering) if self.lives(member, boot) => {
                if recovering {
                    self.world.met(Fault::CrashInRecovery);
                }
                self.crash_for_a_while(member)
            }
            Event::Synced(..) | Event::Read(..) | Event::Crash(..) => Ok(()),
            Event::Connection { at, peer, stands } => self.connection(at, peer, stands),
            Event::Client(client) => self.client_turn(client),
            Event::GiveUp { client, request } => {
                self.record(|| Action::Cancel { client, request: request.0 });
                self.world.cancel(client, request).map(drop)
            }
            Event::Restart(member) => self.restart(member),
            Event::Trouble => self.trouble(),
            Event::Mend(links) => {
                self.mend(&links);
                Ok(())
            }
            Event::Clear => {
                self.network.weather = network::Weather::default();
                self.note(MemberId::NONE, || "the weather clears".into());
                Ok(())
            }
            Event::DiskInOrder(member) => {
                let paused_until = self.condition(member).paused_until;
                *self.condition(member) = Condition { paused_until, ..Condition::default() };
                Ok(())
            }
            Event::Operate => self.operate_and_go_on(),
            Event::Strike(victim, trouble) => self.strike_at(victim, trouble),
            Event::Release(links) => {
                self.release(|link| links.contains(&link));
                Ok(())
            }
            Event::Flap(links, left) => {
                self.flap(links, left);
                Ok(())
            }
            Event::Reopen(member) => self.reopen(member),
        }
    }

    fn lives(&self, member: MemberId, boot: u64) -> bool {
        self.world.members.get(&member).is_some_and(|m| m.boot == boot && m.node.is_some())
    }

    /// Schedules what the last step made possible.
    fn absorb(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        std::mem::swap(&mut effects, &mut self.world.effects);
        for effect in effects.drain(..) {
            self.absorb_one(effect);
        }
        self.effects = effects;
    }

    fn absorb_one(&mut self, effect: Effect) {
        match effect {
            Effect::Sent(incoming) => self.send(incoming),
            Effect::Syncing(member) => {
                let latency = self.random.between(Duration::from_micros(60), self.swarm.sync);
                let condition = self.conditions.get(&member).copied().unwrap_or_default();
                let at = self.world.now
                    + u64::try_from((latency + condition.sync_floor).as_nanos()).unwrap_or(u64::MAX);
                let boot = self.world.members.get(&member).map_or(0, |m| m.boot);
                self.schedule_at(at.max(condition.stalled_until), Event::Synced(member, boot));
            }
            Effect::Reading(member) => {
                let delay = self.random.between(Duration::from_micros(20), Duration::from_micros(900));
                let boot = self.world.members.get(&member).map_or(0, |m| m.boot);
                self.schedule(delay, Event::Read(member, boot));
            }
            Effect::Tick(member, at) => self.schedule_at(at, Event::Tick(member, at)),
            Effect::Died(member) => {
                for peer in self.world.running() {
                    let delay = self.random.between(Duration::from_micros(100), self.swarm.timeout / 4);
                    self.schedule(delay, Event::Connection { at: peer, peer: member, stands: false });
                }
            }
            Effect::Answered(client) => self.think(client),
            Effect::Moment(member) => self.moment(member),
            Effect::Halted(member) => {
                let pause = self.random.between(self.swarm.timeout, self.swarm.timeout * 4);
                self.schedule(pause, Event::Reopen(member));
            }
        }
    }

    fn send(&mut self, incoming: Box<Incoming>) {
        let link = (incoming.from, incoming.to);
        let mut delays = [None, None];
        if self.world.is_running(incoming.to) {
            delays = self.network.route(link, &self.swarm, &mut self.random, &mut self.world.coverage);
            let queued = self.network.queue(self.world.now, &incoming, &mut self.world.coverage);
            delays = delays.map(|delay| delay.zip(queued).map(|(delay, queued)| delay + queued));
        }
        let mut number = 0;
        if let Some(recorder) = &mut self.recorder {
            number = recorder.sent(self.world.now, &incoming, delays.iter().flatten().count());
        }
        if let Some(delay) = delays[1] {
            self.schedule(delay, Event::Deliver(incoming.clone(), number));
        }
        if let Some(delay) = delays[0] {
            match self.network.keep((incoming, number)) {
                Some((incoming, number)) => self.schedule(delay, Event::Deliver(incoming, number)),
                None => self.world.met(Fault::Held),
            }
        }
    }

    fn deliver(&mut self, incoming: Incoming, number: u64) -> Result<(), Violation> {
        let arrives = self.network.is_open(incoming.from, incoming.to) && self.world.is_running(incoming.to);
        if let Some(recorder) = &mut self.recorder {
            recorder.ended(self.world.now, &incoming, number, arrives);
        }
        if arrives { self.world.deliver(incoming) } else { Ok(()) }
    }

    fn connection(&mut self, at: MemberId, peer: MemberId, stands: bool) -> Result<(), Violation> {
        let possible = !stands || (self.world.is_running(peer) && self.network.is_open(at, peer));
        if possible && self.world.is_running(at) {
            self.record(|| match stands {
                true => Action::Connect { member: at.0, peer: peer.0 },
                false => Action::Disconnect { member: at.0, peer: peer.0 },
            });
            self.world.connection(at, peer, stands)?;
            if !stands && self.network.is_open(at, peer) && self.network.is_open(peer, at) {
                // Whoever broke it is gone: the transport connects again by itself.
                let delay = self.random.between(Duration::from_millis(1), Duration::from_millis(50));
                self.schedule(delay, Event::Connection { at, peer, stands: true });
            }
        }
        Ok(())
    }

    /// Starts the process on a member's volume.
    pub(crate) fn start(&mut self, id: MemberId) -> Result<(), Violation> {
        let (seed, offset) = (self.random.bits(), self.random.below(1 << 40));
        // Two clocks differ by less than the drift that leases are counted with: 2 in 100.
        let drift = if self.swarm.drift { self.random.below(19_001) } else { 9_500 };
        let drift = i64::try_from(drift).unwrap_or(0) - 9_500;
        self.record(|| Action::Start { member: id.0, seed, offset, drift });
        if self.world.start(id, seed, Clock { offset, drift })? {
            self.connect(id);
        }
        Ok(())
    }

    /// Connections between a member and all that run come to stand.
    pub(crate) fn connect(&mut self, id: MemberId) {
        for peer in self.world.running() {
            if peer != id {
                let delay = self.random.between(Duration::from_millis(1), Duration::from_millis(30));
                self.schedule(delay, Event::Connection { at: id, peer, stands: true });
                self.schedule(delay, Event::Connection { at: peer, peer: id, stands: true });
            }
        }
    }

    pub(crate) fn admin(&mut self, id: MemberId, command: Command) -> Result<(), Violation> {
        let request = self.new_request();
        self.record(|| Action::Admin { member: id.0, request: request.0, command: command.clone() });
        self.world.admin(id, request, &command)?;
        self.absorb();
        Ok(())
    }
}
