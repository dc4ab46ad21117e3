//! Parts of the resource that are kept as raw JSON, and the schemas written by hand.
//!
//! A typed pod template would drop every field that this operator's Kubernetes library does not know; raw
//! JSON reaches the API server as the user wrote it. The schema names only what a CEL rule needs.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value};

/// A JSON object whose fields are not ours to judge.
pub type RawObject = Map<String, Value>;

/// A pod template (`metadata`, `spec`), as the user wrote it.
pub type PodTemplate = Map<String, Value>;

/// Resource requirements (`requests`, `limits`), as the user wrote them.
pub type Resources = Map<String, Value>;

/// Schema of `spec.template`: open, with rules on what is reserved.
pub(super) fn template_schema(_: &mut SchemaGenerator) -> Schema {
    let named = |what: &str, max: u32| {
        serde_json::json!({
            "type": "array",
            "maxItems": max,
            "description": format!("The pod's {what}."),
            "items": {
                "type": "object",
                "x-kubernetes-preserve-unknown-fields": true,
                "properties": {
                    "name": { "type": "string", "maxLength": 63 },
                    "volumeMounts": {
                        "type": "array",
                        "maxItems": 64,
                        "items": {
                            "type": "object",
                            "x-kubernetes-preserve-unknown-fields": true,
                            "properties": { "name": { "type": "string", "maxLength": 63 } },
                        },
                    },
                },
            },
        })
    };
    let rule = |rule: &str, message: &str| serde_json::json!({ "rule": rule, "message": message });
    json_schema!({
        "type": "object",
        "nullable": true,
        "description": "A pod template with the application's containers; one without containers says where and how the members run. Unset: the sidecar is the pod's only container. Reserved: the container name synod, volumes data and synod-*, variables SYNOD_*, labels synod.dev/*, the path /run/synod.",
        "x-kubernetes-preserve-unknown-fields": true,
        "properties": {
            "spec": {
                "type": "object",
                "x-kubernetes-preserve-unknown-fields": true,
                "properties": {
                    "hostNetwork": { "type": "boolean" },
                    "containers": named("containers", 32),
                    "initContainers": named("init containers", 32),
                    "volumes": named("volumes", 64),
                },
                "x-kubernetes-validations": [
                    rule(
                        "!has(self.hostNetwork) || !self.hostNetwork",
                        "template.spec.hostNetwork must not be set: members find each other by pod addresses; remove it",
                    ),
                    rule(
                        "!has(self.containers) || self.containers.all(c, !has(c.name) || c.name != 'synod')",
                        "the container name 'synod' is reserved for the sidecar: rename the container",
                    ),
                    rule(
                        "!has(self.initContainers) || self.initContainers.all(c, !has(c.name) || c.name != 'synod')",
                        "the container name 'synod' is reserved for the sidecar: rename the init container",
                    ),
                    rule(
                        "!has(self.containers) || self.containers.all(c, !has(c.volumeMounts) || c.volumeMounts.all(m, !has(m.name) || (m.name != 'data' && !m.name.startsWith('synod-'))))",
                        "the volumes 'data' and 'synod-*' are the sidecar's: remove the mount; the socket is mounted by itself",
                    ),
                    rule(
                        "!has(self.volumes) || self.volumes.all(v, !has(v.name) || (v.name != 'data' && !v.name.startsWith('synod-')))",
                        "the volume names 'data' and 'synod-*' are reserved for the sidecar: rename the volume",
                    ),
                ],
            },
        },
        "x-kubernetes-validations": [
            rule(
                "has(self.spec)",
                "template.spec must be set; leave the template out to run the sidecar alone",
            ),
        ],
    })
}

/// Schema of `spec.resources`.
pub(super) fn resources_schema(_: &mut SchemaGenerator) -> Schema {
    let quantities = serde_json::json!({
        "type": "object",
        "additionalProperties": { "x-kubernetes-int-or-string": true },
    });
    json_schema!({
        "type": "object",
        "nullable": true,
        "description": "CPU and memory of the sidecar.",
        "properties": { "requests": quantities, "limits": quantities },
    })
}

/// Schema of `spec.socket.allowedUids`.
pub(super) fn uid_set_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "description": "User ids that may call; empty: everyone who can open the socket.",
        "items": { "type": "integer", "format": "int64", "minimum": 0, "maximum": 4_294_967_295_u32 },
        "maxItems": 64,
        "x-kubernetes-list-type": "set",
    })
}

/// Schema of `spec.service.ports`.
pub(super) fn service_ports_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "description": "Ports of the application, as in a Service; empty: no Service.",
        "maxItems": 32,
        "items": {
            "type": "object",
            "required": ["port"],
            "properties": {
                "name": { "type": "string", "maxLength": 63 },
                "port": { "type": "integer", "format": "int32", "minimum": 1, "maximum": 65535 },
                "targetPort": { "x-kubernetes-int-or-string": true },
                "protocol": { "type": "string", "enum": ["TCP", "UDP", "SCTP"] },
                "appProtocol": { "type": "string", "maxLength": 253 },
            },
        },
        "x-kubernetes-validations": [
            {
                "rule": "size(self) < 2 || self.all(p, has(p.name) && size(p.name) > 0)",
                "message": "service.ports: each of several ports needs a name",
            },
        ],
    })
}

/// Schema of `spec.networkPolicy.appIngress`.
pub(super) fn ingress_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "description": "NetworkPolicy ingress rules for the application; empty: only the members and the operator get in.",
        "maxItems": 64,
        "items": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
    })
}
