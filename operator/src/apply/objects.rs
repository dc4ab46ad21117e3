//! Server-side apply of the objects around the pods, and of the StatefulSet.

use k8s_openapi::api::apps::v1::StatefulSet;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::core::GroupVersionKind;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::build::{self, Kind, Object};
use crate::context::Context;
use crate::dereference::{Dereferenced, owned};
use crate::error::{Error, check_owner, code, gone_is_fine};
use crate::names::{ANNOTATION_GENERATION, ANNOTATION_SIZE, ANNOTATION_TEMPLATE, FIELD_MANAGER};
use crate::observed::SetFacts;
use crate::validate::{Desired, Part};
use crate::watched::stamp;

use super::steps::merging;
use super::{Desk, Put};

/// Parameters of every apply: one manager, and ours wins for the fields we name.
pub(super) fn applying() -> PatchParams {
    PatchParams::apply(FIELD_MANAGER).force()
}

/// The key under which an object is remembered.
fn key(kind: Kind, name: &str) -> String {
    format!("{kind:?}/{name}")
}

/// The key of the disruption budget.
pub(crate) fn budget_key(desired: &Desired) -> String {
    key(Kind::PodDisruptionBudget, &desired.name.name)
}

/// Services, ConfigMap and NetworkPolicy; those that are not wanted any more go.
pub(super) async fn surroundings(desk: &mut Desk<'_>, size: u32) -> Result<(), Error> {
    let (ctx, desired) = (desk.ctx, desk.desired);
    for object in build::surroundings(desired, size) {
        let key = key(object.kind, &object.name);
        desk.attempt(&key, object.hash(), ensure(ctx, desired, &object)).await?;
    }
    for (kind, name) in build::unwanted(desired) {
        desk.attempt(&key(kind, &name), "absent", remove(ctx, desired, kind, &name)).await?;
    }
    Ok(())
}

/// Applies an object unless exactly this was applied and stands.
async fn ensure(ctx: &Context, desired: &Desired, object: &Object) -> Result<(), Error> {
    let (uid, key) = (&desired.name.uid, key(object.kind, &object.name));
    let stamp = ctx.watched.stamp(object.kind, &desired.name.namespace, &object.name);
    if ctx.stands(uid, &key, object.hash(), stamp.as_deref()) {
        return Ok(());
    }
    ensure_now(ctx, desired, object).await
}

/// Applies an object, unless another's stands under its name.
pub(super) async fn ensure_now(ctx: &Context, desired: &Desired, object: &Object) -> Result<(), Error> {
    let (uid, key) = (&desired.name.uid, key(object.kind, &object.name));
    let api = api(ctx, desired, object.kind);
    let doing = || format!("applying {:?} {}", object.kind, object.name);
    let live = api.get_metadata_opt(&object.name).await.map_err(Error::api(doing()))?;
    if let Some(live) = live {
        check_owner(&live.metadata, &desired.name, object.kind)?;
    }
    let applied = api.patch(&object.name, &applying(), &Patch::Apply(&object.value)).await;
    let applied = applied.map_err(Error::api(doing()))?;
    ctx.applied(uid, &key, object.hash(), Some(stamp(&applied)));
    Ok(())
}

/// Deletes an object that an earlier spec asked for, if it is ours.
pub(super) async fn remove(ctx: &Context, desired: &Desired, kind: Kind, name: &str) -> Result<(), Error> {
    let (uid, key) = (&desired.name.uid, key(kind, name));
    let seen = ctx.watched.stamp(kind, &desired.name.namespace, name);
    if ctx.stands(uid, &key, "absent", seen.as_deref()) {
        return Ok(());
    }
    let api = api(ctx, desired, kind);
    let doing = || format!("removing {kind:?} {name}");
    let live = api.get_metadata_opt(name).await.map_err(Error::api(doing()))?;
    let left = match live {
        Some(live) if owned(&live.metadata, uid) => {
            let exactly = DeleteParams::default()
                .preconditions(Preconditions { uid: live.uid(), resource_version: None });
            gone_is_fine(api.delete(name, &exactly).await).map_err(Error::api(doing()))?;
            None
        }
        // A stranger's: not asked for, not ours to take away.
        live => live.map(|l| stamp(&l)),
    };
    ctx.applied(uid, &key, "absent", Some(left.unwrap_or_else(|| "absent".into())));
    Ok(())
}

