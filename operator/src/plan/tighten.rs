//! Class 5: role labels, the disruption budget and the marks on claims, brought in line before the step
//! that relies on them. docs: operator-rules.md, "Budget".

use crate::crd::Budget;
use crate::names::MemberId;
use crate::observed::MemberState;

use super::view::majority;
use super::{ClaimMark, RoleLabel, Step, View};

/// `minAvailable`: a quorum of max(voters, target), the leaving one not counted. While a pod is restarted
/// on purpose it is a quorum of the voters there are (a target not reached yet would forbid every roll),
/// and of one or two voters one less, or no revision could ever reach them.
pub(super) fn budget(view: &View<'_>, leaving: Option<MemberId>, rolling: bool) -> Option<u32> {
    if view.desired.spec.disruption.budget == Budget::None || view.desired.replicas == 0 {
        return None;
    }
    if view.config.is_none()
        && let Some(standing) = view.observed.budget
    {
        // Nobody answers: what was decided with more knowledge stands.
        return u32::try_from(standing).ok();
    }
    let mut voters = view.voters();
    if let Some(leaving) = leaving {
        voters.remove(&leaving);
    }
    let quorum = if rolling && voters.len() <= 2 {
        voters.len().saturating_sub(1)
    } else if rolling {
        majority(voters.len())
    } else {
        let target = usize::try_from(view.desired.voters()).unwrap_or(usize::MAX);
        majority(voters.len().max(target))
    };
    let quorum = if planted!(BudgetTooLow) { quorum.saturating_sub(1) } else { quorum };
    u32::try_from(quorum).ok()
}

/// What has to be written before the plan's step, if anything.
pub(super) fn due(view: &View<'_>, leaving: Option<MemberId>, budget: Option<u32>) -> Option<Step> {
    let labels = labels(view, leaving);
    let marks = marks(view);
    let standing = view.observed.budget.and_then(|b| u32::try_from(b).ok());
    let budget_due = view.observed.set.is_some() && standing != budget && !view.observed.budget_refused;
    if labels.is_empty() && marks.is_empty() && !budget_due {
        return None;
    }
    Some(Step::Tighten { labels, marks, budget: budget_due })
}

/// Labels that differ. Without a configuration to read the roles stay as they are, without a leader to ask
/// what the budget counts.
fn labels(view: &View<'_>, leaving: Option<MemberId>) -> Vec<RoleLabel> {
    let mut labels = Vec::new();
    for (ordinal, pod) in view.observed.pods.iter().filter(|(_, p)| !p.deleting) {
        let role = match (role(view, *ordinal, leaving), &pod.role) {
            (Some(role), _) => role,
            (None, None) => "none",
            (None, Some(_)) => continue,
        };
        let heard = match view.leader {
            _ if planted!(BudgetCountsAll) => true,
            Some(_) => view.members_at(*ordinal).iter().any(|m| view.serves(*m)),
            None => pod.counted,
        };
        // A voter that is Ready but cut off must not count: a drain would take the quorum.
        let counted = heard && role == "voter";
        if pod.role.as_deref() != Some(role) || pod.counted != counted {
            labels.push(RoleLabel { ordinal: *ordinal, uid: pod.uid.clone(), role, counted });
        }
    }
    labels
}

/// The part of an ordinal's member in the configuration; `None` where no configuration is known.
fn role(view: &View<'_>, ordinal: u32, leaving: Option<MemberId>) -> Option<&'static str> {
    let config = view.config?;
    // A pod whose member is silent keeps the part its disk had.
    let members = match view.observed.reports.get(&ordinal) {
        Some(r) => vec![r.member],
        None => view.members_at(ordinal),
    };
    let stays = members.iter().filter(|m| Some(**m) != leaving);
    Some(match stays.filter_map(|m| config.get(*m)).map(|m| m.voter).max() {
        Some(true) => "voter",
        Some(false) => "learner",
        None => "none",
    })
}

/// Claims whose marks differ from what is on the disk. A disk is marked before its member is told of a
/// cluster, so that a claim that outlives every pod still says whose it is.
fn marks(view: &View<'_>) -> Vec<ClaimMark> {
    let mut marks = Vec::new();
    for (ordinal, report) in &view.observed.reports {
        let Some(claim) = view.observed.claims.get(ordinal).filter(|c| !c.deleting) else { continue };
        // A member that was removed keeps the mark it had: it names what the label `retired` names.
        if matches!(report.state, MemberState::Removed | MemberState::Fenced) {
            continue;
        }
        // A mark that names the log stays while the disk is the same: it may be the only trace of a
        // forming that was cut short.
        let kept = claim.cluster.filter(|_| claim.member == Some(report.member));
        let listed = view.cluster.filter(|_| belongs(view, report.member));
        let cluster = report.cluster.or(listed).or(kept);
        if claim.member != Some(report.member) || claim.cluster != cluster {
            marks.push(ClaimMark {
                ordinal: *ordinal,
                uid: claim.uid.clone(),
                member: report.member,
                cluster,
            });
        }
    }
    marks
}

/// Whether an empty disk is about to become a member: it is listed for the bootstrap.
fn belongs(view: &View<'_>, member: MemberId) -> bool {
    let listed = view.observed.status.bootstrap.iter().flat_map(|b| &b.members);
    listed.filter_map(|m| m.member_id.parse::<MemberId>().ok()).any(|id| id == member)
}
