//! Bugs that the mutation tests plant, one at a time, to show that the tests can see. Compiled in only with
//! `--cfg synod_planted`; the list is that of docs: protocol.md, "Planted bugs", and of faults that the
//! simulator once found in this very code.

use core::sync::atomic::{AtomicUsize, Ordering};

macro_rules! bugs {
    ($($name:ident = $text:literal,)*) => {
        /// A bug that can be planted.
        #[allow(missing_docs)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug { $($name,)* }

        impl Bug {
            /// All of them.
            pub const ALL: &'static [Bug] = &[$(Bug::$name,)*];

            /// Its name on the command line and in reports.
            pub fn name(self) -> &'static str {
                match self { $(Bug::$name => $text,)* }
            }
        }
    };
}

bugs! {
    BallotReused = "ballot-reused-after-restart",
    InferenceAtLeast = "inference-with-at-least-for-equal",
    QuorumMinusOne = "quorum-minus-one",
    LowestBallotAdopted = "lowest-ballot-adopted",
    PromiseForgotten = "promise-forgotten-on-restart",
    SelfVoteBeforeSync = "self-vote-before-sync",
    LearnerVotes = "learners-accepted-counted",
    OlderBallotVotes = "accepted-of-an-older-ballot-counted",
    AcknowledgedEarly = "acknowledged-before-chosen",
    ReadBeforeStart = "read-before-leader-start",
    ReadJoinsOlderRound = "read-joins-an-older-round",
    NoOpBelowChosen = "no-op-below-a-reported-chosen-through",
    AlphaUnchecked = "alpha-unchecked-during-recovery",
    GovernsEarly = "configuration-governs-from-one-slot-early",
    ForwardTakenTwice = "duplicate-delivery-applied-twice",
    Reforwarded = "re-forwarded-keyless-append",
    StaleView = "stale-view-in-a-promise",
    LateReport = "late-report-adopted-behind-leader-start",
    WatermarkNotDurable = "rows-marked-chosen-by-a-watermark-not-durable",
    VoidBatchApplied = "batch-of-an-older-ballot-applied-behind-leader-start",
    NamesReused = "request-names-reused-after-restart",
    RetiredEarly = "removed-voter-retires-before-a-quorum-holds-its-prefix",
    LeaderAdopts = "leader-adopts-a-learnt-prefix-without-stepping-down",
    PrepareBeforeSync = "prepare-before-own-sync",
    ChosenOverwritten = "accept-of-an-older-leader-overwrites-a-learnt-row",
    RecoveryCounts = "writes-of-a-recovering-member-raise-its-counter",
    LastChunkOptional = "last-promise-chunk-optional",
    AlreadyChosenVotes = "already-chosen-counted-as-a-vote",
    LaterReportsIgnored = "reports-of-a-new-configuration-ignored",
    RemovedStopsEarly = "removed-voter-stops-on-applying-its-removal",
    InvalidBaseApplied = "configuration-with-an-invalid-base-takes-effect",
    InstallClearsAbove = "install-clears-accepted-above-its-slot",
    InstallKeepsBelow = "install-keeps-accepted-at-or-below-its-slot",
    InstallLowersPromised = "install-lowers-promised",
    LeaseFromReceipt = "lease-counted-from-the-answers-receipt",
    LeaseAfterHandOver = "lease-survives-hand-over",
    RestartWaitSkipped = "restart-wait-skipped",
    LeaseForgotten = "granted-lease-ignored-by-prepare",
    DedupWhenProposing = "dedup-only-when-proposing",
    ConditionBeforeLookup = "expected-index-before-dedup",
    SnapshotWithoutSessions = "snapshot-without-sessions",
    SnapshotWithoutConfiguration = "snapshot-without-pending-configuration",
    SessionRowLost = "session-row-lost-on-snapshot",
    DamagedReadAsEmpty = "damaged-entry-read-as-empty",
    TombstoneIgnored = "tombstone-ignored",
    IncarnationUnchecked = "incarnation-check-dropped",
    StartDoesNotWait = "first-quorum-lets-a-start-in",
    TrimPastCursor = "trim-past-a-cursor",
    TrimDuringTransfer = "trim-during-a-transfer",
    ChainNotCompared = "chain-not-compared",
    LongPromiseOvertaken = "long-promise-overtaken-by-its-own-sender",
    LongPromiseInterrupted = "long-promise-interrupted-for-another-candidate",
    FlagTrusted = "flag-outside-the-checksum-trusted",
    MissingPromised = "missing-row-promised-over",
    GivenUpBlocks = "call-given-up-holds-up-those-behind-it",
    PromiseStartedOver = "promise-started-over-on-resend",
    PipelineUnbounded = "accepts-under-way-to-a-slow-link-unbounded",
    BacklogUnbounded = "accepts-that-wait-for-a-disk-unbounded",
    StopBarsForEver = "announced-stop-bars-campaigns-for-ever",
    ForwardedToTheDead = "calls-forwarded-to-a-leader-that-is-gone",
    IdleKeyEvicted = "idle-key-evicted-within-its-horizon",
    LevelIgnored = "format-level-ignored",
    UndecodableProposed = "undecodable-proposal-accepted",
    EntryTimeGoesBack = "entry-time-goes-back",
}

static PLANTED: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Plants `bug` in this process.
pub fn plant(bug: Bug) {
    PLANTED.store(bug as usize, Ordering::Relaxed);
}

/// Whether `bug` is planted.
pub fn is(bug: Bug) -> bool {
    PLANTED.load(Ordering::Relaxed) == bug as usize
}
