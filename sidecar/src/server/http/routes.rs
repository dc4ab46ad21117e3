//! Every request there is, in one table: what is served, and what /openapi.json tells, come from it.

use super::checkpoints::{Checkpoint, Checkpoints, Standing};
use super::consumers::{Consumer, Consumers, Position, Registered, Removed};
use super::entries::{Appended, Page, Tail};
use super::problem::Problem;
use super::{Info, input};
use axum::http::Method;
use schemars::{Schema, SchemaGenerator};
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Append,
    Read,
    Follow,
    Tail,
    Status,
    Info,
    Role,
    ListConsumers,
    GetConsumer,
    RegisterConsumer,
    AdvanceConsumer,
    SeekConsumer,
    RemoveConsumer,
    ListCheckpoints,
    FetchNewestCheckpoint,
    FetchCheckpoint,
    SaveCheckpoint,
    ResumeCheckpoint,
    Openapi,
}

/// What an answer is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Gives {
    /// JSON of this shape.
    Json(fn(&mut SchemaGenerator) -> Schema),
    /// A JSON object.
    Object,
    /// Server-sent events.
    Events,
    /// Bytes, or a range of them.
    Bytes,
}

/// What a parameter's value is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    /// A number between these.
    Number(u64, u64),
    /// One of these words.
    Word(&'static [&'static str]),
    /// So many characters at most, one at least.
    Text(usize),
    /// A moment, as RFC 3339 writes it.
    Time,
    /// SHA-256, in hexadecimal.
    Digest,
}

/// A parameter: its name, its values, and what it means.
pub(super) type Parameter = (&'static str, Value, &'static str);

const INDEXES: Value = Value::Number(0, u64::MAX);

/// A request.
#[derive(Debug)]
pub(super) struct Route {
    /// In capitals.
    pub(super) method: &'static str,
    /// Its path; what is in braces stands for one part.
    pub(super) path: &'static str,
    pub(super) call: Call,
    pub(super) summary: &'static str,
    pub(super) query: &'static [&'static [Parameter]],
    pub(super) headers: &'static [Parameter],
    /// Parameters behind the question mark that may not be left out.
    pub(super) needs: &'static [&'static str],
    pub(super) gives: Gives,
}

const TIMEOUT: &[Parameter] = &[(
    "timeout_ms",
    Value::Number(1, 600_000),
    "Milliseconds that the call may take: 1 to 600000; otherwise 30000.",
)];
const FRESH: &[Parameter] = &[
    (
        "consistency",
        Value::Word(&["linearizable", "sequential", "stale-bounded"]),
        "linearizable (the default), sequential or stale-bounded.",
    ),
    ("at_least", INDEXES, "With sequential: waits until this index is applied at this member."),
    ("max_staleness_ms", Value::Number(0, u32::MAX as u64), "With stale-bounded: how old the answer may be."),
];
const APPEND: &[Parameter] = &[
    (
        "expected_index",
        INDEXES,
        "The last index before this call; refused as EXPECTED_INDEX where it is another.",
    ),
    ("fence", INDEXES, "A fencing epoch; refused as FENCED where a later leadership has begun."),
    ("minted_at", INDEXES, "An index that was in the log when the idempotency key was made."),
];
const FROM: &[Parameter] =
    &[("from", Value::Number(1, u64::MAX), "The first index, from 1; otherwise the first that can be read.")];
const SINCE: &[Parameter] = &[(
    "time",
    Value::Time,
    "Begins at the first entry of this time (RFC 3339) or later; in the place of `from`.",
)];
const PAGE: &[Parameter] = &[
    ("limit", Value::Number(1, 4_096), "At most this many entries: 1 to 4096; otherwise 1024."),
    (
        "max_bytes",
        Value::Number(1, 1 << 20),
        "About so many bytes of payload, one entry at least: 1 to 1048576; otherwise 262144.",
    ),
];
const REVERSE: &[Parameter] = &[(
    "reverse",
    Value::Word(&["true", "false"]),
    "true: the newest first, from `from` back; otherwise from the end of the log.",
)];
const INDEX: &[Parameter] = &[("index", INDEXES, "The consumer is done with every entry up to it.")];
const PLACE: &[Parameter] =
    &[("index", INDEXES, "Where the consumer shall stand; 0 is before the first entry.")];
