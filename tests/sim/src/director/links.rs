//! What goes wrong with the links between members.

use super::network::{Link, Weather};
use super::swarm::Trouble;
use super::{Director, Event};
use crate::faults::Fault;
use std::collections::BTreeSet;
use std::time::Duration;
use synod_paxos::MemberId;
use synod_paxos::message::Lane;

impl Director {
    pub(super) fn cut_some(&mut self, trouble: Trouble, victim: MemberId, running: &[MemberId]) {
        let (fault, permille) = match trouble {
            Trouble::Isolate => (Fault::Isolation, 1_000),
            Trouble::OneWay => (Fault::OneWayCut, 600),
            Trouble::Split => (Fault::Partition, 1_000),
            Trouble::Hub => (Fault::HubTopology, 1_000),
            Trouble::Chain => (Fault::ChainTopology, 1_000),
            _ => (Fault::PartialPartition, 350),
        };
        self.world.met(fault);
        let side: BTreeSet<MemberId> = running.iter().copied().filter(|_| self.random.chance(500)).collect();
        let mut row: Vec<(u64, MemberId)> = running.iter().map(|m| (self.random.bits(), *m)).collect();
        row.sort_unstable();
        let place = |id: MemberId| row.iter().position(|(_, member)| *member == id).unwrap_or(0);
        let mut links: Vec<Link> = Vec::new();
        for &a in running {
            for &b in running.iter().filter(|b| **b != a) {
                let concerned = match trouble {
                    Trouble::Isolate => a == victim || b == victim,
                    Trouble::OneWay => a == victim,
                    Trouble::Split => side.contains(&a) != side.contains(&b),
                    Trouble::Hub => a != victim && b != victim,
                    Trouble::Chain => place(a).abs_diff(place(b)) > 1,
                    _ => true,
                };
                if concerned && self.random.chance(permille) {
                    links.push((a, b));
                }
            }
        }
        let breaks = self.random.chance(500);
        for &link in &links {
            self.network.cut(link);
            if breaks {
                let delay = self.random.between(Duration::from_micros(100), self.swarm.timeout);
                self.schedule(delay, Event::Connection { at: link.0, peer: link.1, stands: false });
            }
        }
        self.note(victim, || format!("{}: cut {}", fault.name(), named(&links)));
        let lasting = self.random.between(self.swarm.timeout / 5, self.swarm.lasting);
        self.schedule(lasting, Event::Mend(links));
    }

    pub(crate) fn mend(&mut self, links: &[Link]) {
        for &(a, b) in links {
            if self.network.mend((a, b)) {
                let delay = self.random.between(Duration::from_millis(1), Duration::from_millis(50));
                self.schedule(delay, Event::Connection { at: a, peer: b, stands: true });
                self.schedule(delay, Event::Connection { at: b, peer: a, stands: true });
            }
        }
        self.note(MemberId::NONE, || format!("{} links are mended", links.len()));
    }

    pub(super) fn bad_weather(&mut self) {
        let weather = Weather {
            drop: self.random.below(200),
            duplicate: self.random.below(200),
            delay: self.random.below(250),
        };
        self.network.weather = weather;
        self.note(MemberId::NONE, || {
            let Weather { drop, duplicate, delay } = weather;
            format!("weather: of 1000 messages {drop} lost, {duplicate} doubled, {delay} late")
        });
        let lasting = self.random.between(self.swarm.timeout / 2, self.swarm.lasting);
        self.schedule(lasting, Event::Clear);
    }

    /// Streams between a member and some others stand still: what is sent there comes later, all of it.
    pub(super) fn hold(&mut self, victim: MemberId, running: &[MemberId]) {
        let lanes: &[Lane] = match self.random.below(5) {
            0 => &[Lane::Control],
            1 => &[Lane::Data],
            2 => &[Lane::Bulk],
            _ => &[Lane::Control, Lane::Data, Lane::Bulk],
        };
        let permille = if self.random.chance(500) { 1_000 } else { 400 };
        let ways = self.random.below(3);
        let mut links: Vec<Link> = Vec::new();
        for &peer in running.iter().filter(|peer| **peer != victim) {
            for (way, link) in [(1, (victim, peer)), (2, (peer, victim))] {
                if (ways == 0 || ways == way) && self.random.chance(permille) {
                    lanes.iter().for_each(|lane| self.network.hold(link, *lane));
                    links.push(link);
                }
            }
        }
        self.note(victim, || format!("{lanes:?} stand still: {}", named(&links)));
        let lasting = self.random.between(self.swarm.timeout / 5, self.swarm.lasting * 2);
        self.schedule(lasting, Event::Release(links));
    }

    /// Streams flow again: what waited comes soon, in whatever order.
    pub(super) fn release(&mut self, which: impl Fn(Link) -> bool) {
        for (incoming, number) in self.network.release(which) {
            let soon = self.random.between(Duration::from_micros(50), self.swarm.near);
            self.schedule(soon, Event::Deliver(incoming, number));
        }
    }

    /// Links of a member, or any, go and come again.
    pub(super) fn begin_flapping(&mut self, victim: MemberId, running: &[MemberId]) {
        self.world.met(Fault::Flapping);
        let own = self.random.chance(600);
        let permille = if self.random.chance(500) { 1_000 } else { 400 };
        let mut links: Vec<Link> = Vec::new();
        for &a in running {
            for &b in running.iter().filter(|b| **b != a) {
                if (!own || a == victim || b == victim) && self.random.chance(permille) {
                    links.push((a, b));
                }
            }
        }
        let times = 2 * (1 + u32::try_from(self.random.below(6)).unwrap_or(0));
        self.note(victim, || format!("flapping: {}", named(&links)));
        self.flap(links, times);
    }

    /// Cut where an even number of turns is left, mended where an odd one is.
    pub(super) fn flap(&mut self, links: Vec<Link>, left: u32) {
        let longest = match left.is_multiple_of(2) {
            true if left == 0 || self.settling => return,
            true => {
                links.iter().for_each(|link| self.network.cut(*link));
                self.swarm.timeout
            }
            // Often no longer than a word or two takes.
            false => {
                self.mend(&links);
                if self.random.chance(500) { self.swarm.heartbeat * 2 } else { self.swarm.timeout }
            }
        };
        let pause = self.random.between(self.swarm.heartbeat / 2, longest);
        self.schedule(pause, Event::Flap(links, left - 1));
    }
}

/// Links by the members at their ends, for a person.
fn named(links: &[Link]) -> String {
    links.iter().map(|(a, b)| format!("{}>{}", a.0, b.0)).collect::<Vec<_>>().join(" ")
}
