//! Server-side apply of the objects around the pods, and of the StatefulSet.

use k8s_openapi::api::apps::v1::StatefulSet;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::core::GroupVersionKind;
use kube::{Api, ResourceExt};
use serde_json::Value;

use crate::build::{self, Kind, Object};
use crate::context::Context;
use crate::dereference::Dereferenced;
use crate::error::{Error, check_owner, code, gone_is_fine};
use crate::names::FIELD_MANAGER;
use crate::validate::Desired;

/// Parameters of every apply: one manager, and ours wins for the fields we name.
pub(super) fn applying() -> PatchParams {
    PatchParams::apply(FIELD_MANAGER).force()
}

/// Services, ConfigMap and NetworkPolicy; those that are not wanted any more go.
pub(super) async fn surroundings(ctx: &Context, desired: &Desired, size: u32) -> Result<(), Error> {
    for object in build::surroundings(desired, size) {
        ensure(ctx, desired, &object).await?;
    }
    for (kind, name) in build::unwanted(desired) {
        remove(ctx, desired, kind, &name).await?;
    }
    Ok(())
}

/// Applies an object unless exactly this was applied a short while ago.
pub(super) async fn ensure(ctx: &Context, desired: &Desired, object: &Object) -> Result<(), Error> {
    let uid = &desired.name.uid;
    let key = format!("{:?}/{}", object.kind, object.name);
    if ctx.stands(uid, &key, object.hash()) {
        return Ok(());
    }
    ensure_now(ctx, desired, object).await
}

/// Applies an object, unless another's stands under its name.
pub(super) async fn ensure_now(ctx: &Context, desired: &Desired, object: &Object) -> Result<(), Error> {
    let uid = &desired.name.uid;
    let key = format!("{:?}/{}", object.kind, object.name);
    let api = api(ctx, desired, object.kind);
    let doing = || format!("applying {:?} {}", object.kind, object.name);
    let live = api.get_metadata_opt(&object.name).await.map_err(Error::api(doing()))?;
    if let Some(live) = live {
        check_owner(&live.metadata, &desired.name, object.kind)?;
    }
    api.patch(&object.name, &applying(), &Patch::Apply(&object.value)).await.map_err(Error::api(doing()))?;
    ctx.applied(uid, &key, object.hash());
    Ok(())
}

/// Deletes an object that an earlier spec asked for, if it is ours.
pub(super) async fn remove(ctx: &Context, desired: &Desired, kind: Kind, name: &str) -> Result<(), Error> {
    let uid = &desired.name.uid;
    let key = format!("{kind:?}/{name}");
    if ctx.stands(uid, &key, "absent") {
        return Ok(());
    }
    let api = api(ctx, desired, kind);
    let doing = || format!("removing {kind:?} {name}");
    let live = api.get_metadata_opt(name).await.map_err(Error::api(doing()))?;
    if let Some(live) = live.filter(|l| l.owner_references().iter().any(|o| o.uid == *uid)) {
        let exactly =
            DeleteParams::default().preconditions(Preconditions { uid: live.uid(), resource_version: None });
        gone_is_fine(api.delete(name, &exactly).await).map_err(Error::api(doing()))?;
    }
    ctx.applied(uid, &key, "absent");
    Ok(())
}

/// The StatefulSet: tried on the server first, so that a template it refuses leaves the old one in place;
/// then written on the condition that nobody wrote in between.
pub(super) async fn stateful_set(
    ctx: &Context,
    desired: &Desired,
    read: &Dereferenced,
    size: u32,
) -> Result<(), Error> {
    let set = read.observed.set.as_ref();
    if set.is_some_and(|s| s.deleting) {
        return Ok(());
    }
    let mut object = build::stateful_set(desired, size, set.and_then(|s| s.claim_size.as_deref()));
    let uid = &desired.name.uid;
    let key = format!("{:?}/{}", object.kind, object.name);
    let unchanged = read.set_hash.as_deref() == Some(object.hash());
    if unchanged && set.is_some() && ctx.stands(uid, &key, object.hash()) {
        return Ok(());
    }
    let api: Api<StatefulSet> = Api::namespaced(ctx.client.clone(), &desired.name.namespace);
    match set {
        Some(set) => {
            object.value["metadata"]["resourceVersion"] = Value::String(set.resource_version.clone())
        }
        None => {
            let doing = "looking for the StatefulSet";
            let live = api.get_metadata_opt(&object.name).await.map_err(Error::api(doing))?;
            if let Some(live) = live {
                check_owner(&live.metadata, &desired.name, object.kind)?;
            }
        }
    }
    if !unchanged {
        dry_run(&api, &object).await?;
    }
    let doing = format!("applying StatefulSet {}", object.name);
    let applied = api.patch(&object.name, &applying(), &Patch::Apply(&object.value)).await;
    applied.map_err(Error::api(doing))?;
    ctx.applied(uid, &key, object.hash());
    Ok(())
}

/// Asks the server whether it would take the set. A refusal is the user's to mend.
async fn dry_run(api: &Api<StatefulSet>, object: &Object) -> Result<(), Error> {
    match api.patch(&object.name, &applying().dry_run(), &Patch::Apply(&object.value)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 400 | 403 | 422 | 500) => {
            Err(Error::Template(status.message.clone()))
        }
        Err(e) if code(&e) == Some(404) => Ok(()),
        Err(e) => Err(Error::Api { doing: "trying the StatefulSet".into(), source: e }),
    }
}

/// An API for a kind, untyped: what is applied is raw JSON.
fn api(ctx: &Context, desired: &Desired, kind: Kind) -> Api<DynamicObject> {
    let (group, version, name, plural) = match kind {
        Kind::Service => ("", "v1", "Service", "services"),
        Kind::ConfigMap => ("", "v1", "ConfigMap", "configmaps"),
        Kind::Secret => ("", "v1", "Secret", "secrets"),
        Kind::NetworkPolicy => ("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"),
        Kind::StatefulSet => ("apps", "v1", "StatefulSet", "statefulsets"),
        Kind::PodDisruptionBudget => ("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    };
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, name), plural);
    Api::namespaced_with(ctx.client.clone(), &desired.name.namespace, &resource)
}
