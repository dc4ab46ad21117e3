//! What the operator counts, in the text format of Prometheus.

use std::sync::Mutex;
use std::sync::PoisonError;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::plan::GateKind;

/// One label and its value.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Named {
    /// The gate, step or error.
    pub name: String,
}

/// The operator's metrics.
pub struct Metrics {
    registry: Mutex<Registry>,
    reconciles: Counter,
    errors: Family<Named, Counter>,
    steps: Family<Named, Counter>,
    gates: Family<Named, Counter>,
    seconds: Histogram,
    leading: Gauge,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    /// Registers all metrics; a gate or step that never happened is not shown.
    pub fn new() -> Metrics {
        let mut registry = Registry::with_prefix("synod_operator");
        let reconciles = Counter::default();
        let (errors, steps, gates) =
            (Family::default(), Family::default(), Family::<Named, Counter>::default());
        let seconds = Histogram::new(exponential_buckets(0.001, 2.0, 16));
        let leading = Gauge::default();
        registry.register("reconciles", "Reconciles that were started", reconciles.clone());
        registry.register("errors", "Reconciles that failed, by kind of error", errors.clone());
        registry.register("steps", "Steps that were taken, by kind", steps.clone());
        registry.register("gates", "Reconciles that waited, by what they waited for", gates.clone());
        registry.register("reconcile_seconds", "Duration of a reconcile", seconds.clone());
        registry.register("leader", "1 while this process holds the lease", leading.clone());
        Metrics { registry: Mutex::new(registry), reconciles, errors, steps, gates, seconds, leading }
    }

    /// A reconcile was started.
    pub fn reconcile(&self) {
        self.reconciles.inc();
    }

    /// A reconcile took this long.
    pub fn took(&self, seconds: f64) {
        self.seconds.observe(seconds);
    }

    /// A reconcile failed.
    pub fn error(&self, kind: &str) {
        self.errors.get_or_create(&Named { name: kind.to_owned() }).inc();
    }

    /// A step was taken.
    pub fn step(&self, kind: &str) {
        self.steps.get_or_create(&Named { name: kind.to_owned() }).inc();
    }

    /// A reconcile waited.
    pub fn gate(&self, kind: GateKind) {
        self.gates.get_or_create(&Named { name: kind.as_str().to_owned() }).inc();
    }

    /// Whether this process holds the lease.
    pub fn leading(&self, leading: bool) {
        self.leading.set(i64::from(leading));
    }

    /// All metrics as text.
    pub fn text(&self) -> String {
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        // Writing to a String fails only if a metric's own encoder does; half a page is worse than none.
        match prometheus_client::encoding::text::encode(&mut text, &registry) {
            Ok(()) => text,
            Err(_) => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gate_has_a_counter_of_its_own() {
        let metrics = Metrics::new();
        metrics.gate(GateKind::QuorumLost);
        metrics.gate(GateKind::QuorumLost);
        metrics.step("scale");
        let text = metrics.text();
        assert!(text.contains("synod_operator_gates_total{name=\"quorum_lost\"} 2"), "{text}");
        assert!(text.contains("synod_operator_steps_total{name=\"scale\"} 1"), "{text}");
    }
}
