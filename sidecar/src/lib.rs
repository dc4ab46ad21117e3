//! The consensus sidecar: the shell around the core.
#![forbid(unsafe_code)]

pub mod checkpoints;
pub mod cli;
pub mod clock;
pub mod connections;
pub mod descriptors;
pub mod driver;
pub mod member;
pub mod outside;
mod pace;
pub mod scrub;
pub mod server;
pub mod shared;
mod shown;
pub mod space;
pub mod spans;
pub mod telemetry;
pub mod tls;
pub mod transport;
mod views;

/// The disk.
pub use synod_storage as storage;
