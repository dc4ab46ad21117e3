//! A subscriber's stream at one member skips nothing and repeats nothing, over restarts as well.

use crate::member::Member;
use crate::oracle::{Violation, violation};
use synod_paxos::Applied;

/// A member applied a slot: its subscriber takes what it has not got yet. True if it goes on over a restart.
///
/// # Errors
/// Where the stream would have a hole.
pub fn check(member: &mut Member, applied: &Applied) -> Result<(), Violation> {
    if applied.entries.is_empty() {
        return Ok(());
    }
    let last = applied.first.plus(applied.entries.len() as u64 - 1);
    if applied.first > member.streamed.next() {
        return violation(
            "streams are whole",
            format!("{:?} applies {:?} behind {:?}", member.id, applied.first, member.streamed),
        );
    }
    member.streamed = member.streamed.max(last);
    Ok(())
}
