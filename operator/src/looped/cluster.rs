//! A Kubernetes with one PaxosCluster in it: the API server, what its controllers and kubelets do, and members
//! that answer. The operator's own pipeline drives it, request by request.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Client;
use kube::api::DynamicObject;
use kube::client::Body;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};
use uuid::Uuid;
use x509_parser::extensions::ParsedExtension;

use super::api::{Asked, Server};
use crate::build::{Kind, content_hash};
use crate::context::{Context, Outside, Settings};
use crate::controller::look;
use crate::dereference::text;
use crate::error::Error;
use crate::members::{Answer, Ask, MemberError, Members, Target};
use crate::metrics::Metrics;
use crate::names::{ClusterId, MemberId};
use crate::observed::{Config, ConfigMember, MemberState, Peer, Removed, Report};
use crate::plan::tests::world;
use crate::settings::InForce;

pub(crate) const CLUSTER: &str = "/apis/synod.dev/v1alpha1/namespaces/ns/paxosclusters/demo";
pub(crate) const SET: &str = "/apis/apps/v1/namespaces/ns/statefulsets/demo";
pub(crate) const PODS: &str = "/api/v1/namespaces/ns/pods";
pub(crate) const CLAIMS: &str = "/api/v1/namespaces/ns/persistentvolumeclaims";
pub(crate) const PAIRS: &str = "/api/v1/namespaces/ns/secrets/demo-tls";
pub(crate) const AUTHORITY: &str = "/api/v1/namespaces/ns/secrets/demo-ca";
pub(crate) const BUDGET: &str = "/apis/policy/v1/namespaces/ns/poddisruptionbudgets/demo";

/// A disk, by the UID of its claim.
#[derive(Clone, Debug)]
struct Disk {
    member: MemberId,
    state: MemberState,
    cluster: Option<ClusterId>,
}

/// What a member goes by until its files are read again.
struct Loaded {
    bundle: Vec<String>,
    certificate: String,
}

impl Loaded {
    fn trusts(&self, certificate: &str) -> bool {
        trusted(&self.bundle.concat(), certificate)
    }
}

/// Whether one of the authorities made the certificate: their key identifiers say so.
fn trusted(authorities: &str, certificate: &str) -> bool {
    let identifiers = |pem: &str| {
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let parsed = pem.parse_x509().unwrap();
        let (mut own, mut issuer) = (Vec::new(), Vec::new());
        for extension in parsed.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => own = id.0.to_vec(),
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    issuer = id.key_identifier.as_ref().unwrap().0.to_vec();
                }
                _ => {}
            }
        }
        (own, issuer)
    };
    let (_, issuer) = identifiers(certificate);
    assert!(!issuer.is_empty(), "a certificate names its authority");
    crate::tls::bundle(authorities).iter().any(|authority| identifiers(authority).0 == issuer)
}

/// The log that the members hold.
#[derive(Default)]
struct Log {
    config: Config,
    removed: Vec<Removed>,
    leader: Option<MemberId>,
    settings: Option<InForce>,
    founders: usize,
}

/// Everything outside the operator.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) server: Server,
    disks: BTreeMap<String, Disk>,
    log: Log,
    next_member: u64,
    now: i64,
    /// How often a member was asked for more than its status.
    asked: usize,
    /// Pods whose members do not answer.
    pub(crate) down: BTreeSet<String>,
    /// What each pod's member has loaded of the Secret with the pairs.
    loaded: BTreeMap<String, Loaded>,
}

/// The world, and the operator's context in it.
pub(crate) struct Cluster {
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) ctx: Context,
}

struct Fake(Arc<Mutex<State>>);

impl Outside for Fake {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(self.0.lock().unwrap().now).unwrap()
    }

    fn fresh_id(&self) -> Uuid {
        let mut state = self.0.lock().unwrap();
        state.next_member += 1;
        Uuid::from_u128(u128::from(state.next_member) << 64)
    }
}

