//! Objects, data in and data out.

mod fields;

use serde_json::{Value, json};

use super::*;
use crate::crd::{AppNetworkPolicy, ClientService, PaxosClusterSpec, PodSecurity, TlsMode};
use crate::plan::tests::world::desired;

fn template(value: Value) -> impl FnOnce(&mut PaxosClusterSpec) {
    move |spec| spec.template = value.as_object().cloned()
}

fn pod(change: impl FnOnce(&mut PaxosClusterSpec)) -> Value {
    let set = stateful_set(&desired(3, change), 3, None).value;
    set["spec"]["template"].clone()
}

fn application() -> Value {
    json!({ "spec": {
        "containers": [{ "name": "app", "image": "app:1" }],
        "initContainers": [{ "name": "migrate", "image": "app:1" }],
    }})
}

#[test]
fn the_sidecar_is_the_first_init_container_and_stays() {
    let pod = pod(template(application()));
    let init = pod["spec"]["initContainers"].as_array().unwrap();
    assert_eq!(
        (init[0]["name"].as_str(), init[0]["restartPolicy"].as_str()),
        (Some("synod"), Some("Always"))
    );
    assert_eq!(init[1]["name"], "migrate");
    assert_eq!(pod["spec"]["containers"].as_array().unwrap().len(), 1);
}

#[test]
fn without_a_template_the_sidecar_is_the_one_container() {
    let pod = pod(|_| {});
    assert_eq!(pod["spec"]["containers"][0]["name"], "synod");
    assert_eq!(pod["spec"]["containers"][0]["restartPolicy"], Value::Null);
    assert_eq!(pod["spec"]["initContainers"], Value::Null);
}

#[test]
fn every_application_container_gets_the_socket_read_only() {
    let pod = pod(template(application()));
    for container in [&pod["spec"]["containers"][0], &pod["spec"]["initContainers"][1]] {
        let env = container["env"].as_array().unwrap();
        assert!(env.contains(&json!({ "name": "SYNOD_SOCKET", "value": "/run/synod/synod.sock" })));
        let mount = &container["volumeMounts"][0];
        assert_eq!(
            (mount["mountPath"].as_str(), mount["readOnly"].as_bool()),
            (Some("/run/synod"), Some(true))
        );
        let mounts = container["volumeMounts"].as_array().unwrap();
        assert!(mounts.iter().all(|m| m["name"] == "synod-socket"), "neither data nor keys: {mounts:?}");
    }
}

/// docs: operator-rules.md, "Pod": PSS restricted. Source of the list: the Pod Security Standards.
#[test]
fn every_container_fits_pod_security_restricted() {
    for pod in [pod(|_| {}), pod(template(application()))] {
        let spec = &pod["spec"];
        assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
        assert_eq!(spec["securityContext"]["runAsUser"], 65532);
        assert_eq!(spec["securityContext"]["fsGroupChangePolicy"], "OnRootMismatch");
        assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        let lists = [&spec["containers"], &spec["initContainers"]];
        for container in lists.iter().filter_map(|l| l.as_array()).flatten() {
            let context = &container["securityContext"];
            assert_eq!(context["allowPrivilegeEscalation"], false, "{container}");
            assert_eq!(context["capabilities"]["drop"], json!(["ALL"]), "{container}");
        }
        assert_eq!(spec["automountServiceAccountToken"], false);
        assert_eq!(spec["enableServiceLinks"], false);
    }
}

#[test]
fn the_users_own_ids_stay_and_the_sidecar_keeps_its_own() {
    let pod = pod(template(json!({ "spec": {
        "securityContext": { "runAsUser": 1000, "fsGroup": 1000 },
        "terminationGracePeriodSeconds": 5,
        "containers": [{ "name": "app", "image": "app:1" }],
    }})));
    let context = &pod["spec"]["securityContext"];
    assert_eq!((context["runAsUser"].as_i64(), context["fsGroup"].as_i64()), (Some(1000), Some(1000)));
    assert_eq!(pod["spec"]["initContainers"][0]["securityContext"]["runAsUser"], 65532);
    assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 60);
}

#[test]
fn platform_leaves_the_ids_to_the_platform() {
    let pod = pod(|spec| spec.pod_security = PodSecurity::Platform);
    assert_eq!(pod["spec"]["securityContext"], Value::Null);
    assert_eq!(pod["spec"]["containers"][0]["securityContext"]["runAsUser"], Value::Null);
}

