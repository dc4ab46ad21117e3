//! The first stage: fresh reads of everything the plan judges. Nothing is written here.

mod facts;
mod nodes;
mod secrets;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::join_all;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Event, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ListParams;
use kube::{Api, ResourceExt};

pub(crate) use secrets::{Stored, authority, offset, secret, text};

use crate::context::{Context, status_of};
use crate::crd::PaxosCluster;
use crate::error::{Error, code};
use crate::members::{Answer, Ask, Credentials, Target};
use crate::names::{ANNOTATION_APPLIED, ANNOTATION_REPLACE, ANNOTATION_ROTATE, LABEL_COUNTED, MemberId};
use crate::observed::{NodeFacts, Observed, PodFacts, Report, Trust};
use crate::status::Refusal;
use crate::tls::Pair;
use crate::validate::Desired;

/// What was read, and what only the writing stages need of it.
pub struct Dereferenced {
    /// What the plan judges.
    pub observed: Observed,
    /// Hash of the StatefulSet as it was applied last.
    pub set_hash: Option<String>,
    /// How the operator shows itself to the members.
    pub access: Access,
    /// Why it cannot, where a person has to act: nothing else waits for it.
    pub refusals: Vec<Refusal>,
}

/// How members are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Over TLS, in one of these ways, the newest first.
    Tls(Vec<Way>),
    /// `tls.mode: Disabled`.
    Plain,
    /// There is no authority yet: no pod can have started.
    NotYet,
}

/// One way to the members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// What it shows of a member that answers on it.
    pub trust: Trust,
    /// What the operator shows and trusts.
    pub credentials: Credentials,
}

impl Way {
    pub(crate) fn new(trust: Trust, authority: String, pair: Pair) -> Way {
        Way { trust, credentials: Credentials { authority, pair } }
    }
}

/// What was read of the API server for one cluster. At rest it is used again as long as no watch has told of a
/// change: docs: decisions/0038.
#[derive(Clone)]
pub struct Raw {
    set: Option<StatefulSet>,
    pods: Vec<Pod>,
    claims: Vec<PersistentVolumeClaim>,
    budget: Option<PodDisruptionBudget>,
    access: Access,
    refusals: Vec<Refusal>,
}

/// Reads the cluster's objects.
///
/// # Errors
/// If the API server does not answer.
pub async fn read(ctx: &Context, desired: &Desired) -> Result<Raw, Error> {
    let name = &desired.name;
    let (client, ns) = (ctx.client.clone(), name.namespace.as_str());
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), ns);
    let pods: Api<Pod> = Api::namespaced(client.clone(), ns);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), ns);
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(client, ns);
    let selected = ListParams::default().labels(&name.selector());
    let (set, pods, claims, budget, access) = tokio::join!(
        sets.get_opt(&name.name),
        pods.list(&selected),
        claims.list(&selected),
        budgets.get_opt(&name.name),
        secrets::access(ctx, desired),
    );
    let set = set.map_err(Error::api("reading the StatefulSet"))?;
    let pods = pods.map_err(Error::api("listing the pods"))?.items;
    let claims = claims.map_err(Error::api("listing the volume claims"))?.items;
    let budget = budget.map_err(Error::api("reading the disruption budget"))?;
    let mut refusals = Vec::new();
    let access = access.or_else(|error| match error.refusal() {
        Some(refusal) => {
            refusals.push(refusal);
            Ok(Access::NotYet)
        }
        None => Err(error),
    })?;
    Ok(Raw { set, pods, claims, budget, access, refusals })
}

