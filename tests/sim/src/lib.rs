//! The deterministic simulator of the consensus core.
//!
//! One u64 seed makes one run: members with disks that lose what was not synced, a network that drops,
//! duplicates, delays, reorders and cuts one way, crashes, power loss, membership changes, and clients whose
//! every answer an oracle judges. The same seed gives the same run to the last message (docs: reliability.md,
//! "Layers of testing", 2).
//!
//! ```text
//!   seed -> World { members (core + disk), network, clients, faults } -> events in order of simulated time
//!                |                                        |
//!                +-- invariants after every step          +-- oracle on every answer
//! ```
#![forbid(unsafe_code)]

pub mod client;
pub mod disk;
pub mod faults;
pub mod invariants;
pub mod member;
pub mod membership;
pub mod network;
pub mod oracle;
pub mod progress;
pub mod random;
pub mod run;
pub mod sweep;
pub mod topologies;
pub mod trace;
pub mod world;
