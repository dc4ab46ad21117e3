//! Steps with elapsed time, for a person who waits: a spinner on a terminal, plain lines elsewhere.
//!
//! ```text
//! [  0.4s] Machine: packages, Go, Rust ... ok 0.3s
//! [ 14.2s] Nodes Ready ... ok 6.1s
//! ```

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::error::{Error, Result};

/// How often a step that says nothing new repeats itself where there is no terminal.
const REPEAT: Duration = Duration::from_secs(30);

/// Where progress goes. Cheap to clone; clones share the clock.
#[derive(Clone)]
pub struct Progress {
    start: Instant,
    shown: bool,
    terminal: bool,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// Prints on standard error, which keeps standard output for results.
    pub fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Progress { start: Instant::now(), shown: true, terminal }
    }

    /// Prints nothing: for tests.
    pub fn silent() -> Self {
        Progress { start: Instant::now(), shown: false, terminal: false }
    }

    /// Time since this progress began.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Prints one line with the time.
    pub fn note(&self, text: &str) {
        if self.shown {
            eprintln!("[{:>6.1}s] {text}", self.elapsed().as_secs_f64());
        }
    }

    /// Runs one step: prints its name, then how long it took.
    ///
    /// # Errors
    /// [`Error::Step`] around whatever the step failed with: the step, the reason and `log`.
    pub fn step<T>(
        &self,
        name: &str,
        log: Option<PathBuf>,
        body: impl FnOnce(&Step) -> Result<T>,
    ) -> Result<T> {
        let step = Step::new(self, name);
        let began = Instant::now();
        match body(&step) {
            Ok(value) => {
                step.end(&format!("{name} ... ok {:.1}s", began.elapsed().as_secs_f64()));
                Ok(value)
            }
            Err(source) => {
                step.end(&format!("{name} ... FAILED after {:.1}s", began.elapsed().as_secs_f64()));
                Err(Error::Step { step: name.to_owned(), source: Box::new(source), log })
            }
        }
    }
}

/// One running step, which may say how far it is.
pub struct Step {
    progress: Progress,
    name: String,
    bar: Option<ProgressBar>,
    last: Arc<Mutex<Instant>>,
}

impl Step {
    fn new(progress: &Progress, name: &str) -> Self {
        let bar = (progress.shown && progress.terminal).then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
                bar.set_style(style);
            }
            bar.set_message(name.to_owned());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Step {
            progress: progress.clone(),
            name: name.to_owned(),
            bar,
            last: Arc::new(Mutex::new(Instant::now())),
        }
    }

    /// Says how far the step is. Without a terminal at most one line every 30 s is printed.
    pub fn at(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {text}", self.name));
            return;
        }
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if last.elapsed() >= REPEAT {
            *last = Instant::now();
            self.progress.note(&format!("{}: {text}", self.name));
        }
    }

    fn end(&self, line: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.progress.note(line);
    }
}
