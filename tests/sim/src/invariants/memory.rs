//! Property: a member holds a bounded number of bytes that wait for its disk, however slow that is (docs: reliability.md,
//! "Bounds").

use crate::oracle::{Violation, violation};
use synod_paxos::limits::Bounds;
use synod_paxos::{MemberId, Node};

/// What one call may have around its entries, in bytes.
const OVERHEAD: usize = 256;

/// The most that one slot's batch holds where each of `clients` has one call of three entries under way.
fn batch(clients: usize, padding: usize) -> usize {
    clients * (3 * (padding + 32) + OVERHEAD)
}

/// Checks one member after its step.
///
/// # Errors
/// Where it holds more than it may.
pub fn check(
    id: MemberId,
    node: &Node,
    bounds: &Bounds,
    (clients, padding): (usize, usize),
) -> Result<(), Violation> {
    let batch = batch(clients, padding);
    // Accepts up to their bound, and a part that was asked for before them; a leader's own proposals and those that it
    // recovers of leaders before it.
    let accepted = bounds.accept_backlog + bounds.chunk + batch;
    let proposed = 2 * (bounds.proposed + batch);
    let held = node.unwritten_bytes();
    match held <= accepted + proposed {
        true => Ok(()),
        false => violation(
            "what waits for a disk is bounded",
            format!("{id:?} holds {held} bytes, {accepted} of others and {proposed} of its own are allowed"),
        ),
    }
}
