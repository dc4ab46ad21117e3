//! Tables of at most 80 columns.

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

use super::PluginError;

const WIDTH: u16 = 80;

/// One pod's answer.
pub(super) type Answer = (String, Result<Value, PluginError>);

fn table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    table
}

fn finish(table: &Table) -> String {
    format!("{}\n", table.trim_fmt())
}

/// A scalar as text; `-` for nothing.
fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) if text.is_empty() => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn yes(value: &Value) -> &'static str {
    match value.as_bool() {
        Some(true) => "yes",
        Some(false) => "no",
        None => "-",
    }
}

/// The cluster as the operator sees it, and each member as it sees itself.
pub(super) fn status(object: &Value, answers: &[Answer]) -> String {
    let (spec, status) = (&object["spec"], &object["status"]);
    let mut summary = table();
    let mut row = |name: &str, value: String| {
        summary.add_row(vec![name.to_owned(), value]);
    };
    row("Cluster", format!("{} ({})", word(&object["metadata"]["name"]), word(&status["clusterId"])));
    let [ready, available, stalled, degraded] =
        ["Ready", "Available", "Stalled", "Degraded"].map(|kind| condition(status, kind));
    let is = |c: &Option<&Value>| c.is_some_and(|c| c["status"] == "True");
    let say = |c: &Option<&Value>| {
        c.map_or_else(|| "-".into(), |c| format!("{}: {}", word(&c["reason"]), word(&c["message"])))
    };
    row("Ready", if is(&ready) { "yes".into() } else { say(&ready) });
    row(
        "Available",
        if is(&available) { word(&available.unwrap_or(&Value::Null)["message"]) } else { say(&available) },
    );
    for (name, condition) in [("Stalled", stalled), ("Degraded", degraded)] {
        if is(&condition) {
            row(name, say(&condition));
        }
    }
    row(
        "Members",
        format!(
            "{} wanted, {} vote, {} pods ready",
            word(&spec["replicas"]),
            word(&status["voters"]),
            word(&status["readyReplicas"])
        ),
    );
    row("Leader", word(&status["leader"]));
    row("Configuration", format!("version {}", word(&status["configVersion"])));
    row("Last index", word(&status["lastIndex"]));
    let operation = &status["operation"];
    if operation.is_object() {
        let at = match operation["member"].as_str() {
            Some(pod) => format!(" of {pod}"),
            None => String::new(),
        };
        row(
            "Operation",
            format!("{}{at}, since {}", word(&operation["type"]), word(&operation["startedAt"])),
        );
        row("Waits for", word(&operation["waitingFor"]));
    } else {
        row("Operation", "none".into());
    }
    let mut pods = table();
    pods.set_header(vec!["POD", "MEMBER", "STATE", "ROLE", "READY", "STARTS", "INDEX", "CHOSEN"]);
    for (pod, answer) in answers {
        match answer {
            Ok(m) => pods.add_row(vec![
                pod.clone(),
                word(&m["member"]),
                word(&m["state"]),
                word(&m["role"]),
                yes(&m["ready"]).into(),
                word(&m["incarnation"]),
                word(&m["last_index"]),
                word(&m["chosen_through"]),
            ]),
            Err(_) => pods.add_row(vec![pod.as_str(), "-", "no answer", "-", "no", "-", "-", "-"]),
        };
    }
    let mut text = format!("{}\n{}", finish(&summary), finish(&pods));
    for (pod, answer) in answers {
        match answer {
            Err(why) => text.push_str(&format!("{pod}: {why}\n")),
            Ok(m) if m["ready"] == false => text.push_str(&format!("{pod}: {}\n", word(&m["reason"]))),
            Ok(_) => {}
        }
    }
    text
}

