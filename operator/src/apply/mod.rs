//! Writes what `build` made and carries out the one step that `plan` chose.
//!
//! Server-side apply under one field manager; StatefulSet writes carry the resourceVersion the plan was
//! made from, deletes and evictions the UID: an operator that slept and woke cannot act on an old plan.

mod certificates;
mod claims;
mod objects;
mod steps;

use crate::context::Context;
use crate::crd::{OperationType, TlsMode};
use crate::dereference::Dereferenced;
use crate::error::Error;
use crate::plan::{Gate, GateKind, Plan, Step};
use crate::status::Refusal;
use crate::validate::Desired;

pub(crate) use objects::budget_key;
pub use steps::describe;
pub(crate) use steps::moved_on;

/// What came of a plan.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The step was taken.
    Done,
    /// Nothing was due, or a gate is shut.
    Nothing,
    /// The StatefulSet was written: what it says now is looked at before anything is done by it.
    Again,
    /// The budget does not allow an eviction now: an answer, not a failure.
    Refused(String),
}

/// Applies what differs, then takes the step. What the API server refuses goes into `refusals`, and stops
/// nothing else.
///
/// # Errors
/// If the API server does not answer, or a member refuses. What was written stays; the next reconcile goes on
/// from it.
pub async fn carry_out(
    ctx: &Context,
    desired: &Desired,
    read: &Dereferenced,
    plan: &Plan,
    refusals: &mut Vec<Refusal>,
) -> Result<Outcome, Error> {
    let mut desk = Desk { ctx, desired, refusals };
    // First, and in every state: it decides whether data outlives the PaxosCluster.
    claims::patch(&mut desk, plan).await?;
    let deleting = plan.gate.as_ref().is_some_and(|g| g.kind == GateKind::Deleting);
    if desired.spec.tls.mode == TlsMode::Managed && !deleting {
        // Also while paused: certificates end whether anybody wants changes or not.
        desk.attempt("Certificates", "", certificates::ensure(ctx, desired, read, plan.size)).await?;
    }
    if plan.gate.as_ref().is_some_and(Gate::forbids_writes) {
        return Ok(Outcome::Nothing);
    }
    objects::surroundings(&mut desk, plan.size).await?;
    let budget = ctx.refused(&desired.name.uid, &budget_key(desired), "");
    desk.refusals.extend(budget.filter(|_| read.observed.budget_refused));
    let put = objects::stateful_set(&mut desk, read, plan.size).await?;
    let Some(step) = &plan.step else {
        return Ok(if put == Put::Changed { Outcome::Again } else { Outcome::Nothing });
    };
    let rolls = plan.operation.as_ref().is_some_and(|o| o.kind == OperationType::Roll);
    match (put, step) {
        // It was not known when this was planned that the template waits for its turn.
        _ if rolls && ctx.waits_turn(&desired.name.uid) => Ok(Outcome::Again),
        (Put::Missing, Step::Scale { .. }) => Ok(Outcome::Nothing),
        (_, Step::Scale { .. }) => Ok(Outcome::Done),
        // Whoever changed the set by hand must not have pods restarted by it before it was put back.
        (Put::Changed, _) => Ok(Outcome::Again),
        _ => match steps::take(&mut desk, read, plan, step).await {
            Err(error) => match error.refusal() {
                Some(refusal) => {
                    desk.refusals.push(refusal);
                    Ok(Outcome::Nothing)
                }
                None => Err(error),
            },
            outcome => outcome,
        },
    }
}

/// What came of writing the StatefulSet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Put {
    /// It stands as it should, or could not be written otherwise than it is.
    Stands,
    /// It has another generation since.
    Changed,
    /// There is none, and it could not be made.
    Missing,
}

/// Where the writing stages lay down what was refused.
struct Desk<'a> {
    ctx: &'a Context,
    desired: &'a Desired,
    refusals: &'a mut Vec<Refusal>,
}

impl Desk<'_> {
    /// Does some work on one object, unless just that was refused a short while ago. A refusal is laid down and
    /// `false`; whatever else goes wrong is an error.
    async fn attempt(
        &mut self,
        object: &str,
        hash: &str,
        work: impl Future<Output = Result<(), Error>>,
    ) -> Result<bool, Error> {
        let uid = &self.desired.name.uid;
        if let Some(refusal) = self.ctx.refused(uid, object, hash) {
            self.refusals.push(refusal);
            return Ok(false);
        }
        match work.await {
            Ok(()) => {
                self.ctx.note_success(uid, object);
                Ok(true)
            }
            Err(error) => match error.refusal() {
                Some(_) if planted!(RefusalStops) => Err(error),
                Some(refusal) => {
                    self.ctx.note_refusal(uid, object, hash, refusal.clone());
                    self.refusals.push(refusal);
                    Ok(false)
                }
                None => Err(error),
            },
        }
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
        }
    }
}
