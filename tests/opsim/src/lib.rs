//! The deterministic simulator of the operator (docs: operator.md, "How it is tested").
//!
//! The operator's real reconcile (reads, validation, plan, objects, writes, status, and when it looks again) runs
//! against an API server, controllers, kubelets, volumes and members in memory. Each of its calls stops it: there it
//! is killed, put to sleep, refused or let go on, beside another operator, by one seed. What it does is judged by the
//! truth at every call; when the faults end, the world must become what the spec says.
//!
//! | file | what |
//! |---|---|
//! | `api.rs` | the API server: versions, UIDs, generations, apply, evictions |
//! | `world.rs` | nodes, volumes, controllers, scheduler, kubelets |
//! | `members.rs` | members, their disks and logs, by the protocol's rules |
//! | `operator.rs` | one operator, stopped at every call, and its watches |
//! | `director.rs` | what goes wrong, what people do, and peace |
//! | `rules.rs` | what must hold |
//! | `run.rs` | one seed |
//!
//! Planted bugs are `operator/src/planted.rs`, the seeds that show them `planted.txt`.
#![forbid(unsafe_code)]

pub mod api;
pub mod director;
pub mod members;
pub mod operator;
pub mod rules;
pub mod run;
pub mod sweep;
pub mod trace;
pub mod world;
