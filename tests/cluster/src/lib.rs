//! A real local Kubernetes for Synod's tests and demo.
