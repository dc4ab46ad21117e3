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

/// Whether a bug is planted: never, in any build but that of the operator's simulator.
#[cfg(feature = "planted")]
macro_rules! planted {
    ($bug:ident) => {
        crate::planted::is(crate::planted::Bug::$bug)
    };
}
#[cfg(not(feature = "planted"))]
macro_rules! planted {
    ($bug:ident) => {
        false
    };
}

pub mod apply;
pub mod build;
pub mod context;
pub mod controller;
pub mod crd;
pub mod dereference;
pub mod election;
pub mod error;
pub mod http;
#[cfg(test)]
mod looped;
pub mod manifests;
pub mod members;
pub mod metrics;
pub mod names;
pub mod observed;
pub mod plan;
#[cfg(feature = "planted")]
pub mod planted;
pub mod plugin;
#[cfg(any(test, feature = "planted"))]
pub mod served;
pub mod settings;
pub mod status;
pub mod tls;
pub mod validate;
pub mod watched;
