//! From what is wanted and what was observed to the single next step. Pure: no client, no clock, no
//! randomness; a test is data in, data out.
//!
//! The order of the classes of step is the order of docs: operator-rules.md, "Order of the plan":
//!
//! ```text
//!   - claims follow whenDeleted and grow, in every state, beside the step (claims)
//!   1 deleting, paused        status only            (form)
//!   2 recreate the set        at the size of rule 4  (form)
//!   3 adopt, wake, bootstrap                         (form)
//!   5 tighten labels, budget, marks on claims        (tighten)
//!   6 delete outdated broken pods, and pods whose nodes are gone (repair)
//!   7 no quorum: report and stop
//!   4 let a change that was proposed come into force
//!   8 replace what is lost, empty or fenced          (replace)
//!   - change the log's settings                      (settings)
//!   9 shrink, and clean up after it                  (shrink)
//!  10 roll                                           (roll)
//!  11 grow                                           (grow)
//! ```
//!
//! Class 4 needs a leader to ask, so it stands after 7. Each class says [`Verdict::Idle`], a step, or why
//! it waits; a class that has waited past its deadline yields to the next ones (rule 12).

mod claims;
mod form;
mod grow;
mod repair;
mod replace;
mod roll;
mod settings;
mod shrink;
mod tighten;
mod view;

#[cfg(test)]
pub(crate) mod tests;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::crd::OperationType;
use crate::names::{ClusterId, MemberId};
use crate::observed::Observed;
use crate::settings::Settings;
use crate::validate::Desired;

pub use view::View;
pub(crate) use view::majority;

/// What to do next, and what to say about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Replicas of the StatefulSet, to be applied before the step.
    pub size: u32,
    /// `minAvailable` of the disruption budget; `None`: no budget.
    pub budget: Option<u32>,
    /// The single next step; `None` when nothing is due or a gate is shut.
    pub step: Option<Step>,
    /// Why nothing is done although something is due.
    pub gate: Option<Gate>,
    /// What this is part of; while a class is stuck past its deadline: what is stuck.
    pub operation: Option<Operation>,
    /// Claims to be patched beside the step: none of them waits for another, or for anything else.
    pub claims: Vec<ClaimPatch>,
}

/// A change of one claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimPatch {
    /// The claim's ordinal.
    pub ordinal: u32,
    /// Its UID.
    pub uid: String,
    /// What is changed.
    pub change: ClaimChange,
}

/// What is changed in a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimChange {
    /// Whether it follows its PaxosCluster into deletion.
    Own(bool),
    /// The size it asks for: `spec.storage.size`.
    Resize(String),
}

/// What a step is part of, for the status and the events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The kind.
    pub kind: OperationType,
    /// The ordinal it is done to.
    pub ordinal: Option<u32>,
}

/// A membership change as it is proposed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The ordinal that leads: it is asked.
    pub via: u32,
    /// The log.
    pub cluster: ClusterId,
    /// The configuration version this was planned from.
    pub version: u64,
    /// The same for the same change from the same version: a repeat is answered with what happened.
    pub operation: Uuid,
    /// The member that is changed.
    pub member: MemberId,
    /// The ordinal it lives at.
    pub ordinal: u32,
}

/// One step. A reconcile does one of them.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Change the number of pods; [`Plan::size`] carries the number.
    Scale {
        /// From, 0 if there is no StatefulSet.
        from: u32,
        /// To.
        to: u32,
    },
    /// Take on the log that the disks name.
    Adopt {
        /// The log.
        cluster: ClusterId,
    },
    /// Write down who the first members are, before they are told.
    RecordBootstrap {
        /// The new log.
        cluster: ClusterId,
        /// Its members with their ordinals.
        members: Vec<(u32, MemberId)>,
    },
    /// Tell the first members.
    Initialize {
        /// The log.
        cluster: ClusterId,
        /// Its members with their ordinals: the same list for everyone.
        members: Vec<(u32, MemberId)>,
        /// Ordinals that have not been told.
        targets: Vec<u32>,
    },
    /// Write down that the cluster is formed.
    ConfirmBootstrap,
    /// Bring labels, budget and marks on claims in line.
    Tighten {
        /// Pods with the value their role label should have.
        labels: Vec<RoleLabel>,
        /// Claims with the ids they should name.
        marks: Vec<ClaimMark>,
        /// Whether the budget has to be written ([`Plan::budget`]).
        budget: bool,
    },
    /// Tell an empty member which log it will be added to.
    Join {
        /// The pod's ordinal.
        ordinal: u32,
        /// The log.
        cluster: ClusterId,
        /// Digest of its genesis.
        digest: Vec<u8>,
    },
    /// Add a member without a vote.
    AddLearner(Change),
    /// Give a learner a vote.
    Promote(Change),
    /// Take a member out.
    RemoveMember(Change),
    /// Change the log's settings.
    ChangeSettings {
        /// The ordinal that leads: it is asked.
        via: u32,
        /// The log.
        cluster: ClusterId,
        /// The version of the settings that this was planned from.
        version: u64,
        /// What they shall be.
        settings: Settings,
    },
    /// Hand leadership over.
    TransferLeader {
        /// The ordinal that leads.
        from: u32,
        /// The ordinal that shall lead.
        to: u32,
        /// Its member.
        member: MemberId,
        /// The log.
        cluster: ClusterId,
    },
    /// Have a removed member's disk start over under a new id.
    Renew {
        /// The pod's ordinal.
        ordinal: u32,
        /// The id that is given up.
        member: MemberId,
    },
    /// Delete a pod that does not work, or whose disk is gone.
    DeletePod {
        /// Its ordinal.
        ordinal: u32,
        /// Its UID.
        uid: String,
        /// Whether without grace: only where its member is removed already.
        force: bool,
    },
    /// Restart a healthy pod, if the budget allows.
    Evict {
        /// Its ordinal.
        ordinal: u32,
        /// Its UID.
        uid: String,
    },
    /// Delete the claim of a removed member.
    DeleteClaim {
        /// Its ordinal.
        ordinal: u32,
        /// Its UID.
        uid: String,
    },
    /// Keep the claim of a removed member under a label.
    RetireClaim {
        /// Its ordinal.
        ordinal: u32,
        /// Its UID.
        uid: String,
        /// The member that was removed.
        member: MemberId,
    },
}

