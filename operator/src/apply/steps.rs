//! Carries out one step.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Api;
use kube::api::ResourceExt as _;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::{Value, json};

use crate::build;
use crate::context::Context;
use crate::dereference::{Dereferenced, owned, target};
use crate::error::{Error, code, gone_is_fine};
use crate::members::{Ask, MemberError};
use crate::names::{
    ANNOTATION_CLUSTER, ANNOTATION_COUNTED, ANNOTATION_MEMBER, FIELD_MANAGER, LABEL_COUNTED, LABEL_RETIRED,
    LABEL_ROLE, MemberId,
};
use crate::plan::{ClaimMark, Plan, RoleLabel, Step};
use crate::settings::Settings;
use crate::validate::Desired;

use super::{Desk, Outcome, claims, objects};

/// Carries out a step. Scaling is done already (the set was applied at the plan's size), and what is
/// written to the status is written by the status stage.
pub(super) async fn take(
    desk: &mut Desk<'_>,
    read: &Dereferenced,
    plan: &Plan,
    step: &Step,
) -> Result<Outcome, Error> {
    let (ctx, desired) = (desk.ctx, desk.desired);
    let hand = Hand { ctx, desired, read };
    match step {
        Step::Scale { .. } | Step::Adopt { .. } | Step::RecordBootstrap { .. } | Step::ConfirmBootstrap => {}
        Step::Initialize { cluster, members, targets } => {
            let members: Vec<(String, MemberId)> =
                members.iter().map(|(o, id)| (desired.name.pod(*o), *id)).collect();
            // What was recorded with the list: the spec may have been edited since the first of them was told.
            let recorded = read.observed.status.bootstrap.as_ref().and_then(|b| b.settings.as_ref());
            let recorded = recorded.filter(|_| !planted!(SettingsOfTheDay)).map(Settings::from);
            let settings = recorded.unwrap_or(desired.settings);
            for ordinal in targets {
                let cluster = *cluster;
                hand.ask(*ordinal, Ask::Initialize { cluster, members: members.clone(), settings }).await?;
            }
        }
        Step::Tighten { labels, marks, budget } => {
            for label in labels {
                hand.label(label).await?;
            }
            hand.recount(labels).await?;
            for mark in marks {
                hand.mark(mark).await?;
            }
            if *budget {
                let work = hand.budget(plan.budget);
                if !desk.attempt(&objects::budget_key(desired), "", work).await? {
                    // Told, and not waited for: the step that it stands before is next.
                    return Ok(Outcome::Again);
                }
            }
        }
        Step::Join { ordinal, cluster, digest } => {
            hand.ask(*ordinal, Ask::Join { cluster: *cluster, digest: digest.clone() }).await?;
        }
        Step::AddLearner(change) => {
            let pod = desired.name.pod(change.ordinal);
            hand.ask(change.via, Ask::AddLearner(change.clone(), pod)).await?;
        }
        Step::Promote(change) => hand.ask(change.via, Ask::Promote(change.clone())).await?,
        Step::RemoveMember(change) => hand.ask(change.via, Ask::Remove(change.clone())).await?,
        Step::ChangeSettings { via, cluster, version, settings } => {
            let ask = Ask::ChangeSettings { cluster: *cluster, version: *version, settings: *settings };
            hand.ask(*via, ask).await?;
        }
        Step::TransferLeader { from, member, cluster, .. } => {
            hand.ask(*from, Ask::Transfer { cluster: *cluster, to: *member }).await?;
        }
        Step::Renew { ordinal, member } => hand.ask(*ordinal, Ask::Renew(*member)).await?,
        Step::DeletePod { ordinal, uid, force } => hand.delete_pod(*ordinal, uid, *force).await?,
        Step::Evict { ordinal, uid } if planted!(RestartedByDelete) => {
            hand.delete_pod(*ordinal, uid, false).await?;
        }
        Step::Evict { ordinal, uid } => return hand.evict(*ordinal, uid).await,
        Step::DeleteClaim { ordinal, uid } => hand.delete_claim(*ordinal, uid).await?,
        Step::RetireClaim { ordinal, uid, member } => {
            let patch = json!({ "metadata": { "labels": { LABEL_RETIRED: member.to_string() } } });
            hand.patch_claim(*ordinal, uid, patch).await?;
        }
    }
    Ok(Outcome::Done)
}

/// What every step works with.
struct Hand<'a> {
    ctx: &'a Context,
    desired: &'a Desired,
    read: &'a Dereferenced,
}

