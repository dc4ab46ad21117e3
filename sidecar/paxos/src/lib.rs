//! The consensus core of Synod: Multi-Paxos without IO.
//!
//! One type, [`Node`], takes every input of a member and gives every output; it has no clock, no files, no
//! threads, no randomness and no hash maps. The rules are those of docs: protocol.md.
//!
//! ```text
//!   messages, ticks, completions --handle(now, Input)--> Node --poll_output(now)--> sends, writes, replies
//! ```
//!
//! A driver calls [`Node::handle`] for every input that is at hand, then [`Node::poll_output`] until it gives
//! nothing more, then waits for the next input or for [`Node::next_deadline`]. The more inputs it hands in
//! before it polls, the more appends share a slot.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

/// Whether a bug is planted: never, in any build but that of the mutation tests.
#[cfg(synod_planted)]
macro_rules! planted {
    ($bug:ident) => {
        crate::planted::is(crate::planted::Bug::$bug)
    };
}
#[cfg(not(synod_planted))]
macro_rules! planted {
    ($bug:ident) => {
        false
    };
}

pub mod codec;
pub mod configuration;
pub mod genesis;
pub mod io;
mod levels;
pub mod limits;
pub mod message;
pub mod names;
mod node;
#[cfg(synod_planted)]
pub mod planted;
pub mod recovery;
pub mod row;
pub mod sessions;
pub mod settings;
pub mod status;
pub mod storage;
pub mod system;
pub mod types;
pub mod value;

pub use genesis::Genesis;
pub use io::{AdminCommand, AdminOutcome, Applied, Consistency, Input, Notice, Output, Refusal};
pub use message::{Incoming, Message, Outgoing};
pub use node::Node;
pub use row::Row;
pub use settings::{ElectionSettings, Settings};
pub use status::Status;
pub use storage::{Completed, DurableState, SnapshotPart, Storage, Write, WriteBatch};
pub use system::{CallRefused, Reply, SystemState};
pub use types::{
    Ballot, ClusterId, Digest, Incarnation, Index, Instant, MemberId, RequestId, SessionId, Slot, Time,
    WriteCounter,
};
