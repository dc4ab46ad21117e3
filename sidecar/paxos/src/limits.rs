//! Bounds on everything that comes from outside. Those that decide what an entry means are replicated
//! ([`crate::settings::Limits`]); these are the ceilings that no settings can pass.

/// An application entry's payload, in bytes.
pub const ENTRY_BYTES: usize = 1 << 20;
/// The payload of one call, and of one slot's batch, in bytes.
pub const BATCH_BYTES: usize = 1 << 20;
/// Entries of one call, and of one slot's batch.
pub const BATCH_ENTRIES: usize = 4_096;
/// An encoded value: a full batch and what stands around its entries.
pub const VALUE_BYTES: usize = BATCH_BYTES + BATCH_ENTRIES * 64 + 1_024;
/// Rows of the session table.
pub const SESSION_ROWS: usize = 1_000_000;
/// Calls of one session whose outcomes are remembered until the client says that it has them.
pub const SESSION_WINDOW: usize = 4_096;
/// An idempotency key, in bytes; at least 1.
pub const KEY_BYTES: usize = 64;
/// Named cursors.
pub const CURSORS: usize = 1_024;
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
