//! The kinds of fault, and how often each happened.

use std::collections::BTreeMap;

/// Every kind of fault that a run can meet. One that a whole test run never met fails it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A message was lost.
    Drop,
    /// A message arrived twice.
    Duplicate,
    /// A message was overtaken.
    Reorder,
    /// A message was late.
    Delay,
    /// A link carried messages one way only.
    OneWayCut,
    /// A member was cut off both ways.
    Isolation,
    /// The members were split in two.
    Partition,
    /// A process died.
    Crash,
    /// A process started on a disk that has had a life.
    Restart,
    /// A crash lost writes that were not synced.
    LostUnsynced,
    /// A crash during a sync whose transaction survived untold.
    UntoldSync,
    /// All members lost power together.
    PowerLoss,
    /// A disk took long to sync.
    SlowDisk,
    /// A member was added as a learner.
    AddLearner,
    /// A learner was promoted.
    Promote,
    /// A member was removed.
    Remove,
    /// Leadership was handed over.
    TransferLeader,
    /// A client gave up waiting.
    ClientTimeout,
}

impl Fault {
    /// All kinds.
    pub const ALL: [Fault; 18] = [
        Fault::Drop,
        Fault::Duplicate,
        Fault::Reorder,
        Fault::Delay,
        Fault::OneWayCut,
        Fault::Isolation,
        Fault::Partition,
        Fault::Crash,
        Fault::Restart,
        Fault::LostUnsynced,
        Fault::UntoldSync,
        Fault::PowerLoss,
        Fault::SlowDisk,
        Fault::AddLearner,
        Fault::Promote,
        Fault::Remove,
        Fault::TransferLeader,
        Fault::ClientTimeout,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Drop => "drop",
            Fault::Duplicate => "duplicate",
            Fault::Reorder => "reorder",
            Fault::Delay => "delay",
            Fault::OneWayCut => "one_way_cut",
            Fault::Isolation => "isolation",
            Fault::Partition => "partition",
            Fault::Crash => "crash",
            Fault::Restart => "restart",
            Fault::LostUnsynced => "lost_unsynced",
            Fault::UntoldSync => "untold_sync",
            Fault::PowerLoss => "power_loss",
            Fault::SlowDisk => "slow_disk",
            Fault::AddLearner => "add_learner",
            Fault::Promote => "promote",
            Fault::Remove => "remove",
            Fault::TransferLeader => "transfer_leader",
            Fault::ClientTimeout => "client_timeout",
        }
    }
}

/// How often each kind happened.
#[derive(Clone, Debug, Default)]
pub struct FaultCounts(BTreeMap<Fault, u64>);

impl FaultCounts {
    /// One more.
    pub fn add(&mut self, fault: Fault) {
        *self.0.entry(fault).or_default() += 1;
    }

    /// How often `fault` happened.
    pub fn get(&self, fault: Fault) -> u64 {
        self.0.get(&fault).copied().unwrap_or(0)
    }

    /// All faults together.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Adds another run's.
    pub fn merge(&mut self, other: &FaultCounts) {
        for (fault, count) in &other.0 {
            *self.0.entry(*fault).or_default() += count;
        }
    }
}
