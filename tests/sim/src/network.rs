//! The network between members: it drops, duplicates, delays, reorders, and cuts one way.

use crate::faults::{Fault, FaultCounts};
use crate::random::Random;
use std::collections::BTreeSet;
use std::time::Duration;
use synod_paxos::MemberId;

/// How unkind the network is now, in permille of messages.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Lost.
    pub drop: u64,
    /// Delivered twice.
    pub duplicate: u64,
    /// Delayed by up to two seconds: overtaken by many others.
    pub delay: u64,
}

/// Cuts and weather.
#[derive(Debug, Default)]
pub struct Network {
    /// Directed links that carry nothing.
    cuts: BTreeSet<(MemberId, MemberId)>,
    /// Applies to every link.
    pub weather: Weather,
}

impl Network {
    /// Cuts the link from `from` to `to`, one way.
    pub fn cut(&mut self, from: MemberId, to: MemberId) {
        self.cuts.insert((from, to));
    }

    /// Mends everything.
    pub fn heal(&mut self) {
        self.cuts.clear();
        self.weather = Weather::default();
    }

    /// Whether a link carries messages.
    pub fn is_open(&self, from: MemberId, to: MemberId) -> bool {
        !self.cuts.contains(&(from, to))
    }

    /// The delays after which a message sent now arrives: none, one, or two.
    pub fn route(
        &self,
        from: MemberId,
        to: MemberId,
        random: &mut Random,
        counts: &mut FaultCounts,
    ) -> Vec<Duration> {
        if !self.is_open(from, to) {
            return Vec::new();
        }
        if random.chance(self.weather.drop) {
            counts.add(Fault::Drop);
            return Vec::new();
        }
        let near = (Duration::from_micros(50), Duration::from_micros(1_500));
        let mut delays = vec![random.between(near.0, near.1)];
        if random.chance(self.weather.duplicate) {
            counts.add(Fault::Duplicate);
            delays.push(random.between(near.0, Duration::from_millis(1_200)));
        }
        if random.chance(self.weather.delay) {
            // Long enough to be overtaken by what is sent after it: late and out of order.
            counts.add(Fault::Delay);
            counts.add(Fault::Reorder);
            delays[0] += random.between(Duration::from_millis(20), Duration::from_millis(2_000));
        }
        delays
    }
}
