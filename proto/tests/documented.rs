//! What is made from the .proto files is as they are. `SYNOD_WRITE=1` writes it.
#![allow(clippy::unwrap_used)]

use std::path::Path;

const MARKS: (&str, &str) = ("<!-- reasons: made from errors.proto -->\n", "<!-- reasons end -->");

#[test]
fn the_table_of_reasons_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/socket.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(MARKS.0).expect("docs/socket.md has the mark");
    let (found, after) = rest.split_once(MARKS.1).expect("docs/socket.md has the end mark");
    let wanted = synod_proto::table::reasons();
    if std::env::var_os("SYNOD_WRITE").is_some() {
        std::fs::write(&path, format!("{before}{}{wanted}{}{after}", MARKS.0, MARKS.1)).unwrap();
        return;
    }
    assert_eq!(found, wanted, "write it anew: SYNOD_WRITE=1 cargo test -p synod-proto --test documented");
}
