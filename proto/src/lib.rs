//! The wire formats of Synod: protobuf messages and gRPC services.
//!
//! `log.proto`, `consumers.proto` and `checkpoints.proto` are what an application speaks on the socket, `admin.proto` what the operator and the
//! tools speak to one member, `peer.proto` what members speak to each other. Field numbers are never
//! used again for something else; a reader skips what it does not know.
#![forbid(unsafe_code)]

pub mod codec;
mod failure;
mod reason;
pub mod table;
mod times;

pub use failure::DOMAIN;
pub use times::{duration, span};

/// Version 1 of the wire formats.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("synod.v1");
}

/// The format version that a [`v1::Greeting`] carries: raised when old readers would misread us.
pub const FORMAT_VERSION: u32 = 1;
