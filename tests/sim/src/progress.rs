//! What is shown while a sweep runs: a bar on a terminal, else a line every 30 seconds.

use crate::run::Outcome;
use indicatif::{ProgressBar, ProgressStyle};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Shows how far a sweep has come.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    /// The sweep is bounded by time, not by a number of seeds.
    timed: bool,
    began: Instant,
    sums: Mutex<Sums>,
}

#[derive(Debug, Default)]
struct Sums {
    seeds: u64,
    operations: u64,
    simulated: Duration,
    told: Duration,
}

impl Progress {
    /// For a sweep over `seeds` seeds, or for so long.
    pub fn new(seeds: u64, time: Option<Duration>) -> Progress {
        let bar = ProgressBar::new(time.map_or(seeds, |time| time.as_secs()).max(1));
        let style = ProgressStyle::with_template("{elapsed_precise} {wide_bar} {msg}");
        bar.set_style(style.expect("the template names only fields that indicatif has"));
        Progress { bar, timed: time.is_some(), began: Instant::now(), sums: Mutex::default() }
    }

    /// One more run is through.
    pub fn note(&self, outcome: &Outcome) {
        let elapsed = self.began.elapsed();
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        sums.seeds += 1;
        sums.operations += outcome.operations;
        sums.simulated += outcome.simulated;
        let hours = sums.simulated.as_secs_f64() / 3_600.0;
        let millions = sums.operations as f64 / 1e6;
        let line = format!("{} seeds, {hours:.1} h, {millions:.2} M operations", sums.seeds);
        if !self.bar.is_hidden() {
            self.bar.set_position(if self.timed { elapsed.as_secs() } else { sums.seeds });
            self.bar.set_message(line);
        } else if elapsed >= sums.told + Duration::from_secs(30) {
            sums.told = elapsed;
            println!("{:>5} s  {line}", elapsed.as_secs());
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
