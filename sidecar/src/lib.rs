//! The consensus sidecar: the shell around the core.
