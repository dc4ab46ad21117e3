//! The deterministic simulator of the consensus core.
//!
//! One u64 seed makes one run: members with disks that lose what was not synced, a network that drops,
//! duplicates, delays, reorders and cuts one way, crashes, power loss, membership changes, and clients whose
//! every answer an oracle judges. The same seed gives the same run to the last message (docs: reliability.md,
//! "Layers of testing", 2).
//!
//! ```text
//!   seed --> Director (chance: order, faults, clients, operator) --steps--> World (members: core + disk)
//!                                    |                                        |              |
//!   event file <--write-- typed steps + --read--> replay, shrink --steps----->+   invariants +   oracle on
//!                                                                                 every step     every answer
//! ```
#![forbid(unsafe_code)]

pub mod action;
pub mod client;
pub mod coverage;
pub mod director;
pub mod disk;
pub mod disk_faults;
pub mod explain;
pub mod faults;
pub mod history;
pub mod invariants;
pub mod medium;
pub mod member;
pub mod oracle;
mod outputs;
pub mod progress;
pub mod random;
pub mod real;
pub mod replay;
pub mod run;
pub mod seen;
pub mod setup;
pub mod shrink;
pub mod sweep;
pub mod topologies;
pub mod trace;
pub mod world;