impl Members for Fake {
    fn ask<'a>(&'a self, target: &'a Target, ask: Ask) -> BoxFuture<'a, Result<Answer, MemberError>> {
        let mut state = self.0.lock().unwrap();
        let admitted = match (&target.credentials, state.loaded.get(&target.pod)) {
            (Some(shown), Some(loaded)) => {
                loaded.trusts(&shown.pair.certificate) && trusted(&shown.authority, &loaded.certificate)
            }
            _ => true,
        };
        let answer = match admitted {
            true => state.ask(&target.pod, ask),
            false => {
                let why = "BadSignature".to_owned();
                Err(MemberError::Unreachable { address: target.pod.clone(), why })
            }
        };
        drop(state);
        Box::pin(async move { answer })
    }
}

fn client(state: &Arc<Mutex<State>>) -> Client {
    let state = Arc::clone(state);
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let state = Arc::clone(&state);
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let content = parts.headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default();
            let asked = Asked {
                method: parts.method.as_str(),
                path: parts.uri.path(),
                query: parts.uri.query().unwrap_or_default(),
                content,
                body: serde_json::from_slice(&body).unwrap_or(Value::Null),
            };
            let (code, answer) = state.lock().unwrap().server.answer(asked);
            let response =
                http::Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()));
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(response.unwrap())
        }
    });
    Client::new(service, "ns")
}

impl Cluster {
    /// A PaxosCluster of this spec that nothing was done for yet.
    pub(crate) fn new(spec: Value) -> Cluster {
        let state = Arc::new(Mutex::new(State { now: 1_800_000_000, next_member: 100, ..State::default() }));
        let cluster = json!({
            "apiVersion": "synod.dev/v1alpha1", "kind": "PaxosCluster",
            "metadata": { "name": "demo", "namespace": "ns", "generation": 1 }, "spec": spec,
        });
        state.lock().unwrap().server.make(CLUSTER, cluster);
        for node in 0..9 {
            let node = format!("node{node}");
            let object =
                json!({ "metadata": { "name": node, "labels": { "kubernetes.io/hostname": node } } });
            state.lock().unwrap().server.make(&format!("/api/v1/nodes/{node}"), object);
        }
        let settings = Settings {
            sidecar_image: "sidecar:1".into(),
            cluster_domain: "cluster.local".into(),
            namespaces: Vec::new(),
            max_rollouts: 1,
        };
        let (members, outside) = (Arc::new(Fake(state.clone())), Arc::new(Fake(state.clone())));
        let ctx = Context::with(client(&state), settings, Arc::new(Metrics::new()), members, outside);
        Cluster { state, ctx }
    }

