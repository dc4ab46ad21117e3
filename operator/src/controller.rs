//! Runs the pipeline: what triggers a reconcile, what it does, and when the next one is due.

use std::collections::hash_map::DefaultHasher;
use std::convert::Infallible;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt, TryStreamExt, future::join_all};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::PostParams;
use kube::core::PartialObjectMeta;
use kube::runtime::controller::{self, Action, Controller};
use kube::runtime::events::{Event, EventType};
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource, ResourceExt};
use tokio::sync::watch;
use tracing::{Instrument, debug, info, info_span, warn};

use crate::apply::{self, Outcome};
use crate::build::Kind;
use crate::context::{Context, status_of};
use crate::crd::{PaxosCluster, PaxosClusterStatus, Reason};
use crate::dereference::{dereference, read};
use crate::error::Error;
use crate::names::LABEL_CLUSTER;
use crate::plan::{self, GateKind, Plan, Step};
use crate::status;
use crate::validate::{Desired, validate};

/// How often a cluster whose members run is looked at, so that one that is cut off or full is told in time.
const LOOK: Duration = Duration::from_secs(10);
/// How often one is looked at whose members do not run.
const AT_REST: Duration = Duration::from_secs(30);
/// Reconciles at a time. As many as there are clusters would fill the API server's queue for everything of the operator's,
/// its lease among them.
const AT_A_TIME: u16 = 32;
/// How long one reconcile may take: an API server behind a dead connection must not hold a cluster up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest pause after failures.
const LONGEST: Duration = Duration::from_secs(60);

/// Runs controllers for all watched namespaces until `stop` turns true.
pub async fn run(ctx: Arc<Context>, stop: watch::Receiver<bool>) {
    let scopes: Vec<Option<String>> = match ctx.settings.namespaces.as_slice() {
        [] => vec![None],
        some => some.iter().cloned().map(Some).collect(),
    };
    let controllers = scopes.into_iter().map(|scope| one(Arc::clone(&ctx), scope, stop.clone()));
    join_all(controllers).await;
}

