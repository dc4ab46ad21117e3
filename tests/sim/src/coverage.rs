//! What a run met: every kind of fault, of message, and of rule, counted. A simulator that never reaches a state
//! proves nothing about it (docs: reliability.md, "Layers of testing", 2).
//!
//! Rules are told from outside, by what the core says and sends: it carries no counters of its own.

use crate::disk_faults::DiskFault;
use crate::faults::{AnyFault, Fault};
use std::collections::BTreeMap;
use synod_paxos::Message;

/// An enum whose kinds have names and can be counted.
macro_rules! kinds {
    ($(#[$doc:meta])* $name:ident { $($(#[$inner:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$inner])* #[serde(rename = $text)] $variant,)* }

        impl $name {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// Its name in reports and event files.
            pub fn name(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }
    };
}
pub(crate) use kinds;

kinds! {
    /// A kind of message.
    #[allow(missing_docs)]
    MessageKind {
        Hello = "hello",
        Welcome = "welcome",
        Canvass = "canvass",
        CanvassReply = "canvass_reply",
        Prepare = "prepare",
        Promise = "promise",
        PromiseMore = "promise_more",
        Nack = "nack",
        Accept = "accept",
        Accepted = "accepted",
        AlreadyChosen = "already_chosen",
        Heartbeat = "heartbeat",
        HeartbeatReply = "heartbeat_reply",
        LearnRequest = "learn_request",
        Learned = "learned",
        Forward = "forward",
        ForwardReply = "forward_reply",
        ReadPointRequest = "read_point_request",
        ReadPoint = "read_point",
        HandOver = "hand_over",
        Retire = "retire",
        Busy = "busy",
        SnapshotRequest = "snapshot_request",
        SnapshotChunk = "snapshot_chunk",
        Diverged = "diverged",
    }
}

impl MessageKind {
    /// The kind of `message`.
    pub fn of(message: &Message) -> MessageKind {
        match message {
            Message::Hello { .. } => MessageKind::Hello,
            Message::Welcome { .. } => MessageKind::Welcome,
            Message::Canvass { .. } => MessageKind::Canvass,
            Message::CanvassReply { .. } => MessageKind::CanvassReply,
            Message::Prepare { .. } => MessageKind::Prepare,
            Message::Promise { .. } => MessageKind::Promise,
            Message::PromiseMore { .. } => MessageKind::PromiseMore,
            Message::Nack { .. } => MessageKind::Nack,
            Message::Accept { .. } => MessageKind::Accept,
            Message::Accepted { .. } => MessageKind::Accepted,
            Message::AlreadyChosen { .. } => MessageKind::AlreadyChosen,
            Message::Heartbeat { .. } => MessageKind::Heartbeat,
            Message::HeartbeatReply { .. } => MessageKind::HeartbeatReply,
            Message::LearnRequest { .. } => MessageKind::LearnRequest,
            Message::Learned { .. } => MessageKind::Learned,
            Message::Forward { .. } => MessageKind::Forward,
            Message::ForwardReply { .. } => MessageKind::ForwardReply,
            Message::ReadPointRequest { .. } => MessageKind::ReadPointRequest,
            Message::ReadPoint { .. } => MessageKind::ReadPoint,
            Message::HandOver { .. } => MessageKind::HandOver,
            Message::Retire { .. } => MessageKind::Retire,
            Message::Busy { .. } => MessageKind::Busy,
            Message::SnapshotRequest { .. } => MessageKind::SnapshotRequest,
            Message::SnapshotChunk { .. } => MessageKind::SnapshotChunk,
            Message::Diverged { .. } => MessageKind::Diverged,
        }
    }
}

kinds! {
    /// A rule of docs: protocol.md that a run was seen to follow.
    Rule {
        /// Leader 4: LeaderStart is applied.
        LeaderStarted = "leader_started",
        /// Leader 2: a ballot is raised.
        Campaigned = "campaigned",
        /// Election: no answers from a quorum for an election timeout.
        SteppedDownSilent = "stepped_down_without_a_quorum",
        /// Leader 7: a Nack above the current ballot.
        SteppedDownNacked = "stepped_down_on_a_nack",
        /// Acceptor: promising a higher ballot ends one's own leadership.
        SteppedDownPromised = "stepped_down_on_promising",
        /// Another leader was heard under a higher ballot.
        SteppedDownHeard = "stepped_down_on_hearing",
        /// Leader 6: another batch was chosen in a slot it had proposed.
        SteppedDownOtherBatch = "stepped_down_on_another_batch",
        /// Any other reason.
        SteppedDownOtherwise = "stepped_down_otherwise",
        /// Leader 3: a recovered slot got a no-op.
        NoOpChosen = "no_op_chosen",
        /// A batch was chosen and counted.
        BatchChosen = "batch_chosen",
        /// Decisions 0002: a batch behind a higher LeaderStart is void.
        VoidBatchChosen = "void_batch_chosen",
        /// A configuration was chosen and took effect.
        ConfigurationChosen = "configuration_chosen",
        /// A configuration entry was chosen and had no effect.
        ConfigurationVoid = "configuration_void",
        /// Leader 3: a value accepted under a lower ballot was proposed again.
        ValueAdopted = "value_of_a_lower_ballot_proposed_again",
        /// Acceptor: a promise of several chunks.
        PromiseInChunks = "promise_in_chunks",
        /// Acceptor: a promise that reports accepted values.
        PromiseWithRows = "promise_with_rows",
        /// Catch-up: chosen values were sent.
        ChosenSent = "chosen_values_sent",
        /// Genesis by handshake.
        GenesisSent = "genesis_sent",
        /// Configurations: a removed voter retires.
        Retired = "removed_member_retired",
        /// Configurations: the leader removed itself.
        LeaderRemoved = "leader_removed_itself",
        /// Integrity: a member whose files cannot be opened any more is replaced.
        DiskUnusable = "disk_unusable",
        /// Identity: a disk that shows less is fenced.
        Fenced = "fenced",
        /// Integrity: a damaged row was met.
        DamageMet = "damaged_row_met",
        /// Integrity: a start met a damaged row above its applied prefix.
        DamageBars = "damaged_row_bars_promises",
        /// An append was acknowledged.
        AppendAcknowledged = "append_acknowledged",
        /// A conditional append was refused.
        AppendUnexpected = "append_refused_expected_index",
        /// An append with headers was sent.
        HeadersSent = "headers_sent",
        /// An append was refused without a leader.
        AppendNoLeader = "append_refused_no_leader",
        /// An append was refused by a member that takes no part.
        AppendNotActive = "append_refused_not_active",
        /// An append's outcome is unknown.
        AppendUnknown = "append_outcome_unknown",
        /// An append refused by a full disk's member before it reaches the core.
        AppendDiskFull = "append_refused_disk_full",
        /// Snapshots: one was installed in place of the log up to it.
        Installed = "snapshot_installed",
        /// Snapshots: it was fetched in more than one part.
        FetchedInParts = "snapshot_fetched_in_parts",
        /// Snapshots: a start goes on with the parts that it had fetched before.
        FetchResumed = "snapshot_fetch_resumed",
        /// Snapshots: the log was trimmed.
        Trimmed = "log_trimmed",
        /// A linearizable read was answered.
        ReadAnswered = "read_answered",
        /// A read within a bound of staleness was answered.
        StaleReadAnswered = "stale_read_answered",
        /// Sessions: an append with an identity was acknowledged to a repeated call.
        RetryAnswered = "retry_answered",
        /// Sessions: one was opened.
        SessionOpened = "session_opened",
        /// Sessions: one was not known any more.
        SessionGone = "session_gone",
        /// Sessions: the table was full.
        SessionsFull = "session_table_full",
        /// Sessions: a key may have been forgotten.
        KeyExpired = "key_expired",
        /// Trim: a cursor was set.
        CursorSet = "cursor_set",
        /// Trim: a cursor could not stand where it was wanted.
        CursorRefused = "cursor_refused",
        /// Trim: a checkpoint was noted.
        CheckpointSaved = "checkpoint_saved",
        /// Settings: a change took effect.
        SettingsChanged = "settings_changed",
        /// Settings: a change was planned from a version that had passed.
        SettingsMoved = "settings_change_refused",
        /// Format level: it was raised.
        LevelRaised = "format_level_raised",
        /// Format level: it was not raised, because a member did not say that it reads the next.
        LevelHeldBack = "format_level_held_back",
        /// Settings: one beyond its bounds was refused.
        OutOfBounds = "out_of_bounds_refused",
        /// Integrity: a member found that its state differs, and stopped.
        DivergenceFound = "divergence_found",
        /// Leases: a leader had one.
        LeaseHeld = "lease_held",
        /// A read was refused.
        ReadRefused = "read_refused",
        /// A subscriber's stream went on over a restart.
        StreamResumed = "stream_resumed_after_a_restart",
        /// A membership change was confirmed to the operator.
        ChangeConfirmed = "change_confirmed",
        /// A membership change was refused.
        ChangeRefused = "change_refused",
        /// Leadership was handed over.
        HandedOver = "handed_over",
        /// A stop was prepared.
        StopPrepared = "stop_prepared",
        /// A member restarted with an unsynced promise or vote lost, and took part again.
        RecoveredMember = "recovered_member_active",
    }
}

/// Counts of one run or of many.
#[derive(Clone, Debug)]
pub struct Coverage {
    faults: [u64; Fault::ALL.len()],
    disk: [u64; DiskFault::ALL.len()],
    messages: [u64; MessageKind::ALL.len()],
    rules: [u64; Rule::ALL.len()],
}

impl Default for Coverage {
    fn default() -> Self {
        Coverage {
            faults: [0; Fault::ALL.len()],
            disk: [0; DiskFault::ALL.len()],
            messages: [0; MessageKind::ALL.len()],
            rules: [0; Rule::ALL.len()],
        }
    }
}

impl Coverage {
    /// One more fault.
    pub fn fault(&mut self, fault: impl Into<AnyFault>) {
        match fault.into() {
            AnyFault::World(fault) => self.faults[fault as usize] += 1,
            AnyFault::Disk(fault) => self.disk[fault as usize] += 1,
        }
    }

    /// One more message that reached its member.
    pub fn message(&mut self, kind: MessageKind) {
        self.messages[kind as usize] += 1;
    }

    /// A rule was followed once more.
    pub fn rule(&mut self, rule: Rule) {
        self.rules[rule as usize] += 1;
    }

    /// All faults together.
    pub fn faults(&self) -> u64 {
        self.faults.iter().chain(&self.disk).sum()
    }

    /// Adds another run's.
    pub fn merge(&mut self, other: &Coverage) {
        let add = |sums: &mut [u64], more: &[u64]| sums.iter_mut().zip(more).for_each(|(a, b)| *a += b);
        add(&mut self.faults, &other.faults);
        add(&mut self.disk, &other.disk);
        add(&mut self.messages, &other.messages);
        add(&mut self.rules, &other.rules);
    }

    /// Every name with its count.
    pub fn named(&self) -> BTreeMap<String, u64> {
        let faults = Fault::ALL.iter().zip(self.faults).map(|(k, n)| (format!("fault.{}", k.name()), n));
        let disk = DiskFault::ALL.iter().zip(self.disk).map(|(k, n)| (format!("disk.{}", k.name()), n));
        let messages =
            MessageKind::ALL.iter().zip(self.messages).map(|(k, n)| (format!("message.{}", k.name()), n));
        let rules = Rule::ALL.iter().zip(self.rules).map(|(k, n)| (format!("rule.{}", k.name()), n));
        faults.chain(disk).chain(messages).chain(rules).collect()
    }
}
