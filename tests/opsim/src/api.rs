//! The API server: objects by path, versions and generations that count, preconditions, server-side apply as far
//! as one field manager beside people's edits needs it, graceful deletion, and evictions that ask the budget.

use std::collections::BTreeMap;
use std::ops::{Bound, Deref};
use std::sync::{Arc, OnceLock};

use kube::api::ObjectMeta;
use serde_json::{Value, json};
use synod_operator::build::content_hash;
use synod_operator::served::{begin, check_version, lay_over, merge_patch, split};

/// The namespace of everything.
pub const NAMESPACE: &str = "ns";
/// The PaxosCluster.
pub const CLUSTER: &str = "/apis/synod.dev/v1alpha1/namespaces/ns/paxosclusters/demo";
/// Its StatefulSet.
pub const SET: &str = "/apis/apps/v1/namespaces/ns/statefulsets/demo";
/// Its disruption budget.
pub const BUDGET: &str = "/apis/policy/v1/namespaces/ns/poddisruptionbudgets/demo";
/// Pods.
pub const PODS: &str = "/api/v1/namespaces/ns/pods";
/// Volume claims.
pub const CLAIMS: &str = "/api/v1/namespaces/ns/persistentvolumeclaims";
/// Volumes.
pub const VOLUMES: &str = "/api/v1/persistentvolumes";
/// Nodes.
pub const NODES: &str = "/api/v1/nodes";

/// All objects at one moment; shared until somebody writes.
pub type Objects = Arc<BTreeMap<Arc<str>, Arc<Object>>>;

/// A stored object, and what is made of it again and again: it never changes, another takes its place.
#[derive(Debug, Default)]
pub struct Object {
    value: Value,
    text: OnceLock<Vec<u8>>,
    revision: OnceLock<String>,
    metadata: OnceLock<ObjectMeta>,
}

impl Object {
    /// An object.
    pub fn new(value: Value) -> Object {
        Object { value, ..Object::default() }
    }

    /// Its JSON text.
    pub fn text(&self) -> &[u8] {
        self.text.get_or_init(|| self.value.to_string().into_bytes())
    }

    /// What a StatefulSet's template is called.
    pub fn revision(&self) -> &str {
        self.revision.get_or_init(|| content_hash(&self.value["spec"]["template"]))
    }

    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        self.metadata
            .get_or_init(|| serde_json::from_value(self.value["metadata"].clone()).unwrap_or_default())
    }
}

impl Deref for Object {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.value
    }
}

/// A request as the server judges it.
#[derive(Clone, Debug)]
pub struct Request {
    /// GET, POST, PUT, PATCH, DELETE.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The query.
    pub query: String,
    /// The content type.
    pub content: String,
    /// The body; null where there is none.
    pub body: Value,
}

/// What is answered, or a status and the server's words.
pub type Answer<T> = Result<T, (u16, String)>;

/// What changed, for watches and controllers.
#[derive(Clone, Debug)]
pub struct Change {
    /// The object's path.
    pub path: Arc<str>,
    /// The object as it is now, or as it was before it went.
    pub object: Arc<Object>,
    /// Whether it went.
    pub gone: bool,
    /// When, in seconds.
    pub at: i64,
}

/// The objects, and what changed.
#[derive(Debug, Default)]
pub struct Server {
    objects: Objects,
    applied: BTreeMap<String, Value>,
    counter: u64,
    /// Every change since the run began.
    pub changes: Vec<Change>,
    /// The time, in seconds; deletion stamps carry it.
    pub now: i64,
}

fn no<T>(code: u16, words: impl Into<String>) -> Answer<T> {
    Err((code, words.into()))
}

impl Server {
    /// Whether a request only reads.
    pub fn reads(request: &Request) -> bool {
        request.method == "GET"
    }

    /// Answers a request with JSON text. Reads are answered from `at`, where a cache of some age is asked.
    pub fn serve(&mut self, request: &Request, at: Option<&Objects>) -> Answer<Vec<u8>> {
        let (path, sub) = split(&request.path);
        match (request.method.as_str(), sub) {
            ("GET", _) => read(at.unwrap_or(&self.objects), path, &request.query),
            ("POST", _) if path.ends_with("/events") => Ok(request.body.to_string().into_bytes()),
            ("PATCH", _) if path.contains("/events/") => Ok(request.body.to_string().into_bytes()),
            _ => self.write(request, path, sub).map(|object| object.text().to_vec()),
        }
    }

    fn write(&mut self, request: &Request, path: &str, sub: Option<&str>) -> Answer<Arc<Object>> {
        let body = &request.body;
        match (request.method.as_str(), sub) {
            ("POST", Some("eviction")) => self.evict(path, &body["deleteOptions"]),
            ("POST", _) => self.create(path, body.clone()),
            ("PUT", Some("status")) => {
                let live = self.object(path).ok_or((404, "not found".to_owned()))?;
                check_version(&live, body)?;
                let mut next = (**live).clone();
                next["status"] = body["status"].clone();
                Ok(self.store(path, next))
            }
            ("PATCH", _) if request.content.contains("apply-patch") => {
                self.apply(path, body, request.query.contains("dryRun"))
            }
            ("PATCH", _) => self.merge(path, body),
            ("DELETE", _) => self.delete(path, body),
            other => no(405, format!("the server knows no {other:?}")),
        }
    }

