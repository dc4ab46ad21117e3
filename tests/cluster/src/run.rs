//! Running other programs: one place that captures what they print and turns a failure into an error
//! that names the command.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{Error, Output, Result};

/// The command line as a person would type it, cut at 160 characters.
pub fn show(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(command.get_program()).to_string_lossy().into_owned();
    let mut line = program;
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    if line.chars().count() > 160 {
        line = line.chars().take(157).chain("...".chars()).collect();
    }
    line
}

/// Runs a command to its end and gives what it printed on its standard output.
///
/// # Errors
/// [`Error::Spawn`] if it could not be started, [`Error::Command`] if it failed; the latter carries
/// the last lines of its standard error (or output, where that is empty).
pub fn output(command: &mut Command) -> Result<String> {
    finish(command, None)
}

/// Like [`output`], with `input` on the command's standard input.
///
/// # Errors
/// As [`output`].
pub fn output_with_input(command: &mut Command, input: &[u8]) -> Result<String> {
    finish(command, Some(input))
}

/// Whether the command ends with success; what it prints is thrown away.
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn finish(command: &mut Command, input: Option<&[u8]>) -> Result<String> {
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| Error::Spawn { command: show(command), source })?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        // A program that ends without reading its input says why by its status.
        let _ = stdin.write_all(input);
    }
    let done = child.wait_with_output().map_err(|source| Error::Spawn { command: show(command), source })?;
    let stdout = String::from_utf8_lossy(&done.stdout).into_owned();
    if done.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&done.stderr).into_owned();
    let text = if stderr.trim().is_empty() { stdout } else { stderr };
    Err(Error::Command { command: show(command), status: done.status.to_string(), output: Output(text) })
}