    /// One of three that is formed and at rest.
    pub(crate) async fn formed(more: Value) -> Cluster {
        let mut spec = json!({ "replicas": 3, "tls": { "mode": "Disabled" } });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let cluster = Cluster::new(spec);
        cluster.settle().await;
        assert_eq!(
            cluster.condition("Ready"),
            ("True".into(), "AsDesired".into()),
            "{}",
            cluster.told("Ready")
        );
        cluster.with(|s| s.server.writes.clear());
        cluster
    }

    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap())
    }

    /// One look of the operator; nobody else does anything.
    pub(crate) async fn look(&self) -> Result<Option<Duration>, Error> {
        look(&self.ctx, "ns", "demo").await
    }

    /// Looks, and lets Kubernetes do its part, until nothing was written for a while.
    pub(crate) async fn settle(&self) {
        let mut quiet = 0;
        for _ in 0..400 {
            let before = self.with(|s| (s.server.writes.len(), s.asked));
            let (pause, failed) = match self.look().await {
                Ok(pause) => (pause.unwrap(), None),
                Err(error) => {
                    assert!(crate::apply::moved_on(&error), "{error}");
                    (Duration::from_secs(1), Some(error.to_string()))
                }
            };
            let after = self.with(|s| {
                s.now += i64::try_from(pause.as_secs()).unwrap().max(1);
                s.tick();
                (s.server.writes.len(), s.asked)
            });
            quiet = if after == before { quiet + 1 } else { 0 };
            if quiet > 5 {
                assert_eq!(failed, None, "it goes on failing");
                return;
            }
        }
        panic!(
            "no end: {:?}",
            self.with(|s| s.server.writes.iter().rev().take(30).cloned().collect::<Vec<_>>())
        );
    }

    /// The status, to be shown where a test fails.
    pub(crate) fn status(&self) -> String {
        self.with(|s| s.server.get(CLUSTER).unwrap()["status"].to_string())
    }

    /// One look, and some seconds.
    pub(crate) async fn pass(&self) {
        let pause = self.look().await.unwrap().unwrap();
        self.with(|s| {
            s.now += i64::try_from(pause.as_secs()).unwrap().max(1);
            s.tick();
        });
    }

    /// The operator is started again: it remembers nothing.
    pub(crate) fn restart_operator(&mut self) {
        let settings = self.ctx.settings.clone();
        let (members, outside) = (Arc::new(Fake(self.state.clone())), Arc::new(Fake(self.state.clone())));
        let metrics = Arc::new(Metrics::new());
        self.ctx = Context::with(client(&self.state), settings, metrics, members, outside);
    }

    /// Changes the spec.
    pub(crate) fn edit(&self, spec: Value) {
        self.with(|s| s.server.edit(CLUSTER, &json!({ "spec": spec })));
    }

    fn find(&self, kind: &str) -> Value {
        let cluster = self.with(|s| s.server.get(CLUSTER).cloned().unwrap());
        let conditions = cluster["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|c| c["type"] == kind).unwrap_or(Value::Null)
    }

    /// Status and reason of a condition.
    pub(crate) fn condition(&self, kind: &str) -> (String, String) {
        let condition = self.find(kind);
        let text = |key: &str| condition[key].as_str().unwrap_or_default().to_owned();
        (text("status"), text("reason"))
    }

    /// The message of a condition.
    pub(crate) fn told(&self, kind: &str) -> String {
        self.find(kind)["message"].as_str().unwrap_or_default().to_owned()
    }

    /// The log's settings.
    pub(crate) fn settings(&self) -> Option<InForce> {
        self.with(|s| s.log.settings)
    }

    /// Ids of the voters.
    pub(crate) fn voters(&self) -> Vec<MemberId> {
        self.with(|s| s.log.config.voters().map(|m| m.member).collect())
    }

    /// Somebody deletes a member's claim and pod.
    pub(crate) fn lose_disk(&self, ordinal: u32) {
        self.with(|s| {
            s.server.remove(&format!("{CLAIMS}/data-demo-{ordinal}"));
            s.server.remove(&format!("{PODS}/demo-{ordinal}"));
            s.tick();
        });
    }

    /// The watches begin: whole lists of everything that is read.
    pub(crate) fn watch(&self) {
        for plural in ["paxosclusters", "statefulsets", "pods", "claims", "budgets"] {
            let event = Event::<()>::InitDone;
            self.ctx.watched.count(plural, "", &event, |()| None);
        }
        let kinds = [Kind::Service, Kind::ConfigMap, Kind::NetworkPolicy];
        for (kind, plural) in kinds.into_iter().zip(["services", "configmaps", "networkpolicies"]) {
            let note = |event| self.ctx.watched.note::<DynamicObject>(kind, "", &event);
            note(Event::Init);
            self.with(|s| {
                let group =
                    if kind == Kind::NetworkPolicy { "/apis/networking.k8s.io/v1" } else { "/api/v1" };
                for path in s.server.under(&format!("{group}/namespaces/ns/{plural}")) {
                    let mut object = s.server.get(&path).unwrap().clone();
                    object["apiVersion"] = "v1".into();
                    object["kind"] = "Any".into();
                    note(Event::InitApply(serde_json::from_value(object).unwrap()));
                }
            });
            note(Event::InitDone);
        }
    }

    /// A watch tells of a change.
    pub(crate) fn tell(&self) {
        self.ctx.watched.count("pods", "", &Event::Apply(()), |()| Some(("ns".into(), "demo".into())));
    }

    /// Names and UIDs of the pods.
    pub(crate) fn pods(&self) -> Vec<(String, Value)> {
        self.with(|s| {
            let pods = s.server.under(PODS);
            pods.into_iter()
                .map(|p| (p.clone(), s.server.get(&p).unwrap()["metadata"]["uid"].clone()))
                .collect()
        })
    }
}

