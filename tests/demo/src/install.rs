//! From an empty cluster to a Ready PaxosCluster, the way a user goes: Helm, then one manifest.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use synod_cluster::image::Image;
use synod_cluster::{Error, Result, run};

use crate::stage::{NAME, NAMESPACE, SYSTEM, Stage};

/// The example that the demo runs, and the image in it that stands for the one built here.
const EXAMPLE: &str = "manifests/examples/demo.yaml";
const EXAMPLE_IMAGE: &str = "synod/journal:";

/// Installs the operator with the chart.
pub(crate) fn operator(stage: &Stage, root: &Path, images: &[Image]) -> Result<()> {
    let mut command = stage.cluster.helm();
    command.current_dir(root).args(["upgrade", "--install", "synod", "charts/synod"]);
    command.args(["--namespace", SYSTEM, "--create-namespace", "--wait", "--timeout", "120s"]);
    for (value, name) in [("image", "synod-operator"), ("sidecarImage", "synod-sidecar")] {
        let (repository, tag) = split(find(images, name)?)?;
        command.args(["--set-string", &format!("{value}.repository={repository}")]);
        command.args(["--set-string", &format!("{value}.tag={tag}")]);
    }
    run::output(&mut command).map(drop)
}

/// Applies the example, with the image of the application that was built here. Returns the manifest.
pub(crate) fn cluster(stage: &Stage, root: &Path, folder: &Path, images: &[Image]) -> Result<PathBuf> {
    let source = root.join(EXAMPLE);
    let read = |path: &Path| {
        fs::read_to_string(path).map_err(|source| Error::Io { action: "read", path: path.into(), source })
    };
    let manifest = with_image(&read(&source)?, find(images, "journal")?)?;
    let target = folder.join("demo.yaml");
    fs::write(&target, manifest).map_err(|source| Error::Io {
        action: "write",
        path: target.clone(),
        source,
    })?;
    run::output(stage.cluster.kubectl().args(["apply", "-f"]).arg(&target))?;
    Ok(target)
}

/// Waits, as a user would, until the PaxosCluster is Ready.
pub(crate) fn wait_ready(stage: &Stage) -> Result<()> {
    let waited = run::output(stage.cluster.kubectl().args([
        "-n",
        NAMESPACE,
        "wait",
        &format!("paxos/{NAME}"),
        "--for=condition=Ready",
        "--timeout=180s",
    ]));
    // kubectl says only that it did not happen; the object says why.
    let patience = if waited.is_ok() { 30 } else { 1 };
    stage.wait_ready(3, Duration::from_secs(patience))
}

fn find<'a>(images: &'a [Image], name: &str) -> Result<&'a str> {
    let prefix = format!("localhost/{name}:");
    let found = images.iter().find(|image| image.reference.starts_with(&prefix));
    found
        .map(|image| image.reference.as_str())
        .ok_or_else(|| Error::Invalid(format!("the image {name} was not built")))
}

fn split(reference: &str) -> Result<(&str, &str)> {
    reference.rsplit_once(':').ok_or_else(|| Error::Invalid(format!("the image {reference} has no tag")))
}

/// The manifest with the application's image replaced.
fn with_image(manifest: &str, image: &str) -> Result<String> {
    let mut replaced = 0;
    let mut lines = Vec::new();
    for line in manifest.lines() {
        match line.split_once("image: ") {
            Some((before, old)) if old.trim().starts_with(EXAMPLE_IMAGE) => {
                replaced += 1;
                lines.push(format!("{before}image: {image}"));
            }
            _ => lines.push(line.to_owned()),
        }
    }
    if replaced == 1 {
        return Ok(lines.join("\n") + "\n");
    }
    Err(Error::Invalid(format!("{EXAMPLE} names an image {EXAMPLE_IMAGE} {replaced} times, not once")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_takes_the_image_that_was_built() {
        let manifest = include_str!("../../../manifests/examples/demo.yaml");
        let made = with_image(manifest, "localhost/journal:0123").unwrap();
        assert!(made.contains("image: localhost/journal:0123\n"));
        assert!(!made.contains(EXAMPLE_IMAGE));
        assert!(
            made.contains(&format!("namespace: {NAMESPACE}\n")) && made.contains(&format!("name: {NAME}\n"))
        );
    }

    #[test]
    fn an_example_without_the_image_is_refused() {
        assert!(with_image("image: other/journal:1\n", "localhost/journal:0123").is_err());
    }
}
