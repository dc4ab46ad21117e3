//! The wire formats of Synod: protobuf messages and gRPC services.
