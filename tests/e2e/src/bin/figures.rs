//! `make figures`: how fast the operator is on the local Kubernetes, and what it costs, beside what is asked of it
//! (docs: operator-rules.md, "Figures"). Nothing here is a test: a busy machine gives other numbers.

use std::process::ExitCode;

use synod_e2e::figures::{Figure, many, one};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let figures: Vec<Figure> = match arguments.next().as_deref() {
        None => one::measure(3),
        Some("--many") => {
            let clusters = arguments.next().and_then(|count| count.parse().ok()).unwrap_or(500);
            many::measure(clusters)
        }
        Some(other) => {
            eprintln!("figures: {other} is not known; use nothing, or --many with a number of PaxosClusters");
            return ExitCode::from(2);
        }
    };
    print!("{}", synod_e2e::figures::table(&figures));
    ExitCode::SUCCESS
}
