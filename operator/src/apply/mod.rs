//! Writes what `build` made and carries out the one step that `plan` chose.
//!
//! Server-side apply under one field manager; StatefulSet writes carry the resourceVersion the plan was
//! made from, deletes and evictions the UID: an operator that slept and woke cannot act on an old plan.

mod certificates;
mod objects;
mod steps;

use crate::context::Context;
use crate::crd::TlsMode;
use crate::dereference::Dereferenced;
use crate::error::Error;
use crate::plan::{Gate, GateKind, Plan, Step};
use crate::validate::Desired;

pub use steps::describe;
pub(crate) use steps::moved_on;

/// What came of a plan.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The step was taken.
    Done,
    /// Nothing was due, or a gate is shut.
    Nothing,
    /// The budget does not allow an eviction now: an answer, not a failure.
    Refused(String),
}

/// Applies the objects that differ, then takes the step.
///
/// # Errors
/// Whatever the API server or a member refuses. What was written stays; the next reconcile goes on from it.
pub async fn carry_out(
    ctx: &Context,
    desired: &Desired,
    read: &Dereferenced,
    plan: &Plan,
) -> Result<Outcome, Error> {
    if plan.gate.as_ref().is_some_and(Gate::forbids_writes) {
        return Ok(Outcome::Nothing);
    }
    if desired.spec.tls.mode == TlsMode::Managed {
        certificates::ensure(ctx, desired, plan.size).await?;
    }
    objects::surroundings(ctx, desired, plan.size).await?;
    objects::stateful_set(ctx, desired, read, plan.size).await?;
    match &plan.step {
        Some(step) => steps::take(ctx, desired, read, plan, step).await,
        None => Ok(Outcome::Nothing),
    }
}

impl Gate {
    /// Whether the user, or the end of the object, forbids every write.
    fn forbids_writes(&self) -> bool {
        matches!(self.kind, GateKind::Deleting | GateKind::Paused)
    }
}

impl Step {
    /// The word in metrics and Events.
    pub fn as_str(&self) -> &'static str {
        match self {
            Step::Scale { .. } => "Scale",
            Step::Adopt { .. } => "Adopt",
            Step::RecordBootstrap { .. } => "RecordBootstrap",
            Step::Initialize { .. } => "Initialize",
            Step::ConfirmBootstrap => "ConfirmBootstrap",
            Step::Tighten { .. } => "Tighten",
            Step::Join { .. } => "Join",
            Step::AddLearner(_) => "AddLearner",
            Step::Promote(_) => "Promote",
            Step::RemoveMember(_) => "RemoveMember",
            Step::ChangeSettings { .. } => "ChangeSettings",
            Step::TransferLeader { .. } => "TransferLeader",
            Step::Renew { .. } => "Renew",
            Step::DeletePod { .. } => "DeletePod",
            Step::Evict { .. } => "Evict",
            Step::DeleteClaim { .. } => "DeleteClaim",
            Step::RetireClaim { .. } => "RetireClaim",
            Step::ResizeClaim { .. } => "ResizeClaim",
            Step::OwnClaim { .. } => "OwnClaim",
        }
    }
}
