//! The last stage: what the status says. Composed by a pure function; written only when it differs.
//!
//! Positions alone (indexes, slots) are written at most every 30 s, so that a busy log costs the API
//! server nothing. docs: operator-rules.md, "status".

mod conditions;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use crate::apply::Outcome;
use crate::crd::{
    BootstrapMember, BootstrapStatus, MemberRole, MemberStatus, OperationStatus, PaxosClusterStatus, Reason,
};
use crate::names::MemberId;
use crate::observed::{MemberState, Observed};
use crate::plan::{Operation, Plan, Step, View};
use crate::validate::{Desired, Part};

pub use conditions::invalid;

/// How long positions may stay as they are.
const POSITIONS_SECONDS: i64 = 30;

/// What the API server refused, or the spec asks for and cannot be had: a person has to act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason in the condition.
    pub reason: Reason,
    /// The server's words, and what to do.
    pub message: String,
}

/// The status after this reconcile.
pub fn compose(
    desired: &Desired,
    observed: &Observed,
    plan: &Plan,
    outcome: &Outcome,
    refusals: &[Refusal],
) -> PaxosClusterStatus {
    let view = View::new(desired, observed);
    let mut status = observed.status.clone();
    if *outcome == Outcome::Done {
        record(&mut status, desired, plan);
    }
    status.operation = operation(desired, observed, plan, outcome);
    let config = view.config;
    if let Some(config) = config {
        status.config_version = i64::try_from(config.version).ok();
        status.voters = i32::try_from(config.voters().count()).unwrap_or(i32::MAX);
    }
    status.leader = view.leader.map(|(ordinal, _)| desired.name.pod(ordinal));
    if let Some((_, leader)) = view.leader {
        status.version = Some(leader.version.clone()).filter(|v| !v.is_empty());
    }
    let last =
        observed.reports.values().filter(|r| view.live.contains(&r.member)).map(|r| r.last_index).max();
    if let Some(last) = last {
        status.last_index = i64::try_from(last).ok();
    }
    status.members = members(&view);
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    status.replicas = count(observed.pods.len());
    status.ready_replicas = count(observed.pods.values().filter(|p| p.ready && !p.deleting).count());
    let updated = observed.pods.keys().filter(|o| view.outdated(**o) == Some(false)).count();
    status.updated_replicas = count(updated);
    status.selector = desired.name.selector();
    status.observed_generation = Some(observed.generation);
    conditions::set(&mut status, &view, plan, outcome, &refused(desired, refusals));
    status
}

/// What is at fault in the spec, and what was refused: the gravest first, all in one message.
fn refused(desired: &Desired, refusals: &[Refusal]) -> Option<Refusal> {
    let faults = desired.faults.iter().map(|fault| {
        let reason = match fault.part {
            Part::Template => Reason::InvalidTemplate,
            Part::Settings | Part::Storage | Part::Tls => Reason::InvalidSpec,
        };
        Refusal { reason, message: fault.why.to_string() }
    });
    let mut all: Vec<Refusal> = faults.chain(refusals.iter().cloned()).collect();
    let mut told = BTreeSet::new();
    all.retain(|r| told.insert(r.message.clone()));
    let reason = all.first()?.reason;
    let messages: Vec<String> = all.into_iter().map(|r| r.message).collect();
    Some(Refusal { reason, message: messages.join("; ") })
}

/// What a step leaves in the status: written before it is used. docs: operator-rules.md, rules 1 and 5.
fn record(status: &mut PaxosClusterStatus, desired: &Desired, plan: &Plan) {
    match &plan.step {
        Some(Step::Adopt { cluster }) => status.cluster_id = Some(cluster.to_string()),
        Some(Step::RecordBootstrap { cluster, members }) => {
            status.cluster_id = Some(cluster.to_string());
            let member = |(ordinal, id): &(u32, MemberId)| BootstrapMember {
                pod: desired.name.pod(*ordinal),
                member_id: id.to_string(),
            };
            let members = members.iter().map(member).collect();
            let settings = Some(desired.settings.into());
            status.bootstrap = Some(BootstrapStatus { members, done: false, settings });
        }
        Some(Step::ConfirmBootstrap) => {
            status.bootstrap.get_or_insert_default().done = true;
        }
        _ => {}
    }
}

