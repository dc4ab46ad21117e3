//! Whether the log kept its promises. Pure: evidence in, verdict out.
//!
//! The promise: every acknowledged entry stands exactly once, at the index that was returned, with its
//! digest, in the log of every member.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use synod_e2e::load::Acknowledged;

/// Fewer acknowledgements of the writers than this show nothing.
pub(crate) const LEAST_ACKNOWLEDGED: usize = 10_000;

/// One entry of a member's log: its index and its digest.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
pub(crate) struct Entry {
    pub(crate) index: u64,
    pub(crate) sha256: String,
}

/// A ballot: its round and its member, as the sidecar prints it.
pub(crate) type Ballot = String;

/// Everything the verdict looks at.
#[derive(Debug, Clone, Default)]
pub(crate) struct Evidence {
    /// The acknowledged lines of the text. Lines may be equal, so these are judged by index alone.
    pub(crate) text: Vec<Acknowledged>,
    /// The writers' acknowledged entries, each of which exists once only.
    pub(crate) writers: Vec<Acknowledged>,
    /// The digests of the writers' entries whose outcome is unknown.
    pub(crate) unknown: BTreeSet<String>,
    /// The log of every member, by pod, each read while the member was cut off from its peers.
    pub(crate) logs: BTreeMap<String, Vec<Entry>>,
    /// How many members there should be.
    pub(crate) members: usize,
    /// The digest of the text that went in.
    pub(crate) sha256_in: String,
    /// The digest that each pod read back.
    pub(crate) sha256_out: BTreeMap<String, String>,
    /// The ballot that led before the partition.
    pub(crate) led_before_partition: Ballot,
    /// The ballots that came to lead while it lasted.
    pub(crate) led_during_partition: Vec<Ballot>,
}

/// What became of the acknowledged entries, and why the run fails, if it does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Acknowledged entries that stand as promised in every member's log.
    pub(crate) found: usize,
    /// Acknowledged entries that some member's log does not hold.
    pub(crate) lost: usize,
    /// Entries that some member's log holds more than once.
    pub(crate) duplicated: usize,
    /// Acknowledged entries that stand at another index in some member's log.
    pub(crate) reordered: usize,
    /// Entries whose writer was told last that the outcome is unknown, or was never told of. Writers append
    /// exactly once and try again until they know, so there must be none.
    pub(crate) unknown_outcome: usize,
    /// Why the run fails; empty if it does not.
    pub(crate) failures: Vec<String>,
}

impl Verdict {
    /// Whether everything was as promised.
    pub(crate) fn holds(&self) -> bool {
        self.failures.is_empty()
    }
}

/// Judges a run.
pub(crate) fn judge(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    let mut marks = Marks::default();
    for (pod, log) in &evidence.logs {
        check_density(pod, log, &mut verdict.failures);
        let places = Places::of(log);
        for entry in evidence.text.iter().chain(&evidence.writers) {
            marks.note(entry, places.fate(entry));
        }
    }
    let text: HashSet<u64> = evidence.text.iter().map(|entry| entry.index).collect();
    let once = |log: &Vec<Entry>| -> BTreeSet<String> { twice(log, &text) };
    let doubled: BTreeSet<String> = evidence.logs.values().flat_map(once).collect();
    verdict.duplicated = doubled.len();
    verdict.lost = marks.lost.len();
    verdict.reordered = marks.reordered.difference(&marks.lost).count();
    let wrong: HashSet<&(u64, String)> = marks.lost.iter().chain(&marks.reordered).collect();
    let right = |entry: &&Acknowledged| {
        !wrong.contains(&(entry.index, entry.sha256.clone())) && !doubled.contains(&entry.sha256)
    };
    verdict.found = if evidence.logs.is_empty() {
        0
    } else {
        evidence.text.iter().filter(|entry| !wrong.contains(&(entry.index, entry.sha256.clone()))).count()
            + evidence.writers.iter().filter(right).count()
    };
    verdict.unknown_outcome = unknown(evidence, &text);
    verdict.failures.extend(reasons(evidence, &verdict));
    verdict
}

