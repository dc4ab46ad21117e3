//! Mail that can have no effect any more, which is thrown away.

use crate::mail::Mail;
use crate::member::Event;
use crate::model::{Model, State, place};
use synod_paxos::{MemberId, Message};

impl Model {
    /// Throws away mail that can have no effect any more; `actor` is the only member that moved, if only one did.
    pub(crate) fn purge(&self, state: &mut State, actor: Option<MemberId>) {
        if !self.bounds.reductions.mail {
            return;
        }
        // Whether mail is dead rests on whom it is to, and on what becomes of the answer to whom it is from.
        let touched =
            |mail: &Mail| actor.is_none_or(|id| [mail.incoming().to, mail.incoming().from].contains(&id));
        let dead = |mail: &Mail| touched(mail) && self.is_dead(state, mail);
        if state.mail.iter().any(dead) {
            let kept = state.mail.iter().filter(|mail| !dead(mail)).cloned().collect();
            state.mail = kept;
        }
    }

    fn is_dead(&self, state: &State, mail: &Mail) -> bool {
        self.is_over(state, mail) || self.stays_idle(state, mail) && self.does_nothing(state, mail)
    }

    /// A Prepare or Accept below what its receiver's disk has promised (promises do not go back, which is a property of
    /// every search), or an answer to a candidacy or leadership that is over (no ballot is resumed).
    fn is_over(&self, state: &State, mail: &Mail) -> bool {
        let incoming = mail.incoming();
        let facts = &state.seats[place(incoming.to)].facts;
        match &incoming.message {
            Message::Prepare { ballot, .. } | Message::Accept { ballot, .. } => *ballot < facts.promised,
            Message::Promise { ballot, .. }
            | Message::Accepted { ballot, .. }
            | Message::Nack { ballot, .. } => facts.proposes != Some(*ballot),
            _ => false,
        }
    }

    /// Whether a message that does nothing now will do nothing later.
    fn stays_idle(&self, state: &State, mail: &Mail) -> bool {
        let incoming = mail.incoming();
        let seat = &state.seats[place(incoming.to)];
        if self.bounds.promote {
            // Members may get a vote meanwhile.
            return matches!(incoming.message, Message::Accept { .. }) && state.crashes == 0;
        }
        match &incoming.message {
            // It is promised: what is left is the answer.
            Message::Prepare { ballot, .. } => *ballot == seat.facts.promised,
            Message::Promise { .. } => seat.settled,
            // It is counted, or its slot is not in flight any more.
            Message::Accepted { .. } => true,
            // What its receiver has and knows of; a crash may make it forget.
            Message::Accept { .. } => state.crashes == 0,
            _ => false,
        }
    }

    /// Whether a message changes nothing at its receiver, and is answered by nothing that is not under way or dead.
    fn does_nothing(&self, state: &State, mail: &Mail) -> bool {
        let incoming = mail.incoming();
        let seat = &state.seats[place(incoming.to)];
        if seat.facts.writes {
            return false;
        }
        let outcome = self.settled(seat, incoming.to, &Event::Message(mail.clone()));
        let after = &outcome.seat;
        let same = match &incoming.message {
            Message::Promise { .. } | Message::Accepted { .. } if !self.bounds.promote => {
                after.late == seat.late
            }
            _ => after.number == seat.number,
        } || state.is_quiet(place(incoming.to), seat)
            && state.is_quiet(place(incoming.to), after)
            && after.quiet == seat.quiet;
        same && outcome.sent.iter().all(|answer| {
            !answer.travels(&self.bounds)
                || state.mail.contains(answer)
                || self.is_over(state, answer)
                || matches!(answer.incoming().message, Message::Promise { .. } | Message::Accepted { .. })
                    && self.is_dead(state, answer)
        })
    }
}
