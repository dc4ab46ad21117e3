//! The core's one type.

use crate::io::{Input, Output};
use crate::status::Status;
use crate::storage::DurableState;
use crate::system::SystemState;
use crate::types::Instant;

/// One member's protocol state.
#[derive(Debug)]
pub struct Node {
    _private: (),
}

impl Node {
    /// Starts on what a disk holds; `disk.incarnation` was raised durably before. `seed` must differ from
    /// start to start: it feeds the random timeouts and the handshake's nonce.
    ///
    /// # Errors
    /// Where the stored system state cannot be read.
    pub fn new(_disk: DurableState, _now: Instant, _seed: u64) -> Result<Node, crate::codec::DecodeError> {
        Ok(Node { _private: () })
    }

    /// Takes one input.
    pub fn handle(&mut self, _now: Instant, _input: Input) {}

    /// Gives the next output; call until there is none.
    pub fn poll_output(&mut self, _now: Instant) -> Option<Output> {
        None
    }

    /// When [`Input::Tick`] is wanted.
    pub fn next_deadline(&self) -> Option<Instant> {
        None
    }

    /// The core's view, for status calls and metrics.
    pub fn status(&self, _now: Instant) -> Status {
        unreachable!()
    }

    /// The replicated state; none before a genesis is known.
    pub fn system(&self) -> Option<&SystemState> {
        None
    }
}