    fn create(&mut self, path: &str, mut object: Value) -> Answer<Arc<Object>> {
        let name = object["metadata"]["name"].as_str().unwrap_or("generated").to_owned();
        let path = format!("{path}/{name}");
        if self.objects.contains_key(path.as_str()) {
            return no(409, "already exists");
        }
        object["metadata"]["uid"] = self.mint().into();
        begin(&mut object);
        Ok(self.store(&path, object))
    }

    fn apply(&mut self, path: &str, body: &Value, dry: bool) -> Answer<Arc<Object>> {
        let live = self.object(path);
        if let Some(live) = &live {
            check_version(live, body)?;
        } else if !body["metadata"]["resourceVersion"].is_null() {
            return no(409, "the object is gone");
        }
        let before = self.applied.get(path).cloned().unwrap_or(Value::Null);
        let mut next = live.as_ref().map_or_else(|| json!({ "metadata": {} }), |live| (***live).clone());
        lay_over(&mut next, body, &before);
        if let Some(object) = next["metadata"].as_object_mut() {
            object.remove("managedFields");
        }
        if dry {
            return Ok(Arc::new(Object::new(next)));
        }
        self.applied.insert(path.to_owned(), body.clone());
        match live {
            None => {
                next["metadata"]["uid"] = self.mint().into();
                begin(&mut next);
                Ok(self.store(path, next))
            }
            Some(live) => Ok(self.replace(path, &live, next)),
        }
    }

    fn merge(&mut self, path: &str, body: &Value) -> Answer<Arc<Object>> {
        let live = self.object(path).ok_or((404, "not found".to_owned()))?;
        check_version(&live, body)?;
        let uid = &body["metadata"]["uid"];
        if uid.is_string() && *uid != live["metadata"]["uid"] {
            return no(409, "another uid");
        }
        let mut next = (**live).clone();
        merge_patch(&mut next, body);
        next["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"].clone();
        Ok(self.replace(path, &live, next))
    }

    /// Somebody's edit: counts as a change of the object, and owns no field.
    pub fn edit(&mut self, path: &str, patch: &Value) {
        let Some(live) = self.object(path) else { return };
        let mut next = (**live).clone();
        merge_patch(&mut next, patch);
        self.replace(path, &live, next);
    }

    fn replace(&mut self, path: &str, live: &Arc<Object>, mut next: Value) -> Arc<Object> {
        if ***live == next {
            return Arc::clone(live);
        }
        if live["spec"] != next["spec"] {
            let generation = live["metadata"]["generation"].as_i64().unwrap_or(1) + 1;
            next["metadata"]["generation"] = generation.into();
        }
        self.store(path, next)
    }

    /// Deletes on the condition of the body's UID. Pods end gracefully, claims when no pod holds them.
    pub fn delete(&mut self, path: &str, options: &Value) -> Answer<Arc<Object>> {
        let live = self.object(path).ok_or((404, "not found".to_owned()))?;
        let uid = &options["preconditions"]["uid"];
        if uid.is_string() && *uid != live["metadata"]["uid"] {
            return no(409, "another uid");
        }
        let graceful = path.starts_with(PODS) && options["gracePeriodSeconds"] != 0;
        if graceful || path.starts_with(CLAIMS) {
            if live["metadata"]["deletionTimestamp"].is_null() {
                let mut next = (**live).clone();
                next["metadata"]["deletionTimestamp"] = stamp(self.now).into();
                self.store(path, next);
            }
            return Ok(live);
        }
        self.remove(path);
        let done = json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" });
        Ok(Arc::new(Object::new(done)))
    }

    /// The eviction API: the budget that selects the pod must allow it. Source: Kubernetes' API-initiated eviction.
    pub fn evict(&mut self, path: &str, options: &Value) -> Answer<Arc<Object>> {
        let pod = self.object(path).ok_or((404, "not found".to_owned()))?;
        let uid = &options["preconditions"]["uid"];
        if uid.is_string() && *uid != pod["metadata"]["uid"] {
            return no(409, "another uid");
        }
        let exempt = !pod["metadata"]["deletionTimestamp"].is_null() || pod["status"]["phase"] == "Pending";
        let budget = self.object(BUDGET).filter(|b| selects(b, &pod));
        if let (Some(budget), false) = (budget, exempt) {
            let status = &budget["status"];
            let number = |key: &str| status[key].as_i64().unwrap_or(0);
            if status["observedGeneration"] != budget["metadata"]["generation"] {
                return no(429, "the budget is not processed yet");
            }
            let healthy = number("currentHealthy") >= number("desiredHealthy");
            if is_ready(&pod) || !healthy {
                if number("disruptionsAllowed") < 1 {
                    return no(429, "Cannot evict pod as it would violate the pod's disruption budget.");
                }
                let mut next = (**budget).clone();
                next["status"]["disruptionsAllowed"] = (number("disruptionsAllowed") - 1).into();
                next["status"]["disruptedPods"][pod["metadata"]["name"].as_str().unwrap_or_default()] =
                    stamp(self.now).into();
                self.store(BUDGET, next);
            }
        }
        self.delete(path, options)
    }

