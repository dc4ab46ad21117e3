//! The deterministic simulator of the consensus core.
