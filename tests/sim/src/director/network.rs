//! The network between members: it drops, duplicates, delays, reorders, and cuts one way.

use crate::coverage::Coverage;
use crate::director::swarm::Swarm;
use crate::faults::Fault;
use crate::random::Random;
use std::collections::BTreeMap;
use std::time::Duration;
use synod_paxos::MemberId;

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

/// Cuts and weather.
#[derive(Debug, Default)]
pub struct Network {
    /// Directed links that carry nothing, and how many cuts lie on each.
    cuts: BTreeMap<Link, u32>,
    /// Applies to every link.
    pub weather: Weather,
}

impl Network {
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

    /// Mends everything.
    pub fn heal(&mut self) {
        self.cuts.clear();
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
