//! Writers inside the pods, whose outcomes stream to the driver as they happen.
//!
//! Each is `journal write` in the application's container, started through its node's own socket, so
//! that a node's partition does not silence it. When its container goes, it is started again in the one
//! that takes its place, from the first entry whose outcome was not told.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use synod_cluster::{Cluster, Exec, Result};

use super::{Ledger, now_ms};

/// Entries a second of each writer. The log remembers 100,000 keys, each for an hour: at this rate two writers may go on
/// for a quarter of an hour before a new key is refused.
const RATE: &str = "50";
/// Unanswered appends at a time of each writer.
const IN_FLIGHT: &str = "4";
/// Seconds for which a writer tries each append: longer than any fault of the job lasts, so that in the end it
/// always knows.
const TIMEOUT: &str = "120";

/// How a writer's appends are told from repeats of them.
#[derive(Debug, Clone, Copy)]
pub enum Once {
    /// By the client's session, which is the default of every application; it ends with the process.
    Session,
    /// By a key for each entry: the writer may be killed and started again.
    Keys {
        /// An index that was in the log before the writer began.
        minted_at: u64,
    },
}

/// Where a writer runs.
#[derive(Debug, Clone)]
pub struct Place {
    /// The Kubernetes.
    pub cluster: Cluster,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod, which may be replaced by another of the same name.
    pub pod: String,
    /// The application's container, which has the program `journal`.
    pub container: String,
}

/// A writer that goes on until it is stopped.
#[derive(Debug)]
pub struct Writer {
    stopping: Arc<AtomicBool>,
    running: Arc<Mutex<Option<Command>>>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// Starts a writer.
    pub fn start(place: Place, name: &str, once: Once, ledger: &Ledger) -> Self {
        let stopping = Arc::new(AtomicBool::new(false));
        let running = Arc::new(Mutex::new(None));
        let mut course = Course {
            place,
            name: name.to_owned(),
            run: format!("{name}-{}", now_ms()),
            once,
            ledger: ledger.clone(),
            told: Told::default(),
        };
        let thread = {
            let (stopping, running) = (Arc::clone(&stopping), Arc::clone(&running));
            std::thread::spawn(move || {
                loop {
                    let last = stopping.load(Ordering::SeqCst);
                    // The container may be gone, or not there yet: that is part of the show.
                    let finished = course.start(last, &running).unwrap_or(false);
                    if finished && stopping.load(Ordering::SeqCst) {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(200));
                }
            })
        };
        Writer { stopping, running, thread }
    }

    /// Lets it finish what is under way, and waits until all of it is in the ledger.
    pub fn stop(self) {
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

/// Which entries' outcomes are known.
#[derive(Debug, Default)]
struct Told {
    /// All up to this one.
    through: u64,
    /// And these.
    beyond: BTreeSet<u64>,
}

impl Told {
    fn note(&mut self, seq: u64) {
        if seq > self.through {
            self.beyond.insert(seq);
        }
        while self.beyond.remove(&(self.through + 1)) {
            self.through += 1;
        }
    }
}

/// A writer's life over all its starts.
struct Course {
    place: Place,
    name: String,
    run: String,
    once: Once,
    ledger: Ledger,
    told: Told,
}

impl Course {
    /// One start, to its end. `last`: only what an earlier start may have left untold is done. Returns whether
    /// it ended by itself, with all outcomes told.
    fn start(&mut self, last: bool, running: &Mutex<Option<Command>>) -> Result<bool> {
        let first = (self.told.through + 1).to_string();
        let mut args = vec!["journal", "write", "--id", &self.name, "--rate", RATE];
        args.extend(["--in-flight", IN_FLIGHT, "--timeout", TIMEOUT]);
        let minted_at;
        match self.once {
            // A process of its own is a session of its own, and a run of its own.
            Once::Session => {}
            Once::Keys { minted_at: index } => {
                minted_at = index.to_string();
                args.extend(["--run", &self.run, "--keyed", "--first", &first, "--minted-at", &minted_at]);
            }
        }
        args.extend(if last { &["--count", IN_FLIGHT][..] } else { &["--until-signal"] });
        let Place { cluster, namespace, pod, container } = &self.place;
        let exec = cluster.exec_on_node(namespace, pod, container, &args)?;
        let Exec { mut command, terminate } = exec;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let Ok(mut child) = command.spawn() else { return Ok(false) };
        set(running, Some(terminate));
        self.read(&mut child);
        set(running, None);
        Ok(child.wait().is_ok_and(|status| status.success()))
    }

    fn read(&mut self, child: &mut Child) {
        let Some(stdout) = child.stdout.take() else { return };
        let mut reader = BufReader::new(stdout);
        let mut line = String::new();
        // A writer that is killed may leave half a line: its outcome was not told.
        while reader.read_line(&mut line).is_ok_and(|read| read > 0) && line.ends_with('\n') {
            if let Some(seq) = self.ledger.take(line.trim_end()) {
                self.told.note(seq);
            }
            line.clear();
        }
    }
}

/// Ends a child and reaps it.
fn terminate(terminate: &mut Command) {
    let _ = terminate.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
}

fn set(running: &Mutex<Option<Command>>, value: Option<Command>) {
    *running.lock().unwrap_or_else(PoisonError::into_inner) = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_goes_on_from_the_first_that_was_not_told() {
        let mut told = Told::default();
        for seq in [1, 2, 5, 4] {
            told.note(seq);
        }
        assert_eq!(told.through, 2);
        told.note(3);
        assert_eq!((told.through, told.beyond.len()), (5, 0));
        told.note(3);
        assert_eq!((told.through, told.beyond.len()), (5, 0));
    }
}
