//! A handful of members on a bench: every message and every write waits until a test lets it through.

#[path = "planted.rs"]
mod planted;

use super::show;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::time::Duration;
use synod_paxos::message::{Counters, ViewId};
use synod_paxos::{
    AdminCommand, Applied, Ballot, ClusterId, DurableState, Genesis, Incarnation, Incoming, Input, Instant,
    MemberId, Message, Node, Output, Row, Slot, Storage, Write, WriteBatch, WriteCounter, row,
};

/// The cluster of every test here.
pub(crate) const CLUSTER: ClusterId = ClusterId([9; 16]);

/// A disk without a delay of its own.
#[derive(Debug)]
pub(crate) struct TestDisk(pub(crate) DurableState);

impl Storage for TestDisk {
    type Error = Infallible;

    fn commit(
        &mut self,
        written: WriteCounter,
        writes: &mut dyn Iterator<Item = &Write>,
    ) -> Result<(), Infallible> {
        writes.for_each(|write| self.0.apply(write));
        self.0.written = written;
        Ok(())
    }
}

/// One member: its process, its disk, and what it is waiting for.
pub(crate) struct Seat {
    pub(crate) node: Node,
    pub(crate) disk: TestDisk,
    pub(crate) writes: VecDeque<WriteBatch>,
    views: BTreeMap<ViewId, BTreeMap<Slot, Row>>,
    pub(crate) applied: Vec<Applied>,
    pub(crate) other: Vec<Output>,
}

/// The bench.
pub(crate) struct Lab {
    pub(crate) now: Instant,
    pub(crate) seats: BTreeMap<MemberId, Seat>,
    /// Sent, not delivered.
    pub(crate) mail: VecDeque<Incoming>,
    /// What happened, a line each: what scripts compare.
    pub(crate) log: Vec<String>,
    /// At most so many rows come with one read of a view.
    pub(crate) chunk_rows: usize,
    /// Members without a process now.
    pub(crate) down: BTreeSet<MemberId>,
    starts: u64,
}

/// Member number `n`.
pub(crate) fn m(n: u64) -> MemberId {
    MemberId(n)
}

pub(crate) fn ballot(round: u64, member: u64) -> Ballot {
    Ballot { round, member: m(member) }
}

pub(crate) fn genesis(members: u64) -> Genesis {
    Genesis::new(CLUSTER, (1..=members).map(|n| (m(n), format!("log-{n}"))).collect())
}

/// A row as an acceptor stored it.
pub(crate) fn accepted(slot: u64, ballot: Ballot, value: &synod_paxos::value::Value) -> Row {
    let value = value.encode();
    let checksum = row::checksum(CLUSTER, Slot(slot), ballot, &value);
    Row { slot: Slot(slot), ballot, chosen: false, value, checksum }
}

impl Lab {
    /// `members` founders whose disks hold what `prepare` puts there; each has had a life, and has finished its
    /// handshake with the others.
    pub(crate) fn new(members: u64, prepare: impl Fn(MemberId, &mut DurableState)) -> Lab {
        let mut lab = Lab::empty();
        for n in 1..=members {
            let mut disk = DurableState::empty(m(n));
            disk.genesis = Some(genesis(members));
            disk.genesis_confirmed = true;
            prepare(m(n), &mut disk);
            lab.place(disk);
        }
        for a in 1..=members {
            for b in (1..=members).filter(|b| *b != a) {
                lab.input(a, Input::PeerConnected(m(b)));
            }
        }
        lab.settle();
        lab.log.clear();
        lab
    }

    /// A bench without members.
    pub(crate) fn empty() -> Lab {
        planted::plant();
        Lab {
            now: Instant(0),
            seats: BTreeMap::new(),
            mail: VecDeque::new(),
            log: Vec::new(),
            chunk_rows: usize::MAX,
            down: BTreeSet::new(),
            starts: 0,
        }
    }

    /// Starts a member on a disk that has had its boot.
    pub(crate) fn place(&mut self, disk: DurableState) {
        self.starts += 1;
        let member = disk.member;
        let node = Node::new(disk.clone(), self.now, self.starts).expect("a prepared disk is readable");
        let seat = Seat {
            node,
            disk: TestDisk(disk),
            writes: VecDeque::new(),
            views: BTreeMap::new(),
            applied: Vec::new(),
            other: Vec::new(),
        };
        self.seats.insert(member, seat);
    }

    /// Ends a member's process: writes that are not durable are lost with it, what it sent is under way.
    pub(crate) fn crash(&mut self, n: u64) {
        self.seat(n).writes.clear();
        self.down.insert(m(n));
        for other in self.others(n) {
            self.input(other, Input::PeerDisconnected(m(n)));
        }
    }

    /// Starts a member again on what its disk holds, and connects it to everyone.
    pub(crate) fn restart(&mut self, n: u64) {
        let mut disk = self.seat(n).disk.0.clone();
        disk.boot();
        self.place(disk);
        self.down.remove(&m(n));
        self.take(n);
        self.connect(n);
    }

    /// Connects a member to everyone who runs.
    pub(crate) fn connect(&mut self, n: u64) {
        for other in self.others(n) {
            self.input(n, Input::PeerConnected(m(other)));
            self.input(other, Input::PeerConnected(m(n)));
        }
    }

