//! The Kubernetes operator of Synod.
//!
//! One [`crd::PaxosCluster`] is one log: one StatefulSet whose pods hold a consensus sidecar each. The
//! operator is a pipeline, run again and again from fresh reads:
//!
//! ```text
//!   dereference -> validate -> plan -> build -> apply -> status
//!   (reads)        (pure)      (pure)  (pure)   (writes)  (writes)
//! ```
//!
//! `validate`, `plan` and `build` have no client type in reach: their tests are data in, data out.
#![forbid(unsafe_code)]

pub mod build;
pub mod crd;
pub mod members;
pub mod names;
pub mod observed;
pub mod plan;
pub mod tls;
pub mod validate;
