//! The table of reasons in docs/socket.md, made from `errors.proto`.

use crate::v1::{Outcome, Reason};

/// The text of `errors.proto`.
const SOURCE: &str = include_str!("../proto/synod/v1/errors.proto");

/// A table in Markdown: code, reason, what an append has come to, and the meaning.
pub fn reasons() -> String {
    let mut table = "| code | reason | an append | meaning, and what to do |\n|---|---|---|---|\n".to_owned();
    for (reason, meaning) in documented() {
        let code = screaming(&format!("{:?}", reason.code()));
        let outcome = match reason.append_outcome() {
            Outcome::NotAppended => "not appended",
            _ => "unknown",
        };
        table.push_str(&format!("| `{code}` | `{}` | {outcome} | {meaning} |\n", reason.word()));
    }
    table
}

/// Each reason with the comment above it, in the order of its numbers.
fn documented() -> Vec<(Reason, String)> {
    let (mut comment, mut found) = (Vec::new(), Vec::new());
    for line in SOURCE.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("// ") {
            comment.push(text);
            continue;
        }
        let name = line.split(" = ").next().unwrap_or_default();
        match Reason::from_str_name(name) {
            None | Some(Reason::Unspecified) => {}
            Some(reason) => found.push((reason, comment.join(" "))),
        }
        comment.clear();
    }
    found.sort_by_key(|(reason, _)| i32::from(*reason));
    found
}

/// `FailedPrecondition` as `FAILED_PRECONDITION`.
fn screaming(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(c.to_ascii_uppercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_documented() {
        let documented = documented();
        // Up to the first number that no reason has.
        let count = (1..).take_while(|number| Reason::try_from(*number).is_ok()).count();
        assert_eq!(documented.len(), count);
        assert!(documented.iter().all(|(_, meaning)| meaning.ends_with('.')), "{documented:?}");
    }
}