/// A role label that has to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleLabel {
    /// The pod's ordinal.
    pub ordinal: u32,
    /// Its UID.
    pub uid: String,
    /// `voter`, `learner` or `none`.
    pub role: &'static str,
    /// Whether the disruption budget counts it.
    pub counted: bool,
}

/// Ids that a claim has to name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimMark {
    /// The claim's ordinal.
    pub ordinal: u32,
    /// Its UID.
    pub uid: String,
    /// The member on its disk.
    pub member: MemberId,
    /// The log on its disk; `None` takes the annotation away.
    pub cluster: Option<ClusterId>,
}

/// Why nothing is done although something is due: a closed list, counted in the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GateKind {
    /// The object is being deleted.
    Deleting,
    /// `paused: true`.
    Paused,
    /// `replicas: 0` and no pods.
    Hibernated,
    /// Pods are coming up.
    PodsStarting,
    /// Pods are going.
    PodsStopping,
    /// First members do not agree yet.
    BootstrapAgreement,
    /// Disks of several logs, or of another one.
    ForeignDisks,
    /// A part of the spec is at fault, and there is nothing yet that could stay as it is.
    InvalidSpec,
    /// No quorum answers.
    QuorumLost,
    /// A quorum answers and nobody leads.
    NoLeader,
    /// A change is not in force yet.
    ChangePending,
    /// A removed member still counts for older slots.
    Retiring,
    /// A learner is catching up.
    CatchingUp,
    /// Members that must be healthy first are not.
    MembersNotReady,
    /// The step would leave no live quorum.
    QuorumAtRisk,
    /// Nobody fit to take leadership.
    NoSuccessor,
    /// A claim is still being deleted.
    ClaimTerminating,
    /// The controller of StatefulSets has not seen the last write.
    RevisionUnknown,
}

impl GateKind {
    /// The word in the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            GateKind::Deleting => "deleting",
            GateKind::Paused => "paused",
            GateKind::Hibernated => "hibernated",
            GateKind::PodsStarting => "pods_starting",
            GateKind::PodsStopping => "pods_stopping",
            GateKind::BootstrapAgreement => "bootstrap_agreement",
            GateKind::ForeignDisks => "foreign_disks",
            GateKind::InvalidSpec => "invalid_spec",
            GateKind::QuorumLost => "quorum_lost",
            GateKind::NoLeader => "no_leader",
            GateKind::ChangePending => "change_pending",
            GateKind::Retiring => "retiring",
            GateKind::CatchingUp => "catching_up",
            GateKind::MembersNotReady => "members_not_ready",
            GateKind::QuorumAtRisk => "quorum_at_risk",
            GateKind::NoSuccessor => "no_successor",
            GateKind::ClaimTerminating => "claim_terminating",
            GateKind::RevisionUnknown => "revision_unknown",
        }
    }
}

/// A gate that is shut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Which.
    pub kind: GateKind,
    /// What is waited for, in words a user understands.
    pub message: String,
}

impl Gate {
    /// A gate with its message.
    pub fn new(kind: GateKind, message: impl Into<String>) -> Gate {
        Gate { kind, message: message.into() }
    }
}

/// What one class of step says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Verdict {
    /// Nothing of this class is due.
    Idle,
    /// Do this.
    Do(Step, Operation),
    /// Something is due and cannot be done yet.
    Wait(Gate, Option<Operation>),
}

impl Verdict {
    fn step(step: Step, kind: OperationType, ordinal: impl Into<Option<u32>>) -> Verdict {
        Verdict::Do(step, Operation { kind, ordinal: ordinal.into() })
    }