const KEY: &[Parameter] =
    &[("Idempotency-Key", Value::Text(64), "1 to 64 bytes: a repeat with the same key is appended once.")];
const EXPIRY: &[Parameter] = &[(
    "expiry_ms",
    Value::Number(0, u64::MAX),
    "The consumer is forgotten when nothing is heard of it for so long: 10000 or more; 0: never.",
)];
const STATE: &[Parameter] = &[
    ("digest", Value::Digest, "SHA-256 of the whole state, in hexadecimal."),
    ("length", INDEXES, "Bytes of the whole state."),
];
const SAVED: &[Parameter] = &[
    ("digest", Value::Digest, "SHA-256 of the whole state, in hexadecimal: what comes must have it."),
    ("offset", INDEXES, "With digest: so many bytes stand here already; the body is what is behind them."),
];
const LAST: &[Parameter] = &[("Last-Event-ID", INDEXES, "The last index that was seen; goes before `from`.")];

fn of<T: schemars::JsonSchema>(schemas: &mut SchemaGenerator) -> Schema {
    schemas.subschema_for::<T>()
}

const fn route(
    method: &'static str,
    path: &'static str,
    call: Call,
    summary: &'static str,
    gives: Gives,
) -> Route {
    Route { method, path, call, summary, query: &[], headers: &[], needs: &[], gives }
}

const ENTRIES: &str = "/v1/entries";
const CONSUMER: &str = "/v1/consumers/{name}";
const CHECKPOINT: &str = "/v1/checkpoints/{index}";

/// All of them.
pub(super) const ROUTES: &[Route] = &[
    Route {
        query: &[APPEND, TIMEOUT],
        headers: KEY,
        ..route("POST", ENTRIES, Call::Append, "Append one entry or many, all or none.", APPENDED)
    },
    Route {
        query: &[FROM, REVERSE, PAGE, FRESH, TIMEOUT],
        ..route("GET", ENTRIES, Call::Read, "Read a page of entries.", Gives::Json(of::<Page>))
    },
    Route {
        query: &[FROM, SINCE],
        headers: LAST,
        ..route("GET", "/v1/entries/stream", Call::Follow, FOLLOWS, Gives::Events)
    },
    Route {
        query: &[FRESH, TIMEOUT],
        ..route("GET", "/v1/tail", Call::Tail, "Where the log begins and ends.", Gives::Json(of::<Tail>))
    },
    route("GET", "/v1/status", Call::Status, "What this member knows of itself.", Gives::Object),
    route("GET", "/v1/role", Call::Role, ROLES, Gives::Events),
    route("GET", "/v1/info", Call::Info, "Versions and bounds.", Gives::Json(of::<Info>)),
    Route {
        query: &[FRESH, TIMEOUT],
        ..route("GET", "/v1/consumers", Call::ListConsumers, "All consumers.", Gives::Json(of::<Consumers>))
    },
    Route {
        query: &[FRESH, TIMEOUT],
        ..route("GET", CONSUMER, Call::GetConsumer, "One consumer.", Gives::Json(of::<Consumer>))
    },
    Route {
        query: &[INDEX, EXPIRY, TIMEOUT],
        ..route(
            "PUT",
            CONSUMER,
            Call::RegisterConsumer,
            "Register a consumer.",
            Gives::Json(of::<Registered>),
        )
    },
    Route {
        query: &[INDEX, TIMEOUT],
        needs: &["index"],
        ..route("POST", CONSUMER, Call::AdvanceConsumer, "Move a registered consumer on.", POSITION)
    },
    Route {
        query: &[PLACE, TIMEOUT],
        needs: &["index"],
        ..route(
            "PATCH",
            CONSUMER,
            Call::SeekConsumer,
            "Put a registered consumer anywhere in the log.",
            POSITION,
        )
    },
    Route {
        query: &[TIMEOUT],
        ..route("DELETE", CONSUMER, Call::RemoveConsumer, "Forget a consumer.", Gives::Json(of::<Removed>))
    },
    Route {
        query: &[FRESH, TIMEOUT],
        ..route(
            "GET",
            "/v1/checkpoints",
            Call::ListCheckpoints,
            "The newest checkpoints.",
            Gives::Json(of::<Checkpoints>),
        )
    },
    Route {
        query: &[FRESH, TIMEOUT],
        ..route(
            "GET",
            "/v1/checkpoints/newest",
            Call::FetchNewestCheckpoint,
            "The newest state.",
            Gives::Bytes,
        )
    },
    Route {
        query: &[FRESH, TIMEOUT],
        ..route("GET", CHECKPOINT, Call::FetchCheckpoint, "The state at an index.", Gives::Bytes)
    },
    Route {
        query: &[SAVED],
        ..route("PUT", CHECKPOINT, Call::SaveCheckpoint, "Save a state.", Gives::Json(of::<Checkpoint>))
    },
    Route {
        query: &[STATE],
        needs: &["digest", "length"],
        ..route(
            "GET",
            "/v1/checkpoints/{index}/standing",
            Call::ResumeCheckpoint,
            "How much of a state that is being saved stands at this member: where to go on.",
            Gives::Json(of::<Standing>),
        )
    },
    route("GET", "/openapi.json", Call::Openapi, "This document.", Gives::Object),
];

