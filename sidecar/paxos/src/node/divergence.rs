//! Comparing chains: members that applied the same log to different states must not go on (docs: protocol.md,
//! "Integrity"; reliability.md, fault 57).

use super::Node;
use crate::io::Notice;
use crate::message::{ChainPoint, Message};
use crate::status::MemberState;
use crate::storage::Write;
use crate::types::{Instant, MemberId};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec::Vec;

impl Node {
    /// What a heartbeat names: the newest point, so that everyone answers for the same slot.
    pub(super) fn newest_chain_point(&self) -> Option<ChainPoint> {
        let (slot, chain) = self.system.as_ref()?.chain_points.last().copied()?;
        Some(ChainPoint { slot, chain })
    }

    /// The answer to a heartbeat's point: this member's chain there, or at its newest point before it.
    pub(super) fn chain_point_for(&self, asked: Option<ChainPoint>) -> Option<ChainPoint> {
        let points = &self.system.as_ref()?.chain_points;
        let asked = asked?.slot;
        points.iter().rev().find(|(slot, _)| *slot <= asked).map(|&(slot, chain)| ChainPoint { slot, chain })
    }

    /// A member answered for a point. The member that differs from an agreeing quorum is fenced, the leader
    /// included; without such a quorum everybody stops, and nobody is replaced.
    pub(super) fn compare_chains(&mut self, now: Instant, point: ChainPoint) {
        if planted!(ChainNotCompared) {
            return;
        }
        let (me, timeout) = (self.me, self.settings().timeout);
        let Some(own) = self.system.as_ref().and_then(|s| s.chain_at(point.slot)) else { return };
        let Some(proposer) = self.proposer.as_mut() else { return };
        let mut groups: BTreeMap<u128, BTreeSet<MemberId>> = BTreeMap::from([(own, BTreeSet::from([me]))]);
        for (member, progress) in &proposer.progress {
            if let Some(held) = progress.chain.filter(|held| held.slot == point.slot && *member != me) {
                groups.entry(held.chain).or_default().insert(*member);
            }
        }
        if groups.len() < 2 {
            return;
        }
        let since = *proposer.diverged_since.get_or_insert(now);
        let configuration = self.state().configurations.at(point.slot.next()).clone();
        let agreed = groups.iter().find(|(_, members)| configuration.has_quorum(members));
        match agreed.map(|(chain, members)| (*chain, members.iter().copied().collect::<Vec<_>>())) {
            Some((chain, agreed)) => {
                let at = ChainPoint { slot: point.slot, chain };
                let others = groups.iter().filter(|(other, _)| **other != chain);
                for member in others.flat_map(|(_, members)| members.iter().copied()).collect::<Vec<_>>() {
                    if member == me {
                        self.fence_as_diverged(at);
                    } else {
                        let agreed = agreed.clone();
                        self.send(member, Message::Diverged { at, agreed });
                    }
                }
            }
            // Others may answer yet.
            None if now.since(since) < timeout => {}
            None => {
                for member in groups.into_values().flatten().filter(|member| *member != me) {
                    self.send(member, Message::Diverged { at: point, agreed: Vec::new() });
                }
                self.halt_as_diverged(point);
            }
        }
    }

    /// The leader found a difference. Each member judges its own chain, and the quorum that stands against it.
    pub(super) fn handle_diverged(&mut self, at: ChainPoint, agreed: &[MemberId]) {
        let Some(own) = self.system.as_ref().and_then(|s| s.chain_at(at.slot)) else { return };
        let agreed: BTreeSet<MemberId> = agreed.iter().copied().collect();
        if agreed.is_empty() {
            return self.halt_as_diverged(at);
        }
        let quorum = self.state().configurations.at(at.slot.next()).has_quorum(&agreed);
        if own != at.chain && quorum && !agreed.contains(&self.me) {
            self.fence_as_diverged(at);
        }
    }

    fn fence_as_diverged(&mut self, at: ChainPoint) {
        let why = format!(
            "this member's state differs from a quorum's at slot {}: it is fenced; replace this member",
            at.slot
        );
        self.write(Write::Fenced(why.clone()));
        self.notice(Notice::Diverged { slot: at.slot });
        self.life = MemberState::Fenced(why);
        self.end_part("its state differs from a quorum's");
    }

    fn halt_as_diverged(&mut self, at: ChainPoint) {
        self.notice(Notice::Diverged { slot: at.slot });
        self.life = MemberState::Halted(format!(
            "the members' states differ at slot {} and no quorum agrees: nobody serves; keep all volumes and \
             compare the members' exports",
            at.slot
        ));
        self.end_part("the members' states differ");
        self.halted = true;
    }
}
