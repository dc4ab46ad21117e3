//! Writers inside the pods, whose outcomes stream to the driver as they happen.
//!
//! Each is `journal write` in the application's container, started through its node's own socket, so
//! that a node's partition does not silence it. When its container goes, it is started again in the one
//! that takes its place.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use synod_cluster::{Exec, Result};

use crate::ledger::Ledger;
use crate::stage::{APPLICATION, NAMESPACE, Stage, terminate};

/// Entries a second of each writer.
const RATE: &str = "250";
/// Unanswered appends at a time of each writer.
const IN_FLIGHT: &str = "4";
/// Seconds after which an append that nobody answers has an unknown outcome.
const TIMEOUT: &str = "10";

/// A writer that goes on until it is stopped.
pub(crate) struct Writer {
    stopping: Arc<AtomicBool>,
    running: Arc<Mutex<Option<Command>>>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// Starts a writer in `pod`.
    pub(crate) fn start(stage: &Stage, pod: &str, name: &str, ledger: &Ledger) -> Self {
        let stopping = Arc::new(AtomicBool::new(false));
        let running = Arc::new(Mutex::new(None));
        let thread = {
            let (stage, pod, name, ledger) = (stage.clone(), pod.to_owned(), name.to_owned(), ledger.clone());
            let (stopping, running) = (Arc::clone(&stopping), Arc::clone(&running));
            std::thread::spawn(move || {
                while !stopping.load(Ordering::SeqCst) {
                    // The container may be gone, or not there yet: that is part of the show.
                    let _ = once(&stage, &pod, &name, &ledger, &running);
                    std::thread::sleep(Duration::from_millis(200));
                }
            })
        };
        Writer { stopping, running, thread }
    }

    /// Lets it finish what is under way, and waits until all of it is in the ledger.
    pub(crate) fn stop(self) {
        self.stopping.store(true, Ordering::SeqCst);
        while !self.thread.is_finished() {
            if let Some(command) = self.running.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
                terminate(command);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        let _ = self.thread.join();
    }
}

/// One run of a writer, from its start to its end.
fn once(
    stage: &Stage,
    pod: &str,
    name: &str,
    ledger: &Ledger,
    running: &Mutex<Option<Command>>,
) -> Result<()> {
    let args = [
        "journal",
        "write",
        "--id",
        name,
        "--until-signal",
        "--rate",
        RATE,
        "--in-flight",
        IN_FLIGHT,
        "--timeout",
        TIMEOUT,
    ];
    let Exec { mut command, terminate } = stage.cluster.exec_on_node(NAMESPACE, pod, APPLICATION, &args)?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return Ok(()) };
    set(running, Some(terminate));
    read(&mut child, ledger);
    set(running, None);
    let _ = child.wait();
    Ok(())
}

fn set(running: &Mutex<Option<Command>>, value: Option<Command>) {
    *running.lock().unwrap_or_else(PoisonError::into_inner) = value;
}

fn read(child: &mut Child, ledger: &Ledger) {
    let Some(stdout) = child.stdout.take() else { return };
    let mut reader = BufReader::new(stdout);
    let mut line = String::new();
    // A writer that is killed may leave half a line: its outcome was not told.
    while reader.read_line(&mut line).is_ok_and(|read| read > 0) && line.ends_with('\n') {
        ledger.take(line.trim_end());
        line.clear();
    }
}
