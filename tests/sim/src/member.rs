//! One simulated member: a disk that outlives it, and the core while its process runs.

use crate::disk::SimDisk;
use std::collections::{BTreeSet, VecDeque};
use synod_paxos::message::ViewId;
use synod_paxos::{Index, Instant, MemberId, Node, Slot, Time};

/// A member's own clock: it counts suspended time, begins anywhere, and runs a little fast or slow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// Nanoseconds that it shows at simulated time 0.
    pub offset: u64,
    /// Parts per million that it runs fast.
    pub drift: i64,
}

impl Clock {
    /// What it shows at simulated time `at`.
    pub fn local(&self, at: u64) -> Instant {
        if self.drift == 0 {
            return Instant(self.offset + at);
        }
        let run = i128::from(at) * i128::from(1_000_000 + self.drift) / 1_000_000;
        Instant(self.offset + u64::try_from(run).unwrap_or(0))
    }

    /// What the machine's wall clock shows at simulated time `at`: seconds before or behind the others', and set anew now and
    /// then, back as well.
    pub fn wall(&self, at: u64) -> Time {
        let set = (at / 3_000_000_000).wrapping_add(self.offset).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let ahead = (set >> 32) % 4_000_000;
        Time(1_700_000_000_000_000 + at / 1_000 + ahead)
    }

    /// The simulated time at which it shows `local`, or a moment later.
    pub fn global(&self, local: Instant) -> u64 {
        if self.drift == 0 {
            return local.0.saturating_sub(self.offset);
        }
        let run = i128::from(local.0.saturating_sub(self.offset)) * 1_000_000;
        let rate = i128::from(1_000_000 + self.drift);
        u64::try_from((run + rate - 1) / rate).unwrap_or(u64::MAX)
    }
}

/// Rows that the core asked for and has not got.
#[derive(Clone, Copy, Debug)]
pub struct AskedRead {
    /// Of which view.
    pub view: ViewId,
    /// From where on.
    pub from: Slot,
    /// At most so many bytes of values.
    pub bytes: usize,
}

/// A disk, and the process on it, if one runs.
#[derive(Debug)]
pub struct Member {
    /// Its id; a new disk is a new member.
    pub id: MemberId,
    /// Outlives processes.
    pub disk: SimDisk,
    /// The process.
    pub node: Option<Node>,
    /// Counts processes: what was scheduled for an earlier one is dropped.
    pub boot: u64,
    /// This process's clock.
    pub clock: Clock,
    /// When the next tick is scheduled.
    pub tick_at: Option<u64>,
    /// Reads of views, oldest first.
    pub reads: VecDeque<AskedRead>,
    /// Its volume is gone: it never comes back.
    pub destroyed: bool,
    /// The last index that a subscriber here has got: it goes on from there over restarts.
    pub streamed: Index,
    /// The process took part since it started.
    pub was_active: bool,
    /// Rows that were damaged when the process started, above what its disk had applied.
    pub began_damaged: BTreeSet<Slot>,
    /// When the process started, its disk said that a chosen entry had removed it.
    pub began_removed: bool,
    /// How many bytes of a snapshot it had fetched before.
    pub began_fetched: Option<u64>,
}

impl Member {
    /// An empty volume without a process.
    pub fn new(id: MemberId, disk: SimDisk) -> Member {
        Member {
            id,
            disk,
            node: None,
            boot: 0,
            clock: Clock::default(),
            tick_at: None,
            reads: VecDeque::new(),
            destroyed: false,
            streamed: Index(0),
            was_active: false,
            began_damaged: BTreeSet::new(),
            began_removed: false,
            began_fetched: None,
        }
    }
}
