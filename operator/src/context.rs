//! What all reconciles share: the client, the way to the members, settings, metrics, and memory that may be
//! lost at any time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::runtime::events::{Recorder, Reporter};
use uuid::Uuid;

use crate::crd::{PaxosCluster, PaxosClusterStatus};
use crate::dereference::Raw;
use crate::members::{Dialled, Members};
use crate::metrics::Metrics;
use crate::observed::NodeFacts;
use crate::status::Refusal;
use crate::tls::Pair;
use crate::watched::Watched;

/// How long an applied object that is not watched is trusted to stand unread.
const TRUST_SECONDS: i64 = 600;
/// How long what was read is used again while no watch tells of a change.
const REMEMBERED_SECONDS: i64 = 300;
/// How long the list of nodes is used again.
const NODES_SECONDS: i64 = 10;
/// How long what the API server refused is not tried again: a person has to act first.
const REFUSED_SECONDS: i64 = 30;

/// What the operator was started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Image of the sidecar where a spec names none.
    pub sidecar_image: String,
    /// DNS domain of the Kubernetes cluster.
    pub cluster_domain: String,
    /// Namespaces to watch; empty: all.
    pub namespaces: Vec<String>,
    /// How many clusters are rolled at once because the operator makes their pods otherwise than before.
    pub max_rollouts: usize,
}

/// Time and randomness: what a test decides instead.
pub trait Outside: Send + Sync {
    /// The time.
    fn now(&self) -> Timestamp;
    /// A random id.
    fn fresh_id(&self) -> Uuid;
}

/// The machine's own time and randomness.
#[derive(Clone, Copy, Debug, Default)]
pub struct Machine;

impl Outside for Machine {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn fresh_id(&self) -> Uuid {
        Uuid::new_v4()
    }
}

/// Shared by all reconciles. Everything that a reconcile does to the world goes through `client`, `members`
/// and `outside`.
pub struct Context {
    /// The API client.
    pub client: Client,
    /// The way to the members.
    pub members: Arc<dyn Members>,
    /// Time and randomness.
    pub outside: Arc<dyn Outside>,
    /// Settings.
    pub settings: Settings,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Writes Events.
    pub recorder: Recorder,
    /// The objects that are there, as the watches tell.
    pub watched: Watched,
    nodes: Mutex<Option<(Timestamp, Option<Nodes>)>>,
    rollouts: Mutex<BTreeSet<String>>,
    remembered: Mutex<BTreeMap<(String, String), Arc<Remembered>>>,
    memory: Mutex<BTreeMap<String, Memory>>,
}

/// What is remembered of one cluster, by UID: to spare writes and reads, never to decide.
#[derive(Default)]
struct Memory {
    /// Applied objects.
    applied: BTreeMap<String, Applied>,
    /// What the API server refused: the hash of what was tried, when, and its words.
    refused: BTreeMap<String, (String, Timestamp, Refusal)>,
    /// The operator's own pair, and the authority it is from.
    pair: Option<(String, Pair)>,
    /// When the status was last written.
    status_written: Option<Timestamp>,
    /// Reconciles that failed in a row.
    failures: u32,
    /// The last step, in words, and how often it was taken in a row.
    repeated: (String, u32),
    /// What was waited for last, and how often in a row.
    waited: (String, u32),
    /// Whether it waits for its turn to be rolled.
    waits_turn: bool,
}

/// The nodes there are.
type Nodes = Arc<BTreeMap<String, NodeFacts>>;

/// What was read of a cluster at rest, and how often the watches had told of it by then.
pub struct Remembered {
    /// The PaxosCluster.
    pub cluster: PaxosCluster,
    /// Its objects.
    pub raw: Raw,
    told: u64,
    at: Timestamp,
}

/// An object as it was applied.
#[derive(Clone, Debug, PartialEq)]
struct Applied {
    /// Hash of its content.
    hash: String,
    /// Its stamp after the write: another one means that somebody else wrote.
    stamp: Option<String>,
    /// When.
    at: Timestamp,
}

impl Context {
    /// A context for one run of the controller.
    pub fn new(client: Client, settings: Settings, metrics: Arc<Metrics>) -> Context {
        Context::with(client, settings, metrics, Arc::new(Dialled::default()), Arc::new(Machine))
    }

