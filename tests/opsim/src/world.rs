//! Kubernetes beside the API server: nodes, volumes, and what controllers, kubelets and the scheduler do in a second.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};
use synod_operator::names::{ClusterId, MemberId};
use synod_sim::random::Random;

use crate::api::{BUDGET, CLAIMS, CLUSTER, NODES, PODS, SET, Server, VOLUMES, is_ready, selects, stamp};
use crate::members::Members;

/// How long a pod takes to stop, in milliseconds.
const GRACE: i64 = 2_000;
/// How long a silent node's pods count as ready.
const NODE_GRACE: i64 = 40_000;
/// How long a silent node keeps its pods.
const NODE_EVICTS: i64 = 120_000;

/// A machine.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its host name label, which is not its name.
    pub host: String,
    /// Whether it runs.
    pub up: bool,
    /// Whether its object exists.
    pub listed: bool,
    /// Whether it takes no new pods.
    pub cordoned: bool,
    /// Since when it is down, or its object is gone.
    pub since: i64,
    /// Whether it never comes back: its volumes are destroyed.
    pub destroyed: bool,
}

/// What a seed decides about its Kubernetes.
#[derive(Clone, Copy, Debug)]
pub struct Manners {
    /// Volumes are bound to the node they were made on.
    pub local: bool,
    /// A volume grows only when its pod restarts.
    pub grows_at_restart: bool,
    /// How long the StatefulSet controller takes to see a change, in milliseconds.
    pub set_lag: i64,
    /// How long a volume takes to grow, in milliseconds.
    pub growth: i64,
}

/// Everything outside the operator.
#[derive(Debug)]
pub struct World {
    /// The time, in milliseconds.
    pub now: i64,
    /// The API server.
    pub server: Server,
    /// The members.
    pub members: Members,
    /// The machines.
    pub nodes: BTreeMap<String, Node>,
    /// What this Kubernetes is like.
    pub manners: Manners,
    /// The run's chance.
    pub random: Random,
    /// Nodes that are being emptied.
    pub drains: BTreeSet<String>,
    /// Pods whose processes were killed and start at the next second.
    started: BTreeMap<String, i64>,
    ended: BTreeMap<String, i64>,
    set_changed: Option<(i64, i64)>,
    growing: BTreeMap<String, i64>,
    seen: usize,
    count: u64,
}

impl World {
    /// Machines, and nothing else.
    pub fn new(random: Random, manners: Manners, nodes: u64) -> World {
        let mut world = World {
            now: 1_800_000_000_000,
            server: Server::default(),
            members: Members::default(),
            nodes: BTreeMap::new(),
            manners,
            random,
            drains: BTreeSet::new(),
            started: BTreeMap::new(),
            ended: BTreeMap::new(),
            set_changed: None,
            growing: BTreeMap::new(),
            seen: 0,
            count: 0,
        };
        world.server.now = world.now / 1000;
        for _ in 0..nodes {
            world.add_node();
        }
        world
    }

    fn next(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    /// A new machine.
    pub fn add_node(&mut self) {
        let n = self.next();
        let (name, host) = (format!("ip-{n}"), format!("host-{n}"));
        let node = Node { host, up: true, listed: true, cordoned: false, since: self.now, destroyed: false };
        self.nodes.insert(name.clone(), node);
        self.list_node(&name);
    }

    /// Makes a machine's Node object.
    pub fn list_node(&mut self, name: &str) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        node.listed = true;
        let labels = json!({ "kubernetes.io/hostname": node.host });
        let path = format!("{NODES}/{name}");
        if self.server.get(&path).is_none() {
            self.server.make(&path, json!({ "metadata": { "name": name, "labels": labels } }));
        }
    }

    /// Takes a machine's Node object away.
    pub fn unlist_node(&mut self, name: &str) {
        if let Some(node) = self.nodes.get_mut(name) {
            (node.listed, node.since) = (false, self.now);
        }
        self.server.remove(&format!("{NODES}/{name}"));
    }

