//! What members say to each other.

use crate::row::Row;
use crate::types::{
    Ballot, ClusterId, Digest, Incarnation, Index, MemberId, RequestId, SessionId, Slot, WriteCounter,
};
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use core::time::Duration;

/// Names a storage view at the member that opened it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ViewId(pub u64);

/// A member's durable counters, as it shows them or as a peer remembers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counters {
    /// Boots.
    pub incarnation: Incarnation,
    /// Writes.
    pub written: WriteCounter,
}

/// Which of a peer's three streams a message takes (docs: architecture.md, "synod-sidecar").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Small and urgent.
    Control,
    /// Accepts, their answers, forwarded calls.
    Data,
    /// Promise chunks and learnt rows.
    Bulk,
}

/// One message's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Asks what the receiver remembers of the sender: the first word after a start.
    Hello {
        /// Echoed, so that an answer cannot be one to an earlier life.
        nonce: u64,
        /// The sender's genesis.
        genesis: Digest,
        /// The sender knows only the digest and wants the whole.
        needs_genesis: bool,
    },
    /// The answer to [`Message::Hello`].
    Welcome {
        /// The asker's.
        nonce: u64,
        /// The most the sender remembers of the asker; zeros if it never heard it.
        remembered: Counters,
        /// The most the sender remembers of everyone.
        gossip: Vec<(MemberId, Counters)>,
        /// The sender's genesis.
        genesis: Digest,
        /// The encoded genesis, if it was asked for.
        full_genesis: Option<Bytes>,
        /// The sender's chosen prefix.
        chosen_through: Slot,
    },
    /// Asks whether the receiver would promise (pre-vote).
    Canvass {
        /// Echoed.
        id: u64,
        /// The ballot that would be raised.
        ballot: Ballot,
        /// From which slot on.
        from: Slot,
        /// The ballot whose leader asked for this campaign.
        hand_over: Option<Ballot>,
    },
    /// The answer to [`Message::Canvass`].
    CanvassReply {
        /// The asker's.
        id: u64,
        /// Whether the sender would promise now.
        willing: bool,
        /// What the sender has promised.
        promised: Ballot,
        /// The sender's chosen prefix.
        chosen_through: Slot,
    },
    /// Phase 1a for every slot from `from` on.
    Prepare {
        /// The candidate's.
        ballot: Ballot,
        /// Its chosen prefix + 1.
        from: Slot,
        /// The ballot whose leader asked for this campaign: it overrides having heard that leader.
        hand_over: Option<Ballot>,
    },
    /// Phase 1b: one chunk of what was accepted from `from` on, read from one storage view.
    Promise {
        /// The candidate's.
        ballot: Ballot,
        /// As asked.
        from: Slot,
        /// The view all chunks are read from.
        view: ViewId,
        /// From 0.
        chunk: u32,
        /// The promise is complete.
        last: bool,
        /// Every slot up to it may be deleted here.
        trim_through: Slot,
        /// The sender's chosen prefix.
        chosen_through: Slot,
        /// Ascending; values known chosen are marked so.
        rows: Vec<Row>,
    },
    /// Asks for the next chunk of a promise.
    PromiseMore {
        /// The candidate's.
        ballot: Ballot,
        /// The promise's view.
        view: ViewId,
        /// The chunk wanted.
        chunk: u32,
    },
    /// The sender has promised a higher ballot.
    Nack {
        /// The ballot that is refused.
        ballot: Ballot,
        /// The one that stands in its way.
        promised: Ballot,
    },
    /// The sender has granted a lease that is still alive: it promises nobody else anything until then.
    Busy {
        /// The ballot that must wait.
        ballot: Ballot,
        /// How long, by the sender's clock.
        wait: Duration,
    },
    /// Phase 2a.
    Accept {
        /// The leader's.
        ballot: Ballot,
        /// Where.
        slot: Slot,
        /// An encoded value.
        value: Bytes,
        /// [`crate::row::checksum`] of it under this ballot.
        checksum: u64,
        /// The leader's chosen prefix.
        chosen_through: Slot,
        /// Whether the leader has a quorum's answers.
        has_quorum: bool,
    },
    /// Phase 2b, for slots accepted under one ballot.
    Accepted {
        /// The leader's.
        ballot: Ballot,
        /// Which slots; each durable here.
        slots: Vec<Slot>,
    },
    /// An Accept came for a slot that is chosen here already. Never a vote.
    AlreadyChosen {
        /// The Accept's.
        ballot: Ballot,
        /// Every slot up to it is chosen.
        trim_through: Slot,
    },
    /// A leader lives.
    Heartbeat {
        /// The leader's.
        ballot: Ballot,
        /// Echoed; also the read round's number.
        sequence: u64,
        /// The leader's chosen prefix.
        chosen_through: Slot,
        /// Whether the leader has a quorum's answers.
        has_quorum: bool,
        /// How long a lease it asks for; zero: none.
        lease: Duration,
        /// The newest slot at which the leader's chain is compared, and its chain there.
        chain: Option<ChainPoint>,
        /// Whom the receiver asks if it has much to learn: of those that have it, the one nearest to idle.
        source: Option<MemberId>,
        /// The receiver's boot, and the last of its forwarded calls under this ballot that the leader has taken: those up
        /// to it need not be sent again.
        taken: Option<(Incarnation, u64)>,
    },
    /// The answer to [`Message::Heartbeat`]: under this ballot nobody has been promised a higher one here.
    HeartbeatReply {
        /// The leader's.
        ballot: Ballot,
        /// The leader's.
        sequence: u64,
        /// The sender's chosen prefix.
        chosen_through: Slot,
        /// The prefix that the sender holds on disk and knows, on disk, to be chosen.
        durable_through: Slot,
        /// The lease is granted: nobody else gets a promise from the sender for that long from now.
        granted: bool,
        /// The newest mark whose snapshot is on the sender's disk.
        snapshot_through: Slot,
        /// The sender's chain at the slot that the heartbeat named, or at its newest point before that.
        chain: Option<ChainPoint>,
        /// The newest format level that the sender reads.
        format_level: u32,
        /// How busy the sender is: bytes of values that it applied and sent in a heartbeat's time, of late.
        load: u64,
    },
    /// Asks for chosen values.
    LearnRequest {
        /// First wanted.
        from: Slot,
        /// Last wanted.
        through: Slot,
        /// How often the sender fell behind the trim again before it was there: then it is served faster.
        retries: u32,
    },
    /// Chosen values from `from` on, without a hole.
    Learned {
        /// As asked.
        from: Slot,
        /// Slots up to it are gone here: a snapshot is needed instead.
        trim_through: Slot,
        /// The sender's chosen prefix.
        chosen_through: Slot,
        /// Ascending, each marked chosen.
        rows: Vec<Row>,
    },
    /// Asks for a snapshot, because the log begins behind what the sender has.
    SnapshotRequest {
        /// The one that is being fetched; 0: whichever the receiver's log begins with.
        slot: Slot,
        /// From which byte on.
        offset: u64,
    },
    /// A part of a snapshot.
    SnapshotChunk {
        /// Whose state.
        slot: Slot,
        /// Bytes in all.
        total: u64,
        /// xxh3-128 of all.
        digest: u128,
        /// Where `bytes` begin.
        offset: u64,
        /// The part.
        bytes: Bytes,
    },
    /// The chains differ. Where `agreed` is a quorum, the receiver compares its own and is fenced if it is the
    /// one that differs; without a quorum, everybody stops.
    Diverged {
        /// At which slot.
        at: ChainPoint,
        /// Who holds that chain there; empty: no quorum agrees on any.
        agreed: Vec<MemberId>,
    },
    /// A client's call on its way to the leader.
    Forward {
        /// The sender's name for it.
        request: RequestId,
        /// The ballot of the leader it is meant for: under any other it is refused.
        ballot: Ballot,
        /// Counts the sender's calls forwarded under that ballot, from 1 and without a gap: a call that is
        /// sent again after a cut is taken once.
        sequence: u64,
        /// An encoded [`crate::value::Call`].
        call: Bytes,
    },
    /// What became of a forwarded call.
    ForwardReply {
        /// The asker's.
        request: RequestId,
        /// The asker's boot: request ids start anew with each.
        incarnation: Incarnation,
        /// The ballot it was forwarded under.
        ballot: Ballot,
        /// The outcome.
        outcome: ForwardOutcome,
    },
    /// A follower asks for a linearizable read point.
    ReadPointRequest {
        /// Echoed.
        request: RequestId,
        /// The leader it is meant for.
        ballot: Ballot,
    },
    /// The answer to [`Message::ReadPointRequest`].
    ReadPoint {
        /// The asker's.
        request: RequestId,
        /// Read once this is applied; none: refused.
        slot: Option<Slot>,
    },
    /// The leader asks the receiver to take over.
    HandOver {
        /// The leader's.
        ballot: Ballot,
    },
    /// Tells a removed member that its vote is no longer needed anywhere.
    Retire {
        /// The configuration without it.
        version: u64,
        /// The entry that removed it.
        slot: Slot,
    },
}