impl Hand<'_> {
    fn claims(&self) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.ctx.client.clone(), &self.desired.name.namespace)
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.ctx.client.clone(), &self.desired.name.namespace)
    }

    /// Asks a member for what it answers with no more than that it was done.
    async fn ask(&self, ordinal: u32, ask: Ask) -> Result<(), Error> {
        let pod = self.read.observed.pods.get(&ordinal);
        let trust = self.read.observed.reports.get(&ordinal).map(|r| r.trust).unwrap_or_default();
        let target = pod.and_then(|p| target(self.desired, ordinal, p, &self.read.access, trust));
        let answer = match &target {
            Some(target) => self.ctx.members.ask(target, ask).await,
            None => Err(MemberError::Malformed("it has no address any more".into())),
        };
        let failed = |source| Error::Member { pod: self.desired.name.pod(ordinal), source };
        answer.map(drop).map_err(failed)
    }

    async fn label(&self, label: &RoleLabel) -> Result<(), Error> {
        let pod = self.desired.name.pod(label.ordinal);
        let counted = label.counted.then_some("true");
        let labels = json!({ LABEL_ROLE: label.role, LABEL_COUNTED: counted });
        let patch = json!({ "metadata": { "uid": label.uid, "labels": labels } });
        let patched = self.pods().patch(&pod, &merging(), &Patch::Merge(&patch)).await;
        gone_is_fine(patched).map_err(Error::api(format!("labelling pod {pod}")))?;
        Ok(())
    }

    /// Has the budget counted anew. Kubernetes looks at a budget when a pod that it selects changes, not when one stops
    /// being selected: until then it would allow a disruption too many. A written annotation makes it look.
    async fn recount(&self, labels: &[RoleLabel]) -> Result<(), Error> {
        let (name, uid) = (&self.desired.name.name, &self.desired.name.uid);
        let pods = self.read.observed.pods.iter().filter(|(_, pod)| pod.counted);
        let before: BTreeSet<u32> = pods.map(|(ordinal, _)| *ordinal).collect();
        let mut counted = before.clone();
        for label in labels {
            match label.counted {
                true => counted.insert(label.ordinal),
                false => counted.remove(&label.ordinal),
            };
        }
        if counted == before || planted!(BudgetNotRecounted) {
            return Ok(());
        }
        let budgets: Api<PodDisruptionBudget> =
            Api::namespaced(self.ctx.client.clone(), &self.desired.name.namespace);
        let failed = || Error::api(format!("having the disruption budget {name} counted anew"));
        let live = budgets.get_opt(name).await.map_err(failed())?;
        // There may be none yet, or somebody else's.
        let Some(live) = live.filter(|live| owned(&live.metadata, uid)) else {
            return Ok(());
        };
        let names: Vec<String> = counted.iter().map(|ordinal| self.desired.name.pod(*ordinal)).collect();
        let annotations = json!({ ANNOTATION_COUNTED: names.join(",") });
        let patch = json!({ "metadata": { "uid": live.uid(), "annotations": annotations } });
        let patched = budgets.patch(name, &merging(), &Patch::Merge(&patch)).await;
        gone_is_fine(patched).map_err(failed())?;
        Ok(())
    }

    async fn mark(&self, mark: &ClaimMark) -> Result<(), Error> {
        let patch = json!({ "metadata": {
            "annotations": {
                ANNOTATION_MEMBER: mark.member.to_string(),
                ANNOTATION_CLUSTER: mark.cluster.map(|c| c.to_string()),
            },
            "labels": { LABEL_RETIRED: Value::Null },
        }});
        self.patch_claim(mark.ordinal, &mark.uid, patch).await
    }

    async fn budget(&self, min_available: Option<u32>) -> Result<(), Error> {
        match min_available {
            Some(n) => {
                let object = build::disruption_budget(self.desired, n);
                objects::ensure_now(self.ctx, self.desired, &object).await
            }
            None => {
                objects::remove(
                    self.ctx,
                    self.desired,
                    build::Kind::PodDisruptionBudget,
                    &self.desired.name.name,
                )
                .await
            }
        }
    }

    async fn patch_claim(&self, ordinal: u32, uid: &str, patch: Value) -> Result<(), Error> {
        let doing = format!("patching claim {}", self.desired.name.claim(ordinal));
        claims::write(self.ctx, self.desired, ordinal, uid, patch, doing).await
    }

    async fn delete_claim(&self, ordinal: u32, uid: &str) -> Result<(), Error> {
        let claim = self.desired.name.claim(ordinal);
        let deleted = self.claims().delete(&claim, &exactly(uid)).await;
        gone_is_fine(deleted).map_err(Error::api(format!("deleting claim {claim}")))?;
        Ok(())
    }

    async fn delete_pod(&self, ordinal: u32, uid: &str, force: bool) -> Result<(), Error> {
        let pod = self.desired.name.pod(ordinal);
        let params = if force { exactly(uid).grace_period(0) } else { exactly(uid) };
        let deleted = self.pods().delete(&pod, &params).await;
        gone_is_fine(deleted).map_err(Error::api(format!("deleting pod {pod}")))?;
        Ok(())
    }

    async fn evict(&self, ordinal: u32, uid: &str) -> Result<Outcome, Error> {
        let pod = self.desired.name.pod(ordinal);
        // Written out: the client's own call names the options otherwise than the API does, and the UID is lost.
        let preconditions = (!planted!(DeletesWithoutUid)).then(|| json!({ "uid": uid }));
        let eviction = json!({
            "apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": { "name": pod, "namespace": self.desired.name.namespace },
            "deleteOptions": { "preconditions": preconditions },
        });
        let (pods, params) = (self.pods(), PostParams::default());
        let asked = pods.create_subresource::<Value, Value>("eviction", &pod, &params, &eviction);
        match gone_is_fine(asked.await) {
            Ok(_) => Ok(Outcome::Done),
            Err(kube::Error::Api(status)) if status.code == 429 => {
                Ok(Outcome::Refused(format!("the disruption budget does not allow {pod} to restart now")))
            }
            Err(source) => Err(Error::Api { doing: format!("evicting pod {pod}"), source }),
        }
    }
}

