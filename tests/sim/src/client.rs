//! Simulated applications: each does one operation after the other at one member, and gives up after a while.

use bytes::Bytes;
use synod_paxos::{Index, MemberId, RequestId};

/// What a client asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Append these payloads, on the condition that the last index is the expected one.
    Append {
        /// Unique in the run.
        entries: Vec<Bytes>,
        /// The condition.
        expected: Option<Index>,
    },
    /// A linearizable read of the last index.
    Read,
}

/// An operation that is not answered.
#[derive(Clone, Debug)]
pub struct Open {
    /// At which member.
    pub at: MemberId,
    /// Its name there.
    pub request: RequestId,
    /// What.
    pub operation: Operation,
    /// The highest index that any answer given before it began had shown.
    pub floor: Index,
}

/// One application.
#[derive(Debug, Default)]
pub struct Client {
    /// The operation under way.
    pub open: Option<Open>,
    /// Operations begun.
    pub begun: u64,
    /// The last index it has seen.
    pub seen: Index,
}

/// A payload that stands once in a run.
pub fn payload(client: usize, number: u64, part: usize) -> Bytes {
    Bytes::from(format!("c{client}-{number}-{part}"))
}
