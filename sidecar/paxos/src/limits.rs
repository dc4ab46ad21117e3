//! Bounds on everything that comes from outside. Those that decide what an entry means are replicated
//! ([`crate::settings::Limits`]); these are the ceilings that no settings can pass.

use core::time::Duration;

/// An application entry, in bytes: its payload, and its headers as they are stored.
pub const ENTRY_BYTES: usize = 1 << 20;
/// The entries of one call, and of one slot's batch, in bytes.
pub const BATCH_BYTES: usize = 1 << 20;
/// Entries of one call, and of one slot's batch.
pub const BATCH_ENTRIES: usize = 4_096;
/// An encoded value: a full batch, and around each of its entries a call with the longest name or key.
pub const VALUE_BYTES: usize = BATCH_BYTES + BATCH_ENTRIES * 320 + BATCH_FIELDS_BYTES + 1_024;
/// Headers of one entry.
pub const HEADERS: usize = 32;
/// The name of a header, in bytes; at least 1.
pub const HEADER_NAME_BYTES: usize = 64;
/// The value of a header, in bytes.
pub const HEADER_VALUE_BYTES: usize = 1_024;
/// Headers of one call, whatever its entries: what one request may take in memory.
pub const CALL_HEADERS: usize = 8_192;
/// Optional fields of a batch, encoded, in bytes.
pub const BATCH_FIELDS_BYTES: usize = 1_024;
/// Rows of the session table.
pub const SESSION_ROWS: usize = 1_000_000;
/// Calls of one session whose outcomes are remembered until the client says that it has them.
pub const SESSION_WINDOW: usize = 4_096;
/// An idempotency key, in bytes; at least 1.
pub const KEY_BYTES: usize = 64;
/// Named cursors.
pub const CURSORS: usize = 1_024;
/// After how long without a word from its owner a cursor may be removed by itself.
pub const CURSOR_EXPIRY: core::ops::RangeInclusive<Duration> =
    Duration::from_secs(10)..=Duration::from_secs(100 * 365 * 24 * 3_600);
/// Checkpoints of the application that the log knows of.
pub const CHECKPOINTS: usize = 8;
/// Marks: slots at which every member takes a snapshot, kept until the log is trimmed past them.
pub const MARKS: usize = 64;
/// An encoded system state, which is a snapshot: bounds what is put together in memory while it is fetched.
pub const SNAPSHOT_BYTES: u64 = 512 << 20;
/// Members of one configuration, learners included.
pub const MEMBERS: usize = 31;
/// A member's name, in bytes.
pub const NAME_BYTES: usize = 253;
/// The window of slots between a configuration entry and its effect.
pub const ALPHA: core::ops::RangeInclusive<u32> = 1..=4_096;
/// Configurations that the history keeps; older ones are dropped from its front once they govern nothing.
pub const HISTORY: usize = 4_096;
/// Payload bytes of rows in one message.
pub const CHUNK_BYTES: usize = 1 << 20;
/// The same for a member that catches up, where appends go on beside it: a smaller part holds them up for a shorter
/// time.
pub const SMALL_CHUNK_BYTES: usize = 64 << 10;
/// Values that wait for the disk of a member that catches up, in bytes: above that it asks for no more.
pub const LEARN_BACKLOG_BYTES: usize = 16 << 20;
/// Rows that a member serves to all who catch up while appends go on, in bytes a second. What appends bring comes
/// on top of it twice, so that whoever catches up comes nearer whatever is appended.
pub const LEARN_BYTES_PER_SECOND: u64 = 40 << 20;
/// The slowest link, in bytes a second, that a message is given time for: half of the 1 MB/s that is promised to work.
pub const SLOWEST_LINK: u64 = 512 << 10;
/// Values that are under way to one member, in Accepts or in forwarded calls that it has not answered, in bytes: what is
/// above waits for an answer. One value larger than that goes alone.
pub const PIPELINE_BYTES: usize = 8 << 20;
/// Values that a leader has proposed and that are not known chosen, in bytes: above that it forms no new batch. It bounds
/// what the next leader has to read and propose again.
pub const PROPOSED_BYTES: usize = 16 << 20;
/// Values of a leader's Accepts that wait for a follower's disk, in bytes: what comes above that is dropped as if it had
/// been lost, and learnt later.
pub const ACCEPT_BACKLOG_BYTES: usize = 32 << 20;

/// The bounds in bytes that one member goes by. They decide nothing that members must decide alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// [`CHUNK_BYTES`].
    pub chunk: usize,
    /// [`SMALL_CHUNK_BYTES`].
    pub small_chunk: usize,
    /// [`LEARN_BACKLOG_BYTES`].
    pub learn_backlog: usize,
    /// [`LEARN_BYTES_PER_SECOND`].
    pub learn_rate: u64,
    /// [`SLOWEST_LINK`].
    pub slowest_link: u64,
    /// [`PIPELINE_BYTES`].
    pub pipeline: usize,
    /// [`PROPOSED_BYTES`].
    pub proposed: usize,
    /// [`ACCEPT_BACKLOG_BYTES`].
    pub accept_backlog: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            chunk: CHUNK_BYTES,
            small_chunk: SMALL_CHUNK_BYTES,
            learn_backlog: LEARN_BACKLOG_BYTES,
            learn_rate: LEARN_BYTES_PER_SECOND,
            slowest_link: SLOWEST_LINK,
            pipeline: PIPELINE_BYTES,
            proposed: PROPOSED_BYTES,
            accept_backlog: ACCEPT_BACKLOG_BYTES,
        }
    }
}

impl Bounds {
    /// A small part of each bound, at least one byte: for simulations, whose entries are smaller by as much.
    pub fn divided(divisor: usize) -> Bounds {
        let divisor = divisor.max(1);
        let part = |bytes: usize| (bytes / divisor).max(1);
        let rate = |bytes: u64| (bytes / divisor as u64).max(1);
        let Bounds {
            chunk,
            small_chunk,
            learn_backlog,
            learn_rate,
            slowest_link,
            pipeline,
            proposed,
            accept_backlog,
        } = Bounds::default();
        Bounds {
            chunk: part(chunk),
            small_chunk: part(small_chunk),
            learn_backlog: part(learn_backlog),
            learn_rate: rate(learn_rate),
            slowest_link: rate(slowest_link),
            pipeline: part(pipeline),
            proposed: part(proposed),
            accept_backlog: part(accept_backlog),
        }
    }

    /// How long `bytes` may take on the slowest link, beyond the first small chunk: timers have room for that.
    pub fn transit(&self, bytes: usize) -> Duration {
        let bytes = bytes.saturating_sub(self.small_chunk) as u64;
        Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / self.slowest_link)
    }
}
