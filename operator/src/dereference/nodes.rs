//! Which nodes a volume can be used on: its nodeAffinity evaluated against the labels of the nodes there are.
//!
//! Kubernetes says that a node's host name label may differ from its name, so names are never compared with
//! labels. docs: operator-rules.md, rule 8.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume};

use crate::observed::NodeFacts;

/// The taint by which a person declares that a node is shut down for good.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// What the plan needs of the nodes, by name.
pub(super) fn facts(nodes: &[Node]) -> BTreeMap<String, NodeFacts> {
    let fact = |node: &Node| {
        let name = node.metadata.name.clone()?;
        let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
        let out_of_service = taints.iter().any(|t| t.key == OUT_OF_SERVICE);
        Some((name, NodeFacts { labels: node.metadata.labels.clone().unwrap_or_default(), out_of_service }))
    };
    nodes.iter().filter_map(fact).collect()
}

/// Whether a volume is bound to a node and no such node exists. A volume that is bound to a zone, or to
/// nothing, is never stranded: a node of that zone may come.
pub(super) fn stranded(volume: &PersistentVolume, nodes: &BTreeMap<String, NodeFacts>) -> bool {
    let affinity = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref());
    let Some(required) = affinity.and_then(|a| a.required.as_ref()) else { return planted!(MovableGivenUp) };
    let terms = &required.node_selector_terms;
    !terms.is_empty()
        && terms.iter().all(names_a_node)
        && !nodes.iter().any(|(name, node)| terms.iter().any(|term| fits(term, name, node)))
}

/// Whether a term can be met by single nodes only: by a host name, a node's name, or a driver's key for it.
fn names_a_node(term: &NodeSelectorTerm) -> bool {
    let by_label = |e: &NodeSelectorRequirement| {
        let last = e.key.rsplit('/').next().unwrap_or_default();
        matches!(last, "hostname" | "node" | "node-name" | "nodename" | "node-id")
    };
    let by_field = |e: &NodeSelectorRequirement| e.key == "metadata.name";
    term.match_expressions.iter().flatten().any(|e| e.operator == "In" && by_label(e))
        || term.match_fields.iter().flatten().any(|e| e.operator == "In" && by_field(e))
}

/// Whether a node meets every requirement of a term. Source: the Kubernetes API, NodeSelectorTerm.
fn fits(term: &NodeSelectorTerm, name: &str, node: &NodeFacts) -> bool {
    let labels = term.match_expressions.iter().flatten();
    let fields = term.match_fields.iter().flatten();
    let empty = labels.clone().next().is_none() && fields.clone().next().is_none();
    !empty
        && labels.clone().all(|e| meets(e, value(node, name, &e.key)))
        && fields.clone().all(|e| e.key == "metadata.name" && meets(e, Some(name)))
}

/// What a node's label says.
fn value<'a>(node: &'a NodeFacts, name: &'a str, key: &str) -> Option<&'a str> {
    if planted!(NamesForLabels) { Some(name) } else { node.labels.get(key).map(String::as_str) }
}

/// Whether a value meets one requirement. An operator of the future is met: a volume is not given up for a
/// word that is not understood.
fn meets(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|v| values.iter().any(|w| w == v));
    let number = |text: Option<&str>| text.and_then(|t| t.parse::<i64>().ok());
    let bound = number(values.first().map(String::as_str));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => number(value).zip(bound).is_some_and(|(v, b)| v > b),
        "Lt" => number(value).zip(bound).is_some_and(|(v, b)| v < b),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn volume(terms: Value) -> PersistentVolume {
        let affinity = json!({ "required": { "nodeSelectorTerms": terms } });
        serde_json::from_value(json!({ "spec": { "nodeAffinity": affinity } })).unwrap()
    }

    fn on(key: &str, operator: &str, values: Value) -> PersistentVolume {
        volume(json!([{ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] }]))
    }

    fn nodes(nodes: &[(&str, &[(&str, &str)])]) -> BTreeMap<String, NodeFacts> {
        let labels = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>()
        };
        let fact = |pairs| NodeFacts { labels: labels(pairs), out_of_service: false };
        nodes.iter().map(|(name, pairs)| ((*name).to_owned(), fact(pairs))).collect()
    }

    const HOST: &str = "kubernetes.io/hostname";

    /// O3: the node is called ip-10-0-0-1 and its host name label says a.
    #[test]
    fn o3_a_host_name_is_looked_for_in_the_labels_and_never_among_the_names() {
        let there = nodes(&[("ip-10-0-0-1", &[(HOST, "a")])]);
        assert!(!stranded(&on(HOST, "In", json!(["a"])), &there));
        assert!(!stranded(&on(HOST, "In", json!(["b", "a"])), &there));
        assert!(stranded(&on(HOST, "In", json!(["ip-10-0-0-1"])), &there), "a name is no label");
        assert!(stranded(&on(HOST, "In", json!(["b"])), &there));
        assert!(stranded(&on("topology.topolvm.io/node", "In", json!(["b"])), &there));
    }

    #[test]
    fn o4_a_volume_that_other_nodes_can_use_is_never_stranded() {
        let there = nodes(&[("n", &[(HOST, "n")])]);
        assert!(!stranded(&PersistentVolume::default(), &there), "a network volume");
        assert!(!stranded(&on("topology.kubernetes.io/zone", "In", json!(["gone"])), &there), "a zone");
        assert!(!stranded(&on(HOST, "NotIn", json!(["x"])), &nodes(&[])), "any node but one");
        let either = json!([
            { "matchExpressions": [{ "key": HOST, "operator": "In", "values": ["gone"] }] },
            { "matchExpressions": [{ "key": "topology.kubernetes.io/zone", "operator": "In", "values": ["z"] }] },
        ]);
        assert!(!stranded(&volume(either), &there), "one of two terms is a zone");
        assert!(!stranded(&volume(json!([])), &there), "no term is no binding");
    }

    #[test]
    fn every_operator_of_the_api_is_evaluated() {
        let there = nodes(&[("n", &[(HOST, "n"), ("size", "7")])]);
        let with = |operator: &str, values: Value| {
            volume(json!([{ "matchExpressions": [
                { "key": HOST, "operator": "In", "values": ["n"] },
                { "key": "size", "operator": operator, "values": values },
            ]}]))
        };
        for (operator, values, usable) in [
            ("In", json!(["7"]), true),
            ("In", json!(["8"]), false),
            ("NotIn", json!(["8"]), true),
            ("NotIn", json!(["7"]), false),
            ("Exists", json!([]), true),
            ("DoesNotExist", json!([]), false),
            ("Gt", json!(["6"]), true),
            ("Gt", json!(["7"]), false),
            ("Lt", json!(["8"]), true),
            ("Lt", json!(["7"]), false),
        ] {
            assert_eq!(!stranded(&with(operator, values.clone()), &there), usable, "{operator} {values}");
        }
        let by_field = |name: &str| {
            volume(
                json!([{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": [name] }] }]),
            )
        };
        assert!(!stranded(&by_field("n"), &there));
        assert!(stranded(&by_field("m"), &there));
    }

    #[test]
    fn a_node_out_of_service_is_told_by_its_taint() {
        let node: Node = serde_json::from_value(json!({
            "metadata": { "name": "n" },
            "spec": { "taints": [{ "key": OUT_OF_SERVICE, "effect": "NoExecute", "value": "nodeshutdown" }] },
        }))
        .unwrap();
        assert!(facts(&[node, Node::default()])["n"].out_of_service);
    }
}
