//! Bugs that the simulator of the operator plants, one at a time, to show that it can see. Compiled in only with the
//! feature `planted`, which no shipped program has. docs: decisions/0044.

use std::cell::Cell;

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
    DeletedBeforeRetired = "claim-deleted-before-its-member-retired",
    NamesForLabels = "node-names-compared-with-labels",
    RetainLate = "when-deleted-applied-after-everything-else",
    BudgetCountsAll = "budget-counts-voters-that-are-cut-off",
    BudgetTooLow = "budget-of-one-less",
    BudgetNotRecounted = "budget-not-counted-anew",
    ReadyBeforeCapacity = "ready-before-the-capacity",
    ReadyBehind = "ready-while-members-are-behind",
    RevisionOfTheLastSet = "revision-read-before-the-set-is-seen",
    AvailableAlone = "available-without-a-quorum",
    ForcedWhereNodesLive = "pod-forced-while-its-node-lives",
    GivenUpAtOnce = "volume-given-up-at-once",
    MovableGivenUp = "movable-volume-given-up",
    QuorumUnchecked = "member-removed-at-the-price-of-the-quorum",
    RestartUnchecked = "restart-while-others-are-down",
    LeaderEvicted = "leader-restarted-without-hand-over",
    LeaderRemoved = "leader-removed-without-hand-over",
    DeletesWithoutUid = "deletes-without-a-uid",
    SetWithoutVersion = "set-written-without-a-version",
    SizeFirst = "set-shrunk-before-its-member-left",
    HandSizeFollowed = "size-that-a-person-wrote-followed",
    LiveByAnswer = "live-by-answering-the-operator",
    RemovedAddedAgain = "removed-member-added-again",
    RestartedByDelete = "restarted-around-the-budget",
    RetainIgnored = "kept-claim-deleted",
    PausedIgnored = "paused-cluster-changed",
    StatusUnconditional = "status-written-over-a-newer-one",
    FencedKept = "fenced-member-kept",
    DeclaredForgotten = "declared-loss-forgotten",
    RefusalStops = "refused-object-stops-the-rest",
    NodesReadOnce = "nodes-read-once",
    ClaimsLeft = "claims-left-behind",
    SettingsForgotten = "settings-of-the-log-left-as-they-are",
    KeptDisksIgnored = "kept-disks-not-adopted",
    StartedOver = "started-over-though-formed",
    SwapTakenForLoss = "swapped-disk-taken-for-lost",
    GoingDiskRestarted = "pod-restarted-whose-claim-goes",
    GoingDiskHibernated = "hibernated-while-a-claim-goes",
    BrokenThoughVoting = "broken-pod-restarted-though-its-member-votes",
    SettingsOfTheDay = "founders-told-the-settings-of-the-day",
    UnreadyLast = "ready-pods-restarted-before-unready-ones",
    GoingMarksAwaited = "mark-awaited-on-a-claim-that-goes",
    ReadyAtOnce = "ready-told-of-an-edit-that-has-just-been-written",
    HandTemplateRolled = "template-by-hand-rolled-out",
    PromotedPastTheMost = "more-voters-than-wanted",
    GoingTakenByItsPod = "silent-member-taken-for-that-of-a-going-claim",
    UnknownDiskShrunk = "silent-disk-shrunk-away-beside-a-silent-member",
}

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Plants `bug`, or none, for what this thread runs.
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether `bug` is planted here.
pub fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}