fn reasons(evidence: &Evidence, verdict: &Verdict) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut say = |wrong: bool, text: String| {
        if wrong {
            reasons.push(text);
        }
    };
    let (read, wanted) = (evidence.logs.len(), evidence.members);
    say(read != wanted || wanted == 0, format!("the logs of {read} members were read, not of {wanted}"));
    say(verdict.lost > 0, format!("{} acknowledged entries are lost", verdict.lost));
    say(verdict.duplicated > 0, format!("{} entries stand more than once", verdict.duplicated));
    say(verdict.reordered > 0, format!("{} entries stand at another index", verdict.reordered));
    say(returned_twice(evidence) > 0, format!("{} indexes were returned twice", returned_twice(evidence)));
    let logs: Vec<&Vec<Entry>> = evidence.logs.values().collect();
    say(!agree(&logs), "the members' logs differ where they overlap".into());
    let writers = evidence.writers.len();
    say(
        writers < LEAST_ACKNOWLEDGED,
        format!("the writers had {writers} acknowledgements, fewer than {LEAST_ACKNOWLEDGED}"),
    );
    say(verdict.unknown_outcome > 0, format!("{} outcomes stayed unknown", verdict.unknown_outcome));
    let other = evidence.led_during_partition.iter().any(|ballot| *ballot != evidence.led_before_partition);
    say(!other, "no other ballot led during the partition".into());
    let whole = !evidence.sha256_out.is_empty()
        && evidence.sha256_out.values().all(|digest| *digest == evidence.sha256_in);
    say(!whole, "the text that was read back is not the text that went in".into());
    reasons
}

/// Where each digest stands in a log.
struct Places<'a> {
    at: HashMap<u64, &'a str>,
    of: HashMap<&'a str, u64>,
}

enum Fate {
    Right,
    Elsewhere,
    Missing,
}

impl<'a> Places<'a> {
    fn of(log: &'a [Entry]) -> Self {
        Places {
            at: log.iter().map(|entry| (entry.index, entry.sha256.as_str())).collect(),
            of: log.iter().map(|entry| (entry.sha256.as_str(), entry.index)).collect(),
        }
    }

    fn fate(&self, entry: &Acknowledged) -> Fate {
        if self.at.get(&entry.index) == Some(&entry.sha256.as_str()) {
            Fate::Right
        } else if self.of.contains_key(entry.sha256.as_str()) {
            Fate::Elsewhere
        } else {
            Fate::Missing
        }
    }
}

#[derive(Default)]
struct Marks {
    lost: HashSet<(u64, String)>,
    reordered: HashSet<(u64, String)>,
}

impl Marks {
    fn note(&mut self, entry: &Acknowledged, fate: Fate) {
        let marks = match fate {
            Fate::Right => return,
            Fate::Elsewhere => &mut self.reordered,
            Fate::Missing => &mut self.lost,
        };
        marks.insert((entry.index, entry.sha256.clone()));
    }
}

/// Indexes are dense, from 1.
fn check_density(pod: &str, log: &[Entry], failures: &mut Vec<String>) {
    if let Some((wanted, entry)) = (1..).zip(log).find(|(wanted, entry)| entry.index != *wanted) {
        failures.push(format!("the log of {pod} has index {} where {wanted} belongs", entry.index));
    }
}

/// The digests that stand more than once, but for those that belong to the text.
fn twice(log: &[Entry], text: &HashSet<u64>) -> BTreeSet<String> {
    let mut seen = HashSet::new();
    log.iter()
        .filter(|entry| !text.contains(&entry.index))
        .filter(|entry| !seen.insert(entry.sha256.as_str()))
        .map(|entry| entry.sha256.clone())
        .collect()
}