    /// A context whose members, time and randomness are given.
    pub fn with(
        client: Client,
        settings: Settings,
        metrics: Arc<Metrics>,
        members: Arc<dyn Members>,
        outside: Arc<dyn Outside>,
    ) -> Context {
        let reporter =
            Reporter { controller: "synod-operator".into(), instance: std::env::var("POD_NAME").ok() };
        let recorder = Recorder::new(client.clone(), reporter);
        Context {
            client,
            members,
            outside,
            settings,
            metrics,
            recorder,
            watched: Watched::default(),
            nodes: Mutex::default(),
            rollouts: Mutex::default(),
            remembered: Mutex::default(),
            memory: Mutex::default(),
        }
    }

    fn memory<T>(&self, uid: &str, act: impl FnOnce(&mut Memory) -> T) -> T {
        act(lock(&self.memory).entry(uid.to_owned()).or_default())
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        self.outside.now()
    }

    /// Forgets a cluster that is gone.
    pub fn forget(&self, namespace: &str, name: &str, uid: &str) {
        lock(&self.memory).remove(uid);
        lock(&self.rollouts).remove(uid);
        self.read_again(namespace, name);
    }

    /// How often the watches have told of a cluster; `None` where they do not run.
    pub fn told(&self, namespace: &str, name: &str) -> Option<u64> {
        self.watched.told(namespace, name)
    }

    /// What was read last, if the cluster was at rest then and nothing has been told of it since.
    pub fn remembered(&self, namespace: &str, name: &str) -> Option<Arc<Remembered>> {
        let key = (namespace.to_owned(), name.to_owned());
        let known = lock(&self.remembered).get(&key).cloned()?;
        let young = self.now().duration_since(known.at).as_secs() < REMEMBERED_SECONDS;
        (young && self.told(namespace, name) == Some(known.told)).then_some(known)
    }

    /// Remembers what was read of a cluster at rest. `told`: the count from before the reads.
    pub fn remember(&self, namespace: &str, name: &str, told: Option<u64>, cluster: PaxosCluster, raw: Raw) {
        let Some(told) = told else { return };
        let remembered = Remembered { cluster, raw, told, at: self.now() };
        lock(&self.remembered).insert((namespace.to_owned(), name.to_owned()), Arc::new(remembered));
    }