impl State {
    /// What the StatefulSet controller, the volume controller and the kubelets do next.
    pub(crate) fn tick(&mut self) {
        for path in self.server.under(CLAIMS) {
            let pod = path.replace("persistentvolumeclaims/data-", "pods/");
            let going = !self.server.get(&path).unwrap()["metadata"]["deletionTimestamp"].is_null();
            if going && self.server.get(&pod).is_none() {
                self.server.remove(&path);
            }
        }
        let Some(mut set) = self.server.get(SET).cloned() else { return };
        let revision = content_hash(&set["spec"]["template"]);
        let status =
            json!({ "observedGeneration": set["metadata"]["generation"], "updateRevision": revision });
        if set["status"] != status {
            set["status"] = status;
            self.server.store(SET, set.clone());
        }
        let replicas = set["spec"]["replicas"].as_u64().unwrap();
        for path in self.server.under(PODS) {
            let ordinal: u64 = path.rsplit('-').next().unwrap().parse().unwrap();
            if ordinal >= replicas {
                self.server.remove(&path);
            }
        }
        for ordinal in 0..replicas {
            self.start(ordinal, &set, &revision);
        }
    }

    fn start(&mut self, ordinal: u64, set: &Value, revision: &str) {
        let (pod, claim) = (format!("{PODS}/demo-{ordinal}"), format!("{CLAIMS}/data-demo-{ordinal}"));
        if self.server.get(&claim).is_none() {
            let requests = &set["spec"]["volumeClaimTemplates"][0]["spec"]["resources"];
            let object = json!({
                "metadata": {
                    "name": format!("data-demo-{ordinal}"), "namespace": "ns",
                    "labels": set["spec"]["selector"]["matchLabels"],
                },
                "spec": { "resources": requests },
            });
            self.server.make(&claim, object);
        }
        if self.server.get(&pod).is_none() {
            let mut labels = set["spec"]["template"]["metadata"]["labels"].clone();
            labels["controller-revision-hash"] = revision.into();
            let object = json!({
                "metadata": { "name": format!("demo-{ordinal}"), "namespace": "ns", "labels": labels },
                "spec": { "nodeName": format!("node{ordinal}"), "containers": [] },
                "status": {
                    "podIP": "10.0.0.1",
                    "conditions": [{ "type": "Ready", "status": "True",
                        "lastTransitionTime": (Timestamp::from_second(self.now).unwrap()
                            - SignedDuration::from_secs(3600)).to_string() }],
                },
            });
            self.server.make(&pod, object);
        }
        let name = format!("demo-{ordinal}");
        if !self.loaded.contains_key(&name) {
            self.reload(&name);
        }
        let uid = self.claim_uid(&name);
        if !self.disks.contains_key(&uid) {
            self.next_member += 1;
            let member = MemberId(self.next_member);
            self.disks.insert(uid, Disk { member, state: MemberState::Uninitialized, cluster: None });
        }
    }

    /// The controller sees the set, and every pod is of its revision.
    pub(crate) fn settle_pods(&mut self) {
        let mut set = self.server.get(SET).cloned().unwrap();
        let revision = content_hash(&set["spec"]["template"]);
        set["status"] =
            json!({ "observedGeneration": set["metadata"]["generation"], "updateRevision": revision });
        self.server.store(SET, set);
        for path in self.server.under(PODS) {
            let labels = json!({ "metadata": { "labels": { "controller-revision-hash": revision } } });
            self.server.edit(&path, &labels);
        }
    }

    /// A kubelet brings the newest files to a pod, and its member loads them.
    pub(crate) fn reload(&mut self, pod: &str) {
        let Some(secret) = self.server.get(PAIRS) else { return };
        let secret: Secret = serde_json::from_value(secret.clone()).unwrap();
        let loaded = Loaded {
            bundle: crate::tls::bundle(&text(&secret, "ca.crt")),
            certificate: text(&secret, &format!("{pod}.crt")),
        };
        self.loaded.insert(pod.to_owned(), loaded);
    }

    /// Whether every member takes every other's certificate; how many authorities they know.
    pub(crate) fn trust(&self) -> Result<BTreeSet<usize>, String> {
        for (pod, loaded) in &self.loaded {
            for (other, shows) in &self.loaded {
                if !loaded.trusts(&shows.certificate) {
                    return Err(format!("{pod} refuses {other}"));
                }
            }
        }
        Ok(self.loaded.values().map(|l| l.bundle.len()).collect())
    }

    fn claim_uid(&self, pod: &str) -> String {
        let claim = self.server.get(&format!("{CLAIMS}/data-{pod}"));
        claim.and_then(|c| c["metadata"]["uid"].as_str()).unwrap_or_default().to_owned()
    }

