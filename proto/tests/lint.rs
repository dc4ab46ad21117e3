//! Every message, field, value and call for applications, the operator and the tools says what it is.
#![allow(clippy::unwrap_used)]

use prost::Message;
use prost_types::{FileDescriptorProto, FileDescriptorSet, source_code_info::Location};

/// The name of what a location is about, where it has to be documented.
fn named(file: &FileDescriptorProto, path: &[i32]) -> Option<String> {
    let at = |list: usize| usize::try_from(path[list]).unwrap();
    Some(match path {
        [4, _] => file.message_type[at(1)].name().to_owned(),
        [4, _, 2, _] => {
            let message = &file.message_type[at(1)];
            format!("{}.{}", message.name(), message.field[at(3)].name())
        }
        [5, _] => file.enum_type[at(1)].name().to_owned(),
        [5, _, 2, _] => file.enum_type[at(1)].value[at(3)].name().to_owned(),
        [6, _] => file.service[at(1)].name().to_owned(),
        [6, _, 2, _] => {
            let service = &file.service[at(1)];
            format!("{}.{}", service.name(), service.method[at(3)].name())
        }
        _ => return None,
    })
}

fn says_nothing(location: &Location) -> bool {
    location.leading_comments().trim().is_empty() && location.trailing_comments().trim().is_empty()
}

#[test]
fn every_part_is_documented() {
    let set = FileDescriptorSet::decode(synod_proto::DESCRIPTORS).unwrap();
    let ours = |file: &&FileDescriptorProto| ["synod.v1", "synod.admin.v1"].contains(&file.package());
    let (mut bare, mut seen) = (Vec::new(), 0);
    for file in set.file.iter().filter(ours) {
        for location in &file.source_code_info.as_ref().unwrap().location {
            let Some(name) = named(file, &location.path) else { continue };
            seen += 1;
            if says_nothing(location) {
                bare.push(format!("{}: {name}", file.name()));
            }
        }
    }
    assert!(bare.is_empty(), "these have no comment:\n{}", bare.join("\n"));
    assert!(seen > 200, "only {seen} parts were looked at");
}
