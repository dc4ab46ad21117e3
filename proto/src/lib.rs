//! The wire formats of Synod: protobuf messages and gRPC services.
//!
//! `synod.v1` is what an application speaks on the socket, `synod.admin.v1` what the operator and the tools speak to one
//! member, `synod.peer.v1` what members speak to each other. Field numbers are never used again for something else; a
//! reader skips what it does not know.
#![forbid(unsafe_code)]

pub mod codec;
mod failure;
pub mod formerly;
mod reason;
pub mod table;
mod times;

pub use failure::DOMAIN;
pub use prost_types::Timestamp;
pub use times::{duration, micros, span, timestamp};

/// The descriptors of all packages, for reflection and for tests: an encoded `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.binpb"));

/// What applications speak, on the socket.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("synod.v1");
}

/// What the operator and the tools speak, on the admin port and socket.
pub mod admin {
    /// Version 1.
    #[allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("synod.admin.v1");
    }
}

/// What members speak among themselves.
pub mod peer {
    /// Version 1.
    #[allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("synod.peer.v1");
    }
}

/// The format version that a [`peer::v1::Greeting`] carries: raised when old readers would misread us.
pub const FORMAT_VERSION: u32 = 1;
