//! What Synod is built from: bills of materials of the programs that it ships.
//!
//! A bill lists what `cargo tree` says is compiled into a program, its features as they are when the
//! program is built by itself. It names no time and no machine, so the same commit gives the same bill.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use cargo_lock::Lockfile;
use serde_json::{Value, json};

/// The programs that Synod ships, by the name of their package.
pub const PROGRAMS: [&str; 2] = ["synod-sidecar", "synod-operator"];

/// The machine that bills are made for where no other is asked for.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The folder of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A package of a tree.
struct Package {
    name: String,
    version: String,
    license: String,
    repository: String,
}

impl Package {
    /// The package's address: also its name within the bill.
    fn purl(&self) -> String {
        // The only character of a version that has to be escaped.
        format!("pkg:cargo/{}@{}", self.name, self.version.replace('+', "%2B"))
    }
}

/// Packages by their address, and what each depends on.
#[derive(Default)]
struct Tree {
    root: String,
    packages: BTreeMap<String, Package>,
    edges: BTreeMap<String, BTreeSet<String>>,
}

/// The bill of materials of a program, as CycloneDX 1.5.
pub fn bill(program: &str, target: &str) -> Result<Value> {
    let path = workspace().join("Cargo.lock");
    let lock = Lockfile::load(&path).with_context(|| format!("read {}", path.display()))?;
    let tree = parse(&print_tree(program, target)?)?;
    let mut components = Vec::new();
    for (purl, package) in tree.packages.iter().filter(|(purl, _)| **purl != tree.root) {
        components.push(component("library", purl, package, checksum(&lock, package)?));
    }
    let root = tree.packages.get(&tree.root).context("the tree has no root")?;
    let dependencies: Vec<Value> =
        tree.edges.iter().map(|(from, to)| json!({ "ref": from, "dependsOn": to })).collect();
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "tools": { "components": [{ "type": "application", "name": "synod-sbom" }] },
            "component": component("application", &tree.root, root, None),
            "properties": [{ "name": "synod:target", "value": target }],
        },
        "components": components,
        "dependencies": dependencies,
    }))
}

/// What `cargo tree` prints of the packages that are compiled into a program.
fn print_tree(program: &str, target: &str) -> Result<String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(workspace())
        .args(["tree", "--quiet", "--locked", "--edges", "normal", "--prefix", "depth"])
        .args(["--format", "|{p}|{l}|{r}|", "--package", program, "--target", target])
        .output()
        .context("run cargo tree")?;
    ensure!(output.status.success(), "cargo tree failed: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).context("what cargo tree printed is no text")
}

/// Reads lines of the form `DEPTH|NAME vVERSION ...|LICENCE|REPOSITORY|`.
fn parse(text: &str) -> Result<Tree> {
    let mut tree = Tree::default();
    let mut path: Vec<String> = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split('|').collect();
        let [depth, package, license, repository, _] = fields[..] else { bail!("cannot read {line:?}") };
        let depth: usize = depth.parse().with_context(|| format!("cannot read the depth of {line:?}"))?;
        let mut words = package.split(' ');
        let name = words.next().unwrap_or_default();
        let version = words.next().and_then(|word| word.strip_prefix('v'));
        let version = version.with_context(|| format!("{line:?} names no version"))?;
        ensure!(!license.is_empty(), "{name} {version} names no licence");
        let package = Package {
            name: name.to_owned(),
            version: version.to_owned(),
            // Older packages write a slash for OR.
            license: license.split('/').map(str::trim).collect::<Vec<_>>().join(" OR "),
            repository: repository.to_owned(),
        };
        let purl = package.purl();
        path.truncate(depth);
        match path.last() {
            Some(parent) => {
                tree.edges.entry(parent.clone()).or_default().insert(purl.clone());
            }
            None => tree.root.clone_from(&purl),
        }
        tree.edges.entry(purl.clone()).or_default();
        tree.packages.insert(purl.clone(), package);
        path.push(purl);
    }
    Ok(tree)
}

/// The checksum of a package that came from a registry; a package of this workspace has none.
fn checksum(lock: &Lockfile, package: &Package) -> Result<Option<String>> {
    let locked = lock
        .packages
        .iter()
        .find(|locked| locked.name.as_str() == package.name && locked.version.to_string() == package.version);
    let locked = locked.with_context(|| format!("Cargo.lock has no {} {}", package.name, package.version))?;
    Ok(locked.checksum.as_ref().map(ToString::to_string))
}

fn component(kind: &str, purl: &str, package: &Package, checksum: Option<String>) -> Value {
    let mut component = json!({
        "type": kind,
        "bom-ref": purl,
        "name": package.name,
        "version": package.version,
        "purl": purl,
        "licenses": [{ "expression": package.license }],
    });
    if let Some(checksum) = checksum {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
    }
    if !package.repository.is_empty() {
        component["externalReferences"] = json!([{ "type": "vcs", "url": package.repository }]);
    }
    component
}
