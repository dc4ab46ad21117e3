//! Who this member is, which cluster its disk belongs to, and whether it may vote (docs: protocol.md,
//! "Configurations", genesis; "Identity and amnesia").

use super::Node;
use crate::configuration::Configuration;
use crate::genesis::Genesis;
use crate::io::{AdminOutcome, Notice, Output, Refusal};
use crate::message::{Counters, Message};
use crate::row::Row;
use crate::status::MemberState;
use crate::storage::{Gated, Write};
use crate::system::SystemState;
use crate::types::{ClusterId, Digest, Instant, MemberId, RequestId, Slot};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;

/// So many election timeouts a start waits for voters that do not answer.
const PATIENCE: u32 = 2;

/// What this start has learnt from its peers.
#[derive(Debug, Default)]
pub(super) struct Handshake {
    nonce: u64,
    began: Instant,
    /// Voters that do not answer were waited for.
    has_waited: bool,
    /// Peers that answered this start's nonce.
    answered: BTreeSet<MemberId>,
    /// Peers that hold this genesis.
    agreed: BTreeSet<MemberId>,
    /// Asked through a connection, members of no configuration that this member knows included.
    joining_peers: BTreeSet<MemberId>,
}

impl Handshake {
    pub(super) fn new(now: Instant) -> Handshake {
        Handshake { began: now, ..Handshake::default() }
    }
}

impl Node {
    /// Takes the stored rows into memory: those above the applied slot. Rows the disk knows to be chosen are
    /// applied again.
    pub(super) fn load_rows(&mut self, rows: BTreeMap<Slot, Row>, chosen_through: Slot) {
        let Some(cluster) = self.cluster() else { return };
        if !planted!(MissingPromised) {
            // Every slot up to the watermark had its row when the watermark was written.
            let missing = self.chosen_through.0 + 1..=chosen_through.0;
            for slot in missing.map(Slot).filter(|slot| !rows.contains_key(slot)) {
                self.damaged.insert(slot);
                self.notice(Notice::Damaged { slot, from: None });
            }
        }
        for (slot, mut row) in rows {
            if slot <= self.chosen_through {
                continue;
            }
            if !row.is_intact(cluster) {
                if !planted!(DamagedReadAsEmpty) {
                    self.damaged.insert(slot);
                }
                self.notice(Notice::Damaged { slot, from: None });
                continue;
            }
            row.chosen |= slot <= chosen_through;
            self.rows.insert(slot, row);
        }
        self.advance();
    }

    pub(super) fn start_life(&mut self, removed: bool, fenced: Option<String>) {
        self.handshake.nonce = self.random.next();
        if self.halted {
            // It met a value that it cannot read on the way.
            return;
        }
        self.life = match (&self.genesis, fenced) {
            _ if removed && !planted!(TombstoneIgnored) => MemberState::Removed,
            (_, Some(why)) => MemberState::Fenced(why),
            (None, None) if self.joined.is_some() => MemberState::Joining,
            (None, None) => MemberState::Uninitialized,
            (Some(_), None) if self.genesis_confirmed => MemberState::Recovering,
            (Some(_), None) => MemberState::Joining,
        };
        self.try_activate();
    }

    pub(super) fn initialize(&mut self, request: RequestId, genesis: Genesis) {
        let digest = genesis.digest();
        let outcome = match (&self.genesis, genesis.validate()) {
            (Some(held), _) if held.founds_the_same(&genesis) => Ok(AdminOutcome::Initialized(held.digest())),
            (_, Err(error)) => Err(Refusal::Genesis(error)),
            (Some(_), Ok(())) => Err(Refusal::OtherGenesis),
            (None, Ok(())) if !genesis.members.contains_key(&self.me) => Err(Refusal::NotListed(self.me)),
            (None, Ok(())) if self.joined.is_some_and(|j| j != (genesis.cluster, digest)) => {
                Err(Refusal::OtherGenesis)
            }
            (None, Ok(())) => {
                self.adopt_genesis(genesis);
                self.life = MemberState::Joining;
                for peer in self.connected.clone() {
                    self.send_hello(peer);
                }
                self.try_activate();
                Ok(AdminOutcome::Initialized(digest))
            }
        };
        self.answer_when_durable(request, outcome);
    }

