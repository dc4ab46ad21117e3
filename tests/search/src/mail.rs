//! Messages under way, and which of them a search follows.

use crate::known::Known;
use crate::model::Bounds;
use crate::print::{Depth, Print};
use std::fmt;
use std::sync::Arc;
use synod_paxos::message::ViewId;
use synod_paxos::{Incoming, Message};

/// A message under way; told apart by all but its sender's write counter and the number of its view.
#[derive(Clone)]
pub struct Mail(Arc<Letter>);

struct Letter {
    number: u32,
    incoming: Incoming,
}

impl PartialEq for Mail {
    fn eq(&self, other: &Mail) -> bool {
        self.number() == other.number()
    }
}

impl fmt::Debug for Mail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Incoming { from, to, message, .. } = &self.0.incoming;
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
    /// Mail with a number.
    pub(crate) fn new(number: u32, incoming: Incoming) -> Mail {
        Mail(Arc::new(Letter { number, incoming }))
    }

    /// The message as it travels in a search: what no rule of agreement reads is the same in all.
    pub(crate) fn of(mut incoming: Incoming, known: &Known) -> Mail {
        let mut print = Print::to(Depth::Traces);
        // Two views of one disk that hold the same rows are the same promise.
        match &mut incoming.message {
            Message::Promise { view, rows, .. } => {
                *view = ViewId(0);
                rows.iter().for_each(|row| print.bytes(&row.value));
            }
            Message::Accept { value, has_quorum, .. } => {
                *has_quorum = true;
                print.bytes(value);
            }
            // A handshake is answered by its nonce.
            Message::Hello { nonce, .. } | Message::Welcome { nonce, .. } => {
                print.bytes(&nonce.to_le_bytes())
            }
            _ => {}
        }
        print.masked(&(incoming.from, incoming.to, &incoming.message));
        known.mail(print.finish(), incoming)
    }

    /// Tells it apart from all other mail of the search.
    pub(crate) fn number(&self) -> u32 {
        self.0.number
    }

    /// The message with its envelope.
    pub(crate) fn incoming(&self) -> &Incoming {
        &self.0.incoming
    }

    /// Whether a search follows it (see the crate's documentation).
    pub(crate) fn travels(&self, bounds: &Bounds) -> bool {
        match &self.incoming().message {
            Message::Accept { slot, .. } => slot.0 <= bounds.slots,
            Message::Prepare { .. } | Message::Promise { .. } | Message::Accepted { .. } => true,
            Message::Nack { .. } => bounds.nacks,
            _ => false,
        }
    }
}
