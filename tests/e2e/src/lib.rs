//! End-to-end tests of Synod on a real Kubernetes.
