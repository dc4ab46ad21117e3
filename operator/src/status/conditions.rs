//! The conditions: `Ready`, `Reconciling` and `Stalled` for tools that know kstatus; `Available`,
//! `Degraded` and `Bootstrapped` for people.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use crate::apply::Outcome;
use crate::crd::{Condition, ConditionType, OperationType, PaxosClusterStatus, Reason};
use crate::observed::{MemberState, TroubleKind};
use crate::plan::{GateKind, Plan, View};

use super::{Stall, whole_seconds};

/// What one condition says.
struct Says {
    holds: Option<bool>,
    reason: Reason,
    message: String,
}

fn says(holds: impl Into<Option<bool>>, reason: Reason, message: impl Into<String>) -> Says {
    Says { holds: holds.into(), reason, message: message.into() }
}

/// Sets all conditions.
pub(super) fn set(
    status: &mut PaxosClusterStatus,
    view: &View<'_>,
    plan: &Plan,
    outcome: &Outcome,
    stall: Option<&Stall>,
) {
    let stalled = stalled(view, plan, stall);
    let available = available(view);
    let unready = unready(view, plan, outcome);
    let reconciling = match (&unready, plan.gate.as_ref().map(|g| g.kind)) {
        (_, Some(GateKind::Paused)) => says(false, Reason::Paused, "spec.paused is true"),
        (_, Some(GateKind::Hibernated)) => {
            says(false, Reason::Hibernated, "replicas is 0: every disk is kept")
        }
        // Work that only a person can set going again is not under way.
        (Some(_), _) if stall.is_some() => says(false, stalled.reason, stalled.message.clone()),
        (Some((reason, message)), _) => says(true, *reason, message.clone()),
        (None, _) => says(false, Reason::Idle, "nothing is due"),
    };
    let ready = match (&unready, stalled.holds) {
        (_, Some(true)) => says(false, stalled.reason, stalled.message.clone()),
        (Some((reason, message)), _) => says(false, *reason, message.clone()),
        (None, _) => says(true, Reason::AsDesired, "all members are as desired and have caught up"),
    };
    let all = [
        (ConditionType::Ready, ready),
        (ConditionType::Available, available),
        (ConditionType::Reconciling, reconciling),
        (ConditionType::Stalled, stalled),
        (ConditionType::Degraded, degraded(view)),
        (ConditionType::Bootstrapped, bootstrapped(status)),
    ];
    let generation = view.observed.generation;
    status.conditions = all
        .into_iter()
        .map(|(kind, says)| condition(status, kind, says, generation, view.observed.now))
        .collect();
}

/// The status of a spec that cannot be carried out: nothing else changes.
pub fn invalid(
    old: &PaxosClusterStatus,
    generation: i64,
    now: Timestamp,
    reason: Reason,
    message: &str,
) -> PaxosClusterStatus {
    let mut status = old.clone();
    status.observed_generation = Some(generation);
    for (kind, holds) in
        [(ConditionType::Ready, false), (ConditionType::Reconciling, false), (ConditionType::Stalled, true)]
    {
        let new = condition(&status, kind, says(holds, reason, message), generation, now);
        match status.conditions.iter_mut().find(|c| c.type_ == kind.as_str()) {
            Some(slot) => *slot = new,
            None => status.conditions.push(new),
        }
    }
    status
}