/// Entries with an unknown outcome: those that were reported so, and those in a log that nobody was
/// told about because the writer was killed first.
fn unknown(evidence: &Evidence, text: &HashSet<u64>) -> usize {
    let told: HashSet<&str> = evidence.writers.iter().map(|entry| entry.sha256.as_str()).collect();
    let mut unknown: HashSet<&str> = evidence.unknown.iter().map(String::as_str).collect();
    for entry in evidence.logs.values().flatten() {
        if !text.contains(&entry.index) && !told.contains(entry.sha256.as_str()) {
            unknown.insert(&entry.sha256);
        }
    }
    unknown.len()
}

fn returned_twice(evidence: &Evidence) -> usize {
    let mut seen = HashSet::new();
    evidence.text.iter().chain(&evidence.writers).filter(|entry| !seen.insert(entry.index)).count()
}

fn agree(logs: &[&Vec<Entry>]) -> bool {
    logs.iter().all(|log| log.iter().zip(logs[0]).all(|(one, other)| one == other))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: u64 = 100;
    const WRITERS: u64 = 10_050;

    fn digest(index: u64) -> String {
        // Lines of a text repeat themselves; writers' entries do not.
        if index <= TEXT { format!("text-{}", index % 7) } else { format!("entry-{index}") }
    }

    fn acknowledged(from: u64, to: u64) -> Vec<Acknowledged> {
        (from..=to).map(|index| Acknowledged { index, sha256: digest(index), at_ms: index }).collect()
    }

    fn good() -> Evidence {
        let log: Vec<Entry> =
            (1..=TEXT + WRITERS).map(|index| Entry { index, sha256: digest(index) }).collect();
        Evidence {
            text: acknowledged(1, TEXT),
            writers: acknowledged(TEXT + 1, TEXT + WRITERS),
            logs: ["demo-0", "demo-1", "demo-2"].map(|pod| (pod.to_owned(), log.clone())).into(),
            members: 3,
            sha256_in: "in".into(),
            sha256_out: [("demo-1".to_owned(), "in".to_owned())].into(),
            led_before_partition: "4.a".into(),
            led_during_partition: vec!["5.b".into()],
            ..Evidence::default()
        }
    }

    /// A log with dense indexes, as a member would show it.
    fn renumber(log: &mut [Entry]) {
        for (index, entry) in (1..).zip(log) {
            entry.index = index;
        }
    }

    fn log(evidence: &mut Evidence) -> &mut Vec<Entry> {
        evidence.logs.get_mut("demo-1").unwrap()
    }

    #[test]
    fn a_good_run_holds() {
        let verdict = judge(&good());
        assert!(verdict.holds(), "{:?}", verdict.failures);
        assert_eq!(verdict.found, (TEXT + WRITERS) as usize);
        assert_eq!(
            (verdict.lost, verdict.duplicated, verdict.reordered, verdict.unknown_outcome),
            (0, 0, 0, 0)
        );
    }

    #[test]
    fn one_entry_dropped_in_one_copy_fails() {
        for place in [0, 50, TEXT as usize, 5_000] {
            let mut evidence = good();
            log(&mut evidence).remove(place);
            assert!(!judge(&evidence).holds(), "a hole at {place}");
            renumber(log(&mut evidence));
            let verdict = judge(&evidence);
            assert!(!verdict.holds(), "closed up at {place}");
            assert!(verdict.lost + verdict.reordered > 0);
            assert!(verdict.found < (TEXT + WRITERS) as usize);
        }
    }

    #[test]
    fn the_last_entry_dropped_is_lost() {
        let mut evidence = good();
        log(&mut evidence).pop();
        let verdict = judge(&evidence);
        assert_eq!((verdict.lost, verdict.reordered), (1, 0));
        assert!(!verdict.holds());
    }

    #[test]
    fn one_entry_doubled_in_one_copy_fails() {
        let last = (TEXT + WRITERS) as usize - 1;
        for (from, to) in [(5_000, 5_001), (5_000, last + 1), (last, last + 1)] {
            let mut evidence = good();
            let again = log(&mut evidence)[from].clone();
            log(&mut evidence).insert(to, again);
            renumber(log(&mut evidence));
            let verdict = judge(&evidence);
            assert_eq!(verdict.duplicated, 1, "{from} again at {to}");
            assert!(!verdict.holds());
        }
    }

    #[test]
    fn one_line_of_the_text_doubled_fails() {
        let mut evidence = good();
        let again = log(&mut evidence)[3].clone();
        log(&mut evidence).insert(4, again);
        renumber(log(&mut evidence));
        assert!(!judge(&evidence).holds());
    }

    #[test]
    fn two_entries_swapped_in_one_copy_fail() {
        for (one, other) in [(5_000, 5_001), (200, 9_000), (3, 4)] {
            let mut evidence = good();
            log(&mut evidence).swap(one, other);
            renumber(log(&mut evidence));
            let verdict = judge(&evidence);
            assert_eq!(verdict.reordered, 2, "{one} and {other}");
            assert!(!verdict.holds());
        }
    }

    #[test]
    fn an_entry_with_another_content_fails() {
        let mut evidence = good();
        log(&mut evidence)[5_000].sha256 = "other".into();
        let verdict = judge(&evidence);
        assert_eq!(verdict.lost, 1);
        assert!(!verdict.holds());
    }

    #[test]
    fn logs_that_differ_where_nothing_was_acknowledged_fail() {
        let mut evidence = good();
        evidence.unknown = ["maybe".to_owned(), "perhaps".to_owned()].into();
        for (pod, tail) in [("demo-0", "maybe"), ("demo-1", "perhaps")] {
            let log = evidence.logs.get_mut(pod).unwrap();
            log.push(Entry { index: TEXT + WRITERS + 1, sha256: tail.into() });
        }
        let verdict = judge(&evidence);
        assert_eq!(verdict.unknown_outcome, 2);
        assert!(verdict.failures.iter().any(|reason| reason.contains("differ")), "{:?}", verdict.failures);
    }

    #[test]
    fn a_member_whose_log_was_not_read_fails() {
        let mut evidence = good();
        evidence.logs.remove("demo-2");
        assert!(!judge(&evidence).holds());
        evidence.logs.clear();
        let verdict = judge(&evidence);
        assert_eq!(verdict.found, 0);
        assert!(!verdict.holds());
    }

    #[test]
    fn too_few_acknowledgements_fail() {
        let mut evidence = good();
        evidence.writers.truncate(LEAST_ACKNOWLEDGED - 1);
        assert!(!judge(&evidence).holds());
    }

    #[test]
    fn unknown_outcomes_are_counted_once_and_fail() {
        let mut evidence = good();
        // Reported and found in the logs: one. Found only, since nobody was told: one more.
        evidence.unknown = ["reported".to_owned()].into();
        for log in evidence.logs.values_mut() {
            log.push(Entry { index: TEXT + WRITERS + 1, sha256: "reported".into() });
            log.push(Entry { index: TEXT + WRITERS + 2, sha256: "killed".into() });
        }
        let verdict = judge(&evidence);
        assert_eq!(verdict.unknown_outcome, 2);
        assert_eq!(verdict.failures, ["2 outcomes stayed unknown"]);
        let mut evidence = good();
        evidence.unknown = ["in no log".to_owned()].into();
        assert!(!judge(&evidence).holds());
    }

    #[test]
    fn an_index_returned_to_two_writers_fails() {
        let mut evidence = good();
        evidence.writers[10].index = evidence.writers[11].index;
        assert!(!judge(&evidence).holds());
    }

    #[test]
    fn a_partition_without_another_leader_fails() {
        let mut evidence = good();
        evidence.led_during_partition = vec![evidence.led_before_partition.clone()];
        assert!(!judge(&evidence).holds());
        evidence.led_during_partition.clear();
        assert!(!judge(&evidence).holds());
    }

    #[test]
    fn a_text_that_came_back_changed_fails() {
        let mut evidence = good();
        evidence.sha256_out.insert("demo-2".into(), "other".into());
        assert!(!judge(&evidence).holds());
        evidence.sha256_out.clear();
        assert!(!judge(&evidence).holds());
    }
}
