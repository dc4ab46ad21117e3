//! The conditions: `Ready`, `Reconciling` and `Stalled` for tools that know kstatus; `Available`,
//! `Degraded` and `Bootstrapped` for people.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use crate::apply::Outcome;
use crate::crd::{Condition, ConditionType, OperationType, PaxosClusterStatus, Reason, ReplacePolicy};
use crate::names::MemberId;
use crate::observed::{MemberState, Room, TroubleKind};
use crate::plan::{GateKind, Plan, Step, View, majority};

use super::{Refusal, whole_seconds};

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
    refused: &Option<Refusal>,
) {
    let stalled = stalled(view, plan, refused.as_ref());
    let available = available(view);
    let unready = unready(view, plan, outcome);
    let reconciling = match (&unready, plan.gate.as_ref().map(|g| g.kind)) {
        (_, Some(GateKind::Paused)) => says(false, Reason::Paused, "spec.paused is true"),
        (_, Some(GateKind::Hibernated)) => {
            says(false, Reason::Hibernated, "replicas is 0: every disk is kept")
        }
        // Work that only a person can set going again is not under way.
        (Some(_), _) if plan.step.is_none() && refused.is_some() => {
            says(false, stalled.reason, stalled.message.clone())
        }
        (Some((reason, message)), _) => says(true, *reason, message.clone()),
        (None, _) if view.observed.waits_turn => says(
            true,
            Reason::UpgradeWaits,
            "this version of the operator makes the pods otherwise: other clusters are rolled first",
        ),
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
        if let (GateKind::PodsStarting | GateKind::MembersNotReady, Some(told)) = (gate.kind, trouble(view)) {
            return Some(told);
        }
        let reason = match gate.kind {
            GateKind::Deleting => Reason::Deleting,
            GateKind::Paused => Reason::Paused,
            GateKind::Hibernated => Reason::Hibernated,
            GateKind::QuorumLost => Reason::QuorumLost,
            GateKind::NoLeader => Reason::NoLeader,
            GateKind::ForeignDisks => Reason::ForeignDisks,
            GateKind::InvalidSpec => Reason::InvalidSpec,
            _ => doing(plan),
        };
        return Some((reason, gate.message.clone()));
    }
    if let Outcome::Refused(why) = outcome {
        return Some((doing(plan), why.clone()));
    }
    if let (Some(Step::Tighten { .. }), Some(told)) = (&plan.step, trouble(view)) {
        return Some(told);
    }
    if let Some(step) = &plan.step {
        return Some((doing(plan), crate::apply::describe(view.desired, step)));
    }
    if *outcome == Outcome::Again && !planted!(ReadyAtOnce) {
        return Some((
            Reason::Rolling,
            "the StatefulSet was changed: its pods are looked at next".to_owned(),
        ));
    }
    if let Some(small) = too_small(view) {
        return Some((Reason::Resizing, small));
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
    if let (false, Some(told)) = (behind.is_empty(), trouble(view)) {
        return Some(told);
    }
    if !behind.is_empty() && !planted!(ReadyBehind) {
        return Some((Reason::MembersNotReady, format!("not ready: {}", behind.join(", "))));
    }
    if voters.len() != wanted {
        return Some((Reason::MembersNotReady, format!("{} of {wanted} members vote", voters.len())));
    }
    None
}

/// A volume that has not got its size: it counts as grown when its capacity says so.
fn too_small(view: &View<'_>) -> Option<String> {
    let wanted = view.desired.storage_bytes;
    let claims = view.observed.claims.iter().filter(|(ordinal, _)| **ordinal < view.desired.replicas);
    let small: Vec<String> = claims
        .filter(|(_, c)| {
            !c.deleting
                && (c.requested < wanted
                    || (!planted!(ReadyBeforeCapacity) && (1..c.requested).contains(&c.capacity)))
        })
        .map(|(ordinal, c)| {
            let (claim, mib) = (view.desired.name.claim(*ordinal), |bytes: u64| bytes >> 20);
            format!("{claim} has {} MiB of {} MiB", mib(c.capacity), mib(wanted.max(c.requested)))
        })
        .collect();
    (!small.is_empty()).then(|| format!("volumes grow: {}", small.join(", ")))
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
    if let Some(full) = appends_refused(view) {
        return says(false, Reason::DiskFull, full);
    }
    match (view.no_quorum(), view.leader) {
        (Some(gate), _) if planted!(AvailableAlone) => says(true, Reason::QuorumAvailable, gate.message),
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

/// Why appends are refused although a quorum answers: the leader, or so many voters that the others are no
/// quorum, have no space.
fn appends_refused(view: &View<'_>) -> Option<String> {
    let (_, leader) = view.leader?;
    let full = with_room(view, Room::Full);
    let voters = view.voters();
    let without = voters.len() - full.len().min(voters.len());
    let refused = leader.room == Room::Full || without < majority(voters.len());
    refused.then(|| format!("appends are refused, disks are full: {}; {GROW}", full.join(", ")))
}

/// What to do about a disk without space.
const GROW: &str = "raise spec.storage.size, or let the log be trimmed (spec.retention)";

/// Voters whose disks have just so much space.
fn with_room(view: &View<'_>, room: Room) -> Vec<String> {
    let voters = view.voters();
    let reports = view.observed.reports.iter().filter(|(_, r)| voters.contains(&r.member) && r.room == room);
    reports.map(|(o, r)| format!("{} ({} MiB free)", view.desired.name.pod(*o), r.free_bytes >> 20)).collect()
}

/// What only a person can mend: a refusal, disks of others, and what has stood in the way for longer than the
/// deadline. The first seconds of a pull, a crash or a Pending pod are no news.
fn stalled(view: &View<'_>, plan: &Plan, refused: Option<&Refusal>) -> Says {
    if let Some(refusal) = refused {
        return says(true, refusal.reason, refusal.message.clone());
    }
    if let Some(gate) = plan.gate.as_ref().filter(|g| g.kind == GateKind::ForeignDisks) {
        return says(true, Reason::ForeignDisks, gate.message.clone());
    }
    let late = view.overdue(plan.operation.as_ref()) || unavailable_for_long(view);
    if !late {
        return says(false, Reason::NotStalled, "nothing stands in the way");
    }
    if let Some((reason, message)) = trouble(view) {
        return says(true, reason, message);
    }
    let what = plan.gate.as_ref().map_or("a step", |g| &g.message);
    let message = format!("no progress for {} s: {what}", view.desired.deadline_seconds);
    says(true, Reason::ProgressDeadlineExceeded, message)
}

/// What keeps a pod from running, in the words of whoever keeps it.
fn trouble(view: &View<'_>) -> Option<(Reason, String)> {
    let o = view.observed;
    if let Some(message) = o.failed_creates.first() {
        return Some((Reason::FailedCreate, format!("a pod cannot be made: {message}")));
    }
    let (ordinal, trouble) =
        o.pods.iter().filter(|(_, p)| !p.deleting).find_map(|(o, p)| Some((*o, p.trouble.as_ref()?)))?;
    // A damaged disk is one of the few things that end the sidecar again and again. O37.
    let advice = match (trouble.kind, view.members_at(ordinal).first()) {
        (TroubleKind::Crash, Some(member)) if trouble.message.starts_with("container synod ") => format!(
            "; `kubectl logs {} -c synod --previous` says why; if its disk is damaged, have the member replaced: \
             annotate the PaxosCluster with synod.dev/replace={member}",
            view.desired.name.pod(ordinal)
        ),
        _ => String::new(),
    };
    let reason = match trouble.kind {
        TroubleKind::Image => Reason::ImagePullFailed,
        TroubleKind::Crash | TroubleKind::Failed => Reason::CrashLooping,
        TroubleKind::Unschedulable => Reason::Unschedulable,
    };
    Some((reason, format!("{}: {}{advice}", view.desired.name.pod(ordinal), trouble.message)))
}

/// Whether the log was formed and wants pods, and Ready or Available have been false for longer than the
/// deadline while something keeps a pod from running or no quorum answers.
fn unavailable_for_long(view: &View<'_>) -> bool {
    if view.desired.replicas == 0 || view.desired.spec.paused || view.observed.deleting {
        return false;
    }
    let for_long = |kind: ConditionType| {
        let known = view.observed.status.conditions.iter().find(|c| c.type_ == kind.as_str());
        known.is_some_and(|c| {
            let since = view.observed.now.duration_since(c.last_transition_time.0).as_secs();
            c.status == "False" && since > view.desired.deadline_seconds
        })
    };
    (trouble(view).is_some() && for_long(ConditionType::Ready))
        || (view.no_quorum().is_some() && for_long(ConditionType::Available))
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
    let going: Vec<String> = (o.claims.iter())
        .filter(|(ordinal, c)| c.deleting && !view.members_at(**ordinal).is_empty())
        .map(|(ordinal, _)| view.desired.name.claim(*ordinal))
        .collect();
    if !going.is_empty() {
        let message = format!(
            "claims are being deleted, their disks go with their pods: {}; they are replaced one after the other",
            going.join(", ")
        );
        return says(true, Reason::ClaimTerminating, message);
    }
    let full = with_room(view, Room::Full);
    if !full.is_empty() {
        return says(true, Reason::DiskFull, format!("disks are full: {}; {GROW}", full.join(", ")));
    }
    let down: Vec<String> =
        voters.iter().filter(|m| !view.live.contains(*m)).map(|m| why_down(view, *m)).collect();
    if !down.is_empty() && view.desired.replicas > 0 {
        return says(true, Reason::VoterDown, format!("voters that take no part: {}", down.join(", ")));
    }
    let low = with_room(view, Room::Low);
    if !low.is_empty() {
        return says(true, Reason::DiskLow, format!("disks are nearly full: {}; {GROW}", low.join(", ")));
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
    let formed = o.status.bootstrap.as_ref().is_some_and(|b| b.done);
    if voters.is_empty() && formed && view.desired.replicas > 0 {
        return says(true, Reason::QuorumLost, "no member that knows the configuration answers");
    }
    if voters.is_empty() {
        return says(false, Reason::Healthy, "no member votes now: nothing can be less protected");
    }
    says(false, Reason::Healthy, "every voter takes part, on a node of its own")
}

/// A voter that is down, and what becomes of it if its node is gone.
fn why_down(view: &View<'_>, member: MemberId) -> String {
    let Some(ordinal) = view.homes.get(&member) else { return format!("member {member}") };
    let pod = view.desired.name.pod(*ordinal);
    match view.stranded_since(*ordinal, member) {
        Some(_) if view.desired.spec.storage.replace_lost.policy == ReplacePolicy::Manual => format!(
            "{pod} (the node of its volume is gone: annotate the PaxosCluster with synod.dev/replace={member})"
        ),
        Some(since) => format!(
            "{pod} (the node of its volume is gone since {since}: replaced {} later)",
            view.desired.spec.storage.replace_lost.after
        ),
        None => pod,
    }
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
