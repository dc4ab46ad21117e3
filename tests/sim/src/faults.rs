//! The kinds of fault that a run can meet. Numbers are those of the catalogue in docs: reliability.md.
//!
//! Faults of the disk are listed apart, in [`crate::disk_faults`]: the real storage engine is tested against the
//! same list.

use crate::coverage::kinds;
use crate::disk_faults::DiskFault;

kinds! {
    /// Every kind of fault. One that a whole sweep never met is named in its report.
    Fault {
        /// 20: a message was lost.
        Drop = "drop",
        /// 20: a message arrived twice.
        Duplicate = "duplicate",
        /// 20: a message was overtaken by later ones.
        Reorder = "reorder",
        /// 20: a message was late by more than an election timeout: stale delivery.
        Stale = "stale_delivery",
        /// 20: a stream between two members stood still, and came again with all that was sent in the meantime.
        Held = "held_stream",
        /// Values waited for others on a link that carries few bytes a second.
        NarrowLink = "narrow_link",
        /// A link's queue was full: a message was lost there.
        FullQueue = "full_queue",
        /// 16: links went and came again and again.
        Flapping = "flapping_links",
        /// A message was late.
        Delay = "delay",
        /// 16: a member's links carried messages one way only.
        OneWayCut = "one_way_cut",
        /// 15: a member was cut off both ways.
        Isolation = "isolation",
        /// 15: the members were split in two.
        Partition = "partition",
        /// 17 to 19: some links were cut, others not.
        PartialPartition = "partial_partition",
        /// 17: every link but those of one member was cut.
        HubTopology = "hub_topology",
        /// 19: the members stood in a row, each with links to its neighbours only.
        ChainTopology = "chain_topology",
        /// 1: a process died between any two of its writes.
        Crash = "crash",
        /// 13: a process died again before it had recovered.
        CrashInRecovery = "crash_in_recovery",
        /// A process started on a disk that has had a life.
        Restart = "restart",
        /// 10: all members lost power together.
        PowerLoss = "power_loss",
        /// 47: a process was told to stop, handed over, and came back.
        Drain = "drain",
        /// 22: a process got no time for a while, less than an election timeout or so.
        Pause = "pause",
        /// 22: a machine was suspended for several election timeouts; its clock counted them.
        Suspend = "suspend",
        /// 23: a member's clock runs fast or slow.
        ClockRate = "clock_rate",
        /// 23: a member's clock jumped ahead.
        ClockJump = "clock_jump",
        /// Every start: a member's clock begins anywhere.
        ClockOffset = "clock_offset",
        /// 28 to 30: a member was added as a learner.
        AddLearner = "add_learner",
        /// 53: a name of a length at its bounds, one below or one above was asked for.
        NameAtBound = "name_at_bound",
        /// 53: a setting at one of its bounds, one below or one above was asked for.
        SettingAtBound = "setting_at_bound",
        /// A learner was promoted.
        Promote = "promote",
        /// 31, 46: a member was removed, the leader included.
        Remove = "remove",
        /// 29: a change was asked for while another was under way, or from a version that had passed.
        CompetingChange = "competing_change",
        /// 50: an operator repeated a change that it had asked for before.
        RepeatedChange = "repeated_change",
        /// 50: a change was planned from a version that had passed.
        StaleChange = "stale_change",
        /// 32: a removed member's volume was started again.
        RemovedReturns = "removed_member_returns",
        /// 57: a member's state differed from the others', and no checksum showed it. Bound: such members fewer than
        /// half of the voters, and no snapshots in the run, which would carry it on.
        SilentDivergence = "silent_divergence",
        /// Leadership was handed over on request.
        TransferLeader = "transfer_leader",
        /// 39: a client gave up waiting.
        ClientTimeout = "client_timeout",
    }
}

/// A fault of either list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnyFault {
    /// Not of the disk.
    World(Fault),
    /// Of the disk.
    Disk(DiskFault),
}

impl From<Fault> for AnyFault {
    fn from(fault: Fault) -> AnyFault {
        AnyFault::World(fault)
    }
}

impl From<DiskFault> for AnyFault {
    fn from(fault: DiskFault) -> AnyFault {
        AnyFault::Disk(fault)
    }
}