/// The StatefulSet: tried on the server first, so that a template it refuses leaves the old one in place; then
/// written on the condition that nobody wrote in between. Where the template is at fault or refused, the size
/// alone is written: a member can be added, taken out or replaced by the last good template.
pub(super) async fn stateful_set(desk: &mut Desk<'_>, read: &Dereferenced, size: u32) -> Result<Put, Error> {
    let (ctx, desired) = (desk.ctx, desk.desired);
    let set = read.observed.set.as_ref();
    if set.is_some_and(|s| s.deleting) {
        return Ok(Put::Stands);
    }
    let mut object = build::stateful_set(desired, size, set.and_then(|s| s.claim_size.as_deref()));
    let (uid, key) = (&desired.name.uid, key(object.kind, &object.name));
    let hash = object.hash().to_owned();
    let unchanged = read.set_hash.as_deref() == Some(hash.as_str());
    // The generation counts every change of the spec, whoever makes it.
    let generation = set.map(|s| s.generation.to_string());
    let asked = format!("{hash}/{}", read.observed.generation);
    if unchanged && generation.is_some() && ctx.stands(uid, &key, &asked, generation.as_deref()) {
        return Ok(Put::Stands);
    }
    object.value["metadata"]["annotations"][ANNOTATION_GENERATION] =
        Value::String(read.observed.generation.to_string());
    let template = build::content_hash(&object.value["spec"]["template"]);
    object.value["metadata"]["annotations"][ANNOTATION_TEMPLATE] = Value::String(template.clone());
    let waiting = set.filter(|set| waits_for_its_turn(desk, read, set, &template));
    ctx.note_turn(uid, waiting.is_some());
    if let Some(set) = waiting {
        return resize(ctx, desired, set, size).await;
    }
    if let Some(set) = set.filter(|_| !planted!(SetWithoutVersion)) {
        object.value["metadata"]["resourceVersion"] = Value::String(set.resource_version.clone());
    }
    let mut after = None;
    let taken = if desired.is_at_fault(Part::Template) {
        false
    } else {
        let work = async {
            after = Some(put(ctx, desired, &object, set.is_none(), unchanged).await?);
            Ok(())
        };
        // By what the template is, not by the size it comes with: the size may change while it is refused.
        desk.attempt(&key, &template, work).await?
    };
    match (taken, after, set) {
        (true, Some(after), _) => {
            let after = after.map(|g| g.to_string());
            ctx.applied(uid, &key, &asked, after.clone());
            Ok(if after == generation { Put::Stands } else { Put::Changed })
        }
        (_, _, None) => Ok(Put::Missing),
        (_, _, Some(set)) => resize(ctx, desired, set, size).await,
    }
}

/// Whether the pods would be rolled by another version of the operator, rather than by their own spec, and other
/// clusters are being rolled so. docs: operator-rules.md, "Objects it owns".
fn waits_for_its_turn(desk: &Desk<'_>, read: &Dereferenced, set: &SetFacts, template: &str) -> bool {
    let by_the_user = set.made_from.is_some_and(|from| from != read.observed.generation);
    let other = set.template.as_deref() != Some(template);
    let runs = !read.observed.pods.is_empty();
    other && !by_the_user && runs && !desk.ctx.may_roll(&desk.desired.name.uid)
}

/// Writes the set; its generation afterwards.
async fn put(
    ctx: &Context,
    desired: &Desired,
    object: &Object,
    new: bool,
    unchanged: bool,
) -> Result<Option<i64>, Error> {
    let api: Api<StatefulSet> = Api::namespaced(ctx.client.clone(), &desired.name.namespace);
    if new {
        let doing = "looking for the StatefulSet";
        let live = api.get_metadata_opt(&object.name).await.map_err(Error::api(doing))?;
        if let Some(live) = live {
            check_owner(&live.metadata, &desired.name, object.kind)?;
            // Another operator made it since it was read, maybe of another size: it is looked at first.
            return Err(Error::Moved { object: format!("StatefulSet {}", object.name) });
        }
    }
    if !unchanged {
        dry_run(&api, object).await?;
    }
    let doing = format!("applying StatefulSet {}", object.name);
    let applied = api.patch(&object.name, &applying(), &Patch::Apply(&object.value)).await;
    Ok(applied.map_err(Error::api(doing))?.metadata.generation)
}

/// Writes the size alone.
async fn resize(ctx: &Context, desired: &Desired, set: &SetFacts, size: u32) -> Result<Put, Error> {
    if set.replicas == size && set.applied_size == Some(size) {
        return Ok(Put::Stands);
    }
    let api: Api<StatefulSet> = Api::namespaced(ctx.client.clone(), &desired.name.namespace);
    let annotations = json!({ ANNOTATION_SIZE: size.to_string() });
    let patch = json!({
        "metadata": { "resourceVersion": set.resource_version, "annotations": annotations },
        "spec": { "replicas": size },
    });
    let doing = format!("changing the size of StatefulSet {}", desired.name.name);
    let patched = api.patch(&desired.name.name, &merging(), &Patch::Merge(&patch)).await;
    patched.map_err(Error::api(doing))?;
    Ok(Put::Changed)
}

/// Asks the server whether it would take the set. 422 is the template's fault; whatever else it says (admission,
/// quota, a namespace that is being deleted) is told as it is.
async fn dry_run(api: &Api<StatefulSet>, object: &Object) -> Result<(), Error> {
    match api.patch(&object.name, &applying().dry_run(), &Patch::Apply(&object.value)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 422 => Err(Error::Template(status.message.clone())),
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
