//! The driver behind make demo.

fn main() {}