    fn wait(
        kind: GateKind,
        message: impl Into<String>,
        operation: OperationType,
        ordinal: impl Into<Option<u32>>,
    ) -> Verdict {
        Verdict::Wait(Gate::new(kind, message), Some(Operation { kind: operation, ordinal: ordinal.into() }))
    }
}

/// Id of a membership change: the same change planned again from the same version has the same id, so a
/// retry after a crash needs no memory. docs: operator-rules.md, rule 2.
pub(crate) fn operation_id(cluster: ClusterId, version: u64, verb: &str, member: MemberId) -> Uuid {
    let mut hash = Sha256::new();
    hash.update(cluster.0.as_bytes());
    hash.update(version.to_be_bytes());
    hash.update(member.0.to_be_bytes());
    hash.update(verb.as_bytes());
    let digest: [u8; 32] = hash.finalize().into();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

/// The single next step.
pub fn plan(desired: &Desired, observed: &Observed) -> Plan {
    let view = View::new(desired, observed);
    let verdict = decide(&view);
    let leaving = match &verdict {
        Verdict::Do(Step::RemoveMember(change), _) => Some(change.member),
        _ => None,
    };
    let rolling = matches!(&verdict, Verdict::Do(Step::Evict { .. }, _));
    let budget = tighten::budget(&view, leaving, rolling);
    let rests = matches!(&verdict, Verdict::Wait(gate, _) if gate.forbids_writes());
    let claims = match &verdict {
        Verdict::Do(..) | Verdict::Wait(..) if planted!(RetainLate) => Vec::new(),
        _ => claims::patches(&view, rests),
    };
    let plan = |step, gate, operation| Plan { size: view.size(), budget, step, gate, operation, claims };
    // Class 5: before a membership step or a restart, labels and budget say what it leaves behind.
    let tightened = if rests { None } else { tighten::due(&view, leaving, budget) };
    match (tightened, verdict) {
        (Some(step), Verdict::Do(_, operation)) => plan(Some(step), None, Some(operation)),
        (Some(step), Verdict::Wait(_, operation)) => plan(Some(step), None, operation),
        (Some(step), Verdict::Idle) => plan(Some(step), None, None),
        (None, Verdict::Idle) => plan(None, None, None),
        (None, Verdict::Wait(gate, operation)) => plan(None, Some(gate), operation),
        (None, Verdict::Do(step, operation)) => {
            let size = if let Step::Scale { to, .. } = &step { *to } else { view.size() };
            Plan { size, ..plan(Some(step), None, Some(operation)) }
        }
    }
}

/// The classes in their order; the first that has something to do or to wait for decides.
fn decide(view: &View<'_>) -> Verdict {
    let mended = repair::verdict(view);
    match form::verdict(view) {
        Verdict::Idle => {}
        // A first pod with a bad image would hold the forming up for ever.
        Verdict::Wait(gate, _) if gate.kind.is_about_members() && mended != Verdict::Idle => return mended,
        other => return other,
    }
    if mended != Verdict::Idle {
        return mended;
    }
    if let Some(gate) = view.no_quorum() {
        return Verdict::Wait(gate, None);
    }
    if let Some(gate) = view.change_pending() {
        return Verdict::Wait(gate, view.running_operation());
    }
    let classes: [fn(&View<'_>) -> Verdict; 6] = [
        replace::under_way,
        replace::begin,
        settings::verdict,
        shrink::verdict,
        roll::verdict,
        grow::verdict,
    ];
    let mut stuck: Option<(Gate, Option<Operation>)> = None;
    for class in classes {
        match class(view) {
            Verdict::Idle => {}
            Verdict::Wait(gate, operation)
                if stuck.is_none() && view.overdue(operation.as_ref()) && gate.yields() =>
            {
                stuck = Some((gate, operation));
            }
            Verdict::Wait(..) if stuck.is_some() => {}
            // Past a stuck class only steps that lower no healthy voter count. docs: rule 12.
            Verdict::Do(step, _) if stuck.is_some() && view.may_lower_voters(&step) => {}
            // What is stuck stays the recorded operation: its clock runs on until its gate opens.
            Verdict::Do(step, own) => {
                let recorded = stuck.and_then(|(_, operation)| operation).unwrap_or(own);
                return Verdict::Do(step, recorded);
            }
            other => return other,
        }
    }
    stuck.map_or(Verdict::Idle, |(gate, operation)| Verdict::Wait(gate, operation))
}

impl GateKind {
    /// Whether it waits for members, rather than for the user.
    fn is_about_members(self) -> bool {
        matches!(self, GateKind::PodsStarting | GateKind::BootstrapAgreement)
    }
}

impl Gate {
    /// Whether the user, or the end of the object, forbids every write but what decides whether data
    /// outlives it.
    pub(crate) fn forbids_writes(&self) -> bool {
        matches!(self.kind, GateKind::Deleting | GateKind::Paused)
    }

    /// Whether the classes after this one may go on once the deadline has passed.
    fn yields(&self) -> bool {
        !matches!(self.kind, GateKind::ChangePending | GateKind::Retiring | GateKind::ForeignDisks)
    }
}
