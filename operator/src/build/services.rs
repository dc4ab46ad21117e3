//! Services, the peers' addresses and the network rules.

use serde_json::{Value, json};

use crate::crd::{AppNetworkPolicy, ClientService};
use crate::names::{PORT_ADMIN, PORT_HEALTH, PORT_PEER};
use crate::validate::Desired;

use super::{Kind, Object, metadata, prepared_ordinals, selector};

/// The addresses of all ordinals that may exist soon, one a line; a member re-reads the file.
pub(super) fn config_map(desired: &Desired, size: u32) -> Object {
    let name = desired.name.config_map();
    let hosts =
        (0..prepared_ordinals(desired, size)).map(|o| format!("{}:{PORT_PEER}\n", desired.name.host(o)));
    let value = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(&desired.name, &name, "config"),
        "data": { "peers": hosts.collect::<String>() },
    });
    Object::seal(Kind::ConfigMap, name, value)
}

/// Gives every pod a DNS name from the moment it has an address: members must find each other before
/// they are ready.
pub(super) fn peer_service(desired: &Desired) -> Object {
    let name = desired.name.peer_service();
    let value = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(&desired.name, &name, "peers"),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "selector": selector(&desired.name),
            "ports": [
                { "name": "peer", "port": PORT_PEER, "targetPort": PORT_PEER, "protocol": "TCP" },
                { "name": "admin", "port": PORT_ADMIN, "targetPort": PORT_ADMIN, "protocol": "TCP" },
            ],
        },
    });
    Object::seal(Kind::Service, name, value)
}

/// The application's own Service, if it has ports.
pub(super) fn client_service(desired: &Desired) -> Option<Object> {
    let ClientService { ports } = desired.spec.service.as_ref()?;
    if ports.is_empty() {
        return None;
    }
    let ports: Vec<Value> = ports
        .iter()
        .map(|port| {
            let mut port = port.clone();
            // Defaults of the server that are part of the merge key: without them apply sees two ports.
            port.entry("protocol").or_insert_with(|| "TCP".into());
            Value::Object(port)
        })
        .collect();
    let name = desired.name.client_service();
    let value = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(&desired.name, &name, "service"),
        "spec": { "selector": selector(&desired.name), "ports": ports },
    });
    Some(Object::seal(Kind::Service, name, value))
}

/// The application's rules, and beside them the peers, the operator and the health port.
/// docs: operator-rules.md, "Network".
pub(super) fn network_policy(desired: &Desired) -> Option<Object> {
    // Without a rule nobody but the members and the operator gets in.
    let AppNetworkPolicy { app_ingress } = desired.spec.network_policy.as_ref()?;
    let tcp = |port: u16| json!([{ "protocol": "TCP", "port": port }]);
    let mut ingress: Vec<Value> = app_ingress.iter().cloned().map(Value::Object).collect();
    ingress.push(json!({
        "from": [{ "podSelector": { "matchLabels": selector(&desired.name) } }],
        "ports": tcp(PORT_PEER),
    }));
    ingress.push(json!({
        "from": [{
            "namespaceSelector": {},
            "podSelector": { "matchLabels": { "app.kubernetes.io/name": "synod-operator" } },
        }],
        "ports": tcp(PORT_ADMIN),
    }));
    ingress.push(json!({ "ports": tcp(PORT_HEALTH) }));
    let name = desired.name.name.clone();
    let value = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(&desired.name, &name, "network"),
        "spec": {
            "podSelector": { "matchLabels": selector(&desired.name) },
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    });
    Some(Object::seal(Kind::NetworkPolicy, name, value))
}