/// The controller of one namespace, or of all.
async fn one(ctx: Arc<Context>, namespace: Option<String>, mut stop: watch::Receiver<bool>) {
    // Metadata only: a resource that does not parse must not keep the others from being looked at.
    let clusters: Api<PartialObjectMeta<PaxosCluster>> = scoped(&ctx, namespace.as_deref());
    let (reader, writer) = reflector::store();
    // Status never feeds the loop: only what a user may change does. docs: operator-rules.md, "status".
    let (counts, scope) = (Arc::clone(&ctx), namespace.clone().unwrap_or_default());
    let wanted = watcher(clusters, watcher::Config::default())
        .default_backoff()
        .inspect_ok(move |event| {
            let own = |c: &PartialObjectMeta<PaxosCluster>| Some((c.namespace()?, c.name_any()));
            counts.watched.count("paxosclusters", &scope, event, own);
        })
        .reflect(writer)
        .applied_objects()
        .predicate_filter(spoken, kube::runtime::PredicateConfig::default());
    let stopped = async move {
        // An error means that the sender is gone, which is a stop as well.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    let ns = namespace.as_deref();
    // Everything owned but Secrets, which the operator may read by name only.
    Controller::for_stream(wanted, reader)
        .with_config(controller::Config::default().concurrency(AT_A_TIME))
        .watches_stream(touched::<StatefulSet>(&ctx, ns, Some(Kind::StatefulSet)), of_cluster)
        .watches_stream(touched::<Pod>(&ctx, ns, None), of_cluster)
        .watches_stream(touched::<PersistentVolumeClaim>(&ctx, ns, None), of_cluster)
        .watches_stream(touched::<Service>(&ctx, ns, Some(Kind::Service)), of_cluster)
        .watches_stream(touched::<ConfigMap>(&ctx, ns, Some(Kind::ConfigMap)), of_cluster)
        .watches_stream(touched::<NetworkPolicy>(&ctx, ns, Some(Kind::NetworkPolicy)), of_cluster)
        .watches_stream(touched::<PodDisruptionBudget>(&ctx, ns, Some(Kind::PodDisruptionBudget)), of_cluster)
        .graceful_shutdown_on(stopped)
        .run(reconcile, on_error, ctx)
        .for_each(|result| async move {
            if let Err(error) = result {
                debug!(%error, "the controller reports");
            }
        })
        .await;
}

fn scoped<K>(ctx: &Context, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope>,
    K::DynamicType: Default,
{
    match namespace {
        Some(ns) => Api::namespaced(ctx.client.clone(), ns),
        None => Api::all(ctx.client.clone()),
    }
}

fn spoken(cluster: &PartialObjectMeta<PaxosCluster>) -> Option<u64> {
    Some(said(cluster))
}

/// What a user says in an object, as a hash: the generation, the annotations, and that it shall go.
pub fn said(cluster: &impl ResourceExt) -> u64 {
    let mut hasher = DefaultHasher::new();
    cluster.meta().generation.hash(&mut hasher);
    cluster.annotations().hash(&mut hasher);
    cluster.meta().deletion_timestamp.is_some().hash(&mut hasher);
    cluster.uid().hash(&mut hasher);
    hasher.finish()
}

/// Changes of objects that carry our label; only their metadata is read, and of those that are applied a stamp
/// is kept.
fn touched<K>(
    ctx: &Arc<Context>,
    namespace: Option<&str>,
    kind: Option<Kind>,
) -> impl Stream<Item = Result<PartialObjectMeta<K>, watcher::Error>> + Send + use<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
{
    let api: Api<PartialObjectMeta<K>> = scoped(ctx, namespace);
    let (ctx, scope) = (Arc::clone(ctx), namespace.unwrap_or_default().to_owned());
    let plural = std::any::type_name::<K>();
    watcher(api, watcher::Config::default().labels(LABEL_CLUSTER))
        .default_backoff()
        .inspect_ok(move |event| {
            if let Some(kind) = kind {
                ctx.watched.note(kind, &scope, event);
            }
            if matches!(kind, None | Some(Kind::StatefulSet | Kind::PodDisruptionBudget)) {
                ctx.watched.count(plural, &scope, event, |object| {
                    let name = object.metadata.labels.as_ref()?.get(LABEL_CLUSTER)?;
                    Some((object.metadata.namespace.clone()?, name.clone()))
                });
            }
        })
        .touched_objects()
}

/// The cluster an object belongs to.
fn of_cluster<K: Resource>(
    object: PartialObjectMeta<K>,
) -> Option<ObjectRef<PartialObjectMeta<PaxosCluster>>> {
    let name = object.metadata.labels.as_ref()?.get(LABEL_CLUSTER)?;
    Some(ObjectRef::new(name).within(object.metadata.namespace.as_deref()?))
}

/// One reconcile of the controller.
async fn reconcile(
    cluster: Arc<PartialObjectMeta<PaxosCluster>>,
    ctx: Arc<Context>,
) -> Result<Action, Infallible> {
    let (ns, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    let span = info_span!("reconcile", object = format!("paxoscluster/{ns}/{name}"));
    let started = Instant::now();
    ctx.metrics.reconcile();
    let work = look(&ctx, &ns, &name).instrument(span);
    let result = tokio::time::timeout(PATIENCE, work).await.unwrap_or(Err(Error::TooLong));
    ctx.metrics.took(started.elapsed().as_secs_f64());
    let pause = next_look(&ctx, &ns, &name, &cluster.uid().unwrap_or_default(), &result);
    Ok(pause.map_or_else(Action::await_change, |pause| Action::requeue(jittered(pause))))
}

/// A reconcile never fails for the controller: what went wrong is logged, and says when the next one is due.
fn on_error(_: Arc<PartialObjectMeta<PaxosCluster>>, error: &Infallible, _: Arc<Context>) -> Action {
    match *error {}
}

/// When a cluster is looked at again after a look that ended so, unless something changes before: `None` where it is
/// gone. A failure is logged here, once.
pub fn next_look(
    ctx: &Context,
    ns: &str,
    name: &str,
    uid: &str,
    result: &Result<Option<Duration>, Error>,
) -> Option<Duration> {
    match result {
        Ok(None) => {
            ctx.forget(ns, name, uid);
            None
        }
        Ok(pause) => *pause,
        Err(error) => {
            ctx.read_again(ns, name);
            Some(after_failure(ctx, ns, name, uid, error))
        }
    }
}

/// One look at a cluster, from fresh reads to the status: at most one step is taken. When the next look is due,
/// unless something changes before; `None`: the cluster is gone.
///
/// # Errors
/// If the API server does not answer, or a member refuses.
pub async fn look(ctx: &Context, ns: &str, name: &str) -> Result<Option<Duration>, Error> {
    let api: Api<PaxosCluster> = Api::namespaced(ctx.client.clone(), ns);
    let told = ctx.told(ns, name);
    let known = ctx.remembered(ns, name);
    let fresh = match &known {
        Some(known) => known.cluster.clone(),
        None => match api.get_opt(name).await {
            Ok(Some(fresh)) => fresh,
            Ok(None) => return Ok(None),
            Err(kube::Error::SerdeError(why)) => {
                unreadable(ctx, ns, name, &why.to_string()).await?;
                return Ok(Some(LONGEST));
            }
            Err(error) => return Err(Error::api("reading the PaxosCluster")(error)),
        },
    };
    let desired = match validate(&fresh, &ctx.settings.sidecar_image, &ctx.settings.cluster_domain) {
        Ok(desired) => desired,
        Err(invalid) => {
            let (generation, message) = (fresh.metadata.generation.unwrap_or(0), invalid.to_string());
            let old = status_of(&fresh);
            let new = status::invalid(&old, generation, ctx.now(), Reason::InvalidSpec, &message);
            announce_changes(ctx, &fresh, &new).await;
            write_status(ctx, &api, &fresh, new).await?;
            return Ok(Some(LONGEST));
        }
    };
    let raw = match &known {
        Some(known) => known.raw.clone(),
        None => read(ctx, &desired).await?,
    };
    let read = dereference(ctx, &fresh, &desired, raw.clone()).await;
    let plan = plan::plan(&desired, &read.observed);
    if known.is_some() && (plan.step.is_some() || !plan.claims.is_empty()) {
        // Nothing is done by what was read a while ago.
        ctx.read_again(ns, name);
        return Ok(Some(Duration::ZERO));
    }
    log_plan(ctx, &desired, &plan);
    let mut refusals = read.refusals.clone();
    let result = apply::carry_out(ctx, &desired, &read, &plan, &mut refusals).await;
    let outcome = result.as_ref().cloned().unwrap_or(Outcome::Nothing);
    let new = status::compose(&desired, &read.observed, &plan, &outcome, &refusals);
    let at_rest = new.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
    if result.is_ok() || !at_rest {
        announce_changes(ctx, &fresh, &new).await;
    }
    // A step that failed is told too: of what was refused before it, and of what is waited for.
    // One that was cut short has not seen that all is well.
    let wrote = if result.is_err() && at_rest { false } else { write_status(ctx, &api, &fresh, new).await? };
    result?;
    if let (Some(step), Outcome::Done) = (&plan.step, &outcome) {
        ctx.metrics.step(step.as_str());
        let message = apply::describe(&desired, step);
        info!(step = step.as_str(), "{message}");
        if !matches!(step, Step::Tighten { .. }) {
            // The action tells two steps of one kind apart: Events of equal reason and action are one series.
            announce(ctx, &fresh, EventType::Normal, step.as_str(), &message, &message).await;
        }
    }
    match (outcome == Outcome::Nothing && !wrote, &known) {
        (true, None) => ctx.remember(ns, name, told, fresh, raw),
        (true, Some(_)) => {}
        (false, _) => ctx.read_again(ns, name),
    }
    // A turn to be rolled ends at rest, or where nobody wants the cluster to move.
    let still =
        matches!(&plan.gate, Some(gate) if gate.forbids_writes() || gate.kind == GateKind::Hibernated);
    if still || (at_rest && plan.step.is_none() && outcome == Outcome::Nothing) {
        ctx.rolled(&desired.name.uid);
    }
    ctx.succeeded(&desired.name.uid);
    Ok(Some(pause(ctx, &desired, &plan, &outcome, at_rest)))
}

/// A resource that does not parse (made before a field changed its form, for one) is told in its own status, and
/// keeps no other from being looked at.
async fn unreadable(ctx: &Context, ns: &str, name: &str, why: &str) -> Result<(), Error> {
    let resource = kube::api::ApiResource::erase::<PaxosCluster>(&());
    let api: Api<kube::api::DynamicObject> = Api::namespaced_with(ctx.client.clone(), ns, &resource);
    let read = api.get_opt(name).await.map_err(Error::api("reading the PaxosCluster"))?;
    let Some(object) = read else { return Ok(()) };
    let message =
        format!("the PaxosCluster cannot be read ({why}): edit it; nothing is done for it meanwhile");
    let generation = object.metadata.generation.unwrap_or(0);
    let old: PaxosClusterStatus = serde_json::from_value(object.data["status"].clone()).unwrap_or_default();
    let new = status::invalid(&old, generation, ctx.now(), Reason::InvalidSpec, &message);
    if old == new {
        return Ok(());
    }
    let patch =
        serde_json::json!({ "status": { "conditions": new.conditions, "observedGeneration": generation } });
    let params = kube::api::PatchParams::default();
    let patched = api.patch_status(name, &params, &kube::api::Patch::Merge(&patch)).await;
    patched.map_err(Error::api("writing the status"))?;
    warn!(object = format!("paxoscluster/{ns}/{name}"), "{message}");
    Ok(())
}

fn log_plan(ctx: &Context, desired: &Desired, plan: &Plan) {
    if let Some(gate) = &plan.gate {
        ctx.metrics.gate(gate.kind);
        debug!(gate = gate.kind.as_str(), size = plan.size, "waits: {}", gate.message);
    } else if let Some(step) = &plan.step {
        debug!(step = step.as_str(), size = plan.size, "next: {}", apply::describe(desired, step));
    }
}

/// Writes the status on the condition that nobody wrote in between; only if it says something new. Whether it
/// was written.
async fn write_status(
    ctx: &Context,
    api: &Api<PaxosCluster>,
    fresh: &PaxosCluster,
    new: PaxosClusterStatus,
) -> Result<bool, Error> {
    let uid = fresh.uid().unwrap_or_default();
    let now = ctx.now();
    if !status::worth_writing(&status_of(fresh), &new, ctx.status_written(&uid), now) {
        return Ok(false);
    }
    let mut object = fresh.clone();
    object.metadata.managed_fields = None;
    object.status = Some(new);
    if planted!(StatusUnconditional) {
        object.metadata.resource_version = None;
    }
    let params =
        PostParams { field_manager: Some(crate::names::FIELD_MANAGER.into()), ..PostParams::default() };
    let written = api.replace_status(&fresh.name_any(), &params, &object).await;
    written.map_err(Error::api("writing the status"))?;
    ctx.wrote_status(&uid, now);
    Ok(true)
}

/// An Event for each condition that turned for the better or the worse, and for each new reason of a bad one.
/// That Ready turned while something was asked for is no warning: the steps have Events of their own.
async fn announce_changes(ctx: &Context, fresh: &PaxosCluster, new: &PaxosClusterStatus) {
    let old = status_of(fresh);
    for kind in ["Ready", "Available", "Stalled", "Degraded"] {
        let find = |s: &PaxosClusterStatus| s.conditions.iter().find(|c| c.type_ == kind).cloned();
        let (Some(now), before) = (find(new), find(&old)) else { continue };
        let bad = (kind == "Stalled" || kind == "Degraded") == (now.status == "True");
        let other_reason = before.as_ref().is_some_and(|c| c.reason != now.reason);
        let turned = before.as_ref().map(|c| c.status.as_str()) != Some(now.status.as_str())
            || (bad && other_reason && kind != "Ready");
        // At the start nothing is ready, stalled or degraded yet: no news.
        if !turned || (before.is_none() && (bad == (kind == "Ready" || kind == "Available"))) {
            continue;
        }
        let level = if bad && kind != "Ready" { EventType::Warning } else { EventType::Normal };
        let reason = if now.status == "True" { kind.to_owned() } else { format!("Not{kind}") };
        let note = format!("{}: {}", now.reason, now.message);
        announce(ctx, fresh, level, &reason, &now.reason, &note).await;
    }
}

async fn announce(
    ctx: &Context,
    cluster: &PaxosCluster,
    type_: EventType,
    reason: &str,
    action: &str,
    note: &str,
) {
    // The API takes 1 kB and 128 characters.
    let (note, action) = (cut(note, 1000), cut(action, 120));
    let event = Event { type_, reason: reason.into(), note: Some(note), action, secondary: None };
    // An Event is a courtesy: a refusal must not stop the work.
    if let Err(error) = ctx.recorder.publish(&event, &cluster.object_ref(&())).await {
        debug!(%error, "an Event was not taken");
    }
}

/// The first `most` bytes of a text, or a little less: never half a character.
fn cut(text: &str, most: usize) -> String {
    let end = (0..=most.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    text[..end].to_owned()
}

/// When the next look is due: at once after a step, soon while something is awaited, else at rest. Pods,
/// sets and claims that change bring it forward. Whatever is done or awaited again and again backs off.
fn pause(ctx: &Context, desired: &Desired, plan: &Plan, outcome: &Outcome, at_rest: bool) -> Duration {
    let uid = &desired.name.uid;
    let doubled =
        |base: Duration, times: u32, most: Duration| base.saturating_mul(1 << times.min(10)).min(most);
    match (outcome, &plan.gate, &plan.step) {
        (Outcome::Refused(_), _, _) => {
            doubled(Duration::from_secs(2), ctx.waits(uid, "eviction").saturating_sub(1) / 4, LONGEST)
        }
        (Outcome::Again, _, _) => Duration::from_millis(100),
        // A step that shows no effect is not taken twenty times a second.
        (Outcome::Done, _, Some(step)) => {
            let again = ctx.repeats(uid, &apply::describe(desired, step)).saturating_sub(1);
            doubled(Duration::from_millis(50), again, AT_REST)
        }
        (_, Some(gate), _) => {
            let (base, most) = patience(gate.kind);
            doubled(base, ctx.waits(uid, gate.kind.as_str()) / 8, most)
        }
        // Nothing is due; a member is on its way up by itself.
        _ if !at_rest => doubled(Duration::from_secs(1), ctx.waits(uid, "ready") / 8, LOOK),
        _ => LOOK,
    }
}

/// How soon a gate is looked at again, and how seldom in the end. What only members know is asked of them;
/// what Kubernetes does is told by the watches.
fn patience(gate: GateKind) -> (Duration, Duration) {
    match gate {
        GateKind::Hibernated | GateKind::Paused | GateKind::Deleting | GateKind::InvalidSpec => {
            (AT_REST, AT_REST)
        }
        GateKind::ForeignDisks => (Duration::from_secs(10), AT_REST),
        GateKind::CatchingUp
        | GateKind::ChangePending
        | GateKind::Retiring
        | GateKind::BootstrapAgreement
        | GateKind::NoLeader
        | GateKind::RevisionUnknown
        | GateKind::MembersNotReady
        | GateKind::NoSuccessor => (Duration::from_millis(400), Duration::from_secs(5)),
        GateKind::PodsStarting
        | GateKind::PodsStopping
        | GateKind::ClaimTerminating
        | GateKind::QuorumAtRisk
        | GateKind::QuorumLost => (Duration::from_secs(1), LOOK),
    }
}

/// Between 3/4 and 5/4 of a duration, so that many clusters do not march in step.
fn jittered(base: Duration) -> Duration {
    let random = uuid::Uuid::new_v4().as_bytes()[0];
    base.mul_f64(0.75 + f64::from(random) / 255.0 / 2.0)
}

/// When to try again after a failure: at once if the world moved on, else later and later.
fn after_failure(ctx: &Context, ns: &str, name: &str, uid: &str, error: &Error) -> Duration {
    ctx.metrics.error(error.kind());
    let object = format!("paxoscluster/{ns}/{name}");
    if apply::moved_on(error) {
        debug!(object, %error, "plans anew");
        return Duration::from_millis(300);
    }
    let failures = ctx.failed(uid);
    warn!(object, %error, failures, "the reconcile failed and will be tried again");
    let exponent = failures.saturating_sub(1).min(7);
    Duration::from_millis(500 * (1 << exponent)).min(LONGEST)
}
