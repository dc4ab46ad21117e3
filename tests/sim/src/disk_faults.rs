//! The faults of a disk: one list for the simulator's disk model and for the tests of the real storage engine, so
//! that a fault added to one is demanded of the other. Here a sweep that never met one fails
//! (`tests/seeds.rs`); there each is done to the real storage by a `match` without a catch-all
//! (`sidecar/tests/disk_fault_list.rs`), which does not compile until a new one has its arm.
//!
//! Numbers are those of the catalogue in docs: reliability.md. Each says what a member must be able to bear, and
//! within which bound the simulator keeps it: what lies beyond is not survivable by design.

use crate::coverage::kinds;

kinds! {
    /// What a disk can do to a member.
    DiskFault {
        /// 1: the process dies, and what was not synced is gone: of the writes on their way any prefix survives,
        /// none or all included, in the order in which they were issued. No bound: it may happen to all at once.
        LostUnsynced = "lost_unsynced",
        /// 1: the transaction under way became durable, but nobody was told: messages behind it never left.
        UntoldSync = "untold_sync",
        /// 3: a crash tears a write: the transaction under way is there, but one of its rows is not whole, which
        /// its checksum shows. Nothing behind that write had left.
        TornWrite = "torn_write",
        /// 4: a stored row's bytes rot; its checksum shows it. Bound: a slot's row on one member only, and such
        /// members fewer than half of the voters (7 is the case beyond).
        FlippedRow = "flipped_row",
        /// 4: the bit of a stored row that says whether it is chosen rots; its checksum shows it. Bound: as FlippedRow.
        FlippedFlag = "flipped_flag",
        /// 4: a row that the disk knows to be chosen is gone, the page that names it having rotted. Bound: as
        /// FlippedRow. (A vote that is gone without a trace is beyond what any member can bear.)
        LostRow = "lost_row",
        /// 4 to 6: one bit of a file changes, whatever stands there: a row, what says what the member is, a page's head,
        /// the checksums. Bound: files of one member only, counted as impaired from then on.
        FlippedByte = "flipped_byte",
        /// 6: a row was written over another slot's place as well; the checksum covers the slot. Bound: as 4. (A
        /// write that landed nowhere is LostSync.)
        MisdirectedWrite = "misdirected_write",
        /// 8: a write or sync fails: the process ends, and what of it is durable is open.
        FailedWrite = "failed_write",
        /// 11: the disk is full: appends are refused at the door, votes go on from the reserve.
        Full = "full_disk",
        /// 11: the reserve is used up as well: the process ends, and comes back when there is space.
        FullBeyondReserve = "full_disk_beyond_reserve",
        /// 12: each sync takes long.
        Slow = "slow_disk",
        /// 12: one sync hangs for seconds.
        Stalled = "stalled_sync",
        /// 9, 25: syncs are acknowledged and not kept; a crash shows it. Bound: fewer than half of the voters, and
        /// only where every quorum that can let the member back in has somebody whose own disk remembers more of
        /// it than the disk shows then: that is what fencing by counters can see.
        LostSync = "lost_sync",
        /// 26: the volume comes back as an older copy of itself. Bound: as LostSync.
        RestoredCopy = "restored_old_copy",
        /// 25: the volume is gone. Its member never comes back; an empty one joins under a new id. Bound: fewer
        /// than half of the voters.
        Wiped = "wiped_volume",
    }
}
