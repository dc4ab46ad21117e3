//! An example application that keeps a journal in Synod's log.

fn main() {}
