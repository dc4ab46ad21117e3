//! The driver behind `make demo`.

mod ledger;
mod summary;
mod verdict;

fn main() {}
