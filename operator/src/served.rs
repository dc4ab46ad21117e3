//! What an API server does with objects that are written, for the two that the tests keep in memory: the one of the unit tests
//! and the one of the simulator (`tests/opsim`). Only they are built with it.

use serde_json::{Map, Value, json};

/// A refusal as the API server answers it.
pub fn refusal(code: u16, message: &str) -> Value {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        422 => "Invalid",
        429 => "TooManyRequests",
        _ => "Unknown",
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "code": code, "message": message, "reason": reason,
    })
}

/// The path of the object, and what is asked of it beside.
pub fn split(path: &str) -> (&str, Option<&str>) {
    for sub in ["status", "eviction"] {
        if let Some(object) = path.strip_suffix(&format!("/{sub}")) {
            return (object, Some(sub));
        }
    }
    (path, None)
}

/// Only what has a spec has a generation.
pub fn begin(object: &mut Value) {
    if !object["spec"].is_null() {
        object["metadata"]["generation"] = 1.into();
    }
}

/// A write that names a version is refused unless that is the live one.
///
/// # Errors
/// The code and the words of the refusal.
pub fn check_version(live: &Value, body: &Value) -> Result<(), (u16, String)> {
    let wanted = &body["metadata"]["resourceVersion"];
    if wanted.is_string() && *wanted != live["metadata"]["resourceVersion"] {
        return Err((409, "another resourceVersion".into()));
    }
    Ok(())
}

/// Lays what is applied over what is there; what was applied before and is not any more goes.
pub fn lay_over(live: &mut Value, body: &Value, before: &Value) {
    let (Some(fields), Some(wanted)) = (live.as_object_mut(), body.as_object()) else {
        *live = body.clone();
        return;
    };
    for (key, value) in wanted {
        if key == "resourceVersion" {
            continue;
        }
        let slot = fields.entry(key.clone()).or_insert_with(|| match value {
            Value::Object(_) => Value::Object(Map::new()),
            _ => Value::Null,
        });
        lay_over(slot, value, &before[key]);
    }
    for key in before.as_object().into_iter().flatten().map(|(key, _)| key) {
        if !wanted.contains_key(key) {
            fields.remove(key);
        }
    }
}

/// Lays a merge patch over an object (RFC 7396).
pub fn merge_patch(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Some(fields) = target.as_object_mut() else { return };
    for (key, value) in patch {
        if value.is_null() {
            fields.remove(key);
        } else {
            merge_patch(fields.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}
