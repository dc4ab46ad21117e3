//! What all reconciles share: the client, the way to the members, settings, metrics, and memory that may be
//! lost at any time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::runtime::events::{Recorder, Reporter};
use uuid::Uuid;

use crate::crd::PaxosClusterStatus;
use crate::members::{Dialled, Members};
use crate::metrics::Metrics;
use crate::status::Refusal;
use crate::tls::Pair;
use crate::watched::Watched;

/// How long an applied object that is not watched is trusted to stand unread.
const TRUST_SECONDS: i64 = 600;
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
        let (watched, memory) = (Watched::default(), Mutex::default());
        Context { client, members, outside, settings, metrics, recorder, watched, memory }
    }

    fn memory<T>(&self, uid: &str, act: impl FnOnce(&mut Memory) -> T) -> T {
        // A panic while the lock was held loses a cache entry at worst.
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        act(memory.entry(uid.to_owned()).or_default())
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        self.outside.now()
    }

    /// Forgets a cluster that is gone.
    pub fn forget(&self, uid: &str) {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
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

fn count(row: &mut (String, u32), what: &str) -> u32 {
    if row.0 == what {
        row.1 = row.1.saturating_add(1);
    } else {
        *row = (what.to_owned(), 1);
    }
    row.1
}

/// The status of a cluster, never absent.
pub(crate) fn status_of(cluster: &crate::crd::PaxosCluster) -> PaxosClusterStatus {
    cluster.status.clone().unwrap_or_default()
}
