//! Carries out one step.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, EvictParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::build;
use crate::context::Context;
use crate::dereference::{Dereferenced, target};
use crate::error::{Error, code, gone_is_fine};
use crate::members::{Member, MemberError};
use crate::names::{
    ANNOTATION_CLUSTER, ANNOTATION_MEMBER, FIELD_MANAGER, LABEL_RETIRED, LABEL_ROLE, MemberId,
};
use crate::plan::{ClaimMark, Plan, RoleLabel, Step};
use crate::validate::Desired;

use super::{Outcome, objects};

/// Carries out a step. Scaling is done already (the set was applied at the plan's size), and what is
/// written to the status is written by the status stage.
pub(super) async fn take(
    ctx: &Context,
    desired: &Desired,
    read: &Dereferenced,
    plan: &Plan,
    step: &Step,
) -> Result<Outcome, Error> {
    let hand = Hand { ctx, desired, read };
    match step {
        Step::Scale { .. } | Step::Adopt { .. } | Step::RecordBootstrap { .. } | Step::ConfirmBootstrap => {}
        Step::Initialize { cluster, members, targets } => {
            let named: Vec<(String, MemberId)> =
                members.iter().map(|(o, id)| (desired.name.pod(*o), *id)).collect();
            for ordinal in targets {
                let member = hand.member(*ordinal).await?;
                hand.said(*ordinal, member.initialize(*cluster, named.clone(), &desired.settings).await)?;
            }
        }
        Step::Tighten { labels, marks, budget } => {
            for label in labels {
                hand.label(label).await?;
            }
            for mark in marks {
                hand.mark(mark).await?;
            }
            if *budget {
                hand.budget(plan.budget).await?;
            }
        }
        Step::Join { ordinal, cluster, digest } => {
            let member = hand.member(*ordinal).await?;
            hand.said(*ordinal, member.join(*cluster, digest.clone()).await)?;
        }
        Step::AddLearner(change) => {
            let leader = hand.member(change.via).await?;
            hand.said(change.via, leader.add_learner(change, desired.name.pod(change.ordinal)).await)?;
        }
        Step::Promote(change) => {
            let leader = hand.member(change.via).await?;
            hand.said(change.via, leader.promote(change).await)?;
        }
        Step::RemoveMember(change) => {
            let leader = hand.member(change.via).await?;
            hand.said(change.via, leader.remove(change).await)?;
        }
        Step::ChangeSettings { via, cluster, version, settings } => {
            let leader = hand.member(*via).await?;
            hand.said(*via, leader.change_settings(*cluster, *version, settings).await)?;
        }
        Step::TransferLeader { from, member, cluster, .. } => {
            let leader = hand.member(*from).await?;
            hand.said(*from, leader.transfer_leader(*cluster, *member).await)?;
        }
        Step::Renew { ordinal, member } => {
            let removed = hand.member(*ordinal).await?;
            hand.said(*ordinal, removed.renew(*member).await)?;
        }
        Step::DeletePod { ordinal, uid, force } => hand.delete_pod(*ordinal, uid, *force).await?,
        Step::Evict { ordinal, uid } => return hand.evict(*ordinal, uid).await,
        Step::DeleteClaim { ordinal, uid } => hand.delete_claim(*ordinal, uid).await?,
        Step::RetireClaim { ordinal, uid, member } => {
            hand.patch_claim(
                *ordinal,
                uid,
                json!({ "metadata": { "labels": { LABEL_RETIRED: member.to_string() } } }),
            )
            .await?;
        }
        Step::ResizeClaim { ordinal, uid, size } => {
            let request = json!({ "spec": { "resources": { "requests": { "storage": size } } } });
            hand.patch_claim(*ordinal, uid, request).await?;
        }
        Step::OwnClaim { ordinal, uid, owned } => hand.own_claim(*ordinal, uid, *owned).await?,
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

    async fn member(&self, ordinal: u32) -> Result<Member, Error> {
        let pod = self.read.observed.pods.get(&ordinal);
        let target = pod.and_then(|p| target(self.desired, ordinal, p, &self.read.access));
        let Some(target) = target else {
            let why = MemberError::Malformed("it has no address any more".into());
            return Err(Error::Member { pod: self.desired.name.pod(ordinal), source: why });
        };
        self.said(ordinal, Member::connect(&target).await)
    }

    fn said<T>(&self, ordinal: u32, answer: Result<T, MemberError>) -> Result<T, Error> {
        answer.map_err(|source| Error::Member { pod: self.desired.name.pod(ordinal), source })
    }

    async fn label(&self, label: &RoleLabel) -> Result<(), Error> {
        let pod = self.desired.name.pod(label.ordinal);
        let patch = json!({ "metadata": { "uid": label.uid, "labels": { LABEL_ROLE: label.role } } });
        let patched = self.pods().patch(&pod, &merging(), &Patch::Merge(&patch)).await;
        gone_is_fine(patched).map_err(Error::api(format!("labelling pod {pod}")))?;
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

    /// A merge patch on the condition that the claim is still the same one.
    async fn patch_claim(&self, ordinal: u32, uid: &str, mut patch: Value) -> Result<(), Error> {
        let claim = self.desired.name.claim(ordinal);
        patch["metadata"]["uid"] = uid.into();
        let patched = self.claims().patch(&claim, &merging(), &Patch::Merge(&patch)).await;
        gone_is_fine(patched).map_err(Error::api(format!("patching claim {claim}")))?;
        Ok(())
    }

    async fn own_claim(&self, ordinal: u32, uid: &str, owned: bool) -> Result<(), Error> {
        let name = self.desired.name.claim(ordinal);
        let claim = self.claims().get(&name).await.map_err(Error::api(format!("reading claim {name}")))?;
        let ours = &self.desired.name.uid;
        let mut owners: Vec<Value> = claim
            .owner_references()
            .iter()
            .filter(|o| o.uid != *ours)
            .filter_map(|o| serde_json::to_value(o).ok())
            .collect();
        if owned {
            owners.push(build::owner(&self.desired.name));
        }
        let version = claim.resource_version();
        let patch = json!({ "metadata": { "ownerReferences": owners, "resourceVersion": version } });
        self.patch_claim(ordinal, uid, patch).await
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
        let params = EvictParams { delete_options: Some(exactly(uid)), post_options: PostParams::default() };
        match gone_is_fine(self.pods().evict(&pod, &params).await) {
            Ok(_) => Ok(Outcome::Done),
            Err(kube::Error::Api(status)) if status.code == 429 => {
                Ok(Outcome::Refused(format!("the disruption budget does not allow {pod} to restart now")))
            }
            Err(source) => Err(Error::Api { doing: format!("evicting pod {pod}"), source }),
        }
    }
}

fn merging() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() }
}

