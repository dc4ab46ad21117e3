//! Where searches begin.

use crate::known::Known;
use crate::member::{CLUSTER, Event, Member};
use crate::model::{Bounds, MEMBERS, Model, State, everyone, member, place};
use crate::properties::Verdict;
use std::sync::Arc;
use std::time::Duration;
use synod_paxos::{DurableState, Genesis, MemberId};

fn genesis(founders: Vec<MemberId>, alpha: u32) -> Genesis {
    let members = founders.into_iter().map(|m| (m, format!("m{}", m.0))).collect();
    let mut genesis = Genesis { alpha, ..Genesis::new(CLUSTER, members) };
    genesis.settings.leases = false;
    genesis
}

fn founder(genesis: &Genesis, id: MemberId) -> DurableState {
    let mut disk = DurableState::empty(id);
    disk.genesis = Some(genesis.clone());
    disk.genesis_confirmed = true;
    disk
}

impl Model {
    /// Three voters; members 1 and 2 compete, each with an append of its own at hand.
    pub fn leaders(bounds: Bounds) -> Model {
        let genesis = genesis(everyone().collect(), Genesis::DEFAULT_ALPHA);
        let disks = everyone().map(|m| founder(&genesis, m)).collect();
        let mut model = Model::at(bounds, genesis, disks);
        let mut state = model.start.clone();
        model.connect(&mut state);
        for id in [1, 2] {
            model.happen(&mut state, member(id), &Event::Append(id as usize));
        }
        model.begin(state);
        model
    }

    /// Two voters and a learner that has caught up, one leader; alpha is 2. Member 3 may be given a vote.
    pub fn growth(bounds: Bounds) -> Model {
        let genesis = genesis([1, 2].map(member).into(), 2);
        let disks = everyone().map(|m| founder(&genesis, m)).collect();
        let mut model = Model::at(bounds, genesis, disks);
        let mut state = model.start.clone();
        model.connect(&mut state);
        model.happen(&mut state, member(1), &Event::Timeout);
        model.settle(&mut state);
        model.happen(&mut state, member(1), &Event::AddLearner(member(3)));
        for _ in 0..6 {
            model.settle(&mut state);
            for id in everyone() {
                model.happen(&mut state, id, &Event::Tick(Duration::from_millis(150)));
            }
        }
        model.settle(&mut state);
        model.begin(state);
        model
    }

    fn at(bounds: Bounds, genesis: Genesis, disks: Vec<DurableState>) -> Model {
        let start = State {
            seats: std::array::from_fn(|_| Arc::default()),
            mail: Vec::new(),
            timeouts: [0; MEMBERS],
            crashes: bounds.crashes,
            promotions: u8::from(bounds.promote),
            verdict: Verdict::HOLDS,
        };
        Model { bounds, genesis, disks, start, known: Known::default() }
    }

    /// The search begins here; nothing of the way here is under way any more.
    fn begin(&mut self, mut state: State) {
        state.mail.clear();
        for (member, left) in &self.bounds.timeouts {
            state.timeouts[place(*member)] = *left;
        }
        for (seat, first) in state.seats.iter_mut().zip(&self.disks) {
            let member = Member::build(first, seat.history.as_ref());
            *seat = Arc::new(self.seat(&member, seat.history.clone(), true));
        }
        self.judge(&mut state);
        self.start = state;
    }

    fn connect(&self, state: &mut State) {
        for one in everyone() {
            for other in everyone().filter(|other| *other != one) {
                self.happen(state, one, &Event::Connected(other));
            }
        }
    }

    /// Everything is delivered and durable, heartbeats included: only on the way to the start.
    fn settle(&self, state: &mut State) {
        loop {
            let mut moved = false;
            for id in everyone() {
                if state.seats[place(id)].facts.writes {
                    self.happen(state, id, &Event::Persist);
                    moved = true;
                }
            }
            while !state.mail.is_empty() {
                let mail = state.mail.remove(0);
                self.happen(state, mail.incoming().to, &Event::Message(mail));
                moved = true;
            }
            if !moved {
                return;
            }
        }
    }
}