    pub(super) fn join(&mut self, request: RequestId, cluster: ClusterId, digest: Digest) {
        let held = self.genesis.as_ref().map(|g| (g.cluster, g.digest())).or(self.joined);
        let outcome = match held {
            Some(held) if held == (cluster, digest) => Ok(AdminOutcome::Joined),
            Some((actual, _)) if actual != cluster => Err(Refusal::OtherCluster { actual }),
            Some(_) => Err(Refusal::OtherGenesis),
            None => {
                self.joined = Some((cluster, digest));
                self.write(Write::Joined { cluster, digest });
                self.life = MemberState::Joining;
                for peer in self.connected.clone() {
                    self.send_hello(peer);
                }
                Ok(AdminOutcome::Joined)
            }
        };
        self.answer_when_durable(request, outcome);
    }

    fn answer_when_durable(&mut self, request: RequestId, outcome: Result<AdminOutcome, Refusal>) {
        match outcome {
            Ok(outcome) => self.gate(Gated::Admin(request, outcome)),
            Err(_) => self.outputs.push_back(Output::AdminReply { request, outcome }),
        }
    }

    fn adopt_genesis(&mut self, genesis: Genesis) {
        self.system = Some(SystemState::new(&genesis));
        self.write(Write::Genesis(genesis.clone()));
        self.genesis = Some(genesis);
    }

    /// Notes the sender's counters; false: the message is of an earlier life of the sender and is dropped.
    pub(super) fn note_counters(&mut self, from: MemberId, counters: Counters) -> bool {
        let known = self.peers.get(&from).copied().unwrap_or_default();
        if counters.incarnation < known.incarnation && !planted!(IncarnationUnchecked) {
            return false;
        }
        self.remember(from, counters);
        true
    }

    fn remember(&mut self, member: MemberId, counters: Counters) {
        let known = self.peers.entry(member).or_default();
        let most = Counters {
            incarnation: known.incarnation.max(counters.incarnation),
            written: known.written.max(counters.written),
        };
        if *known != most {
            *known = most;
            self.disk.note_peer(member);
        }
    }

    fn wants_handshake(&self) -> bool {
        matches!(self.life, MemberState::Recovering | MemberState::Joining)
    }

    pub(super) fn send_hello(&mut self, to: MemberId) {
        if !self.wants_handshake() || self.cluster().is_none() {
            return;
        }
        let digest = self.genesis.as_ref().map(Genesis::digest).or(self.joined.map(|(_, digest)| digest));
        let Some(genesis) = digest else { return };
        self.handshake.joining_peers.insert(to);
        let needs_genesis = self.genesis.is_none();
        self.send(to, Message::Hello { nonce: self.handshake.nonce, genesis, needs_genesis });
    }

    pub(super) fn resend_hello(&mut self, now: Instant) {
        let waited = now.since(self.handshake.began);
        self.handshake.has_waited |= waited >= self.settings().timeout * PATIENCE;
        // Whose answers are needed may have changed: a member that recovers learns of newer configurations.
        self.try_activate();
        if !self.wants_handshake() {
            return;
        }
        let mut peers = self.handshake.joining_peers.clone();
        if let Some(system) = &self.system {
            peers.extend(system.configurations.latest().members.keys());
        }
        peers.remove(&self.me);
        for peer in peers {
            let done = match self.life {
                MemberState::Joining => self.handshake.agreed.contains(&peer),
                _ => self.handshake.answered.contains(&peer),
            };
            if !done {
                self.send_hello(peer);
            }
        }
    }

    /// Answering a handshake needs no vote: members that recover answer each other.
    pub(super) fn handle_hello(&mut self, from: MemberId, nonce: u64, genesis: Digest, needs_genesis: bool) {
        let Some(held) = &self.genesis else { return };
        let (digest, encoded) = (held.digest(), held.encode());
        if digest != genesis {
            return;
        }
        let full_genesis = needs_genesis.then_some(encoded);
        if !needs_genesis {
            self.handshake.agreed.insert(from);
            self.try_activate();
        }
        let remembered = self.peers.get(&from).copied().unwrap_or_default();
        let gossip: Vec<_> = self.peers.iter().map(|(&m, &c)| (m, c)).collect();
        let chosen_through = self.chosen_through;
        self.send(
            from,
            Message::Welcome { nonce, remembered, gossip, genesis: digest, full_genesis, chosen_through },
        );
    }

    pub(super) fn handle_welcome(
        &mut self,
        from: MemberId,
        nonce: u64,
        remembered: Counters,
        gossip: &[(MemberId, Counters)],
        genesis: Digest,
        full_genesis: Option<Bytes>,
    ) {
        if nonce != self.handshake.nonce {
            return;
        }
        if let (None, Some((_, digest)), Some(bytes)) = (&self.genesis, self.joined, full_genesis) {
            match Genesis::decode(bytes) {
                Ok(full) if full.digest() == digest => {
                    self.adopt_genesis(full);
                    self.confirm_genesis();
                    self.life = MemberState::Active;
                }
                _ => return,
            }
        }
        if self.genesis.as_ref().map(Genesis::digest) != Some(genesis) {
            return;
        }
        self.fence_if_less(from, remembered);
        for &(member, counters) in gossip {
            if member == self.me {
                self.fence_if_less(from, counters);
            } else {
                self.remember(member, counters);
            }
        }
        self.handshake.agreed.insert(from);
        self.handshake.answered.insert(from);
        self.try_activate();
    }

