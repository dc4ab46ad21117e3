//! What /openapi.json tells is there, and answers as it says.

use super::*;

const OPERATIONS: [&str; 19] = [
    "delete /v1/consumers/{name}",
    "get /openapi.json",
    "get /v1/checkpoints",
    "get /v1/checkpoints/newest",
    "get /v1/checkpoints/{index}",
    "get /v1/checkpoints/{index}/standing",
    "get /v1/consumers",
    "get /v1/consumers/{name}",
    "get /v1/entries",
    "get /v1/entries/stream",
    "get /v1/info",
    "get /v1/role",
    "get /v1/status",
    "get /v1/tail",
    "patch /v1/consumers/{name}",
    "post /v1/consumers/{name}",
    "post /v1/entries",
    "put /v1/checkpoints/{index}",
    "put /v1/consumers/{name}",
];

/// How a value differs from a schema, as far as schemas are used here.
fn differs(document: &Value, schema: &Value, value: &Value) -> Option<String> {
    if let Some(place) = schema["$ref"].as_str() {
        let found = document.pointer(place.strip_prefix('#').unwrap()).expect("a reference leads somewhere");
        return differs(document, found, value);
    }
    let is_of = |kind: &Value| match kind.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("an unknown type: {other}"),
    };
    let is_of_type = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().any(is_of),
        kind => is_of(kind),
    };
    if !is_of_type {
        return Some(format!("{value} is no {}", schema["type"]));
    }
    if let (Value::Array(values), items @ Value::Object(_)) = (value, &schema["items"]) {
        return values.iter().find_map(|value| differs(document, items, value));
    }
    let (Value::Object(fields), Value::Object(properties)) = (value, &schema["properties"]) else {
        return None;
    };
    let missing = schema["required"].as_array().into_iter().flatten();
    let mut missing = missing.filter(|name| !fields.contains_key(name.as_str().unwrap()));
    if let Some(missing) = missing.next() {
        return Some(format!("{missing} is missing in {value}"));
    }
    fields.iter().find_map(|(name, value)| match properties.get(name) {
        Some(schema) => differs(document, schema, value),
        None => Some(format!("{name} is not described")),
    })
}

fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().unwrap().iter();
    let operations = paths.flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap().iter();
        methods.map(|(method, operation)| (method.clone(), path.clone(), operation.clone()))
    });
    operations.collect()
}

