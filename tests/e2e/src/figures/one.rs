//! One log: how long its steps take, and how long nothing is acknowledged meanwhile.

use std::time::{Duration, Instant};

use super::Figure;
use crate::Test;
use crate::load::{Load, now_ms};

const FIVE: [&str; 5] = ["log-0", "log-1", "log-2", "log-3", "log-4"];
/// How long a gap is looked for behind a step that takes a moment.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// What is measured of a step under load: its seconds, the longest gap, and calls that failed.
struct Step {
    seconds: Figure,
    gap: Figure,
}

impl Step {
    fn new(name: &str, seconds: f64, gap: f64) -> Step {
        Step {
            seconds: Figure::new(name, "s", seconds),
            gap: Figure::new(&format!("{name}: longest gap"), "ms", gap),
        }
    }

    fn take(&mut self, load: &Load, step: impl FnOnce()) {
        let (began, began_ms) = (Instant::now(), now_ms());
        step();
        self.seconds.measured.push(began.elapsed().as_secs_f64());
        // A gap's end is an acknowledgement.
        std::thread::sleep(AFTERWARDS);
        #[allow(clippy::cast_precision_loss)]
        self.gap.measured.push(load.longest_gap(began_ms, now_ms()) as f64);
    }
}

fn scale(test: &Test, voters: u64) {
    test.kubectl(&["scale", "paxos/log", &format!("--replicas={voters}")]);
    test.wait_log("log", voters);
}

fn hand_over(test: &Test) {
    let leader = test.leader("log");
    let other = FIVE[..3].iter().find(|pod| **pod != leader).copied().unwrap_or(FIVE[0]);
    let id = test.members("log").get(other).cloned().unwrap_or_default();
    let arguments = ["synod-sidecar", "admin", "transfer-leader", "--data-dir", "/data", &id];
    test.exec(&leader, "synod", &arguments);
    test.wait("another leader", 60, || (test.leader("log") == other).then_some(()));
}

fn restart_all(test: &Test) {
    let before = test.pod_uids(&FIVE);
    test.kubectl(&["rollout", "restart", "statefulset/log"]);
    test.wait_replaced(&FIVE, &before);
    test.wait_log("log", 5);
}

fn lose_a_service(test: &Test) -> f64 {
    let uid = test.get("service", "log-peers")["metadata"]["uid"].clone();
    test.kubectl(&["delete", "service", "log-peers", "--wait=false"]);
    let began = Instant::now();
    test.wait("another Service", 60, || {
        let found = test.try_kubectl(&["get", "service", "log-peers", "-o", "json"]).ok()?;
        let found: serde_json::Value = serde_json::from_str(&found).ok()?;
        (found["metadata"]["uid"] != uid).then_some(())
    });
    began.elapsed().as_secs_f64()
}

/// Measures each step in `rounds` logs, one after the other, with writers in two of its pods.
///
/// # Panics
/// If a step does not end, or an acknowledged entry is lost.
pub fn measure(rounds: usize) -> Vec<Figure> {
    let mut ready = Figure::new("apply of three to Ready", "s", 20.0);
    let mut grow = Step::new("3 to 5", 30.0, 300.0);
    let mut shrink = Step::new("5 to 3", 20.0, 300.0);
    let mut hand = Step::new("planned hand-over", 60.0, 50.0);
    let mut roll = Step::new("rolling restart of 5", 120.0, 300.0);
    let mut back = Figure::new("a deleted Service is back", "s", 5.0);
    let mut failed = Figure::new("calls that failed", "", 0.0);
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        let test = Test::new(&format!("figures-{round}"));
        test.install_operator();
        let began = Instant::now();
        test.apply_journal("log", 3, "", "");
        test.wait_log("log", 3);
        ready.measured.push(began.elapsed().as_secs_f64());
        let load = Load::start(&test, &FIVE[..2]);
        hand.take(&load, || hand_over(&test));
        grow.take(&load, || scale(&test, 5));
        roll.take(&load, || restart_all(&test));
        back.measured.push(lose_a_service(&test));
        shrink.take(&load, || scale(&test, 3));
        let judged = load.judge(&test, &FIVE[..3]);
        judged.nothing_was_lost();
        #[allow(clippy::cast_precision_loss)]
        failed.measured.push((judged.refused + judged.unknown) as f64);
    }
    let steps = [grow, shrink, roll, hand].into_iter().flat_map(|step| [step.seconds, step.gap]);
    std::iter::once(ready).chain(steps).chain([back, failed]).collect()
}
