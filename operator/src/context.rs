//! What all reconciles share: the client, settings, metrics, and memory that may be lost at any time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::runtime::events::{Recorder, Reporter};

use crate::crd::PaxosClusterStatus;
use crate::metrics::Metrics;
use crate::tls::Pair;

/// How long an applied object is trusted to stand unread: drift by others is mended this often.
const TRUST: Duration = Duration::from_secs(600);

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

/// Shared by all reconciles.
pub struct Context {
    /// The API client.
    pub client: Client,
    /// Settings.
    pub settings: Settings,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Writes Events.
    pub recorder: Recorder,
    memory: Mutex<BTreeMap<String, Memory>>,
}

/// What is remembered of one cluster, by UID: to spare writes and reads, never to decide.
#[derive(Default)]
struct Memory {
    /// Hashes of applied objects, and when they were applied.
    applied: BTreeMap<String, (String, Instant)>,
    /// The operator's own pair, and the authority it is from.
    pair: Option<(String, Pair)>,
    /// When the status was last written.
    status_written: Option<Timestamp>,
    /// Reconciles that failed in a row.
    failures: u32,
}

impl Context {
    /// A context for one run of the controller.
    pub fn new(client: Client, settings: Settings, metrics: Arc<Metrics>) -> Context {
        let reporter =
            Reporter { controller: "synod-operator".into(), instance: std::env::var("POD_NAME").ok() };
        let recorder = Recorder::new(client.clone(), reporter);
        Context { client, settings, metrics, recorder, memory: Mutex::default() }
    }

    fn with<T>(&self, uid: &str, act: impl FnOnce(&mut Memory) -> T) -> T {
        // A panic while the lock was held loses a cache entry at worst.
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        act(memory.entry(uid.to_owned()).or_default())
    }

    /// Forgets a cluster that is gone.
    pub fn forget(&self, uid: &str) {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// Whether exactly this was applied by us a short while ago.
    pub fn stands(&self, uid: &str, object: &str, hash: &str) -> bool {
        self.with(uid, |m| m.applied.get(object).is_some_and(|(h, at)| h == hash && at.elapsed() < TRUST))
    }

    /// Remembers that this was applied.
    pub fn applied(&self, uid: &str, object: &str, hash: &str) {
        self.with(uid, |m| m.applied.insert(object.to_owned(), (hash.to_owned(), Instant::now())));
    }

    /// The operator's pair for this cluster, if it was made by this authority.
    pub fn pair(&self, uid: &str, authority: &str) -> Option<Pair> {
        self.with(uid, |m| m.pair.as_ref().filter(|(a, _)| a == authority).map(|(_, p)| p.clone()))
    }

    /// Remembers the operator's pair for this cluster.
    pub fn keep_pair(&self, uid: &str, authority: &str, pair: Pair) {
        self.with(uid, |m| m.pair = Some((authority.to_owned(), pair)));
    }

    /// When the status was last written by us.
    pub fn status_written(&self, uid: &str) -> Option<Timestamp> {
        self.with(uid, |m| m.status_written)
    }

    /// Remembers that the status was written.
    pub fn wrote_status(&self, uid: &str, at: Timestamp) {
        self.with(uid, |m| m.status_written = Some(at));
    }

    /// Counts a failure and says how many there were in a row.
    pub fn failed(&self, uid: &str) -> u32 {
        self.with(uid, |m| {
            m.failures = m.failures.saturating_add(1);
            m.failures
        })
    }

    /// Ends a row of failures.
    pub fn succeeded(&self, uid: &str) {
        self.with(uid, |m| m.failures = 0);
    }
}

/// The status of a cluster, never absent.
pub(crate) fn status_of(cluster: &crate::crd::PaxosCluster) -> PaxosClusterStatus {
    cluster.status.clone().unwrap_or_default()
}
