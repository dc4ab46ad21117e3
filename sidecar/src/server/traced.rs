//! Traces go with entries: from whoever appends to whoever reads (docs: tracing.md).

use crate::spans::{self, Trace};
use synod_paxos::value::{Append, Entry, Operation, TRACE};
use synod_paxos::{Settings, limits};
use synod_proto::v1::SubscribeResponse;

/// The same append, each of its entries with the trace that it is in: unless the entry has one of its own, nobody looks at
/// the trace, the log has no headers yet, or there is no room for it. An append is never refused for its trace.
pub(super) fn carried(operation: Operation, trace: Option<&Trace>, settings: Option<&Settings>) -> Operation {
    let (Some(trace), Some(settings)) = (trace, settings) else { return operation };
    if settings.format_level < Settings::TIMES || !trace.is_sampled() {
        return operation;
    }
    match operation {
        Operation::Append(append) => Operation::Append(with(append, trace, settings)),
        Operation::FencedAppend { fence, append } => {
            Operation::FencedAppend { fence, append: with(append, trace, settings) }
        }
        other => other,
    }
}

fn with(append: Append, Trace(trace): &Trace, settings: &Settings) -> Append {
    let mut headers = 0;
    let traced = append.entries.iter().map(|entry| {
        let mut all = entry.headers();
        all.entry(TRACE.to_owned()).or_insert_with(|| trace.clone());
        headers += all.len();
        let traced = Entry::new(entry.payload.clone(), &all).ok();
        traced.filter(|traced| traced.size() <= settings.limits.entry_bytes as usize)
    });
    let traced: Option<Vec<Entry>> = traced.collect();
    match traced.map(|entries| Append { entries, ..append.clone() }) {
        Some(traced)
            if headers <= limits::CALL_HEADERS && traced.size() <= settings.limits.call_bytes as usize =>
        {
            traced
        }
        _ => append,
    }
}

/// Entries go to a subscriber, whose own call may be traced.
pub(super) fn delivered(message: &SubscribeResponse, call: Option<&Trace>) {
    if !spans::is_on() {
        return;
    }
    for entry in &message.entries {
        if let Some(trace) = entry.headers.get(TRACE) {
            spans::delivered(trace, entry.index, call);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::BTreeMap;

    const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn found(entry: Entry, trace: &str, settings: &Settings) -> Option<String> {
        let append = Append { entries: vec![entry], ..Append::plain(Vec::new()) };
        let carried = carried(Operation::Append(append), Some(&Trace(trace.to_owned())), Some(settings));
        carried.as_append().unwrap().entries[0].headers().remove(TRACE)
    }

    #[test]
    fn a_trace_goes_along_where_there_is_room() {
        let level = |format_level| Settings { format_level, ..Settings::default() };
        let with = |headers: &[(&str, &str)], bytes| {
            let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            Entry::new(vec![0; bytes].into(), &headers.collect()).unwrap()
        };
        let sampled = Some(SAMPLED.to_owned());
        assert_eq!(found(with(&[], 1), SAMPLED, &level(4)), sampled);
        assert_eq!(found(with(&[("a", "b")], 1), SAMPLED, &level(4)), sampled);
        assert_eq!(found(with(&[(TRACE, "own")], 1), SAMPLED, &level(4)).as_deref(), Some("own"));
        assert_eq!(found(with(&[], 1), SAMPLED, &level(3)), None);
        for unseen in [&SAMPLED.replace("-01", "-00"), "", "01", "00-0-0-01"] {
            assert_eq!(found(with(&[], 1), unseen, &level(4)), None, "{unseen}");
        }
        let largest = Settings::default().limits.entry_bytes as usize;
        assert_eq!(found(with(&[], largest), SAMPLED, &level(4)), None);
        let many: BTreeMap<String, String> =
            (0..limits::HEADERS).map(|number| (format!("h{number}"), String::new())).collect();
        assert_eq!(found(Entry::new("x".into(), &many).unwrap(), SAMPLED, &level(4)), None);
    }
}
