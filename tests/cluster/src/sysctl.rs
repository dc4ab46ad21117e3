//! kubelet sets a few of the whole machine's settings. They are remembered before the first cluster
//! starts and put back when the last one goes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::error::{At, Result};

const FILE: &str = "/run/synod-sysctl.json";

const SETTINGS: &[&str] = &[
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// Writes down the settings as they are, unless an earlier cluster's start did.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn remember() -> Result<()> {
    let file = Path::new(FILE);
    if file.is_file() {
        return Ok(());
    }
    let values: BTreeMap<&str, String> = SETTINGS
        .iter()
        .filter_map(|name| Some((*name, fs::read_to_string(place(name)).ok()?.trim().to_owned())))
        .collect();
    let partial = file.with_extension("partial");
    fs::write(&partial, serde_json::to_string_pretty(&values).unwrap_or_default()).at("write", &partial)?;
    fs::rename(&partial, file).at("rename to", file)
}

/// Puts the settings back.
///
/// # Errors
/// If the file cannot be removed. A setting that cannot be written is left as it is.
pub(crate) fn restore() -> Result<()> {
    let file = Path::new(FILE);
    let Ok(text) = fs::read(file) else { return Ok(()) };
    let values: BTreeMap<String, String> = serde_json::from_slice(&text).unwrap_or_default();
    for (name, value) in values {
        let path = place(&name);
        if fs::read_to_string(&path).is_ok_and(|now| now.trim() != value) {
            let _ = fs::write(&path, value);
        }
    }
    fs::remove_file(file).at("remove", file)
}

fn place(name: &str) -> std::path::PathBuf {
    Path::new("/proc/sys").join(name)
}