pub(super) fn merging() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() }
}

/// Only this very object.
fn exactly(uid: &str) -> DeleteParams {
    if planted!(DeletesWithoutUid) {
        return DeleteParams::default();
    }
    DeleteParams::default().preconditions(Preconditions { uid: Some(uid.to_owned()), resource_version: None })
}

/// Whether the error of a step means that the world moved on: to be planned anew at once.
pub(crate) fn moved_on(error: &Error) -> bool {
    match error {
        Error::Api { source, .. } => code(source) == Some(409),
        Error::Moved { .. } => true,
        Error::Member { source: MemberError::Refused { code, .. }, .. } => {
            matches!(code, tonic::Code::FailedPrecondition | tonic::Code::Aborted)
        }
        _ => false,
    }
}

/// A step in a sentence, for Events and logs.
pub fn describe(desired: &Desired, step: &Step) -> String {
    let pod = |ordinal: &u32| desired.name.pod(*ordinal);
    match step {
        Step::Scale { from, to } => format!("StatefulSet from {from} to {to} pods"),
        Step::Adopt { cluster } => format!("adopts the log {cluster} that the disks hold"),
        Step::RecordBootstrap { members, .. } if members.is_empty() => {
            "a first member is lost before the log was formed: the others start over".to_owned()
        }
        Step::RecordBootstrap { cluster, members } => {
            format!("log {cluster} will be formed by {} members", members.len())
        }
        Step::Initialize { targets, .. } => {
            let pods: Vec<String> = targets.iter().map(pod).collect();
            format!("tells {} who the first members are", pods.join(", "))
        }
        Step::ConfirmBootstrap => "the first members agree and have a leader".into(),
        Step::Tighten { labels, marks, budget } => {
            let (labels, marks) = (labels.len(), marks.len());
            let budget = if *budget { ", and writes the disruption budget" } else { "" };
            format!("labels {labels} pods and {marks} claims by the parts of their members{budget}")
        }
        Step::Join { ordinal, .. } => format!("tells {} which log it will follow", pod(ordinal)),
        Step::AddLearner(c) => format!("adds {} as a learner (member {})", pod(&c.ordinal), c.member),
        Step::Promote(c) => format!("gives {} a vote (member {})", pod(&c.ordinal), c.member),
        Step::RemoveMember(c) => format!("takes {} out (member {})", pod(&c.ordinal), c.member),
        Step::ChangeSettings { version, settings, .. } => {
            let leases = if settings.leases { "on" } else { "off" };
            format!(
                "changes the log's settings from version {version}: heartbeat {} ms, election timeout {} ms, \
                 leases {leases}, retention as in the spec",
                settings.heartbeat_ms, settings.election_timeout_ms
            )
        }
        Step::TransferLeader { from, to, .. } => {
            format!("hands leadership from {} to {}", pod(from), pod(to))
        }
        Step::Renew { ordinal, member } => {
            format!("starts the disk of {} over: member {member} was removed", pod(ordinal))
        }
        Step::DeletePod { ordinal, force: false, .. } => {
            format!("restarts {}, which does not work", pod(ordinal))
        }
        Step::DeletePod { ordinal, force: true, .. } => {
            format!("removes {}, which is not heard of any more, so that it starts again", pod(ordinal))
        }
        Step::Evict { ordinal, .. } => format!("restarts {} into the new revision", pod(ordinal)),
        Step::DeleteClaim { ordinal, .. } => format!("deletes claim {}", desired.name.claim(*ordinal)),
        Step::RetireClaim { ordinal, member, .. } => {
            format!("keeps claim {} of removed member {member}", desired.name.claim(*ordinal))
        }
    }
}
