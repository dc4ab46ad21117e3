//! Bounds on everything that comes from outside. Those that decide what an entry means are part of the
//! replicated configuration later; these are the ceilings no configuration can pass.

/// An application entry's payload, in bytes.
pub const ENTRY_BYTES: usize = 1 << 20;
/// The payload of one call, and of one slot's batch, in bytes.
pub const BATCH_BYTES: usize = 1 << 20;
/// Entries of one call, and of one slot's batch.
pub const BATCH_ENTRIES: usize = 4_096;
/// An encoded value: a full batch and what stands around its entries.
pub const VALUE_BYTES: usize = BATCH_BYTES + BATCH_ENTRIES * 64 + 1_024;
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