    /// A machine stops; if it never comes back, what was bound to it is destroyed.
    pub fn stop_node(&mut self, name: &str, destroyed: bool) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        (node.up, node.since, node.destroyed) = (false, self.now, destroyed);
        for (uid, _) in self.pods_on(name) {
            self.members.stop(&uid);
        }
        if destroyed {
            let bound: Vec<String> = self.volumes_on(name);
            bound.iter().for_each(|volume| self.members.empty(volume));
        }
    }

    /// Volumes bound to a machine.
    pub fn volumes_on(&self, name: &str) -> Vec<String> {
        let volumes = self.server.under(VOLUMES);
        let on = volumes.iter().filter(|(_, v)| v["metadata"]["annotations"]["node"] == name);
        on.filter_map(|(p, _)| p.rsplit('/').next().map(str::to_owned)).collect()
    }

    fn pods_on(&self, name: &str) -> Vec<(String, Arc<str>)> {
        let pods = self.server.under(PODS);
        let on = pods.iter().filter(|(_, p)| p["spec"]["nodeName"] == name);
        on.map(|(path, p)| (uid(p), Arc::clone(path))).collect()
    }

    /// What everybody does in a second.
    pub fn tick(&mut self) {
        self.server.now = self.now / 1000;
        self.node_controller();
        self.collect_garbage();
        self.volume_controller();
        self.set_controller();
        self.scheduler();
        self.kubelets();
        let coin = self.random.bits();
        self.members.tick(self.now, coin);
        self.statuses();
        self.budget_controller();
    }

    fn node_controller(&mut self) {
        for (path, pod) in self.server.under(PODS) {
            let Some(node) = pod["spec"]["nodeName"].as_str().and_then(|n| self.nodes.get(n)) else {
                continue;
            };
            let silent = self.now - node.since;
            if !node.listed && silent >= NODE_GRACE {
                self.server.remove(&path);
            } else if !node.up && node.listed && silent >= NODE_EVICTS {
                let _ = self.server.delete(&path, &Value::Null);
            } else if !node.up && silent >= NODE_GRACE && is_ready(&pod) {
                let condition = condition("Ready", false, self.now);
                self.server.update(&path, |p| p["status"]["conditions"] = json!([condition]));
            }
        }
    }

    /// What belongs to objects that are gone goes, too.
    fn collect_garbage(&mut self) {
        let owners: BTreeSet<&str> =
            self.server.all().filter_map(|(_, o)| o["metadata"]["uid"].as_str()).collect();
        let orphan = |object: &Value| {
            let listed = object["metadata"]["ownerReferences"].as_array();
            let mut listed = listed.into_iter().flatten().peekable();
            listed.peek().is_some() && listed.all(|o| !owners.contains(o["uid"].as_str().unwrap_or_default()))
        };
        let orphans = self.server.all().filter(|(_, o)| orphan(o)).map(|(p, _)| p.clone());
        for path in orphans.collect::<Vec<_>>() {
            let _ = self.server.delete(&path, &Value::Null);
        }
    }

    fn set_controller(&mut self) {
        let Some(set) = self.server.object(SET) else {
            self.set_changed = None;
            return;
        };
        let generation = set["metadata"]["generation"].as_i64().unwrap_or(0);
        let since = match self.set_changed {
            Some((known, since)) if known == generation => since,
            _ => self.now,
        };
        self.set_changed = Some((generation, since));
        if self.now - since < self.manners.set_lag {
            return;
        }
        let revision = set.revision();
        let status = json!({ "observedGeneration": generation, "updateRevision": revision, "replicas": 0 });
        if set["status"] != status {
            self.server.update(SET, |s| s["status"] = status);
        }
        let replicas = set["spec"]["replicas"].as_u64().unwrap_or(0);
        for (path, pod) in self.server.under(PODS) {
            if pod["metadata"]["ownerReferences"][0]["uid"] != set["metadata"]["uid"] {
                continue;
            }
            if ordinal(&path) >= replicas {
                let _ = self.server.delete(&path, &Value::Null);
            } else if pod["status"]["phase"] == "Failed" {
                self.server.remove(&path);
            }
        }
        for ordinal in 0..replicas {
            self.make_pod(&set, ordinal, revision);
        }
    }

    fn make_pod(&mut self, set: &Value, ordinal: u64, revision: &str) {
        let (pod, claim) = (format!("{PODS}/demo-{ordinal}"), format!("{CLAIMS}/data-demo-{ordinal}"));
        let pending = self.server.get(&pod).map(|p| p["spec"]["nodeName"].is_null());
        if pending == Some(false) {
            return;
        }
        match self.server.get(&claim) {
            // A claim that is going is waited for, as the controller does.
            Some(live) if !live["metadata"]["deletionTimestamp"].is_null() => return,
            Some(_) => {}
            None => {
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
        }
        if pending.is_some() {
            return;
        }
        let mut metadata = set["spec"]["template"]["metadata"].clone();
        metadata["name"] = format!("demo-{ordinal}").into();
        metadata["namespace"] = "ns".into();
        metadata["labels"]["controller-revision-hash"] = revision.into();
        metadata["ownerReferences"] = json!([{ "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "demo", "uid": set["metadata"]["uid"] }]);
        let spec = set["spec"]["template"]["spec"].clone();
        self.server
            .make(&pod, json!({ "metadata": metadata, "spec": spec, "status": { "phase": "Pending" } }));
    }

    /// Claims that are deleted go once no pod holds them, and their volumes with them; the others grow.
    fn volume_controller(&mut self) {
        for (path, claim) in self.server.under(CLAIMS) {
            let pod = path.replace("persistentvolumeclaims/data-", "pods/");
            let volume = claim["spec"]["volumeName"].as_str().map(str::to_owned);
            if !claim["metadata"]["deletionTimestamp"].is_null() {
                // A pod that runs nowhere holds no claim.
                let held = self.server.get(&pod).is_some_and(|p| p["spec"]["nodeName"].is_string());
                if !held {
                    self.server.remove(&path);
                    if let Some(volume) = volume {
                        self.server.remove(&format!("{VOLUMES}/{volume}"));
                        self.members.empty(&volume);
                    }
                }
                continue;
            }
            let asked = &claim["spec"]["resources"]["requests"]["storage"];
            if volume.is_none() || claim["status"]["capacity"]["storage"] == *asked {
                self.growing.remove(&*path);
                continue;
            }
            let since = *self.growing.entry(path.to_string()).or_insert(self.now);
            let (asked, at) = (asked.clone(), stamp(since / 1000));
            let due = self.now - since >= self.manners.growth;
            if due && self.manners.grows_at_restart {
                let waits = json!([{ "type": "FileSystemResizePending", "status": "True", "lastTransitionTime": at }]);
                let running = self.server.get(&pod).is_some();
                self.server.update(&path, |c| match running {
                    true => c["status"]["conditions"] = waits,
                    false => {
                        c["status"]["capacity"]["storage"] = asked;
                        c["status"]["conditions"] = json!([]);
                    }
                });
            } else if due {
                self.server.update(&path, |c| c["status"]["capacity"]["storage"] = asked);
            }
        }
    }

    fn scheduler(&mut self) {
        for (path, pod) in self.server.under(PODS) {
            let unplaced =
                pod["spec"]["nodeName"].is_null() && pod["metadata"]["deletionTimestamp"].is_null();
            if !unplaced {
                continue;
            }
            let claim = path.replace("pods/", "persistentvolumeclaims/data-");
            let Some(claim_object) = self.server.get(&claim).cloned() else { continue };
            let volume = claim_object["spec"]["volumeName"].as_str().map(str::to_owned);
            let bound = volume.as_ref().and_then(|v| self.server.get(&format!("{VOLUMES}/{v}")));
            let host = bound.and_then(|v| {
                let terms = &v["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"];
                terms[0]["matchExpressions"][0]["values"][0].as_str().map(str::to_owned)
            });
            let mut fit: Vec<(usize, String)> = self
                .nodes
                .iter()
                .filter(|(_, n)| n.up && n.listed && !n.cordoned)
                .filter(|(_, n)| host.as_ref().is_none_or(|h| *h == n.host))
                .map(|(name, _)| (self.pods_on(name).len(), name.clone()))
                .collect();
            fit.sort();
            let Some((_, node)) = fit.into_iter().next() else {
                let message = "0 nodes are available";
                let told = json!([{ "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message }]);
                self.server.update(&path, |p| p["status"]["conditions"] = told);
                continue;
            };
            if volume.is_none() {
                self.provision(&claim, &node);
            }
            self.server.update(&path, |p| {
                p["spec"]["nodeName"] = node.into();
                p["status"] = json!({ "phase": "Pending" });
            });
        }
    }

    fn provision(&mut self, claim: &str, node: &str) {
        let volume = format!("pv-{}", self.next());
        let host = self.nodes.get(node).map(|n| n.host.clone()).unwrap_or_default();
        let mut spec = json!({});
        let mut annotations = json!({});
        if self.manners.local {
            let expression = json!({ "key": "kubernetes.io/hostname", "operator": "In", "values": [host] });
            spec["nodeAffinity"]["required"]["nodeSelectorTerms"] =
                json!([{ "matchExpressions": [expression] }]);
            annotations["node"] = node.into();
        }
        let metadata = json!({ "name": volume, "annotations": annotations });
        self.server.make(&format!("{VOLUMES}/{volume}"), json!({ "metadata": metadata, "spec": spec }));
        self.server.update(claim, |c| {
            c["spec"]["volumeName"] = volume.into();
            c["status"]["capacity"]["storage"] = c["spec"]["resources"]["requests"]["storage"].clone();
        });
    }

    /// Sidecars start and stop with their pods.
    fn kubelets(&mut self) {
        let mut there = BTreeSet::new();
        for (path, pod) in self.server.under(PODS) {
            let uid = uid(&pod);
            there.insert(uid.clone());
            let node = pod["spec"]["nodeName"].as_str().and_then(|n| self.nodes.get(n));
            let Some(up) = node.map(|n| n.up) else {
                if !pod["metadata"]["deletionTimestamp"].is_null() {
                    self.server.remove(&path);
                }
                continue;
            };
            if !up {
                continue;
            }
            if !pod["metadata"]["deletionTimestamp"].is_null() {
                self.members.hand_over(&uid);
                let since = *self.ended.entry(uid.clone()).or_insert(self.now);
                if self.now - since >= GRACE {
                    self.members.stop(&uid);
                    self.server.remove(&path);
                }
                continue;
            }
            let since = *self.started.entry(uid.clone()).or_insert(self.now);
            let runs = self.members.processes.contains_key(&uid);
            if runs || self.now - since < 1_000 || is_bad(&sidecar_image(&pod)) {
                continue;
            }
            let claim = path.replace("pods/", "persistentvolumeclaims/data-");
            let volume =
                self.server.get(&claim).and_then(|c| c["spec"]["volumeName"].as_str()).map(str::to_owned);
            if let Some(volume) = volume {
                let ip = match pod["status"]["podIP"].as_str() {
                    Some(ip) => ip.to_owned(),
                    None => format!("10.0.{}.{}", self.next() / 250, self.count % 250),
                };
                let name = path.rsplit('/').next().unwrap_or_default();
                self.members.start(self.now, &uid, name, &ip, &volume);
            }
        }
        let gone = |uid: &String| !there.contains(uid);
        let lost: Vec<String> = self.members.processes.keys().filter(|u| gone(u)).cloned().collect();
        lost.iter().for_each(|uid| self.members.stop(uid));
        self.started.retain(|uid, _| there.contains(uid));
        self.ended.retain(|uid, _| there.contains(uid));
        for faults in [&mut self.members.cut, &mut self.members.hung, &mut self.members.unheard] {
            faults.retain(|uid| there.contains(uid));
        }
    }

    /// Kubelets say what their pods are like.
    fn statuses(&mut self) {
        let now = self.now;
        for (path, pod) in self.server.under(PODS) {
            let node = pod["spec"]["nodeName"].as_str().and_then(|n| self.nodes.get(n));
            if node.is_none_or(|n| !n.up || !n.listed) {
                continue;
            }
            let process = self.members.processes.get(&uid(&pod));
            let image = sidecar_image(&pod);
            let crashes = has_crashing_application(&pod);
            let ready = process.is_some_and(|p| p.caught_up_once && p.state == ACTIVE) && !crashes;
            let ip = process.map(|p| p.ip.clone());
            let turned = is_ready(&pod) != ready || pod["status"]["conditions"][0]["type"] != "Ready";
            let waiting = if is_bad(&image) {
                Some(("synod", image, "ImagePullBackOff"))
            } else if crashes && process.is_some() {
                Some(("app", "app:crash".to_owned(), "CrashLoopBackOff"))
            } else {
                None
            };
            let status = &pod["status"];
            let runs =
                ip.as_ref().is_none_or(|ip| status["podIP"] == ip.as_str() && status["phase"] == "Running");
            if runs && !turned && waiting.is_none() && status["containerStatuses"].is_null() {
                continue;
            }
            self.server.update(&path, |p| {
                let status = &mut p["status"];
                if let Some(ip) = ip {
                    status["podIP"] = ip.into();
                    status["phase"] = "Running".into();
                }
                if turned {
                    status["conditions"] = json!([condition("Ready", ready, now)]);
                }
                match waiting {
                    Some((name, image, reason)) => {
                        status["containerStatuses"] = json!([{
                            "name": name, "image": image, "imageID": "", "ready": false, "restartCount": 0,
                            "state": { "waiting": { "reason": reason } },
                        }]);
                    }
                    None => {
                        if let Some(fields) = status.as_object_mut() {
                            fields.remove("containerStatuses");
                        }
                    }
                }
            });
        }
    }

    /// The disruption controller: it looks at a budget when the budget or a pod that it selects changes, and not when a
    /// pod stops being selected.
    fn budget_controller(&mut self) {
        let Some(budget) = self.server.object(BUDGET) else {
            self.seen = self.server.changes.len();
            return;
        };
        let news = &self.server.changes[self.seen..];
        let touches = |path: &str, object: &Value| {
            *path == *BUDGET || (path.starts_with(PODS) && selects(&budget, object))
        };
        let dirty = news.iter().any(|c| touches(&c.path, &c.object));
        self.seen = self.server.changes.len();
        if !dirty {
            return;
        }
        let pods: Vec<_> = self.server.under(PODS).into_iter().filter(|(_, p)| selects(&budget, p)).collect();
        let going = |name: &str| {
            let live = pods.iter().find(|(p, _)| p.ends_with(&format!("/{name}")));
            live.is_some_and(|(_, p)| p["metadata"]["deletionTimestamp"].is_null())
        };
        let disrupted = budget["status"]["disruptedPods"].as_object().cloned().unwrap_or_default();
        let disrupted: serde_json::Map<String, Value> =
            disrupted.into_iter().filter(|(name, _)| going(name)).collect();
        let healthy = pods.iter().filter(|(path, pod)| {
            let name = path.rsplit('/').next().unwrap_or_default();
            let leaves = !pod["metadata"]["deletionTimestamp"].is_null() || disrupted.contains_key(name);
            is_ready(pod) && !leaves
        });
        let healthy = i64::try_from(healthy.count()).unwrap_or(0);
        let wanted = budget["spec"]["minAvailable"].as_i64().unwrap_or(0);
        let status = json!({
            "observedGeneration": budget["metadata"]["generation"],
            "currentHealthy": healthy, "desiredHealthy": wanted,
            "disruptionsAllowed": (healthy - wanted).max(0), "expectedPods": pods.len(),
            "disruptedPods": disrupted,
        });
        self.server.update(BUDGET, |b| b["status"] = status);
    }

    /// The PaxosCluster's spec; null where there is none.
    pub fn spec(&self) -> &Value {
        self.server.get(CLUSTER).map_or(&Value::Null, |c| &c["spec"])
    }

    /// The log that this PaxosCluster's members hold, if one was formed.
    pub fn log(&self) -> Option<ClusterId> {
        let status = &self.server.get(CLUSTER)?["status"];
        let id = status["clusterId"].as_str().and_then(|id| id.parse::<ClusterId>().ok());
        id.filter(|id| self.members.logs.contains_key(id)).or_else(|| {
            let held = self.members.disks.values().filter(|d| d.confirmed).find_map(|d| d.log());
            held.filter(|id| self.members.logs.contains_key(id))
        })
    }

    /// The pod of a member that runs.
    pub fn pod_of(&self, member: MemberId) -> Option<(String, &Value)> {
        let (uid_of, process) = self.members.process_of(member)?;
        let path = format!("{PODS}/{}", process.pod);
        let pod = self.server.get(&path).filter(|p| uid(p) == *uid_of)?;
        Some((path, pod))
    }

    /// Whether a member takes part and nobody has asked its pod to go.
    pub fn is_healthy(&self, member: MemberId) -> bool {
        let size = self.server.get(SET).map(|s| s["spec"]["replicas"].as_u64().unwrap_or(0));
        self.members.serves(member)
            && self.pod_of(member).is_some_and(|(path, pod)| {
                pod["metadata"]["deletionTimestamp"].is_null() && size.is_some_and(|s| ordinal(&path) < s)
            })
    }

    /// The claim, pod path and disk of every ordinal: volume by claim.
    pub fn volume_of(&self, claim: &str) -> Option<String> {
        self.server.get(claim)?["spec"]["volumeName"].as_str().map(str::to_owned)
    }
}

const ACTIVE: synod_operator::observed::MemberState = synod_operator::observed::MemberState::Active;

fn condition(kind: &str, holds: bool, now: i64) -> Value {
    let word = if holds { "True" } else { "False" };
    json!({ "type": kind, "status": word, "lastTransitionTime": stamp(now / 1000) })
}

/// An object's UID.
pub fn uid(object: &Value) -> String {
    object["metadata"]["uid"].as_str().unwrap_or_default().to_owned()
}

/// The ordinal at the end of a path.
pub fn ordinal(path: &str) -> u64 {
    path.rsplit('-').next().and_then(|o| o.parse().ok()).unwrap_or(u64::MAX)
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let all = ["initContainers", "containers"].into_iter();
    all.filter_map(|key| pod["spec"][key].as_array()).flatten()
}

/// The sidecar's image.
pub fn sidecar_image(pod: &Value) -> String {
    let sidecar = containers(pod).find(|c| c["name"] == "synod");
    sidecar.and_then(|c| c["image"].as_str()).unwrap_or_default().to_owned()
}

fn is_bad(image: &str) -> bool {
    image.ends_with(":bad")
}

fn has_crashing_application(pod: &Value) -> bool {
    containers(pod).any(|c| c["image"] == "app:crash")
}
