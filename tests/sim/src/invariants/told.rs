//! What a member tells as chosen, or has on its disk as chosen, is what was chosen.

use crate::invariants::chosen::Chosen;
use crate::oracle::{Violation, violation};
use synod_paxos::{MemberId, Message, Row};
use xxhash_rust::xxh3::xxh3_64;

/// Checks a row that is marked chosen, where it is known what was.
///
/// # Errors
/// Where it holds another value.
pub fn check_row(chosen: &Chosen, member: MemberId, row: &Row) -> Result<(), Violation> {
    match chosen.value(row.slot) {
        Some(value) if row.chosen && value != xxh3_64(&row.value) => {
            violation("told chosen is chosen", format!("{member:?} has {row:?} as chosen, another value is"))
        }
        _ => Ok(()),
    }
}

/// Checks the rows of a message as it leaves.
///
/// # Errors
/// Where one is marked chosen and holds another value.
pub fn check(chosen: &Chosen, member: MemberId, message: &Message) -> Result<(), Violation> {
    match message {
        Message::Learned { rows, .. } | Message::Promise { rows, .. } => {
            rows.iter().filter(|row| row.chosen).try_for_each(|row| check_row(chosen, member, row))
        }
        _ => Ok(()),
    }
}
