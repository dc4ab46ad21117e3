//! Fencing epochs and their ballots only grow.

use crate::oracle::{Violation, violation};
use synod_paxos::Node;

/// Checks the newest leaderships of a member's applied prefix.
///
/// # Errors
/// Where a later LeaderStart has a lower ballot.
pub fn check(node: &Node) -> Result<(), Violation> {
    let Some(system) = node.system() else { return Ok(()) };
    let leaders = &system.leaders;
    let newest = leaders.len().saturating_sub(4);
    for pair in leaders[newest..].windows(2) {
        if pair[0].0 >= pair[1].0 || pair[0].1 >= pair[1].1 {
            return violation("epochs grow", format!("{:?} then {:?}", pair[0], pair[1]));
        }
    }
    Ok(())
}