    /// A live answer that remembers more than this disk shows: the disk was restored from an old copy, and
    /// what it promised since is forgotten. It must never vote again.
    fn fence_if_less(&mut self, by: MemberId, remembered: Counters) {
        let shown = Counters { incarnation: self.incarnation, written: self.disk.durable_written() };
        let less = remembered.incarnation > shown.incarnation || remembered.written > shown.written;
        let out = matches!(self.life, MemberState::Fenced(_) | MemberState::Halted(_) | MemberState::Removed);
        if !less || out || planted!(IncarnationUnchecked) {
            return;
        }
        let why = format!(
            "this disk shows boot {} and write {}, but {by} remembers boot {} and write {}: it was restored from \
             an older copy and is fenced; replace this member",
            shown.incarnation, shown.written, remembered.incarnation, remembered.written
        );
        self.write(Write::Fenced(why.clone()));
        self.notice(Notice::Fenced(why.clone()));
        self.life = MemberState::Fenced(why);
        self.end_part("fenced");
    }

    fn confirm_genesis(&mut self) {
        if !self.genesis_confirmed {
            self.genesis_confirmed = true;
            self.write(Write::GenesisConfirmed);
        }
    }

    /// Joining ends when every founding member holds this genesis; recovering ends when every voter of every
    /// configuration in force or pending has answered, or a quorum, this member included, and the others were waited
    /// for: the one that remembers most of this disk may be slower than a quorum (docs: decisions/0008).
    fn try_activate(&mut self) {
        let Some(genesis) = &self.genesis else { return };
        match self.life {
            MemberState::Joining => {
                let mut agreed = self.handshake.agreed.clone();
                agreed.insert(self.me);
                if genesis.members.keys().all(|m| agreed.contains(m)) {
                    self.confirm_genesis();
                    self.life = MemberState::Active;
                }
            }
            MemberState::Recovering => {
                let mut answered = self.handshake.answered.clone();
                answered.insert(self.me);
                let next = self.chosen_through.next();
                let configurations = &self.state().configurations;
                let waits = !self.handshake.has_waited && !planted!(StartDoesNotWait);
                let suffices = |c: &Configuration| match waits {
                    true => c.voters().all(|voter| answered.contains(&voter)),
                    false => c.has_quorum(&answered),
                };
                if configurations.from(next).all(suffices) {
                    self.life = MemberState::Active;
                }
            }
            MemberState::Uninitialized
            | MemberState::Active
            | MemberState::Fenced(_)
            | MemberState::Halted(_)
            | MemberState::Removed => {}
        }
    }

    /// Known removed members get no hearing as candidates, once the configuration without them is in force.
    /// As acceptors they are heard until they retire.
    pub(super) fn is_refused_sender(&self, from: MemberId, message: &Message) -> bool {
        let campaigns = matches!(message, Message::Canvass { .. } | Message::Prepare { .. });
        let configurations = &self.state().configurations;
        campaigns
            && configurations.removed_in(from).is_some()
            && configurations.from(self.chosen_through.next()).all(|c| !c.is_voter(from))
    }

    /// Tells a member that lags how far the log goes, so that it asks for the entry that removed it.
    pub(super) fn send_chosen_position(&mut self, to: MemberId) {
        let (trim_through, chosen_through) = (self.trim_through, self.chosen_through);
        self.send(
            to,
            Message::Learned { from: chosen_through.next(), trim_through, chosen_through, rows: Vec::new() },
        );
    }

    /// The prefix this member voted in is safe without it. Only an applied entry that removes this very id
    /// makes a tombstone.
    pub(super) fn handle_retire(&mut self, version: u64, slot: Slot) {
        if self.state().configurations.removed_in(self.me) != Some(slot) {
            return;
        }
        self.write(Write::Tombstone { version, slot });
        self.life = MemberState::Removed;
        self.notice(Notice::Removed);
        self.end_part("removed");
    }

    /// Ends every role and answers everything that waits.
    pub(super) fn end_part(&mut self, why: &'static str) {
        self.step_down(why);
        self.forget_leader();
        self.refuse_all_waiting(why);
    }
}