#[test]
fn a_difference_is_found() {
    let document =
        json!({"a": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}});
    let schema = json!({"$ref": "#/a"});
    let differs = |value| differs(&document, &schema, &value);
    assert_eq!(differs(json!({"n": 1})), None);
    for bad in [json!({}), json!({"n": "1"}), json!({"n": 1, "m": 1}), json!([])] {
        assert!(differs(bad.clone()).is_some(), "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_is_described_and_answers_as_described() {
    let cluster = Cluster::of(1).await;
    let socket = &cluster.members[0].socket;
    let document = done(socket, "/openapi.json", &[]).await;
    assert_eq!(document["openapi"], "3.1.0");
    let operations = operations(&document);
    let mut names: Vec<_> = operations.iter().map(|(method, path, _)| format!("{method} {path}")).collect();
    names.sort();
    assert_eq!(names, OPERATIONS);
    done(socket, "/v1/consumers/billing?index=0", &["-X", "PUT"]).await;
    done(socket, "/v1/entries", &["-d", "x"]).await;
    let saved = done(socket, "/v1/checkpoints/1", &["-X", "PUT", "-d", "x"]).await;
    let named = format!("?length=1&digest={}", saved["digest"].as_str().unwrap());
    // What removes comes last.
    let (last, first): (Vec<_>, Vec<_>) = operations.iter().partition(|(method, ..)| method == "delete");
    for (method, path, operation) in first.into_iter().chain(last) {
        let real = path.replace("{name}", "billing").replace("{index}", "1");
        let method = method.to_ascii_uppercase();
        let moves = matches!(&*method, "POST" | "PATCH") && real == "/v1/consumers/billing";
        let query = match &*real {
            "/v1/checkpoints/1/standing" => &*named,
            _ if moves => "?index=0",
            _ => "",
        };
        let mut arguments = vec!["-X", &method];
        if path == "/v1/entries" && method == "POST" || path == "/v1/checkpoints/{index}" && method == "PUT" {
            arguments.extend(["-d", "x"]);
        }
        let content = operation["responses"]["200"]["content"].as_object().unwrap();
        if content.contains_key("text/event-stream") {
            let head = head(socket, &format!("{method} {real} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
            assert!(head.contains("content-type: text/event-stream"), "{head}");
        } else if content.contains_key("application/octet-stream") {
            let output = curl_command(socket, &format!("{real}{query}"), &arguments).output().await.unwrap();
            assert_eq!(output.stdout, b"x", "{method} {path}");
        } else {
            let value = done(socket, &format!("{real}{query}"), &arguments).await;
            let schema = &content["application/json"]["schema"];
            assert_eq!(differs(&document, schema, &value), None, "{method} {path}");
        }
        let failed = curl(socket, &format!("{real}?unheard=1"), &arguments).await;
        failed.reason();
        assert!(
            failed.body["detail"].as_str().unwrap().contains("unheard is not known here; known: "),
            "{failed:?}"
        );
        let schema = &operation["responses"]["default"]["content"]["application/problem+json"]["schema"];
        assert_eq!(differs(&document, schema, &failed.body), None, "{method} {path}");
        let parameters = operation["parameters"].as_array().unwrap().iter();
        for told in parameters.filter(|told| told["in"] == "query") {
            if told["required"] == true {
                let refused = curl(socket, &real, &arguments).await;
                assert_eq!(refused.reason(), (400, "INVALID"), "{method} {path}");
                assert!(refused.body["detail"].as_str().unwrap().contains(" is missing: "), "{refused:?}");
            }
            // Not a number: refused as such, so that nothing else is done.
            let name = told["name"].as_str().unwrap();
            let query = if query.is_empty() { "?".to_owned() } else { format!("{query}&") };
            let refused = curl(socket, &format!("{real}{query}{name}=x"), &arguments).await;
            refused.reason();
            assert!(!refused.body["detail"].as_str().unwrap().contains("; known: "), "{refused:?}");
            assert!(refused.body["detail"].as_str().unwrap().contains(name), "{name}: {refused:?}");
        }
    }
}

/// The head of an answer that does not end.
async fn head(socket: &Path, request: &str) -> String {
    let mut stream = BufReader::new(UnixStream::connect(socket).await.unwrap());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let line = tokio::time::timeout(PATIENCE, stream.read_line(&mut head)).await.expect("a head comes");
        assert_ne!(line.unwrap(), 0, "{head}");
    }
    head
}

/// The block of commands in docs/socket.md, "With curl": each does what it is for.
#[tokio::test(flavor = "multi_thread")]
async fn the_documented_commands_work() {
    let cluster = Cluster::of(1).await;
    let (socket, dir) = (&cluster.members[0].socket, cluster.dir.path());
    std::fs::write(dir.join("file"), b"from a file").unwrap();
    let documented =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/socket.md")).unwrap();
    let (_, block) = documented.split_once("## With curl").unwrap();
    let block = block.split("```").nth(1).unwrap().replace("\\\n", " ");
    let mut lines = block.trim().lines();
    let variable = lines.next().unwrap();
    let mut count = 0;
    for line in lines {
        let (command, _) = line.split_once(" #").unwrap_or((line, ""));
        let command = command.strip_prefix("curl").unwrap();
        let mut shell = Command::new("bash");
        let script = format!("set -f; {variable}; exec curl -sS --fail-with-body {command}");
        shell.arg("-c").arg(script).current_dir(dir).env("SYNOD_SOCKET", socket).kill_on_drop(true);
        if command.contains("-N") {
            let mut child = shell.stdout(Stdio::piped()).spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("an event comes");
            let begins = if command.contains("/v1/role") { "event: role" } else { "id: 1" };
            assert_eq!(line.unwrap().as_deref(), Some(begins));
        } else {
            let output = shell.output().await.unwrap();
            let (told, said) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "{line}: {told} {said}");
        }
        count += 1;
    }
    assert_eq!(count, 20);
    assert_eq!(done(socket, "/v1/tail", &[]).await["last_index"], 6);
}
