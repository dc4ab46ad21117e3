//! Slots in which others accepted something that this version may be unable to read (docs: decisions/0012).

use super::Node;
use crate::io::Notice;
use crate::types::{Instant, MemberId, Slot};
use crate::value::Value;
use bytes::Bytes;

impl Node {
    /// What is proposed in a slot in which `value` was accepted: that very value. One that cannot be read here gets no
    /// votes; while it may be chosen, nothing is proposed in its place (`None`). The slot is free once others' promises
    /// leave too few members that may have voted for it.
    pub(super) fn adopted(&mut self, slot: Slot, value: Bytes) -> Option<Bytes> {
        if self.read_value(&value).is_ok() || planted!(UndecodableProposed) {
            return Some(value);
        }
        let (chosen_through, system) = (self.chosen_through, self.system.as_ref()?);
        let proposer = self.proposer.as_mut()?;
        // Were it chosen under some ballot, every later one would have proposed it too: whoever voted for it then
        // reports it now.
        let promisers = proposer.promisers(chosen_through);
        let reported =
            |member: &MemberId| proposer.unreadable.get(&slot).is_some_and(|by| by.contains(member));
        let conf = system.configurations.at(slot);
        let may_hold = conf.voters().filter(|voter| reported(voter) || !promisers.contains(voter)).collect();
        if !conf.has_quorum(&may_hold) && slot > proposer.reported_chosen {
            return Some(Value::NoOp.encode());
        }
        if core::mem::replace(&mut proposer.withheld, slot) != slot {
            self.notice(Notice::Withheld { slot });
        }
        None
    }

    /// Recovery has waited for two election timeouts at a slot whose value cannot be read here: whoever reads it is to
    /// lead.
    pub(super) fn withholds_in_vain(&mut self, now: Instant) -> bool {
        let (timeout, next) = (self.settings().timeout, self.chosen_through.next());
        let Some(proposer) = self.proposer.as_mut() else { return false };
        if proposer.withheld < next {
            proposer.withheld_since = None;
            return false;
        }
        now.since(*proposer.withheld_since.get_or_insert(now)) >= timeout * 2
    }
}