/// A condition; its transition time stays while its status does.
fn condition(
    status: &PaxosClusterStatus,
    kind: ConditionType,
    says: Says,
    generation: i64,
    now: Timestamp,
) -> Condition {
    let word = match says.holds {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let old = status.conditions.iter().find(|c| c.type_ == kind.as_str());
    let since = match old {
        Some(old) if old.status == word => old.last_transition_time.clone(),
        _ => Time(whole_seconds(now)),
    };
    Condition {
        type_: kind.as_str().to_owned(),
        status: word.to_owned(),
        observed_generation: Some(generation),
        last_transition_time: since,
        reason: says.reason.as_str().to_owned(),
        message: says.message,
    }
}

/// What stands between the cluster and Ready, if anything.
fn unready(view: &View<'_>, plan: &Plan, outcome: &Outcome) -> Option<(Reason, String)> {
    let o = view.observed;
    if let Some(gate) = &plan.gate {
        let reason = match gate.kind {
            GateKind::Deleting => Reason::Deleting,
            GateKind::Paused => Reason::Paused,
            GateKind::Hibernated => Reason::Hibernated,
            GateKind::QuorumLost => Reason::QuorumLost,
            GateKind::NoLeader => Reason::NoLeader,
            GateKind::ForeignDisks => Reason::ForeignDisks,
            _ => doing(plan),
        };
        return Some((reason, gate.message.clone()));
    }
    if let Outcome::Refused(why) = outcome {
        return Some((doing(plan), why.clone()));
    }
    if let Some(step) = &plan.step {
        return Some((doing(plan), crate::apply::describe(view.desired, step)));
    }
    let wanted = usize::try_from(view.desired.voters()).unwrap_or(usize::MAX);
    let voters = view.voters();
    let behind: Vec<String> = (0..view.desired.replicas)
        .filter(|ordinal| {
            let report = o.reports.get(ordinal);
            !report.is_some_and(|r| r.ready && view.caught_up(r.member))
                || !o.pods.get(ordinal).is_some_and(|p| p.ready && !p.deleting)
        })
        .map(|ordinal| view.desired.name.pod(ordinal))
        .collect();
    if !behind.is_empty() {
        return Some((Reason::MembersNotReady, format!("not ready: {}", behind.join(", "))));
    }
    if voters.len() != wanted {
        return Some((Reason::MembersNotReady, format!("{} of {wanted} members vote", voters.len())));
    }
    None
}

/// The reason that goes with the plan's operation.
fn doing(plan: &Plan) -> Reason {
    match plan.operation.as_ref().map(|o| o.kind) {
        Some(OperationType::Bootstrap) => Reason::Bootstrapping,
        Some(OperationType::Wake) => Reason::Waking,
        Some(OperationType::Hibernate) => Reason::Hibernating,
        Some(OperationType::Grow) => Reason::Growing,
        Some(OperationType::Shrink) => Reason::Shrinking,
        Some(OperationType::Replace) => Reason::Replacing,
        Some(OperationType::Roll) => Reason::Rolling,
        Some(OperationType::Repair) => Reason::Repairing,
        Some(OperationType::Resize) => Reason::Resizing,
        Some(OperationType::Configure) => Reason::Configuring,
        None => Reason::MembersNotReady,
    }
}

fn available(view: &View<'_>) -> Says {
    let voters = view.voters();
    let live = voters.intersection(&view.live).count();
    if view.observed.status.cluster_id.is_none() {
        return says(false, Reason::NotBootstrapped, "the log has not been formed yet");
    }
    if view.desired.replicas == 0 && view.observed.pods.is_empty() {
        return says(false, Reason::Hibernated, "replicas is 0: every disk is kept");
    }
    match (view.no_quorum(), view.leader) {
        (Some(gate), _) if gate.kind == GateKind::NoLeader => says(false, Reason::NoLeader, gate.message),
        (Some(gate), _) => says(false, Reason::QuorumLost, gate.message),
        (None, Some((ordinal, _))) => says(
            true,
            Reason::QuorumAvailable,
            format!("{live} of {} voters answer, {} leads", voters.len(), view.desired.name.pod(ordinal)),
        ),
        (None, None) => says(false, Reason::NoLeader, "a leader is elected"),
    }
}

/// What only a person can mend: a refusal, a pod that cannot run, a deadline that passed.
fn stalled(view: &View<'_>, plan: &Plan, stall: Option<&Stall>) -> Says {
    if let Some(stall) = stall {
        return says(true, stall.reason, stall.message.clone());
    }
    if let Some(gate) = plan.gate.as_ref().filter(|g| g.kind == GateKind::ForeignDisks) {
        return says(true, Reason::ForeignDisks, gate.message.clone());
    }
    let o = view.observed;
    if let Some(message) = o.failed_creates.first() {
        return says(true, Reason::FailedCreate, format!("a pod cannot be made: {message}"));
    }
    let troubled =
        o.pods.iter().filter(|(_, p)| !p.deleting).find_map(|(o, p)| Some((*o, p.trouble.as_ref()?)));
    if let Some((ordinal, trouble)) = troubled {
        let reason = match trouble.kind {
            TroubleKind::Image => Reason::ImagePullFailed,
            TroubleKind::Crash | TroubleKind::Failed => Reason::CrashLooping,
            TroubleKind::Unschedulable => Reason::Unschedulable,
        };
        return says(true, reason, format!("{}: {}", view.desired.name.pod(ordinal), trouble.message));
    }
    if view.overdue(plan.operation.as_ref()) {
        let what = plan.gate.as_ref().map_or("a step", |g| &g.message);
        let message = format!("no progress for {} s: {what}", view.desired.deadline_seconds);
        return says(true, Reason::ProgressDeadlineExceeded, message);
    }
    says(false, Reason::NotStalled, "nothing stands in the way")
}

/// What works and is less well protected than asked for; the gravest first.
fn degraded(view: &View<'_>) -> Says {
    let o = view.observed;
    let voters = view.voters();
    let at = |m| view.homes.get(m).map_or_else(|| "?".to_owned(), |o| view.desired.name.pod(*o));
    let fenced: Vec<String> =
        o.reports.values().filter(|r| r.state == MemberState::Fenced).map(|r| at(&r.member)).collect();
    if !fenced.is_empty() {
        return says(true, Reason::MemberFenced, format!("fenced: {}", fenced.join(", ")));
    }
    let down: Vec<String> = voters.iter().filter(|m| !view.live.contains(*m)).map(at).collect();
    if !down.is_empty() && view.desired.replicas > 0 {
        return says(true, Reason::VoterDown, format!("voters that take no part: {}", down.join(", ")));
    }
    let mut nodes: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for member in &voters {
        let node =
            view.homes.get(member).and_then(|ordinal| o.pods.get(ordinal)).and_then(|p| p.node.as_deref());
        if let Some(node) = node {
            nodes.entry(node).or_default().push(at(member));
        }
    }
    if let Some((node, pods)) = nodes.iter().find(|(_, pods)| pods.len() > 1) {
        let message = format!("voters share node {node}: {}; losing it takes them all", pods.join(", "));
        return says(true, Reason::VotersShareNode, message);
    }
    if (1..=2).contains(&voters.len()) && view.desired.spec.disruption.budget == crate::crd::Budget::Quorum {
        let message = format!(
            "with {} voters drains are blocked; scale up, or set disruption.budget to None",
            voters.len()
        );
        return says(true, Reason::DrainsBlocked, message);
    }
    if voters.is_empty() {
        return says(false, Reason::Healthy, "no voters are known");
    }
    says(false, Reason::Healthy, "every voter takes part, on a node of its own")
}

fn bootstrapped(status: &PaxosClusterStatus) -> Says {
    match (&status.cluster_id, &status.bootstrap) {
        (Some(id), Some(b)) if b.done && b.members.is_empty() => {
            says(true, Reason::Adopted, format!("the disks' log {id} was adopted"))
        }
        (Some(id), Some(b)) if b.done => says(true, Reason::Formed, format!("the log is {id}")),
        (Some(id), Some(_)) => says(false, Reason::Bootstrapping, format!("log {id} is being formed")),
        (Some(id), None) => says(None, Reason::Adopted, format!("the disks' log {id} is being adopted")),
        (None, _) => says(false, Reason::NotBootstrapped, "the log has not been formed yet"),
    }
}