/// The operation under way; it keeps its start as long as it is the same one.
fn operation(
    desired: &Desired,
    observed: &Observed,
    plan: &Plan,
    outcome: &Outcome,
) -> Option<OperationStatus> {
    let Operation { kind, ordinal } = plan.operation.clone()?;
    let member = ordinal.map(|o| desired.name.pod(o));
    let waiting_for = match (outcome, &plan.gate, &plan.step) {
        (Outcome::Refused(why), _, _) => why.clone(),
        (_, Some(gate), _) => gate.message.clone(),
        (_, None, Some(step)) => crate::apply::describe(desired, step),
        (_, None, None) => String::new(),
    };
    let previous = observed.status.operation.as_ref().filter(|p| p.kind == kind && p.member == member);
    let id = match &plan.step {
        Some(Step::AddLearner(c) | Step::Promote(c) | Step::RemoveMember(c)) => c.operation.to_string(),
        _ => previous.map_or_else(|| observed.fresh_id.to_string(), |p| p.id.clone()),
    };
    let started_at = previous.map_or(Time(whole_seconds(observed.now)), |p| p.started_at.clone());
    Some(OperationStatus { id, kind, member, started_at, waiting_for })
}

/// The API keeps seconds: more would differ from what is read back.
fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// Every pod, and every configured member that has none.
fn members(view: &View<'_>) -> Vec<MemberStatus> {
    let o = view.observed;
    let mut ordinals: Vec<u32> = o.pods.keys().chain(view.homes.values()).copied().collect();
    ordinals.sort_unstable();
    ordinals.dedup();
    let known = |ordinal: u32| o.pods.contains_key(&ordinal) || !view.members_at(ordinal).is_empty();
    ordinals.into_iter().filter(|ordinal| known(*ordinal)).map(|ordinal| member(view, ordinal)).collect()
}

fn member(view: &View<'_>, ordinal: u32) -> MemberStatus {
    let o = view.observed;
    let report = o.reports.get(&ordinal);
    let id = report.map(|r| r.member).or_else(|| view.members_at(ordinal).first().copied());
    let role = match id.and_then(|id| view.config?.get(id)) {
        Some(m) if m.voter => MemberRole::Voter,
        Some(_) => MemberRole::Learner,
        None => MemberRole::None,
    };
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let healthy = report.is_some_and(|r| r.state == MemberState::Active && r.ready);
    let before = o.status.members.iter().find(|m| m.pod == view.desired.name.pod(ordinal));
    // The memory by which a member is lost after a while: it ends when the member is heard of.
    let lost_since = id.filter(|id| view.stranded(ordinal, *id)).map(|id| {
        let since = view.stranded_since(ordinal, id);
        Time(since.unwrap_or_else(|| whole_seconds(o.now)))
    });
    MemberStatus {
        pod: view.desired.name.pod(ordinal),
        member_id: id.map(|id| id.to_string()),
        incarnation: report.map(|r| number(r.incarnation)),
        pvc_uid: o.claims.get(&ordinal).map(|c| c.uid.clone()),
        role,
        leader: view.leader.is_some_and(|(leader, _)| leader == ordinal),
        // A silent member keeps its last known position: with a lost quorum that is what a person needs.
        chosen_through: report.map(|r| number(r.chosen_through)).or(before.and_then(|m| m.chosen_through)),
        applied_index: report.map(|r| number(r.last_index)).or(before.and_then(|m| m.applied_index)),
        healthy,
        lost_since,
    }
}

/// Whether the new status has to be written: at once if it says something new, every 30 s if only
/// positions moved.
pub fn worth_writing(
    old: &PaxosClusterStatus,
    new: &PaxosClusterStatus,
    written: Option<Timestamp>,
    now: Timestamp,
) -> bool {
    if old == new {
        return false;
    }
    if without_positions(old) != without_positions(new) {
        return true;
    }
    written.is_none_or(|at| now.duration_since(at).as_secs() >= POSITIONS_SECONDS)
}

fn without_positions(status: &PaxosClusterStatus) -> PaxosClusterStatus {
    let mut status = status.clone();
    status.last_index = None;
    for member in &mut status.members {
        member.chosen_through = None;
        member.applied_index = None;
    }
    status
}
