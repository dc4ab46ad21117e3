//! The description of all requests (OpenAPI 3.1), made from the table of routes.

use super::input::Many;
use super::problem::{self, Body9457};
use super::routes::{Call, Gives, Parameter, ROUTES, Route, Value as Given};
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

/// The document.
pub(super) fn document() -> Value {
    let settings = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut schemas = settings.into_generator();
    let failure = schemas.subschema_for::<Body9457>();
    let mut paths = Map::new();
    for route in ROUTES {
        let operation = operation(route, &failure.clone().to_value(), &mut schemas);
        let methods = paths.entry(route.path).or_insert_with(|| json!({}));
        methods[route.method.to_ascii_lowercase()] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Synod",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The log, on a member's socket.",
        },
        "servers": [{ "url": "http://localhost" }],
        "paths": paths,
        "components": { "schemas": schemas.take_definitions(true) },
    })
}

fn operation(route: &Route, failure: &Value, schemas: &mut SchemaGenerator) -> Value {
    let mut parameters = Vec::new();
    if route.path.contains("{name}") {
        let name =
            ("name", Given::Text(253), "The consumer's name: 1 to 253 bytes without control characters.");
        parameters.push(parameter(&name, "path", true));
    }
    if route.path.contains("{index}") {
        let index = ("index", Given::Number(0, u64::MAX), "Every entry up to it is in the state.");
        parameters.push(parameter(&index, "path", true));
    }
    let query = route.query.iter().flat_map(|group| group.iter());
    parameters.extend(query.map(|told| parameter(told, "query", route.needs.contains(&told.0))));
    parameters.extend(route.headers.iter().map(|told| parameter(told, "header", false)));
    let content = match route.gives {
        Gives::Json(shape) => json!({ "application/json": { "schema": shape(schemas).to_value() } }),
        Gives::Object => json!({ "application/json": { "schema": { "type": "object" } } }),
        Gives::Bytes => json!({ "application/octet-stream": {} }),
        Gives::Events => json!({ "text/event-stream": { "schema": { "type": "string" } } }),
    };
    let mut operation = json!({
        "operationId": format!("{:?}", route.call),
        "summary": route.summary,
        "parameters": parameters,
        "responses": {
            "200": { "description": "It was carried out.", "content": content.clone() },
            "default": {
                "description": "It was not, and why.",
                "content": { problem::MEDIA_TYPE: { "schema": failure } },
            },
        },
    });
    if matches!(route.gives, Gives::Bytes) {
        operation["responses"]["206"] =
            json!({ "description": "The range that the header Range asks for.", "content": content });
    }
    if route.call == Call::SaveCheckpoint {
        operation["requestBody"] = json!({
            "required": true,
            "description": "The state, or what is behind `offset` of it.",
            "content": { "application/octet-stream": {} },
        });
    }
    if route.call == Call::Append {
        operation["requestBody"] = json!({
            "required": true,
            "description": "One entry as it is; or, as application/json, many.",
            "content": {
                "application/octet-stream": {},
                "application/json": { "schema": schemas.subschema_for::<Many>().to_value() },
            },
        });
    }
    operation
}

fn parameter((name, value, meaning): &Parameter, place: &str, is_needed: bool) -> Value {
    let schema = match value {
        Given::Number(least, most) => {
            json!({ "type": "integer", "format": "uint64", "minimum": least, "maximum": most })
        }
        Given::Word(words) => json!({ "type": "string", "enum": words }),
        Given::Text(most) => json!({ "type": "string", "minLength": 1, "maxLength": most }),
        Given::Digest => json!({ "type": "string", "pattern": "^[0-9a-fA-F]{64}$" }),
        Given::Time => json!({ "type": "string", "format": "date-time" }),
    };
    json!({
        "name": name, "in": place, "required": is_needed, "description": meaning, "schema": schema,
    })
}
