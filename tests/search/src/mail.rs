//! Messages under way, and which of them a search follows.

use crate::model::Bounds;
use crate::print::Print;
use std::fmt;
use std::sync::Arc;
use synod_paxos::{Incoming, Message};

/// A message under way; told apart by all but its sender's write counter.
#[derive(Clone)]
pub struct Mail(pub(crate) Arc<Incoming>);

impl PartialEq for Mail {
    fn eq(&self, other: &Mail) -> bool {
        self.0.message == other.0.message && (self.0.from, self.0.to) == (other.0.from, other.0.to)
    }
}

impl fmt::Debug for Mail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Incoming { from, to, message, .. } = &*self.0;
        write!(f, "{}>{} ", from.0, to.0)?;
        match message {
            Message::Prepare { ballot, .. } => write!(f, "Prepare {ballot:?}"),
            Message::Promise { ballot, rows, .. } => write!(f, "Promise {ballot:?} {rows:?}"),
            Message::Accept { ballot, slot, value, chosen_through, .. } => {
                write!(f, "Accept {slot:?}@{ballot:?}({}B), chosen {chosen_through:?}", value.len())
            }
            Message::Accepted { ballot, slots, .. } => write!(f, "Accepted {ballot:?} {slots:?}"),
            Message::Nack { ballot, promised, .. } => write!(f, "Nack {ballot:?}, promised {promised:?}"),
            other => write!(f, "{other:?}"),
        }
    }
}

impl Mail {
    /// The message as it travels in a search: what no rule of agreement reads is the same in all.
    pub(crate) fn of(incoming: Incoming) -> (u128, Mail) {
        let Incoming { cluster, from, counters, to, mut message } = incoming;
        if let Message::Accept { has_quorum, .. } = &mut message {
            *has_quorum = true;
        }
        let mut print = Print::default();
        // Two views of one disk that hold the same rows are the same promise.
        let view = if let Message::Promise { view, rows, .. } = &mut message {
            rows.iter().for_each(|row| print.bytes(&row.value));
            Some(std::mem::replace(view, synod_paxos::message::ViewId(0)))
        } else {
            None
        };
        if let Message::Accept { value, .. } = &message {
            print.bytes(value);
        }
        print.masked(&(from, to, &message));
        if let (Message::Promise { view: place, .. }, Some(view)) = (&mut message, view) {
            *place = view;
        }
        (print.finish(), Mail(Arc::new(Incoming { cluster, from, counters, to, message })))
    }

    /// Whether a search follows it (see the crate's documentation).
    pub(crate) fn travels(&self, bounds: &Bounds) -> bool {
        match &self.0.message {
            Message::Accept { slot, .. } => slot.0 <= bounds.slots,
            Message::Prepare { .. } | Message::Promise { .. } | Message::Accepted { .. } => true,
            Message::Nack { .. } => bounds.nacks,
            _ => false,
        }
    }
}
