//! What the fuzz targets and the test over their corpus ask of the stored formats.

use crate::encoding::{
    Format, ROW_HEAD, catalog, convert_row, joined, mark_checksum, number, pair, places, read_catalog,
    read_joined, read_mark, read_number, read_pair, read_row, read_segments, seal, seal_snapshot, segments,
    unseal, unseal_snapshot, write_row,
};
use crate::fetched;

/// Reads bytes as each thing that a start reads: a row, a number, a pair, a joined cluster, places of calls, the
/// lists of segments and of snapshots, a seal. What is
/// accepted is written again as the same bytes.
///
/// # Panics
/// Where it is not: the fuzz targets and the test over their corpus call this.
pub fn check_stored(bytes: &[u8]) {
    for format in [Format::Second, Format::Third] {
        let row = read_row(format, 7, bytes);
        if matches!(bytes.get(16), Some(0 | 1)) && bytes.len() >= ROW_HEAD {
            let mut again = vec![0; ROW_HEAD + row.value.len()];
            write_row(format, &row, &mut again);
            assert_eq!(again, bytes, "{row:?}");
        }
        // What no version writes fails its checksum, in whatever segment it comes to stand.
        let moved = read_row(Format::Third, 7, &convert_row(format, Format::Third, 7, bytes));
        assert_eq!(moved, row);
    }
    if let Ok(value) = read_number("a number", bytes) {
        assert_eq!(number(value), bytes);
    }
    if let Ok((first, second)) = read_pair("a pair", bytes) {
        assert_eq!(pair(first, second), bytes);
    }
    if let Ok((cluster, digest)) = read_joined(bytes) {
        assert_eq!(joined(cluster, digest), bytes);
    }
    if let Ok((closed, found)) = read_segments(bytes) {
        assert_eq!(segments(closed, &found), bytes);
    }
    if let Ok(found) = read_catalog(bytes) {
        // In bytes that nobody wrote a slot may stand twice, or out of order.
        assert_eq!(read_catalog(&catalog(&found)).ok(), Some(found));
    }
    if let Ok(value) = unseal("a name", bytes) {
        assert_eq!(seal("a name", value), bytes);
    }
    if let Ok(state) = unseal_snapshot(7, bytes) {
        assert!(state == bytes || seal_snapshot(7, state) == bytes);
    }
    if let Some(part) = fetched::decode(7, bytes) {
        assert_eq!(fetched::encode(&part), bytes);
    }
    // A mark whose checksum fits has its places read as they are.
    let skipped = read_mark(1, (2, 3, mark_checksum(1, 2, 3, bytes)), Some(bytes));
    assert_eq!(skipped.map(|skipped| places(&skipped)).ok().as_deref(), Some(&bytes[..bytes.len() / 4 * 4]));
    assert!(read_mark(1, (2, 3, mark_checksum(1, 2, 3, bytes) ^ 1), Some(bytes)).is_err());
}
