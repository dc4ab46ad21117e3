//! The bills of materials hold what the programs are built from.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;
use synod_supply::{PROGRAMS, TARGET, bill, workspace};

/// The dependencies that a package's own Cargo.toml names for the program, as cargo reads them.
fn direct(program: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .current_dir(workspace())
        .args(["metadata", "--no-deps", "--locked", "--format-version", "1"])
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let package = list(&metadata, "packages")
        .iter()
        .find(|package| package["name"] == program)
        .expect("in the workspace");
    list(package, "dependencies")
        .iter()
        .filter(|dependency| dependency["kind"].is_null() && dependency["target"].is_null())
        .filter(|dependency| dependency["optional"] == false)
        .map(|dependency| text(dependency, "name").to_owned())
        .collect()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("{key} is no list in {value}"))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} is no text in {value}"))
}

#[test]
fn a_bill_names_every_direct_dependency_with_version_address_and_licence() {
    for program in PROGRAMS {
        // As a reader gets it: written and parsed.
        let bill = bill(program, TARGET).expect("a bill");
        let bill: Value = serde_json::from_str(&bill.to_string()).expect("JSON");
        assert_eq!(text(&bill, "bomFormat"), "CycloneDX");
        assert_eq!(text(&bill, "specVersion"), "1.5");
        let root = &bill["metadata"]["component"];
        assert_eq!(text(root, "name"), program);

        let edges = list(&bill, "dependencies");
        let of_root =
            edges.iter().find(|edge| edge["ref"] == root["bom-ref"]).expect("the root's dependencies");
        let names = direct(program);
        assert!(names.len() > 10, "{names:?}");
        for name in names {
            let components: Vec<&Value> = list(&bill, "components")
                .iter()
                .filter(|component| component["name"] == name.as_str())
                .collect();
            assert!(
                components.iter().any(|component| list(of_root, "dependsOn").contains(&component["bom-ref"])),
                "{program} depends on {name}, which its bill does not say",
            );
        }
    }
}

#[test]
fn every_component_is_complete_and_every_reference_leads_to_one() {
    for program in PROGRAMS {
        let bill = bill(program, TARGET).expect("a bill");
        let mut references = BTreeSet::from([text(&bill["metadata"]["component"], "bom-ref")]);
        for component in list(&bill, "components") {
            let (name, version) = (text(component, "name"), text(component, "version"));
            assert!(version.starts_with(|c: char| c.is_ascii_digit()), "{component}");
            assert_eq!(text(component, "purl"), format!("pkg:cargo/{name}@{}", version.replace('+', "%2B")));
            assert!(!text(&list(component, "licenses")[0], "expression").is_empty(), "{component}");
            if name.starts_with("synod-") {
                assert!(component.get("hashes").is_none(), "{component}");
            } else {
                assert_eq!(text(&list(component, "hashes")[0], "content").len(), 64, "{component}");
            }
            assert!(references.insert(text(component, "bom-ref")), "{name} {version} is there twice");
        }
        for edge in list(&bill, "dependencies") {
            assert!(references.contains(text(edge, "ref")), "{edge}");
            for to in list(edge, "dependsOn") {
                assert!(references.contains(to.as_str().expect("a reference")), "{edge}");
            }
        }
    }
}

#[test]
fn what_only_tests_need_is_in_no_bill() {
    for program in PROGRAMS {
        let bill = bill(program, TARGET).expect("a bill");
        for component in list(&bill, "components") {
            assert!(
                !["proptest", "rustsec", "synod-sim", "trybuild"].contains(&text(component, "name")),
                "{component}"
            );
        }
    }
}
