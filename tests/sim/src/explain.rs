//! A failure as a person reads it: a time line of the members, then what happened, step by step.

use crate::action::{Action, Step};
use crate::replay::replay;
use crate::setup::Setup;
use std::collections::BTreeMap;

/// Columns of a time line.
const WIDTH: usize = 64;

/// What a member was doing in a stretch of time, and how it is drawn; later ones win.
const MARKS: &[(char, &str)] = &[
    (' ', "not there"),
    ('-', "runs"),
    ('.', "down"),
    ('L', "leads"),
    ('c', "campaigns"),
    ('^', "starts"),
    ('x', "dies"),
    ('d', "its disk goes wrong"),
    ('X', "its volume is gone"),
];

/// The time line of a list of steps: one row a member, one column a stretch of time.
///
/// ```text
///   m7   ^--------cLLLLLLLLLx.....^------
///   m12  ^-----------------------cLLLLLLL
/// ```
pub fn time_line(setup: &Setup, steps: &[Step]) -> Vec<String> {
    let (Some(first), Some(last)) = (steps.first(), steps.last()) else { return Vec::new() };
    let span = (last.at - first.at).max(1);
    let column = |at: u64| {
        let place = u128::from(at - first.at) * (WIDTH as u128 - 1) / u128::from(span);
        usize::try_from(place).unwrap_or(WIDTH - 1)
    };
    let mut rows: BTreeMap<u64, Vec<char>> = BTreeMap::new();
    let mut state: BTreeMap<u64, (usize, char)> = BTreeMap::new();
    let mut mark = |member: u64, at: u64, now: char, then: char| {
        let row = rows.entry(member).or_insert_with(|| vec![' '; WIDTH]);
        let here = column(at);
        if let Some((since, steady)) = state.insert(member, (here, then)) {
            for cell in row.iter_mut().take(here).skip(since) {
                *cell = stronger(*cell, steady);
            }
        }
        row[here] = stronger(row[here], now);
    };
    for (at, member, now, then) in moments(setup, steps) {
        mark(member, at, now, then);
    }
    for (member, (since, steady)) in state {
        if let Some(row) = rows.get_mut(&member) {
            for cell in row.iter_mut().skip(since) {
                *cell = stronger(*cell, steady);
            }
        }
    }
    let mut lines = vec![format!("{:.1} ms to {:.1} ms", first.at as f64 / 1e6, last.at as f64 / 1e6)];
    for (member, row) in rows {
        lines.push(format!("{:<7}{}", format!("m{member:x}"), row.into_iter().collect::<String>()));
    }
    let legend: Vec<String> = MARKS.iter().skip(1).map(|(c, what)| format!("{c} {what}")).collect();
    lines.push(legend[..4].join(", "));
    lines.push(legend[4..].join(", "));
    lines
}

fn rank(mark: char) -> usize {
    MARKS.iter().position(|(c, _)| *c == mark).unwrap_or(0)
}

fn stronger(a: char, b: char) -> char {
    if rank(b) > rank(a) { b } else { a }
}

/// When something changed at a member: how that moment is drawn, and the time behind it.
fn moments(setup: &Setup, steps: &[Step]) -> Vec<(u64, u64, char, char)> {
    let mut moments = Vec::new();
    for step in steps {
        match &step.action {
            Action::Start { member, .. } => moments.push((step.at, *member, '^', '-')),
            Action::Crash { member, .. } => moments.push((step.at, *member, 'x', '.')),
            Action::Destroy { member } => moments.push((step.at, *member, 'X', ' ')),
            Action::Flip { member, .. }
            | Action::FlipFlag { member, .. }
            | Action::Lose { member, .. }
            | Action::Misdirect { member, .. } => {
                moments.push((step.at, *member, 'd', '-'));
            }
            Action::LoseSyncs { member } | Action::Restore { member } => {
                moments.push((step.at, *member, 'd', '-'));
            }
            _ => {}
        }
    }
    // Roles are what the core says of itself: read from the trace of a replay.
    let replayed = replay(setup, steps, true);
    for line in replayed.world.trace.lines() {
        let Some((at, member, text)) = said(line) else { continue };
        if text.starts_with("Campaigning") {
            moments.push((at, member, 'c', '-'));
        } else if text.starts_with("Leading") {
            moments.push((at, member, 'L', 'L'));
        } else if text.starts_with("SteppedDown") {
            moments.push((at, member, '-', '-'));
        }
    }
    moments.sort_by_key(|moment| moment.0);
    moments
}

/// Splits a trace line "1.234ms  m7: what it says".
fn said(line: &str) -> Option<(u64, u64, &str)> {
    let (time, rest) = line.trim_start().split_once("ms  m")?;
    let (member, text) = rest.split_once(": ")?;
    let at = (time.parse::<f64>().ok()? * 1e6) as u64;
    Some((at, u64::from_str_radix(member, 16).ok()?, text))
}

/// The trace of a list of steps, for a person.
pub fn trace(setup: &Setup, steps: &[Step]) -> Vec<String> {
    replay(setup, steps, true).world.trace.lines().to_vec()
}
