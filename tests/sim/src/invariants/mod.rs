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
//! | recovery proposes the highest-ballot value that was reported | `recovery` | *Paxos Made Simple*, 2.2; docs: protocol.md, "Leader", 3 |
//! | what waits for a disk is bounded | `memory` | docs: reliability.md, "Bounds" |
//! | no lease lives when another leads | `leases` | docs: protocol.md, "Leases and reads"; reliability.md, faults 21 to 24 |
//! | what is told as chosen is chosen | `told` | docs: protocol.md, "Leader", 6 |
//! | a removed voter answers until it is not needed | `retirement` | docs: protocol.md, "Configurations", removed voters |
//! | no two lives of a member give one name | `names` | docs: protocol.md, "Leases and reads" |
//! | trims rest on a quorum's snapshots and wait for who catches up | `trims` | docs: protocol.md, "Snapshots, checkpoints, trim" |
//! | an installed snapshot is the whole state, the same bytes everywhere | `snapshots` | docs: protocol.md, "Snapshots", install |
//! | an install keeps votes above its slot | `votes` | docs: protocol.md, "Snapshots", install |
//! | a batch behind a higher LeaderStart adds nothing | `epochs` | docs: decisions/0002 |
//! | a row that was lost bars promises until it heals | `leaving` | docs: protocol.md, "Integrity" |
//! | a subscriber's stream has no hole and no repeat | `stream` | docs: reliability.md, fault 43 |

pub mod agreement;
pub mod chosen;
pub mod epochs;
pub mod leases;
pub mod leaving;
pub mod memory;
pub mod names;
pub mod promises;
pub mod proposals;
pub mod recovery;
pub mod retirement;
pub mod snapshots;
pub mod stream;
pub mod told;
pub mod trims;
pub mod votes;
pub mod whole_promises;
