//! A completion, which releases a Prepare, is made by the storage's commit alone.
use synod_paxos::{Completed, WriteBatch, WriteCounter};

fn pretend(_batch: WriteBatch) -> Completed {
    Completed { through: 1, written: WriteCounter(1), gated: Vec::new() }
}

fn main() {
    let _ = pretend;
}
