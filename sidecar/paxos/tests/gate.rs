//! Property: only the storage's completion releases a Promise, an Accepted or a Prepare (docs: protocol.md,
//! "Acceptor", "Leader" rule 2). The compiler holds drivers to it.

#[test]
fn nothing_gated_leaves_before_its_write() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
