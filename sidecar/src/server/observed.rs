//! The names of calls and the reasons of their answers, for metrics and traces: few of each, whatever callers send.

use super::http::call_name;
use crate::connections::{Calls, DONE, Observed};
use prost::Message;
use prost_types::FileDescriptorSet;
use std::collections::BTreeMap;
use std::sync::OnceLock;
use synod_proto::v1::{Failure, Reason};
use tonic::codegen::http::request::Parts;
use tonic::codegen::http::{Extensions, HeaderMap};
use tonic::{Code, Status};

/// What is none of the calls that there are.
const OTHER: &str = "other";

/// How the calls of a member's sockets are counted.
pub(crate) fn observed(calls: &Calls) -> Observed {
    Observed { calls: calls.clone(), name, reason }
}

/// Every method by its path, named as `Log.Append`. Made once, and kept for ever.
fn methods() -> &'static BTreeMap<String, &'static str> {
    static METHODS: OnceLock<BTreeMap<String, &'static str>> = OnceLock::new();
    METHODS.get_or_init(|| {
        let files = FileDescriptorSet::decode(synod_proto::DESCRIPTORS).unwrap_or_default().file;
        let mut methods = BTreeMap::new();
        for file in &files {
            for service in &file.service {
                for method in &service.method {
                    let name = format!("{}.{}", service.name(), method.name());
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    methods.insert(path, &*name.leak());
                }
            }
        }
        methods
    })
}

fn name(request: &Parts, is_plain: bool) -> &'static str {
    match is_plain {
        true => call_name(&request.method, request.uri.path()).unwrap_or(OTHER),
        false => methods().get(request.uri.path()).copied().unwrap_or(OTHER),
    }
}

/// What an HTTP answer was, for who counts it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Why(pub(super) Reason);

fn reason(headers: &HeaderMap, extensions: &Extensions) -> Option<&'static str> {
    if let Some(Why(reason)) = extensions.get() {
        return Some(reason.word());
    }
    let status = Status::from_header_map(headers)?;
    if status.code() == Code::Ok {
        return Some(DONE);
    }
    Some(Failure::from_status(&status).map_or(OTHER, |failure| failure.reason().word()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn calls_have_names() {
        assert_eq!(methods()["/synod.v1.Log/AppendStream"], "Log.AppendStream");
        let asked = |path: &str| tonic::codegen::http::Request::get(path).body(()).unwrap().into_parts().0;
        assert_eq!(name(&asked("/synod.v1.Log/Read"), false), "Log.Read");
        assert_eq!(name(&asked("/v1/consumers/billing"), true), "GET /v1/consumers/{name}");
        // Whatever is asked for makes no name of its own.
        for (path, is_plain) in [("/synod.v1.Log/Read", true), ("/v1/entries", false), ("/x", true)] {
            assert_eq!(name(&asked(path), is_plain), OTHER, "{path}");
        }
    }

    #[test]
    fn answers_have_reasons() {
        let (mut headers, none) = (HeaderMap::new(), Extensions::new());
        assert_eq!(reason(&headers, &none), None);
        let failure = Failure::new(Reason::ExpectedIndex, "the last index is 7");
        failure.to_status().add_header(&mut headers).unwrap();
        assert_eq!(reason(&headers, &none), Some("EXPECTED_INDEX"));
        let mut plain = Extensions::new();
        plain.insert(Why(Reason::Invalid));
        assert_eq!(reason(&HeaderMap::new(), &plain), Some("INVALID"));
    }
}
