//! The command `synod-cluster`: a real Kubernetes on this machine, for Synod's tests and demo.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use synod_cluster::{Cluster, Error, Link, Options, Programs, Progress, Result, find_root, images, machine};

/// A real Kubernetes on this machine, without Docker: a control plane and some nodes, each in
/// namespaces of its own.
///
/// `up` installs and builds what is missing (the first time takes about ten minutes on two
/// processors), `down` removes every process, mount, link and namespace again. Both may be repeated
/// at any time, also after an interrupt.
#[derive(Parser)]
#[command(name = "synod-cluster", version, max_term_width = 80)]
struct Cli {
    /// The checkout of Synod [default: the one around the current folder]
    #[arg(long, global = true, value_name = "FOLDER")]
    root: Option<PathBuf>,
    /// How results are printed
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Text)]
    output: Format,
    #[command(subcommand)]
    command: Action,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For scripts
    Json,
}

#[derive(Args)]
struct Which {
    /// The cluster's name
    #[arg(long, default_value = "dev")]
    name: String,
}

#[derive(Subcommand)]
enum Action {
    /// Bring a cluster up, or mend one
    Up {
        #[command(flatten)]
        which: Which,
        /// How many nodes
        #[arg(long, default_value_t = 3)]
        nodes: u8,
        /// Four free addresses for the link between this machine and the cluster [default: derived
        /// from the checkout and the name]
        #[arg(long, env = "SYNOD_CLUSTER_LINK", value_name = "A.B.C.D/30")]
        link: Option<String>,
    },
    /// Take a cluster down and leave nothing of it but its logs
    Down {
        #[command(flatten)]
        which: Which,
        /// Print nothing but errors
        #[arg(long)]
        quiet: bool,
    },
    /// Say how a cluster stands
    Status(Which),
    /// Print the path of a cluster's kubeconfig
    Kubeconfig(Which),
    /// Run kubectl on a cluster
    Kubectl {
        #[command(flatten)]
        which: Which,
        /// What kubectl is told
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Load an image archive on every node
    Load {
        #[command(flatten)]
        which: Which,
        /// The archive, as `docker save` or `synod-cluster images` write it
        archive: PathBuf,
    },
    /// Build Synod's images, tagged by their content, as archives under target/images
    Images {
        /// Load them on every node of this cluster
        #[arg(long, value_name = "NAME")]
        load: Option<String>,
    },
    /// Build the Kubernetes programs that are not in the cache
    Programs,
    /// Say what this machine lacks, and how to get it; changes nothing
    Doctor,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let progress = Progress::new();
    match &cli.command {
        Action::Up { which, nodes, link } => {
            let link = link.as_deref().map(Link::parse).transpose()?;
            let cluster =
                Cluster::new(&Options { name: which.name.clone(), nodes: *nodes, root: root(cli)?, link })?;
            cluster.up(&progress)?;
            let status = cluster.status()?;
            print(cli, &status, || {
                format!(
                    "Kubernetes {} runs with {} nodes. Use it with\n  export KUBECONFIG={}\n  export PATH={}:$PATH",
                    status.kubernetes_version,
                    status.nodes.len(),
                    status.kubeconfig.display(),
                    cluster.tools().display(),
                )
            });
        }
        Action::Down { which, quiet } => {
            let progress = if *quiet { Progress::silent() } else { progress };
            let options = Options { name: which.name.clone(), nodes: 3, root: root(cli)?, link: None };
            Cluster::new(&options)?.down(&progress)?;
        }
        Action::Status(which) => return status(cli, &which.name),
        Action::Kubeconfig(which) => println!("{}", attach(cli, &which.name)?.kubeconfig().display()),
        Action::Kubectl { which, args } => {
            let mut command = attach(cli, &which.name)?.kubectl();
            command.args(args);
            let status =
                command.status().map_err(|source| Error::Spawn { command: "kubectl".into(), source })?;
            return Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)));
        }
        Action::Load { which, archive } => attach(cli, &which.name)?.load_archive(archive)?,
        Action::Images { load } => build_images(cli, &progress, load.as_deref())?,
        Action::Programs => {
            let programs = Programs::cached()?;
            programs.ensure(&progress)?;
            print(cli, &programs.search_path(), || "all programs are built".into());
        }
        Action::Doctor => {
            let checks = machine::doctor();
            let lines = checks.iter().map(|check| {
                format!("{:<28} {:<8} {}", check.what, if check.ok { "ok" } else { "MISSING" }, check.note)
            });
            print(cli, &checks, || lines.collect::<Vec<_>>().join("\n"));
            return Ok(if checks.iter().all(|check| check.ok) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn status(cli: &Cli, name: &str) -> Result<ExitCode> {
    let status = attach(cli, name)?.status()?;
    print(cli, &status, || {
        let mut text = format!("cluster {}: {}", status.name, if status.up { "up" } else { "NOT UP" });
        for node in &status.nodes {
            text.push_str(&format!("\n{:<26} {}", node.name, if node.ready { "Ready" } else { "NotReady" }));
        }
        for process in &status.processes {
            let pid = process.pid.map_or_else(|| "does not run".into(), |pid| format!("process {pid}"));
            text.push_str(&format!("\n{:<26} {pid}", process.name));
        }
        text
    });
    Ok(if status.up { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn build_images(cli: &Cli, progress: &Progress, load: Option<&str>) -> Result<()> {
    let root = root(cli)?;
    let list = images::build_all(&root, progress)?;
    if let Some(name) = load {
        let cluster = attach(cli, name)?;
        progress.step("Load images on every node", None, |_| cluster.load_images(&list))?;
    }
    print(cli, &list, || {
        let lines = list.iter().map(|image| {
            format!("{:<44} {:>6.1} MiB", image.reference, image.bytes as f64 / f64::from(1 << 20))
        });
        lines.collect::<Vec<_>>().join("\n")
    });
    Ok(())
}

fn root(cli: &Cli) -> Result<PathBuf> {
    if let Some(root) = &cli.root {
        return find_root(root);
    }
    let here =
        std::env::current_dir().map_err(|source| Error::Io { action: "read", path: ".".into(), source })?;
    find_root(&here)
}

fn attach(cli: &Cli, name: &str) -> Result<Cluster> {
    Cluster::attach(&root(cli)?, name, &format!("synod-cluster up --name {name}"))
}

fn print<T: Serialize>(cli: &Cli, value: &T, text: impl FnOnce() -> String) {
    match cli.output {
        Format::Text => println!("{}", text()),
        // Strings, numbers and lists of them always serialise.
        Format::Json => println!("{}", serde_json::to_string_pretty(value).unwrap_or_default()),
    }
}
