//! What the end-to-end tests leave for `target/e2e/report.json`: a row each.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// One test's row.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Row {
    /// The test's function.
    pub name: String,
    /// How long it took.
    pub seconds: f64,
    /// The longest time without an acknowledgement of any writer; none: nobody wrote all along.
    pub longest_gap_ms: Option<u64>,
    /// Entries that were acknowledged.
    pub acknowledged: Option<usize>,
    /// Acknowledged entries that are not in the log, or stand there twice.
    pub lost: Option<usize>,
    /// `passed` or `failed`.
    pub verdict: String,
}

/// Where rows are kept, below a checkout.
fn folder(root: &Path) -> PathBuf {
    root.join("target/e2e/rows")
}

/// Keeps a row.
///
/// # Errors
/// What the file system says.
pub fn keep(root: &Path, row: &Row) -> io::Result<()> {
    fs::create_dir_all(folder(root))?;
    fs::write(folder(root).join(format!("{}.json", row.name)), serde_json::to_string(row)?)
}

/// Forgets the rows of earlier runs.
///
/// # Errors
/// What the file system says.
pub fn clear(root: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder(root)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes all rows to `target/e2e/report.json`, by name, and gives them.
///
/// # Errors
/// What the file system says, or a row that is none.
pub fn write(root: &Path) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for entry in fs::read_dir(folder(root))? {
        rows.push(serde_json::from_slice::<Row>(&fs::read(entry?.path())?)?);
    }
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    fs::write(root.join("target/e2e/report.json"), serde_json::to_string_pretty(&rows)? + "\n")?;
    Ok(rows)
}

/// A number for people; a dash where there is none.
fn shown(number: Option<u64>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

/// The rows as a table of at most 80 columns.
pub fn table(rows: &[Row]) -> String {
    let mut text =
        format!("{:<44}{:>6}{:>8}{:>8}{:>5}  {}\n", "TEST", "S", "GAP MS", "ACKED", "LOST", "VERDICT");
    for Row { name, seconds, longest_gap_ms, acknowledged, lost, verdict } in rows {
        let name: String = name.chars().take(43).collect();
        let (acknowledged, lost) = (acknowledged.map(|n| n as u64), lost.map(|n| n as u64));
        text += &format!(
            "{name:<44}{seconds:>6.0}{:>8}{:>8}{:>5}  {verdict}\n",
            shown(*longest_gap_ms),
            shown(acknowledged),
            shown(lost)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_kept_and_shown_in_a_narrow_terminal() {
        let root = std::env::temp_dir().join(format!("synod-e2e-report-{}", std::process::id()));
        let row = |name: &str, lost: Option<usize>| Row {
            name: name.into(),
            seconds: 12.3,
            longest_gap_ms: lost.map(|_| 1_234),
            acknowledged: lost.map(|_| 123_456),
            lost,
            verdict: "passed".into(),
        };
        clear(&root).unwrap();
        keep(&root, &row("o9_a_drain_beside_a_voter_that_is_cut_off_is_refused", None)).unwrap();
        keep(&root, &row("f3", Some(0))).unwrap();
        let rows = write(&root).unwrap();
        assert_eq!(rows.iter().map(|row| row.name.as_str()).next(), Some("f3"));
        let text = table(&rows);
        assert_eq!(text.lines().count(), 3);
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        let json = fs::read_to_string(root.join("target/e2e/report.json")).unwrap();
        assert!(json.contains("\"longest_gap_ms\": 1234") && json.contains("\"lost\": null"), "{json}");
        clear(&root).unwrap();
        assert!(write(&root).is_err(), "nothing is left of an earlier run");
        fs::remove_dir_all(root).unwrap();
    }
}
