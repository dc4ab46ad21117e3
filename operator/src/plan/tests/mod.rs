//! The plan, data in and data out. Each test names the rule or the failure mode (docs: operator-rules.md) it
//! holds the plan to.

mod courses;
mod gates;
mod losses;
mod random;
pub(crate) mod world;