    fn mint(&mut self) -> String {
        self.counter += 1;
        format!("uid-{}", self.counter)
    }

    /// Stores an object under a new resource version.
    pub fn store(&mut self, path: &str, mut value: Value) -> Arc<Object> {
        self.counter += 1;
        value["metadata"]["resourceVersion"] = self.counter.to_string().into();
        let object = Arc::new(Object::new(value));
        let known = self.objects.get_key_value(path).map(|(path, _)| Arc::clone(path));
        let path = known.unwrap_or_else(|| path.into());
        Arc::make_mut(&mut self.objects).insert(Arc::clone(&path), Arc::clone(&object));
        self.changes.push(Change { path, object: Arc::clone(&object), gone: false, at: self.now });
        object
    }

    /// Makes an object, as a controller does.
    pub fn make(&mut self, path: &str, mut object: Value) {
        object["metadata"]["uid"] = self.mint().into();
        begin(&mut object);
        self.store(path, object);
    }

    /// Changes an object where that makes a difference; its generation follows its spec.
    pub fn update(&mut self, path: &str, change: impl FnOnce(&mut Value)) {
        let Some(live) = self.object(path) else { return };
        let mut next = (**live).clone();
        change(&mut next);
        self.replace(path, &live, next);
    }

    /// An object's value.
    pub fn get(&self, path: &str) -> Option<&Value> {
        self.objects.get(path).map(|object| &***object)
    }

    /// An object.
    pub fn object(&self, path: &str) -> Option<Arc<Object>> {
        self.objects.get(path).cloned()
    }

    /// All objects as they are now.
    pub fn snapshot(&self) -> Objects {
        Arc::clone(&self.objects)
    }

    /// Takes an object away at once.
    pub fn remove(&mut self, path: &str) {
        self.applied.remove(path);
        if let Some((path, object)) = Arc::make_mut(&mut self.objects).remove_entry(path) {
            self.changes.push(Change { path, object, gone: true, at: self.now });
        }
    }

    /// Paths and objects below a collection.
    pub fn under(&self, collection: &str) -> Vec<(Arc<str>, Arc<Object>)> {
        below(&self.objects, collection).map(|(p, o)| (Arc::clone(p), Arc::clone(o))).collect()
    }

    /// Paths and objects of everything.
    pub fn all(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Object>)> {
        self.objects.iter()
    }
}

fn below<'a>(
    objects: &'a Objects,
    collection: &str,
) -> impl Iterator<Item = (&'a Arc<str>, &'a Arc<Object>)> + use<'a> {
    let prefix = format!("{collection}/");
    let from = objects.range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded));
    from.take_while(move |(path, _)| path.starts_with(&prefix))
}

/// A time as the API writes it.
pub fn stamp(second: i64) -> String {
    k8s_openapi::jiff::Timestamp::from_second(second).map(|t| t.to_string()).unwrap_or_default()
}

/// Whether a budget's selector takes a pod.
pub fn selects(budget: &Value, pod: &Value) -> bool {
    let wanted = budget["spec"]["selector"]["matchLabels"].as_object();
    wanted.is_some_and(|labels| labels.iter().all(|(k, v)| pod["metadata"]["labels"][k] == *v))
}

/// Whether a pod's condition says that it is ready.
pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

fn read(objects: &Objects, path: &str, query: &str) -> Answer<Vec<u8>> {
    if let Some(object) = objects.get(path) {
        return Ok(object.text().to_vec());
    }
    if !is_collection(path) {
        return no(404, "not found");
    }
    let selector = query.split('&').find_map(|q| q.strip_prefix("labelSelector="));
    let selector = selector.map(|s| s.replace("%2F", "/").replace("%3D", "="));
    let pair = selector.as_deref().and_then(|s| s.split_once('='));
    let fits = |object: &Object| pair.is_none_or(|(k, v)| object["metadata"]["labels"][k] == v);
    let found = below(objects, path).filter(|(_, object)| fits(object));
    let items: Vec<&[u8]> = found.map(|(_, object)| object.text()).collect();
    let mut text = br#"{"kind":"List","apiVersion":"v1","metadata":{},"items":["#.to_vec();
    text.extend(items.join(&b','));
    text.extend(b"]}");
    Ok(text)
}

/// Paths of collections end with a plural behind the namespace, or name no namespace at all.
fn is_collection(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    match parts.iter().position(|p| *p == "namespaces") {
        Some(at) => parts.len() == at + 3,
        None => parts.len() <= 3,
    }
}
