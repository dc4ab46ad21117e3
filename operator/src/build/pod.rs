//! The pod: the user's template with the sidecar in it.
//!
//! The sidecar is the first init container with `restartPolicy: Always`, so that no init container of the
//! user's can hold the voter down; where the template has no containers it is the one ordinary container.
//! docs: operator-rules.md, "Pod".

use serde_json::{Map, Value, json};

use crate::crd::{PodSecurity, PodTemplate, Resources, Socket, Tls, TlsMode};
use crate::names::{CLAIM, CONTAINER, LABEL_CLUSTER, PORT_ADMIN, PORT_HEALTH, PORT_PEER};
use crate::validate::Desired;

use super::{labels, selector};

const SOCKET_VOLUME: &str = "synod-socket";
const TLS_VOLUME: &str = "synod-tls";
const CONFIG_VOLUME: &str = "synod-config";
const SOCKET_DIR: &str = "/run/synod";
const SOCKET_PATH: &str = "/run/synod/synod.sock";
/// The sidecar's user and group; nobody's on any distribution.
const UID: i64 = 65532;
/// Shortest grace: the hand-over takes up to 10 s of it, draining the rest.
const MIN_GRACE: i64 = 60;

/// The parts of the spec that shape a pod.
pub(super) struct Parts<'a> {
    pub(super) template: Option<&'a PodTemplate>,
    pub(super) socket: &'a Socket,
    pub(super) resources: Option<&'a Resources>,
    pub(super) pod_security: PodSecurity,
    pub(super) tls: &'a Tls,
}

/// The StatefulSet's pod template.
pub(super) fn template(desired: &Desired, parts: &Parts<'_>) -> Value {
    let restricted = parts.pod_security == PodSecurity::Restricted;
    let user = parts.template.cloned().unwrap_or_default();
    let mut metadata = object(user.get("metadata"));
    let mut merged = labels(&desired.name, "member");
    merged.extend(object(metadata.get("labels")));
    merged.insert(LABEL_CLUSTER.into(), desired.name.name.clone().into());
    metadata.insert("labels".into(), merged.into());

    let mut spec = object(user.get("spec"));
    let mut containers: Vec<Value> = array(spec.get("containers"));
    let mut init: Vec<Value> = array(spec.get("initContainers"));
    for container in containers.iter_mut().chain(init.iter_mut()) {
        outfit(container, restricted);
    }
    let mut sidecar = sidecar(desired, parts);
    if !containers.is_empty() {
        sidecar["restartPolicy"] = "Always".into();
        init.insert(0, sidecar);
        spec.insert("initContainers".into(), init.into());
    } else {
        containers.push(sidecar);
    }
    spec.insert("containers".into(), containers.into());

    let mut volumes = array(spec.get("volumes"));
    volumes.extend(own_volumes(desired, parts.tls));
    spec.insert("volumes".into(), volumes.into());

    if restricted {
        let mut context = object(spec.get("securityContext"));
        context.entry("runAsNonRoot").or_insert(true.into());
        context.entry("runAsUser").or_insert(UID.into());
        context.entry("runAsGroup").or_insert(UID.into());
        context.entry("fsGroup").or_insert(UID.into());
        context.entry("fsGroupChangePolicy").or_insert("OnRootMismatch".into());
        context.entry("seccompProfile").or_insert(json!({ "type": "RuntimeDefault" }));
        spec.insert("securityContext".into(), context.into());
    }
    spec.entry("automountServiceAccountToken").or_insert(false.into());
    spec.entry("enableServiceLinks").or_insert(false.into());
    let grace = spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0);
    spec.insert("terminationGracePeriodSeconds".into(), grace.max(MIN_GRACE).into());
    let mut affinity = object(spec.get("affinity"));
    affinity.entry("podAntiAffinity").or_insert_with(|| apart(desired));
    spec.insert("affinity".into(), affinity.into());
    let mut whole = user;
    whole.insert("metadata".into(), metadata.into());
    whole.insert("spec".into(), spec.into());
    Value::Object(whole)
}

/// On hosts of their own, and in zones of their own, as far as it goes: a rule that must be met would leave a pod
/// whose volume is pinned to a node pending for ever. Spread constraints score nothing where the nodes lack one of
/// their keys, which is so wherever there are no zones (docs: decisions/0034).
fn apart(desired: &Desired) -> Value {
    let by = |weight: u32, key: &str| {
        let term = json!({ "topologyKey": key, "labelSelector": { "matchLabels": selector(&desired.name) } });
        json!({ "weight": weight, "podAffinityTerm": term })
    };
    let preferred = [by(100, "kubernetes.io/hostname"), by(50, "topology.kubernetes.io/zone")];
    json!({ "preferredDuringSchedulingIgnoredDuringExecution": preferred })
}

/// Gives an application's container the socket, and what Pod Security `restricted` asks of it where the
/// user says nothing.
fn outfit(container: &mut Value, restricted: bool) {
    let Some(container) = container.as_object_mut() else { return };
    let mut env = array(container.get("env"));
    env.push(json!({ "name": "SYNOD_SOCKET", "value": SOCKET_PATH }));
    container.insert("env".into(), env.into());
    let mut mounts = array(container.get("volumeMounts"));
    // Read-only: connecting works, replacing the socket does not.
    mounts.push(json!({ "name": SOCKET_VOLUME, "mountPath": SOCKET_DIR, "readOnly": true }));
    container.insert("volumeMounts".into(), mounts.into());
    if restricted {
        let mut context = object(container.get("securityContext"));
        context.entry("allowPrivilegeEscalation").or_insert(false.into());
        context.entry("capabilities").or_insert(json!({ "drop": ["ALL"] }));
        container.insert("securityContext".into(), context.into());
    }
}

