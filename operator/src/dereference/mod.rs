//! The first stage: fresh reads of everything the plan judges. Nothing is written here.

mod facts;
mod secrets;

use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Event, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use uuid::Uuid;

pub(crate) use secrets::{authority, text};

use crate::context::{Context, status_of};
use crate::crd::PaxosCluster;
use crate::error::{Error, code};
use crate::members::{Credentials, Member, Target};
use crate::names::{ANNOTATION_APPLIED, ANNOTATION_REPLACE, MemberId};
use crate::observed::{Observed, PodFacts, Report, SetFacts};
use crate::validate::Desired;

/// What was read, and what only the writing stages need of it.
pub struct Dereferenced {
    /// What the plan judges.
    pub observed: Observed,
    /// Hash of the StatefulSet as it was applied last.
    pub set_hash: Option<String>,
    /// How the operator shows itself to the members.
    pub access: Access,
}

/// How members are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Over TLS.
    Tls(Credentials),
    /// `tls.mode: Disabled`.
    Plain,
    /// There is no authority yet: no pod can have started.
    NotYet,
}

/// Reads everything.
///
/// # Errors
/// If the API server does not answer. A member that does not answer is an observation.
pub async fn dereference(
    ctx: &Context,
    cluster: &PaxosCluster,
    desired: &Desired,
) -> Result<Dereferenced, Error> {
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
    let pods = pods.map_err(Error::api("listing the pods"))?;
    let claims = claims.map_err(Error::api("listing the volume claims"))?;
    let budget = budget.map_err(Error::api("reading the disruption budget"))?;
    let access = access?;

    let pods = facts::pods(name, &pods.items);
    let (reports, silent) = ask(desired, &pods, &access).await;
    let set_facts = set.as_ref().filter(|s| owned(s, &name.uid)).map(facts::set);
    let short = set_facts.as_ref().filter(|s| usize::try_from(s.replicas).unwrap_or(0) > pods.len());
    let failed_creates = match short {
        Some(set) => failed_creates(ctx, ns, set).await,
        None => Vec::new(),
    };
    let mut claims = facts::claims(name, &claims.items);
    let nodes = if silent.is_empty() { None } else { nodes(ctx).await };
    if let Some(nodes) = &nodes {
        for ordinal in silent.keys() {
            if let Some(claim) = claims.get_mut(ordinal) {
                claim.stranded = stranded(ctx, claim.volume.as_deref(), nodes).await;
            }
        }
    }
    let set_hash = set.as_ref().and_then(|s| s.annotations().get(ANNOTATION_APPLIED)).cloned();
    let min_available = budget.and_then(|b| b.spec).and_then(|s| s.min_available);
    let observed = Observed {
        now: Timestamp::now(),
        fresh_id: Uuid::new_v4(),
        generation: cluster.metadata.generation.unwrap_or(0),
        deleting: cluster.metadata.deletion_timestamp.is_some(),
        replace: cluster.annotations().get(ANNOTATION_REPLACE).and_then(|m| m.parse::<MemberId>().ok()),
        status: status_of(cluster),
        set: set_facts,
        pods,
        claims,
        reports,
        silent,
        budget: match min_available {
            Some(IntOrString::Int(n)) => Some(n),
            _ => None,
        },
        failed_creates,
        nodes,
    };
    Ok(Dereferenced { observed, set_hash, access })
}

fn owned(set: &StatefulSet, uid: &str) -> bool {
    set.owner_references().iter().any(|o| o.uid == uid)
}

/// How to reach the member in a pod; `None` while the pod has no address.
pub fn target(desired: &Desired, ordinal: u32, pod: &PodFacts, access: &Access) -> Option<Target> {
    let credentials = match access {
        Access::Tls(credentials) => Some(credentials.clone()),
        Access::Plain => None,
        Access::NotYet => return None,
    };
    let name = &desired.name;
    Some(Target { pod: name.pod(ordinal), ip: pod.ip.clone()?, host: name.host(ordinal), credentials })
}

/// Asks every pod's member for its status, all at the same time.
async fn ask(
    desired: &Desired,
    pods: &BTreeMap<u32, PodFacts>,
    access: &Access,
) -> (BTreeMap<u32, Report>, BTreeMap<u32, String>) {
    let questions = pods.iter().map(|(ordinal, pod)| async move {
        let Some(target) = target(desired, *ordinal, pod, access) else {
            return (*ordinal, Err("it has no address yet".to_owned()));
        };
        let answer = match Member::connect(&target).await {
            Ok(member) => member.status(&target.pod).await,
            Err(e) => Err(e),
        };
        (*ordinal, answer.map_err(|e| e.to_string()))
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

/// Why the StatefulSet controller could not make pods: quota and admission are reported only there.
/// Best effort: without the right to read Events the status just says less.
async fn failed_creates(ctx: &Context, namespace: &str, set: &SetFacts) -> Vec<String> {
    let events: Api<Event> = Api::namespaced(ctx.client.clone(), namespace);
    let selector = format!("involvedObject.uid={},reason=FailedCreate", set.uid);
    let Ok(list) = events.list(&ListParams::default().fields(&selector).limit(20)).await else {
        return Vec::new();
    };
    let mut found: Vec<_> =
        list.items.into_iter().filter_map(|e| Some((e.last_timestamp, e.message?))).collect();
    found.sort_by(|a, b| b.0.cmp(&a.0));
    found.into_iter().map(|(_, message)| message).collect()
}

/// Whether a volume fits no node there is. What cannot be read is not stranded.
async fn stranded(ctx: &Context, volume: Option<&str>, nodes: &BTreeSet<String>) -> bool {
    let Some(volume) = volume else { return false };
    let volumes: Api<PersistentVolume> = Api::all(ctx.client.clone());
    match volumes.get_opt(volume).await {
        Ok(Some(volume)) => facts::stranded(&volume, nodes),
        Ok(None) | Err(_) => false,
    }
}

/// Names of the nodes; `None` where the operator may not read them: the loss of a node is then declared
/// by hand. docs: operator.md, "Rights".
async fn nodes(ctx: &Context) -> Option<BTreeSet<String>> {
    let nodes: Api<Node> = Api::all(ctx.client.clone());
    match nodes.list_metadata(&ListParams::default()).await {
        Ok(list) => Some(list.items.iter().map(ResourceExt::name_any).collect()),
        Err(e) => {
            if code(&e) != Some(403) {
                tracing::debug!(error = %e, "nodes cannot be read");
            }
            None
        }
    }
}