    /// Members with a process, without `n`.
    fn others(&self, n: u64) -> Vec<u64> {
        self.running().into_iter().filter(|other| *other != n).collect()
    }

    /// Members with a process.
    pub(crate) fn running(&self) -> Vec<u64> {
        self.seats.keys().filter(|member| !self.down.contains(member)).map(|member| member.0).collect()
    }

    pub(crate) fn seat(&mut self, n: u64) -> &mut Seat {
        self.seats.get_mut(&m(n)).expect("the test seated it")
    }

    pub(crate) fn status(&mut self, n: u64) -> synod_paxos::Status {
        let now = self.now;
        self.seat(n).node.status(now)
    }

    /// Hands an input to a member and takes what comes out.
    pub(crate) fn input(&mut self, n: u64, input: Input) {
        let now = self.now;
        self.seat(n).node.handle(now, input);
        self.take(n);
    }

    pub(crate) fn take(&mut self, n: u64) {
        let now = self.now;
        let mut answers = Vec::new();
        let chunk_rows = self.chunk_rows;
        while let Some(output) = self.seat(n).node.poll_output(now) {
            self.log.extend(show::output(n, &output).map(|line| format!("  {line}")));
            let seat = self.seat(n);
            match output {
                Output::Send(outgoing) => self.mail.push_back(outgoing.to_incoming()),
                Output::Persist(batch) => seat.writes.push_back(batch),
                Output::OpenView { view } => {
                    let rows = seat.disk.0.rows.clone();
                    seat.views.insert(view, rows);
                }
                Output::ReadView { view, from, bytes: _ } => {
                    let mut left = seat.views[&view].range(from..).map(|(_, r)| r.clone());
                    let rows = left.by_ref().take(chunk_rows).collect();
                    answers.push(Input::ViewRows { view, rows, end: left.next().is_none() });
                }
                Output::CloseView(view) => drop(seat.views.remove(&view)),
                Output::ReadSnapshot { slot } => {
                    let state = seat.disk.0.snapshots.get(&slot).cloned();
                    answers.push(Input::SnapshotRead { slot, state });
                }
                Output::Applied(applied) => seat.applied.push(applied),
                other => seat.other.push(other),
            }
            self.seat(n).node.check_invariants();
        }
        for answer in answers {
            self.input(n, answer);
        }
    }

    /// Makes the writes of a member durable, and tells it.
    pub(crate) fn sync(&mut self, n: u64) {
        let batches: Vec<WriteBatch> = self.seat(n).writes.drain(..).collect();
        let disk = &mut self.seat(n).disk;
        let Ok(completed) = synod_paxos::storage::commit(batches, disk);
        if let Some(completed) = completed {
            self.log.push(format!("{n} has it on disk"));
            self.input(n, Input::Persisted(completed));
        }
    }

    /// Delivers the oldest message that `which` picks; false: there is none.
    pub(crate) fn deliver(&mut self, which: impl Fn(&Incoming) -> bool) -> bool {
        let Some(at) = self.mail.iter().position(which) else { return false };
        let incoming = self.mail.remove(at).expect("it was just found");
        let to = incoming.to.0;
        if self.running().contains(&to) {
            self.log.push(show::incoming(&incoming));
            self.input(to, Input::Message(incoming));
        }
        true
    }

    /// Lets everything through until nothing waits.
    pub(crate) fn settle(&mut self) {
        loop {
            self.running().into_iter().for_each(|n| self.sync(n));
            if !self.deliver(|_| true) && self.seats.values().all(|s| s.writes.is_empty()) {
                break;
            }
        }
    }

    /// Lets everything through but what is for member `n`, which is lost.
    pub(crate) fn settle_without(&mut self, n: u64) {
        loop {
            self.running().into_iter().for_each(|n| self.sync(n));
            self.mail.retain(|incoming| incoming.to != m(n));
            if !self.deliver(|_| true) && self.seats.values().all(|s| s.writes.is_empty()) {
                break;
            }
        }
    }

    /// Lets time pass, with a tick wherever one is due.
    pub(crate) fn pass(&mut self, span: Duration) {
        self.now = self.now.after(span);
        for n in self.running() {
            if self.seat(n).node.next_deadline().is_some_and(|due| due <= self.now) {
                self.input(n, Input::Tick);
            }
        }
    }

    /// Makes member `n` campaign: only its clock moves, so nobody else does.
    pub(crate) fn campaign(&mut self, n: u64) {
        self.now = self.now.after(Duration::from_secs(3));
        self.input(n, Input::Tick);
    }

    /// Messages in the mail that `which` picks.
    pub(crate) fn mail_of(&self, which: impl Fn(&Message) -> bool) -> usize {
        self.mail.iter().filter(|incoming| which(&incoming.message)).count()
    }

    pub(crate) fn admin(&mut self, n: u64, command: AdminCommand) {
        self.input(n, Input::Admin { request: synod_paxos::RequestId(900 + n), command });
    }
}

/// Hands a message to member `to` as if `from` had sent it in its first life.
pub(crate) fn tell(lab: &mut Lab, from: u64, to: u64, message: Message) {
    let counters = Counters { incarnation: Incarnation(1), ..Counters::default() };
    lab.input(to, Input::Message(Incoming { cluster: CLUSTER, from: m(from), counters, to: m(to), message }));
}