const APPENDED: Gives = Gives::Json(of::<Appended>);
const POSITION: Gives = Gives::Json(of::<Position>);
const ROLES: &str = "Whether this member leads, as server-sent events: now, and whenever it changes.";
const FOLLOWS: &str =
    "Entries as server-sent events: from an index on, then live. Never skips, never repeats.";

impl Route {
    /// The names of what may stand behind the question mark.
    pub(super) fn parameters(&self) -> Vec<&'static str> {
        self.query.iter().flat_map(|group| group.iter()).map(|(name, ..)| *name).collect()
    }

    /// A parameter that is missing, and what it means.
    pub(super) fn missing(&self, query: &input::Query) -> Option<&'static Parameter> {
        let mut told = self.query.iter().flat_map(|group| group.iter());
        told.find(|(name, ..)| self.needs.contains(name) && !query.has(name))
    }

    /// What stands for the part in braces in a path of this route.
    fn name<'a>(&self, path: &'a str) -> Option<&'a str> {
        let Some((before, after)) = self.path.split_once('{') else {
            return (self.path == path).then_some("");
        };
        let (_, after) = after.split_once('}')?;
        let name = path.strip_prefix(before)?.strip_suffix(after)?;
        Some(name).filter(|name| !name.is_empty() && !name.contains('/'))
    }

    fn has_name(&self) -> bool {
        self.path.contains('{')
    }
}

/// The routes of a path, and the name in it. One that is written out goes before one that has a name in its place.
fn here(path: &str) -> Vec<(&'static Route, &str)> {
    let mut here: Vec<_> = ROUTES.iter().filter_map(|route| Some((route, route.name(path)?))).collect();
    if here.iter().any(|(route, _)| !route.has_name()) {
        here.retain(|(route, _)| !route.has_name());
    }
    here
}

/// The name of a request in metrics: method and path as in the table.
pub(in crate::server) fn call_name(method: &Method, path: &str) -> Option<&'static str> {
    static NAMES: OnceLock<BTreeMap<(&str, &str), &'static str>> = OnceLock::new();
    let names = NAMES.get_or_init(|| {
        let name = |route: &Route| &*format!("{} {}", route.method, route.path).leak();
        ROUTES.iter().map(|route| ((route.method, route.path), name(route))).collect()
    });
    let (route, _) = here(path).into_iter().find(|(route, _)| route.method == method.as_str())?;
    names.get(&(route.method, route.path)).copied()
}

/// The route of a request, and the name in its path.
pub(super) fn find(method: &Method, path: &str) -> Result<(&'static Route, String), Problem> {
    let here = here(path);
    let found = here.iter().find(|(route, _)| route.method == method.as_str());
    match found {
        Some((route, name)) => match input::decoded(name, false) {
            Some(name) => Ok((route, name)),
            None => Err(Problem::invalid("the path is not percent-encoded UTF-8")),
        },
        None if here.is_empty() => Err(Problem::no_such_path(path)),
        None => {
            let methods: Vec<_> = here.iter().map(|(route, _)| route.method).collect();
            Err(Problem::no_such_method(methods.join(", ")))
        }
    }
}
