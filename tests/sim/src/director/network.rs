//! The network between members: it drops, duplicates, delays, reorders, and cuts one way.

use crate::coverage::Coverage;
use crate::director::swarm::Swarm;
use crate::faults::Fault;
use crate::random::Random;
use std::collections::BTreeMap;
use std::time::Duration;
use synod_paxos::message::Lane;
use synod_paxos::{Incoming, MemberId};

/// A directed link.
pub type Link = (MemberId, MemberId);

/// How unkind the network is now, in permille of messages.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Lost.
    pub drop: u64,
    /// Delivered twice.
    pub duplicate: u64,
    /// Delayed: overtaken by others.
    pub delay: u64,
}

/// Bytes that wait on a lane of a link with a rate: what the transport's queue holds, a kilobyte for a megabyte.
const LANE_BYTES: u64 = 16 << 10;

/// A message on its way and its number in the record.
pub type Mail = (Box<Incoming>, u64);

/// Cuts, held streams and weather.
#[derive(Debug, Default)]
pub struct Network {
    /// Directed links that carry nothing, and how many cuts lie on each.
    cuts: BTreeMap<Link, u32>,
    /// Streams that stand still: what is sent waits there, oldest first.
    holds: BTreeMap<(Link, Lane), Vec<Mail>>,
    /// Applies to every link.
    pub weather: Weather,
    /// Bytes of values that a link carries a second, each way; none: any number.
    pub rate: Option<u64>,
    /// Until when a link is busy with the values of one lane, in simulated nanoseconds.
    busy: BTreeMap<(Link, Lane), u64>,
}

impl Network {
    /// A network of whole links that carry so many bytes a second.
    pub fn new(rate: Option<u64>) -> Network {
        Network { rate, ..Network::default() }
    }

    /// Cuts a link, one way.
    pub fn cut(&mut self, link: Link) {
        *self.cuts.entry(link).or_default() += 1;
    }

    /// Takes one cut off a link. Returns whether it carries messages again.
    pub fn mend(&mut self, link: Link) -> bool {
        match self.cuts.get_mut(&link) {
            Some(cuts) if *cuts > 1 => {
                *cuts -= 1;
                false
            }
            Some(_) => self.cuts.remove(&link).is_some(),
            None => false,
        }
    }

    /// A stream stands still from now on.
    pub fn hold(&mut self, link: Link, lane: Lane) {
        self.holds.entry((link, lane)).or_default();
    }

    /// Gives a message back, unless its stream stands still: then it waits.
    pub fn keep(&mut self, mail: Mail) -> Option<Mail> {
        if self.holds.is_empty() {
            return Some(mail);
        }
        match self.holds.get_mut(&((mail.0.from, mail.0.to), mail.0.message.lane())) {
            Some(waiting) => {
                waiting.push(mail);
                None
            }
            None => Some(mail),
        }
    }

    /// Streams of which `which` is true flow again; what waited comes, oldest first.
    pub fn release(&mut self, which: impl Fn(Link) -> bool) -> Vec<Mail> {
        let streams: Vec<(Link, Lane)> =
            self.holds.keys().filter(|(link, _)| which(*link)).copied().collect();
        streams.iter().flat_map(|stream| self.holds.remove(stream).unwrap_or_default()).collect()
    }

    /// Whether some stream stands still.
    pub fn holds_some(&self) -> bool {
        !self.holds.is_empty()
    }

    /// How long a message waits for those before it on its lane, itself included; none: the queue is full, and it is
    /// lost, as in the transport.
    pub fn queue(&mut self, now: u64, incoming: &Incoming, coverage: &mut Coverage) -> Option<Duration> {
        let (Some(rate), lane) = (self.rate, incoming.message.lane()) else { return Some(Duration::ZERO) };
        if lane == Lane::Control {
            return Some(Duration::ZERO);
        }
        let bytes = incoming.message.value_bytes() as u64;
        let busy = self.busy.entry(((incoming.from, incoming.to), lane)).or_default();
        let begins = (*busy).max(now);
        if (begins - now) * rate / 1_000_000_000 > LANE_BYTES {
            coverage.fault(Fault::FullQueue);
            return None;
        }
        if begins > now {
            coverage.fault(Fault::NarrowLink);
        }
        *busy = begins + bytes * 1_000_000_000 / rate;
        Some(Duration::from_nanos(*busy - now))
    }

    /// Mends all links, and the weather.
    pub fn heal(&mut self) {
        self.cuts.clear();
        self.busy.clear();
        self.rate = None;
        self.weather = Weather::default();
    }

    /// Whether a link carries messages.
    pub fn is_open(&self, from: MemberId, to: MemberId) -> bool {
        self.cuts.is_empty() || !self.cuts.contains_key(&(from, to))
    }

    /// The delays after which a message sent now arrives: none, one, or two.
    pub fn route(
        &self,
        link: Link,
        swarm: &Swarm,
        random: &mut Random,
        coverage: &mut Coverage,
    ) -> [Option<Duration>; 2] {
        if !self.is_open(link.0, link.1) {
            return [None, None];
        }
        let near = random.between(Duration::from_micros(50), swarm.near);
        let Weather { drop, duplicate, delay } = self.weather;
        if drop + duplicate + delay == 0 {
            return [Some(near), None];
        }
        if random.chance(drop) {
            coverage.fault(Fault::Drop);
            return [None, None];
        }
        let mut delays = [Some(near), None];
        if random.chance(duplicate) {
            coverage.fault(Fault::Duplicate);
            delays[1] = Some(random.between(Duration::from_micros(50), swarm.late));
        }
        if random.chance(delay) {
            // Long enough to be overtaken by what is sent after it.
            coverage.fault(Fault::Delay);
            coverage.fault(Fault::Reorder);
            let late = random.between(swarm.near, swarm.late);
            if late > swarm.timeout {
                coverage.fault(Fault::Stale);
            }
            delays[0] = Some(near + late);
        }
        delays
    }
}
