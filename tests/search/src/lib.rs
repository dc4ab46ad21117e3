//! Exhaustive search of small cases of the consensus core (docs: reliability.md, "Layers of testing", 3).
//!
//! The real [`synod_paxos::Node`] is driven through every order of a handful of messages, writes, timeouts and
//! crashes, and in every state reached the properties in [`properties`] are judged from what stands on the disks,
//! not from what the core says.
//!
//! A state is not a copy of three cores: it is, for each member, the list of what happened to it, from which
//! [`member::Member`] builds core and disk anew, and a fingerprint of the result, by which states are told apart.
//!
//! # What is left out, and why nothing is lost by it
//!
//! | left out | why |
//! |---|---|
//! | copies of a message | repeats change nothing: scripts `lost_messages`, and the simulator |
//! | losing a message | the same as never delivering it: no rule waits for an absence |
//! | a member that is down for a while | the same as one to which nothing is delivered; so a crash and the next start are one step |
//! | writes under way while others act, unless asked for | what waits for a write has not been said, so it may as well be said later; a crash right before each write is a step |
//! | which life of its sender a message is of | members drop those of earlier lives; here they take them, which is more than can happen |
//! | time | a timeout is a step that any member may take whenever it likes; only its own clock moves |
//! | canvassing | everyone is always willing: safety must not rest on it |
//! | leases | granted by heartbeats only; they hold promises up, and give none |
//! | heartbeats, reads, forwarded calls | they choose nothing; `chosen_through` also travels with Accepts |
//! | the handshake after a restart | it is answered at once; write counters are equal (restored disks: the simulator) |
//! | slots above the bound | Accepts for them are lost |
//! | mail that can have no effect any more | [`model::Model::purge`]: it lies below a promise on the receiver's disk, belongs to a candidacy that is over, or changes nothing and never will |
//! | Nacks, unless asked for | they only make a leader stop, which is the same as delivering nothing to it |
//! | counters of writes, views, timers, random numbers | masked in the fingerprint: no rule of agreement reads them |

pub mod mail;
pub mod member;
pub mod model;
pub mod print;
pub mod properties;
pub mod report;
