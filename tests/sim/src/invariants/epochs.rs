//! Fencing epochs and their ballots only grow; a batch of an older ballot behind one adds nothing, and no leader proposes
//! one behind its own (docs: decisions/0002).

use crate::oracle::{Violation, violation};
use synod_paxos::system::SystemState;
use synod_paxos::{Applied, Ballot, Node};

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

/// Checks a batch that was applied: taken under `taken`, and chosen under `under` as far as the disk tells.
///
/// # Errors
/// Where it is void and added entries, or where a leader proposed it behind its own LeaderStart.
pub fn check_batch(
    system: &SystemState,
    applied: &Applied,
    taken: Ballot,
    under: Ballot,
) -> Result<(), Violation> {
    let mut before = system.leaders.iter().rev().filter(|(at, _)| *at < applied.slot);
    let Some((epoch, newest)) = before.next().copied().filter(|(_, newest)| taken < *newest) else {
        return Ok(());
    };
    if !applied.entries.is_empty() {
        let evidence = format!("{:?} of {taken:?} adds entries behind {newest:?} at {epoch:?}", applied.slot);
        return violation("a batch behind a higher LeaderStart adds nothing", evidence);
    }
    match newest == under {
        true => violation(
            "behind its LeaderStart a leader proposes only its own",
            format!("{:?} of {taken:?} under {under:?}, which began at {epoch:?}", applied.slot),
        ),
        false => Ok(()),
    }
}
