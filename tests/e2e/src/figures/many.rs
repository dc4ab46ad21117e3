//! Many PaxosClusters at rest against a real API server: what the operator costs. Their pods ask for a node that there is not.

use std::fs;
use std::time::{Duration, Instant};

use super::Figure;
use crate::Test;
use crate::synod::SYSTEM;

/// How long the operator is watched once it is at rest.
const WATCHED: Duration = Duration::from_secs(60);
/// Requests a second in which it is taken to be at rest.
const AT_REST: f64 = 20.0;
/// Ticks of a processor's time a second, as Linux counts them for processes.
const TICKS: f64 = 100.0;

/// Counts what the operator asks of the API server, apart from everything else.
const FLOW: &str = r#"{"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema",
    "metadata": {"name": "synod-figures"}, "spec": {"matchingPrecedence": 100,
    "priorityLevelConfiguration": {"name": "workload-low"}, "rules": [{
    "subjects": [{"kind": "ServiceAccount", "serviceAccount": {"name": "synod-operator", "namespace": "synod-system"}}],
    "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true}],
    "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]}]}}"#;

fn requests(test: &Test) -> f64 {
    let text = test.kubectl(&["get", "--raw", "/metrics"]);
    let counts = text.lines().filter(|line| {
        line.starts_with("apiserver_flowcontrol_dispatched_requests_total")
            && line.contains("flow_schema=\"synod-figures\"")
    });
    counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Seconds of a processor that a process has used.
fn processor(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Behind the name, which may hold blanks: user and system time are the 12th and 13th.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
    (ticks(11) + ticks(12)) / TICKS
}

/// The memory that a process has resident, in MiB.
fn resident(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_default() / 1024.0
}

fn operator(test: &Test) -> u32 {
    let get = [
        "-n",
        SYSTEM,
        "get",
        "pods",
        "-l",
        "app.kubernetes.io/name=synod-operator",
        "-o",
        "jsonpath={.items[0].metadata.name}",
    ];
    let pod = test.kubectl(&get);
    match test.cluster.container(SYSTEM, &pod, "operator") {
        Ok(container) => container.pid,
        Err(error) => panic!("{error}"),
    }
}

fn manifest(number: usize, image: &str) -> String {
    format!(
        "---\n{{apiVersion: synod.dev/v1alpha1, kind: PaxosCluster, metadata: {{name: log{number}}}, spec: {{replicas: 3, \
         storage: {{size: 64Mi}}, template: {{spec: {{nodeSelector: {{no: such-node}}, containers: [{{name: journal, \
         image: \"{image}\", args: [run]}}]}}}}}}}}\n"
    )
}

/// Measures with so many PaxosClusters.
///
/// # Panics
/// If their sets are not made, or the operator does not come to rest, within half an hour.
pub fn measure(clusters: usize) -> Vec<Figure> {
    let test = Test::new("many");
    test.install_operator();
    test.apply(FLOW);
    let image = test.image("journal");
    for first in (0..clusters).step_by(50) {
        let batch = first..clusters.min(first + 50);
        test.apply(&batch.map(|number| manifest(number, &image)).collect::<String>());
        eprintln!("{first} of {clusters} applied");
    }
    test.wait("every StatefulSet", 1_800, || {
        std::thread::sleep(Duration::from_secs(5));
        let sets = test.kubectl(&["get", "statefulsets", "-o", "name"]).lines().count();
        (sets == clusters).then_some(())
    });
    let mut rate = f64::MAX;
    test.wait("the operator to be at rest", 1_800, || {
        let before = requests(&test);
        std::thread::sleep(Duration::from_secs(20));
        rate = (requests(&test) - before) / 20.0;
        eprintln!("{rate:.1} requests a second");
        (rate < AT_REST).then_some(())
    });
    let pid = operator(&test);
    let (began, asked, used) = (Instant::now(), requests(&test), processor(pid));
    std::thread::sleep(WATCHED);
    let seconds = began.elapsed().as_secs_f64();
    let one = |name: &str, unit, most, measured| Figure {
        measured: vec![measured],
        ..Figure::new(name, unit, most)
    };
    let name = |what: &str| format!("{clusters} at rest: {what}");
    vec![
        one(&name("memory"), "MiB", 128.0, resident(pid)),
        one(&name("of a core"), "%", 2.0, (processor(pid) - used) / seconds * 100.0),
        one(&name("API requests a second"), "/s", 5.0, (requests(&test) - asked) / seconds),
    ]
}
