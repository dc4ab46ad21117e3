//! What must hold between members after every step; one property a file.
//!
//! | property | file | source |
//! |---|---|---|
//! | the same chain at the same slot on every member | `agreement` | docs: protocol.md, "Integrity" |
//! | a value is applied only when a quorum of conf(slot) has it on disk under one ballot | `chosen` | *Paxos Made Simple*, 2.2 |
//! | what is promised on disk never goes down | `promises` | *Paxos Made Simple*, P1a |
//! | fencing epochs and their ballots only grow | `epochs` | docs: protocol.md, "Leader", 4 |
//! | nothing leaves before what it says is on disk | `leaving` | docs: protocol.md, "Acceptor"; reliability.md, fault 1 |
//! | a disk that shows less than it had acknowledged never votes again | `leaving` | docs: protocol.md, "Identity and amnesia" |
//! | a promise reports every vote under a lower ballot | `whole_promises` | *Paxos Made Simple*, 2.2, P2c |
//! | one value a ballot and slot; a watermark covers only what was proposed or learnt | `proposals` | *Paxos Made Simple*, 2.2; docs: protocol.md, "Leader", 6 |
//! | a subscriber's stream has no hole and no repeat | `stream` | docs: reliability.md, fault 43 |

pub mod agreement;
pub mod chosen;
pub mod epochs;
pub mod leaving;
pub mod promises;
pub mod proposals;
pub mod stream;
pub mod whole_promises;
