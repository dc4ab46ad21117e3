//! What must hold between members after every step; one property a file.
//!
//! | property | file | source |
//! |---|---|---|
//! | the same chain at the same slot on every member | `agreement` | docs: protocol.md, "Integrity" |
//! | a value is applied only when a quorum of conf(slot) has it on disk under one ballot | `chosen` | *Paxos Made Simple*, 2.2 |
//! | what is promised on disk never goes down | `promises` | *Paxos Made Simple*, P1a |
//! | fencing epochs and their ballots only grow | `epochs` | docs: protocol.md, "Leader", 4 |

pub mod agreement;
pub mod chosen;
pub mod epochs;
pub mod promises;