    /// Forgets what was read.
    pub fn read_again(&self, namespace: &str, name: &str) {
        lock(&self.remembered).remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// The nodes, if they were read a short while ago.
    pub fn nodes(&self) -> Option<Option<Nodes>> {
        let now = self.now();
        let known = lock(&self.nodes);
        let (at, nodes) = known.as_ref()?;
        (now.duration_since(*at).as_secs() < NODES_SECONDS || planted!(NodesReadOnce)).then(|| nodes.clone())
    }

    /// Remembers the nodes.
    pub fn keep_nodes(&self, nodes: Option<Nodes>) {
        *lock(&self.nodes) = Some((self.now(), nodes));
    }

    /// Whether a cluster may be rolled into pods that this operator makes otherwise than the one before: one
    /// after the other, each at rest before the next.
    pub fn may_roll(&self, uid: &str) -> bool {
        let mut rolling = lock(&self.rollouts);
        rolling.contains(uid)
            || (rolling.len() < self.settings.max_rollouts && rolling.insert(uid.to_owned()))
    }

    /// Notes whether a cluster waits for its turn.
    pub fn note_turn(&self, uid: &str, waits: bool) {
        self.memory(uid, |m| m.waits_turn = waits);
    }

    /// Whether a cluster waits for its turn.
    pub fn waits_turn(&self, uid: &str) -> bool {
        self.memory(uid, |m| m.waits_turn)
    }

    /// Ends a cluster's turn.
    pub fn rolled(&self, uid: &str) {
        lock(&self.rollouts).remove(uid);
    }

    /// Whether exactly this was applied by us and stands still: `stamp` is what the object has now. Without
    /// one (it is not watched, or not yet) what was applied is trusted for a while.
    pub fn stands(&self, uid: &str, object: &str, hash: &str, stamp: Option<&str>) -> bool {
        let now = self.now();
        self.memory(uid, |m| {
            m.applied.get(object).is_some_and(|a| {
                let same = match stamp {
                    Some(stamp) => a.stamp.as_deref() == Some(stamp),
                    None => now.duration_since(a.at).as_secs() < TRUST_SECONDS,
                };
                a.hash == hash && same
            })
        })
    }

    /// Whether exactly this was applied by us less than `seconds` ago.
    pub fn applied_within(&self, uid: &str, object: &str, hash: &str, seconds: i64) -> bool {
        let now = self.now();
        self.memory(uid, |m| {
            let applied = m.applied.get(object);
            applied.is_some_and(|a| a.hash == hash && now.duration_since(a.at).as_secs() < seconds)
        })
    }

    /// Remembers that this was applied, and the stamp it has since.
    pub fn applied(&self, uid: &str, object: &str, hash: &str, stamp: Option<String>) {
        let applied = Applied { hash: hash.to_owned(), stamp, at: self.now() };
        self.memory(uid, |m| {
            m.refused.remove(object);
            m.applied.insert(object.to_owned(), applied)
        });
    }

    /// What the API server said when exactly this was tried a short while ago, if it refused.
    pub fn refused(&self, uid: &str, object: &str, hash: &str) -> Option<Refusal> {
        let now = self.now();
        self.memory(uid, |m| {
            let (tried, at, refusal) = m.refused.get(object)?;
            let lately = now.duration_since(*at).as_secs() < REFUSED_SECONDS;
            (tried == hash && lately).then(|| refusal.clone())
        })
    }

    /// Whether anything about this object was refused a short while ago.
    pub fn refused_lately(&self, uid: &str, object: &str) -> bool {
        let now = self.now();
        self.memory(uid, |m| {
            m.refused
                .get(object)
                .is_some_and(|(_, at, _)| now.duration_since(*at).as_secs() < REFUSED_SECONDS)
        })
    }

    /// Remembers a refusal.
    pub fn note_refusal(&self, uid: &str, object: &str, hash: &str, refusal: Refusal) {
        let now = self.now();
        self.memory(uid, |m| m.refused.insert(object.to_owned(), (hash.to_owned(), now, refusal)));
    }

    /// Forgets a refusal of what is not asked for any more, or went well.
    pub fn note_success(&self, uid: &str, object: &str) {
        self.memory(uid, |m| m.refused.remove(object));
    }

    /// Counts how often the same step was taken in a row, this time included.
    pub fn repeats(&self, uid: &str, step: &str) -> u32 {
        self.memory(uid, |m| count(&mut m.repeated, step))
    }

    /// Counts how often the same thing was waited for in a row, this time included.
    pub fn waits(&self, uid: &str, gate: &str) -> u32 {
        self.memory(uid, |m| count(&mut m.waited, gate))
    }

    /// The operator's pair for this cluster, if it was made by this authority.
    pub fn pair(&self, uid: &str, authority: &str) -> Option<Pair> {
        self.memory(uid, |m| m.pair.as_ref().filter(|(a, _)| a == authority).map(|(_, p)| p.clone()))
    }

    /// The operator's pair for this cluster, whoever made it: all that is left of a lost authority.
    pub fn last_pair(&self, uid: &str) -> Option<Pair> {
        self.memory(uid, |m| m.pair.as_ref().map(|(_, p)| p.clone()))
    }

    /// Remembers the operator's pair for this cluster.
    pub fn keep_pair(&self, uid: &str, authority: &str, pair: Pair) {
        self.memory(uid, |m| m.pair = Some((authority.to_owned(), pair)));
    }

    /// When the status was last written by us.
    pub fn status_written(&self, uid: &str) -> Option<Timestamp> {
        self.memory(uid, |m| m.status_written)
    }

    /// Remembers that the status was written.
    pub fn wrote_status(&self, uid: &str, at: Timestamp) {
        self.memory(uid, |m| m.status_written = Some(at));
    }

    /// Counts a failure and says how many there were in a row.
    pub fn failed(&self, uid: &str) -> u32 {
        self.memory(uid, |m| {
            m.failures = m.failures.saturating_add(1);
            m.failures
        })
    }

    /// Ends a row of failures.
    pub fn succeeded(&self, uid: &str) {
        self.memory(uid, |m| m.failures = 0);
    }
}

/// A panic while a lock was held loses an entry of a cache at worst.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count(row: &mut (String, u32), what: &str) -> u32 {
    if row.0 == what {
        row.1 = row.1.saturating_add(1);
    } else {
        *row = (what.to_owned(), 1);
    }
    row.1
}

/// The status of a cluster, never absent.
pub(crate) fn status_of(cluster: &PaxosCluster) -> PaxosClusterStatus {
    cluster.status.clone().unwrap_or_default()
}
