//! Patches of claims, each for itself: one that is refused keeps no other from being written.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::Patch;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::build;
use crate::context::Context;
use crate::error::{Error, gone_is_fine};
use crate::plan::{ClaimChange, Plan};
use crate::validate::Desired;

use super::Desk;
use super::steps::merging;

/// Carries out the plan's patches.
pub(super) async fn patch(desk: &mut Desk<'_>, plan: &Plan) -> Result<(), Error> {
    let (ctx, desired) = (desk.ctx, desk.desired);
    for patch in &plan.claims {
        let claim = desired.name.claim(patch.ordinal);
        let (key, hash) = match &patch.change {
            ClaimChange::Own(owned) => (format!("claim/{claim}/owner"), owned.to_string()),
            ClaimChange::Resize(size) => (format!("claim/{claim}/size"), size.clone()),
        };
        match &patch.change {
            ClaimChange::Own(owned) => {
                let work = own(ctx, desired, patch.ordinal, &patch.uid, *owned);
                desk.attempt(&key, &hash, work).await?;
            }
            ClaimChange::Resize(size) => {
                let request = json!({ "spec": { "resources": { "requests": { "storage": size } } } });
                let doing = format!("enlarging claim {claim} to {size}");
                let work = write(ctx, desired, patch.ordinal, &patch.uid, request, doing);
                desk.attempt(&key, &hash, work).await?;
            }
        }
    }
    Ok(())
}

/// A merge patch on the condition that the claim is still the same one.
pub(super) async fn write(
    ctx: &Context,
    desired: &Desired,
    ordinal: u32,
    uid: &str,
    mut patch: Value,
    doing: String,
) -> Result<(), Error> {
    let claim = desired.name.claim(ordinal);
    patch["metadata"]["uid"] = uid.into();
    let patched = api(ctx, desired).patch(&claim, &merging(), &Patch::Merge(&patch)).await;
    gone_is_fine(patched).map_err(Error::api(doing))?;
    Ok(())
}

async fn own(ctx: &Context, desired: &Desired, ordinal: u32, uid: &str, owned: bool) -> Result<(), Error> {
    let name = desired.name.claim(ordinal);
    let doing = format!("reading claim {name}");
    let claim = api(ctx, desired).get_opt(&name).await.map_err(Error::api(doing))?;
    let Some(claim) = claim else { return Ok(()) };
    let ours = &desired.name.uid;
    let others = claim.owner_references().iter().filter(|o| o.uid != *ours);
    let mut owners: Vec<Value> = others.filter_map(|o| serde_json::to_value(o).ok()).collect();
    if owned {
        owners.push(build::owner(&desired.name));
    }
    let version = claim.resource_version();
    let patch = json!({ "metadata": { "ownerReferences": owners, "resourceVersion": version } });
    let does = if owned { "go with" } else { "outlive" };
    write(ctx, desired, ordinal, uid, patch, format!("letting claim {name} {does} the PaxosCluster")).await
}

fn api(ctx: &Context, desired: &Desired) -> Api<PersistentVolumeClaim> {
    Api::namespaced(ctx.client.clone(), &desired.name.namespace)
}
