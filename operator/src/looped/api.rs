//! A small API server in memory: objects by path, resource versions and generations that count, preconditions,
//! server-side apply as far as one field manager beside people's edits needs it, and refusals on demand.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::served::{begin, check_version, lay_over, merge_patch, refusal, split};

/// A request that shall be refused.
#[derive(Clone, Debug)]
pub(crate) struct Refuse {
    /// The method; empty: any.
    pub(crate) method: &'static str,
    /// A part of the path.
    pub(crate) path: String,
    /// The HTTP status.
    pub(crate) code: u16,
    /// The server's words.
    pub(crate) words: &'static str,
}

/// The objects, and what was asked.
#[derive(Default)]
pub(crate) struct Server {
    objects: BTreeMap<String, Value>,
    applied: BTreeMap<String, Value>,
    counter: u64,
    /// Every request but the reads, as `METHOD path`.
    pub(crate) writes: Vec<String>,
    /// How many reads there were.
    pub(crate) reads: usize,
    /// What is refused.
    pub(crate) refuse: Vec<Refuse>,
}

/// A request as the server judges it.
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) query: &'a str,
    pub(crate) content: &'a str,
    pub(crate) body: Value,
}

type Answer = Result<Value, (u16, String)>;

fn no(code: u16, words: impl Into<String>) -> Answer {
    Err((code, words.into()))
}

impl Server {
    pub(crate) fn answer(&mut self, asked: Asked<'_>) -> (u16, Value) {
        let reads = asked.method == "GET";
        self.reads += usize::from(reads);
        if !reads && !asked.query.contains("dryRun") && !asked.path.contains("/events") {
            self.writes.push(format!("{} {}", asked.method, asked.path));
        }
        let refused = self.refuse.iter().find(|r| {
            (r.method.is_empty() || r.method == asked.method) && asked.path.contains(&r.path) && !reads
        });
        let answer = match refused {
            Some(r) => no(r.code, r.words),
            None => self.serve(&asked),
        };
        match answer {
            Ok(value) => (200, value),
            Err((code, message)) => (code, refusal(code, &message)),
        }
    }

    fn serve(&mut self, asked: &Asked<'_>) -> Answer {
        let (path, sub) = split(asked.path);
        match (asked.method, sub) {
            ("GET", _) => self.read(path, asked.query),
            ("POST", Some("eviction")) => {
                match asked.body["deleteOptions"]["preconditions"]["uid"].is_string() {
                    true => self.delete(path, &asked.body["deleteOptions"]),
                    false => no(422, "an eviction without a UID"),
                }
            }
            ("POST", _) => self.create(path, asked.body.clone()),
            ("PUT", Some("status")) => {
                let live = self.objects.get(path).cloned().ok_or((404, "not found".to_owned()))?;
                check_version(&live, &asked.body)?;
                let mut next = live;
                next["status"] = asked.body["status"].clone();
                Ok(self.store(path, next))
            }
            ("PATCH", _) if asked.content.contains("apply-patch") => {
                self.apply(path, &asked.body, asked.query.contains("dryRun"))
            }
            ("PATCH", _) => self.merge(path, &asked.body),
            ("DELETE", _) => self.delete(path, &asked.body),
            other => panic!("the fake server knows no {other:?}"),
        }
    }

    fn read(&self, path: &str, query: &str) -> Answer {
        if let Some(object) = self.objects.get(path) {
            return Ok(object.clone());
        }
        if !is_collection(path) {
            return no(404, "not found");
        }
        let selector = query.split('&').find_map(|q| q.strip_prefix("labelSelector="));
        let selector = selector.map(|s| s.replace("%2F", "/").replace("%3D", "="));
        let fits = |object: &Value| {
            selector
                .as_deref()
                .and_then(|s| s.split_once('='))
                .is_none_or(|(k, v)| object["metadata"]["labels"][k] == v)
        };
        let prefix = format!("{path}/");
        let items: Vec<&Value> =
            self.objects.iter().filter(|(p, o)| p.starts_with(&prefix) && fits(o)).map(|(_, o)| o).collect();
        Ok(json!({ "kind": "List", "apiVersion": "v1", "metadata": {}, "items": items }))
    }

