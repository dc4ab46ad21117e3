//! A snapshot that is installed leaves the votes above it as they are (docs: protocol.md, "Snapshots", install).

use crate::disk::SimDisk;
use crate::oracle::{Violation, violation};
use synod_paxos::{ClusterId, MemberId, Node, Row, Slot};

/// Checks that a member holds in memory whatever votes its disk shows above what it has applied: a candidate's promise
/// to itself reports the former.
///
/// # Errors
/// Where one is missing.
pub fn kept(member: MemberId, cluster: ClusterId, disk: &SimDisk, node: &Node) -> Result<(), Violation> {
    let Some(system) = node.system() else { return Ok(()) };
    let shown = disk.rows().range(system.applied.next()..);
    let sound = |(slot, row): &(&Slot, &Row)| row.slot == **slot && row.is_intact(cluster);
    match shown.filter(sound).find(|(slot, row)| node.vote(**slot).is_none_or(|held| held < row.ballot)) {
        Some((_, row)) => {
            violation("an install keeps votes above it", format!("{member:?} forgot its vote {row:?}"))
        }
        None => Ok(()),
    }
}