fn own_volumes(desired: &Desired, tls: &Tls) -> Vec<Value> {
    let mut volumes = vec![
        json!({ "name": SOCKET_VOLUME, "emptyDir": {} }),
        json!({ "name": CONFIG_VOLUME, "configMap": { "name": desired.name.config_map() } }),
    ];
    if let Some(secret) = tls_secret(desired, tls) {
        volumes.push(json!({ "name": TLS_VOLUME, "secret": { "secretName": secret, "defaultMode": 0o440 } }));
    }
    volumes
}

/// The Secret whose pairs the pods mount.
fn tls_secret(desired: &Desired, tls: &Tls) -> Option<String> {
    let Tls { mode, secret_name } = tls;
    match mode {
        TlsMode::Managed => Some(desired.name.tls_secret()),
        TlsMode::Provided => secret_name.clone(),
        TlsMode::Disabled => None,
    }
}

/// The sidecar's container.
fn sidecar(desired: &Desired, parts: &Parts<'_>) -> Value {
    let probe = |path: &str, period: u32, failures: u32| {
        json!({
            "httpGet": { "path": path, "port": PORT_HEALTH, "scheme": "HTTP" },
            "periodSeconds": period,
            "timeoutSeconds": 3,
            "failureThreshold": failures,
        })
    };
    let port = |name: &str, port: u16| json!({ "name": name, "containerPort": port, "protocol": "TCP" });
    let mut mounts = vec![
        json!({ "name": CLAIM, "mountPath": "/data" }),
        json!({ "name": SOCKET_VOLUME, "mountPath": SOCKET_DIR }),
        json!({ "name": CONFIG_VOLUME, "mountPath": "/etc/synod/config", "readOnly": true }),
    ];
    if parts.tls.mode != TlsMode::Disabled {
        mounts.push(json!({ "name": TLS_VOLUME, "mountPath": "/etc/synod/tls", "readOnly": true }));
    }
    let resources = match parts.resources {
        Some(resources) => Value::Object(resources.clone()),
        None => json!({ "requests": { "cpu": "50m", "memory": "64Mi" } }),
    };
    let mut container = json!({
        "name": CONTAINER,
        "image": desired.image,
        "command": ["synod-sidecar"],
        "args": arguments(desired, parts.tls),
        "env": environment(parts.socket),
        "ports": [port("peer", PORT_PEER), port("admin", PORT_ADMIN), port("health", PORT_HEALTH)],
        "volumeMounts": mounts,
        "resources": resources,
        // Half an hour: the recovery of a large store must not be killed.
        "startupProbe": probe("/startupz", 1, 1800),
        "readinessProbe": probe("/readyz", 2, 2),
        "livenessProbe": probe("/livez", 10, 6),
        "lifecycle": { "preStop": { "exec": { "command": ["synod-sidecar", "prestop"] } } },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        },
    });
    if parts.pod_security == PodSecurity::Restricted {
        let context = &mut container["securityContext"];
        context["runAsNonRoot"] = true.into();
        context["runAsUser"] = UID.into();
        context["runAsGroup"] = UID.into();
        context["seccompProfile"] = json!({ "type": "RuntimeDefault" });
    }
    container
}

fn environment(socket: &Socket) -> Value {
    let Socket { mode, allowed_uids } = socket;
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": path } } });
    let mut env = vec![
        field("POD_NAME", "metadata.name"),
        field("POD_IP", "status.podIP"),
        json!({ "name": "SYNOD_SOCKET", "value": SOCKET_PATH }),
        json!({ "name": "SYNOD_SOCKET_MODE", "value": mode }),
        json!({ "name": "SYNOD_LOG_FORMAT", "value": "json" }),
    ];
    if !allowed_uids.is_empty() {
        // The sidecar's own user too: without it nobody could look at the log by `kubectl exec`.
        let own = Some(UID).filter(|own| !allowed_uids.contains(own));
        let list: Vec<String> = allowed_uids.iter().copied().chain(own).map(|uid| uid.to_string()).collect();
        env.push(json!({ "name": "SYNOD_ALLOWED_UIDS", "value": list.join(",") }));
    }
    env.into()
}

/// The agreed flags of `synod-sidecar run`.
fn arguments(desired: &Desired, tls: &Tls) -> Vec<String> {
    let name = &desired.name;
    let host = format!("$(POD_NAME).{}.{}.svc.{}", name.peer_service(), name.namespace, name.domain);
    let mut arguments: Vec<String> = vec![
        "run".into(),
        "--data-dir=/data".into(),
        format!("--socket={SOCKET_PATH}"),
        format!("--peer-listen=[::]:{PORT_PEER}"),
        format!("--admin-listen=[::]:{PORT_ADMIN}"),
        format!("--health-listen=[::]:{PORT_HEALTH}"),
        "--name=$(POD_NAME)".into(),
        format!("--advertise={host}:{PORT_PEER}"),
        "--peers-file=/etc/synod/config/peers".into(),
    ];
    // Without certificates the sidecar has to be told that this is meant.
    arguments.push(match tls.mode {
        TlsMode::Managed | TlsMode::Provided => "--tls-dir=/etc/synod/tls".into(),
        TlsMode::Disabled => "--insecure".into(),
    });
    arguments
}

fn object(value: Option<&Value>) -> Map<String, Value> {
    value.and_then(Value::as_object).cloned().unwrap_or_default()
}

fn array(value: Option<&Value>) -> Vec<Value> {
    value.and_then(Value::as_array).cloned().unwrap_or_default()
}