fn condition<'a>(status: &'a Value, kind: &str) -> Option<&'a Value> {
    status["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}

/// Pods in the order a person counts them: demo-2 before demo-10.
fn by_ordinal(name: &Value) -> (usize, String) {
    let name = name.as_str().unwrap_or_default();
    (name.len(), name.to_owned())
}

/// The members as one of them sees them.
pub(super) fn members(answer: &Value) -> String {
    let mut list = answer.as_array().cloned().unwrap_or_default();
    list.sort_by_key(|m| by_ordinal(&m["name"]));
    if list.is_empty() {
        return "The cluster has not been formed yet.\n".into();
    }
    let mut members = table();
    members.set_header(vec!["POD", "MEMBER", "ROLE", "CONNECTED", "CAUGHT UP", "STARTS", "ON DISK"]);
    for m in &list {
        let role = match (m["leader"].as_bool(), m["voter"].as_bool()) {
            (Some(true), _) => "leader",
            (_, Some(true)) => "voter",
            _ => "learner",
        };
        members.add_row(vec![
            word(&m["name"]),
            word(&m["member"]),
            role.into(),
            yes(&m["connected"]).into(),
            yes(&m["caught_up"]).into(),
            word(&m["incarnation"]),
            word(&m["durable_through"]),
        ]);
    }
    finish(&members)
}

/// All configurations and leaderships.
pub(super) fn history(answer: &Value) -> String {
    let list = |key: &str| answer[key].as_array().cloned().unwrap_or_default();
    let configurations = list("configurations");
    if configurations.is_empty() {
        return "The cluster has not been formed yet.\n".into();
    }
    let mut table_of_configurations = table();
    table_of_configurations.set_header(vec!["VERSION", "SLOT", "IN FORCE FROM", "MEMBERS"]);
    for c in &configurations {
        let learners = c["learners"].as_array().cloned().unwrap_or_default();
        let mut named = c["names"].as_array().cloned().unwrap_or_default();
        named.sort_by_key(|n| by_ordinal(&n["name"]));
        let names = named.iter().map(|n| {
            let learner = learners.contains(&n["member"]);
            format!("{}{}", word(&n["name"]), if learner { " (learner)" } else { "" })
        });
        let names = names.collect::<Vec<_>>().join(", ");
        table_of_configurations.add_row(vec![
            word(&c["version"]),
            word(&c["slot"]),
            word(&c["effective_from"]),
            names,
        ]);
    }
    let mut leaders = table();
    leaders.set_header(vec!["FENCING EPOCH", "BALLOT", "MEMBER"]);
    for l in list("leaders") {
        leaders.add_row(vec![word(&l["fencing_epoch"]), word(&l["ballot"]), word(&l["member"])]);
    }
    format!("{}\n{}", finish(&table_of_configurations), finish(&leaders))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cluster() -> Value {
        json!({
            "metadata": { "name": "demo" },
            "spec": { "replicas": 5 },
            "status": {
                "clusterId": "6f1c0b4e-0000-4000-8000-000000000000", "voters": 3, "readyReplicas": 4,
                "leader": "demo-1", "configVersion": 4, "lastIndex": 20000,
                "operation": {
                    "type": "Grow", "member": "demo-3", "startedAt": "2026-11-22T07:00:00Z",
                    "waitingFor": "demo-3 catches up with the log",
                },
                "conditions": [
                    { "type": "Ready", "status": "False", "reason": "Growing", "message": "demo-3 catches up with the log" },
                    { "type": "Available", "status": "True", "reason": "QuorumAvailable", "message": "3 of 3 voters answer" },
                ],
            },
        })
    }

    #[test]
    fn status_says_what_the_operator_waits_for_and_fits_the_terminal() {
        let member = json!({
            "member": "00000000000000a1", "state": "active", "role": "leader", "ready": true,
            "incarnation": 1, "last_index": 20000, "chosen_through": 123_456,
        });
        let answers = vec![
            ("demo-1".to_owned(), Ok(member)),
            ("demo-2".to_owned(), Err(PluginError::Kubectl("gone".into()))),
        ];
        let text = status(&cluster(), &answers);
        assert!(text.contains("demo-3 catches up with the log"), "{text}");
        assert!(text.contains("no answer") && text.contains("demo-2: gone"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn a_cluster_without_configurations_is_said_to_be_unformed() {
        assert!(history(&json!({ "configurations": [], "leaders": [] })).contains("not been formed"));
        assert!(members(&json!([])).contains("not been formed"));
    }

    #[test]
    fn history_marks_learners() {
        let answer = json!({
            "configurations": [{
                "version": 2, "slot": 9, "effective_from": 73, "learners": ["b"],
                "names": [{ "member": "b", "name": "demo-1" }, { "member": "a", "name": "demo-0" }],
            }],
            "leaders": [{ "fencing_epoch": 1, "ballot": "1.a", "member": "a" }],
        });
        assert!(history(&answer).contains("demo-0, demo-1 (learner)"));
    }
}