#[test]
fn a_field_nobody_here_knows_reaches_the_pod() {
    let pod = pod(template(json!({
        "metadata": { "labels": { "app": "x" }, "annotations": { "a": "b" } },
        "spec": { "fieldOfTheFuture": { "deep": [1] }, "containers": [{ "name": "app", "image": "app:1", "novel": 7 }] },
    })));
    assert_eq!(pod["spec"]["fieldOfTheFuture"], json!({ "deep": [1] }));
    assert_eq!(pod["spec"]["containers"][0]["novel"], 7);
    assert_eq!(
        (pod["metadata"]["labels"]["app"].as_str(), pod["metadata"]["annotations"]["a"].as_str()),
        (Some("x"), Some("b"))
    );
    assert_eq!(pod["metadata"]["labels"]["synod.dev/cluster"], "demo");
}

#[test]
fn the_sidecar_is_told_the_agreed_flags() {
    let pod = pod(|_| {});
    let args: Vec<&str> =
        pod["spec"]["containers"][0]["args"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(
        args,
        [
            "run",
            "--data-dir=/data",
            "--socket=/run/synod/synod.sock",
            "--peer-listen=[::]:7400",
            "--admin-listen=[::]:7401",
            "--health-listen=[::]:7402",
            "--name=$(POD_NAME)",
            "--advertise=$(POD_NAME).demo-peers.ns.svc.cluster.local:7400",
            "--peers-file=/etc/synod/config/peers",
            "--tls-dir=/etc/synod/tls",
        ]
    );
}

#[test]
fn without_tls_no_secret_is_mounted() {
    let text = pod(|spec| spec.tls.mode = TlsMode::Disabled).to_string();
    assert!(!text.contains("synod-tls") && !text.contains("--tls-dir") && text.contains("--insecure"));
}

#[test]
fn the_authoritys_key_is_mounted_nowhere() {
    let pod = pod(template(application())).to_string();
    assert!(pod.contains("demo-tls") && !pod.contains("demo-ca"));
}

#[test]
fn the_set_keeps_its_claims_and_restarts_nobody_by_itself() {
    let set = stateful_set(&desired(3, |_| {}), 2, Some("5Gi")).value;
    let spec = &set["spec"];
    assert_eq!(
        (spec["replicas"].as_i64(), spec["podManagementPolicy"].as_str()),
        (Some(2), Some("Parallel"))
    );
    assert_eq!(spec["updateStrategy"]["type"], "OnDelete");
    let retention = &spec["persistentVolumeClaimRetentionPolicy"];
    assert_eq!(
        (retention["whenDeleted"].as_str(), retention["whenScaled"].as_str()),
        (Some("Retain"), Some("Retain"))
    );
    let storage = &spec["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"];
    assert_eq!(storage, "5Gi", "the claim template never changes");
    assert_eq!(set["metadata"]["ownerReferences"][0]["uid"], "uid");
}

#[test]
fn equal_content_has_an_equal_hash_and_a_change_has_another() {
    let a = stateful_set(&desired(3, |_| {}), 3, None);
    let b = stateful_set(&desired(3, |_| {}), 3, None);
    assert_eq!(a.hash(), b.hash());
    assert_ne!(a.hash(), stateful_set(&desired(3, |_| {}), 4, None).hash());
    assert_ne!(a.hash(), stateful_set(&desired(3, |s| s.image = Some("x".into())), 3, None).hash());
}

#[test]
fn the_peers_file_names_every_ordinal_that_may_exist_soon() {
    let peers = |replicas, size| {
        let objects = surroundings(&desired(replicas, |_| {}), size);
        let map = objects.into_iter().find(|o| o.kind == Kind::ConfigMap).unwrap();
        map.value["data"]["peers"].as_str().unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(peers(3, 3).len(), 7, "up to maxVoters growing changes no file");
    assert_eq!(peers(3, 9).len(), 10);
    assert_eq!(peers(15, 15).len(), 15);
    assert_eq!(peers(3, 3)[0], "demo-0.demo-peers.ns.svc.cluster.local:7400");
}

#[test]
fn services_and_policies_are_made_only_when_asked_for() {
    let bare = desired(3, |_| {});
    let kinds: Vec<Kind> = surroundings(&bare, 3).iter().map(|o| o.kind).collect();
    assert_eq!(kinds, [Kind::ConfigMap, Kind::Service]);
    assert_eq!(unwanted(&bare).len(), 2);
    let full = desired(3, |spec| {
        let port = json!({ "name": "web", "port": 80 }).as_object().cloned().unwrap();
        spec.service = Some(ClientService { ports: vec![port] });
        let rule = json!({ "ports": [{ "port": 80 }] }).as_object().cloned().unwrap();
        spec.network_policy = Some(AppNetworkPolicy { app_ingress: vec![rule] });
    });
    assert!(unwanted(&full).is_empty());
    let policy = surroundings(&full, 3).into_iter().find(|o| o.kind == Kind::NetworkPolicy).unwrap().value;
    let ingress = policy["spec"]["ingress"].as_array().unwrap();
    assert_eq!(ingress[0], json!({ "ports": [{ "port": 80 }] }));
    assert_eq!(ingress[2]["ports"][0]["port"], 7401);
    assert_eq!(
        ingress[2]["from"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/name"],
        "synod-operator"
    );
}

/// O25: an empty list of rules is a list: nobody else gets in.
#[test]
fn an_empty_list_of_ingress_rules_makes_a_policy() {
    let closed = desired(3, |s| s.network_policy = Some(AppNetworkPolicy { app_ingress: Vec::new() }));
    let policy = surroundings(&closed, 3).into_iter().find(|o| o.kind == Kind::NetworkPolicy).unwrap().value;
    assert_eq!(policy["spec"]["ingress"].as_array().unwrap().len(), 3, "peers, operator, health: {policy}");
}

/// O29: by host first, then by zone, and never so that a pod could find no node.
#[test]
fn o29_members_prefer_hosts_of_their_own() {
    let terms = "preferredDuringSchedulingIgnoredDuringExecution";
    let plain = pod(|_| {});
    let preferred = plain["spec"]["affinity"]["podAntiAffinity"][terms].as_array().unwrap();
    let keys: Vec<_> = preferred
        .iter()
        .map(|t| (t["weight"].as_i64().unwrap(), t["podAffinityTerm"]["topologyKey"].as_str().unwrap()))
        .collect();
    assert_eq!(keys, [(100, "kubernetes.io/hostname"), (50, "topology.kubernetes.io/zone")]);
    for term in preferred {
        let selector = &term["podAffinityTerm"]["labelSelector"]["matchLabels"];
        assert_eq!(*selector, json!({ "synod.dev/cluster": "demo" }));
    }
    assert_eq!(plain["spec"]["topologySpreadConstraints"], Value::Null);
    let own = json!({ "requiredDuringSchedulingIgnoredDuringExecution": [] });
    let mut application = application();
    application["spec"]["affinity"] = json!({ "nodeAffinity": {}, "podAntiAffinity": own });
    assert_eq!(
        pod(template(application))["spec"]["affinity"]["podAntiAffinity"],
        own,
        "the user's own stays"
    );
}

/// O24: pull secrets and placement without a container of the user's.
#[test]
fn o24_a_template_without_containers_runs_the_sidecar_alone() {
    let pod = pod(template(json!({
        "spec": { "imagePullSecrets": [{ "name": "s" }], "nodeSelector": { "disk": "fast" } },
    })));
    assert_eq!(pod["spec"]["containers"][0]["name"], "synod");
    assert_eq!(pod["spec"]["containers"].as_array().unwrap().len(), 1);
    assert_eq!(pod["spec"]["initContainers"], Value::Null);
    assert_eq!(pod["spec"]["nodeSelector"]["disk"], "fast");
}

#[test]
fn the_set_says_what_size_the_operator_wrote() {
    let set = stateful_set(&desired(3, |_| {}), 2, None).value;
    assert_eq!(set["metadata"]["annotations"]["synod.dev/size"], "2");
}

#[test]
fn the_headless_service_publishes_members_that_are_not_ready() {
    let objects = surroundings(&desired(3, |_| {}), 3);
    let service = &objects.iter().find(|o| o.kind == Kind::Service).unwrap().value;
    assert_eq!(service["spec"]["clusterIP"], "None");
    assert_eq!(service["spec"]["publishNotReadyAddresses"], true);
}

#[test]
fn the_budget_counts_voters_only() {
    let budget = disruption_budget(&desired(3, |_| {}), 2).value;
    assert_eq!(budget["spec"]["minAvailable"], 2);
    assert_eq!(budget["spec"]["selector"]["matchLabels"]["synod.dev/counted"], "true");
    assert_eq!(budget["spec"]["unhealthyPodEvictionPolicy"], "IfHealthyBudget");
}
