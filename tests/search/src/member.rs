//! One member, built anew from what happened to it.

use crate::mail::Mail;
use crate::print::{Depth, Print};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use synod_paxos::configuration::Change;
use synod_paxos::message::{Counters, ViewId};
use synod_paxos::status::Role;
use synod_paxos::value::{Append, Operation};
use synod_paxos::{
    AdminCommand, Ballot, ClusterId, DurableState, Incoming, Input, Instant, MemberId, Message, Node, Output,
    RequestId, Row, Slot, Storage, Write, WriteBatch, WriteCounter,
};

/// The cluster of every search.
pub const CLUSTER: ClusterId = ClusterId([5; 16]);
/// Longer than any election timeout.
const LONG: Duration = Duration::from_secs(3);

/// Something that happens to one member.
#[derive(Clone, Debug)]
pub enum Event {
    /// A connection stands.
    Connected(MemberId),
    /// A message arrives.
    Message(Mail),
    /// All it has written becomes durable.
    Persist,
    /// Its election timeout passes; everyone it canvasses is willing.
    Timeout,
    /// A little time passes, with a tick: only on the way to where a search begins.
    Tick(Duration),
    /// The process ends, what was not durable is lost, and another one starts on the disk.
    Reboot,
    /// A client appends as many bytes: values tell themselves apart by their length.
    Append(usize),
    /// An administrator asks for a vote for a learner.
    Promote(MemberId),
    /// An administrator adds a learner.
    AddLearner(MemberId),
}

impl Event {
    /// Tells it apart from all other events of a search; none for what happens only on the way to its start.
    pub(crate) fn code(&self) -> Option<u32> {
        let small = |n: usize| u32::try_from(n % 8).unwrap_or_default();
        match self {
            Event::Persist => Some(0),
            Event::Timeout => Some(1),
            Event::Reboot => Some(2),
            Event::Connected(member) => Some(8 + small(member.0 as usize)),
            Event::Append(bytes) => Some(16 + small(*bytes)),
            Event::Promote(member) => Some(24 + small(member.0 as usize)),
            Event::Message(mail) => Some(32 + mail.number()),
            Event::Tick(_) | Event::AddLearner(_) => None,
        }
    }
}

/// What happened to a member, newest first; shared between the states that have it in common.
#[derive(Debug)]
pub struct History {
    event: Event,
    before: Option<Arc<History>>,
}

impl History {
    /// `event` behind `before`.
    pub fn with(before: Option<Arc<History>>, event: Event) -> Option<Arc<History>> {
        Some(Arc::new(History { event, before }))
    }
}

/// What the properties are judged by: what stood on the disk at any time, and what was applied at any time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Every vote that ever was durable here.
    pub votes: BTreeMap<(Slot, Ballot), Bytes>,
    /// How far the log is applied here, and the chain there.
    pub applied: Option<(Slot, u128)>,
    /// What its disk has promised.
    pub promised: Ballot,
    /// Under which ballot it is a candidate or leader.
    pub proposes: Option<Ballot>,
    /// It leads and serves.
    pub serves: bool,
    /// It has writes under way.
    pub writes: bool,
    /// A property of this member alone that does not hold, or an assertion of the core that failed.
    pub broken: Option<String>,
}

impl Default for Facts {
    fn default() -> Facts {
        Facts {
            votes: BTreeMap::new(),
            applied: None,
            promised: Ballot::ZERO,
            proposes: None,
            serves: false,
            writes: false,
            broken: None,
        }
    }
}

impl Facts {
    /// Tells apart what was voted for, up to a slot, and applied here.
    pub(crate) fn print(&self, through: Slot) -> u128 {
        let mut print = Print::default();
        for ((slot, ballot), value) in self.votes.iter().filter(|((slot, _), _)| *slot <= through) {
            print.masked(&(slot, ballot));
            print.bytes(value);
        }
        print.masked(&(&self.applied, &self.broken));
        print.finish()
    }
}

#[derive(Debug)]
struct Disk {
    state: DurableState,
    facts: Facts,
}

