//! The same program under the name that is typed.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    synod_sidecar::cli::main()
}