    /// Disks of pods that run.
    fn running(&self) -> BTreeSet<MemberId> {
        let pods = self.server.under(PODS);
        let names = pods.iter().filter_map(|p| p.rsplit('/').next()).filter(|p| !self.down.contains(*p));
        names.filter_map(|p| self.disks.get(&self.claim_uid(p))).map(|d| d.member).collect()
    }

    fn ask(&mut self, pod: &str, ask: Ask) -> Result<Answer, MemberError> {
        let gone = self.server.get(&format!("{PODS}/{pod}")).is_none() || self.down.contains(pod);
        let uid = self.claim_uid(pod);
        if gone || !self.disks.contains_key(&uid) {
            return Err(MemberError::Unreachable { address: pod.into(), why: "connection refused".into() });
        }
        let running = self.running();
        self.asked += usize::from(ask != Ask::Status);
        let disk = self.disks.get_mut(&uid).unwrap();
        let log = &mut self.log;
        match ask {
            Ask::Status => {
                if log.leader.is_none_or(|l| !running.contains(&l)) {
                    log.leader = log.config.voters().map(|m| m.member).find(|m| running.contains(m));
                }
                return Ok(Answer::Report(Box::new(report(disk, log, &running))));
            }
            Ask::Initialize { cluster, members, settings } => {
                (disk.state, disk.cluster) = (MemberState::Joining, Some(cluster));
                log.founders += 1;
                if log.founders == members.len() {
                    let member = |(name, member)| ConfigMember { member, name, voter: true };
                    log.config = Config { version: 1, members: members.into_iter().map(member).collect() };
                    log.settings = Some(InForce { version: 1, values: settings });
                    let founders = log.config.members.clone();
                    self.activate(&founders);
                }
            }
            Ask::Join { cluster, .. } => (disk.state, disk.cluster) = (MemberState::Joining, Some(cluster)),
            Ask::AddLearner(change, name) => {
                check(log, change.version)?;
                log.config.members.push(ConfigMember { member: change.member, name, voter: false });
                let added = log.config.members.clone();
                self.activate(&added);
            }
            Ask::Promote(change) => {
                check(log, change.version)?;
                log.config.members.iter_mut().find(|m| m.member == change.member).unwrap().voter = true;
            }
            Ask::Remove(change) => {
                check(log, change.version)?;
                log.config.members.retain(|m| m.member != change.member);
                log.removed.push(Removed {
                    member: change.member,
                    version: log.config.version,
                    retired: true,
                });
                self.disks.values_mut().filter(|d| d.member == change.member).for_each(|d| {
                    d.state = MemberState::Removed;
                });
            }
            Ask::ChangeSettings { version, settings, .. } => {
                log.settings = Some(InForce { version: version + 1, values: settings });
            }
            Ask::Transfer { to, .. } => log.leader = Some(to),
            Ask::Renew(_) => {
                self.next_member += 1;
                let member = MemberId(self.next_member);
                *disk = Disk { member, state: MemberState::Uninitialized, cluster: None };
            }
        }
        Ok(Answer::Done)
    }

    fn activate(&mut self, members: &[ConfigMember]) {
        for disk in self.disks.values_mut().filter(|d| members.iter().any(|m| m.member == d.member)) {
            disk.state = MemberState::Active;
        }
    }
}

/// A change is planned from the newest version, and makes the next.
fn check(log: &mut Log, version: u64) -> Result<(), MemberError> {
    if log.config.version != version {
        let message = "the version moved".to_owned();
        return Err(MemberError::Refused { call: "Change", code: tonic::Code::FailedPrecondition, message });
    }
    log.config.version += 1;
    Ok(())
}

fn report(disk: &Disk, log: &Log, running: &BTreeSet<MemberId>) -> Report {
    let mut report = world::report(disk.member, disk.cluster);
    report.state = disk.state;
    if log.config.get(disk.member).is_none() || disk.state != MemberState::Active {
        return report;
    }
    report.config = Some(log.config.clone());
    report.settings = log.settings;
    report.removed = log.removed.clone();
    report.leader = log.leader;
    report.leads = log.leader == Some(disk.member);
    report.ready = true;
    let peer = |m: &ConfigMember| {
        let heard = running.contains(&m.member);
        Peer { member: m.member, connected: heard, caught_up: heard }
    };
    report.peers = log.config.members.iter().map(peer).collect();
    report
}
