//! The driver behind `make demo`: from nothing to a verdict.

mod install;
mod job;
mod stage;
mod summary;
mod text;
mod verdict;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use synod_cluster::image::Image;
use synod_cluster::{Cluster, Error, Link, Options, Programs, Progress, Result, find_root, images, machine};

use crate::job::Found;
use crate::stage::{NAME, NAMESPACE, Stage};
use crate::summary::{Seconds, Summary};

/// Show Synod at work on a real Kubernetes of three nodes, made on this machine.
///
/// Builds what is missing, installs the operator, applies manifests/examples/demo.yaml, and does a job
/// that can be followed: a text goes in and comes back, and writers go on while the cluster grows,
/// shrinks, and loses its leader in three ways. Ends with a table and target/demo/summary.json, and
/// leaves everything running. Fails if anything that was acknowledged is not found.
#[derive(Parser)]
#[command(name = "synod-demo", version, max_term_width = 80)]
struct Cli {
    /// The cluster's name
    #[arg(long, default_value = "demo")]
    name: String,
    /// Four free addresses for the link between this machine and the cluster [default: derived from
    /// the checkout and the name]
    #[arg(long, env = "SYNOD_CLUSTER_LINK", value_name = "A.B.C.D/30")]
    link: Option<String>,
    /// Use Synod's images as they were built last
    #[arg(long)]
    no_build: bool,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the verdict holds.
fn run(cli: &Cli) -> Result<bool> {
    let io = |action: &'static str, path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::Io { action, path, source }
    };
    let here = std::env::current_dir().map_err(io("read", Path::new(".")))?;
    let root = find_root(&here)?;
    let folder = root.join("target/demo");
    fs::create_dir_all(&folder).map_err(io("create", &folder))?;
    let link = cli.link.as_deref().map(Link::parse).transpose()?;
    let cluster = Cluster::new(&Options { name: cli.name.clone(), nodes: 3, root: root.clone(), link })?;
    let progress = Progress::new();
    let stage = Stage { cluster };
    let mut seconds = Seconds::default();

    let images = timed(&mut seconds.build, || {
        progress.step("Machine: root, Go, packages", None, machine::ensure)?;
        progress.step("Addresses", None, |_| stage.cluster.check_addresses())?;
        Programs::cached()?.ensure(&progress)?;
        if cli.no_build { images::listed(&root) } else { images::build_all(&root, &progress) }
    })?;
    timed(&mut seconds.cluster, || {
        // A run before this one may have been interrupted anywhere: start from nothing.
        stage.cluster.down(&progress)?;
        stage.cluster.up(&progress)?;
        progress.step("Load images on every node", None, |_| stage.cluster.load_images(&images))
    })?;
    let shown = show(&stage, &root, &folder, &images, &progress, &mut seconds);
    let (manifest, found) = shown.inspect_err(|_| {
        let report = folder.join("failure.log");
        if stage::write_report(&stage, &report).is_ok() {
            eprintln!("How everything stood when it failed: {}", shorten(&root, &report));
        }
    })?;

    let verdict = verdict::judge(&found.evidence);
    let status = stage.cluster.status()?;
    let evidence = found.evidence;
    let summary = Summary {
        kubernetes_version: status.kubernetes_version,
        nodes: status.nodes.len(),
        lines: found.lines,
        sha256_in: evidence.sha256_in,
        sha256_out: evidence.sha256_out,
        appends_acknowledged: evidence.text.len() + evidence.writers.len(),
        writers_acknowledged: evidence.writers.len(),
        repeated: found.repeated,
        refused: found.refused,
        longest_write_gap_ms: found.gaps,
        configurations: found.configurations,
        leaders: found.leaders,
        seconds,
        ..Summary::default()
    }
    .judged(&verdict);
    let file = folder.join("summary.json");
    let text = serde_json::to_string_pretty(&summary).unwrap_or_default();
    fs::write(&file, text + "\n").map_err(io("write", &file))?;
    println!("\n{}\nSummary: {}", summary.table(), shorten(&root, &file));
    println!("{}", next(&stage, &root, &manifest));
    Ok(verdict.holds())
}

/// Installs, applies, waits and does the job on a cluster that runs.
fn show(
    stage: &Stage,
    root: &Path,
    folder: &Path,
    images: &[Image],
    progress: &Progress,
    seconds: &mut Seconds,
) -> Result<(PathBuf, Found)> {
    let manifest = timed(&mut seconds.install, || {
        stage.cluster.link_tool(images::PLUGIN, &images::built(root, images::PLUGIN))?;
        progress.step("helm install synod charts/synod", None, |_| install::operator(stage, root, images))?;
        progress.step("kubectl apply -f manifests/examples/demo.yaml", None, |_| {
            install::cluster(stage, root, folder, images)
        })
    })?;
    timed(&mut seconds.ready, || {
        progress.step("kubectl wait --for=condition=Ready", None, |_| install::wait_ready(stage))
    })?;
    let found = timed(&mut seconds.job, || job::run(stage, progress))?;
    Ok((manifest, found))
}

fn timed<T>(seconds: &mut f64, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    let result = body();
    // A tenth is all that a person reads.
    *seconds = (began.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    result
}

/// What to try now that everything runs.
fn next(stage: &Stage, root: &Path, manifest: &Path) -> String {
    let tools: PathBuf = stage.cluster.tools();
    let show = |path: &Path| shorten(root, path);
    format!(
        "\nEverything is left running. Try:\n\
         \x20 export KUBECONFIG=$PWD/{config} PATH=$PWD/{tools}:$PATH\n\
         \x20 kubectl config set-context --current --namespace {NAMESPACE}\n\
         \x20 kubectl get paxos -o wide\n\
         \x20 kubectl describe paxos/{NAME}\n\
         \x20 kubectl synod status {NAME}\n\
         \x20 kubectl exec {NAME}-0 -c synod -- synod-sidecar append hello\n\
         \x20 kubectl exec {NAME}-1 -c synod -- synod-sidecar tail -f\n\
         \x20 kubectl scale paxos/{NAME} --replicas=5\n\
         What was applied: {manifest}. To remove it all: make demo-down",
        config = show(&stage.cluster.kubeconfig()),
        tools = show(&tools),
        manifest = show(manifest),
    )
}

fn shorten(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}