/// The chain at one of the slots at which members compare it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainPoint {
    /// Which slot.
    pub slot: Slot,
    /// The chain there.
    pub chain: u128,
}

/// What became of a forwarded call. Outcomes without a place here the origin sees when it applies the slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForwardOutcome {
    /// Applied.
    Appended {
        /// The first entry's.
        first: Index,
        /// The last entry's.
        last: Index,
        /// It repeats an earlier call.
        repeat: bool,
    },
    /// Applied: a session is open.
    SessionOpened(SessionId),
    /// Applied, and refused there: the last index was another.
    UnexpectedIndex {
        /// The last index.
        tail: Index,
    },
    /// Taken once under that ballot and never proposed: nothing was appended.
    Refused(String),
}

impl Message {
    /// Bytes of the values, calls and states in it: what makes a message large.
    pub fn value_bytes(&self) -> usize {
        match self {
            Message::Accept { value, .. } => value.len(),
            Message::Promise { rows, .. } | Message::Learned { rows, .. } => {
                rows.iter().map(|row| row.value.len()).sum()
            }
            Message::SnapshotChunk { bytes, .. } => bytes.len(),
            Message::Forward { call, .. } => call.len(),
            _ => 0,
        }
    }

    /// Which stream it takes.
    pub fn lane(&self) -> Lane {
        match self {
            Message::Hello { .. }
            | Message::Welcome { .. }
            | Message::Canvass { .. }
            | Message::CanvassReply { .. }
            | Message::Prepare { .. }
            | Message::PromiseMore { .. }
            | Message::Nack { .. }
            | Message::Busy { .. }
            | Message::SnapshotRequest { .. }
            | Message::Diverged { .. }
            | Message::AlreadyChosen { .. }
            | Message::Heartbeat { .. }
            | Message::HeartbeatReply { .. }
            | Message::LearnRequest { .. }
            | Message::ReadPointRequest { .. }
            | Message::ReadPoint { .. }
            | Message::HandOver { .. }
            | Message::Retire { .. } => Lane::Control,
            Message::Accept { .. }
            | Message::Accepted { .. }
            | Message::Forward { .. }
            | Message::ForwardReply { .. } => Lane::Data,
            Message::Promise { .. } | Message::Learned { .. } | Message::SnapshotChunk { .. } => Lane::Bulk,
        }
    }

