//! A handful of members on a bench: every message and every write waits until a test lets it through.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::time::Duration;
use synod_paxos::message::ViewId;
use synod_paxos::{
    AdminCommand, Applied, Ballot, ClusterId, DurableState, Genesis, Incoming, Input, Instant, MemberId,
    Message, Node, Output, Row, Slot, Storage, Write, WriteBatch, WriteCounter, row,
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
        let mut lab = Lab { now: Instant(0), seats: BTreeMap::new(), mail: VecDeque::new() };
        for n in 1..=members {
            let mut disk = DurableState::empty(m(n));
            disk.genesis = Some(genesis(members));
            disk.genesis_confirmed = true;
            prepare(m(n), &mut disk);
            let node = Node::new(disk.clone(), lab.now, n).expect("a prepared disk is readable");
            let seat = Seat {
                node,
                disk: TestDisk(disk),
                writes: VecDeque::new(),
                views: BTreeMap::new(),
                applied: Vec::new(),
                other: Vec::new(),
            };
            lab.seats.insert(m(n), seat);
        }
        for a in 1..=members {
            for b in (1..=members).filter(|b| *b != a) {
                lab.input(a, Input::PeerConnected(m(b)));
            }
        }
        lab.settle();
        lab
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
        while let Some(output) = self.seat(n).node.poll_output(now) {
            let seat = self.seat(n);
            match output {
                Output::Send(outgoing) => self.mail.push_back(outgoing.to_incoming()),
                Output::Persist(batch) => seat.writes.push_back(batch),
                Output::OpenView { view } => {
                    let rows = seat.disk.0.rows.clone();
                    seat.views.insert(view, rows);
                }
                Output::ReadView { view, from, bytes: _ } => {
                    let rows = seat.views[&view].range(from..).map(|(_, r)| r.clone()).collect();
                    answers.push(Input::ViewRows { view, rows, end: true });
                }
                Output::CloseView(view) => drop(seat.views.remove(&view)),
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
            self.input(n, Input::Persisted(completed));
        }
    }

    /// Delivers the oldest message that `which` picks; false: there is none.
    pub(crate) fn deliver(&mut self, which: impl Fn(&Incoming) -> bool) -> bool {
        let Some(at) = self.mail.iter().position(which) else { return false };
        let incoming = self.mail.remove(at).expect("it was just found");
        let to = incoming.to.0;
        if self.seats.contains_key(&incoming.to) {
            self.input(to, Input::Message(incoming));
        }
        true
    }

    /// Lets everything through until nothing waits.
    pub(crate) fn settle(&mut self) {
        loop {
            let members: Vec<u64> = self.seats.keys().map(|m| m.0).collect();
            members.iter().for_each(|n| self.sync(*n));
            if !self.deliver(|_| true) && self.seats.values().all(|s| s.writes.is_empty()) {
                break;
            }
        }
    }

    /// Lets everything through but what is for member `n`, which is lost.
    pub(crate) fn settle_without(&mut self, n: u64) {
        loop {
            let members: Vec<u64> = self.seats.keys().map(|m| m.0).collect();
            members.iter().for_each(|n| self.sync(*n));
            self.mail.retain(|incoming| incoming.to != m(n));
            if !self.deliver(|_| true) && self.seats.values().all(|s| s.writes.is_empty()) {
                break;
            }
        }
    }

    /// Lets time pass, with a tick wherever one is due.
    pub(crate) fn pass(&mut self, span: Duration) {
        self.now = self.now.after(span);
        for n in self.seats.keys().map(|m| m.0).collect::<Vec<_>>() {
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
