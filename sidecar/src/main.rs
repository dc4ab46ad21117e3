//! The program of the sidecar's container, and of everybody who runs Synod without Kubernetes.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    synod_sidecar::cli::main()
}
