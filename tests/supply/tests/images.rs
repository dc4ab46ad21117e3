//! Images are built on bases that a digest names: the same commit gives the same base.

use std::fs;

use synod_supply::workspace;

#[test]
fn each_base_image_is_empty_or_named_by_its_digest() {
    for dockerfile in ["sidecar/Dockerfile", "operator/Dockerfile", "examples/journal/Dockerfile"] {
        let text = fs::read_to_string(workspace().join(dockerfile)).expect("a Dockerfile");
        let bases: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("FROM "))
            .map(|rest| rest.split(' ').next().unwrap_or_default())
            .collect();
        assert_eq!(bases.last(), Some(&"scratch"), "{dockerfile}");
        for base in bases {
            let digest = base.split_once("@sha256:").map(|(_, digest)| digest);
            let named = digest
                .is_some_and(|digest| digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()));
            assert!(base == "scratch" || named, "{dockerfile} builds on {base}, which no digest names");
        }
    }
}
