//! The kubectl plugin: put it into PATH under this name and call `kubectl synod`.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use synod_operator::plugin::{Arguments, run};

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(text) => {
            // A closed pipe is how `head` says that it has enough.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
