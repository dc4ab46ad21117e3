//! What a member asks for in one life has a name that it gave to nothing in an earlier life: a late answer to the
//! earlier one is no answer.

use crate::oracle::{Violation, violation};
use std::collections::BTreeMap;
use synod_paxos::{Incarnation, MemberId, Message};

/// The names that one member gave to one kind of question.
#[derive(Debug, Default)]
struct Given {
    life: Incarnation,
    /// The highest of that life, and of all before.
    newest: u64,
    earlier: Option<u64>,
}

/// Names of questions, by member and kind.
#[derive(Debug, Default)]
pub struct Names(BTreeMap<(MemberId, bool), Given>);

impl Names {
    /// A message leaves `member` in its life `life`.
    ///
    /// # Errors
    /// Where it names a question as an earlier life did.
    pub fn sent(&mut self, member: MemberId, life: Incarnation, message: &Message) -> Result<(), Violation> {
        let (reads, name) = match message {
            Message::ReadPointRequest { request, .. } => (true, request.0),
            Message::Canvass { id, .. } => (false, *id),
            _ => return Ok(()),
        };
        let given = self.0.entry((member, reads)).or_insert(Given { life, newest: name, earlier: None });
        if given.life != life {
            *given = Given { life, newest: name, earlier: Some(given.newest) };
        }
        given.newest = given.newest.max(name);
        match given.earlier {
            Some(earlier) if name <= earlier => violation(
                "no name of an earlier life",
                format!("{member:?} asks {message:?}; its last life had got to {earlier}"),
            ),
            _ => Ok(()),
        }
    }
}
