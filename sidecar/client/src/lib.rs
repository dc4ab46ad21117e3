//! The Rust SDK for a Synod socket.