    /// Whether it may only leave once a write of its sender is durable: a promise, a vote, or the first
    /// word of a new ballot (docs: protocol.md, "Acceptor" and "Leader", rule 2).
    pub fn is_gated(&self) -> bool {
        matches!(self, Message::Promise { .. } | Message::Accepted { .. } | Message::Prepare { .. })
    }
}

/// A message as it arrived; the transport fills it in from the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// The sender's cluster.
    pub cluster: ClusterId,
    /// Who sent it.
    pub from: MemberId,
    /// The sender's durable counters when it did.
    pub counters: Counters,
    /// Whom it is meant for.
    pub to: MemberId,
    /// The content.
    pub message: Message,
}

/// A message that may leave now.
///
/// There is no public way to make one: it comes from [`crate::Node::poll_output`], and a gated message only
/// after the completion of the write it waits for went in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    cluster: ClusterId,
    from: MemberId,
    counters: Counters,
    to: MemberId,
    message: Message,
}

impl Outgoing {
    pub(crate) fn new(
        cluster: ClusterId,
        from: MemberId,
        counters: Counters,
        to: MemberId,
        message: Message,
    ) -> Outgoing {
        Outgoing { cluster, from, counters, to, message }
    }

    /// The sender's cluster.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Who sends it.
    pub fn from(&self) -> MemberId {
        self.from
    }

    /// The sender's durable counters.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whom it is meant for.
    pub fn to(&self) -> MemberId {
        self.to
    }

    /// The content.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// As the receiver will see it: for a network that does not serialise, such as the simulator's.
    pub fn to_incoming(&self) -> Incoming {
        Incoming {
            cluster: self.cluster,
            from: self.from,
            counters: self.counters,
            to: self.to,
            message: self.message.clone(),
        }
    }
}
