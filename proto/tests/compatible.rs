//! What was promised is kept: no message, field, value or call of `descriptors.txt` is gone or means another thing.
//! `SYNOD_WRITE=1` adds what is new.
#![allow(clippy::unwrap_used)]

use prost::Message;
use prost_types::{DescriptorProto, FileDescriptorSet};
use std::collections::BTreeMap;
use std::path::Path;

/// Each part by its name or number, and what it is.
fn promises() -> BTreeMap<String, String> {
    let set = FileDescriptorSet::decode(synod_proto::DESCRIPTORS).unwrap();
    let mut promises = BTreeMap::new();
    for file in set.file.iter().filter(|file| file.package().starts_with("synod.")) {
        let package = file.package();
        for message in &file.message_type {
            promise_message(package, message, &mut promises);
        }
        for of in &file.enum_type {
            for value in &of.value {
                promises
                    .insert(format!("{package}.{} = {}", of.name(), value.number()), value.name().to_owned());
            }
        }
        for service in &file.service {
            for method in &service.method {
                let stream = |yes| if yes { "stream " } else { "" };
                let shape = format!(
                    "{}{} -> {}{}",
                    stream(method.client_streaming()),
                    method.input_type(),
                    stream(method.server_streaming()),
                    method.output_type()
                );
                promises.insert(format!("{package}.{}/{}", service.name(), method.name()), shape);
            }
        }
    }
    promises
}

fn promise_message(package: &str, message: &DescriptorProto, promises: &mut BTreeMap<String, String>) {
    for field in &message.field {
        let kind = match field.type_name() {
            "" => format!("{:?}", field.r#type()),
            name => name.to_owned(),
        };
        let of = field.oneof_index.filter(|_| !field.proto3_optional());
        let of = of.map_or("", |index| message.oneof_decl[usize::try_from(index).unwrap()].name());
        let what = format!("{:?} {kind} {} {of}", field.label(), field.name());
        promises
            .insert(format!("{package}.{} = {}", message.name(), field.number()), what.trim_end().to_owned());
    }
}

#[test]
fn nothing_that_was_promised_is_broken() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("descriptors.txt");
    let now = promises();
    if std::env::var_os("SYNOD_WRITE").is_some() {
        let text: String = now.iter().map(|(part, what)| format!("{part}: {what}\n")).collect();
        std::fs::write(&path, text).unwrap();
        return;
    }
    let text = std::fs::read_to_string(&path).unwrap();
    let promised: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once(": ")).collect();
    let broken: Vec<String> = promised
        .iter()
        .filter(|(part, what)| now.get(**part).map(String::as_str) != Some(**what))
        .map(|(part, what)| format!("{part}: was {what}, is {:?}", now.get(*part)))
        .collect();
    assert!(broken.is_empty(), "clients of the last version break:\n{}", broken.join("\n"));
    let new: Vec<&String> = now.keys().filter(|part| !promised.contains_key(part.as_str())).collect();
    assert!(new.is_empty(), "write down what is new (SYNOD_WRITE=1): {new:?}");
}
