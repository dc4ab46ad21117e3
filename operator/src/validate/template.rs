//! What a pod template may not use. The server's dry run judges the rest. docs: operator-rules.md, "Template".

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{objects, text};
use crate::names::{CLAIM, CONTAINER, ClusterName};

/// Refuses what is reserved, by name. `secrets`: the Secrets that hold the members' keys.
pub(super) fn check(
    template: &Map<String, Value>,
    name: &ClusterName,
    secrets: &[String],
) -> Result<(), String> {
    if template.contains_key("volumeClaimTemplates") {
        return Err(
            "volumeClaimTemplates is refused: the members' volumes come from spec.storage; remove it".into(),
        );
    }
    for (map, what) in [("labels", "label"), ("annotations", "annotation")] {
        let keys = template.get("metadata").and_then(|m| m.get(map)).and_then(Value::as_object);
        if let Some(key) = keys.into_iter().flatten().map(|(k, _)| k).find(|k| k.starts_with("synod.dev/")) {
            return Err(format!("the {what} '{key}' is reserved (synod.dev/*): remove it"));
        }
    }
    let spec = template.get("spec").and_then(Value::as_object).ok_or("it has no spec: add one")?;
    if spec.contains_key("volumeClaimTemplates") {
        return Err(
            "volumeClaimTemplates is refused: the members' volumes come from spec.storage; remove it".into(),
        );
    }
    if spec.get("hostNetwork").and_then(Value::as_bool) == Some(true) {
        return Err("hostNetwork is refused: members find each other by pod addresses; remove it".into());
    }
    for volume in objects(spec, "volumes") {
        check_volume(volume, name, secrets)?;
    }
    if objects(spec, "containers").next().is_none() && objects(spec, "initContainers").next().is_some() {
        return Err("spec.initContainers need spec.containers: name at least one container".into());
    }
    let mut seen = BTreeSet::new();
    for container in objects(spec, "containers").chain(objects(spec, "initContainers")) {
        check_container(container, secrets, &mut seen)?;
    }
    Ok(())
}

/// Volumes of reserved names, and the members' keys and disks under any name.
fn check_volume(volume: &Map<String, Value>, name: &ClusterName, secrets: &[String]) -> Result<(), String> {
    let called = text(volume, "name");
    if is_reserved(called) {
        return Err(format!("the volume name '{called}' is reserved (data, synod-*): rename the volume"));
    }
    let part = |key: &str| volume.get(key).and_then(Value::as_object);
    let whole = part("secret").map(|s| text(s, "secretName"));
    let projected = part("projected").into_iter().flat_map(|p| objects(p, "sources"));
    let parts = projected.filter_map(|s| s.get("secret").and_then(Value::as_object)).map(|s| text(s, "name"));
    if let Some(secret) = whole.into_iter().chain(parts).find(|s| secrets.iter().any(|own| own == s)) {
        return Err(format!(
            "the volume '{called}' mounts the Secret {secret}, which holds the members' keys: remove it"
        ));
    }
    let claim = part("persistentVolumeClaim").map(|c| text(c, "claimName")).unwrap_or_default();
    if name.ordinal_of_claim(claim).is_some() {
        return Err(format!("the volume '{called}' mounts {claim}, a member's own disk: remove it"));
    }
    Ok(())
}

fn is_reserved(volume: &str) -> bool {
    volume == CLAIM || volume.starts_with("synod-")
}

