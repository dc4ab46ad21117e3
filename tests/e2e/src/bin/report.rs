//! `make e2e`: forgets the rows of earlier runs, and makes the report of this one.

use std::path::Path;
use std::process::ExitCode;

use synod_e2e::report;

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let done = match std::env::args().nth(1).as_deref() {
        Some("--clear") => report::clear(&root).map(|()| String::new()),
        None => report::write(&root).map(|rows| report::table(&rows)),
        Some(other) => {
            eprintln!("report: {other} is not known; use --clear, or nothing");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(table) => {
            print!("{table}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("report: {error}");
            ExitCode::FAILURE
        }
    }
}