    fn create(&mut self, path: &str, mut object: Value) -> Answer {
        let name = object["metadata"]["name"].as_str().unwrap_or("generated").to_owned();
        let path = format!("{path}/{name}");
        if self.objects.contains_key(&path) {
            return no(409, "already exists");
        }
        object["metadata"]["uid"] = self.mint().into();
        begin(&mut object);
        Ok(self.store(&path, object))
    }

    fn apply(&mut self, path: &str, body: &Value, dry: bool) -> Answer {
        let live = self.objects.get(path).cloned();
        if let Some(live) = &live {
            check_version(live, body)?;
        } else if !body["metadata"]["resourceVersion"].is_null() {
            return no(409, "the object is gone");
        }
        let before = self.applied.get(path).cloned().unwrap_or(Value::Null);
        let mut next = live.clone().unwrap_or_else(|| json!({ "metadata": {} }));
        lay_over(&mut next, body, &before);
        if let Some(object) = next["metadata"].as_object_mut() {
            object.remove("managedFields");
        }
        if dry {
            return Ok(next);
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

    fn merge(&mut self, path: &str, body: &Value) -> Answer {
        let live = self.objects.get(path).cloned().ok_or((404, "not found".to_owned()))?;
        check_version(&live, body)?;
        if body["metadata"]["uid"].is_string() && body["metadata"]["uid"] != live["metadata"]["uid"] {
            return no(409, "another uid");
        }
        let mut next = live.clone();
        merge_patch(&mut next, body);
        next["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"].clone();
        Ok(self.replace(path, &live, next))
    }

    /// Somebody's edit: counts as a change of the object, and owns no field.
    pub(crate) fn edit(&mut self, path: &str, patch: &Value) {
        let live = self.objects[path].clone();
        let mut next = live.clone();
        merge_patch(&mut next, patch);
        self.replace(path, &live, next);
    }

    fn replace(&mut self, path: &str, live: &Value, mut next: Value) -> Value {
        if without_versions(live) == without_versions(&next) {
            return live.clone();
        }
        if live["spec"] != next["spec"] {
            let generation = live["metadata"]["generation"].as_i64().unwrap_or(1) + 1;
            next["metadata"]["generation"] = generation.into();
        }
        self.store(path, next)
    }

    fn delete(&mut self, path: &str, options: &Value) -> Answer {
        let live = self.objects.get(path).cloned().ok_or((404, "not found".to_owned()))?;
        let uid = &options["preconditions"]["uid"];
        if uid.is_string() && *uid != live["metadata"]["uid"] {
            return no(409, "another uid");
        }
        // A claim is held by the pod that uses it.
        if path.contains("persistentvolumeclaims") {
            let mut next = live;
            next["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            return Ok(self.store(path, next));
        }
        self.objects.remove(path);
        self.applied.remove(path);
        Ok(json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" }))
    }

    fn mint(&mut self) -> String {
        self.counter += 1;
        format!("uid-{}", self.counter)
    }

    /// Stores an object under a new resource version.
    pub(crate) fn store(&mut self, path: &str, mut object: Value) -> Value {
        self.counter += 1;
        object["metadata"]["resourceVersion"] = self.counter.to_string().into();
        self.objects.insert(path.to_owned(), object.clone());
        object
    }

    /// Makes an object, as a controller does.
    pub(crate) fn make(&mut self, path: &str, mut object: Value) {
        object["metadata"]["uid"] = self.mint().into();
        self.store(path, object);
    }

    pub(crate) fn get(&self, path: &str) -> Option<&Value> {
        self.objects.get(path)
    }

    pub(crate) fn remove(&mut self, path: &str) {
        self.objects.remove(path);
    }

    /// Paths below a collection.
    pub(crate) fn under(&self, collection: &str) -> Vec<String> {
        let prefix = format!("{collection}/");
        self.objects.keys().filter(|p| p.starts_with(&prefix)).cloned().collect()
    }
}

/// Paths of collections end with a plural behind the namespace, or name no namespace at all.
fn is_collection(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    match parts.iter().position(|p| *p == "namespaces") {
        Some(at) => parts.len() == at + 3,
        None => parts.len() <= 4,
    }
}

fn without_versions(object: &Value) -> Value {
    let mut object = object.clone();
    object["metadata"]["resourceVersion"] = Value::Null;
    object["metadata"]["generation"] = Value::Null;
    object
}