impl Storage for Disk {
    type Error = Infallible;

    fn commit(
        &mut self,
        written: WriteCounter,
        writes: &mut dyn Iterator<Item = &Write>,
    ) -> Result<(), Infallible> {
        for write in writes {
            let promised = self.state.promised;
            match write {
                Write::Promised(ballot) if *ballot < promised => {
                    self.facts.broken = Some(format!("promised {promised:?}, then {ballot:?}"));
                }
                Write::Row(row) if !row.chosen && row.ballot < promised => {
                    self.facts.broken = Some(format!("promised {promised:?}, then accepted {row:?}"));
                }
                Write::Row(row) => {
                    let vote = self.facts.votes.entry((row.slot, row.ballot)).or_insert(row.value.clone());
                    if *vote != row.value {
                        self.facts.broken =
                            Some(format!("two values in {:?} under {:?}", row.slot, row.ballot));
                    }
                }
                _ => {}
            }
            self.state.apply(write);
        }
        self.state.written = written;
        Ok(())
    }
}

/// A core, its disk, and what it waits for.
#[derive(Debug)]
pub struct Member {
    node: Node,
    disk: Disk,
    writes: Vec<WriteBatch>,
    views: BTreeMap<ViewId, BTreeMap<Slot, Row>>,
    now: Instant,
    boots: u64,
    requests: u64,
    /// Sent since it was last taken.
    pub sent: Vec<Incoming>,
}

impl Member {
    /// Builds a member from its first disk and all that happened since; `sent` is what the last event sent.
    ///
    /// # Panics
    /// Where an assertion of the core fails.
    pub fn build(first: &DurableState, history: Option<&Arc<History>>) -> Member {
        let node = Node::new(first.clone(), Instant(0), first.member.0).expect("the first disk is readable");
        let disk = Disk { state: first.clone(), facts: Facts::default() };
        let mut member = Member {
            node,
            disk,
            writes: Vec::new(),
            views: BTreeMap::new(),
            now: Instant(0),
            boots: 0,
            requests: 0,
            sent: Vec::new(),
        };
        let mut events = Vec::new();
        let mut next = history;
        while let Some(link) = next {
            events.push(&link.event);
            next = link.before.as_ref();
        }
        for event in events.into_iter().rev() {
            member.sent.clear();
            member.happen(event);
        }
        member
    }

    fn happen(&mut self, event: &Event) {
        match event {
            Event::Connected(peer) => self.input(Input::PeerConnected(*peer)),
            Event::Message(mail) => {
                let mut incoming = mail.incoming().clone();
                if !matches!(incoming.message, Message::Hello { .. } | Message::Welcome { .. }) {
                    incoming.counters = self.known_counters(incoming.from);
                }
                self.input(Input::Message(incoming));
            }
            Event::Persist => {
                let batches = std::mem::take(&mut self.writes);
                let Ok(completed) = synod_paxos::storage::commit(batches, &mut self.disk);
                if let Some(completed) = completed {
                    self.input(Input::Persisted(completed));
                }
            }
            Event::Timeout => self.time_out(),
            Event::Tick(span) => {
                self.now = self.now.after(*span);
                self.input(Input::Tick);
            }
            Event::Reboot => self.reboot(),
            Event::Append(bytes) => {
                let request = self.next_request();
                let entries = vec![Bytes::from(vec![b'x'; *bytes])];
                self.input(Input::Call { request, operation: Operation::Append(Append::plain(entries)) });
            }
            Event::Promote(member) => self.change(Change::Promote { member: *member }),
            Event::AddLearner(member) => {
                self.change(Change::AddLearner { member: *member, name: "learner".into() });
            }
        }
        self.node.check_invariants();
    }

    fn next_request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    fn change(&mut self, change: Change) {
        let request = self.next_request();
        let version = self.node.system().map_or(0, |s| s.configurations.latest().version);
        let operation = [u8::try_from(version).unwrap_or(0); 16];
        let command = AdminCommand::Change { cluster: CLUSTER, expected_version: version, operation, change };
        self.input(Input::Admin { request, command });
    }

