//! One simulated member: a disk that outlives it, and the core while its process runs.

use crate::disk::SimDisk;
use std::time::Duration;
use synod_paxos::{Instant, MemberId, Node};

/// A disk, and the process on it, if one runs.
#[derive(Debug)]
pub struct Member {
    /// Its id; a new disk is a new member.
    pub id: MemberId,
    /// Outlives processes.
    pub disk: SimDisk,
    /// The process.
    pub node: Option<Node>,
    /// Counts processes: an event of an earlier one is dropped.
    pub boot: u64,
    /// This process's clock lies so far ahead of simulated time.
    pub clock_offset: Duration,
    /// When the next tick is scheduled.
    pub tick_at: Option<u64>,
    /// How long a sync takes at least; raised while its disk is slow.
    pub sync_floor: Duration,
    /// Its operator threw the disk away: it never comes back.
    pub destroyed: bool,
}

impl Member {
    /// An empty volume without a process.
    pub fn new(id: MemberId) -> Member {
        Member {
            id,
            disk: SimDisk::empty(id),
            node: None,
            boot: 0,
            clock_offset: Duration::ZERO,
            tick_at: None,
            sync_floor: Duration::ZERO,
            destroyed: false,
        }
    }

    /// The member's own clock at simulated time `at`.
    pub fn local(&self, at: u64) -> Instant {
        Instant(at).after(self.clock_offset)
    }

    /// Simulated time of a moment on the member's own clock.
    pub fn global(&self, local: Instant) -> u64 {
        local.since(Instant(0).after(self.clock_offset)).as_nanos().try_into().unwrap_or(u64::MAX)
    }
}
