//! A library in C that is loaded before the C library of a member's process.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Builds `source` to `library`, with `paths` as texts under the names beside them; what runs a member with it.
pub fn wrapper(source: &str, library: &Path, paths: &[(&str, &PathBuf)]) -> Vec<String> {
    let mut command = Command::new("cc");
    for (name, path) in paths {
        command.arg(format!("-D{name}=\"{}\"", path.display()));
    }
    command.args(["-shared", "-fPIC", "-x", "c", "-", "-o"]).arg(library);
    let mut compiler = command.stdin(Stdio::piped()).spawn().unwrap();
    compiler.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    assert!(compiler.wait().unwrap().success(), "cc failed");
    vec!["env".to_owned(), format!("LD_PRELOAD={}", library.display())]
}
