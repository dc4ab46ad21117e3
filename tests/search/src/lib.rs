//! Exhaustive search of small cases of the consensus core (docs: reliability.md, "Layers of testing", 3).
//!
//! The real [`synod_paxos::Node`] is driven through every order of a handful of messages, writes, timeouts and
//! crashes, and in every state reached the properties in [`properties`] are judged from what stands on the disks,
//! not from what the core says.
//!
//! A state is not a copy of three cores: it is a number for each member and for each message under way. A member's
//! number stands for a fingerprint of its core and disk, and for one list of events that leads there, from which
//! [`member::Member`] builds both anew. What each event does to each member is worked out once (`known`).
//!
//! # What is left out, and why nothing is lost by it
//!
//! | left out | why |
//! |---|---|
//! | copies of a message that is under way | repeats change nothing: scripts `lost_messages`, and the simulator |
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
//! | Nacks, unless asked for | they only make a leader stop, which is the same as delivering nothing to it |
//! | counters of writes, views, timers, random numbers | masked in the fingerprint: no rule of agreement reads them |
//! | mistakes of the fingerprint | states are told apart by 64 bits of it: of 10 million states, two are taken for one with a chance of 1 in 300,000 |
//!
//! # Reductions
//!
//! What makes a search smaller ([`model::Reductions`]; `--without` does without). Every property is about what stands on
//! disks and what is applied, and one that is broken stays broken: votes that were ever cast are remembered, and what
//! was applied is judged when it is. So a reduction is sound if the members still come to vote for and apply the very
//! same, in every combination. `tests/small.rs` demands just that: with all reductions, without each, and without any,
//! a search judges the same set of combinations within the bound. `tests/planted.rs` finds its bugs with all of them.
//!
//! | reduction | what it does | why nothing is lost by it |
//! |---|---|---|
//! | `mail` | throws away a Prepare or Accept below a promise on its receiver's disk, and an answer to a candidacy or leadership that is over | promises do not go back, which is a property of every search; no ballot is resumed. What such mail still does is to be answered with a Nack, or to raise the highest round that a member has *seen*: it campaigns above its own promise anyway |
//! | `mail` | throws away what was tried, changes nothing at its receiver, is answered with nothing new, and never will be | tried on the core itself, writes included, so that a core that does act on it is seen. It stays without effect: Accepted, because a slot leaves flight once and a vote is counted once; a Promise, once its candidate's LeaderStart stands or all slots within the bound are proposed, because from then on it changes only who has promised, which matters where members get a vote (not in these cases); a Prepare at the very ballot that was promised, because what is left of it is its answer; an Accept, once nobody crashes any more, because no member forgets |
//! | `writes` | once nobody crashes any more, what a member writes is durable before anything else happens; what it applied on the way is judged all the same | without crashes a write only makes its messages later, and these may be late anyway. Not with `--slow-disks`, which is the test of that |
//! | `traces` | takes for one what differs in [`print`]'s `TRACES` | each serves a rule that is left out above: heartbeats, learning from others, when the system state is written |
//! | `quiet` | tells a member that will not campaign again, and is no proposer or has proposed in every slot within the bound, apart only by its disk, its acceptor, its ballot and the votes for it, and what it applied | it never again sends a Prepare, nor an Accept that is not lost. What is masked is read by candidates, by leaders for new slots, and by clients. Two such members may still differ in their own votes *above* the bound, where nothing can be chosen: of those, not all combinations are seen. Not in `growth`, where a leader may be asked for a change |
//!
//! # What was searched to the end
//!
//! States; with `quiet` the order of the search moves the number by a few in ten thousand, for members that are taken
//! for one differ above the bound.
//!
//! | case | without reductions | with them |
//! |---|---|---|
//! | `leaders`, one round each, no crash | 1,470,581 | 3,097 |
//! | one slot, one round each, one crash | 706,159 | 9,290 |
//! | one round each, one crash | | 57,083 |
//! | two rounds and one, one crash | | 845,023 |
//! | two rounds each, no crash | | 658,077 |
//! | two rounds each, one crash: `make search` | stopped at 266 million, with the first row of `mail` alone | 18.9 million |
//! | `growth`, two leaders compete, one crash | | 473,158 |
//! | `growth`, three leaders compete, one crash: `make search` | | 16,976,460 |

mod known;
pub mod mail;
pub mod member;
pub mod model;
pub mod print;
pub mod properties;
mod purge;
pub mod report;
mod start;