    fn reboot(&mut self) {
        self.writes.clear();
        self.views.clear();
        self.disk.state.boot();
        self.boots += 1;
        let seed = self.disk.state.member.0 + (self.boots << 32);
        match Node::new(self.disk.state.clone(), self.now, seed) {
            Ok(node) => self.node = node,
            Err(error) => self.disk.facts.broken = Some(format!("does not start again: {error}")),
        }
        self.take();
    }

    /// Everyone is willing, and nobody tells what it knows.
    fn time_out(&mut self) {
        self.now = self.now.after(LONG);
        self.input(Input::Tick);
        let me = self.disk.state.member;
        let canvass = |i: &Incoming| match i.message {
            Message::Canvass { id, .. } => Some((i.to, id)),
            _ => None,
        };
        let asked: Vec<(MemberId, u64)> = self.sent.iter().filter_map(canvass).collect();
        for (from, id) in asked {
            let counters = self.known_counters(from);
            let message =
                Message::CanvassReply { id, willing: true, promised: Ballot::ZERO, chosen_through: Slot(0) };
            self.input(Input::Message(Incoming { cluster: CLUSTER, from, counters, to: me, message }));
        }
    }

    /// The newest life of a peer that is known here: a reply of an earlier one would be dropped.
    fn known_counters(&self, peer: MemberId) -> Counters {
        let status = self.node.status(self.now);
        let known = status.peers.iter().find(|p| p.member == peer);
        known.map(|p| Counters { incarnation: p.incarnation, ..Counters::default() }).unwrap_or_default()
    }

    fn input(&mut self, input: Input) {
        self.node.handle(self.now, input);
        self.take();
    }

    fn take(&mut self) {
        let mut answers = Vec::new();
        while let Some(output) = self.node.poll_output(self.now) {
            match output {
                Output::Send(outgoing) => self.sent.push(outgoing.to_incoming()),
                Output::Persist(batch) => self.writes.push(batch),
                Output::OpenView { view } => drop(self.views.insert(view, self.disk.state.rows.clone())),
                Output::ReadView { view, from, bytes: _ } => {
                    let rows = self.views.get(&view).map(|rows| rows.range(from..).map(|(_, r)| r.clone()));
                    let rows = rows.map(Iterator::collect).unwrap_or_default();
                    answers.push(Input::ViewRows { view, rows, end: true });
                }
                Output::CloseView(view) => drop(self.views.remove(&view)),
                Output::ReadSnapshot { slot } => {
                    let state = self.disk.state.snapshots.get(&slot).cloned();
                    answers.push(Input::SnapshotRead { slot, state });
                }
                _ => {}
            }
        }
        if let Some(system) = self.node.system() {
            self.disk.facts.applied = Some((system.applied, system.chain));
        }
        answers.into_iter().for_each(|answer| self.input(answer));
    }

    /// What the properties need to know.
    pub fn facts(&self) -> Facts {
        let status = self.node.status(self.now);
        let proposes = matches!(status.role, Role::Candidate | Role::Leader);
        Facts {
            promised: self.disk.state.promised,
            proposes: proposes.then_some(status.promised),
            serves: status.role == Role::Leader,
            writes: !self.writes.is_empty(),
            ..self.disk.facts.clone()
        }
    }

    /// What tells this member apart: its core, its disk, its writes under way, what it ever voted for, and what it has
    /// applied.
    pub fn print(&self, depth: Depth) -> u128 {
        let mut print = Print::to(depth);
        print.masked(&self.node);
        print.masked(&self.disk.state);
        for row in self.disk.state.rows.values() {
            print.masked(row);
            print.bytes(&row.value);
        }
        for batch in &self.writes {
            print.masked(&batch);
            for write in batch.writes() {
                if let Write::Row(row) = write {
                    print.bytes(&row.value);
                }
            }
        }
        for ((slot, ballot), value) in &self.disk.facts.votes {
            print.masked(&(slot, ballot));
            print.bytes(value);
        }
        print.masked(&self.disk.facts.applied);
        print.finish()
    }
}