/// Puts together what was read and what the members say. A member that does not answer is an observation.
pub async fn dereference(ctx: &Context, cluster: &PaxosCluster, desired: &Desired, raw: Raw) -> Dereferenced {
    let name = &desired.name;
    let Raw { set, pods: pod_objects, claims, budget, access, refusals } = raw;
    let now = ctx.now();
    let pods = facts::pods(name, &pod_objects);
    let (reports, mut silent) = ask(ctx, desired, &pods, &access).await;
    let set_facts = set.as_ref().filter(|s| owned(&s.metadata, &name.uid)).map(facts::set);
    let short = set_facts.as_ref().filter(|s| usize::try_from(s.replicas).unwrap_or(0) > pods.len());
    let failed_creates = match short {
        Some(set) => events(ctx, &name.namespace, &set.uid, Some("FailedCreate")).await,
        None => Vec::new(),
    };
    for (ordinal, why) in &mut silent {
        let Some(pod) = pods.get(ordinal).filter(|p| p.node.is_some() && p.trouble.is_none()) else {
            continue;
        };
        if pod.ip.is_none()
            && let Some(told) = events(ctx, &name.namespace, &pod.uid, None).await.into_iter().next()
        {
            *why = told;
        }
    }
    let mut claims = facts::claims(name, &claims, now);
    let silent_somewhere =
        (0..set_facts.as_ref().map_or(0, |s| s.replicas)).any(|o| !reports.contains_key(&o));
    // A member is about to be given up: its node may have come back since the nodes were listed.
    let lost = status_of(cluster).members.iter().any(|m| m.lost_since.is_some());
    let nodes = if silent_somewhere { nodes(ctx, &pods, lost).await } else { None };
    if let Some(nodes) = &nodes {
        for (_, claim) in claims.iter_mut().filter(|(ordinal, _)| !reports.contains_key(ordinal)) {
            claim.stranded = stranded(ctx, claim.volume.as_deref(), nodes).await;
        }
    }
    let set_hash = set.as_ref().and_then(|s| s.annotations().get(ANNOTATION_APPLIED)).cloned();
    let annotation = |key: &str| cluster.annotations().get(key);
    let observed = Observed {
        now,
        fresh_id: ctx.outside.fresh_id(),
        generation: cluster.metadata.generation.unwrap_or(0),
        deleting: cluster.metadata.deletion_timestamp.is_some(),
        replace: annotation(ANNOTATION_REPLACE).and_then(|m| m.parse::<MemberId>().ok()),
        rotate: annotation(ANNOTATION_ROTATE).cloned(),
        status: status_of(cluster),
        set: set_facts,
        pods,
        claims,
        reports,
        silent,
        budget: budget.filter(|b| owned(&b.metadata, &name.uid)).and_then(min_available),
        budget_refused: ctx.refused_lately(&name.uid, &crate::apply::budget_key(desired)),
        waits_turn: ctx.waits_turn(&name.uid),
        failed_creates,
        nodes: nodes.map(|n| (*n).clone()),
    };
    Dereferenced { observed, set_hash, access, refusals }
}

/// Whether an object is this cluster's.
pub(crate) fn owned(meta: &ObjectMeta, uid: &str) -> bool {
    meta.owner_references.iter().flatten().any(|o| o.uid == uid)
}

/// What a budget asks for; `None` for one that counts by the label of an older operator.
fn min_available(budget: PodDisruptionBudget) -> Option<i32> {
    let spec = budget.spec?;
    let labels = spec.selector.and_then(|s| s.match_labels).unwrap_or_default();
    match spec.min_available {
        Some(IntOrString::Int(n)) if labels.contains_key(LABEL_COUNTED) => Some(n),
        _ => None,
    }
}

/// How to reach the member in a pod, on the way that shows so much trust or on the only one; `None` while the
/// pod has no address.
pub fn target(
    desired: &Desired,
    ordinal: u32,
    pod: &PodFacts,
    access: &Access,
    trust: Trust,
) -> Option<Target> {
    let credentials = match access {
        Access::Tls(ways) => {
            let way = ways.iter().find(|w| w.trust == trust).or(ways.first())?;
            Some(way.credentials.clone())
        }
        Access::Plain => None,
        Access::NotYet => return None,
    };
    let name = &desired.name;
    Some(Target { pod: name.pod(ordinal), ip: pod.ip.clone()?, host: name.dialled(ordinal), credentials })
}

/// Asks every pod's member for its status, all at the same time.
async fn ask(
    ctx: &Context,
    desired: &Desired,
    pods: &BTreeMap<u32, PodFacts>,
    access: &Access,
) -> (BTreeMap<u32, Report>, BTreeMap<u32, String>) {
    let trusts: Vec<Trust> = match access {
        Access::Tls(ways) => ways.iter().map(|w| w.trust).collect(),
        Access::Plain | Access::NotYet => vec![Trust::Newest],
    };
    let questions = pods.iter().map(|(ordinal, pod)| {
        let trusts = trusts.clone();
        async move { (*ordinal, report(ctx, desired, *ordinal, pod, access, &trusts).await) }
    });
    let (mut reports, mut silent) = (BTreeMap::new(), BTreeMap::new());
    for (ordinal, answer) in join_all(questions).await {
        match answer {
            Ok(report) => drop(reports.insert(ordinal, report)),
            Err(why) => drop(silent.insert(ordinal, why)),
        }
    }
    (reports, silent)
}

