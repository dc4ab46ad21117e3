//! The command that writes the bills of materials: `make sbom`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;

/// Write a bill of materials (CycloneDX, JSON) of each program that Synod ships.
#[derive(Parser)]
struct Arguments {
    /// The folder that the bills are written to.
    #[arg(long, default_value = "target/sbom")]
    out: PathBuf,
    /// The machine that the programs are built for.
    #[arg(long, default_value = synod_supply::TARGET)]
    target: String,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    fs::create_dir_all(&arguments.out).with_context(|| format!("create {}", arguments.out.display()))?;
    for program in synod_supply::PROGRAMS {
        let bill = synod_supply::bill(program, &arguments.target)?;
        let path = arguments.out.join(format!("{program}.cdx.json"));
        let mut text = serde_json::to_string_pretty(&bill).context("write the bill as JSON")?;
        text.push('\n');
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}
