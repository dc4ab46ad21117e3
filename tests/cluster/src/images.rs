//! The images of this project, and those every node needs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Serialize;

use crate::error::{At, Error, Result};
use crate::image::{Image, Recipe};
use crate::layout::Layout;
use crate::programs::{Programs, cache_dir};
use crate::progress::Progress;
use crate::run;

/// One of the project's own images.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Product {
    /// The crate.
    pub package: &'static str,
    /// Its program.
    pub bin: &'static str,
    /// The image's name.
    pub image: &'static str,
}

/// All of the project's images. Each holds one static program, run by the user 65532.
pub const PRODUCTS: &[Product] = &[
    Product { package: "synod-sidecar", bin: "synod-sidecar", image: "synod-sidecar" },
    Product { package: "synod-operator", bin: "synod-operator", image: "synod-operator" },
    Product { package: "journal", bin: "journal", image: "journal" },
];

/// The kubectl plugin, which runs on the user's machine and so is in no image.
pub const PLUGIN: &str = "kubectl-synod";

/// The user in the images: numeric, so that Kubernetes can see that it is not root.
pub const USER: &str = "65532";

/// The target of static programs. Named on its own so that procedural macros, which are built for the
/// machine itself, stay dynamic.
fn target() -> &'static str {
    if cfg!(target_arch = "aarch64") { "aarch64-unknown-linux-gnu" } else { "x86_64-unknown-linux-gnu" }
}

/// Builds the programs of `products` (release, static) and, if `plugin`, the kubectl plugin.
///
/// # Errors
/// If cargo fails; `log` then has what it printed.
pub fn build(root: &Path, products: &[Product], plugin: bool, log: &Path, at: impl Fn(&str)) -> Result<()> {
    let mut command = Command::new("cargo");
    let target = target();
    command.current_dir(root).args(["build", "--release", "--locked", "--target", target, "--config"]);
    command.arg(format!("target.{target}.rustflags=[\"-C\",\"target-feature=+crt-static\"]"));
    for product in products {
        command.args(["-p", product.package, "--bin", product.bin]);
    }
    if plugin {
        command.args(["-p", "synod-operator", "--bin", PLUGIN]);
    }
    if let Some(parent) = log.parent() {
        fs::create_dir_all(parent).at("create", parent)?;
    }
    let file = fs::File::create(log).at("create", log)?;
    command.env("CARGO_TERM_COLOR", "never").stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
    let mut child =
        command.spawn().map_err(|source| Error::Spawn { command: run::show(&command), source })?;
    loop {
        let ended = child.try_wait().at("wait for", Path::new("cargo"))?;
        let text = fs::read_to_string(log).unwrap_or_default();
        if let Some(status) = ended {
            return if status.success() {
                Ok(())
            } else {
                let output = crate::error::Output(text);
                Err(Error::Command { command: run::show(&command), status: status.to_string(), output })
            };
        }
        at(text.lines().last().unwrap_or("").trim());
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
}

/// Where cargo puts a program of [`build`].
pub fn built(root: &Path, bin: &str) -> PathBuf {
    let target_dir = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    target_dir.join(target()).join("release").join(bin)
}

/// Builds all of the project's programs, packs them under `target/images` and writes down there what
/// they are called, for [`listed`].
///
/// # Errors
/// The step that failed, with cargo's log.
pub fn build_all(root: &Path, progress: &Progress) -> Result<Vec<Image>> {
    let folder = root.join("target/images");
    let log = folder.join("build.log");
    progress.step("Build Synod's programs", Some(log.clone()), |step| {
        build(root, PRODUCTS, true, &log, |line| step.at(line))
    })?;
    progress.step("Pack images", None, |_| {
        let list = pack(root, PRODUCTS, &folder)?;
        let file = folder.join("images.json");
        fs::write(&file, serde_json::to_string_pretty(&list).unwrap_or_default()).at("write", &file)?;
        Ok(list)
    })
}

/// The images that [`build_all`] made last.
///
/// # Errors
/// [`Error::Missing`] if it never ran here.
pub fn listed(root: &Path) -> Result<Vec<Image>> {
    let file = root.join("target/images/images.json");
    let text = fs::read(&file).map_err(|_| {
        Error::Missing(format!("no images are built in {}; run `synod-cluster images`", root.display()))
    })?;
    serde_json::from_slice(&text).map_err(|error| {
        Error::Invalid(format!("{} is damaged ({error}); build the images again", file.display()))
    })
}

/// Writes the archives of programs that [`build`] made, into `folder`.
///
/// # Errors
/// If a program is missing or an archive cannot be written.
pub fn pack(root: &Path, products: &[Product], folder: &Path) -> Result<Vec<Image>> {
    products
        .iter()
        .map(|product| {
            let inside = format!("/bin/{}", product.bin);
            Recipe {
                name: product.image.into(),
                files: vec![(built(root, product.bin), inside.clone())],
                links: Vec::new(),
                entrypoint: vec![inside],
                user: USER.into(),
                tag: None,
            }
            .write(folder)
        })
        .collect()
}

/// The images every node needs: the sandbox's program, DNS, and a shell for the storage helper.
///
/// # Errors
/// If a program is missing or cannot be compiled.
pub fn base(programs: &Programs, layout: &Layout) -> Result<Vec<Image>> {
    let folder = layout.state.join("images");
    let fixed = |name: &str, source: PathBuf, target: &str, links: Vec<(String, String)>, entry: &[&str]| {
        Recipe {
            name: name.into(),
            files: vec![(source, target.into())],
            links,
            entrypoint: entry.iter().map(|part| (*part).to_owned()).collect(),
            user: String::new(),
            tag: Some("1".into()),
        }
        .write(&folder)
    };
    let busybox = busybox()?;
    let list = run::output(Command::new(&busybox).arg("--list"))?;
    let applets = list
        .lines()
        .filter(|applet| *applet != "busybox")
        .map(|applet| (format!("/bin/{applet}"), "busybox".to_owned()))
        .collect();
    Ok(vec![
        fixed("pause", pause()?, "/pause", Vec::new(), &["/pause"])?,
        fixed("coredns", programs.path("coredns"), "/coredns", Vec::new(), &["/coredns"])?,
        fixed("busybox", busybox, "/bin/busybox", applets, &["/bin/sh"])?,
    ])
}

fn busybox() -> Result<PathBuf> {
    let places = ["/usr/bin/busybox", "/bin/busybox"].map(PathBuf::from);
    places
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| Error::Missing("busybox is missing: `apt-get install busybox-static`".into()))
}

/// Compiles the sandbox's program, once.
fn pause() -> Result<PathBuf> {
    const SOURCE: &str = include_str!("../programs/pause/pause.c");
    let folder = cache_dir()?.join("programs");
    fs::create_dir_all(&folder).at("create", &folder)?;
    let key = crate::layout::hex(&<sha2::Sha256 as sha2::Digest>::digest(SOURCE)[..6]);
    let program = folder.join(format!("pause-{key}"));
    if !program.is_file() {
        let partial = folder.join(format!("pause-{key}.{}", std::process::id()));
        let mut command = Command::new("cc");
        command.args(["-static", "-Os", "-s", "-x", "c", "-o"]).arg(&partial).arg("-");
        run::output_with_input(&mut command, SOURCE.as_bytes())?;
        fs::rename(&partial, &program).at("rename to", &program)?;
    }
    Ok(program)
}