/// Asks one member, on one way after the other.
async fn report(
    ctx: &Context,
    desired: &Desired,
    ordinal: u32,
    pod: &PodFacts,
    access: &Access,
    trusts: &[Trust],
) -> Result<Report, String> {
    let mut why = "it has no address yet".to_owned();
    for trust in trusts {
        let Some(target) = target(desired, ordinal, pod, access, *trust) else { break };
        match ctx.members.ask(&target, Ask::Status).await {
            Ok(Answer::Report(report)) => return Ok(Report { trust: *trust, ..*report }),
            Ok(Answer::Done) => why = "its answer is no report".to_owned(),
            Err(e) => why = e.to_string(),
        }
    }
    Err(why)
}

/// The warnings about an object, newest first: quota and admission are reported only on the StatefulSet, mounts and
/// sandboxes only on the pod. Best effort: without the right to read Events the status just says less.
async fn events(ctx: &Context, namespace: &str, uid: &str, reason: Option<&str>) -> Vec<String> {
    let events: Api<Event> = Api::namespaced(ctx.client.clone(), namespace);
    let mut selector = format!("involvedObject.uid={uid},type=Warning");
    if let Some(reason) = reason {
        selector.push_str(&format!(",reason={reason}"));
    }
    let Ok(list) = events.list(&ListParams::default().fields(&selector).limit(20)).await else {
        return Vec::new();
    };
    let told = |e: Event| {
        let message = e.message?;
        let words =
            if reason.is_some() { message } else { format!("{}: {message}", e.reason.unwrap_or_default()) };
        Some((e.last_timestamp, words))
    };
    let mut found: Vec<_> = list.items.into_iter().filter_map(told).collect();
    found.sort_by(|a, b| b.0.cmp(&a.0));
    found.into_iter().map(|(_, message)| message).collect()
}

/// Whether a volume is bound to a node that does not exist. What cannot be read is not stranded.
async fn stranded(ctx: &Context, volume: Option<&str>, there: &BTreeMap<String, NodeFacts>) -> bool {
    let Some(volume) = volume else { return false };
    let volumes: Api<PersistentVolume> = Api::all(ctx.client.clone());
    match volumes.get_opt(volume).await {
        Ok(Some(volume)) => nodes::stranded(&volume, there),
        Ok(None) | Err(_) => false,
    }
}

/// The nodes, read once for all clusters that ask within some seconds; `None` where the operator may not read
/// them: the loss of a node is then declared by hand. A node that a pod is on and that is not among them may be
/// younger than what was read: it is gone only if it is not there now. While a member is `lost` they are always read
/// anew. docs: operator-rules.md, "Rights".
async fn nodes(
    ctx: &Context,
    pods: &BTreeMap<u32, PodFacts>,
    lost: bool,
) -> Option<Arc<BTreeMap<String, NodeFacts>>> {
    if let Some(known) = ctx.nodes().filter(|_| !lost || planted!(NodesReadOnce)) {
        let lacks = |nodes: &BTreeMap<String, NodeFacts>| {
            pods.values().filter_map(|p| p.node.as_ref()).any(|node| !nodes.contains_key(node))
        };
        if !known.as_deref().is_some_and(lacks) {
            return known;
        }
    }
    let api: Api<Node> = Api::all(ctx.client.clone());
    let read = match api.list(&ListParams::default()).await {
        // A Kubernetes without a node runs no operator: whoever says so is not believed.
        Ok(list) if list.items.is_empty() => None,
        Ok(list) => Some(Arc::new(nodes::facts(&list.items))),
        Err(e) => {
            if code(&e) != Some(403) {
                tracing::debug!(error = %e, "nodes cannot be read");
            }
            None
        }
    };
    ctx.keep_nodes(read.clone());
    read
}