/// Only this very object.
fn exactly(uid: &str) -> DeleteParams {
    DeleteParams::default().preconditions(Preconditions { uid: Some(uid.to_owned()), resource_version: None })
}

/// Whether the error of a step means that the world moved on: to be planned anew at once.
pub(crate) fn moved_on(error: &Error) -> bool {
    match error {
        Error::Api { source, .. } => code(source) == Some(409),
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
            let budget = if *budget { ", the budget" } else { "" };
            format!("brings in line: {labels} role labels, {marks} claims{budget}")
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
        Step::DeletePod { ordinal, .. } => format!("restarts {}, which does not work", pod(ordinal)),
        Step::Evict { ordinal, .. } => format!("restarts {} into the new revision", pod(ordinal)),
        Step::DeleteClaim { ordinal, .. } => format!("deletes claim {}", desired.name.claim(*ordinal)),
        Step::RetireClaim { ordinal, member, .. } => {
            format!("keeps claim {} of removed member {member}", desired.name.claim(*ordinal))
        }
        Step::ResizeClaim { ordinal, size, .. } => {
            format!("enlarges claim {} to {size}", desired.name.claim(*ordinal))
        }
        Step::OwnClaim { ordinal, owned, .. } => {
            let does = if *owned { "goes with" } else { "outlives" };
            format!("claim {} {does} the PaxosCluster", desired.name.claim(*ordinal))
        }
    }
}