fn check_container(
    container: &Map<String, Value>,
    secrets: &[String],
    seen: &mut BTreeSet<String>,
) -> Result<(), String> {
    let name = text(container, "name");
    if name == CONTAINER {
        return Err(format!("the container name '{name}' is reserved for the sidecar: rename the container"));
    }
    if !seen.insert(name.to_owned()) {
        return Err(format!("two containers are called '{name}': rename one"));
    }
    let holds_keys = |reference: Option<&Value>| {
        let secret = reference.and_then(Value::as_object).map(|r| text(r, "name")).unwrap_or_default();
        secrets.iter().any(|own| own == secret)
    };
    for variable in objects(container, "env") {
        let key = text(variable, "name");
        if key.starts_with("SYNOD_") {
            return Err(format!("container '{name}': the variable '{key}' is reserved (SYNOD_*): remove it"));
        }
        if holds_keys(variable.get("valueFrom").and_then(|v| v.get("secretKeyRef"))) {
            return Err(format!(
                "container '{name}': the variable '{key}' reads the members' keys: remove it"
            ));
        }
    }
    if objects(container, "envFrom").any(|source| holds_keys(source.get("secretRef"))) {
        return Err(format!("container '{name}': envFrom reads the members' keys: remove it"));
    }
    for list in ["volumeMounts", "volumeDevices"] {
        if let Some(volume) = objects(container, list).map(|m| text(m, "name")).find(|v| is_reserved(v)) {
            return Err(format!(
                "container '{name}': the volume '{volume}' is the sidecar's (data, synod-*): remove the mount; \
                 the socket is mounted by itself"
            ));
        }
    }
    for mount in objects(container, "volumeMounts") {
        let path = text(mount, "mountPath").trim_end_matches('/');
        if path == "/run/synod" || path.starts_with("/run/synod/") || path == "/var/run/synod" {
            return Err(format!(
                "container '{name}': the path '{path}' is reserved for the socket: mount elsewhere"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refusal(template: &Value) -> Option<String> {
        let name =
            ClusterName { namespace: "ns".into(), name: "demo".into(), uid: "u".into(), domain: "d".into() };
        let secrets = [name.tls_secret(), name.ca_secret(), "provided".into()];
        check(template.as_object().unwrap(), &name, &secrets).err()
    }

    fn app(extra: Value) -> Value {
        let mut app = json!({ "name": "app", "image": "a" });
        app.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!({ "spec": { "containers": [app] } })
    }

    fn volume(source: Value) -> Value {
        let mut volume = json!({ "name": "mine" });
        volume.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
        json!({ "spec": { "containers": [{ "name": "app" }], "volumes": [volume] } })
    }

    #[test]
    fn what_is_reserved_is_refused_by_name() {
        let plain = json!({ "name": "app", "image": "a" });
        let cases = [
            (json!({}), "no spec"),
            (json!({ "spec": { "initContainers": [plain] } }), "at least one container"),
            (json!({ "spec": { "hostNetwork": true, "containers": [plain] } }), "hostNetwork"),
            (json!({ "spec": { "containers": [{ "name": "synod", "image": "a" }] } }), "'synod' is reserved"),
            (
                json!({ "spec": { "containers": [plain], "initContainers": [{ "name": "synod" }] } }),
                "'synod' is reserved",
            ),
            (json!({ "spec": { "containers": [plain, plain] } }), "two containers"),
            (json!({ "spec": { "containers": [plain], "volumes": [{ "name": "synod-x" }] } }), "volume name"),
            (json!({ "spec": { "containers": [plain], "volumes": [{ "name": "data" }] } }), "volume name"),
            (app(json!({ "env": [{ "name": "SYNOD_X" }] })), "SYNOD_X"),
            (app(json!({ "volumeMounts": [{ "name": "v", "mountPath": "/run/synod/" }] })), "/run/synod"),
            (
                json!({ "metadata": { "labels": { "synod.dev/x": "1" } }, "spec": { "containers": [plain] } }),
                "synod.dev/x",
            ),
            (
                json!({ "volumeClaimTemplates": [], "spec": { "containers": [plain] } }),
                "volumeClaimTemplates",
            ),
        ];
        for (template, word) in cases {
            let why = refusal(&template).unwrap();
            assert!(why.contains(word), "{template}: {why}");
        }
        assert_eq!(refusal(&app(json!({}))), None);
    }

    /// O20: the application cannot get at keys and log, whatever it calls the volume.
    #[test]
    fn o20_keys_and_log_are_in_reach_of_no_application() {
        for (template, word) in [
            (app(json!({ "volumeMounts": [{ "name": "synod-tls", "mountPath": "/k" }] })), "'synod-tls'"),
            (app(json!({ "volumeMounts": [{ "name": "data", "mountPath": "/d" }] })), "'data'"),
            (app(json!({ "volumeDevices": [{ "name": "data", "devicePath": "/d" }] })), "'data'"),
            (volume(json!({ "secret": { "secretName": "demo-tls" } })), "demo-tls"),
            (volume(json!({ "secret": { "secretName": "demo-ca" } })), "demo-ca"),
            (volume(json!({ "secret": { "secretName": "provided" } })), "provided"),
            (
                volume(json!({ "projected": { "sources": [{ "secret": { "name": "demo-tls" } }] } })),
                "demo-tls",
            ),
            (volume(json!({ "persistentVolumeClaim": { "claimName": "data-demo-1" } })), "data-demo-1"),
            (app(json!({ "envFrom": [{ "secretRef": { "name": "demo-ca" } }] })), "envFrom"),
            (
                app(
                    json!({ "env": [{ "name": "K", "valueFrom": { "secretKeyRef": { "name": "demo-ca" } } }] }),
                ),
                "'K'",
            ),
        ] {
            let why = refusal(&template).unwrap_or_else(|| panic!("admitted: {template}"));
            assert!(why.contains(word), "{template}: {why}");
        }
        assert_eq!(refusal(&volume(json!({ "secret": { "secretName": "mine" } }))), None);
        assert_eq!(
            refusal(&volume(json!({ "persistentVolumeClaim": { "claimName": "data-other-1" } }))),
            None
        );
    }

    /// O24: pull secrets and placement need no container.
    #[test]
    fn o24_a_template_without_containers_says_where_the_members_run() {
        let template =
            json!({ "spec": { "imagePullSecrets": [{ "name": "s" }], "nodeSelector": { "a": "b" } } });
        assert_eq!(refusal(&template), None);
    }
}
