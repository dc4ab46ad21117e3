//! What is installed: the rights that the API server gives the operator, and the two ways to install it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use synod_cluster::run;
use synod_e2e::Test;

/// Verb, API group, resource, name (empty: any).
type Right = (String, String, String, String);

fn rights<'a>(rules: impl Iterator<Item = &'a Value>) -> BTreeSet<Right> {
    let list = |rule: &Value, key: &str| -> Vec<String> {
        let items = rule[key].as_array().cloned().unwrap_or_default();
        items.iter().map(|item| item.as_str().unwrap_or_default().to_owned()).collect()
    };
    let mut all = BTreeSet::new();
    for rule in rules {
        let mut names = list(rule, "resourceNames");
        if names.is_empty() {
            names.push(String::new());
        }
        for verb in list(rule, "verbs") {
            for group in list(rule, "apiGroups") {
                for resource in list(rule, "resources") {
                    for name in &names {
                        all.insert((verb.clone(), group.clone(), resource.clone(), name.clone()));
                    }
                }
            }
        }
    }
    all
}

fn documents(text: &str) -> Vec<Value> {
    let documents = serde_yaml::Deserializer::from_str(text);
    let values = documents.map(|one| serde::Deserialize::deserialize(one).expect("a manifest is YAML"));
    values.filter(|value: &Value| !value.is_null()).collect()
}

/// The same number is the same value, however it is written: Helm writes 0.0 as 0.
fn with_plain_numbers(value: Value) -> Value {
    match value {
        Value::Number(number) => number.as_f64().map_or(Value::Null, Value::from),
        Value::Array(items) => items.into_iter().map(with_plain_numbers).collect(),
        Value::Object(fields) => {
            fields.into_iter().map(|(key, field)| (key, with_plain_numbers(field))).collect()
        }
        Value::Null | Value::Bool(_) | Value::String(_) => value,
    }
}

fn manifest() -> Vec<Value> {
    documents(include_str!("../../../manifests/install.yaml"))
}

/// Property: what the operator may do in its own namespace is what its roles say, right for right, beside what
/// everybody may ask about themselves (docs: operator-rules.md, "Rights").
#[test]
fn the_api_server_gives_the_operator_what_its_roles_say() {
    let test = Test::new("roles");
    test.install_operator();
    let review = "{apiVersion: authorization.k8s.io/v1, kind: SelfSubjectRulesReview, \
                  spec: {namespace: synod-system}}";
    let mut command = test.cluster.kubectl();
    command
        .args(["create", "--validate=false", "-o", "json", "-f", "-"])
        .arg("--as=system:serviceaccount:synod-system:synod-operator");
    let said = run::output_with_input(&mut command, review.as_bytes()).unwrap();
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_ne!(said["status"]["incomplete"], true);
    let about_oneself = |rule: &&Value| {
        let groups = rule["apiGroups"].to_string();
        groups.contains("authorization.k8s.io") || groups.contains("authentication.k8s.io")
    };
    let given = said["status"]["resourceRules"].as_array().unwrap();
    let given = rights(given.iter().filter(|rule| !about_oneself(rule)));

    let manifest = manifest();
    let roles = manifest.iter().filter(|object| object["kind"] == "ClusterRole" || object["kind"] == "Role");
    let written = rights(roles.flat_map(|role| role["rules"].as_array().unwrap()));
    assert!(written.len() > 40 && written.iter().all(|(verb, ..)| verb != "*"));
    assert_eq!(given, written);
}

/// Property: Helm and the one manifest install the same objects; the manifest brings its namespace besides.
#[test]
fn the_chart_and_the_manifest_are_the_same() {
    let test = Test::new("chart");
    let root = synod_cluster::find_root(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
    let mut helm = test.cluster.helm();
    helm.current_dir(root).args(["template", "synod", "charts/synod", "--namespace", "synod-system"]);
    let chart = documents(&run::output(&mut helm).unwrap());
    let by_name = |objects: Vec<Value>| -> BTreeMap<String, Value> {
        let named = objects.into_iter().filter(|object| object["kind"] != "Namespace").map(|mut object| {
            let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
            if object["kind"] == "CustomResourceDefinition" {
                // Helm needs an annotation to keep it.
                object["metadata"] = Value::Null;
            }
            (name, with_plain_numbers(object))
        });
        named.collect()
    };
    let (chart, manifest) = (by_name(chart), by_name(manifest()));
    assert!(manifest.len() >= 8, "{:?}", manifest.keys());
    assert_eq!(chart.keys().collect::<Vec<_>>(), manifest.keys().collect::<Vec<_>>());
    for (name, object) in &manifest {
        assert_eq!(&chart[name], object, "{name}");
    }
}
